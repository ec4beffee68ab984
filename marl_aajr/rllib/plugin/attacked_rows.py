"""Connectors that an attack on episodes cannot follow, and rows that are not what modules read.

An attack changes observations in the episodes, and RLlib's own piece behind it makes a batch of them. Where a
piece in front has done so already, RLlib's does nothing: agents would act on what is true, and be trained on
what an adversary shows them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ray.rllib.connectors.common.add_observations_from_episodes_to_batch import (
    AddObservationsFromEpisodesToBatch,
)
from ray.rllib.connectors.common.flatten_observations import FlattenObservations
from ray.rllib.connectors.common.frame_stacking import FrameStacking
from ray.rllib.connectors.env_to_module import MeanStdFilter
from ray.rllib.core.columns import Columns

from marl_aajr.core.flat_observations import parts
from marl_aajr.rllib.sampling.observation_filter import ObservationNormalizer

_INTO_EPISODES = (
    "write what connectors make of observations to the episodes, as RLlib's "
    "SingleAgentObservationPreprocessor does, and leave the batch to RLlib"
)


def check_connectors(before: Sequence[Any], structures: Sequence[Any]) -> None:
    """Raise `ValueError` for known pieces in front of an attack that it cannot follow.

    Args:
        before: The pieces.
        structures: The nested spaces of observations that may have been flattened.
    """
    names = [type(piece).__name__ for piece in before]
    if any(isinstance(piece, MeanStdFilter) for piece in before):
        raise ValueError(
            "expected no observation filter of RLlib's with rollouts under attack, got MeanStdFilter, behind "
            "which ε is not in units of the environment; take ObservationNormalizer of "
            "marl_aajr.rllib.sampling.observation_filter"
        )
    batching = (AddObservationsFromEpisodesToBatch, FrameStacking)
    if put := [name for name, piece in zip(names, before, strict=True) if isinstance(piece, batching)]:
        raise ValueError(
            f"expected observations in the episodes alone with rollouts under attack, got {put[0]}, which "
            f"puts them into the batch, where no attack reaches them; {_INTO_EPISODES}"
        )
    order = [piece for piece in before if isinstance(piece, ObservationNormalizer | FlattenObservations)]
    nested = any(len(list(parts(structure))) > 1 for structure in structures)
    if nested and len(order) > 1 and isinstance(order[0], ObservationNormalizer):
        raise ValueError(
            "expected FlattenObservations in front of ObservationNormalizer with rollouts under attack, got "
            "it behind: the statistics are not of the numbers that modules see; turn them round, or with "
            "several env runners flatten observations in the environment"
        )


def check_batch(batch: Mapping[str, Any]) -> None:
    """Raise `ValueError` where some piece in front of an attack has made a batch of observations."""
    if Columns.OBS in batch:
        raise ValueError(
            "expected observations in the episodes alone with rollouts under attack, got them in the batch "
            f"already, where no attack reaches them; {_INTO_EPISODES}"
        )


def check_width(module: str, expected: int, found: int) -> None:
    """Raise `ValueError` where the rows in the episodes are not what a module reads."""
    if found != expected:
        raise ValueError(
            f"rollouts under attack, module {module!r}: expected observations of {expected} numbers, as the "
            f"module reads them, got {found}; {_INTO_EPISODES}"
        )
