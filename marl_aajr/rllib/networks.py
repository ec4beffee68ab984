"""Networks for observations that RLlib's default module does not take, and for centralised critics.

Action masks (a Dict of an array and its `action_mask`, as in PettingZoo), several dimensions, integers:
classic games have all three (`FlatActorCritic`). One-dimensional float Box observations go to RLlib's own
module. `MAPPOModule` has a critic that reads the joint observation or the state beside them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from itertools import pairwise
from typing import Any, ClassVar

import gymnasium as gym
import numpy as np
import torch
from ray.rllib.core.columns import Columns
from ray.rllib.core.distribution.torch.torch_distribution import TorchMultiCategorical
from ray.rllib.core.rl_module.apis import InferenceOnlyAPI, ValueFunctionAPI
from ray.rllib.core.rl_module.default_model_config import DefaultModelConfig
from ray.rllib.core.rl_module.torch import TorchRLModule
from torch import Tensor, nn

from marl_aajr.core.checks import one_of
from marl_aajr.core.distributions import DiagGaussian, MultiCategorical, from_space
from marl_aajr.core.environment_values import ACTION_MASK, STATE, own_key, split, to_vector
from marl_aajr.core.mlp import hooked
from marl_aajr.victims.layers import ClipLogStd, FreeLogStd

ACTIVATIONS: dict[str, type[nn.Module]] = {
    "tanh": nn.Tanh,
    "relu": nn.ReLU,
    "silu": nn.SiLU,
    "swish": nn.SiLU,
    "elu": nn.ELU,
}

ORTHOGONAL_GAIN = math.sqrt(2)
"""Of hidden layers that are initialised orthogonally: the usual choice for PPO (arXiv 2006.05990)."""

_READ = ("fcnet_", "free_log_std", "log_std_clip_param", "vf_share_layers", "max_seq_len")
_NOT_READ = ("fcnet_use_layernorm",)


def network_settings(given: Mapping[str, Any]) -> dict[str, Any]:
    """RLlib's `DefaultModelConfig` with what a user has set of it.

    Raises:
        ValueError: A setting that the networks of this file have no use for.
    """
    defaults = asdict(DefaultModelConfig())
    idle = [
        name
        for name, default in defaults.items()
        if given.get(name, default) != default and (not name.startswith(_READ) or name in _NOT_READ)
    ]
    if idle:
        raise ValueError(
            "expected of DefaultModelConfig what concerns fcnet (but layernorm), free_log_std and "
            f"log_std_clip_param, got {', '.join(idle)}; this module has plain MLPs"
        )
    return defaults | dict(given)


def floats(observation: Tensor) -> Tensor:
    """An observation as numbers that a layer takes."""
    return observation if observation.is_floating_point() else observation.float()


def observation_of(rows: Tensor, mask: Tensor | None, space: gym.Space[Any]) -> Any:
    """The input of a module, from the columns that a batch of environments gives.

    Args:
        rows: The array that an agent sees, `[..., *shape]`; with a central view behind it, `[..., d + c]`
            (`marl_aajr.rollout.centralized_critic.CentralBatch`).
        mask: Legal actions `[..., n]`; None where the game has none.
        space: Of the module's observations.
    """
    if not isinstance(space, gym.spaces.Dict):
        return rows
    key = own_key(space)
    masks = {} if mask is None else {ACTION_MASK: mask}
    if key == STATE or STATE not in space.spaces:
        return {key: rows, **masks}
    box, central = space[key], space[STATE]
    own, state = rows.split([gym.spaces.flatdim(box), gym.spaces.flatdim(central)], -1)
    return {key: own.unflatten(-1, box.shape), **masks, STATE: state.unflatten(-1, central.shape)}


def needs_flat_module(space: gym.Space[Any]) -> bool:
    """Whether an observation space is none for RLlib's default module."""
    if isinstance(space, gym.spaces.Dict):
        return True
    return len(space.shape or ()) != 1 or not np.issubdtype(space.dtype, np.floating)


def check_observation_space(agent: str, space: gym.Space[Any]) -> None:
    """Raise `ValueError` for a space that no module here can read."""
    try:
        inner, _ = split(space)
    except ValueError:
        inner = space
    if not isinstance(inner, gym.spaces.Box):
        raise ValueError(
            "expected Box observations, or a Dict of a Box and an action_mask, got "
            f"{space} for agent {agent!r}; {to_vector(space)}"
        )


def mlp(sizes: Sequence[int], settings: Mapping[str, Any], head: Sequence[nn.Module] = ()) -> nn.Sequential:
    """Linear layers with activations between them, on flattened input, and `head` after them.

    Args:
        sizes: Widths from input to output.
        settings: RLlib's, with `fcnet_activation` and the initializers of the hidden layers (names of
            `torch.nn.init`; None: torch's default).
        head: Layers to append.
    """
    one_of("fcnet_activation", settings["fcnet_activation"], ACTIVATIONS)
    activation = ACTIVATIONS[settings["fcnet_activation"]]
    layers: list[nn.Module] = [nn.Flatten()]
    for width_in, width_out in pairwise(sizes):
        layers += [nn.Linear(width_in, width_out), activation()]
    for hidden in layers[1:-2:2]:
        for part in ("kernel", "bias"):
            if (name := settings[f"fcnet_{part}_initializer"]) is not None:
                arguments = settings[f"fcnet_{part}_initializer_kwargs"] or {}
                weights = hidden.weight if part == "kernel" else hidden.bias
                getattr(nn.init, name)(weights, **arguments)
    return nn.Sequential(*layers[:-1], *head)


