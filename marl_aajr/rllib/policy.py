"""An RLModule and one of its train batches, seen as a :class:`~marl_aajr.policy.Policy`.

Only the observations are a variable. Every other column of the batch (recurrent state, action mask, sequence
lengths, columns of the user's own) is held fixed and follows the rows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
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

from marl_aajr.distributions import (
    ActionDistribution,
    Categorical,
    DiagGaussian,
    MultiCategorical,
    from_space,
)
from marl_aajr.policy import ModulePolicy, Policy
from marl_aajr.rllib.internals import actor_forward

_RLLIB_CLASSES = {
    Categorical: TorchCategorical,
    MultiCategorical: TorchMultiCategorical,
    DiagGaussian: (TorchDiagGaussian, TorchSquashedGaussian),  # squashed ones are compared before squashing
}

MASK_LEAF = "action_mask"
"""PettingZoo's and RLlib's name of the part of an observation that nobody may perturb."""


class ObservationView:
    """The perturbable part of a (possibly nested) observation batch as one flat tensor ``[B, ..., d]``.

    Perturbable are the floating-point leaves other than action masks. The rest is kept as it is.
    """

    def __init__(self, obs: Any, *, lead_dims: int) -> None:
        self._obs = obs
        self._lead = lead_dims
        leaves = tree.flatten_with_path(obs)
        self._open = [
            i for i, (path, leaf) in enumerate(leaves) if MASK_LEAF not in path and leaf.is_floating_point()
        ]
        if not self._open:
            kinds = ", ".join(sorted({str(leaf.dtype) for _, leaf in leaves}))
            raise ValueError(
                f"expected observations with floating-point numbers to perturb, got {kinds}; "
                "convert them in the environment (for example obs.astype(np.float32))"
            )
        self._shapes = [leaves[i][1].shape[lead_dims:] for i in self._open]
        self._sizes = [shape.numel() for shape in self._shapes]
        self.flat = torch.cat([leaves[i][1].flatten(lead_dims) for i in self._open], -1)

    def merge(self, flat: Tensor, fixed: Any) -> Any:
        """An observation batch with the perturbable leaves from ``flat`` and the rest from ``fixed``."""
        leaves = tree.flatten(fixed)
        parts = flat.split(self._sizes, -1)
        for i, part, shape in zip(self._open, parts, self._shapes, strict=True):
            leaves[i] = part.reshape(*part.shape[: self._lead], *shape)
        return tree.unflatten_as(fixed, leaves)

    def columns_at(self, flat: Tensor, columns: Mapping[str, Any]) -> dict[str, Any]:
        """A batch with these perturbable observations, in a fresh mapping: modules may pop from it."""
        batch = dict(_copy(columns))
        batch[Columns.OBS] = self.merge(flat, batch[Columns.OBS])
        return batch


def observation_view(module: TorchRLModule, columns: Mapping[str, Any]) -> ObservationView:
    """The observations of one module's train batch."""
    return ObservationView(columns[Columns.OBS], lead_dims=2 if module.is_stateful() else 1)


class RLModulePolicy(Policy):
    """The actor of an RLModule on one train batch; see :func:`module_policy`."""

    def __init__(
        self,
        forward: Callable[[dict[str, Any]], Tensor],
        columns: Mapping[str, Any],
        view: ObservationView,
        distribution: ActionDistribution,
    ) -> None:
        super().__init__(distribution)
        self._forward = forward
        self._columns = columns
        self._view = view

    def __call__(self, obs: Tensor) -> Tensor:
        return self._forward(self._view.columns_at(obs, self._columns))

    def select(self, index: Tensor) -> RLModulePolicy:
        return self._with(_rows(self._columns, index))

    def repeat(self, count: int) -> RLModulePolicy:
        return self._with(tree.map_structure(lambda column: torch.cat([column] * count), self._columns))

    def _with(self, columns: Mapping[str, Any]) -> RLModulePolicy:
        return RLModulePolicy(self._forward, columns, self._view, self.distribution)


def module_policy(
    module: TorchRLModule,
    batch: Mapping[str, Any],
    distribution: ActionDistribution,
    *,
    layers: nn.Sequential | None = None,
) -> tuple[Policy, Tensor]:
    """The policy of one module on one train batch, and its clean observations.

    Args:
        module: the unwrapped module (never a DDP wrapper: a second forward would break its reducer).
        batch: the train batch of this module; not modified.
        distribution: what the module's distribution inputs parametrise.
        layers: the module's actor, where that is a stack of layers (``internals.trained_actor``): the same
            policy by a shorter way, for flat observations.

    Returns:
        The policy and the perturbable observations, ``[B, d]`` or ``[B, T, d]`` for recurrent modules.
    """
    obs = batch[Columns.OBS]
    if layers is not None and isinstance(obs, Tensor) and obs.is_floating_point():
        return ModulePolicy(layers, distribution), obs
    forward, reads_obs_only = actor_forward(module)
    view = observation_view(module, batch)
    names = [Columns.OBS] if reads_obs_only else list(batch)
    columns = {name: batch[name] for name in names}
    return RLModulePolicy(forward, columns, view, distribution), view.flat


def module_critic(module: TorchRLModule, batch: Mapping[str, Any]) -> RLModuleCritic | None:
    """The module's critic at perturbed observations of this batch; None where it has none."""
    return RLModuleCritic(module, batch) if isinstance(module, ValueFunctionAPI) else None


class RLModuleCritic:
    """V(s + δ) of one train batch, ``[B, ..., d] -> [B, ...]``; follows its rows through :meth:`select`."""

    def __init__(self, module: TorchRLModule, columns: Mapping[str, Any]) -> None:
        self._module = module
        self._columns = columns

    def __call__(self, obs: Tensor) -> Tensor:
        view = observation_view(self._module, self._columns)
        values: Tensor = self._module.compute_values(view.columns_at(obs, self._columns))
        return values

    def select(self, index: Tensor) -> RLModuleCritic:
        return RLModuleCritic(self._module, _rows(self._columns, index))


def module_distribution(module: TorchRLModule) -> ActionDistribution:
    """The action distribution that a module trains with.

    Raises:
        ValueError: a distribution other than RLlib's categorical, multi-categorical, diagonal Gaussian.
    """
    distribution = from_space(module.action_space)
    rllib_class = module.get_train_action_dist_cls()
    if not issubclass(rllib_class, _RLLIB_CLASSES[type(distribution)]):
        raise ValueError(
            "expected a module with RLlib's TorchCategorical, TorchMultiCategorical, TorchDiagGaussian or "
            f"TorchSquashedGaussian, got {rllib_class}; register a regularizer for the other modules only"
        )
    return distribution


def _rows(columns: Any, index: Tensor) -> Any:
    return tree.map_structure(lambda column: column[index], columns)


def _copy(batch: Any) -> Any:
    """The same tensors in new dicts and lists."""
    return tree.map_structure(lambda leaf: leaf, batch)


def snapshot(batch: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """A multi-agent train batch whose nested mappings a module cannot empty."""
    return {module_id: dict(_copy(dict(columns))) for module_id, columns in batch.items()}
