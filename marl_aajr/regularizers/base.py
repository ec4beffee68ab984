"""What a regularizer is: a frozen value that turns one minibatch into a loss term and metrics.

Settings live in the value (picklable, comparable, with a `repr`); what changes during training (a dual
variable, the vectors of a power iteration) is a state that the learner holds, saves and hands in. A
regularizer reads the policy through `Sample` alone, so the same object works under RLlib, in a plain
PyTorch loop and in a test.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, ClassVar, Self

import torch
from torch import Tensor, nn

from marl_aajr.core.distributions import ActionDistribution
from marl_aajr.core.jacobian import BACKENDS, Backend
from marl_aajr.core.objectives import EVERYTHING, Clean, Critic, Need, critic_of
from marl_aajr.core.policy import Policy
from marl_aajr.regularizers.shard import Shard, share_of

if TYPE_CHECKING:
    from marl_aajr.regularizers.combination import Sum

PolicyLoss = Callable[[Tensor, "Sample"], Tensor]
"""Distribution inputs `[B, ..., m]` and their sample to the policy loss of each row, `[B, ...]`."""

State = MutableMapping[str, Tensor]
"""What a regularizer remembers from one minibatch to the next."""


@dataclass(frozen=True)
class Sample:
    """One minibatch as a regularizer sees it.

    Attributes:
        policy: the policy under training, with its fixed columns.
        obs: clean observations, `[B, ..., d]`.
        outputs: distribution inputs at `obs`, with their graph, `[B, ..., m]`.
        mask: rows that count, `[B, ...]` bool; None: all.
        actions: actions taken; None outside reinforcement learning.
        log_probs: log π_old(a|s) when they were taken, `[B, ...]`.
        advantages: Â(s, a), `[B, ...]`.
        policy_loss: the learner's policy loss, for adversarial losses; None where it has none to offer.
        values: the critic at perturbed observations, for the objective `value`; None where it reads
            anything but the agent's own observation. With a `select(index)` if it is bound to its rows.
        shard: which part of a minibatch these rows are, where several learners share it; None: all of it.
    """

    policy: Policy
    obs: Tensor
    outputs: Tensor
    mask: Tensor | None = None
    actions: Tensor | None = None
    log_probs: Tensor | None = None
    advantages: Tensor | None = None
    policy_loss: PolicyLoss | None = None
    values: Critic | None = None
    shard: Shard | None = None

    @property
    def clean(self) -> Clean:
        """The batch at its clean observations, detached."""
        return Clean(self.outputs.detach(), self.actions, self.advantages, self.values, self.mask)

    def draw(self, noise: Callable[[Tensor], Tensor]) -> Tensor:
        """`noise(obs)` for these rows: a row's is the same whether one learner draws it or several."""
        return noise(self.obs) if self.shard is None else self.shard.draw(noise, self.obs)

    def drawn(self, fraction: float, *, generator: torch.Generator) -> Sample:
        """A random share of the minibatch's rows; of whole sequences where rows are sequences.

        Of a minibatch that several learners share each keeps its own of the rows that one would have drawn.
        """
        total = len(self.obs) if self.shard is None else self.shard.rows
        count = max(1, round(fraction * total))
        # Learners with other numbers of rows must come to the same: they count together.
        if fraction == 1 or (count == total and self.shard is None):
            return self
        chosen = share_of(total, count, generator=generator)
        if self.shard is None:
            return self.select(chosen)
        mine, shard = self.shard.among(chosen)
        if len(mine):
            return replace(self.select(mine), shard=shard)
        # None of its rows: one stays, to take part in what all learners do, and does not count.
        first = torch.zeros(1, dtype=torch.long)
        sample = self.select(first)
        nobody = torch.zeros(sample.obs.shape[:-1], dtype=torch.bool, device=sample.obs.device)
        return replace(sample, mask=nobody, shard=replace(shard, index=first))

    def select(self, index: Tensor) -> Sample:
        """The rows `index` only."""
        here = index.to(self.obs.device, non_blocking=True)

        def rows(column: Tensor | None) -> Tensor | None:
            return None if column is None else column.index_select(0, here)

        return replace(
            self,
            policy=self.policy.select(here),
            obs=self.obs.index_select(0, here),
            outputs=self.outputs.index_select(0, here),
            mask=rows(self.mask),
            actions=rows(self.actions),
            log_probs=rows(self.log_probs),
            advantages=rows(self.advantages),
            values=critic_of(self.values, here),
            shard=None if self.shard is None else self.shard.select(index),
        )

    def mean(self, values: Tensor) -> Tensor:
        """Mean of `values [..., B, ...]` over all leading copies and the rows that count.

        Of a minibatch that several learners share it is the sum over these rows by the average number of
        rows that count: the mean of all learners' is the mean over the whole minibatch, and so is that of
        their gradients, however the rows that count are spread.
        """
        if self.mask is None and self.shard is None:
            return values.mean()
        # where, not a product: a padded row may hold anything, 0 · inf included.
        kept = values if self.mask is None else torch.where(self.mask, values, 0.0)
        copies = values.numel() // self.obs.shape[:-1].numel()
        return kept.sum() / (copies * self._average_count)

    @property
    def weight(self) -> Tensor:
        """How many rows count here, by the average over the learners.

        The average of the learners' means over their own rows, times this, is the mean over all rows.
        """
        return self._count / self._average_count

    @cached_property
    def _count(self) -> Tensor:
        if self.mask is None:
            return torch.full((), self.obs.shape[:-1].numel(), device=self.obs.device)
        return self.mask.sum()

    @cached_property
    def _average_count(self) -> Tensor:
        """At least that of one row in all."""
        return self._count.clamp_min(1) if self.shard is None else self.shard.average(self._count)


