"""Which agents are attacked, and by what: found on other episodes than the reported ones."""

from __future__ import annotations

from dataclasses import astuple
from math import comb
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from marl_aajr.core.seeds import Purpose, derived_seed
from marl_aajr.evaluation import Budget, Progress, evaluate
from marl_aajr.evaluation.budget import FEW_SUBSETS, candidates, rounds, trials
from marl_aajr.evaluation.worst_attack import Difference, paired_difference
from marl_aajr.rollout.environments import resolve
from tests.evaluation.players import flip, moves, played, team


class TestWorstAgents:
    """Whoever is lied to loses twice its worth at every step, so the worst k are those who are worth most."""

    def test_the_most_worthy_is_found_and_reported_on_other_episodes(self) -> None:
        result = played((1.0, 5.0, 2.0), budget="agents=1")
        (row,) = result.attacks
        assert row.agents == ("agent_1",)
        assert row.returns == (4 * (1.0 - 5.0 + 2.0),) * 10
        tried = {subset.agents: subset.mean for subset in result.results[0].subsets}
        assert tried == {("agent_0",): 4 * 6.0, ("agent_1",): 4 * -2.0, ("agent_2",): 4 * 4.0}

    def test_subsets_are_tried_on_other_episodes_than_the_reported_ones(self) -> None:
        spec = resolve("marl_aajr.envs.simple_spread_v3", {"max_cycles": 5})
        victim, attacks = team(spec), [("fgsm", 0.5)]
        result = evaluate(
            victim, spec, attacks=attacks, budget="agents=1", episodes=6, selection_episodes=4, seed=3
        )
        other = derived_seed(3, Purpose.SELECTION)
        for subset in result.results[0].subsets:
            elsewhere = evaluate(victim, spec, attacks=attacks, agents=subset.agents, episodes=4, seed=other)
            assert subset.returns == elsewhere.attacks[0].returns
        (row,) = result.attacks
        assert row.agents == min(result.results[0].subsets, key=lambda subset: subset.mean).agents
        here = evaluate(victim, spec, attacks=attacks, agents=row.agents, episodes=6, seed=3)
        assert row == here.attacks[0]

    def test_each_attack_and_size_has_its_own_and_the_rest_see_clearly(self) -> None:
        """At ε = 0.9 nobody can be turned: all subsets tie, and the first is taken."""
        result = played((1.0, 5.0, 2.0, 3.0), budget="agents=2", attacks=[(flip(), 0.9), (flip(), 1.1)])
        weak, strong = result.attacks
        assert weak.mean == result.clean_return
        assert strong.agents == ("agent_1", "agent_3")
        assert strong.mean == 4 * (1 - 5 + 2 - 3)
        assert result.agents == ("agent_0", "agent_1", "agent_2", "agent_3")
        assert len(result.results[0].subsets) == 2 * comb(4, 2)

    def test_among_the_named_ones_only(self) -> None:
        result = played((1.0, 5.0, 2.0), budget="agents=1", agents=["agent_0", "agent_2"])
        assert result.attacks[0].agents == ("agent_2",)

    def test_named_in_the_budget_is_named(self) -> None:
        result = played((1.0, 5.0, 2.0), budget=Budget(agents=("agent_0",)))
        assert result.agents == result.attacks[0].agents == ("agent_0",)
        assert result.results[0].subsets == ()

    def test_greedy_where_there_are_many_subsets(self) -> None:
        """The losses add up, so here greedy is exact."""
        worth = (1.0, 7.0, 3.0, 8.0, 2.0, 6.0, 5.0)
        agents = [f"agent_{i}" for i in range(7)]
        assert comb(7, 3) > FEW_SUBSETS
        assert (rounds(agents, 3), trials(agents, 3)) == (3, 7 + 6 + 5)
        result = played(worth, steps=1, budget="agents=3", episodes=4, selection_episodes=3)
        assert result.attacks[0].agents == ("agent_1", "agent_3", "agent_5")
        assert len(result.results[0].subsets) == trials(agents, 3)

    @settings(max_examples=30, deadline=None)
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
        result = played(budget="agents=1", selection_episodes=None, episodes=5, steps=1)
        assert result.selection_episodes == 3, "half as many, as in the suites"
        assert len(result.results[0].subsets[0].returns) == 3


class TestWeakestLink:
    def test_the_worst_attack_on_each_agent_alone(self) -> None:
        attacks = [(flip("noise"), 0.2), (flip(), 0.9), (flip(), 1.1)]
        result = played((1.0, 5.0), weakest_link=True, attacks=attacks)
        tried = [(s.attack.name, s.attack.epsilon, s.agents, s.mean) for s in result.results[0].subsets]
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
        assert len(played(weakest_link=True, budget="agents=1").results[0].subsets) == 2
        assert played(weakest_link=True, agents=["agent_0"]).results[0].subsets == ()
        assert played().results[0].subsets == ()

    @pytest.mark.parametrize(
        "search", [{"weakest_link": True}, {"budget": "agents=1"}, {"budget": "steps=2"}]
    )
    def test_what_the_selection_episodes_return_without_attack_stands_beside(self, search: Any) -> None:
        told: list[Progress] = []
        spec = resolve("marl_aajr.envs.simple_spread_v3", {"max_cycles": 3})
        victim, protocol = team(spec), {"episodes": 3, "selection_episodes": 3, **search}
        result = evaluate(victim, spec, attacks=[("noise", 0.1)], on_progress=told.append, **protocol)
        elsewhere = evaluate(victim, spec, episodes=3, seed=derived_seed(0, Purpose.SELECTION))
        assert result.results[0].clean_selection == elsewhere.clean.returns
        assert result.results[0].clean_selection_return == pytest.approx(elsewhere.clean_return)
        assert told[-1].done == told[-1].total
        assert played().results[0].clean_selection_return is None


class TestWorstAttack:
    def test_its_lead_over_the_next_is_said_on_the_reported_episodes(self) -> None:
        result = played(attacks=[("noise", 0.9), (flip(), 1.1), ("noise", 1.1)])
        small, large = result.worst
        assert (small.runner_up, small.lead) == (None, None)
        first, second = result.attacks[1:]
        assert (large.attack, large.runner_up) == (first.attack, second.attack)
        assert large.lead == paired_difference(first.returns, second.returns)
        assert second.attack.name == "noise"

    def test_paired_difference_by_hand(self) -> None:
        """Differences −1, −2, −3: mean −2, standard error 1/√3, t₂(0.975) = 4.302653."""
        found = paired_difference((0.0, 0.0, 0.0), (1.0, 2.0, 3.0))
        assert astuple(found) == pytest.approx((-2.0, -2.0 - 4.302653 / 3**0.5, -2.0 + 4.302653 / 3**0.5))
        assert paired_difference((1.0,), (3.0,)) == Difference(-2.0, None, None)
        assert paired_difference((1.0, 2.0), (3.0, 4.0)) == Difference(-2.0, -2.0, -2.0)


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
