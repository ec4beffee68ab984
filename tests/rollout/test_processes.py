"""Copies in several processes play what they play in one."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces

from marl_aajr.rollout.batched_env import BatchedEnv
from marl_aajr.rollout.centralized_critic import CentralBatch
from marl_aajr.rollout.env_checker import check_batched_env, random_actions
from marl_aajr.rollout.environments import EnvironmentSpec, resolve
from marl_aajr.rollout.game_process import GameProcess
from marl_aajr.rollout.pettingzoo_batch import PettingZooBatch
from tests.rollout.toy_games import Endings, Scripted

ROOT = Path(__file__).parents[2]
HERE = "tests.rollout.test_processes"
ENDINGS: Endings = {"a": (2, "terminated"), "b": (5, "truncated"), "c": (7, "terminated")}


class Dicts(Scripted):
    def __init__(self) -> None:
        super().__init__(dict.fromkeys("ab", (4, "truncated")), agents="ab")

    def observation_space(self, agent: str) -> spaces.Space[Any]:
        return spaces.Dict({"at": super().observation_space(agent), "even": spaces.Discrete(2)})

    def _obs(self, agent: str) -> Any:
        return {"at": super()._obs(agent), "even": self.t % 2}


class Unseeded(Scripted):
    """Draws from NumPy's global generator, as environments should not."""

    def __init__(self) -> None:
        super().__init__(dict.fromkeys("ab", (4, "truncated")), agents="ab")

    def _obs(self, agent: str) -> Any:
        return np.random.rand(2).astype(np.float32)  # noqa: NPY002


PLAYED = {
    "particles": resolve("mpe2.simple_spread_v3", {"max_cycles": 4}),
    "box actions": resolve("mpe2.simple_speaker_listener_v4", {"continuous_actions": True, "max_cycles": 3}),
    "masks in turns": resolve("pettingzoo.classic.tictactoe_v3"),
    "masks in infos": resolve("tests.own_ways:OwnWays", {"masks": True}),
    "vectors": resolve("tests.rollout.test_contract:many_actions"),
    "who come and go": resolve(
        "tests.rollout.toy_games:Scripted", {"endings": ENDINGS, "arrivals": {"c": 3}, "agents": "abc"}
    ),
    "of Gymnasium": resolve("Pendulum-v1", {"max_episode_steps": 5}),
    "flat dicts": resolve(f"{HERE}:Dicts"),
    "global generator": resolve(f"{HERE}:Unseeded"),
}


def flat(spec: EnvironmentSpec) -> bool:
    return spec.name.endswith("Dicts")


def played(batch: BatchedEnv, *, steps: int, first: int = 0) -> Iterator[torch.Tensor]:
    """Everything that is told in some steps with random actions, in a fixed order."""
    for t in range(first, first + steps):
        step = batch.step(random_actions(batch, seed=t))
        ended = {a: step.terminations[a] | step.truncations[a] for a in batch.possible_agents}
        yield step.episode_over
        for agent in batch.possible_agents:
            yield from (
                step.obs[agent],
                step.rewards[agent],
                step.terminations[agent],
                step.truncations[agent],
            )
            yield from (step.final_obs[agent][ended[agent]], batch.active[agent])
            if (mask := batch.action_mask[agent]) is not None:
                yield mask


def same(first: Iterator[torch.Tensor], second: Iterator[torch.Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def beginning(batch: BatchedEnv, *, steps: int = 0) -> Iterator[torch.Tensor]:
    yield from batch.reset(seed=3).values()
    yield from played(batch, steps=steps)


def others(batch: PettingZooBatch) -> list[GameProcess]:
    return batch._shares._others


@pytest.mark.parametrize("name", sorted(PLAYED.keys() - {"global generator"}))
@pytest.mark.parametrize("processes", [2, 3])
def test_the_number_of_processes_changes_nothing(name: str, processes: int) -> None:
    spec = PLAYED[name]
    alone = PettingZooBatch(spec, 5, flat=flat(spec))
    with closing(PettingZooBatch(spec, 5, flat=flat(spec), processes=processes)) as together:
        assert len(others(together)) == processes - 1
        assert same(beginning(alone, steps=20), beginning(together, steps=20))


@pytest.mark.parametrize("name", ["particles", "masks in turns", "who come and go"])
def test_the_contract_holds_and_states_are_one_processs_as_well(name: str) -> None:
    spec = PLAYED[name]
    check_batched_env(lambda num_envs: PettingZooBatch(spec, num_envs, processes=2), steps=16)
    alone = PettingZooBatch(spec, 4)
    with closing(PettingZooBatch(spec, 4, processes=2)) as together:
        list(beginning(together, steps=6))
        alone.set_state(together.get_state())
        assert same(played(alone, steps=9, first=6), played(together, steps=9, first=6))
        together.set_state(alone.get_state())
        assert same(played(alone, steps=9, first=15), played(together, steps=9, first=15))


def test_the_global_generators_of_other_processes_follow_from_the_seed() -> None:
    with closing(PettingZooBatch(PLAYED["global generator"], 4, processes=2)) as batch:
        first, second = ([seen[2:] for seen in beginning(batch, steps=6)] for _ in range(2))
        assert same(iter(first), iter(second))
        assert not torch.equal(first[0][0], first[0][1])


def test_critics_and_cameras_reach_all_copies() -> None:
    spec = resolve("mpe2.simple_tag_v3", {"max_cycles": 3, "render_mode": "rgb_array"})
    alone, together = PettingZooBatch(spec, 3), PettingZooBatch(spec, 3, processes=3)
    for batch in (alone, together):
        list(beginning(batch, steps=2))
    with closing(together):
        assert torch.equal(alone.state(), together.state())
        assert all(np.array_equal(alone.draw(e), together.draw(e)) for e in range(3))
        central = [CentralBatch(batch, "state") for batch in (alone, together)]
        assert same(*(beginning(batch, steps=4) for batch in central))
        assert torch.equal(*(batch.final_state() for batch in central))


def test_other_processes_load_no_torch_and_have_one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    # A process that was used before may have played an environment that loads it.
    monkeypatch.setattr("marl_aajr.rollout.game_process._idle", {})
    with closing(PettingZooBatch(PLAYED["particles"], 2, processes=2)) as batch:
        (process,) = others(batch)
        assert b"libtorch" not in Path(f"/proc/{process.pid}/maps").read_bytes()
        assert len(os.listdir(f"/proc/{process.pid}/task")) == 1
