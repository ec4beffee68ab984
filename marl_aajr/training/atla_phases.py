"""The two sides of an ATLA run in RLlib: their modules, and whose turn it is.

RLlib trains every module that has rows in a batch. Before each iteration the run tells the learners which
modules to train, and the copies of the environment how far observations may be perturbed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import gymnasium as gym
import torch
from ray.rllib.algorithms.algorithm import Algorithm
from torch import Tensor, nn

from marl_aajr.core.distributions import from_space
from marl_aajr.core.policy import ModulePolicy, Policy
from marl_aajr.core.threat import PerturbationSet
from marl_aajr.rllib.internals import OpenTorchLearner
from marl_aajr.rllib.networks import split
from marl_aajr.rllib.sampling.env_runners import FastEnvRunner
from marl_aajr.rllib.victims import playing_network
from marl_aajr.rollout.batched_env import BatchedEnvWrapper
from marl_aajr.rollout.perturbed import Perturb, PerturbedBatch, adversary_of, attacked_agents
from marl_aajr.training.atla import ATLA
from marl_aajr.training.config import RunConfig
from marl_aajr.training.modules import PolicyMapping


def adversaries_of(team: PolicyMapping, atla: ATLA) -> PolicyMapping:
    """The adversaries of the agents; those of one module share one.

    Args:
        team: The agents, of whatever teams.
        atla: Whom it attacks, and how.

    Raises:
        ValueError: Unknown agents, observations that cannot be perturbed, or a mask, scale or bounds that do
            not fit them.
    """
    boxes = {agent: split(space)[0] for agent, space in team.observation_spaces.items()}
    attacked = attacked_agents(boxes, atla.agents)
    for agent in attacked:
        _check_features(atla, agent, boxes[agent])
    return PolicyMapping(
        observation_spaces={adversary_of(agent): boxes[agent] for agent in attacked},
        action_spaces={
            adversary_of(agent): atla.actions.space(boxes[agent], team.action_spaces[agent])
            for agent in attacked
        },
        teams={adversary_of(agent): adversary_of(team.teams[agent]) for agent in attacked},
        module_of={adversary_of(agent): adversary_of(team.module_of[agent]) for agent in attacked},
        central=team.central,
    )


def _check_features(atla: ATLA, agent: str, box: gym.spaces.Box) -> None:
    nothing = torch.zeros(1, gym.spaces.flatdim(box))
    try:
        atla.set_of(1.0).squash(nothing, nothing)
    except ValueError as error:
        raise ValueError(f"method {atla.name}, agent {agent!r}: {error}") from None


@dataclass(frozen=True)
class Sides:
    """The two sides of an ATLA run, and their turns.

    Attributes:
        atla: The settings of the method.
        team: The agents.
        adversaries: Theirs.
    """

    atla: ATLA
    team: PolicyMapping
    adversaries: PolicyMapping

    def turn(self, *, iteration: int, env_steps: int) -> Turn:
        """What the iteration does that follows so many iterations and environment steps."""
        theirs = self.atla.trains_adversaries(iteration=iteration, env_steps=env_steps)
        return Turn(self, theirs, self.atla.perturbations(env_steps))

    def everybody(self) -> PolicyMapping:
        """Both sides."""

        def joined(name: str) -> Mapping[str, Any]:
            return {**getattr(self.team, name), **getattr(self.adversaries, name)}

        names = ("observation_spaces", "action_spaces", "teams", "module_of")
        return PolicyMapping(**{name: joined(name) for name in names}, central=self.team.central)


@dataclass(frozen=True)
class Turn:
    """What one iteration does.

    Attributes:
        sides: Whose turns there are.
        of_adversaries: Whether it trains the adversaries, or else the team.
        perturbations: Δ in it; None: agents see the truth.
    """

    sides: Sides
    of_adversaries: bool
    perturbations: PerturbationSet | None

    @property
    def trained(self) -> PolicyMapping:
        """The side that it trains."""
        return self.sides.adversaries if self.of_adversaries else self.sides.team


def sides_of(config: RunConfig, team: PolicyMapping) -> Sides | None:
    """The sides of a run; None where its method is not ATLA.

    Raises:
        ValueError: See `adversaries_of`.
    """
    atla = config.method.atla(env_steps=config.env_steps)
    return None if atla is None else Sides(atla, team, adversaries_of(team, atla))


class TellRecreated:
    """RLlib's `on_env_runners_recreated`: the turn of the iteration, for runners that Ray has restarted.

    Attributes:
        turn: what the iteration does; None: not told yet.
    """

    turn: Turn | None = None

    def __call__(self, *, algorithm: Algorithm, env_runner_indices: list[int], **_: Any) -> None:
        if self.turn is not None:
            algorithm.env_runner_group.foreach_env_runner(
                partial(_perturb, turn=self.turn),
                local_env_runner=False,
                remote_worker_ids=env_runner_indices,
            )


def take_turn(algorithm: Algorithm, turn: Turn) -> None:
    """Tell all processes what the next iteration does, and those that are restarted within it."""
    modules = frozenset(turn.trained.modules)
    for callback in algorithm.config.callbacks_on_env_runners_recreated:
        if isinstance(callback, TellRecreated):
            callback.turn = turn
    algorithm.learner_group.foreach_learner(partial(_train_only, modules=modules))
    algorithm.env_runner_group.foreach_env_runner(
        partial(_perturb, turn=turn),
        local_env_runner=algorithm.config.num_env_runners == 0,
    )


def _train_only(learner: OpenTorchLearner, *, modules: frozenset[str]) -> None:
    learner.trained = modules


def _perturb(runner: FastEnvRunner, *, turn: Turn) -> None:
    assert runner.env is not None
    batch = runner.env.batch
    while not isinstance(batch, PerturbedBatch):
        assert isinstance(batch, BatchedEnvWrapper)
        batch = batch.env
    atla = turn.sides.atla
    if turn.perturbations is None:
        batch.perturb = None
    elif not atla.actions.reads_policy:
        batch.perturb = Perturb(atla.actions, turn.perturbations)
    else:
        team = turn.sides.team
        networks = {name: playing_network(runner.module[name].unwrapped()) for name in team.modules}
        policies = {agent: _policy(runner, agent, networks, team, batch) for agent in batch.attacked}
        batch.perturb = Perturb(atla.actions, turn.perturbations, policies)


def _policy(
    runner: FastEnvRunner,
    agent: str,
    networks: Mapping[str, nn.Module],
    team: PolicyMapping,
    batch: PerturbedBatch,
) -> Policy:
    """An agent's present policy, from the environment's observations."""
    name, space = team.module_of[agent], batch.observation_spaces[agent]
    layers = networks[name]
    shape = tuple(space.shape or ())
    normalizer = runner.normalizer
    observe = None if normalizer is None else normalizer.victims_filter(name, shape)

    def outputs(obs: Tensor) -> Tensor:
        rows = obs.unflatten(-1, shape)
        inputs: Tensor = layers(rows if observe is None else observe(rows).float())
        legal = batch.env.action_mask[agent]
        return inputs if legal is None else inputs.masked_fill(~legal, torch.finfo(inputs.dtype).min)

    distribution = from_space(team.action_spaces[agent])
    plain = observe is None and len(shape) == 1 and batch.env.action_mask[agent] is None
    return ModulePolicy(layers if plain else outputs, distribution)
