"""The last observations of RLlib's single-agent episodes as rows that an adversary perturbs, and back."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from marl_aajr.core.environment_values import own_key, split


class EpisodeRows:
    """The last observations of some episodes of one module.

    Args:
        episodes: N of them, each with the env runner's copy that it is played in.
        device: Where the rows go.

    Attributes:
        episodes: The episodes.
        copies: Their copies, `[N]`.
        obs: What their agents observe, `[N, d]`.
        acts: Whether anybody acts on it, `[N]` bool: not on the last observation of an episode.
        legal: Legal actions, `[N, n]` bool; None: all.
    """

    def __init__(self, episodes: Sequence[tuple[Any, int]], device: torch.device) -> None:
        self.episodes = [episode for episode, _ in episodes]
        self.copies = torch.tensor([copy for _, copy in episodes], device=device)
        self.acts = torch.tensor([not episode.is_done for episode in self.episodes], device=device)
        self._before = [episode.get_observations(-1) for episode in self.episodes]
        self._clean, masks = zip(*(split(obs) for obs in self._before), strict=True)
        self.legal = None if masks[0] is None else torch.as_tensor(np.stack(masks), device=device).bool()
        stacked = torch.as_tensor(np.stack(self._clean), dtype=torch.float32, device=device)
        self.obs = stacked.flatten(1)

    def replace(self, seen: Tensor, hit: Tensor | None, *, note: Callable[[Any, Any], None]) -> None:
        """Let the agents of the rows `hit [N]` (None: all) see `seen [N, d]`.

        `note` is called with each such episode and the whole observation that it had.
        """
        chosen = [True] * len(seen) if hit is None else hit.tolist()
        rows: NDArray[Any] = seen.cpu().numpy()
        columns = zip(self.episodes, self._before, self._clean, rows, chosen, strict=True)
        for episode, obs, before, after, attacked in columns:
            if not attacked:
                continue
            shown = after.reshape(before.shape).astype(before.dtype)
            whole = {**obs, own_key(obs): shown} if isinstance(obs, Mapping) else shown
            episode.set_observations(at_indices=-1, new_data=whole)
            note(episode, obs)
