"""Puts one copy of our batch into a real mpe2 environment, so that both go on from the same state."""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np
import torch
from marl_aajr.envs.particle_batch import ParticleBatch

Agents = dict[str, Any]

CONSTANTS = {
    "mass": "agent.initial_mass",
    "sensitivity": "agent.accel",
    "size": "agent.size",
    "damping": "damping",
    "time_step": "dt",
    "contact_force": "contact_force",
}
"""Our name -> mpe2's, of each agent or of the world."""


def make_mpe2(name: str, options: dict[str, Any]) -> Any:
    """The real environment; its physical constants are set in the objects that have them."""
    own = {key: value for key, value in options.items() if key not in CONSTANTS}
    env = importlib.import_module(f"mpe2.{name}").parallel_env(**own)
    world = env.unwrapped.world
    for key, value in options.items():
        if (constant := CONSTANTS.get(key)) is not None:
            for each in world.agents if constant.startswith("agent.") else [world]:
                setattr(each, constant.removeprefix("agent."), value)
    return env


def mirror(batch: ParticleBatch, copy: int, env: Any) -> None:
    """Resets `env` and overwrites its world with that of a copy."""
    env.reset(seed=0)
    ours, world = batch.world, env.unwrapped.world
    bodies = list(world.agents) + list(world.landmarks)
    places = ours.position[..., copy].T.double().numpy()
    for body, place in zip(bodies, places[: len(bodies)], strict=True):
        body.state.p_pos = place.copy()
        body.state.p_vel = np.zeros(2)
    for i, agent in enumerate(world.agents):
        agent.state.p_vel = ours.velocity[:, i, copy].double().numpy().copy()
        agent.state.c = np.zeros(world.dim_c)
    for position, i in enumerate(ours.layout.speakers):
        world.agents[i].state.c = ours.message[:, position, copy].double().numpy().copy()
    goals = [marked(world, place) for place in places[len(bodies) :]]
    _GOALS.get(batch.scenario.name, _no_goals)(world, goals, {n: x[..., copy] for n, x in ours.extra.items()})


def marked(world: Any, place: np.ndarray[Any, Any]) -> int:
    """Which landmark is at a place."""
    (found,) = [i for i, mark in enumerate(world.landmarks) if (mark.state.p_pos == place).all()]
    return found


def mpe2_observations(env: Any) -> dict[str, np.ndarray[Any, Any]]:
    """What the agents see, before the cast to float32."""
    raw = env.unwrapped
    return {agent.name: raw.scenario.observation(agent, raw.world) for agent in raw.world.agents}


def _no_goals(world: Any, goals: list[int], extra: dict[str, torch.Tensor]) -> None:
    assert not goals


def _one_goal(world: Any, goals: list[int], extra: dict[str, torch.Tensor]) -> None:
    for agent in world.agents:
        agent.goal_a = world.landmarks[goals[0]]


def _push(world: Any, goals: list[int], extra: dict[str, torch.Tensor]) -> None:
    _one_goal(world, goals, extra)
    world.agents[1].color = np.full(3, 0.25)
    world.agents[1].color[goals[0] + 1] += 0.5


def _listener(world: Any, goals: list[int], extra: dict[str, torch.Tensor]) -> None:
    world.agents[0].goal_b = world.landmarks[goals[0]]


def _reference(world: Any, goals: list[int], extra: dict[str, torch.Tensor]) -> None:
    for agent, goal in zip(world.agents, goals, strict=True):
        agent.goal_b = world.landmarks[goal]


def _crypto(world: Any, goals: list[int], extra: dict[str, torch.Tensor]) -> None:
    for agent in world.agents:
        agent.goal_a = world.landmarks[int(extra["bit"].argmax())]
    world.agents[2].key = world.landmarks[int(extra["key"].argmax())].color


_GOALS = {
    "simple_adversary_v3": _one_goal,
    "simple_push_v3": _push,
    "simple_speaker_listener_v4": _listener,
    "simple_reference_v3": _reference,
    "simple_crypto_v3": _crypto,
}
