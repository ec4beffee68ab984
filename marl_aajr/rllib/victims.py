"""RLlib modules as victims: anybody's policies, played exactly as RLlib plays them, attacked like ours."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import prod
from typing import Any

import gymnasium as gym
import torch
from ray.rllib.algorithms.dqn.torch.default_dqn_torch_rl_module import DefaultDQNTorchRLModule
from ray.rllib.core.distribution.torch.torch_distribution import TorchSquashedGaussian
from ray.rllib.core.rl_module.multi_rl_module import MultiRLModule
from ray.rllib.core.rl_module.rl_module import RLModule
from ray.rllib.core.rl_module.torch import TorchRLModule
from torch import Tensor, nn

from marl_aajr.core.mlp import hooked
from marl_aajr.rllib.internals import inference_layers, plain_networks
from marl_aajr.rllib.live_module import LiveModule, live_module, observed_parts
from marl_aajr.rllib.networks import FlatActorCritic, split
from marl_aajr.rllib.plugin.module_policy import judges_observations
from marl_aajr.rllib.sampling.batch_env import module_of_agents
from marl_aajr.rllib.sampling.module_players import own_distribution
from marl_aajr.rollout.environments import EnvironmentSpec, resolve
from marl_aajr.victims import ObservationFilter, Victim
from marl_aajr.victims.layers import flatten
from marl_aajr.victims.recurrent import Recurrent, initial_state, is_recurrent

_ROWS = 64
"""Random observations on which layers and module are compared."""


def victim_from_module(module: TorchRLModule, env: str | EnvironmentSpec, **settings: Any) -> Victim:
    """One RLlib module that plays all agents, as a victim; see `victim_from_modules`.

    Example:
        >>> module = RLModule.from_checkpoint(checkpoint / "learner_group/learner/rl_module/shared")
        >>> evaluate(victim_from_module(module, "simple_spread_v3"), suite="quick").worst
    """
    return victim_from_modules({"module": module}, env, policy_mapping_fn=lambda *_: "module", **settings)


def victim_from_modules(
    modules: Mapping[str, TorchRLModule] | MultiRLModule,
    env: str | EnvironmentSpec,
    *,
    env_kwargs: Mapping[str, Any] | None = None,
    policy_mapping_fn: Mapping[str, str] | Callable[..., str],
    filters: Mapping[str, ObservationFilter | None] | None = None,
    normalize_actions: bool = True,
    clip_actions: bool = False,
) -> Victim:
    """RLlib modules of the new API stack as a victim.

    Modules of PPO's default catalog become plain layers, which can be saved. Any other is kept as it is: it
    can be evaluated, but not saved. Those of DQN, and of SAC with Box actions, play greedily only; RLlib's
    greedy action of a squashed Gaussian is its mean before squashing.

    Args:
        modules: module id -> module.
        env: the environment (`marl_aajr.rollout.environments.resolve`).
        env_kwargs: arguments of a named environment.
        policy_mapping_fn: RLlib's, or agent -> module id.
        filters: agent -> frozen observation filter; a module itself has none.
        normalize_actions: RLlib's setting of the same name.
        clip_actions: RLlib's setting of the same name.

    Raises:
        ValueError: a mapping to a module that is not there, modules that do not fit the environment's
            spaces, or that do not choose actions from a distribution that victims have.
    """
    spec = env if isinstance(env, EnvironmentSpec) else resolve(env, env_kwargs)
    observation_spaces, action_spaces = spaces_of(spec)
    module_of = module_of_agents(observation_spaces, policy_mapping_fn)
    known = {name: _unwrapped(module) for name, module in _items(modules)}
    for agent, name in module_of.items():
        if name not in known:
            raise ValueError(
                f"expected the module {name!r} for {agent!r}, got {', '.join(sorted(known))}; give it, or "
                "another policy_mapping_fn"
            )
        _check_spaces(agent, name, known[name], observation_spaces[agent], action_spaces[agent])
    boxes = {name: split(observation_spaces[agent])[0] for agent, name in module_of.items()}
    used = {name: known[name] for name in dict.fromkeys(module_of.values())}
    return Victim(
        module_of=module_of,
        modules={name: _flattened(playing_network(m), m, boxes[name]) for name, m in used.items()},
        critics={n: critic for n, m in used.items() if (critic := critic_network(m)) is not None},
        observation_spaces={agent: split(space)[0] for agent, space in observation_spaces.items()},
        action_spaces=action_spaces,
        filters=filters or {},
        normalize_actions=normalize_actions,
        clip_actions=clip_actions,
        greedy_only=any(_greedy_only(module) for module in used.values()),
        env_name=spec.name,
        env_kwargs=spec.kwargs,
    )


def spaces_of(spec: EnvironmentSpec) -> tuple[dict[str, gym.Space[Any]], dict[str, gym.Space[Any]]]:
    """The observation and action spaces of an environment's agents, in its order."""
    game = spec.make()
    try:
        agents = game.possible_agents
        return {a: game.observation_spaces[a] for a in agents}, {a: game.action_spaces[a] for a in agents}
    finally:
        game.close()


