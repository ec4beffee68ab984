"""One minibatch as a regularizer sees it, its answer, and the part of it that one of several learners has.

With n learners, each with its part of the rows, the mean of their losses and gradients is to be that of one
learner with all rows, to rounding. Two things are needed for it. Random numbers belong to rows: each learner
draws them for the whole minibatch and keeps those of its own. Means are taken over the rows that count
anywhere, which takes one number from every learner.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping, MutableMapping
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from marl_aajr.core.checks import check_finite
from marl_aajr.core.objectives import Clean
from marl_aajr.core.policy import Critic, Policy, critic_of, selected

PolicyLoss = Callable[[Tensor, "Sample"], Tensor]
"""Distribution inputs `[B, ..., m]` and their sample to the policy loss of each row, `[B, ...]`."""


State = MutableMapping[str, Tensor]
"""The memory of a regularizer from one minibatch to the next."""


@dataclass(frozen=True)
class Shard:
    """The place of one learner's rows among those of all learners.

    Attributes:
        index: the place of each row, `[B]` integers on the CPU.
        rows: how many rows all learners have.
        learners: n.
        total: sums a scalar over the learners. All of them call it, and as often.
    """

    index: Tensor
    rows: int
    learners: int
    total: Callable[[Tensor], Tensor]

    @classmethod
    def part(cls, part: int, rows: int, *, learners: int, total: Callable[[Tensor], Tensor]) -> Shard:
        """Part `part` of a minibatch of which every learner has `rows` rows.

        Where they have different numbers of rows, which a learner cannot know of the others, means are
        still exact; the noise is then as random, but not that of one learner.
        """
        index = torch.arange(part * rows, (part + 1) * rows)
        return cls(index=index, rows=rows * learners, learners=learners, total=total)

    def alone(self) -> Shard:
        """The same rows, while the others do nothing: each is taken to have as many as there are here."""
        learners = self.learners
        return replace(self, total=lambda count: learners * count)

    def select(self, index: Tensor) -> Shard:
        """The rows `index` of these."""
        return replace(self, index=self.index[index.cpu()])

    def among(self, chosen: Tensor) -> tuple[Tensor, Shard]:
        """Which of these rows are among the places `chosen [C]`, and where; `chosen` are then all rows.

        Returns:
            Indices of these rows in the order of `chosen`, and their shard.
        """
        own = torch.full((self.rows,), -1).index_put_((self.index,), torch.arange(len(self.index)))[chosen]
        places = (own >= 0).nonzero().squeeze(-1)
        return own[places], replace(self, index=places, rows=len(chosen))

    def draw(self, noise: Callable[[Tensor], Tensor], obs: Tensor) -> Tensor:
        """`noise(obs)` as it is drawn for all rows, for `obs [B, ...]` only."""
        index = self.index.to(obs.device, non_blocking=True)
        everyone = obs.new_zeros(self.rows, *obs.shape[1:])
        return noise(everyone.index_copy_(0, index, obs))[index]

    def average(self, count: Tensor) -> Tensor:
        """A count on average over the learners; of 0 in all, that of 1."""
        return self.total(count.float()).clamp_min(1) / self.learners


@dataclass(frozen=True)
class Earlier:
    """The policy of a minibatch as it was some steps ago.

    Attributes:
        policy: the policy, with its fixed columns.
        obs: its clean observations, `[B, ..., d]`.
        values: its critic; as in `Sample`.
    """

    policy: Policy
    obs: Tensor
    values: Critic | None = None

    def select(self, index: Tensor) -> Earlier:
        """The rows `index` only."""
        values = critic_of(self.values, index)
        return Earlier(self.policy.select(index), self.obs.index_select(0, index), values)


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
        path: δ_t and u_t at points of an adversary's path, `[B, ..., 2, points, d]`; None: none are kept.
        earlier: the policy when the present epoch began; None: nobody asks, or nobody knows.
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
    path: Tensor | None = None
    earlier: Earlier | None = None

    @property
    def clean(self) -> Clean:
        """The batch at its clean observations, detached."""
        return Clean(self.outputs.detach(), self.actions, self.advantages, self.values, self.mask)

    def draw(self, noise: Callable[[Tensor], Tensor]) -> Tensor:
        """`noise(obs)` for these rows: a row's is the same whether one learner draws it or several."""
        return noise(self.obs) if self.shard is None else self.shard.draw(noise, self.obs)

    def subset(self, fraction: float, *, generator: torch.Generator) -> Sample:
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
        nobody = torch.zeros_like(sample.obs[..., 0], dtype=torch.bool)
        return replace(sample, mask=nobody, shard=replace(shard, index=first))

    def select(self, index: Tensor) -> Sample:
        """The rows `index` only."""
        here = index.to(self.obs.device, non_blocking=True)
        policy, values = self.policy.select(here), critic_of(self.values, here)
        shard = None if self.shard is None else self.shard.select(index)
        earlier = None if self.earlier is None else self.earlier.select(here)
        columns = selected(self, here)
        return replace(self, policy=policy, values=values, shard=shard, earlier=earlier, **columns)

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
        """The number of rows that count here, divided by its average over the learners.

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
class LossTerm:
    """A regularizer's answer for one minibatch.

    Attributes:
        loss: the term to add to the learner's loss, a scalar with its graph.
        metrics: detached scalars; averaged over the minibatches of an update, names that end in `_max` or
            `_min` maximised or minimised, and `nonfinite` summed. Only what `after_update` needs where
            `Context.measure` is false.
    """

    loss: Tensor
    metrics: Mapping[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class Context:
    """The circumstances of an evaluation: everything that a regularizer is given beside the minibatch.

    Attributes:
        timestep: environment steps so far, for schedules.
        generator: the only source of randomness.
        state: as `initial_state` began it.
        minibatch: how many minibatches there were before this one, of which only those that are `due` are
            evaluated; None: all are.
        measure: whether metrics are read.
        check: raise at the first non-finite number instead of counting it. The learner uses it to
            name the origin after a count above zero. Without it nothing waits for an accelerator.
    """

    timestep: float
    generator: torch.Generator
    state: State
    minibatch: int | None = None
    measure: bool = True
    check: bool = False

    def check_finite(self, name: str, tensor: Tensor) -> None:
        """Raise `NonFiniteError` where a tensor holds a NaN or an infinity, if that is to be checked."""
        if self.check:
            check_finite(name, tensor)


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


def share_of(total: int, count: int, *, generator: torch.Generator) -> Tensor:
    """`count` of `total` rows at random, on the CPU: nobody waits for an accelerator to say which."""
    if generator.device.type != "cpu":
        seed = zlib.crc32(generator.get_state().numpy().tobytes())
        torch.empty(1, device=generator.device).uniform_(generator=generator)  # the next seed is another
        generator = torch.Generator().manual_seed(seed)
    return torch.randperm(total, generator=generator)[:count]
