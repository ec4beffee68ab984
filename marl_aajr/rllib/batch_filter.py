"""The running observation filter on arrays: what `ObservationNormalizer` does row by row, for a whole step.

Statistics stay on the device for the length of a sampling call. Between calls they live in the normaliser,
where RLlib merges, broadcasts and saves them.
"""

from __future__ import annotations

import torch
from torch import Tensor

from marl_aajr.rllib.observation_filter import CLIP, Moments, ObservationNormalizer

_SMALL = 1e-6
"""RLlib's ``SMALL_NUMBER``, added to the standard deviation."""


class TensorMoments:
    """`Moments` as float64 tensors on a device."""

    def __init__(self, moments: Moments, device: torch.device) -> None:
        self.count = moments.count
        self.mean = torch.as_tensor(moments.mean, device=device)
        self.squares = torch.as_tensor(moments.squares, device=device)

    @property
    def std(self) -> Tensor:
        """The sample standard deviation, float32."""
        return (self.squares / max(self.count - 1, 1)).float().sqrt()

    def add(self, count: int, mean: Tensor, squares: Tensor) -> None:
        """Take in what others have seen; see `Moments`."""
        total = self.count + count
        delta = mean - self.mean
        self.mean = torch.add(self.mean, delta, alpha=count / total)
        correction = delta.square_().mul_(self.count * count / total)
        self.squares = self.squares + squares + correction
        self.count = total

    def to_moments(self) -> Moments:
        """As the normaliser keeps them."""
        return Moments.from_state(
            {"count": self.count, "mean": self.mean.cpu().numpy(), "squares": self.squares.cpu().numpy()}
        )


class BatchFilter:
    """A normaliser's statistics, on a device for the length of a sampling call.

    Args:
        normalizer: Where the statistics come from and go to.
        device: Where the observations are.
    """

    def __init__(self, normalizer: ObservationNormalizer, device: torch.device) -> None:
        self._normalizer = normalizer
        self._device = device

    def load(self) -> None:
        """Take the statistics over from the normaliser."""
        state = self._normalizer.get_state()
        self._total, self._recent = (
            {
                module: TensorMoments(Moments.from_state(saved), self._device)
                for module, saved in state[part].items()
            }
            for part in ("total", "recent")
        )

    def store(self) -> None:
        """Hand the statistics back."""
        total, recent = (
            {module: moments.to_moments() for module, moments in part.items()}
            for part in (self._total, self._recent)
        )
        self._normalizer.replace_moments(total=total, recent=recent)

    def __call__(self, module: str, obs: Tensor, rows: Tensor | None) -> Tensor:
        """Observations ``[N, ...]`` normalised; those in ``rows [N]`` bool (None: all) are counted."""
        if not self._normalizer.frozen:
            self._count(module, obs if rows is None else obs[rows])
        moments = self._total[module]
        scaled = (obs - moments.mean) / (moments.std + _SMALL)
        return scaled.clamp_(-CLIP, CLIP).to(obs.dtype)

    def _count(self, module: str, seen: Tensor) -> None:
        if not len(seen):
            return
        seen = seen.double()
        mean = seen.mean(0)
        squares = (seen - mean).square_().sum(0)
        self._total[module].add(len(seen), mean, squares)
        self._recent[module].add(len(seen), mean, squares)
