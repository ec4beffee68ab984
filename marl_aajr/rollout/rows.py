"""From fragments to the rows that a learner trains on: values, advantages, standardisation.

Values are computed here, at the learner, because the runner's networks are without their critics.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from marl_aajr.rollout.fragments import ModuleFragment
from marl_aajr.rollout.gae import gae, gae_of_turns, standardize

Critic = Callable[[Tensor, Tensor | None], Tensor]
"""Observations ``[N, ...]`` and legal actions ``[N, n]`` (or None) to values ``[N]``."""


@dataclass(frozen=True)
class Rows:
    """Independent samples of one module, N of them.

    Attributes:
        obs: ``[N, ...]``.
        mask: ``[N, n]`` bool, legal actions; None where the game has no masks.
        actions: ``[N, ...]``.
        log_probs: ``[N]``.
        inputs: ``[N, m]``.
        advantages: ``[N]``, standardised.
        value_targets: ``[N]``.
        loss_mask: ``[N]`` bool, False for rows that only look like samples; None: all are samples.
    """

    obs: Tensor
    mask: Tensor | None
    actions: Tensor
    log_probs: Tensor
    inputs: Tensor
    advantages: Tensor
    value_targets: Tensor
    loss_mask: Tensor | None = None

    def __len__(self) -> int:
        return len(self.advantages)


@dataclass(frozen=True)
class Judged:
    """A fragment's decisions, judged by the critic.

    Attributes:
        values: ``[T + 1, G, E]`` of the observations; 0 where there is none.
        final_values: ``[T, G, E]`` of the last observations of episodes; 0 where there is none.
        advantages: ``[T, G, E]``.
        samples: ``[T, G, E]`` bool: which decisions are samples; None: all.
    """

    values: Tensor
    final_values: Tensor
    advantages: Tensor
    samples: Tensor | None


def training_rows(parts: Sequence[ModuleFragment], critic: Critic, *, gamma: float, lambda_: float) -> Rows:
    """The samples of one module in some fragments.

    Truncated episodes bootstrap from their last observation, fragments from the one that follows them.
    Only samples become rows, so standardisation and means in the loss are over samples alone.

    Args:
        parts: The module's part of each fragment.
        critic: The values of the module that is trained.
        gamma: Discount.
        lambda_: λ of GAE.

    Returns:
        The rows, fragment by fragment; within one, by time, agent and copy.
    """
    rows = join([_rows(part, judge(part, critic, gamma=gamma, lambda_=lambda_)) for part in parts])
    return replace(rows, advantages=standardize(rows.advantages))


def join(pieces: Sequence[Rows]) -> Rows:
    """The rows of all pieces."""
    if len(pieces) == 1:
        return pieces[0]
    columns: dict[str, Any] = {}
    for field in fields(Rows):
        tensors = [getattr(piece, field.name) for piece in pieces]
        columns[field.name] = None if tensors[0] is None else torch.cat(tensors)
    return Rows(**columns)


def _rows(part: ModuleFragment, judged: Judged) -> Rows:
    def rows(column: Tensor) -> Tensor:
        column = column[: part.steps]
        return column.flatten(0, 2) if judged.samples is None else column[judged.samples]

    return Rows(
        obs=rows(part.obs),
        mask=None if part.mask is None else rows(part.mask),
        actions=rows(part.actions),
        log_probs=rows(part.log_probs),
        inputs=rows(part.inputs),
        advantages=rows(judged.advantages),
        value_targets=rows(judged.advantages + judged.values[:-1]),
    )


def judge(part: ModuleFragment, critic: Critic, *, gamma: float, lambda_: float) -> Judged:
    """Values of all observations of a fragment, and what follows from them."""
    values, final_values = _evaluate(part, critic)
    advantages, samples = advantages_of(part, values, final_values, gamma=gamma, lambda_=lambda_)
    return Judged(values, final_values, advantages, samples)


def advantages_of(
    part: ModuleFragment, values: Tensor, final_values: Tensor, *, gamma: float, lambda_: float
) -> tuple[Tensor, Tensor | None]:
    """Advantages ``[T, G, E]`` of a fragment's decisions, and which of them are samples (None: all)."""
    ends: dict[str, Any] = {
        "terminated": part.terminated,
        "truncated": part.truncated,
        "final_values": final_values,
        "gamma": gamma,
        "lambda_": lambda_,
    }
    if part.acts is None:
        return gae(part.rewards, values, **ends), None
    return gae_of_turns(part.rewards, values, acts=part.acts, **ends)


@torch.no_grad()
def _evaluate(part: ModuleFragment, critic: Critic) -> tuple[Tensor, Tensor]:
    shape = part.obs.shape[:3]
    if part.acts is None:
        mask = None if part.mask is None else part.mask.flatten(0, 2)
        values = critic(part.obs.flatten(0, 2), mask).view(shape)
    else:
        values = part.rewards.new_zeros(shape)
        mask = None if part.mask is None else part.mask[part.acts]
        values[part.acts] = critic(part.obs[part.acts], mask)
    final_values = part.rewards.new_zeros(part.rewards.shape)
    if len(part.final_at):
        legal = None if part.mask is None else part.mask.new_ones((len(part.final_at), part.mask.shape[-1]))
        final_values[part.final_at.unbind(1)] = critic(part.final_obs, legal)
    return values, final_values
