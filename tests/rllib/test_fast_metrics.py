"""What the fast env runner counts and sums up, and which episodes it evaluates by."""

from __future__ import annotations

from typing import Any

import pytest

from marl_aajr.rllib.sampling.episode_metrics import RETURNS_KEY
from marl_aajr.rollout.environments import resolve
from marl_aajr.rollout.pettingzoo_batch import PettingZooBatch
from tests.rllib.fast_runs import (
    CIRCLE,
    SPREAD,
    TAG,
    config,
    fragment,
    runner,
)


def test_returns_are_sums_of_rewards_by_team_agent_and_module() -> None:
    subject = runner(config("adversary", "agent", steps=25), TAG)
    sampled = fragment(subject)
    metrics = subject.metrics.peek
    hunters, prey = (sampled.modules[name].rewards.double() for name in ("adversary", "agent"))
    sums = metrics((RETURNS_KEY, "returns"))
    assert metrics((RETURNS_KEY, "episodes")) == 4
    assert metrics((RETURNS_KEY, "length")) == 100
    assert float(sums["adversary"]) == pytest.approx(hunters.sum().item())
    assert float(sums["good"]) == pytest.approx(prey.sum().item())
    assert metrics("episode_return_mean") == pytest.approx((hunters.sum() + prey.sum()).item() / 4)
    assert metrics(("module_episode_returns_mean", "agent")) == pytest.approx(prey.sum().item() / 4)
    assert metrics(("agent_episode_returns_mean", "adversary_1")) == pytest.approx(
        hunters[:, 1].sum().item() / 4
    )


def test_steps_are_counted_by_environment_agent_and_module() -> None:
    subject = runner(config("a", "b", "c", steps=12), CIRCLE, kwargs={"endings": "staggered"})
    part = fragment(subject).modules["a"]
    assert part.acts is not None
    metrics = subject.metrics.peek
    assert metrics("num_env_steps_sampled") == 48
    assert metrics(("num_agent_steps_sampled", "a")) == int(part.acts[:-1].sum()) == 8
    assert metrics(("num_module_steps_sampled", "a")) == 8


def test_decisions_that_a_fragment_left_open_are_counted_once() -> None:
    subject = runner(config("a", "b", "c", steps=11), CIRCLE, kwargs={"endings": "staggered"})
    first, second = fragment(subject), fragment(subject)
    assert second.modules["a"].steps == first.modules["a"].steps + 1
    counted = (subject.metrics.peek(("num_agent_steps_sampled", agent)) for agent in "abc")
    assert sum(counted) == subject.metrics.peek("num_env_steps_sampled") == 88


def test_whole_episodes_are_shared_among_the_copies() -> None:
    subject = runner(config(copies=4), SPREAD, kwargs={"max_cycles": 7})
    (tally,) = subject.sample(num_episodes=6)
    assert subject.metrics.peek("num_episodes") == 6
    assert tally.env_steps() == 42
    assert tally.agent_steps() == 126


def test_evaluation_does_not_prefer_short_episodes() -> None:
    # Copies whose first episode is long would come too late if the first to finish were taken.
    subject = runner(config("a", "b", copies=2), lambda num_envs, device: Lengths(num_envs))
    subject.sample(num_episodes=2)
    assert subject.metrics.peek("episode_len_mean") == (3 + 40) / 2


class Lengths(PettingZooBatch):
    """Copy 0 plays episodes of 3 steps, copy 1 of 40."""

    def __init__(self, num_envs: int) -> None:
        spec = resolve("tests.rllib.test_fast_metrics:of_length")
        super().__init__(spec, num_envs)
        for game, length in zip(self._shares.own.games, (3, 40), strict=True):
            game.env.endings = {"a": (length, "truncated"), "b": (length, "truncated")}


def of_length() -> Any:
    from tests.rollout.toy_games import Scripted

    return Scripted({"a": (3, "truncated"), "b": (3, "truncated")}, agents="ab")
