"""What an adversary may spend: as text and as a value, in closed form, and never exceeded."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from math import comb
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from marl_aajr.attacks import PGD, Attack, BudgetError, UniformNoise, make_attack
from marl_aajr.evaluation import Budget, Evaluation, Progress, Suite, evaluate, parse_budget
from marl_aajr.evaluation.budget import FEW_SUBSETS, candidates, rounds, trials
from marl_aajr.evaluation.outcomes import paired_difference
from marl_aajr.evaluation.suites import Units
from marl_aajr.evaluation.timing import Clock
from marl_aajr.policy import Policy
from marl_aajr.report.evaluations import Evaluation as ReportedEvaluation
from marl_aajr.rollout.batched import BatchedEnv
from marl_aajr.rollout.environments import resolve
from marl_aajr.seeds import Purpose, derived_seed
from marl_aajr.threat import PerturbationSet
from marl_aajr.victims import Victim
from tests.evaluation.players import LoudReader, moves, sign_reader, signs, stakes, team

NAMES = st.lists(st.sampled_from(["agent_0", "agent_1", "red-2"]), min_size=1, unique=True)
NOT_LOUDNESS = (True, False)
"""The sign may be touched, the loudness may not."""


def flip(name: str = "fgsm") -> Attack:
    """Turns every decision it touches, at ε > 1."""
    return make_attack(name, epsilon=1.1, mask=NOT_LOUDNESS)


def played(
    worth: Collection[float] = (1.0, 1.0), *, steps: int = 4, crucial: bool = False, **protocol: Any
) -> Evaluation:
    spec = stakes(worth=tuple(worth), steps=steps, crucial=crucial)
    attacks = protocol.pop("attacks", None) or [(flip(), 1.1)]
    settings = {"episodes": 10, "num_envs": 4, "selection_episodes": 6}
    return evaluate(team(spec, LoudReader()), spec, attacks=attacks, **(settings | protocol))


class TestText:
    @given(
        agents=st.none() | st.integers(1, 9) | NAMES.map(tuple),
        steps=st.none() | st.integers(1, 99),
        timing=st.sampled_from(["random", "strategic"]),
        scales=st.dictionaries(st.sampled_from(["agent_0", "b"]), st.sampled_from([0.25, 1.0, 3.5])),
    )
    def test_it_is_read_as_it_is_written(self, agents: Any, steps: Any, timing: Any, scales: Any) -> None:
        if steps is None:
            timing = "random"
        budget = Budget(agents=agents, steps=steps, timing=timing, scales=scales)
        assert (parse_budget(str(budget)) if str(budget) else Budget()) == budget
        assert hash(budget) == hash(replace(budget))
        assert eval(repr(budget)) == budget

    @pytest.mark.parametrize(
        ("text", "budget"),
        [
            ("agents=1", Budget(agents=1)),
            (" steps=5 , timing=strategic ", Budget(steps=5, timing="strategic")),
            ("agents=a+b,scale=a:0.5", Budget(agents=("a", "b"), scales={"a": 0.5})),
        ],
    )
    def test_examples(self, text: str, budget: Budget) -> None:
        assert parse_budget(text) == budget

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("", "expected a budget KEY=VALUE"),
            ("agents", "expected a budget KEY=VALUE.*got 'agents'"),
            ("agent=1", r"a key of the budget out of agents, .*; got 'agent' \(did you mean agents\?\)"),
            ("agents=0", "number of agents in the budget ≥ 1, got 0"),
            ("agents=-1", "number of agents in the budget ≥ 1, got -1"),
            ("agents=a+a", "each agent once in the budget, got a, a"),
            ("agents=1,agents=2", "expected agents once in the budget"),
            ("steps=0", "number of steps in the budget ≥ 1, got 0"),
            ("steps=many", "an integer for steps in the budget, got 'many'"),
            ("steps=5,timing=lucky", "timing out of random, strategic; got 'lucky'"),
            ("timing=random", "expected steps with timing=random, got none; say how many"),
            ("scale=a", "AGENT:FACTOR.*got 'a'"),
            ("scale=a:x", "AGENT:FACTOR.*got 'a:x'"),
            ("scale=a:1+a:2", "each agent once"),
            ("scale=a:0", "finite scale > 0 of epsilon for 'a', got 0"),
        ],
    )
    def test_mistakes(self, text: str, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            parse_budget(text)


class TestRefusals:
    @pytest.mark.parametrize(
        ("protocol", "message"),
        [
            ({"budget": "agents=3"}, r"at most 2 agents in the budget \(agent_0, agent_1 can .*got agents=3"),
            ({"budget": "agents=2", "agents": ["agent_0"]}, "at most 1 agents in the budget"),
            ({"budget": "agents=agent_7"}, "agents out of agent_0, agent_1; got 'agent_7'"),
            (
                {"budget": "agents=agent_0", "agents": ["agent_1"]},
                "agents named once, got agent_1 and agents=ag",
            ),
            ({"budget": "scale=agent_9:2"}, "an agent in scale out of agent_0, agent_1; got 'agent_9'"),
            ({"budget": "agents=1", "selection_episodes": 0}, "≥ 1 to find out the worst agents on, got 0"),
            ({"budget": "steps=1", "selection_episodes": 0}, "≥ 1 to find out when to attack on, got 0"),
            ({"weakest_link": True, "selection_episodes": 0}, "≥ 1 to find out the weakest link on, got 0"),
            ({"norm": "l1"}, "norm out of linf, l2; got 'l1'"),
            (
                {"attacks": [("fgsm", 1.0), (make_attack("pgd", epsilon=1.0, norm="l2"), 1.0)]},
                "attacks of one norm.*got fgsm in linf and pgd in l2; evaluate once for each",
            ),
        ],
    )
    def test_before_anything_is_played(self, protocol: dict[str, Any], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            played(on_progress=lambda _: pytest.fail("it was played"), **protocol)

    def test_more_steps_than_an_episode_has_once_one_was_seen(self) -> None:
        with pytest.raises(
            ValueError, match=r"at most 4 steps in the budget, .*got steps=5; leave steps out"
        ):
            played(budget="steps=5")
        assert played(budget="steps=4").attacks[0].outcome.mean == -played().clean_return

    def test_preferences_of_continuous_actions(self) -> None:
        spec = resolve("marl_aajr.envs.simple_spread_v3", {"continuous_actions": True, "max_cycles": 2})
        with pytest.raises(ValueError, match=r"discrete actions for timing=strategic, .*use timing=random"):
            evaluate(team(spec), spec, attacks=[("noise", 0.1)], budget="steps=1,timing=strategic")
        noisy = evaluate(team(spec), spec, attacks=[("noise", 0.1)], budget="steps=1", episodes=3)
        assert noisy.attacks[0].strikes == 1


class TestWorstAgents:
    """Whoever is lied to loses twice its worth at every step, so the worst k are those who are worth most."""

    def test_the_most_worthy_is_found_and_reported_on_other_episodes(self) -> None:
        result = played((1.0, 5.0, 2.0), budget="agents=1")
        (row,) = result.attacks
        assert row.agents == ("agent_1",)
        assert row.outcome.returns == (4 * (1.0 - 5.0 + 2.0),) * 10
        tried = {subset.agents: subset.mean for subset in result.rows[0].subsets}
        assert tried == {("agent_0",): 4 * 6.0, ("agent_1",): 4 * -2.0, ("agent_2",): 4 * 4.0}

    def test_subsets_are_tried_on_other_episodes_than_the_reported_ones(self) -> None:
        spec = resolve("marl_aajr.envs.simple_spread_v3", {"max_cycles": 5})
        victim, attacks = team(spec), [("fgsm", 0.5)]
        result = evaluate(
            victim, spec, attacks=attacks, budget="agents=1", episodes=6, selection_episodes=4, seed=3
        )
        other = derived_seed(3, Purpose.SELECTION)
        for subset in result.rows[0].subsets:
            elsewhere = evaluate(victim, spec, attacks=attacks, agents=subset.agents, episodes=4, seed=other)
            assert subset.returns == elsewhere.attacks[0].outcome.returns
        (row,) = result.attacks
        assert row.agents == min(result.rows[0].subsets, key=lambda subset: subset.mean).agents
        here = evaluate(victim, spec, attacks=attacks, agents=row.agents, episodes=6, seed=3)
        assert row.outcome == here.attacks[0].outcome

    def test_each_attack_and_size_has_its_own_and_the_rest_see_clearly(self) -> None:
        """At ε = 0.9 nobody can be turned: all subsets tie, and the first is taken."""
        result = played((1.0, 5.0, 2.0, 3.0), budget="agents=2", attacks=[(flip(), 0.9), (flip(), 1.1)])
        weak, strong = result.attacks
        assert weak.outcome.mean == result.clean_return
        assert strong.agents == ("agent_1", "agent_3")
        assert strong.outcome.mean == 4 * (1 - 5 + 2 - 3)
        assert result.agents == ("agent_0", "agent_1", "agent_2", "agent_3")
        assert len(result.rows[0].subsets) == 2 * comb(4, 2)

    def test_among_the_named_ones_only(self) -> None:
        result = played((1.0, 5.0, 2.0), budget="agents=1", agents=["agent_0", "agent_2"])
        assert result.attacks[0].agents == ("agent_2",)

    def test_named_in_the_budget_is_named(self) -> None:
        result = played((1.0, 5.0, 2.0), budget=Budget(agents=("agent_0",)))
        assert result.agents == result.attacks[0].agents == ("agent_0",)
        assert result.rows[0].subsets == ()

    def test_greedy_where_there_are_many_subsets(self) -> None:
        """The losses add up, so here greedy is exact."""
        worth = (1.0, 7.0, 3.0, 8.0, 2.0, 6.0, 5.0)
        agents = [f"agent_{i}" for i in range(7)]
        assert comb(7, 3) > FEW_SUBSETS
        assert (rounds(agents, 3), trials(agents, 3)) == (3, 7 + 6 + 5)
        result = played(worth, steps=1, budget="agents=3", episodes=4, selection_episodes=3)
        assert result.attacks[0].agents == ("agent_1", "agent_3", "agent_5")
        assert len(result.rows[0].subsets) == trials(agents, 3)

    @given(n=st.integers(1, 8), data=st.data())
    def test_every_subset_is_tried_while_there_are_few(self, n: int, data: Any) -> None:
        agents, k = [f"a{i}" for i in range(n)], data.draw(st.integers(1, n))
        first = candidates(agents, k, ())
        if comb(n, k) <= FEW_SUBSETS:
            assert len(set(first)) == trials(agents, k) == comb(n, k)
            assert all(len(subset) == k for subset in first)
        else:
            assert [len(subset) for subset in first] == [1] * n
            assert all(set(subset) > {agents[0]} for subset in candidates(agents, k, (agents[0],)))

    def test_default_selection_episodes(self) -> None:
        result = played(budget="agents=1", selection_episodes=None, episodes=2, steps=1)
        assert result.selection_episodes == 50
        assert len(result.rows[0].subsets[0].returns) == 50


class TestWeakestLink:
    def test_the_worst_attack_on_each_agent_alone(self) -> None:
        attacks = [(flip("noise"), 0.2), (flip(), 0.9), (flip(), 1.1)]
        result = played((1.0, 5.0), weakest_link=True, attacks=attacks)
        tried = [
            (s.attack.name, s.attack.perturbations.epsilon, s.agents, s.mean) for s in result.rows[0].subsets
        ]
        clean = 4 * 6.0
        assert tried == [
            ("noise", 0.2, ("agent_0",), clean),
            ("noise", 0.2, ("agent_1",), clean),
            ("fgsm", 0.9, ("agent_0",), clean),
            ("fgsm", 0.9, ("agent_1",), clean),
            ("fgsm", 1.1, ("agent_0",), clean - 8 * 1.0),
            ("fgsm", 1.1, ("agent_1",), clean - 8 * 5.0),
        ]

    def test_it_is_known_where_single_agents_were_tried_and_nothing_where_there_is_one(self) -> None:
        assert len(played(weakest_link=True, budget="agents=1").rows[0].subsets) == 2
        assert played(weakest_link=True, agents=["agent_0"]).rows[0].subsets == ()
        assert played().rows[0].subsets == ()

    @pytest.mark.parametrize(
        "search", [{"weakest_link": True}, {"budget": "agents=1"}, {"budget": "steps=2"}]
    )
    def test_what_the_selection_episodes_return_without_attack_stands_beside(self, search: Any) -> None:
        told: list[Progress] = []
        spec = resolve("marl_aajr.envs.simple_spread_v3", {"max_cycles": 3})
        victim, protocol = team(spec), {"episodes": 3, "selection_episodes": 3, **search}
        result = evaluate(victim, spec, attacks=[("noise", 0.1)], on_progress=told.append, **protocol)
        elsewhere = evaluate(victim, spec, episodes=3, seed=derived_seed(0, Purpose.SELECTION))
        assert result.rows[0].clean_selection == elsewhere.clean.returns
        assert result.to_json()["clean_selection_return"] == pytest.approx(elsewhere.clean_return)
        assert told[-1].done == told[-1].total
        assert played().to_json()["clean_selection_return"] is None


class TestSteps:
    """Where every attacked decision is turned, a return counts the strikes: 2 for each."""

    def strikes(self, result: Evaluation) -> list[float]:
        clean, attacked = result.clean.returns, result.attacks[0].outcome.returns
        return [(a - b) / 2 for a, b in zip(clean, attacked, strict=True)]

    @pytest.mark.parametrize("timing", ["random", "strategic"])
    @pytest.mark.parametrize("m", [1, 3, 6])
    def test_exactly_m_of_t_where_t_is_fixed(self, timing: str, m: int) -> None:
        result = played((1.0,), steps=6, budget=f"steps={m},timing={timing}")
        assert self.strikes(result) == [m] * 10
        (row,) = result.attacks
        assert (row.strikes, row.budget) == (m, f"{m} of 6 steps, {timing}")

    @pytest.mark.parametrize("timing", ["random", "strategic"])
    def test_never_more_than_m_where_lengths_differ(self, timing: str) -> None:
        """Signs plays 1 to 6 steps; what the budget does not allow is not done, what it allows is used."""
        spec = signs()
        result = evaluate(
            team(spec, sign_reader()),
            spec,
            attacks=[("fgsm", 1.1)],
            agents=["agent_0"],
            budget=f"steps=2,timing={timing}",
            episodes=40,
            selection_episodes=40,
            num_envs=7,
        )
        counted = self.strikes(result)
        assert set(counted) == {0, 1, 2} or set(counted) == {1, 2}
        assert result.attacks[0].strikes == pytest.approx(np.mean(counted))
        assert result.attacks[0].budget == f"2 of 1–6 steps, {timing}"

    def test_a_step_counts_once_for_all_agents_and_is_common_to_them(self) -> None:
        result = played((1.0, 10.0), steps=5, budget="steps=2")
        assert {
            a - b for a, b in zip(result.clean.returns, result.attacks[0].outcome.returns, strict=True)
        } == {2 * 2 * 11.0}

    def test_random_times_are_those_of_every_other_attack_and_follow_the_seed(self) -> None:
        attacks = [(flip(name), 1.1) for name in ("fgsm", "pgd-margin", "square")]
        result = played((1.0,), steps=8, crucial=True, budget="steps=3", attacks=attacks, episodes=30)
        returns = {row.outcome.returns for row in result.attacks}
        assert len(returns) == 1, "the same steps were struck"
        assert set(next(iter(returns))) == {-1.0, 1.0}, "and not all of them"
        again = played((1.0,), steps=8, crucial=True, budget="steps=3", episodes=30)
        assert again.attacks[0].outcome.returns in returns
        other = played((1.0,), steps=8, crucial=True, budget="steps=3", episodes=30, seed=1)
        assert other.attacks[0].outcome.returns not in returns

    def test_strategic_times_beat_random_ones_where_one_step_matters(self) -> None:
        """It is found in every episode; by chance in one of eight."""
        found = {
            timing: played(
                (1.0,), steps=8, crucial=True, budget=f"steps=1,timing={timing}", episodes=80, num_envs=20
            )
            .attacks[0]
            .outcome.mean
            for timing in ("random", "strategic")
        }
        assert found["strategic"] == -1.0
        assert found["random"] == pytest.approx(1 - 2 / 8, abs=0.2)

    def test_waiting_for_a_turn_costs_nothing(self) -> None:
        """In Moves the attacked player is to move at every other step."""
        spec = moves()
        result = evaluate(
            team(spec), spec, attacks=[("pgd-margin", 5.0)], budget="steps=1", episodes=20, num_envs=6
        )
        assert 0.5 < (result.attacks[0].strikes or 0) <= 1
        assert result.attacks[0].budget == "1 of 1–5 steps, random"

    def test_the_judge_does_not_believe_the_clock(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(Clock, "strike", lambda self, due, preference: due)
        with pytest.raises(BudgetError, match="expected at most 2 attacked steps an episode, got 3"):
            played(budget="steps=2")


class TestScales:
    def test_each_agent_has_its_own_size(self) -> None:
        """At 1.5 everybody turns, at 0.75 nobody."""
        result = played((1.0, 10.0), budget="scale=agent_1:0.5", attacks=[(flip(), 1.5), (flip(), 2.5)])
        half, both = result.attacks
        assert half.outcome.mean == 4 * (-1.0 + 10.0)
        assert both.outcome.mean == 4 * -11.0
        assert half.epsilons == {"agent_0": 1.5, "agent_1": 0.75}

    def test_no_attack_is_trusted_with_it(self) -> None:
        """The set it is verified against is the agent's own."""

        @dataclass(frozen=True, kw_only=True)
        class Greedy(UniformNoise):
            def run(self, policy: Policy, obs: Tensor, *, generator: torch.Generator) -> Tensor:
                return torch.full_like(obs, 1.5)

        attack = Greedy(perturbations=PerturbationSet(epsilon=1.5))
        played(attacks=[(attack, 1.5)])
        with pytest.raises(BudgetError, match="4 of 4 rows outside"):
            played(attacks=[(attack, 1.5)], budget="scale=agent_1:0.5")


