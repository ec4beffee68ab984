"""The network by which an RLlib module plays: its layers if these give the same, else itself.

Layers can be saved and need no Ray. Any other module is kept whole (`LiveModule`) and asked the way RLlib's
env runner asks it.
"""

from __future__ import annotations

from math import prod
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from ray.rllib.algorithms.dqn.dqn_learner import QF_PREDS
from ray.rllib.algorithms.dqn.torch.default_dqn_torch_rl_module import DefaultDQNTorchRLModule
from ray.rllib.core.columns import Columns
from ray.rllib.core.distribution.torch.torch_distribution import TorchSquashedGaussian
from ray.rllib.core.rl_module.rl_module import RLModule
from ray.rllib.core.rl_module.torch import TorchRLModule
from torch import Tensor, nn

from marl_aajr.core.environment_values import ACTION_MASK, own_key, split
from marl_aajr.core.flat_observations import vector_space
from marl_aajr.core.mlp import hooked
from marl_aajr.core.policy import map_tree
from marl_aajr.rllib.internals.modules import forward_inference, inference_layers, plain_networks
from marl_aajr.rllib.language_module import LanguageModule
from marl_aajr.rllib.networks import FlatActorCritic
from marl_aajr.rllib.plugin.module_policy import judges_observations
from marl_aajr.victims.layers import flatten
from marl_aajr.victims.recurrent import Recurrent, State, initial_state, is_recurrent

_NO_NOISE = -30.0
"""A log σ whose noise no float32 near 1 shows."""


def live_module(module: RLModule) -> nn.Module:
    """A module that cannot be taken apart into layers, as a victim plays it.

    It needs Ray and the module's class wherever it is unpickled, and cannot be saved as a portable artefact.
    """
    return _Recurrent(module) if module.is_stateful() else LiveModule(module)


class LiveModule(nn.Module):
    """`forward_inference` from observations `[B, *shape]` to distribution inputs `[B, m]`.

    DQN's module gives its Q values, whose largest it plays; a module that gives actions, as heuristics do,
    plays them.

    Attributes:
        reads_action_mask: that it is called with `action_mask=`, `[B, n]` bool or None: modules may do
            with the mask what they like.
    """

    def __init__(self, module: RLModule) -> None:
        super().__init__()
        box, self._mask_space = parts_of(module)
        space = module.observation_space
        self._key = own_key(space) if isinstance(space, gym.spaces.Dict) else ""
        self._shape = box.shape
        # An integer observation may be an index: it comes as what RLlib would make of it.
        whole = not np.issubdtype(box.dtype, np.floating)
        self._dtype = torch.from_numpy(np.zeros((), box.dtype)).dtype if whole else torch.float32
        self.reads_action_mask = self._mask_space is not None
        self.module = module

    def reseed(self, seed: int) -> None:
        """Begin the random numbers of a module anew that draws its actions from its space."""
        self.module.action_space.seed(seed)

    def forward(self, obs: Tensor, action_mask: Tensor | None = None) -> Tensor:
        return self._ask(obs, action_mask, {})[Columns.ACTION_DIST_INPUTS]

    def _ask(self, obs: Tensor, action_mask: Tensor | None, columns: dict[str, Any]) -> dict[str, Any]:
        own = obs.reshape(-1, *self._shape).to(self._dtype)
        seen: Any = {self._key: own} if self._key else own
        if self._mask_space is not None:
            if action_mask is None:
                action_mask = own.new_ones(len(own), *self._mask_space.shape, dtype=torch.bool)
            dtype = torch.from_numpy(np.zeros((), self._mask_space.dtype)).dtype
            seen = {self._key: own, ACTION_MASK: action_mask.to(dtype)}
        batch = {Columns.OBS: seen}
        if columns:
            batch = map_tree(lambda x: x.unsqueeze(1), batch)
        batch |= columns
        if isinstance(self.module, DefaultDQNTorchRLModule):
            out = self.module.compute_q_values(batch)
            out[Columns.ACTION_DIST_INPUTS] = out[QF_PREDS]
        else:
            out = forward_inference(self.module, batch)
        if Columns.ACTIONS in out:
            return {**out, Columns.ACTION_DIST_INPUTS: self._certain(out[Columns.ACTIONS])}
        if Columns.ACTION_DIST_INPUTS not in out:
            raise ValueError(
                f"expected {type(self.module).__name__}.forward_inference to give "
                f"{Columns.ACTION_DIST_INPUTS} or {Columns.ACTIONS}, got {', '.join(out)}"
            )
        return out

    def _certain(self, actions: Any) -> Tensor:
        """Inputs of the distribution that gives nothing but these actions, `[B, ...] -> [B, m]`."""
        space = self.module.action_space
        chosen = np.asarray(actions).reshape(-1, *space.shape)
        if isinstance(space, gym.spaces.Box):
            mean = torch.from_numpy(chosen).float()
            return torch.cat([mean, torch.full_like(mean, _NO_NOISE)], -1)
        one_hot = [gym.spaces.flatten(space, action) for action in chosen]
        return torch.from_numpy(np.stack(one_hot)).float().sub(1).mul(torch.finfo(torch.float32).max)


