"""Models of Stable-Baselines3 and its contrib package as victims: their layers, which play without them."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from torch import nn

from marl_aajr.core.checks import one_of
from marl_aajr.core.environment_values import named
from marl_aajr.victims.filters import SMALL, ObservationFilter
from marl_aajr.victims.layers import ChannelsFirst, FreeLogStd, flatten
from marl_aajr.victims.recurrent import Recurrent
from marl_aajr.victims.spaces import AgentSpaces
from marl_aajr.victims.victim import Victim

_ROWS = 64
"""Random observations on which the layers and the model are compared."""


@dataclass(frozen=True)
class _Parts:
    """What a model plays by: its actor's layers, its critic's, and how its outputs become actions."""

    actor: nn.Module
    critic: nn.Module | None
    filter: ObservationFilter | None
    greedy_only: bool
    squashed: bool


def victim_from_sb3(
    models: Any, env: Any, *, filters: Mapping[str, ObservationFilter | None] | None = None, **settings: Any
) -> Victim:
    """See `Victim.from_sb3`."""
    agents = AgentSpaces.of(env).observation_spaces
    by_agent = named(models) if isinstance(models, Mapping) else dict.fromkeys(agents, models)
    for agent in by_agent:
        one_of("models of agents", agent, agents)
    known = {id(model): _parts(model, agents[a]) for a, model in by_agent.items()}
    parts = {agent: known[id(model)] for agent, model in by_agent.items()}
    if len({own.squashed for own in parts.values()}) > 1:
        raise ValueError("expected models that squash their actions, or none that does, got some of each")
    victim = Victim.from_policies(
        {agent: own.actor for agent, own in parts.items()},
        env,
        critics={agent: own.critic for agent, own in parts.items() if own.critic is not None},
        filters={agent: own.filter for agent, own in parts.items()} | named(filters or {}),
        normalize_actions=any(own.squashed for own in parts.values()),
        greedy_only=any(own.greedy_only for own in parts.values()),
        **settings,
    )
    for agent, model in by_agent.items():
        _check_plays_alike(victim, agent, model)
    return victim


def _refusal(model: Any, why: str) -> ValueError:
    return ValueError(
        f"expected a model of Stable-Baselines3 whose policy is an MLP, a CNN or an LSTM, got "
        f"{type(model).__name__} {why}; write its policy as a torch module from observations to logits (Box "
        "actions: mean and log σ), and give that to Victim.from_policies"
    )


def _parts(model: Any, observed: spaces.Space[Any]) -> _Parts:
    policy: Any = getattr(model, "policy", None)
    if policy is None:
        raise ValueError(
            f"expected a model of Stable-Baselines3 as PPO.load(path) gives it, got {type(model).__name__}; "
            "torch networks go to Victim.from_policies"
        )
    box = isinstance(getattr(model, "action_space", None), spaces.Box)
    squashed, values = False, None
    if getattr(policy, "use_sde", False):
        raise _refusal(model, "with gSDE, whose noise depends on the observation")
    try:
        if hasattr(policy, "mlp_extractor"):
            core = [policy.lstm_actor] if hasattr(policy, "lstm_actor") else []
            layers = [*core, policy.mlp_extractor.policy_net, policy.action_net]
            layers += [_log_std(policy.log_std)] if box else []
            extractor = policy.pi_features_extractor
            if not core:
                values = (policy.vf_features_extractor, policy.mlp_extractor.value_net, policy.value_net)
        elif box:
            actor, squashed = policy.actor, True
            layers = [actor.latent_pi, actor.mu, nn.Tanh()] if hasattr(actor, "latent_pi") else [actor.mu]
            layers += [FreeLogStd(model.action_space.shape[0])]
            extractor = actor.features_extractor
        else:
            layers, extractor = [policy.q_net.q_net], policy.q_net.features_extractor
    except AttributeError as error:
        raise _refusal(model, f"({error})") from None
    critic = None if values is None else _network(model, observed, *values)
    greedy_only = not hasattr(policy, "mlp_extractor")
    return _Parts(
        _network(model, observed, extractor, *layers), critic, _filter(model), greedy_only, squashed
    )


def _log_std(log_std: torch.Tensor) -> FreeLogStd:
    layer = FreeLogStd(log_std.numel())
    layer.log_std.data.copy_(log_std.flatten())
    return layer


def _network(model: Any, observed: spaces.Space[Any], extractor: Any, *layers: nn.Module) -> nn.Module:
    """The layers behind a features extractor, on observations as the environment gives them."""
    from stable_baselines3.common import preprocessing, torch_layers

    first: list[nn.Module] = [nn.Flatten()]
    if type(extractor) is torch_layers.NatureCNN:
        first = [extractor.cnn, extractor.linear]
    elif type(extractor) is not torch_layers.FlattenExtractor:
        raise _refusal(model, f"with a {type(extractor).__name__}")
    seen = model.observation_space
    if not isinstance(seen, spaces.Box):
        raise _refusal(model, f"for observations {seen}")
    if seen.shape != observed.shape and len(seen.shape) == 3:
        first = [ChannelsFirst(), *first]
    kind = Recurrent if any(isinstance(layer, nn.LSTM) for layer in layers) else nn.Sequential
    network = deepcopy(kind(*flatten(nn.Sequential(*first, *layers)))).cpu()
    if model.policy.normalize_images and preprocessing.is_image_space(seen):
        weighted = next(layer for layer in network if isinstance(layer, nn.Linear | nn.Conv2d))
        weighted.weight.data /= 255.0
    return network


def _filter(model: Any) -> ObservationFilter | None:
    """What the `VecNormalize` of the model's environment does to observations, with its statistics of now."""
    wrapper = getattr(model, "get_vec_normalize_env", lambda: None)()
    if wrapper is None or not wrapper.norm_obs:
        return None
    seen, deviation = wrapper.obs_rms, np.sqrt(wrapper.obs_rms.var + wrapper.epsilon)
    mean, std = torch.from_numpy(np.asarray(seen.mean)), torch.from_numpy(np.asarray(deviation)) - SMALL
    return ObservationFilter(mean=mean, std=std, clip=wrapper.clip_obs)


@torch.no_grad()
def _check_plays_alike(victim: Victim, agent: str, model: Any) -> None:
    """Raise `ValueError` unless the victim's greedy actions are those of the model's `predict`."""
    space = deepcopy(model.observation_space)
    space.seed(0)
    obs = np.stack([space.sample() for _ in range(_ROWS)])
    wanted, _ = model.predict(obs, deterministic=True)
    shown = torch.from_numpy(obs)
    if space.shape != victim.observation_spaces[agent].shape:
        shown = shown.permute(0, 2, 3, 1)
    state = victim.memory(_ROWS).recall({agent: torch.arange(_ROWS)})
    outputs = victim.policy(agent, state=state)(shown.float().flatten(1))
    if not np.allclose(victim.greedy(agent, outputs).numpy(), wanted, rtol=1e-3, atol=1e-4):
        raise _refusal(model, "which does not play by its layers alone")
