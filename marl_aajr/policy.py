"""What robustness code sees of a policy: observations in, distribution inputs out.

Everything above this file (attacks, regularizers, diagnostics) works on any :class:`Policy`; whether it is
an RLlib module, an exported victim or a plain ``nn.Module`` is an adapter's business.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

from torch import Tensor

from marl_aajr.distributions import ActionDistribution


class Policy(ABC):
    """A differentiable map ``obs [B, ..., d] -> distribution inputs [B, ..., m]``.

    Each row of the batch has its own copy of whatever else the network reads (recurrent state, action mask,
    parts of the observation that nobody perturbs); these are held fixed and follow the rows through
    :meth:`select` and :meth:`repeat`. A policy without such columns returns itself from both.
    """

    def __init__(self, distribution: ActionDistribution) -> None:
        self.distribution = distribution

    @abstractmethod
    def __call__(self, obs: Tensor) -> Tensor:
        """Distribution inputs ``[B, ..., m]`` at ``obs [B, ..., d]``."""

    def select(self, index: Tensor) -> Policy:
        """The same policy for the rows ``index [B']`` only."""
        return self

    def repeat(self, count: int) -> Policy:
        """The same policy for ``count`` copies of the batch, one after the other: ``[count · B, ...]``."""
        return self


class ModulePolicy(Policy):
    """A plain ``nn.Module`` (or any function of tensors) as a policy.

    Example:
        >>> policy = ModulePolicy(nn.Linear(4, 3), Categorical(3))
    """

    def __init__(self, module: Callable[[Tensor], Tensor], distribution: ActionDistribution) -> None:
        super().__init__(distribution)
        self.module = module

    def __call__(self, obs: Tensor) -> Tensor:
        return self.module(obs)
