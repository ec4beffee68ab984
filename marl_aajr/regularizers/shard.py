"""One learner's part of a minibatch that several learners share.

With n learners, each with its part of the rows, the mean of their losses and gradients is to be that of one
learner with all rows, to rounding. Two things are needed for it. Random numbers belong to rows: each learner
draws them for the whole minibatch and keeps those of its own. Means are taken over the rows that count
anywhere, which takes one number from every learner.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class Shard:
    """Where the rows of one learner are among those of all.

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


def share_of(total: int, count: int, *, generator: torch.Generator) -> Tensor:
    """`count` of `total` rows at random, on the CPU: nobody waits for an accelerator to say which."""
    if generator.device.type != "cpu":
        seed = zlib.crc32(generator.get_state().numpy().tobytes())
        torch.empty(1, device=generator.device).uniform_(generator=generator)  # the next seed is another
        generator = torch.Generator().manual_seed(seed)
    return torch.randperm(total, generator=generator)[:count]
