"""RLlib's modules and checkpoints as victims: played exactly as RLlib plays them, attacked like ours.

`victim_from_checkpoint` reads an algorithm's checkpoint of the new API stack, `victim_from_modules` takes
modules from memory; `marl_aajr.rllib.playing_networks` says by which network each of them plays.
"""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable, Mapping
from math import prod
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from ray.rllib import core
from ray.rllib.algorithms.algorithm_config import AlgorithmConfig
from ray.rllib.connectors.common.flatten_observations import FlattenObservations
from ray.rllib.connectors.env_to_module import EnvToModulePipeline, MeanStdFilter
from ray.rllib.core.rl_module.multi_rl_module import MultiRLModule
from ray.rllib.core.rl_module.rl_module import RLModule
from ray.rllib.core.rl_module.torch import TorchRLModule
from ray.rllib.utils.filter import RunningStat

from marl_aajr.core.environment_values import zero_based
from marl_aajr.core.flat_observations import vector_space
from marl_aajr.rllib.internals.algorithms import custom_connectors, foreign_env_to_module
from marl_aajr.rllib.playing_networks import (
    critic_network,
    flattened,
    greedy_only,
    parts_of,
    playing_network,
    sees_mask_as_numbers,
)
from marl_aajr.rllib.sampling.batch_env import module_of_agents
from marl_aajr.rllib.sampling.module_policies import own_distribution
from marl_aajr.rllib.sampling.observation_filter import ObservationNormalizer
from marl_aajr.rollout.environments import EnvironmentSpec, resolve
from marl_aajr.rollout.game import Game
from marl_aajr.victims import ObservationFilter, Victim


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
    greedy action of a squashed Gaussian is its mean before squashing. Modules that give actions, as RLlib's
    random one and heuristics do, play these.

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
    spec = resolve(env, env_kwargs)
    game = spec.make()
    game.close()
    observation_spaces = game.observation_spaces
    module_of = module_of_agents(game.agent_ids, policy_mapping_fn)
    used: dict[str, RLModule] = {}
    for agent, name in module_of.items():
        if name not in modules:
            known = ", ".join(sorted(modules.keys()))
            raise ValueError(
                f"expected the module {name!r} for {agent!r}, got {known}; give it, or map to another"
            )
        if not isinstance(modules[name], RLModule):
            raise ValueError(
                f"expected RLModules of RLlib's new API stack for the agents, got "
                f"{type(modules[name]).__name__} for {name!r}; map its agents to another module "
                "(policy_mapping_fn), or give Victim.from_policies a torch network for each agent"
            )
        used[name] = modules[name].unwrapped()
        _check_spaces(agent, name, used[name], game)
    seen = {name: observation_spaces[agent] for agent, name in module_of.items()}
    critics = {n: critic_network(m) for n, m in used.items() if not sees_mask_as_numbers(m, seen[n])}
    return Victim(
        module_of=module_of,
        modules={name: flattened(playing_network(m), m, seen[name]) for name, m in used.items()},
        critics={name: critic for name, critic in critics.items() if critic is not None},
        observation_spaces={agent: vector_space(space)[0] for agent, space in observation_spaces.items()},
        action_spaces=game.env_action_spaces,
        filters=filters or {},
        normalize_actions=normalize_actions,
        clip_actions=clip_actions,
        greedy_only=any(greedy_only(module) for module in used.values()),
        env_name=spec.name,
        env_kwargs=spec.kwargs,
    )


