"""A module with the weights that an epoch of its learner began with."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from typing import Any

from ray.rllib.core.columns import Columns
from ray.rllib.core.rl_module.torch import TorchRLModule

from marl_aajr.core.policy import leaves


class EpochWeights:
    """A second module, whose weights are those of the first one when the present epoch began.

    An epoch is a pass through the rows of an update; one that ends within a minibatch ends with it. Where a
    learner does not say how many rows there are (Ray Data), an update is one epoch.

    Args:
        trained: The module that is trained; no wrapper.

    Attributes:
        module: The second one.
    """

    def __init__(self, trained: TorchRLModule) -> None:
        self._trained = trained
        self.module = deepcopy(trained).requires_grad_(False)
        self.begin_update(None)

    def begin_update(self, rows: int | None) -> None:
        """An update begins, on so many rows; None: nobody knows."""
        self._rows, self._seen, self._epoch = rows, 0, -1

    def before(self, minibatch: Mapping[str, Any]) -> None:
        """A minibatch follows, the first of an epoch or not."""
        epoch = self._seen // self._rows if self._rows else 0
        if epoch > self._epoch:
            self._epoch = epoch
            self.module.load_state_dict(self._trained.state_dict())
        self._seen += rows_in(minibatch)


def rows_in(columns: Mapping[str, Any]) -> int:
    """The number of rows of a batch of one module; of sequences, that of these."""
    return len(leaves(columns[Columns.OBS])[0])
