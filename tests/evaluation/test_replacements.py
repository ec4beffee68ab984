"""Agents that do not play as the victim does: what they do, and that nobody else notices."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import Tensor, nn

from marl_aajr.evaluation import Replacement, Suite, evaluate
from marl_aajr.evaluation.attack_entries import AttackEntry
from marl_aajr.evaluation.replacements import ReplacementPolicy, TogetherPolicy
from marl_aajr.rollout.batched_env import BatchedEnv
from marl_aajr.rollout.environments import EnvironmentSpec, make_batch, resolve
from marl_aajr.victims import Victim
from tests.evaluation.players import moves, returns_one_by_one, sign_reader, signs, team

CONTINUOUS = resolve("marl_aajr.envs.simple_spread_v3", {"max_cycles": 3, "continuous_actions": True})
SPREAD = resolve("marl_aajr.envs.simple_spread_v3", {"max_cycles": 6})


def constant(action: int) -> nn.Module:
    layer = nn.Linear(2, 2)
    layer.weight.data.zero_()
    layer.bias.data = 9.0 * torch.eye(2)[action]
    return layer


def with_one_stuck(spec: EnvironmentSpec, agent: str) -> Victim:
    """The perfect team of Signs, but for one agent whose policy is to choose 0."""
    perfect = team(spec, sign_reader())
    return Victim(
        module_of={**perfect.module_of, agent: "stuck"},
        modules={**perfect.modules, "stuck": constant(0)},
        observation_spaces=perfect.observation_spaces,
        action_spaces=perfect.action_spaces,
    )


def traitors(spec: EnvironmentSpec, module: nn.Module | None = None) -> Victim:
    """A trained adversary in Signs: always wrong, unless it is given another network."""
    return team(spec, module or sign_reader(-1))


def drawn_at_random(env: BatchedEnv, agent: str) -> Tensor:
    """Actions of all copies at the beginning of their first episode."""
    generator = torch.Generator().manual_seed(0)
    policy = Replacement(kind="random", agents=(agent,)).policy(
        env.num_envs, sampled=False, generator=generator
    )
    (drawn,) = policy(env, env.reset(seed=0)).values()
    return drawn


class TestClosedForm:
    def test_an_idle_agent_plays_as_one_whose_policy_is_action_zero(self) -> None:
        spec = signs()
        result = evaluate(team(spec, sign_reader()), replace=["idle:agent_0"], episodes=12, num_envs=5)
        stuck = with_one_stuck(spec, "agent_0")
        played = returns_one_by_one(stuck, spec, episodes=12, seed=0, num_envs=5)
        (row,) = result.adversarial_agents
        assert list(row.returns) == [sum(total.values()) for total in played]
        assert row.loyal_return == np.mean([total["agent_1"] + total["agent_2"] for total in played])

    def test_a_random_agent_is_right_half_the_time(self) -> None:
        """Its decisions are fair coins: their sum is N(0, n) for n of them."""
        spec = signs(longest=30)
        result = evaluate(team(spec, sign_reader()), replace=["random:agent_0"], episodes=100)
        own = result.adversarial_agents[0]
        decisions = (result.clean_return - own.loyal_return) * 100
        assert decisions > 1000
        assert abs(own.mean - own.loyal_return) * 100 < 4 * decisions**0.5

    def test_a_trained_agent_plays_its_own_policy(self) -> None:
        spec = signs()
        replacement = Replacement(kind="traitor", agents=("agent_0",), victim=traitors(spec), source="runs/x")
        result = evaluate(team(spec, sign_reader()), replace=[replacement], episodes=12)
        row, *controls = result.adversarial_agents
        assert row.mean - row.loyal_return == pytest.approx(row.loyal_return - result.clean_return)
        assert [c.label for c in controls] == ["random agent_0", "idle agent_0"]

    def test_random_moves_are_legal_ones(self) -> None:
        """Moves raises on any other; the second player moves at random."""
        result = evaluate(team(moves()), team="first", replace=["random:second"], episodes=40, num_envs=7)
        assert result.adversarial_agents[0].returns != result.clean.returns

    def test_random_moves_are_uniform_over_the_legal_ones(self) -> None:
        env = make_batch(moves(), 3000)
        drawn = drawn_at_random(env, "first")
        legal = env.action_mask["first"]
        assert legal is not None
        expected = (legal.double() / legal.sum(1, keepdim=True)).mean(0)
        shares = torch.bincount(drawn, minlength=4) / len(drawn)
        assert legal.gather(1, drawn[:, None]).all()
        torch.testing.assert_close(shares.double(), expected, atol=0.03, rtol=0.0)

    def test_random_actions_are_uniform_over_every_kind_of_space(self) -> None:
        drawn = drawn_at_random(make_batch(SPREAD, 4000), "agent_1")
        torch.testing.assert_close(torch.bincount(drawn) / 4000, torch.full((5,), 0.2), atol=0.03, rtol=0.0)
        env = make_batch(CONTINUOUS, 4000)
        drawn = drawn_at_random(env, "agent_1")
        assert drawn.shape == (4000, 5)
        assert drawn.mean(0).sub(0.5).abs().max() < 0.03
        assert drawn.std(0).sub(12**-0.5).abs().max() < 0.02
        env.action_spaces["agent_1"] = spaces.MultiDiscrete([2, 5])
        drawn = drawn_at_random(env, "agent_1")
        assert drawn.amin(0).tolist() == [0, 0]
        assert drawn.double().mean(0).tolist() == pytest.approx([0.5, 2.0], abs=0.1)


class TestCommonRandomNumbers:
    @pytest.mark.parametrize("kind", ["random", "idle"])
    @pytest.mark.parametrize("actions", ["greedy", "sampled"])
    def test_nobody_else_notices(self, kind: str, actions: Any) -> None:
        """In Signs nobody depends on the others: their returns are those of the clean row, bit for bit."""
        victim = team(signs(teams=True))
        result = evaluate(
            victim, team="right", replace=[f"{kind}:agent_0"], actions=[actions], episodes=20, num_envs=6
        )
        (row,) = result.adversarial_agents
        assert row.returns == result.clean.returns
        assert row.team_returns["left"] != result.clean.team_returns["left"]
        assert row.loyal_return == result.clean_return

    def test_a_row_is_the_same_whatever_the_other_rows_are(self) -> None:
        victim = team(SPREAD)
        alone = evaluate(victim, replace=["random:agent_1"], episodes=5)
        among = evaluate(victim, attacks=[("fgsm", 0.1)], replace=["idle", "random"], episodes=5)
        rows = {row.label: row for row in among.adversarial_agents}
        assert len(rows) == 6
        assert rows[alone.adversarial_agents[0].label] == alone.adversarial_agents[0]


class TestWorst:
    def test_the_worst_agent_is_chosen_on_other_episodes_than_it_is_reported_on(self) -> None:
        """agent_1 plays half as long as the others: it is never the worst to lose."""
        victim = team(signs(longest=20), sign_reader())
        result = evaluate(victim, replace=["idle"], episodes=60, selection_episodes=60, num_envs=10)
        rows = result.adversarial_agents
        assert [row.agents for row in rows] == [("agent_0",), ("agent_1",), ("agent_2",)]
        (worst,) = [row for row in rows if row.worst]
        assert worst.agents != ("agent_1",)
        assert worst.selection_return == min(
            row.selection_return for row in rows if row.selection_return is not None
        )
        assert all(row.selection_return != row.mean for row in rows)

    def test_more_agents_are_compared_with_as_many(self) -> None:
        victim = team(signs(longest=9), sign_reader())
        result = evaluate(victim, replace=["idle", "idle:agent_0,agent_2"], episodes=9, selection_episodes=9)
        assert [len(row.agents) for row in result.adversarial_agents if row.worst] == [1]

    def test_sides_are_not_compared(self) -> None:
        victim = team(signs(longest=9, teams=True), sign_reader())
        result = evaluate(
            victim, team="right", replace=["idle", "idle:agent_0"], episodes=9, selection_episodes=9
        )
        worst = {row.agents for row in result.adversarial_agents if row.worst}
        assert worst == {("agent_2",)}, "the other side is alone"

    def test_nothing_is_chosen_without_selection_episodes(self) -> None:
        result = evaluate(team(signs()), replace=["random"], episodes=3)
        assert {(row.worst, row.selection_return) for row in result.adversarial_agents} == {(False, None)}


class TestUndertrained:
    def verdicts(self, adversary: Victim) -> dict[str, str]:
        spec = signs(longest=20)
        replacement = Replacement(kind="traitor", agents=("agent_0",), victim=adversary)
        result = evaluate(team(spec, sign_reader()), replace=[replacement], episodes=40)
        return {check.verdict: check.text for check in result.checks}

    def test_a_traitor_that_hurts_most_passes(self) -> None:
        assert list(self.verdicts(traitors(signs()))) == ["pass"]

    def test_one_that_hurts_less_than_a_control_fails(self) -> None:
        found = self.verdicts(traitors(signs(), sign_reader()))
        assert list(found) == ["fail"]
        assert found["fail"].startswith("Undertrained: it leaves the team a return of ")


class TestSuites:
    SUITE = Suite(
        name="mine",
        summary="for tests",
        episodes=4,
        selection_episodes=0,
        actions=("greedy",),
        units="raw",
        epsilons=(0.1,),
        attacks=(AttackEntry(attack="noise"),),
        controls=("random", "idle"),
    )

    def test_controls_of_a_suite_play_once_whoever_asks_for_them(self) -> None:
        result = evaluate(team(signs()), suite=self.SUITE, replace=["idle:agent_1"])
        labels = [row.label for row in result.adversarial_agents]
        who = ("agent_0", "agent_1", "agent_2", "agent_0, agent_1, agent_2")
        assert labels == [f"{kind} {agents}" for kind in ("random", "idle") for agents in who]

    def test_a_team_that_does_nothing_returns_as_much_as_the_control(self) -> None:
        """The floor of a policy that has learned nothing, even where only one agent is attacked."""
        result = evaluate(team(signs(), constant(0)), suite=self.SUITE, agents=["agent_1"])
        (idle,) = [row for row in result.adversarial_agents if row.kind == "idle" and len(row.agents) == 3]
        assert (idle.returns, idle.loyal_return) == (result.clean.returns, 0.0)

    def test_those_that_cannot_be_played_are_left_out(self) -> None:
        """The only agent of its side of Moves may play at random, and must make a legal move."""
        result = evaluate(team(moves()), suite=self.SUITE, team="second")
        assert [row.label for row in result.adversarial_agents] == ["random second"]
        assert [skipped.attack for skipped in result.skipped] == ["idle agents"]


class TestResult:
    def test_one_row_for_each_kind_of_actions(self) -> None:
        result = evaluate(
            team(signs()), replace=["random:agent_2"], actions=["greedy", "sampled"], episodes=4
        )
        assert len(result.results) == 2
        for played in result.results:
            (row,) = played.adversarial_agents
            assert (row.kind, row.agents, row.source, row.training) == ("random", ("agent_2",), "", None)
            assert np.mean(row.returns) == row.mean == row.team_returns["team"]


class TestRefusals:
    @pytest.mark.parametrize(
        ("spec", "request_", "message"),
        [
            (signs(), "drunk", "a replacement out of random, idle; got 'drunk'"),
            (signs(), "random:agent_9", "an agent to replace out of agent_0, .*; got 'agent_9'"),
            (moves(), "idle:second", "got 'second', which must make a legal move; use random"),
        ],
    )
    def test_before_anything_is_played(self, spec: EnvironmentSpec, request_: str, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            evaluate(team(spec), replace=[request_], on_progress=lambda _: pytest.fail("it was played"))

    def test_a_trained_one_of_the_whole_team(self) -> None:
        everybody = ("agent_0", "agent_1", "agent_2")
        whole = Replacement(kind="traitor", agents=everybody, victim=traitors(signs()))
        with pytest.raises(ValueError, match=r"somebody of team 'team' to be left.*or those of another team"):
            evaluate(team(signs()), replace=[whole])

    def test_the_same_one_twice(self) -> None:
        with pytest.raises(ValueError, match="each replacement once, got idle agent_0"):
            evaluate(team(signs()), replace=["idle:agent_0", "idle"])

    @pytest.mark.parametrize(
        ("stranger", "message"),
        [
            (team(moves()), "expected a traitor that plays agent_0, got one for first, second"),
            (team(SPREAD), r"expected a traitor for the observations .* of 'agent_0', got one for .*18"),
        ],
    )
    def test_an_adversary_of_another_environment(self, stranger: Victim, message: str) -> None:
        replacement = Replacement(kind="traitor", agents=("agent_0",), victim=stranger)
        with pytest.raises(ValueError, match=message):
            evaluate(team(signs()), replace=[replacement])


def test_policies_that_act_together_begin_anew_and_forget_each() -> None:
    told: list[Any] = []

    class Recorder(ReplacementPolicy):
        def __init__(self, agent: str) -> None:
            self.agents = (agent,)

        def __call__(self, env: Any, obs: Any) -> dict[str, Any]:
            return dict.fromkeys(self.agents, obs)

        def reseed(self, seed: int) -> None:
            told.append((*self.agents, seed))

        def forget(self, over: Any) -> None:
            told.append((*self.agents, over))

    both: Any = TogetherPolicy([Recorder("a"), Recorder("b")])
    assert both.agents == ("a", "b")
    assert both(None, 7) == {"a": 7, "b": 7}
    both.reseed(3)
    both.forget("over")
    assert told == [("a", 3), ("b", 3), ("a", "over"), ("b", "over")]