def _check_spaces(agent: str, name: str, module: RLModule, game: Game) -> None:
    observed, acts = game.observation_spaces[agent], game.env_action_spaces[agent]
    if zero_based(module.action_space) != zero_based(acts):
        raise ValueError(
            f"expected module {name!r} to have the actions {acts} of {agent!r}, got {module.action_space}; "
            "give the environment the arguments that it was trained with"
        )
    own, mask = parts_of(module)
    box, legal = vector_space(observed)
    # RLlib's own environments ignore what infos say; the victim masks the outputs of such a module.
    ignored = mask is None and game.infos_have_masks
    same = prod(own.shape) == prod(box.shape) and ((mask is None) == (legal is None) or ignored)
    if not (same or sees_mask_as_numbers(module, observed)):
        raise ValueError(
            f"expected module {name!r} to read the observations {observed} of {agent!r}, got one for "
            f"{module.observation_space}; give the arguments that it was trained with, and do in the "
            "environment what connectors of your own do"
        )
    if not isinstance(module, TorchRLModule) or greedy_only(module):
        return
    if own_distribution(module, acts) is None:
        other = module.get_inference_action_dist_cls().__name__
        raise ValueError(
            f"expected module {name!r} to choose actions from RLlib's TorchCategorical, "
            f"TorchMultiCategorical, TorchDiagGaussian or TorchSquashedGaussian, got {other}"
        )


MARK = "rllib_checkpoint.json"
"""The file by which RLlib knows its checkpoints."""

_CONSTRUCTION = "class_and_ctor_args.pkl"


def is_checkpoint(path: Path | str) -> bool:
    """Whether a folder is a checkpoint of an RLlib algorithm."""
    return (Path(path) / MARK).is_file()


def victim_from_checkpoint(
    path: Path | str,
    *,
    env: str | EnvironmentSpec,
    env_kwargs: Mapping[str, Any] | None = None,
    policy_mapping_fn: Mapping[str, str] | Callable[..., str] | None = None,
) -> Victim:
    """The policies of an RLlib checkpoint as a victim that plays as they did in training.

    Takes from it: the modules, the policy mapping, the observation filter (RLlib's `MeanStdFilter` or ours;
    it stands still from now on), and how actions are mapped to their bounds. Ray need not be running.

    Args:
        path: a folder that `Algorithm.save_to_path` wrote, or a checkpoint of Ray Tune. It holds pickles, so
            reading it runs what is in it: read your own.
        env: the environment, by a name that `marl_aajr.rollout.environments.resolve` knows: a checkpoint has
            only the name that it was registered under in the training script.
        env_kwargs: its arguments.
        policy_mapping_fn: who plays whom, agent -> module id or a function, where training drew it for each
            episode, as leagues do; None: the checkpoint's.

    Raises:
        ValueError: no checkpoint, one of RLlib's old API stack, connectors that victims do not have, or an
            environment that the modules do not fit.

    Example:
        >>> victim = victim_from_checkpoint("checkpoint_000010", env="simple_spread_v3")
        >>> evaluate(victim, suite="standard", units="raw").worst
    """
    path = Path(path)
    config = _config(path)
    spec = resolve(env, env_kwargs)
    game = spec.make()
    game.close()
    # Without policies of its own a configuration has one module, and RLlib asks for no mapping.
    one = dict.fromkeys(game.possible_agents, core.DEFAULT_MODULE_ID)
    mapping = config.policy_mapping_fn if config.is_multi_agent else one
    instead = "say who plays whom: in Python, victim_from_checkpoint(..., policy_mapping_fn={agent: module})"
    module_of = module_of_agents(game.agent_ids, policy_mapping_fn or mapping, instead=instead)
    modules = MultiRLModule.from_checkpoint(
        path.resolve() / core.COMPONENT_LEARNER_GROUP / core.COMPONENT_LEARNER / core.COMPONENT_RL_MODULE
    )
    return victim_from_modules(
        modules,
        spec,
        policy_mapping_fn=module_of,
        filters=_filters(path, game, module_of),
        normalize_actions=config.normalize_actions,
        clip_actions=config.clip_actions,
    )


