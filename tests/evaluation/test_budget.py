"""What an adversary may spend: as text and as a value, and never exceeded."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from marl_aajr.attacks import BudgetError, UniformNoise, make_attack
from marl_aajr.core.policy import Policy
from marl_aajr.core.threat import PerturbationSet
from marl_aajr.evaluation import Budget, Suite, evaluate, parse_budget
from marl_aajr.rollout.environments import resolve
from tests.evaluation.players import LoudReader, flip, played, sign_reader, signs, stakes, team

NAMES = st.lists(st.sampled_from(["agent_0", "agent_1", "red-2"]), min_size=1, unique=True)


class TestText:
    @settings(max_examples=30, deadline=None)
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
            ({"norm": "l1"}, "norm: expected 'linf', 'l2' or 'words', got 'l1'"),
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
        assert played(budget="steps=4").attacks[0].mean == -played().clean_return

    def test_preferences_of_continuous_actions(self) -> None:
        spec = resolve("marl_aajr.envs.simple_spread_v3", {"continuous_actions": True, "max_cycles": 2})
        with pytest.raises(ValueError, match=r"discrete actions for timing=strategic, .*use timing=random"):
            evaluate(team(spec), spec, attacks=[("noise", 0.1)], budget="steps=1,timing=strategic")
        noisy = evaluate(team(spec), spec, attacks=[("noise", 0.1)], budget="steps=1", episodes=3)
        steps = noisy.attacks[0].attacked_steps
        assert steps is not None
        assert steps.mean == 1


class TestScales:
    def test_each_agent_has_its_own_size(self) -> None:
        """At 1.5 everybody turns, at 0.75 nobody."""
        result = played((1.0, 10.0), budget="scale=agent_1:0.5", attacks=[(flip(), 1.5), (flip(), 2.5)])
        half, both = result.attacks
        assert half.mean == 4 * (-1.0 + 10.0)
        assert both.mean == 4 * -11.0
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
        assert {row.attack.norm for row in result.attacks} == {"l2"}
        below, above, value = (row.mean for row in result.attacks)
        assert (below, above, value) == (result.clean_return, -result.clean_return, -result.clean_return)
        assert result.norm == "l2"

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
        assert (own.norm, str(own.budget)) == ("l2", "agents=1,steps=1,timing=random")
        assert {row.attack.norm for row in own.attacks} == {"l2"}
        other = evaluate(team(spec, LoudReader()), spec, suite=suite, norm="linf", budget="agents=2")
        assert (other.norm, str(other.budget)) == ("linf", "agents=2")
        assert {row.attack.norm for row in other.attacks} == {"linf"}

    @pytest.mark.parametrize(
        ("field", "value", "message"),
        [("budget", "agent=1", "did you mean agents"), ("norm", "l1", "'linf', 'l2' or 'words'")],
    )
    def test_mistakes_in_a_suite_are_named(self, tmp_path: Any, field: str, value: str, message: str) -> None:
        path = tmp_path / "mine.yaml"
        fields = {"summary": "x", "episodes": 2, "selection_episodes": 2, "actions": ["greedy"]}
        more = {"units": "raw", "epsilons": [1], "attacks": ["noise"], field: value}
        path.write_text(json.dumps(fields | more))
        spec = stakes()
        with pytest.raises(ValueError, match=rf"mine\.yaml:1: {field}: .*{message}"):
            evaluate(team(spec), spec, suite=path)


class TestResult:
    def test_agents_sizes_and_steps_of_each_row(self) -> None:
        result = played((1.0, 5.0, 2.0), budget="agents=1,steps=2", attacks=[(flip(), 1.1), ("noise", 1.1)])
        assert str(result.budget) == "agents=1,steps=2,timing=random"
        row = result.attacks[0]
        assert row.epsilons == {"agent_1": 1.1}
        assert row.attacked_steps is not None
        assert (str(row.attacked_steps), row.attacked_steps.mean) == ("2 of 4 steps, random", 2.0)
        assert result.worst[0].agents == row.agents == ("agent_1",)
        assert len(result.results[0].subsets) == 6
