"""What an adversary's action does to what its agent sees: two kinds of learned adversaries.

| kind | the action | the perturbation |
|---|---|---|
| `sa-rl` | a ∈ [−1, 1]^d (Zhang 2021, arXiv 2101.08452) | a, squashed into the set |
| `pa-ad` | an action, or a direction of the Gaussian mean (Sun 2022, arXiv 2106.05087) | an ascent there |

The first learns d numbers per step by trial and error; the second knows the policy, and learns only where to
move it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from gymnasium import spaces
from torch import Tensor

from marl_aajr.core.direction import follow
from marl_aajr.core.policy import Policy
from marl_aajr.core.threat import PerturbationSet
from marl_aajr.core.values import one_of

Kind = Literal["sa-rl", "pa-ad"]
KINDS: tuple[Kind, ...] = get_args(Kind)

Perturb = Callable[[str, Tensor, Tensor], Tensor]
"""An agent, its true observations `[E, d]` and its adversary's actions `[E, ...]` to δ `[E, d]`."""


def adversary_space(
    kind: Kind, observations: spaces.Space[Any], actions: spaces.Space[Any]
) -> spaces.Space[Any]:
    """The actions of an agent's adversary.

    Args:
        kind: See the module's documentation.
        observations: Of the agent.
        actions: Of the agent.
    """
    one_of("kind", kind, KINDS)
    if kind == "pa-ad" and not isinstance(actions, spaces.Box):
        return actions
    width = spaces.flatdim(observations if kind == "sa-rl" else actions)
    return spaces.Box(-1.0, 1.0, (width,), np.float32)


@dataclass(frozen=True)
class Squashed:
    """`sa-rl`.

    Attributes:
        perturbations: Δ, in units of the environment's observations.
    """

    perturbations: PerturbationSet

    def __call__(self, agent: str, obs: Tensor, action: Tensor) -> Tensor:
        """δ of the rows."""
        return self.perturbations.squash(action.to(obs.dtype), obs)


@dataclass(frozen=True)
class Directed:
    """`pa-ad`.

    Attributes:
        perturbations: Δ, in units of the environment's observations.
        policies: The agents' present policies, from the environment's observations `[E, d]`.
        steps: K of the ascent.
        step_size: η as a fraction of ε.
    """

    perturbations: PerturbationSet
    policies: Mapping[str, Policy]
    steps: int
    step_size: float

    def __call__(self, agent: str, obs: Tensor, action: Tensor) -> Tensor:
        """δ of the rows."""
        return follow(
            self.policies[agent],
            obs,
            action.unsqueeze(-1) if action.ndim == 1 else action,
            self.perturbations,
            steps=self.steps,
            step_size=self.step_size,
        )