class _Recurrent(LiveModule):
    """The same for stateful modules: with a state, `[B, ...]`, and one step of time."""

    def initial_state(self, rows: int) -> State:
        def of_each(state: Any) -> Tensor:
            one = torch.as_tensor(state, device=_device(self.module))
            return one.expand(rows, *one.shape).clone()

        return map_tree(of_each, self.module.get_initial_state())

    def forward(  # type: ignore[override]
        self, obs: Tensor, state: State, action_mask: Tensor | None = None
    ) -> tuple[Tensor, State]:
        out = self._ask(obs, action_mask, {Columns.STATE_IN: state})
        return out[Columns.ACTION_DIST_INPUTS].squeeze(1), out[Columns.STATE_OUT]


def parts_of(module: RLModule) -> tuple[gym.spaces.Box, gym.Space[Any] | None]:
    """The spaces of what a module reads, its agent's observation and action mask; `ValueError` for more."""
    space = module.observation_space
    several = isinstance(space, gym.spaces.Dict) and len(space.spaces.keys() - {ACTION_MASK}) != 1
    own, mask = (None, None) if several and not isinstance(module, FlatActorCritic) else split(space)
    if not isinstance(own, gym.spaces.Box):
        raise ValueError(
            f"expected a module for Box observations, or for a Dict of one Box and {ACTION_MASK}, got {space}"
            "; flatten the observations"
        )
    return own, mask


_ROWS = 64
"""Random observations on which layers and module are compared."""


def playing_network(module: RLModule) -> nn.Module:
    """The network that plays for a module: its layers if they agree to the last bit, else itself."""
    if isinstance(module, LanguageModule):
        return module.actor
    layers = _layers(module)
    if layers is None:
        return live_module(module)
    if isinstance(module, FlatActorCritic) or _agree(layers, live_module(module), parts_of(module)[0].shape):
        return layers
    return live_module(module)


def critic_network(module: RLModule) -> nn.Module | None:
    """A module's critic of the agent's own observation, where it is plain layers."""
    if not judges_observations(module):
        return None
    if isinstance(module, FlatActorCritic):
        return getattr(module, "critic", None)
    networks = plain_networks(module)
    return None if networks is None else networks[1]


def _layers(module: TorchRLModule) -> nn.Module | None:
    if isinstance(module, FlatActorCritic):
        own = type(module)._forward is FlatActorCritic._forward and not hooked(module)
        return module.actor if own else None
    return inference_layers(module)


@torch.no_grad()
def _agree(layers: nn.Module, live: nn.Module, shape: tuple[int, ...]) -> bool:
    obs = torch.randn(_ROWS, *shape, generator=torch.Generator().manual_seed(0)).to(_device(layers))
    return torch.equal(_outputs(layers, obs), _outputs(live, obs))


def _device(network: nn.Module) -> torch.device:
    return next((p.device for p in network.parameters()), torch.device("cpu"))


def _outputs(network: nn.Module, obs: Tensor) -> Tensor:
    """The outputs of a network at observations; of a recurrent one, in the second step of an episode."""
    if not is_recurrent(network):
        outputs: Tensor = network(obs)
        return outputs
    _, state = network(obs, initial_state(network, len(obs)))
    return network(obs.flip(0), state)[0]


def flattened(network: nn.Module, module: TorchRLModule, observed: gym.Space[Any]) -> nn.Module:
    """The network on an environment's observations, which RLlib flattened on the way to the module.

    Raises:
        ValueError: a recurrent network that sees the action mask as numbers.
    """
    box, mask = vector_space(observed)
    if mask is not None and sees_mask_as_numbers(module, observed):
        if is_recurrent(network):
            raise ValueError(
                "expected a network without a memory where a connector flattened the action mask, got a "
                "recurrent one; keep the mask out of its observations: keys_to_remove=['action_mask']"
            )
        before = [part for key, part in observed.items() if key < ACTION_MASK]
        return BesideMask(network, prod(mask.shape), place=sum(map(gym.spaces.flatdim, before)))
    if isinstance(network, LiveModule) or parts_of(module)[0].shape == box.shape:
        return network
    kind = Recurrent if is_recurrent(network) else nn.Sequential
    return kind(nn.Flatten(), *flatten(network))


def sees_mask_as_numbers(module: TorchRLModule, observed: gym.Space[Any]) -> bool:
    """Whether a module sees observation and action mask as one vector, as RLlib's connector flattens them."""
    (box, legal), (own, mask) = vector_space(observed), parts_of(module)
    return mask is None and legal is not None and own.shape == (prod(box.shape) + prod(legal.shape),)


class BesideMask(nn.Module):
    """A network that sees the action mask as numbers beside the observation: no attack reaches them.

    It reads both, `[B, d + n]`: the mask's n numbers (`choices`) stand in the observation from `place` on.
    """

    reads_action_mask = True

    def __init__(self, network: nn.Module, choices: int, *, place: int) -> None:
        super().__init__()
        self.network, self._choices, self._place = network, choices, place

    def forward(self, obs: Tensor, action_mask: Tensor | None = None) -> Tensor:
        legal = obs.new_ones(len(obs), self._choices) if action_mask is None else action_mask.to(obs.dtype)
        before, after = obs.flatten(1).tensor_split([self._place], -1)
        outputs: Tensor = self.network(torch.cat([before, legal, after], -1))
        return outputs


def greedy_only(module: RLModule) -> bool:
    """Whether RLlib plays the mode of a module's outputs, and samples in a way that victims do not know."""
    if not isinstance(module, TorchRLModule):
        return False
    squashed = issubclass(module.get_inference_action_dist_cls(), TorchSquashedGaussian)
    return squashed or isinstance(module, DefaultDQNTorchRLModule)