class TestNorm:
    def test_l2_for_everything_that_is_named(self) -> None:
        """The sign is x = ±1 and the other feature does not count: in L2 it turns beyond ‖δ‖ = 1 as well."""
        spec = signs()
        result = evaluate(
            team(spec, sign_reader()),
            spec,
            attacks=[("fgsm", 0.9), ("fgsm", 1.1), (flip("pgd-margin"), 1.1)],
            norm="l2",
            episodes=6,
        )
        assert {row.attack.perturbations.norm for row in result.attacks} == {"l2"}
        below, above, value = (row.outcome.mean for row in result.attacks)
        assert (below, above, value) == (result.clean_return, -result.clean_return, -result.clean_return)
        assert result.norm == result.to_json()["norm"] == "l2"

    def test_a_suite_says_it_for_its_attacks_and_a_caller_for_the_suite(self) -> None:
        suite = Suite.model_validate(
            {
                "name": "mine",
                "summary": "for tests",
                "episodes": 2,
                "selection_episodes": 2,
                "actions": ["greedy"],
                "units": "raw",
                "norm": "l2",
                "budget": "agents=1,steps=1",
                "weakest_link": True,
                "epsilons": [1.1],
                "attacks": ["noise", {"attack": "pgd-margin", "steps": 3}],
            }
        )
        spec = stakes()
        own = evaluate(team(spec, LoudReader()), spec, suite=suite)
        assert (own.norm, own.budget) == ("l2", "agents=1,steps=1,timing=random")
        assert {row.attack.perturbations.norm for row in own.attacks} == {"l2"}
        other = evaluate(team(spec, LoudReader()), spec, suite=suite, norm="linf", budget="agents=2")
        assert (other.norm, other.budget) == ("linf", "agents=2")
        assert {row.attack.perturbations.norm for row in other.attacks} == {"linf"}

    @pytest.mark.parametrize(
        ("field", "value", "message"),
        [("budget", "agent=1", "did you mean agents"), ("norm", "l1", "'linf' or 'l2'")],
    )
    def test_mistakes_in_a_suite_are_named(self, tmp_path: Any, field: str, value: str, message: str) -> None:
        path = tmp_path / "mine.yaml"
        fields = {"summary": "x", "episodes": 2, "selection_episodes": 2, "actions": ["greedy"]}
        more = {"units": "raw", "epsilons": [1], "attacks": ["noise"], field: value}
        path.write_text(json.dumps(fields | more))
        spec = stakes()
        with pytest.raises(ValueError, match=rf"suite 'mine' in .*, {field}: .*{message}"):
            evaluate(team(spec), spec, suite=path)