def _check_kind(path: Path) -> None:
    if not is_checkpoint(path):
        nested = sorted(folder.parent.name for folder in path.glob(f"*/{MARK}"))
        hint = f"; there is {path / nested[-1]}" if nested else "; name what Algorithm.save_to_path wrote"
        raise ValueError(f"expected a checkpoint of an RLlib algorithm, got {path} without {MARK}{hint}")
    if not (path / core.COMPONENT_LEARNER_GROUP).is_dir():
        raise ValueError(
            f"expected a checkpoint of RLlib's new API stack, got {path} without "
            f"{core.COMPONENT_LEARNER_GROUP}; restore it with RLlib and give the policies' networks to "
            "Victim.from_policies"
        )
    if not (path / _CONSTRUCTION).is_file():
        written = json.loads((path / MARK).read_text()).get("class_and_ctor_args_file")
        raise ValueError(
            f"expected a checkpoint in RLlib's default format, got {path} with {written or 'another'}; save "
            "it without use_msgpack"
        )


def _config(path: Path) -> AlgorithmConfig:
    _check_kind(path)
    try:
        with (path / _CONSTRUCTION).open("rb") as file:
            (state, *_), _ = pickle.load(file)["ctor_args_and_kwargs"]
    except (ImportError, AttributeError) as error:
        raise ValueError(
            f"expected to find the code that {path} was trained with, got {error}; run where Python can "
            "import it"
        ) from error
    config: AlgorithmConfig = AlgorithmConfig.from_state(state)
    defaults = config.add_default_connectors_to_module_to_env_pipeline
    if "module_to_env_connector" in custom_connectors(config) or not defaults:
        raise ValueError(
            f"expected RLlib's default way from modules to actions, got another in {path}, which a victim "
            "cannot repeat"
        )
    return config


def _filters(path: Path, game: Game, module_of: Mapping[str, str]) -> dict[str, ObservationFilter | None]:
    folder = path.resolve() / core.COMPONENT_ENV_RUNNER / core.COMPONENT_ENV_TO_MODULE_CONNECTOR
    pipeline = EnvToModulePipeline.from_checkpoint(folder)
    if foreign := foreign_env_to_module(pipeline, MeanStdFilter, ObservationNormalizer, FlattenObservations):
        raise ValueError(
            "expected no connector between environment and modules but MeanStdFilter and "
            f"FlattenObservations, got {', '.join(foreign)} in {path}; do in the environment what it does, "
            "and use victim_from_modules"
        )
    found: dict[str, ObservationFilter | None] = {}
    agents = {agent: vector_space(space) for agent, space in game.observation_spaces.items()}
    for piece in pipeline.connectors:
        if isinstance(piece, MeanStdFilter):
            found |= {a: _rllibs(piece, game.agent_ids[a], *spaces) for a, spaces in agents.items()}
        elif isinstance(piece, ObservationNormalizer):
            found |= {
                agent: piece.victims_filter(module_of[agent], box.shape) for agent, (box, _) in agents.items()
            }
    return found


def _rllibs(
    piece: MeanStdFilter, agent: Any, box: gym.spaces.Box, mask: gym.Space[Any] | None
) -> ObservationFilter:
    if mask is not None:
        raise ValueError(
            f"expected no action masks for MeanStdFilter, got {mask} for {agent!r}, which it normalises, too"
        )
    if not (piece.de_mean_to_zero and piece.de_std_to_one):
        raise ValueError("expected a MeanStdFilter of mean and deviation, got one of only one of them")
    states = piece.get_state()
    if agent not in states:
        raise ValueError(
            f"expected an environment of {', '.join(map(str, states))}, whom the MeanStdFilter knows, got "
            f"{agent!r}; give it the arguments that it was trained with"
        )
    # One for each part of an observation that is flattened behind it.
    stats = [RunningStat.from_state(saved) for saved in states[agent]["running_stats"]]
    both = (np.concatenate([np.ravel(getattr(part, name)) for part in stats]) for name in ("mean", "std"))
    # Of another size, they are refused with the module that reads them.
    shaped = (numbers.reshape(box.shape) if numbers.size == prod(box.shape) else numbers for numbers in both)
    mean, std = map(torch.from_numpy, shaped)
    return ObservationFilter(mean=mean, std=std, clip=piece.clip_by_value)
