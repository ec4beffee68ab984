"""The phases of an ATLA run in RLlib: the modules of both sides, and which of them an iteration trains.

RLlib trains every module that has rows in a batch. Before each iteration the run tells the learners which
modules to train, and the copies of the environment how far observations may be perturbed.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import gymnasium as gym
import torch
from ray.rllib.algorithms.algorithm import Algorithm
from torch import Tensor

from marl_aajr.core.channels import held
from marl_aajr.core.distributions import from_space
from marl_aajr.core.environment_values import split
from marl_aajr.core.policy import ModulePolicy, Policy
from marl_aajr.core.threat import PerturbationSet
from marl_aajr.rllib.internals.learners import OpenTorchLearner
from marl_aajr.rllib.playing_networks import playing_network
from marl_aajr.rllib.sampling.env_runners import FastEnvRunner
from marl_aajr.rollout.batched_env import BatchedEnvWrapper
from marl_aajr.rollout.perturbed import Perturb, PerturbedBatch, adversary_of, attacked_agents
from marl_aajr.training.atla import ATLA
from marl_aajr.training.policy_mapping import PolicyMapping


def _adversaries_of(team: PolicyMapping, atla: ATLA) -> PolicyMapping:
    """The adversaries of the agents; those of one module share one."""
    boxes = {agent: split(space)[0] for agent, space in team.observation_spaces.items()}
    attacked = attacked_agents(boxes, atla.agents)
    for agent in attacked:
        nothing = torch.zeros(1, gym.spaces.flatdim(boxes[agent]))
        try:
            own = held(atla.set_of(1.0), team.channels.get(agent, {}), nothing.shape[-1])
            assert own is not None  # those agents are left whom it reaches
            own.squash(nothing, nothing)
        except ValueError as error:
            raise ValueError(f"method {atla.name}, agent {agent!r}: {error}") from None
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


@dataclass(frozen=True)
class ATLAPhases:
    """The two sides of an ATLA run, agents and their adversaries, and which of them each iteration trains."""

    settings: ATLA
    team: PolicyMapping
    adversaries: PolicyMapping

    def phase(self, *, iteration: int, env_steps: int) -> ATLAPhase:
        """The phase of the iteration that follows so many iterations and environment steps."""
        trains_adversaries = self.settings.trains_adversaries(iteration=iteration, env_steps=env_steps)
        return ATLAPhase(self, trains_adversaries, self.settings.perturbations(env_steps))

    def both_sides(self) -> PolicyMapping:
        """The agents and their adversaries."""
        names = ("observation_spaces", "action_spaces", "teams", "module_of")
        joined = {name: {**getattr(self.team, name), **getattr(self.adversaries, name)} for name in names}
        return PolicyMapping(**joined, central=self.team.central)


@dataclass(frozen=True)
class ATLAPhase:
    """The side that one iteration trains, and the perturbations Δ that it trains it under, if any."""

    run: ATLAPhases
    trains_adversaries: bool
    perturbations: PerturbationSet | None

    @property
    def trained(self) -> PolicyMapping:
        """The side that it trains."""
        return self.run.adversaries if self.trains_adversaries else self.run.team


def phases_of(atla: ATLA | None, team: PolicyMapping) -> ATLAPhases | None:
    """The phases of a run with these settings of ATLA; None where it has none.

    Raises:
        ValueError: unknown agents, observations that cannot be perturbed, or a mask, scale or bounds that do
            not fit them; agents that read words.
    """
    if atla is None:
        return None
    if readers := [agent for agent in team.module_of if team.words(agent) is not None]:
        raise ValueError(
            f"expected agents that see numbers for method {ATLA.name}, got {readers[0]!r}, who reads words; "
            "use rollouts under attack with norm words, or another method"
        )
    return ATLAPhases(atla, team, _adversaries_of(team, atla))


class PhaseOfRecreated:
    """RLlib's `on_env_runners_recreated`: the phase of the iteration, for runners that Ray has restarted."""

    phase: ATLAPhase | None = None

    def __call__(self, *, algorithm: Algorithm, env_runner_indices: list[int], **_: Any) -> None:
        if self.phase is not None:
            algorithm.env_runner_group.foreach_env_runner(
                partial(_perturb, phase=self.phase),
                local_env_runner=False,
                remote_worker_ids=env_runner_indices,
            )


def begin_phase(algorithm: Algorithm, phase: ATLAPhase) -> None:
    """Tell all processes what the next iteration does, and those that are restarted within it."""
    modules = frozenset(phase.trained.modules)
    for callback in algorithm.config.callbacks_on_env_runners_recreated:
        if isinstance(callback, PhaseOfRecreated):
            callback.phase = phase
    algorithm.learner_group.foreach_learner(partial(_train_only, modules=modules))
    algorithm.env_runner_group.foreach_env_runner(
        partial(_perturb, phase=phase),
        local_env_runner=algorithm.config.num_env_runners == 0,
    )


def _train_only(learner: OpenTorchLearner, *, modules: frozenset[str]) -> None:
    learner.trained = modules


def _perturb(runner: FastEnvRunner, *, phase: ATLAPhase) -> None:
    assert runner.env is not None
    batch = runner.env.batch
    while not isinstance(batch, PerturbedBatch):
        assert isinstance(batch, BatchedEnvWrapper)
        batch = batch.env
    actions, team = phase.run.settings.actions, phase.run.team
    batch.perturb = None
    if phase.perturbations is not None:
        read = batch.attacked if actions.reads_policy else ()
        policies = {agent: _policy(runner, agent, team, batch) for agent in read}
        batch.perturb = Perturb(actions, phase.perturbations, policies, batch.channels)


def _policy(runner: FastEnvRunner, agent: str, team: PolicyMapping, batch: PerturbedBatch) -> Policy:
    """An agent's present policy, from the environment's observations."""
    name, space = team.module_of[agent], batch.observation_spaces[agent]
    layers = playing_network(runner.module[name].unwrapped())
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
