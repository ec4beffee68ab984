"""What an attack on rollouts asks of the policies that act in them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from marl_aajr.core.policy import Policy, Tree


@dataclass(frozen=True)
class ActingRows:
    """Some rows of a module's observations, as an adversary sees them.

    Attributes:
        policy: The acting policy, from the numbers that can be perturbed, in the environment's units.
        obs: Those numbers, `[N, d]`.
        seen: The same, perturbed, to the rows that the module sees, `[N, ...]`.
        scale: The size of one unit of what the network reads in these units, `[d]`; None: they are the same.
    """

    policy: Policy
    obs: Tensor
    seen: Callable[[Tensor], Tensor]
    scale: Tensor | None = None


class AttackablePolicies(Protocol):
    """Policies whose decisions can be followed to what they see."""

    def acting(
        self, module: str, obs: Tensor, mask: Tensor | None, places: Tensor, memory: Tree | None = None
    ) -> ActingRows:
        """Rows of a module's observations, as the environment gives them.

        Args:
            module: The module.
            obs: `[N, ...]`.
            mask: Legal actions `[N, n]`; None: all.
            places: The place of each among the module's rows, `[N]`, by which it has its recurrent state.
            memory: Recurrent states of all rows; None: those of now.
        """

    def can_be_attacked(self, module: str) -> bool:
        """Whether ε has a size in units of what a module reads; not behind a filter that has seen nothing."""

    def width(self, module: str) -> int:
        """d, the number of a module's numbers that can be perturbed."""

    def memory(self, module: str) -> Tree | None:
        """Recurrent states of all rows of a module as they are; None: it has none."""
