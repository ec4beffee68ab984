"""An RLModule and one of its train batches, seen as a `Policy`.

Only the observations are a variable. Every other column of the batch (recurrent state, action mask, sequence
lengths, columns of the user's own) is held fixed and follows the rows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
import tree
from ray.rllib.core.columns import Columns
from ray.rllib.core.distribution.torch.torch_distribution import (
    TorchCategorical,
    TorchDiagGaussian,
    TorchMultiCategorical,
    TorchSquashedGaussian,
)
from ray.rllib.core.rl_module.apis import ValueFunctionAPI
from ray.rllib.core.rl_module.torch import TorchRLModule
from torch import Tensor, nn

from marl_aajr.core.distributions import (
    ActionDistribution,
    Categorical,
    DiagGaussian,
    MultiCategorical,
    from_space,
)
from marl_aajr.core.fixed_network import fixed
from marl_aajr.core.policy import ModulePolicy, Policy
from marl_aajr.rllib.internals.modules import actor_forward, trained_actor
from marl_aajr.rllib.networks import FlatActorCritic
from marl_aajr.rllib.plugin.observation_layout import FlatLayout, Leaves, ObservationLayout

RLLIB_CLASSES = {
    Categorical: TorchCategorical,
    MultiCategorical: TorchMultiCategorical,
    DiagGaussian: TorchDiagGaussian,
}
"""RLlib's distributions that ours compute the same numbers for."""

_Layout = ObservationLayout | FlatLayout

_FixedColumns = tuple[list[Tensor], dict[str, Any]]
"""Leaves of the observations that nobody perturbs, and other columns: what is fixed, row by row."""


class RLModulePolicy(Policy):
    """The actor of an RLModule on one train batch; see `module_policy`."""

    network: nn.Module

    def __init__(
        self,
        forward: Callable[[dict[str, Any]], Tensor],
        layout: _Layout,
        fixed: _FixedColumns,
        distribution: ActionDistribution,
        network: nn.Module,
    ) -> None:
        super().__init__(distribution)
        self._forward = forward
        self._layout = layout
        self._fixed = fixed
        self.network = network

    def __call__(self, obs: Tensor) -> Tensor:
        return self._forward(_columns_at(obs, self._layout, self._fixed))

    def select(self, index: Tensor) -> RLModulePolicy:
        return self._with(lambda column: column[index])

    def repeat(self, count: int) -> RLModulePolicy:
        return self if count == 1 else self._with(lambda column: torch.cat([column] * count))

    def parameters(self) -> list[Tensor]:
        return list(self.network.parameters())

    def _with(self, change: Callable[[Tensor], Tensor]) -> RLModulePolicy:
        if not any(self._fixed):
            return self
        fixed = tree.map_structure(change, self._fixed)
        return RLModulePolicy(self._forward, self._layout, fixed, self.distribution, self.network)


def module_policy(
    module: TorchRLModule,
    batch: Mapping[str, Any],
    distribution: ActionDistribution,
    *,
    layers: nn.Sequential | None = None,
    leaves: Leaves | None = None,
    flattened: FlatLayout | None = None,
) -> tuple[Policy, Tensor]:
    """The policy of one module on one train batch, and its clean observations.

    Args:
        module: the unwrapped module (never a DDP wrapper: a second forward would break its reducer).
        batch: the train batch of this module; not modified.
        distribution: what the module's distribution inputs parametrise.
        layers: the module's actor, where that is a stack of layers (`actor_of`): the same policy by a
            shorter way, for flat observations.
        leaves: names of the parts of a nested observation that may be perturbed
            (`marl_aajr.rllib.plugin.observation_layout`); None: all of floating-point numbers but
            action masks.
        flattened: the layout of observations that a connector has flattened; None: they are as they were.

    Returns:
        The policy and the perturbable observations, `[B, d]` or `[B, T, d]` for recurrent modules.

    Raises:
        ValueError: `leaves` that the observations do not have, or nothing to perturb.
    """
    obs = _for_the_actor(module, batch[Columns.OBS])
    if layers is not None and leaves is None and flattened is None:
        only = next(iter(obs.values())) if isinstance(obs, Mapping) and len(obs) == 1 else obs
        if isinstance(only, Tensor) and only.ndim == 2 and only.is_floating_point():
            return ModulePolicy(layers, distribution), only
    layout = flattened or ObservationLayout.of(obs, lead_dims=_lead_dims(module), leaves=leaves)
    forward, reads_obs_only = actor_forward(module)
    others = {} if reads_obs_only else {name: batch[name] for name in batch if name != Columns.OBS}
    fixed = (layout.rest(obs), others)
    policy = RLModulePolicy(forward, layout, fixed, distribution, module)
    return policy, layout.flatten(obs)


