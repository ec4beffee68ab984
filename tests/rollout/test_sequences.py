"""Sequences for recurrent modules: where they begin and end, and what their critic sees."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from marl_aajr.core.distributions import Categorical
from marl_aajr.rollout.collector import Collector
from marl_aajr.rollout.environments import resolve
from marl_aajr.rollout.fragments import Fragment
from marl_aajr.rollout.pettingzoo_batch import PettingZooBatch
from marl_aajr.rollout.postprocessing import TrainingRows, training_rows
from marl_aajr.rollout.rollout_buffer import Decision
from marl_aajr.rollout.sequences import sequence_rows

LENGTH = 4


class Counting:
    """Recurrent policies whose state is the number of their decisions in the episode so far."""

    def __init__(self) -> None:
        self.count: Tensor | None = None
        self.generator = torch.Generator().manual_seed(0)

    def filter_obs(self, module: str, obs: Tensor, rows: Tensor | None) -> Tensor:
        return obs

    def sequence_length(self, module: str) -> int | None:
        return LENGTH

    def act(self, module: str, obs: Tensor, mask: Tensor | None, rows: Tensor | None) -> Decision:
        before = torch.zeros(len(obs), 1) if self.count is None else self.count
        self.count = before + (1.0 if rows is None else rows[:, None].float())
        inputs = torch.zeros(len(obs), 3)
        actions = Categorical(3).sample(inputs, generator=self.generator)
        return Decision(actions, actions, before[:, 0], inputs, {"count": before})

    def begin_episodes(self, episode_over: Tensor) -> None:
        if self.count is not None:
            self.count = self.count.masked_fill(episode_over.repeat(3)[:, None], 0.0)


def fragments(game: str, steps: tuple[int, ...], *, copies: int = 2) -> list[Fragment]:
    spec = resolve(f"tests.rllib.test_stock_rows:{game}", {"endings": "staggered"})
    collector = Collector(PettingZooBatch(spec, copies), dict.fromkeys("abc", "m"), Counting())
    collector.reset(seed=0)
    return [collector.collect(count)[0] for count in steps]


def sequences(fragment: Fragment, *, gamma: float = 0.9) -> tuple[TrainingRows, Tensor]:
    def critic(obs: Tensor, mask: Tensor | None, states: dict[str, Tensor]) -> Tensor:
        return states["count"] + torch.arange(obs.shape[1])

    initial = {"count": torch.zeros(1)}
    rows = sequence_rows([fragment], "m", critic, initial, length=LENGTH, gamma=gamma, lambda_=0.8)
    assert rows.loss_mask is not None
    return rows, rows.loss_mask


@pytest.mark.parametrize("game", ["scripted", "circle"])
def test_state_of_a_sequence_is_the_one_before_its_first_decision(game: str) -> None:
    for fragment in fragments(game, (5, 9, 6)):
        rows, real = sequences(fragment)
        # These policies leave their count as the log-probability of each decision.
        assert rows.states is not None
        counts = rows.states["count"] + torch.arange(LENGTH)
        assert torch.equal(rows.log_probs[real], counts[real])


def test_sequences_hold_every_sample_once_and_end_with_episodes() -> None:
    (fragment,) = fragments("scripted", (14,), copies=1)
    _, real = sequences(fragment)
    part = fragment.modules["m"]
    assert int(real.sum()) == len(training_rows([part], no_critic, gamma=0.9, lambda_=0.8))
    # Agent a ends at 3, b at 5, c at 7, when the next episode begins; the runner keeps states 0, 4, 8, 12.
    assert real.sum(1).tolist() == [3, 1, 2, 4, 1, 1, 4, 4, 3, 1, 4, 2]


def no_critic(obs: Tensor, mask: Tensor | None) -> Tensor:
    return torch.zeros(len(obs))


def test_values_and_advantages_are_those_of_a_critic_that_needs_no_memory() -> None:
    """In this game the number of one's decisions is the clock that the observations show."""
    for fragment in fragments("scripted", (5, 9, 6)):
        flat = training_rows([fragment.modules["m"]], lambda obs, _: obs[:, 0], gamma=0.9, lambda_=0.8)
        rows, real = sequences(fragment)
        for name in ("advantages", "value_targets"):
            ours, theirs = getattr(rows, name)[real], getattr(flat, name)
            torch.testing.assert_close(ours.sort().values, theirs.sort().values)


def test_padding_is_zero() -> None:
    (fragment,) = fragments("circle", (10,))
    rows, real = sequences(fragment)
    for name in ("obs", "actions", "log_probs", "inputs", "advantages", "value_targets"):
        assert not getattr(rows, name)[~real].any()
