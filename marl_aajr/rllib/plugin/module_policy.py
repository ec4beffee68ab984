"""An RLModule and one of its train batches, seen as a `Policy`.

Only the observations are a variable. Every other column of the batch (recurrent state, action mask, sequence
lengths, columns of the user's own) is held fixed and follows the rows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Self

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
from marl_aajr.core.policy import ModulePolicy, Policy, map_tree
from marl_aajr.core.token_network import TokenNetwork, TokenPolicy
from marl_aajr.rllib.internals.modules import actor_forward, trained_actor
from marl_aajr.rllib.networks import FlatActorCritic
from marl_aajr.rllib.plugin.observation_layout import FlatLayout, Leaves, ObservationLayout

RLLIB_CLASSES = {
    Categorical: TorchCategorical,
    MultiCategorical: TorchMultiCategorical,
    DiagGaussian: TorchDiagGaussian,
}
"""RLlib's distributions that ours compute the same numbers for."""


CLEAN_OBS = "marl_aajr_clean_obs"
"""A column beside OBS, where agents acted under attack: what they would have seen without it."""

PATH = "marl_aajr_path"
"""A column of points on the adversary's path, `[B, ..., 2, points, d]` (`rollout.attack.kept_path`)."""

ROLLOUTS_KEY = "marl_aajr_rollouts"
"""The key of the attack that rollouts are played under in `config.learner_config_dict`."""


@dataclass(frozen=True)
class FixedColumns:
    """A train batch whose perturbable observations are a variable.

    Fixed, row by row, are the `rest` of the observations and the `others` among its columns.
    """

    layout: ObservationLayout | FlatLayout
    rest: list[Tensor]
    others: dict[str, Any]

    def at(self, obs: Tensor) -> dict[str, Any]:
        """The batch with these observations, in fresh mappings: modules may pop from them."""
        return {**copied(self.others), Columns.OBS: self.layout.merge(obs, self.rest)}

    def each(self, change: Callable[[Tensor], Tensor]) -> FixedColumns:
        """With all that is fixed changed, column by column."""
        rest, others = tree.map_structure(change, (self.rest, self.others))
        return replace(self, rest=rest, others=others)


class RLModulePolicy(Policy):
    """The actor of an RLModule on one train batch; see `module_policy`."""

    network: nn.Module

    def __init__(
        self,
        forward: Callable[[dict[str, Any]], Tensor],
        columns: FixedColumns,
        distribution: ActionDistribution,
        network: nn.Module,
    ) -> None:
        super().__init__(distribution)
        self._forward, self._columns, self.network = forward, columns, network

    def __call__(self, obs: Tensor) -> Tensor:
        return self._forward(self._columns.at(obs))

    def parameters(self) -> list[Tensor]:
        return list(self.network.parameters())

    def changed(self, change: Callable[[Tensor], Tensor]) -> Self:
        changed = type(self)(self._forward, self._columns.each(change), self.distribution, self.network)
        changed.layers = self.layers
        return changed


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
        batch: its train batch; not modified.
        distribution: what the module's distribution inputs parametrise.
        layers: the module's actor, where that is a stack of layers (`actor_of`): the same policy by a
            shorter way, for flat observations.
        leaves: names of the parts of a nested observation that may be perturbed; None: all that can be.
        flattened: the layout of observations that a connector has flattened; None: they are as they were.

    Returns:
        The policy and the perturbable observations, `[B, d]` or `[B, T, d]` for recurrent modules.

    Raises:
        ValueError: `leaves` that the observations do not have, or nothing to perturb.
    """
    obs = batch[Columns.OBS]
    if reads_words(module):
        reader = TokenPolicy(module.token_network, distribution, obs)
        return reader, module.token_network.embed(obs)
    if hidden := _critic_only(module):
        # Perturbing what only the critic reads would be no attack on the actor.
        obs = {key: part for key, part in obs.items() if key not in hidden}
    if layers is not None and leaves is None and flattened is None:
        only = next(iter(obs.values())) if isinstance(obs, Mapping) and len(obs) == 1 else obs
        if isinstance(only, Tensor) and only.ndim == 2 and only.is_floating_point():
            return ModulePolicy(layers, distribution), only
    forward, reads_obs_only = actor_forward(module)
    columns = _columns(module, obs, {} if reads_obs_only else batch, leaves, flattened)
    policy = RLModulePolicy(forward, columns, distribution, module)
    if isinstance(module, FlatActorCritic) and leaves is None and flattened is None:
        policy.layers = module.masked_actor
    return policy, columns.layout.flatten(obs)


@dataclass(frozen=True)
class RLModuleCritic:
    """V(s + δ) of one train batch, `[B, ..., d] -> [B, ...]`; follows its rows through `select`."""

    module: TorchRLModule
    batch: Mapping[str, Any]
    leaves: Leaves | None
    flattened: FlatLayout | None = None
    index: Tensor | None = None

    def __call__(self, obs: Tensor) -> Tensor:
        seen = self.batch[Columns.OBS]
        columns = _columns(self.module, seen, self.batch, self.leaves, self.flattened)
        if self.index is not None:
            columns = columns.each(lambda column: column[self.index])
        with fixed(self.module):
            values: Tensor = self.module.compute_values(columns.at(obs))
        return values

    def select(self, index: Tensor) -> RLModuleCritic:
        return replace(self, index=index if self.index is None else self.index[index])


def judges_observations(module: TorchRLModule) -> bool:
    """Whether a module has a critic that reads the agent's own observation, and nothing else of the game."""
    return isinstance(module, ValueFunctionAPI) and not _critic_only(module) and not reads_words(module)


def reads_words(module: TorchRLModule) -> bool:
    """Whether a module reads words, which are perturbed in its embeddings."""
    return isinstance(getattr(module, "token_network", None), TokenNetwork)


def actor_of(module: TorchRLModule) -> nn.Sequential | None:
    """The layers between flat observations and distribution inputs in training; None: there is more to it."""
    return module.flat_actor if isinstance(module, FlatActorCritic) else trained_actor(module)


def _critic_only(module: TorchRLModule) -> tuple[str, ...]:
    """The keys of a Dict observation that, as the module declares, its critic alone reads."""
    return tuple(getattr(module, "critic_only", ()))


def _columns(
    module: TorchRLModule,
    obs: Any,
    batch: Mapping[str, Any],
    leaves: Leaves | None,
    flattened: FlatLayout | None,
) -> FixedColumns:
    lead_dims = 2 if module.is_stateful() else 1
    layout = flattened or ObservationLayout.of(obs, lead_dims=lead_dims, leaves=leaves)
    others = {name: batch[name] for name in batch if name != Columns.OBS}
    return FixedColumns(layout, layout.rest(obs), others)


def module_distribution(module: TorchRLModule) -> ActionDistribution:
    """The action distribution that a module trains with; `ValueError` for one that is not ours."""
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
    """The same tensors in new dicts, which a module may empty."""
    return map_tree(lambda leaf: leaf, batch)