@dataclass(frozen=True)
class RLModuleCritic:
    """V(s + δ) of one train batch, `[B, ..., d] -> [B, ...]`; follows its rows through `select`."""

    module: TorchRLModule
    batch: Mapping[str, Any]
    leaves: Leaves | None
    flattened: FlatLayout | None = None
    index: Tensor | None = None

    @cached_property
    def _rows(self) -> tuple[_Layout, _FixedColumns]:
        """The layout of the observations, and what is fixed; made when asked for: few objectives do."""
        obs = self.batch[Columns.OBS]
        layout = self.flattened or ObservationLayout.of(
            obs, lead_dims=_lead_dims(self.module), leaves=self.leaves
        )
        others = {name: column for name, column in self.batch.items() if name != Columns.OBS}
        fixed = (layout.rest(obs), others)
        if self.index is not None:
            fixed = tree.map_structure(lambda column: column[self.index], fixed)
        return layout, fixed

    def __call__(self, obs: Tensor) -> Tensor:
        with fixed(self.module):
            values: Tensor = self.module.compute_values(_columns_at(obs, *self._rows))
        return values

    def select(self, index: Tensor) -> RLModuleCritic:
        return replace(self, index=index if self.index is None else self.index[index])


def judges_observations(module: TorchRLModule) -> bool:
    """Whether a module has a critic that reads the agent's own observation, and nothing else of the game."""
    return isinstance(module, ValueFunctionAPI) and not _critic_only(module)


def actor_of(module: TorchRLModule) -> nn.Sequential | None:
    """The layers between flat observations and distribution inputs in training; None: there is more to it."""
    return module.flat_actor if isinstance(module, FlatActorCritic) else trained_actor(module)


def _critic_only(module: TorchRLModule) -> tuple[str, ...]:
    """The keys of a Dict observation that, as the module declares, its critic alone reads."""
    return tuple(getattr(module, "critic_only", ()))


def _for_the_actor(module: TorchRLModule, obs: Any) -> Any:
    """Observations without what only the critic reads: perturbing that would be no attack on the actor."""
    hidden = _critic_only(module)
    return {key: part for key, part in obs.items() if key not in hidden} if hidden else obs


def _lead_dims(module: TorchRLModule) -> int:
    return 2 if module.is_stateful() else 1


def _columns_at(flat: Tensor, layout: _Layout, fixed: _FixedColumns) -> dict[str, Any]:
    """A batch with these perturbable observations, in fresh mappings: modules may pop from them."""
    rest, others = fixed
    return {**copied(others), Columns.OBS: layout.merge(flat, rest)}


def module_distribution(module: TorchRLModule) -> ActionDistribution:
    """The action distribution that a module trains with.

    Raises:
        ValueError: a distribution other than RLlib's categorical, multi-categorical, diagonal Gaussian.
    """
    distribution = from_space(module.action_space)
    rllib_class = module.get_train_action_dist_cls()
    # Squashed Gaussians are compared before squashing.
    if not issubclass(rllib_class, (RLLIB_CLASSES[type(distribution)], TorchSquashedGaussian)):
        raise ValueError(
            "expected a module with RLlib's TorchCategorical, TorchMultiCategorical, TorchDiagGaussian or "
            f"TorchSquashedGaussian, got {rllib_class}; register a regularizer for the other modules only"
        )
    return distribution


def copied(batch: Any) -> Any:
    """The same tensors in new dicts and lists, which a module may empty."""
    return tree.map_structure(lambda leaf: leaf, batch)
