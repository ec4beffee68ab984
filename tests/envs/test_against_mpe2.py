"""Step for step against mpe2: from the same states, the same actions lead to the same everything."""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np
import pytest
import torch
from marl_aajr.envs import NAMES
from marl_aajr.envs.particle_batch import ParticleBatch

from marl_aajr.rollout.batched_env import BatchedStep
from tests.envs.mirror import make_mpe2, mirror, mpe2_observations

PARTICLES = [name for name in NAMES if name.startswith("simple")]
COPIES = 4

VARIANTS: list[tuple[str, dict[str, Any]]] = [
    *[(name, {}) for name in PARTICLES],
    ("simple_adversary_v3", {"N": 4}),
    ("simple_adversary_v3", {"N": 3, "num_agent_neighbors": 2, "num_landmark_neighbors": 5}),
    ("simple_reference_v3", {"local_ratio": 0.2}),
    ("simple_spread_v3", {"N": 1}),
    ("simple_spread_v3", {"N": 5, "local_ratio": 0.9, "max_cycles": 12}),
    ("simple_spread_v3", {"curriculum": True}),
    ("simple_spread_v3", {"N": 4, "num_agent_neighbors": 2, "num_landmark_neighbors": 6}),
    ("simple_spread_v3", {"N": 1, "max_cycles": 1, "terminate_on_success": True}),
    ("simple_spread_v3", {"N": 2, "num_agent_neighbors": 3, "terminate_on_success": True}),
    ("simple_tag_v3", {"num_good": 3, "num_adversaries": 2, "num_obstacles": 4}),
    ("simple_tag_v3", {"num_obstacles": 0, "curriculum": True}),
    ("simple_tag_v3", {"num_good": 2, "num_agent_neighbors": 3, "num_landmark_neighbors": 1}),
    ("simple_tag_v3", {"num_good": 2, "terminate_on_success": True}),
    ("simple_world_comm_v3", {"num_good": 1, "num_adversaries": 1, "num_obstacles": 0, "num_forests": 0}),
    ("simple_world_comm_v3", {"num_good": 3, "num_adversaries": 2, "num_forests": 4, "num_food": 1}),
]


PHYSICS: dict[str, Any] = {
    "mass": 1.7,
    "damping": 0.4,
    "sensitivity": 3.5,
    "size": 0.11,
    "time_step": 0.13,
    "contact_force": 60.0,
}
"""Other constants than mpe2's, all of which are set in its own objects."""

VARIANTS += [(name, PHYSICS) for name in PARTICLES]
VARIANTS += [
    (name, {**options, "continuous_actions": True})
    for name, options in VARIANTS
    if not options or "curriculum" in options
]
"""What is said and pushed for does not depend on what else is there."""


def build(name: str, options: dict[str, Any], *, copies: int = COPIES) -> ParticleBatch:
    module = importlib.import_module(f"marl_aajr.envs.{name}")
    batch = module.batched_env(copies, dtype=torch.float64, **options)
    assert isinstance(batch, ParticleBatch)
    return batch


def crowd(batch: ParticleBatch) -> None:
    """Moves everything together or apart in some copies: contact, success, and the edge."""
    state = batch.get_state()
    places = batch.world.position.shape[1] * 2
    state["rows"][:places] *= torch.tensor([1.0, 0.2, 0.03, 1.3])
    batch.set_state(state)


def sample(batch: ParticleBatch) -> dict[str, torch.Tensor]:
    """Random actions; now and then one that asks for nothing and says nothing."""
    actions = {
        agent: torch.as_tensor(np.stack([space.sample() for _ in range(batch.num_envs)]))
        for agent, space in batch.action_spaces.items()
    }
    for e, action in enumerate(actions.values()):
        action[e % batch.num_envs] *= int(action.flatten()[-1] * 7) % 2
    return actions


def same(mine: Any, theirs: Any, what: str = "") -> None:
    np.testing.assert_allclose(np.asarray(mine), np.asarray(theirs), rtol=1e-9, atol=1e-9, err_msg=what)


def check_obs(ours: dict[str, torch.Tensor], copy: int, env: Any) -> None:
    for agent, theirs in mpe2_observations(env).items():
        same(ours[agent][copy], theirs, agent)


