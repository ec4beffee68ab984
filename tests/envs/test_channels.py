"""What environments say that observations consist of, against what moves in them when mpe2's world does."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from typing import Any

import numpy as np
import pytest
from pettingzoo.utils.wrappers import BaseParallelWrapper

from marl_aajr.core.channels import Channel
from marl_aajr.rollout.environments import make_batch, resolve
from tests.envs.mirror import make_mpe2
from tests.envs.test_against_mpe2 import VARIANTS, build

Lever = Callable[[Any, Any], None]
"""Changes a world of mpe2 as an agent of it would notice."""

FAR = np.array([3.0, 4.0])


def _others(world: Any, agent: Any) -> list[Any]:
    return [other for other in world.agents if other is not agent]


def _move(bodies: Any) -> Lever:
    def lever(world: Any, agent: Any) -> None:
        for i, body in enumerate(bodies(world, agent)):
            body.state.p_pos = body.state.p_pos + 0.01 * (i + 1)

    return lever


def _speed_up(bodies: Any) -> Lever:
    def lever(world: Any, agent: Any) -> None:
        for body in bodies(world, agent):
            body.state.p_vel = body.state.p_vel + 0.5

    return lever


def _say(world: Any, agent: Any) -> None:
    for other in world.agents:
        other.state.c = other.state.c + 1.0


def _other_goal(world: Any, agent: Any) -> None:
    for one in world.agents:
        for name in ("_goal_a", "_goal_b"):  # the names without underscores refuse to say that there is none
            if (goal := getattr(one, name, None)) in world.landmarks:
                setattr(one, name, world.landmarks[world.landmarks.index(goal) - 1])


def _other_key(world: Any, agent: Any) -> None:
    world.agents[2].key = np.roll(world.agents[2].key, 1)


def _recolor(bodies: Any) -> Lever:
    def lever(world: Any, agent: Any) -> None:
        for body in bodies(world, agent):
            body.color = body.color + 0.125

    return lever


def _into_forests(world: Any, agent: Any) -> None:
    for one in world.agents:
        one.state.p_pos = one.state.p_pos * 0.01
    for forest in world.forests:
        forest.state.p_pos = np.zeros(2)


def _itself(world: Any, agent: Any) -> list[Any]:
    return [agent]


def _landmarks(world: Any, agent: Any) -> list[Any]:
    return list(world.landmarks)


PLACES = {"position", "landmarks", "others", "goal"}
LEVERS: dict[str, tuple[Lever, set[str]]] = {
    "own velocity": (_speed_up(_itself), {"velocity"}),
    "own place": (_move(_itself), PLACES),
    "landmarks": (_move(_landmarks), {"landmarks", "goal"}),
    "others": (_move(_others), {"others"}),
    "others' velocity": (_speed_up(_others), {"other_velocities"}),
    "messages": (_say, {"messages"}),
    "goal": (_other_goal, {"goal", "bit"}),
    "key": (_other_key, {"key"}),
    "own color": (_recolor(_itself), {"color"}),
    "landmarks' colors": (_recolor(_landmarks), {"landmark_colors", "goal", "bit"}),
    "forests": (_into_forests, {"forests", *PLACES}),
}
"""What is changed in the world, and the channels that may move then; those of numbers that are no places."""


@pytest.mark.parametrize(("name", "options"), VARIANTS, ids=str)
def test_the_features_that_move_are_those_of_the_channel(name: str, options: dict[str, Any]) -> None:
    env = make_mpe2(name, options)
    env.reset(seed=1)
    raw, channels = env.unwrapped, build(name, options, copies=1).channels
    for i, forest in enumerate(getattr(raw.world, "forests", ())):  # where they hide nobody
        forest.state.p_pos = FAR + 2 * i
    for number, agent in enumerate(raw.world.agents):
        own = channels[agent.name]
        every = [feature for channel in own.values() for feature in channel.features]
        assert sorted(every) == list(range(env.observation_space(agent.name).shape[0]))
        moved: set[str] = set()
        for what, (lever, expected) in LEVERS.items():
            if what == "key" and name != "simple_crypto_v3":
                continue
            if what == "forests" and not own.get("forests"):
                continue
            before = raw.scenario.observation(agent, raw.world)
            world = deepcopy(raw.world)
            lever(world, world.agents[number])
            change = raw.scenario.observation(world.agents[number], world) != before
            there = {channel for channel, at in own.items() if change[list(at.features)].any()}
            assert there <= expected, what
            moved |= there
        assert moved == own.keys()


@pytest.mark.parametrize("name", ["simple_reference_v3", "simple_world_comm_v3", "simple_spread_v3"])
def test_mpe2_itself_has_the_channels_of_our_versions(name: str) -> None:
    kwargs = {"max_cycles": 7} | ({"N": 4, "num_agent_neighbors": 2} if "spread" in name else {})
    known = make_batch(resolve(name, kwargs), 1).channels
    assert known == make_batch(resolve(f"marl_aajr.envs.{name}", kwargs), 1).channels
    assert known["agent_0"]["landmarks"].features


def test_words_are_choices_where_actions_are_discrete() -> None:
    for continuous, choices in ((False, 10), (True, 0)):
        batch = build("simple_reference_v3", {"continuous_actions": continuous}, copies=1)
        assert batch.channels["agent_0"]["messages"] == Channel(tuple(range(11, 21)), choices)
    assert build("simple_spread_v3", {}, copies=1).channels["agent_0"]["messages"].choices == 0


class Twice(BaseParallelWrapper[str, Any, Any]):
    """Shows every observation twice."""

    def observation_space(self, agent: str) -> Any:
        space = self.env.observation_space(agent)
        return type(space)(-np.inf, np.inf, (2 * space.shape[0],), np.float32)

    def reset(self, seed: int | None = None, options: Any = None) -> Any:
        obs, infos = self.env.reset(seed=seed, options=options)
        return {agent: np.concatenate([each, each]) for agent, each in obs.items()}, infos


def twice(name: str) -> Any:
    return Twice(make_mpe2(name, {}))


def test_a_wrapper_of_another_width_has_only_the_channels_that_are_said() -> None:
    where = f"{__name__}:twice"
    silent = make_batch(resolve(where, {"name": "simple_v3"}), 1)
    assert silent.channels == {"agent_0": {}}
    said = resolve(where, {"name": "simple_v3", "env.channels": {"velocity": ["0:2", "4:6"]}})
    assert make_batch(said, 1).channels["agent_0"]["velocity"].features == (0, 1, 4, 5)
    ours = make_batch(resolve("congestion_v0", {"env.channels": {"all": ":"}}), 1)
    assert ours.channels["agent_3"] == {"all": Channel(tuple(range(6)))}
