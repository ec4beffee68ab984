"""Step for step against `pogema`: from the same maps, the same actions lead to the same everything.

The package excludes the versions that this project runs with, so what it did is in a file, which
`scripts/pogema_trajectories.py` writes and `scripts/check_environments pogema` checks.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from marl_aajr.envs import pogema_v0
from marl_aajr.envs.grid_maps import components
from marl_aajr.envs.pogema_v0 import PogemaBatch

FILE = Path(__file__).with_name("pogema_trajectories.npz")
TOLD = ("seen", "rewards", "terminated", "truncated")
Played = dict[str, torch.Tensor]


def read() -> dict[str, Played]:
    cases: dict[str, Played] = {}
    with np.load(FILE) as arrays:
        for name, array in arrays.items():
            case, _, part = name.rpartition("/")
            cases.setdefault(case, {})[part] = torch.from_numpy(array.astype(np.int64))
    return cases


CASES = read()


def begin(options: dict[str, Any], played: Played) -> PogemaBatch:
    """A batch whose copies begin as the package's episodes did."""
    obstacles = played["obstacles"].permute(1, 2, 0)
    batch = pogema_v0.batched_env(obstacles.shape[2], **options)
    batch.reset(seed=0)
    begins = {"obstacles": obstacles.float(), "component": components(obstacles == 0)}
    places = {"place": played["places"][0].T, "goal": played["goals"][0].T}
    batch.set_state({**batch.get_state(), **begins, **places})
    return batch


def windows(batch: PogemaBatch, played: Played) -> torch.Tensor:
    """What the package showed `[T + 1, E, A, 3, side, side]`."""
    shape = (*played["places"].shape, *batch.observation_spaces["player_0"].shape)
    bits = np.unpackbits(played["observations"].numpy().astype(np.uint8), count=int(np.prod(shape)))
    return torch.from_numpy(bits).view(shape).float()


@pytest.mark.parametrize("case", CASES)
def test_same_as_pogema(case: str) -> None:
    played, batch = CASES[case], begin(json.loads(case), CASES[case])
    shown = windows(batch, played)
    assert torch.equal(batch.state().view(shown[0].shape), shown[0])
    running = torch.ones(batch.num_envs, dtype=torch.bool)
    for t, actions in enumerate(played["actions"]):
        told = {name: played[name][t].bool() for name in TOLD}
        acts, before = torch.stack(list(batch.active.values()), 1) & running[:, None], batch.place.T.clone()
        assert torch.equal(acts, told["seen"])
        step = batch.step(dict(zip(batch.possible_agents, actions.T, strict=True)))
        ours = {"rewards": step.rewards, "terminated": step.terminations, "truncated": step.truncations}
        for name, by_agent in ours.items():
            assert torch.equal(torch.stack(list(by_agent.values()), 1)[running] != 0, told[name][running])
        mine, theirs = torch.stack(list(step.final_obs.values()), 1), shown[t + 1].clone()
        if batch.game.collision_system == "soft":
            stays = acts & ~told["terminated"] if batch.game.on_target == "finish" else acts
            places = (before, played["places"][t + 1])
            show_followers(theirs, places, here=acts, stays=stays, size=batch.game.size)
        if batch.game.on_target == "restart":  # it draws other goals
            mine[told["rewards"], 2] = theirs[told["rewards"], 2]
            take_goals(batch, played["goals"][t + 1].T, (told["rewards"] & ~told["truncated"]).T)
        assert torch.equal(mine[acts], theirs[acts])
        running = running & ~step.episode_over
    assert not running.any()


def show_followers(
    shown: torch.Tensor,
    places: tuple[torch.Tensor, torch.Tensor],
    *,
    here: torch.Tensor,
    stays: torch.Tensor,
    size: int,
) -> None:
    """Adds those whom the package does not show, because a later agent wiped their cell when it left.

    Args:
        shown: Windows `[E, A, 3, side, side]`, which are changed.
        places: `[E, A]`, before and after the step.
        here: `[E, A]` bool, who was on the map.
        stays: `[E, A]` bool, who still is.
        size: Width of the map.
    """
    before, after = places
    r = shown.shape[-1] // 2
    later = torch.ones(here.shape[1], here.shape[1]).triu(1).bool()
    wiped = (after[:, :, None] == before[:, None]) & later & here[:, None] & stays[:, :, None]
    for e, follower in wiped.any(2).nonzero().tolist():
        down = after[e, follower] // size - after[e] // size
        right = after[e, follower] % size - after[e] % size
        for viewer in (here[e] & (down.abs() <= r) & (right.abs() <= r)).nonzero()[:, 0].tolist():
            shown[e, viewer, 1, down[viewer] + r, right[viewer] + r] = 1


def take_goals(batch: PogemaBatch, goals: torch.Tensor, reached: torch.Tensor) -> None:
    """Checks the goals that were drawn, and takes those of the package."""
    assert (batch.goal != batch.place)[reached].all()
    component = batch.component
    assert (component.gather(0, batch.goal) == component.gather(0, batch.place))[reached].all()
    batch.set_state({**batch.get_state(), "goal": goals})


def test_what_is_compared_happens() -> None:
    """Agents leave before others and together, are cut off, both, and are unseen behind others."""
    happened = dict.fromkeys(["left early", "all left", "solved", "cut off", "both", "not seen"], 0)
    for case, played in CASES.items():
        ends, cut, on_map = (played[name].bool() for name in ("terminated", "truncated", "seen"))
        finish = json.loads(case).get("on_target", "finish") == "finish"
        happened["left early"] += int((ends.any(2) & (on_map & ~ends).any(2)).sum()) * finish
        happened["all left"] += int(((ends | ~on_map).all(2) & ends.any(2)).sum()) * finish
        happened["solved"] += int((ends.all(2) & ~cut.any(2)).sum()) * (not finish)
        happened["cut off"] += int((cut & ~ends).sum())
        happened["both"] += int((cut & ends).sum())
        batch = begin(json.loads(case), played)
        seen = windows(batch, played)[1:, ..., 1, batch.game.obs_radius, batch.game.obs_radius]
        happened["not seen"] += int((on_map & ~ends & (seen == 0)).sum())  # not by itself either
    assert min(happened.values()) > 0, happened