@dataclass(frozen=True)
class Evaluation:
    """A regularizer's answer for one minibatch.

    Attributes:
        loss: the term to add to the learner's loss, a scalar with its graph.
        metrics: detached scalars; averaged over the minibatches of an update, names that end in `_max` or
            `_min` maximised or minimised, and `nonfinite` summed.
    """

    loss: Tensor
    metrics: Mapping[str, Tensor]


class Regularizer(ABC):
    """A penalty on a policy, by the name under which YAML files and the command line know it."""

    name: ClassVar[str]
    summary: ClassVar[str]

    @property
    def perturbed_leaves(self) -> tuple[str, ...] | None:
        """The parts of a nested observation that `Sample` has to show, by name; None: all."""
        return None

    @abstractmethod
    def active(self, timestep: float) -> bool:
        """Whether it does anything at this environment step; if not, the learner skips it entirely."""

    @abstractmethod
    def check(self, distribution: ActionDistribution, *, offers: Collection[Need] = EVERYTHING) -> None:
        """Raise `ValueError` where the settings do not fit a policy of this kind, or the learner.

        Args:
            distribution: what the policy's outputs parametrise.
            offers: what the learner can give beside observations and outputs.
        """

    def fitted(self, policy: Policy, obs: Tensor, *, backends: Sequence[Backend] = BACKENDS) -> Self:
        """The same regularizer with what it left open (`backend="auto"`) settled for this policy.

        Args:
            policy: the policy to be trained.
            obs: a few observations, `[B, ..., d]`.
            backends: the Jacobian backends that may be used here, in order of preference.

        Raises:
            ValueError: the policy cannot be differentiated as the settings demand.
        """
        return self

    def ramped(self, start: float, end: float) -> Self:
        """The same regularizer with its weights rising from 0 at environment step `start` to `end`."""
        return self

    def initial_state(self) -> dict[str, Tensor]:
        """The state before the first update; saved in checkpoints, one per module."""
        return {}

    @abstractmethod
    def evaluate(
        self,
        sample: Sample,
        *,
        timestep: float,
        generator: torch.Generator,
        state: State | None = None,
        check: bool = False,
    ) -> Evaluation:
        """The loss term and metrics of one minibatch.

        Args:
            sample: the minibatch.
            timestep: environment steps so far, for schedules.
            generator: the only source of randomness.
            state: as `initial_state` began it; None: as at the beginning.
            check: raise at the first non-finite number instead of counting it. The learner uses it to
                name the origin after a count above zero. Without it nothing waits for an accelerator.
        """

    def after_update(self, state: State, metrics: Mapping[str, float]) -> None:
        """Move the state once after an update, given the metrics averaged over minibatches and learners."""
        return

    @property
    def constrains(self) -> bool:
        """Whether `constrain` does anything."""
        return type(self).constrain is not Regularizer.constrain

    def constrain(self, module: nn.Module, state: State, *, exact: bool = False) -> Mapping[str, Tensor]:
        """Bring the weights back into the permitted set, in place; metrics as in `Evaluation`.

        Args:
            module: the actor's network, and nothing else.
            state: as for `evaluate`.
            exact: spare no effort. The learner asks for it after the last step of an update, and for a
                cheap approximation after each of the others.
        """
        return {}

    def __add__(self, other: Regularizer) -> Sum:
        from marl_aajr.regularizers.combination import Sum

        return Sum(members=(self, other))


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
