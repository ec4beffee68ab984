"""A size of perturbations that is a number of words."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from marl_aajr.core.threat import PerturbationSet, SetNorm


@dataclass(frozen=True, kw_only=True)
class WordBudget(PerturbationSet):
    """At most m = `epsilon` words of an observation are others.

        Δ(s) = { δ : #{i : δ_i ≠ 0} ≤ m,  δ_i = 0 where mask_i = 0 }

    δ_i is what changes in the embedding of word i. Which words may stand in its place is the attack's
    business: only words have embeddings.

    Attributes:
        epsilon: m ≥ 1.
        norm: `"words"`.
        mask: per word, whether it may be replaced; None: all.
    """

    norm: SetNorm = "words"  # type: ignore[assignment]

    def __post_init__(self) -> None:
        if self.norm != "words":
            raise ValueError(f"expected the norm words for a number of words, got {self.norm}")
        if not self.epsilon >= 1 or self.epsilon != int(self.epsilon):
            raise ValueError(f"expected a whole number of words ≥ 1 for epsilon, got {self.epsilon}")
        if limits := [n for n in ("scale", "low", "high") if getattr(self, n) is not None]:
            raise ValueError(f"expected no {', '.join(limits)} of a number of words; drop them")
        self._check_limits()

    def size(self, delta: Tensor) -> Tensor:
        """The number of words that change, `[...]`."""
        return (self._lengths(delta) > 0).sum(-1)

    def contains(self, delta: Tensor, obs: Tensor) -> Tensor:
        free = self.free(delta)
        inside = (self.size(delta) <= self.epsilon) & delta.isfinite().all(-1)
        return inside if free is None else inside & (delta * (1 - free) == 0).all(-1)

    def project(self, delta: Tensor, obs: Tensor) -> Tensor:
        """The m words that change the most, `[..., d]`."""
        if (free := self.free(delta)) is not None:
            delta = delta * free
        lengths = self._lengths(delta)
        kept = torch.zeros_like(lengths)
        kept.scatter_(-1, lengths.topk(min(int(self.epsilon), lengths.shape[-1]), dim=-1).indices, 1.0)
        return delta * kept.repeat_interleave(delta.shape[-1] // lengths.shape[-1], -1)

    def _lengths(self, delta: Tensor) -> Tensor:
        """By how much each word moves, `[..., L]`."""
        blocks = self._blocks(delta)
        return delta.abs() if blocks.ndim == delta.ndim else torch.linalg.vector_norm(blocks, dim=-1)
