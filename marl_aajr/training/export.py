"""Between a run's algorithm and victims: it saves its policies as one, and may begin with those of one.

An exported victim has the same policies, without Ray; that is checked to the last bit.
"""

from __future__ import annotations

import shutil
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any

import torch
from ray.rllib.algorithms.algorithm import Algorithm
from ray.rllib.core.learner.torch.torch_learner import TorchLearner
from torch import nn

from marl_aajr.core.environment_values import split
from marl_aajr.core.token_network import TokenNetwork
from marl_aajr.rllib.playing_networks import critic_network, live_module, playing_network
from marl_aajr.training.config import RunConfig
from marl_aajr.training.policy_mapping import PolicyMapping
from marl_aajr.victims import ObservationFilter, Victim
from marl_aajr.victims.recurrent import initial_state

_ROWS = 64
"""Random observations on which victim and module are compared."""


def export_victim(algorithm: Algorithm, config: RunConfig, mapping: PolicyMapping, folder: Path) -> Victim:
    """Save the current policies, which env runners have, as a victim in a folder, and read it back.

    Raises:
        ValueError: a module that cannot be exported, or one whose outputs differ from the artefact's.
    """
    modules = {module: algorithm.env_runner.module[module].unwrapped() for module in mapping.modules}
    Victim(
        module_of=dict(mapping.module_of),
        modules={name: playing_network(module) for name, module in modules.items()},
        critics={name: c for name, c in _critics(algorithm).items() if name in modules},
        observation_spaces={agent: split(space)[0] for agent, space in mapping.observation_spaces.items()},
        action_spaces=dict(mapping.action_spaces),
        filters=_filters(algorithm, mapping),
        normalize_actions=algorithm.config.normalize_actions,
        clip_actions=algorithm.config.clip_actions,
        env_name=config.env.name,
        env_kwargs=config.env.kwargs,
    ).save(folder)
    try:
        victim = Victim.load(folder)
        for name, module in modules.items():
            _compare(name, module, victim, mapping)
    except ValueError:
        shutil.rmtree(folder)
        raise
    return victim


def _critics(algorithm: Algorithm) -> dict[str, nn.Module]:
    """The critics of the agents' own observations, by module; env runners have none."""
    (found, *_) = (result.get() for result in algorithm.learner_group.foreach_learner(_critics_of))
    return dict(found)


def _critics_of(learner: TorchLearner, **_: Any) -> dict[str, nn.Module]:
    modules = {name: learner.module[name].unwrapped() for name in learner.module.keys()}  # noqa: SIM118
    layers = {name: critic_network(module) for name, module in modules.items()}
    return {name: deepcopy(critic).cpu() for name, critic in layers.items() if critic is not None}


def _filters(algorithm: Algorithm, mapping: PolicyMapping) -> dict[str, ObservationFilter | None]:
    normalizer = algorithm.env_runner.normalizer
    if normalizer is None:
        return {}
    # One for each agent: safetensors refuses tensors that share memory.
    return {
        agent: normalizer.victims_filter(module, split(mapping.observation_spaces[agent])[0].shape)
        for agent, module in mapping.module_of.items()
    }


@torch.enable_grad()
def _compare(name: str, module: Any, victim: Victim, mapping: PolicyMapping) -> None:
    """Raise `ValueError` unless the artefact's outputs are the module's, bit for bit.

    With gradients both go through PyTorch; without, plain MLPs have a kernel, which differs by rounding.
    """
    agent = mapping.modules[name]
    generator = torch.Generator().manual_seed(0)
    box, mask_space = split(mapping.observation_spaces[agent])
    observations = torch.randn(_ROWS, *box.shape, generator=generator)
    if box.dtype.kind != "f":
        observations = observations.abs().floor()
    mask = None
    if mask_space is not None:
        mask = torch.rand(_ROWS, *mask_space.shape, generator=generator) < 0.5
        mask[:, 0] = True
    live = live_module(module)
    state = victim.memory(_ROWS).recall({agent: torch.arange(_ROWS)})
    if state is None:
        expected = live(observations, mask)
    else:
        expected, _ = live(observations, initial_state(live, _ROWS))
    inputs, tokens = observations.flatten(1), None
    if isinstance(victim.modules[name], TokenNetwork):
        inputs, tokens = victim.inputs(agent, observations), inputs.long()
    got = victim.policy(agent, action_mask=mask, state=state, tokens=tokens)(inputs)
    if not torch.equal(expected, got):
        worst = float((expected - got).abs().max())
        raise ValueError(
            f"the exported policy of module {name!r} differs from the trained one by {worst:.3g}; "
            "it was not kept; please report this"
        )


def start_from(algorithm: Algorithm, initial: Victim) -> None:
    """Put the networks of a victim in place of the random ones, and send them to the env runners.

    Modules that the victim does not have stay as they are, and critics where it has none.

    Raises:
        ValueError: no module in common, networks of other shapes, or policies behind an observation filter,
            which a new run has yet to learn.
    """
    if filtered := [agent for agent, seen in initial.filters.items() if seen is not None]:
        raise ValueError(
            f"expected initial policies without observation filters, got one of {filtered[0]!r}; train it "
            "with observation_filter none"
        )
    started = algorithm.learner_group.foreach_learner(partial(_start, initial=initial))
    if not any(result.get() for result in started):
        raise ValueError(
            f"expected initial policies for a module of the run, got {', '.join(initial.modules)} only; "
            "use a run of the same environment"
        )
    algorithm.env_runner_group.sync_weights(
        from_worker_or_learner_group=algorithm.learner_group, inference_only=True
    )


def _start(learner: TorchLearner, *, initial: Victim, **_: Any) -> list[str]:
    known = [name for name in learner.module.keys() if name in initial.modules]  # noqa: SIM118
    for name in known:
        module = learner.module[name].unwrapped()
        _load(f"policy of {name!r}", playing_network(module), initial.modules[name])
        critic = critic_network(module)
        if critic is not None and name in initial.critics:
            _load(f"critic of {name!r}", critic, initial.critics[name])
    return known


def _load(what: str, network: nn.Module, initial: nn.Module) -> None:
    """Copy the parameters of one network into another with the same layers; names of layers do not count."""
    own, given = list(network.parameters()), list(initial.parameters())
    shapes = [[tuple(p.shape) for p in parameters] for parameters in (own, given)]
    if shapes[0] != shapes[1]:
        raise ValueError(f"expected an initial {what} of shapes {shapes[0]}, got {shapes[1]}; use its model")
    for parameter, value in zip(own, given, strict=True):
        parameter.data.copy_(value)