class FlatActorCritic(TorchRLModule, ValueFunctionAPI, InferenceOnlyAPI):
    """Actor and critic MLPs over a flattened observation, with an action mask where there is one.

    Configuration (`model_config`): those parts of RLlib's `DefaultModelConfig` that concern MLPs. Actor
    and critic have layers of their own.
    """

    reads_obs_only: ClassVar[bool] = True
    """That `forward_train` needs no other column: the inner maximisation repeats none of them. A subclass
    that reads more says False."""

    def setup(self) -> None:
        super().setup()
        settings = network_settings(self.model_config)
        box, self.mask_space = split(self.observation_space)
        distribution = from_space(self.action_space)
        hidden, width = settings["fcnet_hiddens"], distribution.num_inputs
        head: list[nn.Module] = []
        if isinstance(distribution, MultiCategorical):
            # Where there is no catalog, RLlib knows no distribution for these.
            kind = TorchMultiCategorical.get_partial_dist_cls(input_lens=distribution.nvec)
            self.action_dist_cls = kind
        if isinstance(distribution, DiagGaussian):
            free, bound = settings["free_log_std"], settings["log_std_clip_param"]
            width = distribution.k if free else width
            head = [FreeLogStd(distribution.k, bound) if free else ClipLogStd(bound)]
        self.actor = mlp([gym.spaces.flatdim(box), *hidden, width], settings, head)
        if not self.inference_only:
            self.critic = mlp([self.critic_width, *hidden, 1], settings)

    @property
    def critic_width(self) -> int:
        """The number of features that the critic reads."""
        box, _ = split(self.observation_space)
        return gym.spaces.flatdim(box)

    @property
    def flat_actor(self) -> nn.Sequential | None:
        """The actor's layers on observations `[B, d]`; None where there is more to it than layers."""
        box, _ = split(self.observation_space)
        kept = self._keeps("forward_train", "_forward_train", "_forward")
        plain = self.mask_space is None and len(box.shape) == 1 and kept
        return _behind_flatten(self.actor) if plain else None

    @property
    def masked_actor(self) -> nn.Sequential | None:
        """The actor's layers on flat observations, before a mask; None: there is more to it than layers."""
        return self.actor if self._keeps("forward_train", "_forward_train", "_forward") else None

    @property
    def flat_critic(self) -> nn.Sequential | None:
        """The critic's layers on `critic_inputs`; None where a subclass does something else."""
        plain = self._keeps("compute_values") and not self.inference_only
        return _behind_flatten(self.critic) if plain else None

    def _keeps(self, *methods: str) -> bool:
        own = all(getattr(type(self), name) is getattr(FlatActorCritic, name) for name in methods)
        return own and not hooked(self)

    def get_non_inference_attributes(self) -> list[str]:
        return ["critic"]

    def _forward(self, batch: dict[str, Any], **_: Any) -> dict[str, Any]:
        observation, mask = split(batch[Columns.OBS])
        inputs = self.actor(floats(observation))
        if mask is not None:
            inputs = inputs.masked_fill(mask == 0, torch.finfo(inputs.dtype).min)
        return {Columns.ACTION_DIST_INPUTS: inputs}

    def compute_values(self, batch: dict[str, Any], embeddings: Any = None) -> Tensor:
        values: Tensor = self.critic(self.critic_inputs(batch[Columns.OBS])).squeeze(-1)
        return values

    def critic_inputs(self, obs: Any) -> Tensor:
        """The critic's input from a batch of observations, `[B, width]`."""
        observation, _ = split(obs)
        return floats(observation).flatten(1)


def _behind_flatten(layers: nn.Module) -> nn.Sequential | None:
    """The layers that follow `nn.Flatten`; None where they do not begin with it."""
    if not isinstance(layers, nn.Sequential) or not len(layers) or type(layers[0]) is not nn.Flatten:
        return None
    return nn.Sequential(*list(layers)[1:])


class MAPPOModule(FlatActorCritic):
    """Actor and centralised critic as MLPs, for PPO and every other algorithm that trains a value function.

    Configuration (`model_config`): see `FlatActorCritic`.

    Raises:
        ValueError: Observations without a state.

    Example:
        >>> config = (
        ...     PPOConfig()
        ...     .environment(register("simple_spread_v3", critic="joint"))
        ...     .multi_agent(policies={"team"}, policy_mapping_fn=lambda agent, *_, **__: "team")
        ...     .rl_module(
        ...         rl_module_spec=RLModuleSpec(
        ...             module_class=MAPPOModule, model_config=DefaultModelConfig(fcnet_hiddens=[64, 64])
        ...         )
        ...     )
        ... )
        >>> config = robustify(config, AAJR(coefficient=3e-3, epsilon=0.1))
    """

    critic_only: ClassVar[tuple[str, ...]] = (STATE,)

    def setup(self) -> None:
        space = self.observation_space
        if not isinstance(space, gym.spaces.Dict) or STATE not in space.spaces or len(space) < 2:
            raise ValueError(
                f"expected observations with the keys observation and {STATE}, got {space}; build the "
                "environment with critic='joint' or 'state'"
            )
        super().setup()

    @property
    def critic_width(self) -> int:
        state = self.observation_space[STATE]
        return super().critic_width + gym.spaces.flatdim(state)

    def critic_inputs(self, obs: Any) -> Tensor:
        observation, _ = split(obs)
        return torch.cat([floats(observation).flatten(1), floats(obs[STATE]).flatten(1)], 1)