def playing_network(module: TorchRLModule) -> nn.Module:
    """What a module plays by: its layers where they give the same numbers to the last bit, else itself."""
    layers = _layers(module)
    if layers is None:
        return live_module(module)
    if isinstance(module, FlatActorCritic) or _agree(layers, live_module(module), parts_of(module)[0].shape):
        return layers
    return live_module(module)


def critic_network(module: TorchRLModule) -> nn.Module | None:
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
    obs = torch.randn(_ROWS, *shape, generator=torch.Generator().manual_seed(0))
    return torch.equal(_outputs(layers, obs), _outputs(live, obs))


def _outputs(network: nn.Module, obs: Tensor) -> Tensor:
    """What a network says at observations, in the second step of an episode where it has a memory."""
    if not is_recurrent(network):
        outputs: Tensor = network(obs)
        return outputs
    _, state = network(obs, initial_state(network, len(obs)))
    return network(obs.flip(0), state)[0]


def parts_of(module: TorchRLModule) -> tuple[gym.spaces.Box, gym.spaces.Box | None]:
    """The space of what a module reads of its agent's observation, and of the action mask."""
    if isinstance(module, FlatActorCritic):
        box, mask = split(module.observation_space)
        return box, mask
    return observed_parts(module.observation_space)[1:]


def _flattened(network: nn.Module, module: TorchRLModule, observed: gym.spaces.Box) -> nn.Module:
    """Layers on flat observations, for an environment whose observations RLlib flattened on the way."""
    if isinstance(network, LiveModule) or parts_of(module)[0].shape == observed.shape:
        return network
    kind = Recurrent if is_recurrent(network) else nn.Sequential
    return kind(nn.Flatten(), *flatten(network))


def _items(modules: Mapping[str, TorchRLModule] | MultiRLModule) -> list[tuple[str, Any]]:
    return list(modules.items())


def _unwrapped(module: Any) -> TorchRLModule:
    inner = module.unwrapped() if isinstance(module, RLModule) else module
    if not isinstance(inner, TorchRLModule):
        raise ValueError(
            f"expected torch RLModules of RLlib's new API stack, got {type(inner).__name__}; for plain torch "
            "policies there is Victim.from_policies"
        )
    return inner


def _greedy_only(module: TorchRLModule) -> bool:
    """Whether RLlib plays the mode of a module's outputs, and samples in a way that victims do not know."""
    squashed = issubclass(module.get_inference_action_dist_cls(), TorchSquashedGaussian)
    return squashed or isinstance(module, DefaultDQNTorchRLModule)


def _check_spaces(
    agent: str, name: str, module: TorchRLModule, observed: gym.Space[Any], acts: gym.Space[Any]
) -> None:
    if module.action_space != acts:
        raise ValueError(
            f"expected module {name!r} to have the actions {acts} of {agent!r}, got {module.action_space}; "
            "give the environment the arguments that it was trained with"
        )
    own, mask = parts_of(module)
    box, legal = split(observed)
    same = isinstance(box, gym.spaces.Box) and prod(own.shape) == prod(box.shape)
    if not same or (mask is None) != (legal is None):
        raise ValueError(
            f"expected module {name!r} to read the observations {observed} of {agent!r}, got one for "
            f"{module.observation_space}; give the environment the arguments that it was trained with"
        )
    if own_distribution(module, acts) is None and not _greedy_only(module):
        other = module.get_inference_action_dist_cls().__name__
        raise ValueError(
            f"expected module {name!r} to choose actions from RLlib's TorchCategorical, "
            f"TorchMultiCategorical, TorchDiagGaussian or TorchSquashedGaussian, got {other}"
        )
