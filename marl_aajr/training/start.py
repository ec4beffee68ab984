"""Begin a run with networks that have learned something before."""

from __future__ import annotations

from functools import partial
from typing import Any

from ray.rllib.algorithms.algorithm import Algorithm
from ray.rllib.core.learner.torch.torch_learner import TorchLearner
from torch import nn

from marl_aajr.rllib.victims import critic_network, playing_network
from marl_aajr.victims import Victim


def start_from(algorithm: Algorithm, initial: Victim) -> None:
    """Put the networks of a victim in place of the random ones, and send them to the env runners.

    Args:
        algorithm: a new one. Its modules that the victim does not have stay as they are.
        initial: policies by module, and critics where it has them.

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
