"""What a regularizer is: a frozen value that turns one minibatch into a loss term and metrics.

Settings live in the value (picklable, comparable, with a ``repr``); what changes during training lives with
the learner. A regularizer reads the policy through :class:`Sample` alone, so the same object works under
RLlib, in a plain PyTorch loop and in a test.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from marl_aajr.distributions import ActionDistribution
from marl_aajr.objectives import Clean
from marl_aajr.policy import Policy

PolicyLoss = Callable[[Tensor, "Sample"], Tensor]
"""Distribution inputs ``[B, ..., m]`` and their sample to the policy loss of each row, ``[B, ...]``."""


@dataclass(frozen=True)
class Sample:
    """One minibatch as a regularizer sees it.

    Attributes:
        policy: the policy under training, with its fixed columns.
        obs: clean observations, ``[B, ..., d]``.
        outputs: distribution inputs at ``obs``, with their graph, ``[B, ..., m]``.
        mask: rows that count, ``[B, ...]`` bool; None: all.
        actions: actions taken; None outside reinforcement learning.
        log_probs: log π_old(a|s) when they were taken, ``[B, ...]``.
        advantages: Â(s, a), ``[B, ...]``.
        policy_loss: the learner's policy loss, for adversarial losses; None where it has none to offer.
    """

    policy: Policy
    obs: Tensor
    outputs: Tensor
    mask: Tensor | None = None
    actions: Tensor | None = None
    log_probs: Tensor | None = None
    advantages: Tensor | None = None
    policy_loss: PolicyLoss | None = None

    @property
    def clean(self) -> Clean:
        """The batch at its clean observations, detached."""
        return Clean(self.outputs.detach(), self.actions, self.advantages)

    def select(self, index: Tensor) -> Sample:
        """The rows ``index`` only."""

        def rows(column: Tensor | None) -> Tensor | None:
            return None if column is None else column[index]

        return replace(
            self,
            policy=self.policy.select(index),
            obs=self.obs[index],
            outputs=self.outputs[index],
            mask=rows(self.mask),
            actions=rows(self.actions),
            log_probs=rows(self.log_probs),
            advantages=rows(self.advantages),
        )

    def mean(self, values: Tensor) -> Tensor:
        """Mean of ``values [..., B, ...]`` over all leading copies and the rows that count."""
        if self.mask is None:
            return values.mean()
        # where, not a product: a padded row may hold anything, 0 · inf included.
        kept = torch.where(self.mask, values, 0.0)
        copies = values.numel() // self.mask.numel()
        return kept.sum() / (copies * self.mask.sum().clamp_min(1))


@dataclass(frozen=True)
class Evaluation:
    """A regularizer's answer for one minibatch.

    Attributes:
        loss: the term to add to the learner's loss, a scalar with its graph.
        metrics: detached scalars; averaged over the minibatches of an update, names that end in ``_max``
            maximised and ``nonfinite`` summed.
    """

    loss: Tensor
    metrics: Mapping[str, Tensor]


class Regularizer(ABC):
    """A penalty on a policy, by the name under which YAML files and the command line know it."""

    name: ClassVar[str]
    summary: ClassVar[str]

    @abstractmethod
    def active(self, timestep: float) -> bool:
        """Whether it does anything at this environment step; if not, the learner skips it entirely."""

    @abstractmethod
    def check(self, distribution: ActionDistribution) -> None:
        """Raise ``ValueError`` where the settings do not fit a policy of this kind."""

    @abstractmethod
    def evaluate(
        self, sample: Sample, *, timestep: float, generator: torch.Generator, check: bool = False
    ) -> Evaluation:
        """The loss term and metrics of one minibatch.

        Args:
            sample: the minibatch.
            timestep: environment steps so far, for schedules.
            generator: the only source of randomness.
            check: raise at the first non-finite number instead of counting it. The learner uses it to
                name the origin after a count above zero.
        """


def ppo_policy_loss(clip: float) -> PolicyLoss:
    """The clipped surrogate of PPO per row, −min(Â r, Â clip(r, 1 − clip, 1 + clip)), r = π(a|·)/π_old(a|s).

    Source: Schulman 2017 (arXiv 1707.06347), equation 7.
    """

    def loss(outputs: Tensor, sample: Sample) -> Tensor:
        assert sample.actions is not None
        assert sample.log_probs is not None
        assert sample.advantages is not None
        log_probs = sample.policy.distribution.log_prob(outputs, sample.actions)
        ratio = (log_probs - sample.log_probs).exp()
        clipped = ratio.clamp(1 - clip, 1 + clip)
        return -torch.min(sample.advantages * ratio, sample.advantages * clipped)

    return loss