@pytest.mark.parametrize(("name", "options"), VARIANTS, ids=[f"{n}-{o}" for n, o in VARIANTS])
def test_same_as_mpe2(name: str, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    options = {"continuous_actions": False, **options, "benchmark_data": True}
    batch = build(name, options)
    copies = [make_mpe2(name, options) for _ in range(COPIES)]
    stages = batch.scenario.stages if options.get("curriculum") else 1
    scenario = type(copies[0].unwrapped.scenario)
    for i, space in enumerate(batch.action_spaces.values()):
        space.seed(i)
    happened: set[str] = set()
    for stage in range(stages):
        batch.set_curriculum_stage(stage)
        monkeypatch.setattr(scenario, "curriculum_stage", stage, raising=False)
        batch.reset(seed=7 + stage)
        crowd(batch)
        for e, env in enumerate(copies):
            mirror(batch, e, env)
        # Half an episode more than one: automatic resets are part of it.
        for _ in range(batch.max_cycles * 3 // 2):
            play_one_step(batch, copies, happened)
    assert happened >= expected_events(name, options)


def test_the_curriculum_of_mpe2_does_not_move() -> None:
    """Why the test above sets its stage by force: its base class swallows every assignment."""
    env = make_mpe2("simple_tag_v3", {"curriculum": True})
    env.unwrapped.set_curriculum_stage(2)
    assert env.unwrapped.curriculum_stage == 0
    batch = build("simple_tag_v3", {"curriculum": True})
    batch.set_curriculum_stage(2)
    assert batch.curriculum_stage == 2
    batch.advance_curriculum()
    assert batch.curriculum_stage == 2


def expected_events(name: str, options: dict[str, Any]) -> set[str]:
    """What random episodes must have contained, or comparing them proved little."""
    events = {"truncated"}
    if name in ("simple_spread_v3", "simple_push_v3", "simple_tag_v3") and options.get("N") != 1:
        events |= {"agents touch"}
    if name in ("simple_tag_v3", "simple_world_comm_v3") and options.get("num_adversaries") != 1:
        events |= {"agents touch", "at the edge", "beyond the edge"}
        events |= {"obstacle touched"} if options.get("num_obstacles", 1) else set()
    if name == "simple_world_comm_v3" and options.get("num_forests", 2):
        events |= {"in a forest", "in the open"}
    if options.get("terminate_on_success"):
        # At the time limit an episode is cut off, whatever else it was.
        events |= {"terminated"} if options.get("max_cycles") != 1 else {"landmark reached"}
    if name == "simple_crypto_v3" and options["continuous_actions"]:
        events |= {"silence"}
    return events


def events(batch: ParticleBatch, step: BatchedStep) -> set[str]:
    world, agents = batch.world, len(batch.possible_agents)
    everyone, reach = slice(0, agents), world.position[:, :agents].abs()
    bodies = enumerate(world.layout.bodies)
    obstacles = [i for i, body in bodies if i >= agents and body.collides]
    forests = world.extra.get("in_forest", torch.empty(0))
    checks = {
        "agents touch": world.touching(everyone, everyone),
        "obstacle touched": world.touching(everyone, slice(agents, agents + len(obstacles))),
        "at the edge": (reach > 0.9) & (reach < 1),
        "beyond the edge": reach > 1,
        "in a forest": forests == 1,
        "in the open": forests == -1,
        "silence": (world.message == 0).all(0),
        "landmark reached": torch.stack([seen[:, 4:6].norm(dim=1) < 0.1 for seen in step.final_obs.values()]),
        "terminated": torch.stack(list(step.terminations.values())),
        "truncated": torch.stack(list(step.truncations.values())),
    }
    return {name for name, found in checks.items() if found.any()}


def play_one_step(batch: ParticleBatch, copies: list[Any], happened: set[str]) -> None:
    actions = sample(batch)
    step = batch.step(actions)
    happened |= events(batch, step)
    for e, env in enumerate(copies):
        chosen: dict[str, Any] = {agent: value[e].numpy() for agent, value in actions.items()}
        if not batch.scenario.continuous_actions:
            chosen = {agent: int(value) for agent, value in chosen.items()}
        obs, rewards, terminations, truncations, infos = env.step(chosen)
        check_obs(step.final_obs, e, env)
        for agent in batch.possible_agents:
            # mpe2 hands observations out as float32, ours are rounded as it rounds.
            np.testing.assert_allclose(step.final_obs[agent][e].float(), obs[agent], rtol=3e-7, atol=1e-9)
            same(step.rewards[agent][e], rewards[agent], agent)
            assert bool(step.terminations[agent][e]) == terminations[agent]
            assert bool(step.truncations[agent][e]) == truncations[agent]
            check_benchmark(step.infos[e].get(agent, {}), infos[agent])
        if step.episode_over[e]:
            mirror(batch, e, env)
            check_obs(step.obs, e, env)
            state = env.unwrapped.state()
            np.testing.assert_allclose(batch.state()[e].float(), state, rtol=3e-7, atol=1e-9)


def check_benchmark(mine: dict[str, Any], theirs: dict[str, Any]) -> None:
    wanted = theirs["benchmark_data"]
    if isinstance(wanted, dict):  # mpe2's word for nothing
        assert mine == {}
        return
    wanted, given = wanted if isinstance(wanted, tuple) else (wanted,), mine["benchmark_data"]
    given = given if isinstance(given, tuple) else (given,)
    for a, b in zip(given, wanted, strict=True):
        same(a, b)