class TestWorstAttack:
    def test_its_lead_over_the_next_is_said_on_the_reported_episodes(self) -> None:
        result = played(attacks=[("noise", 0.9), (flip(), 1.1), ("noise", 1.1)])
        small, large = result.worst
        assert (small.runner_up, small.lead) == (None, None)
        assert large.runner_up is result.attacks[2]
        assert large.lead == paired_difference(large.chosen.outcome.returns, large.runner_up.outcome.returns)
        assert large.to_json()["runner_up"]["attack"] == "noise"

    def test_paired_difference_by_hand(self) -> None:
        """Differences −1, −2, −3: mean −2, standard error 1/√3, t₂(0.975) = 4.302653."""
        found = paired_difference((0.0, 0.0, 0.0), (1.0, 2.0, 3.0))
        assert found == pytest.approx((-2.0, -2.0 - 4.302653 / 3**0.5, -2.0 + 4.302653 / 3**0.5))
        assert paired_difference((1.0,), (3.0,)) == (-2.0, None, None)


class TestJson:
    def test_who_when_and_how_much_and_the_report_reads_it(self) -> None:
        result = played((1.0, 5.0, 2.0), budget="agents=1,steps=2", attacks=[(flip(), 1.1), ("noise", 1.1)])
        written = json.loads(json.dumps(result.to_json(), allow_nan=False))
        assert written["schema"] == 2
        assert written["budget"] == "agents=1,steps=2,timing=random"
        row = written["attacks"][0]
        assert (row["agents"], row["epsilons"]) == (["agent_1"], {"agent_1": 1.1})
        assert (row["budget"], row["attacked_steps"]) == ("2 of 4 steps, random", 2.0)
        assert set(written["subsets"][0]) >= {"agents", "attack", "settings", "epsilon", "selection_return"}
        assert written["worst"][0]["agents"] == row["agents"]
        read = ReportedEvaluation.model_validate(written)
        assert read.attacks[0].agents == ("agent_1",)
        assert len(read.subsets) == 6

    def test_the_report_reads_what_was_written_before_there_were_budgets(self) -> None:
        written = played(attacks=[(flip(), 1.1), ("noise", 1.1)]).to_json()
        for key in ("budget", "norm", "subsets", "adversarial_agents"):
            del written[key]
        for row in (*written["attacks"], *written["worst"]):
            for key in {"agents", "epsilons", "budget", "attacked_steps", "runner_up", "access"} & set(row):
                del row[key]
        read = ReportedEvaluation.model_validate(json.loads(json.dumps(written | {"schema": 1})))
        assert read.attacks[0].mean == written["attacks"][0]["return"]


