"""Disturbed actions: the equations, the random numbers behind them, the contract of batches, and refusals."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import Tensor

from marl_aajr.rollout.batched_env import BatchedEnv, BatchedEnvWrapper, BatchedStep
from marl_aajr.rollout.disturbances import Disturbance, parse_disturbance
from marl_aajr.rollout.disturbed import ActionAdversary, DisturbedBatch, TrainedAdversary, disturbed_batch
from marl_aajr.rollout.env_checker import check_batched_env
from marl_aajr.rollout.environments import EnvironmentSpec, make_batch, resolve
from tests.evaluation.players import moves, signs, team

SPREAD = resolve("marl_aajr.envs.simple_spread_v3", {"max_cycles": 7})
BOXES = resolve("marl_aajr.envs.simple_spread_v3", {"max_cycles": 7, "continuous_actions": True})
AGENTS = ("agent_0", "agent_1", "agent_2")


class Told(BatchedEnvWrapper):
    """Remembers what it was told to do."""

    def __init__(self, env: BatchedEnv) -> None:
        super().__init__(env)
        self.told: list[dict[str, Tensor]] = []

    def step(self, actions: Any) -> BatchedStep:
        self.told.append(dict(actions))
        return super().step(actions)


class Always(ActionAdversary):
    """Does the same in every step."""

    def __init__(self, action: Any) -> None:
        self.action = action

    def __call__(self, env: Any, obs: Any, own: Any) -> Any:
        return {agent: torch.as_tensor(self.action).expand_as(action) for agent, action in own.items()}


def told(
    spec: EnvironmentSpec, text: str, own: Any, *, num_envs: int = 200, steps: int = 12, **how: Any
) -> Tensor:
    """What three agents do, `[T, agents, E, ...]`, who all decide on the same in every step."""
    inner = Told(make_batch(spec, num_envs))
    batch = DisturbedBatch(inner, parse_disturbance(text), **how)
    batch.reset(seed=5)
    for _ in range(steps):
        shape = inner.action_spaces["agent_0"].shape or ()
        batch.step({agent: torch.as_tensor(own).expand(num_envs, *shape) for agent in AGENTS})
    return torch.stack([torch.stack([step[agent] for agent in AGENTS]) for step in inner.told])


class TestEquations:
    def test_replace_happens_with_probability_alpha_to_each_agent_by_itself(self) -> None:
        done = told(SPREAD, "replace=0.3", 4, adversary=Always(1))
        replaced = done == 1
        assert ((done == 4) | replaced).all()
        assert replaced.float().mean().item() == pytest.approx(0.3, abs=0.02)
        assert replaced.float().mean((0, 2)).tolist() == pytest.approx([0.3] * 3, abs=0.04)
        pairs = (replaced[:, 0] & replaced[:, 1]).float().mean().item()
        assert pairs == pytest.approx(0.09, abs=0.02)
        again = (replaced[1:] & replaced[:-1]).float().mean().item()
        assert again == pytest.approx(0.09, abs=0.02)
        assert not torch.equal(replaced[0], replaced[7]), "the second episode has numbers of its own"

    def test_chance_is_uniform_over_all_actions(self) -> None:
        counts = told(SPREAD, "replace=1", 4).flatten().bincount(minlength=5) / (12 * 3 * 200)
        assert counts.tolist() == pytest.approx([0.2] * 5, abs=0.02)
        drawn = told(BOXES, "replace=1", 0.5)
        assert 0 <= drawn.min() < 0.01
        assert 0.99 < drawn.max() <= 1
        assert drawn.mean().item() == pytest.approx(0.5, abs=0.01)

    @pytest.mark.parametrize("text", ["replace=0", "mix=0"])
    def test_alpha_0_changes_nothing(self, text: str) -> None:
        assert (told(BOXES, text, 0.3) == 0.3).all()

    def test_mix_is_a_weighted_sum(self) -> None:
        done = told(BOXES, "mix=0.25", 0.2, adversary=Always(0.6))
        torch.testing.assert_close(done, torch.full_like(done, 0.3))
        by_chance = told(BOXES, "mix=0.25", 0.2)
        assert 0.15 <= by_chance.min() < 0.16
        assert 0.39 < by_chance.max() <= 0.4

    def test_noise_is_a_share_of_half_the_range_within_the_bounds(self) -> None:
        done = told(BOXES, "noise=0.4", 0.3)
        assert 0.1 <= done.min() < 0.11
        assert 0.49 < done.max() <= 0.5
        assert told(BOXES, "noise=0.4", 0.95).max() == 1.0
        assert told(BOXES, "noise=0.4", 1.5).max() > 1.4, "what is out of bounds by itself stays so"
        assert told(BOXES, "noise=0.4", -0.5).max() < -0.25

    def test_without_bounds_noise_has_the_size_itself(self) -> None:
        space, own = spaces.Box(-np.inf, np.inf, (2,)), torch.tensor([[5.0, -7.0]])
        disturbance = Disturbance(kind="noise", size=0.5)
        moved = disturbance.applied(space, own, torch.tensor([[1.0, -0.5]]), torch.zeros(1))
        torch.testing.assert_close(moved, torch.tensor([[5.5, -7.25]]))

    def test_only_the_named_agents(self) -> None:
        done = told(SPREAD, "replace=1,agents=agent_1", 4, adversary=Always(1))
        assert (done[:, 1] == 1).all()
        assert (done[:, [0, 2]] == 4).all()

    def test_what_is_done_instead_is_legal(self) -> None:
        """An illegal number is an error of the environment; turns and ends are as they are."""
        batch = disturbed_batch(make_batch(moves(), 20), parse_disturbance("replace=1"))
        batch.reset(seed=0)
        for _ in range(30):
            batch.step({agent: torch.zeros(20, dtype=torch.int64) for agent in batch.possible_agents})


class Counts(ActionAdversary):
    """Does the number of its step in the episode."""

    def __init__(self, num_envs: int) -> None:
        self.step = torch.zeros(num_envs, dtype=torch.int64)

    def __call__(self, env: Any, obs: Any, own: Any) -> Any:
        self.step = self.step + 1
        return dict.fromkeys(own, self.step % 5)

    def forget(self, over: Tensor | None = None) -> None:
        self.step = self.step * 0 if over is None else self.step.masked_fill(over, 0)


class TestBatch:
    def test_an_adversary_forgets_with_each_episode(self) -> None:
        done = told(SPREAD, "replace=1", 0, num_envs=3, steps=12, adversary=Counts(3))
        assert done[:, 0, 0].tolist() == [1, 2, 3, 4, 0, 1, 2, 1, 2, 3, 4, 0]

    @pytest.mark.parametrize("text", ["replace=0.5", "noise=0.3"])
    def test_it_keeps_the_contract(self, text: str) -> None:
        def build(num_envs: int) -> BatchedEnv:
            return disturbed_batch(make_batch(BOXES, num_envs), parse_disturbance(text))

        check_batched_env(build, steps=12)

    @pytest.mark.parametrize("spec", [SPREAD, signs(longest=4)], ids=["ours", "pettingzoo"])
    def test_with_a_trained_adversary_it_keeps_it_too(self, spec: EnvironmentSpec) -> None:
        victim = team(spec)

        def build(num_envs: int) -> BatchedEnv:
            return disturbed_batch(make_batch(spec, num_envs), parse_disturbance("replace=0.5"), victim)

        check_batched_env(build, steps=12)

    def test_the_adversary_sees_what_agents_see_and_acts_in_their_place(self) -> None:
        victim, inner = team(SPREAD), Told(make_batch(SPREAD, 6))
        batch = disturbed_batch(inner, parse_disturbance("replace=1"), victim, agents=["agent_2"])
        obs = batch.reset(seed=1)
        for _ in range(10):
            expected = victim.greedy(
                "agent_2", victim.policy("agent_2")(victim.inputs("agent_2", obs["agent_2"]))
            )
            obs = batch.step({agent: torch.zeros(6, dtype=torch.int64) for agent in AGENTS}).obs
            assert torch.equal(inner.told[-1]["agent_2"], expected)
            assert (inner.told[-1]["agent_0"] == 0).all()
        assert isinstance(batch.adversary, TrainedAdversary)


class TestText:
    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            ("replace=0.1", Disturbance(kind="replace", size=0.1)),
            ("replace=0.123456789", Disturbance(kind="replace", size=0.123456789)),
            ("mix=1,by=runs/a", Disturbance(kind="mix", size=1.0, by="runs/a")),
            (" noise = 2 , agents=a+b", Disturbance(kind="noise", size=2.0, agents=("a", "b"))),
        ],
    )
    def test_it_is_read_and_written(self, text: str, expected: Disturbance) -> None:
        assert parse_disturbance(text) == expected
        assert parse_disturbance(str(expected)) == expected

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("replace=1.5", r"expected α of replace in \[0, 1\], got 1.5"),
            ("mix=-0.1", r"expected α of mix in \[0, 1\]"),
            ("replace=nan", r"expected α of replace in \[0, 1\], got nan"),
            ("noise=0", "expected a finite size of noise > 0, got 0"),
            ("replac=0.1", r"a disturbance of actions out of .*got 'replac' \(did you mean replace\?\)"),
            ("replace", "expected a disturbance KIND=SIZE, .* got 'replace'"),
            ("", "expected a disturbance KIND=SIZE"),
            ("replace=0.1,replace=0.2", "expected a disturbance KIND=SIZE"),
            ("replace=a", "expected a number for replace, got 'a'"),
            (
                "replace=0.1,agent=a",
                r"a key of a disturbance out of agents, by; got 'agent' \(did you mean agents",
            ),
            ("noise=0.1,by=runs/a", "expected no adversary for noise, which has none, got by=runs/a"),
        ],
    )
    def test_what_is_refused(self, text: str, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            parse_disturbance(text)

    @pytest.mark.parametrize(
        ("spec", "text", "message"),
        [
            (
                SPREAD,
                "mix=0.1",
                r"expected Box actions for mix, got Discrete\(5\) for 'agent_0'; use replace",
            ),
            (SPREAD, "noise=0.1", "expected Box actions for noise"),
            (
                SPREAD,
                "replace=0.1,agents=bob",
                "an agent whose actions are disturbed out of agent_0, .* got 'bob'",
            ),
        ],
    )
    def test_what_does_not_fit_an_environment(self, spec: EnvironmentSpec, text: str, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            disturbed_batch(make_batch(spec, 1), parse_disturbance(text))

    def test_unbounded_actions_cannot_be_drawn(self) -> None:
        space = spaces.Box(-np.inf, np.inf, (2,))
        with pytest.raises(
            ValueError, match=r"bounded actions to draw at random for mix, got .* name an adversary"
        ):
            Disturbance(kind="mix", size=0.1).check("a", space)
        Disturbance(kind="mix", size=0.1, by="run").check("a", space)
        Disturbance(kind="noise", size=0.1).check("a", space)
