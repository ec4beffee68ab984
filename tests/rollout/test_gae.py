"""Advantages on arrays: closed forms, and episode by episode for everything that can happen in between."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from marl_aajr.rollout.postprocessing import gae, gae_of_turns, standardize

GAMMA, LAMBDA = 0.9, 0.8


def of_one(
    rewards: list[float],
    values: list[float],
    *,
    terminated: str = "",
    truncated: str = "",
    final: float = 0.0,
) -> list[float]:
    """GAE of one agent in one copy; the flags are the steps where they are set."""
    steps = len(rewards)
    flags = {
        name: torch.tensor([[str(t) in where] for t in range(steps)])
        for name, where in (("terminated", terminated), ("truncated", truncated))
    }
    result = gae(
        torch.tensor(rewards)[:, None],
        torch.tensor(values)[:, None],
        **flags,
        final_values=torch.full((steps, 1), final),
        gamma=GAMMA,
        lambda_=LAMBDA,
    )
    return [round(x, 5) for x in result.flatten().tolist()]


def test_advantage_of_one_step_is_the_temporal_difference() -> None:
    assert of_one([1.0], [0.5, 2.0]) == [round(1.0 + GAMMA * 2.0 - 0.5, 5)]


def test_later_temporal_differences_count_gamma_lambda_to_the_power_of_their_distance() -> None:
    d = [1.0 + GAMMA * 3.0 - 2.0, 1.0 + GAMMA * 4.0 - 3.0, 1.0 + GAMMA * 5.0 - 4.0]
    c = GAMMA * LAMBDA
    expected = [d[0] + c * d[1] + c * c * d[2], d[1] + c * d[2], d[2]]
    assert of_one([1.0] * 3, [2.0, 3.0, 4.0, 5.0]) == [round(x, 5) for x in expected]


def test_nothing_follows_a_terminal_state() -> None:
    first = 1.0 - 2.0  # no value of the next episode, no advantage of the next episode
    assert of_one([1.0, 1.0], [2.0, 3.0, 4.0], terminated="0", final=99.0)[0] == first


def test_truncated_episode_bootstraps_from_its_last_observation() -> None:
    assert of_one([1.0, 1.0], [2.0, 3.0, 4.0], truncated="0", final=7.0)[0] == round(1 + GAMMA * 7 - 2, 5)


def test_termination_wins_over_truncation() -> None:
    assert of_one([1.0], [2.0, 3.0], terminated="0", truncated="0", final=7.0) == [-1.0]


def test_numbers_that_are_not_read_may_be_anything() -> None:
    assert of_one([1.0, 1.0], [2.0, 3.0, 4.0], terminated="0", final=float("nan"))[0] == -1.0


def random_story(generator: torch.Generator, *, turns: bool) -> dict[str, Tensor]:
    """Columns of 12 steps, 2 agents, 5 copies in which agents wait, end early and come back."""
    shape = (12, 2, 5)
    chance = torch.rand(shape, generator=generator)
    acts = torch.rand(13, 2, 5, generator=generator) < 0.6
    if not turns:
        acts = torch.ones_like(acts)
    return {
        "rewards": torch.randn(shape, generator=generator),
        "values": torch.randn(13, 2, 5, generator=generator),
        "final_values": torch.randn(shape, generator=generator),
        "terminated": chance < 0.1,
        "truncated": (chance > 0.05) & (chance < 0.2),
        "acts": acts,
    }


def agent_by_agent(story: dict[str, Tensor], g: int, e: int) -> dict[int, float]:
    """The definition, for one agent in one copy: its own decisions in a row, then the recursion."""
    column: dict[str, Any] = {name: values[:, g, e].tolist() for name, values in story.items()}
    steps = len(column["rewards"])
    decisions = [t for t in range(steps + 1) if column["acts"][t]]
    result: dict[int, float] = {}
    following: dict[int, tuple[float, int | None, float]] = {}
    for i, t in enumerate(decisions):
        if t == steps:
            break
        earned = 0.0
        for k in range(t, steps):
            if k > t and column["acts"][k]:
                following[t] = (column["values"][k], decisions[i + 1], earned)
                break
            earned += column["rewards"][k]
            if column["terminated"][k]:
                following[t] = (0.0, None, earned)
                break
            if column["truncated"][k]:
                following[t] = (column["final_values"][k], None, earned)
                break
        else:
            if column["acts"][steps]:
                following[t] = (column["values"][steps], None, earned)
    for t in reversed(decisions):
        if t in following:
            value, after, earned = following[t]
            later = result.get(after, 0.0) if after is not None else 0.0
            result[t] = earned + GAMMA * value - column["values"][t] + GAMMA * LAMBDA * later
    return result


@pytest.mark.parametrize("seed", range(5))
def test_turns_arrivals_and_endings_agree_with_the_definition(seed: int) -> None:
    story = random_story(torch.Generator().manual_seed(seed), turns=True)
    advantages, samples = gae_of_turns(**story, gamma=GAMMA, lambda_=LAMBDA)
    for g in range(2):
        for e in range(5):
            expected = agent_by_agent(story, g, e)
            assert samples[:, g, e].nonzero().flatten().tolist() == sorted(expected)
            for t, advantage in expected.items():
                assert advantages[t, g, e].item() == pytest.approx(advantage, abs=1e-5)
    assert not advantages[~samples].any()


def test_decision_without_an_outcome_is_no_sample_and_still_a_bootstrap() -> None:
    rewards, no = torch.tensor([[1.0], [5.0]]), torch.zeros(2, 1, dtype=torch.bool)
    acts = torch.tensor([[True], [True], [False]])
    advantages, samples = gae_of_turns(
        rewards,
        torch.tensor([[2.0], [3.0], [99.0]]),
        acts=acts,
        terminated=no,
        truncated=no,
        final_values=torch.zeros(2, 1),
        gamma=GAMMA,
        lambda_=LAMBDA,
    )
    assert samples.flatten().tolist() == [True, False]
    assert advantages.flatten().tolist() == pytest.approx([1.0 + GAMMA * 3.0 - 2.0, 0.0])


@pytest.mark.parametrize("seed", range(3))
def test_agents_that_always_act_are_the_simple_case(seed: int) -> None:
    story = random_story(torch.Generator().manual_seed(seed), turns=False)
    advantages, samples = gae_of_turns(**story, gamma=GAMMA, lambda_=LAMBDA)
    del story["acts"]
    assert samples.all()
    torch.testing.assert_close(gae(**story, gamma=GAMMA, lambda_=LAMBDA), advantages)


def test_standardized_advantages_have_mean_0_and_deviation_1() -> None:
    result = standardize(torch.tensor([1.0, 2.0, 6.0]))
    assert result.mean().item() == pytest.approx(0.0, abs=1e-6)
    assert result.square().mean().item() == pytest.approx(1.0)


def test_equal_advantages_do_not_blow_up() -> None:
    assert not standardize(torch.full((3,), 5.0)).any()