@dataclass(frozen=True, kw_only=True)
class Swap(PGD):
    """One adversary for all: turns an agent's sign by what its neighbour was told that the agent sees."""

    name: ClassVar[str] = "swap"
    confers: ClassVar[bool] = True
    _orders: Tensor | None = None

    def confer(self, seen: Mapping[str, Tensor], *, generator: torch.Generator) -> dict[str, Tensor]:
        whole = torch.stack(list(seen.values()))
        assert whole.ndim == 3
        return {agent: -1.1 * whole[i, :, :1].sign() for i, agent in enumerate(seen)}

    def under_orders(self, orders: Tensor) -> Attack:
        return replace(self, _orders=orders)

    def run(self, policy: Policy, obs: Tensor, *, generator: torch.Generator) -> Tensor:
        assert self._orders is not None
        return torch.cat([self._orders, torch.zeros_like(self._orders)], -1)


class TestSeams:
    @pytest.mark.parametrize("budget", [None, "agents=2", "scale=agent_2:2", "steps=2"])
    def test_orders_reach_the_rows_that_they_are_for(self, budget: str | None) -> None:
        """Agents leave at different times, and only counted copies are lied to: no row may slip."""
        spec = signs()
        victim = team(spec, sign_reader())
        joint = Swap(perturbations=PerturbationSet(epsilon=1.1))
        settings: dict[str, Any] = {"episodes": 13, "num_envs": 5, "selection_episodes": 5, "budget": budget}
        together = evaluate(victim, spec, attacks=[(joint, 1.1)], **settings)
        alone = evaluate(victim, spec, attacks=[("fgsm", 1.1)], **settings)
        assert together.attacks[0].outcome.returns == alone.attacks[0].outcome.returns
        assert together.attacks[0].success_rate == 1.0

    def test_what_is_learned_for_one_size_is_learned_for_each(self) -> None:
        fitted: list[float] = []

        @dataclass(frozen=True, kw_only=True)
        class Sized(UniformNoise):
            per_size: ClassVar[bool] = True
            done: bool = False

            @property
            def ready(self) -> bool:
                return self.done

            def fit(
                self,
                victim: Victim,
                env: BatchedEnv,
                *,
                agents: Collection[str],
                seed: int,
                units: Units = "raw",
                home: Path | None = None,
            ) -> Self:
                fitted.append(self.perturbations.epsilon)
                return replace(self, done=True)

        attack = Sized(perturbations=PerturbationSet(epsilon=1.0))
        played(attacks=[(attack, 0.3), (attack, 0.6)], actions=["greedy", "sampled"])
        assert fitted == [0.3, 0.6]


@pytest.mark.parametrize(
    "protocol",
    [
        {"weakest_link": True},
        {"budget": "agents=2", "weakest_link": True},
        {"budget": "agents=1,steps=2", "actions": ["greedy", "sampled"]},
    ],
)
def test_what_there_is_to_play_is_known_beforehand(protocol: dict[str, Any]) -> None:
    told: list[Progress] = []
    attacks = [(flip(), 0.9), (flip(), 1.1), (flip("noise"), 1.1)]
    played((1.0, 1.0, 1.0), attacks=attacks, episodes=3, on_progress=told.append, **protocol)
    assert told[-1].done == told[-1].total
    assert len({progress.total for progress in told}) == 1


def test_returns_that_cancel_within_a_team_are_noted() -> None:
    for sides, noted in ((True, []), (False, ["teams"])):
        spec = moves(sides=sides)
        result = evaluate(team(spec), spec, episodes=4)
        assert [check.name for check in result.checks] == noted
