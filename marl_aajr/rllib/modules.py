"""Networks for observations that RLlib's default module does not take.

Action masks (``{"observation": ..., "action_mask": ...}``, PettingZoo's form), several dimensions, integers:
classic games have all three. One-dimensional float Box observations go to RLlib's own module.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from ray.rllib.core.columns import Columns
from ray.rllib.core.rl_module.apis import InferenceOnlyAPI, ValueFunctionAPI
from ray.rllib.core.rl_module.torch import TorchRLModule
from torch import Tensor, nn

from marl_aajr.distributions import DiagGaussian, from_space
from marl_aajr.victims.layers import ClipLogStd, FreeLogStd

LOG_STD_BOUND = 20.0
"""RLlib's bound of |log σ|."""

ACTIVATIONS: dict[str, type[nn.Module]] = {"tanh": nn.Tanh, "relu": nn.ReLU, "silu": nn.SiLU}

ORTHOGONAL_GAIN = math.sqrt(2)
"""Of hidden layers that are initialised orthogonally: the usual choice for PPO (arXiv 2006.05990)."""


def split(obs: Any) -> tuple[Any, Any]:
    """An observation (or its space) and its action mask, None where it has none."""
    if isinstance(obs, dict | gym.spaces.Dict):
        return obs["observation"], obs["action_mask"]
    return obs, None


def needs_flat_module(space: gym.Space[Any]) -> bool:
    """Whether an observation space is none for RLlib's default module."""
    box, mask = split(space)
    return mask is not None or len(box.shape) != 1 or not np.issubdtype(box.dtype, np.floating)


def check_observation_space(agent: str, space: gym.Space[Any]) -> None:
    """Raise ``ValueError`` for a space that no module here can read."""
    inner = space
    if isinstance(space, gym.spaces.Dict) and set(space.spaces) == {"observation", "action_mask"}:
        inner, _ = split(space)
    if not isinstance(inner, gym.spaces.Box):
        raise ValueError(
            "expected Box observations, or a Dict of observation (Box) and action_mask, got "
            f"{space} for agent {agent!r}; wrap the environment"
        )


def mlp(
    sizes: Sequence[int], *, activation: str, initialization: str, head: Sequence[nn.Module] = ()
) -> nn.Sequential:
    """Linear layers with activations between them, on flattened input, and ``head`` after them.

    Args:
        sizes: widths from input to output.
        activation: a key of :data:`ACTIVATIONS`.
        initialization: of the hidden layers: ``"orthogonal"`` or ``"torch"``.
        head: layers to append.
    """
    layers: list[nn.Module] = [nn.Flatten()]
    for width_in, width_out in pairwise(sizes):
        linear = nn.Linear(width_in, width_out)
        if initialization == "orthogonal" and len(layers) < 2 * len(sizes) - 3:
            nn.init.orthogonal_(linear.weight, ORTHOGONAL_GAIN)
            nn.init.zeros_(linear.bias)
        layers += [linear, ACTIVATIONS[activation]()]
    return nn.Sequential(*layers[:-1], *head)


class FlatActorCritic(TorchRLModule, ValueFunctionAPI, InferenceOnlyAPI):
    """Actor and critic MLPs over a flattened observation, with an action mask where there is one.

    Configuration (``model_config``): ``hidden``, ``activation``, ``initialization``, ``free_log_std``.
    """

    def setup(self) -> None:
        super().setup()
        config = self.model_config
        box, self.mask_space = split(self.observation_space)
        distribution = from_space(self.action_space)
        sizes = [int(np.prod(box.shape)), *config["hidden"]]
        width, head = distribution.num_inputs, []
        if isinstance(distribution, DiagGaussian):
            free = config["free_log_std"]
            width = distribution.k if free else width
            head = [FreeLogStd(distribution.k, LOG_STD_BOUND) if free else ClipLogStd(LOG_STD_BOUND)]
        activation, init = config["activation"], config["initialization"]
        self.actor = mlp([*sizes, width], activation=activation, initialization=init, head=head)
        if not self.inference_only:
            self.critic = mlp([*sizes, 1], activation=activation, initialization=init)

    def get_non_inference_attributes(self) -> list[str]:
        return ["critic"]

    def _forward(self, batch: dict[str, Any], **_: Any) -> dict[str, Any]:
        observation, mask = split(batch[Columns.OBS])
        inputs = self.actor(observation.float())
        if mask is not None:
            inputs = inputs.masked_fill(mask == 0, torch.finfo(inputs.dtype).min)
        return {Columns.ACTION_DIST_INPUTS: inputs}

    def compute_values(self, batch: dict[str, Any], embeddings: Any = None) -> Tensor:
        observation, _ = split(batch[Columns.OBS])
        values: Tensor = self.critic(observation.float()).squeeze(-1)
        return values
