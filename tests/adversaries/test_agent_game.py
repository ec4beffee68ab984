"""Games of traitors and opponents: the contract, what they are paid, and a best traitor that is known."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from pettingzoo.utils.env import ParallelEnv
from torch import nn

from marl_aajr.adversaries.agent_game import AgentGame, AgentThreat, choose_sides
from marl_aajr.rollout.disturbances import Disturbance
from marl_aajr.rollout.env_checker import check_batched_env
from marl_aajr.rollout.environments import EnvironmentSpec, make_batch, resolve
from marl_aajr.victims import Victim
from tests.evaluation.players import moves, network, team

TAG = resolve("marl_aajr.envs.simple_tag_v3", {"max_cycles": 7})
SPREAD = resolve("marl_aajr.envs.simple_spread_v3", {"max_cycles": 7})


class Relay(ParallelEnv[str, Any, Any]):
    """The speaker sees a sign and names it; the listener repeats what was said in the round before.

    Both are paid +1 for each round in which the listener names the sign of the round before, −1 otherwise; in
    the first round nobody knows and nobody is paid.
    """

    metadata = {"name": "relay_v0", "render_modes": []}  # noqa: RUF012
    render_mode = None

    def __init__(self, *, rounds: int = 6) -> None:
        self.possible_agents = ["speaker", "listener"]
        self.rounds = rounds

    def observation_space(self, agent: str) -> spaces.Space[Any]:
        return spaces.Box(-1.0, 1.0, (1,), np.float32)

    def action_space(self, agent: str) -> spaces.Space[Any]:
        return spaces.Discrete(2)

    def reset(self, seed: int | None = None, options: Any = None) -> Any:
        self.rng = np.random.default_rng(seed)
        self.agents = list(self.possible_agents)
        self.t, self.said, self.before, self.sign = 0, 0, 0, self._draw()
        return self._look(), {agent: {} for agent in self.agents}

    def step(self, actions: dict[str, int]) -> Any:
        paid = 0.0 if self.t == 0 else 1.0 if 2 * actions["listener"] - 1 == self.before else -1.0
        self.t += 1
        self.before, self.said, self.sign = self.sign, 2 * int(actions["speaker"]) - 1, self._draw()
        told, over = self._look(), self.t >= self.rounds
        agents, self.agents = self.agents, [] if over else self.agents
        ends = dict.fromkeys(agents, over)
        return (
            told,
            dict.fromkeys(agents, paid),
            ends,
            dict.fromkeys(agents, False),
            {agent: {} for agent in agents},
        )

    def _draw(self) -> int:
        return 2 * int(self.rng.integers(2)) - 1

    def _look(self) -> dict[str, Any]:
        return {"speaker": np.array([self.sign], np.float32), "listener": np.array([self.said], np.float32)}


def reader() -> nn.Linear:
    """Names the sign that it sees."""
    layer = nn.Linear(1, 2)
    layer.weight.data = torch.tensor([[-1.0], [1.0]])
    layer.bias.data.zero_()
    return layer


RELAY = resolve("tests.adversaries.test_agent_game:Relay")


def each_its_own(spec: EnvironmentSpec) -> Victim:
    """A random network for every agent."""
    env = make_batch(spec, 1)
    sizes = {a: (int(np.prod(s.shape or ())), s) for a, s in env.observation_spaces.items()}
    return Victim(
        module_of={agent: agent for agent in env.possible_agents},
        modules={a: network(int(getattr(env.action_spaces[a], "n", 0)), n) for a, (n, _) in sizes.items()},
        observation_spaces=env.observation_spaces,
        action_spaces=env.action_spaces,
        env_name=spec.name,
        env_kwargs=spec.kwargs,
    )


def game(spec: EnvironmentSpec, num_envs: int, victim: Victim | None = None, **settings: Any) -> AgentGame:
    return AgentGame(make_batch(spec, num_envs), victim or each_its_own(spec), **settings)


@pytest.mark.parametrize(
    ("spec", "settings", "steps"),
    [
        (SPREAD, {"team": "team", "agents": ("agent_1",)}, 16),
        (TAG, {"team": "good", "agents": ("adversary_0", "adversary_2"), "pays": "own"}, 16),
        (moves(), {"team": "first", "agents": ("second",), "pays": "own"}, 30),
    ],
    ids=["traitor", "opponents", "by turns, with masks"],
)
def test_they_keep_the_contract(spec: EnvironmentSpec, settings: dict[str, Any], steps: int) -> None:
    victim = each_its_own(spec)
    check_batched_env(lambda e: game(spec, e, victim, **settings, sampled=True), steps=steps)


def test_opponents_are_paid_what_the_environment_pays_them() -> None:
    """Where they act as the victim would, the game is the one without them."""
    victim = each_its_own(TAG)
    pursuers = ("adversary_0", "adversary_1", "adversary_2")
    opponents = game(TAG, 60, victim, team="good", agents=pursuers, pays="own")
    plain = make_batch(TAG, 60)
    seen, obs = opponents.reset(seed=4), plain.reset(seed=4)
    earned = torch.zeros(60)
    for _ in range(7):
        acts = {
            a: victim.greedy(a, victim.policy(a)(victim.inputs(a, obs[a]))) for a in plain.possible_agents
        }
        assert all(torch.equal(seen[agent], obs[agent]) for agent in pursuers)
        paid = opponents.step({agent: acts[agent] for agent in pursuers})
        expected = plain.step(acts)
        assert all(torch.equal(paid.rewards[agent], expected.rewards[agent]) for agent in pursuers)
        earned += paid.rewards["adversary_1"]
        seen, obs = paid.obs, expected.obs
    assert earned.any()


@pytest.mark.parametrize(
    ("said", "worth"), [((0, 1), -10.0), ((1, 0), 10.0)], ids=["the honest one", "the best traitor"]
)
def test_the_best_traitor_of_the_relay_says_the_opposite(said: tuple[int, int], worth: float) -> None:
    """Six rounds, five of them paid, to two agents: it is worth 10, and no policy is worth more."""
    relay = game(RELAY, 8, team(RELAY, reader()), team="team", agents=("speaker",))
    obs, earned = relay.reset(seed=0), torch.zeros(8)
    for _ in range(6):
        names = torch.where(obs["speaker"][:, 0] < 0, said[0], said[1])
        step = relay.step({"speaker": names})
        obs, earned = step.obs, earned + step.rewards["speaker"]
    assert earned.tolist() == [worth] * 8
    assert step.episode_over.all()


SIDES = {"a": "us", "b": "us", "c": "them", "d": "them", "e": "them"}


@pytest.mark.parametrize(
    ("kind", "team", "agents", "chosen"),
    [
        ("opponent", "us", None, ("us", ("c", "d", "e"))),
        ("opponent", None, None, ("them", ("a", "b"))),
        ("opponent", "us", ["d"], ("us", ("d",))),
        ("opponent", None, ["d", "c"], ("us", ("c", "d"))),
        ("traitor", "us", ["b"], ("us", ("b",))),
        ("traitor", None, ["b"], ("us", ("b",))),
    ],
)
def test_sides(kind: Any, team: str | None, agents: list[str] | None, chosen: tuple[str, Any]) -> None:
    """Without a team, it is that of the traitors, or the largest without the opponents."""
    assert choose_sides(kind, SIDES, team=team, agents=agents) == chosen


@pytest.mark.parametrize(
    ("kind", "teams", "agents", "message"),
    [
        ("spy", SIDES, None, "kind out of traitor, opponent, best-response; got 'spy'"),
        ("traitor", SIDES, None, r"the agents that betray team 'us', got none; name some of \['a', 'b'\]"),
        ("traitor", SIDES, ["a", "b"], "somebody of team 'us' to stay loyal, got all of it"),
        ("traitor", SIDES, ["z"], "an agent out of a, b, c, d, e; got 'z'"),
        ("traitor", SIDES, ["c"], "an agent that can be traitor of team 'us' out of a, b; got 'c'"),
        ("opponent", SIDES, ["a"], "an agent that can be opponent of team 'us' out of c, d, e; got 'a'"),
        ("opponent", {"a": "us", "b": "us"}, None, "in which all are of 'us'; train a traitor"),
    ],
)
def test_refused_sides(kind: Any, teams: dict[str, str], agents: list[str] | None, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        choose_sides(kind, teams, team="us", agents=agents)


def test_an_unknown_pay_is_refused() -> None:
    with pytest.raises(ValueError, match="pays out of loss, own; got 'zero'"):
        game(SPREAD, 1, team="team", agents=("agent_0",), pays="zero")


class TestAlpha:
    """A traitor that acts with probability α, or whose action is mixed with the victim's."""

    def played(
        self, spec: EnvironmentSpec, disturbance: Disturbance | None, **settings: Any
    ) -> list[torch.Tensor]:
        env = make_batch(spec, 6)
        agents = list(env.possible_agents)[:2]
        victim = each_its_own(spec) if "act" not in settings else team(spec)
        act = settings.pop("act", 1)
        game = AgentGame(
            env, victim, team=env.teams[agents[0]], agents=agents, disturbance=disturbance, **settings
        )
        game.reset(seed=3)
        rewards = []
        for _ in range(10):
            actions = {a: torch.full_like(zeros, act) for a, zeros in game.nothing().items()}
            rewards.append(torch.stack(list(game.step(actions).rewards.values())))
        return rewards

    def test_at_1_it_always_acts_and_at_0_never(self) -> None:
        always, never, half = (
            self.played(SPREAD, Disturbance(kind="replace", size=alpha, by="run"))
            for alpha in (1.0, 0.0, 0.5)
        )
        plain, loyal = self.played(SPREAD, None), self.played(SPREAD, None, loyal=True)
        torch.testing.assert_close(always, plain)
        torch.testing.assert_close(never, loyal)
        assert not torch.equal(half[-1], plain[-1])
        assert not torch.equal(half[-1], loyal[-1])

    def test_mixed_actions_are_weighted_sums(self) -> None:
        """α = 1 is the traitor's action alone, α = 0 the victim's."""
        boxes = resolve("marl_aajr.envs.simple_spread_v3", {"max_cycles": 7, "continuous_actions": True})
        mixes = [Disturbance(kind="mix", size=alpha, by="run") for alpha in (1.0, 0.0, 0.5)]
        always, never, half = (self.played(boxes, mix, act=0.9) for mix in mixes)
        plain = self.played(boxes, None, act=0.9)
        torch.testing.assert_close(always, plain)
        torch.testing.assert_close(never, self.played(boxes, None, act=0.9, loyal=True))
        assert not torch.equal(half[-1], plain[-1])

    def test_it_keeps_the_contract(self) -> None:
        victim = team(RELAY, reader())

        def build(num_envs: int) -> AgentGame:
            disturbance = Disturbance(kind="replace", size=0.5, by="run")
            env = make_batch(RELAY, num_envs)
            return AgentGame(
                env, victim, team="team", agents=["speaker", "listener"], disturbance=disturbance
            )

        check_batched_env(build, steps=15)

    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"alpha": 1.5}, r"expected α of replace in \[0, 1\], got 1.5"),
            ({"mixed": True}, "expected alpha for mixed actions, got none"),
            ({"alpha": 0.5, "kind": "opponent"}, "expected alpha of a traitor, got one of 'opponent'"),
        ],
    )
    def test_refusals(self, settings: dict[str, Any], message: str) -> None:
        given = {"env": "x", "victim": "y", "digest": "z", "kind": "traitor", **settings}
        with pytest.raises(ValueError, match=message):
            assert AgentThreat(**given).disturbance
