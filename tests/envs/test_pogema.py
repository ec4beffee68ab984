"""The maps of pogema: components, and starts and goals as the package pairs them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from marl_aajr.envs import pogema_v0
from marl_aajr.envs.grid_maps import components, draw_maps
from scipy.ndimage import label

from marl_aajr.rollout.env_checker import check_batched_env

SPIRAL = """
..........
########.#
.......#.#
.#####.#.#
.#...#.#.#
.#.###.#.#
.#.....#.#
.#######.#
.........#
"""


def test_components_are_those_of_scipy() -> None:
    spiral = [[[cell == "."] for cell in row] for row in SPIRAL.split()]
    uniform = torch.rand(7, 12, 200, generator=torch.Generator().manual_seed(0))
    for free in (torch.tensor(spiral), uniform > 0.3, uniform > 0.5, uniform > 0):
        ours = components(free).view(free.shape)
        assert (ours > 0).equal(free)
        for t in range(free.shape[2]):
            theirs, number = label(free[..., t].numpy())
            pairs = set(zip(ours[..., t].flatten().tolist(), theirs.flatten().tolist(), strict=True))
            assert len(pairs - {(0, 0)}) == number


def pogema_placing(order: list[int], component: list[int], agents: int) -> tuple[list[int], list[int]] | None:
    """`placing` of `pogema/generator.py`, in its own words; None where not all agents find room."""
    sizes = np.bincount(component)
    requests: dict[int, list[int]] = {c: [] for c in set(component)}
    starts: list[int] = []
    goals, done = [-1] * agents, 0
    for cell in order:
        own = component[cell]
        if own == 0:
            continue
        if requests[own]:
            goals[requests[own].pop()] = cell
            done += 1
            continue
        if len(starts) >= agents:
            if done >= agents:
                break
            continue
        if sizes[own] >= 2:
            sizes[own] -= 2
            requests[own].append(len(starts))
            starts.append(cell)
    return (starts, goals) if len(starts) == agents else None


@pytest.mark.parametrize(
    ("agents", "size", "density"), [(4, 8, 0.3), (1, 2, 0.5), (3, 4, 0.6), (8, 4, 0.0), (30, 12, 0.3)]
)
def test_starts_and_goals_are_paired_as_in_pogema(agents: int, size: int, density: float) -> None:
    """From the same obstacles and the same order of cells; a map without room is drawn anew."""
    maps, cells = 300, size * size
    generator = torch.Generator().manual_seed(agents)
    numbers = [torch.rand(2 * cells, maps, generator=generator, dtype=torch.float64) for _ in range(100)]
    drawn = draw_maps(numbers.__getitem__, agents=agents, size=size, density=density)
    for t in range(maps):
        for attempt in numbers:
            free = attempt[:cells, t] >= density
            component = components(free.view(size, size, 1))[:, 0].tolist()
            placed = pogema_placing(attempt[cells:, t].argsort().tolist(), component, agents)
            if placed is not None:
                break
        assert placed == (drawn.start[:, t].tolist(), drawn.goal[:, t].tolist())
        assert free.equal(drawn.free[:, t])
        assert component == drawn.component[:, t].tolist()


@pytest.mark.parametrize("options", [{"density": 1.0}, {"num_agents": 9, "size": 4}, {"num_agents": 99}])
def test_too_little_room_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"room for .* fewer agents, a larger size or a lower density"):
        pogema_v0.batched_env(2, **options).reset(seed=0)


@pytest.mark.parametrize(
    "options",
    [
        {"on_target": "nothing", "num_agents": 1, "size": 3, "density": 0.0},
        {"on_target": "restart", "collision_system": "soft", "flat": True},
        {"collision_system": "block_both", "num_agents": 7, "size": 4, "density": 0.0},
    ],
)
@pytest.mark.slow
def test_the_contract_holds_in_all_ways(options: dict[str, Any]) -> None:
    check_batched_env(lambda num_envs: pogema_v0.batched_env(num_envs, max_episode_steps=15, **options))


def test_new_maps_come_in_any_number_of_episodes() -> None:
    """Short episodes use up the maps that were drawn at once, at other times in each copy."""
    batch = pogema_v0.batched_env(5, num_agents=1, size=2, density=0.0, max_episode_steps=4)
    batch.reset(seed=0)
    alone = pogema_v0.batched_env(1, num_agents=1, size=2, density=0.0, max_episode_steps=4)
    alone.reset(seed=0)
    generator = torch.Generator().manual_seed(0)
    for _ in range(150):
        actions = {"player_0": torch.randint(5, (5,), generator=generator)}
        step, again = batch.step(actions), alone.step({"player_0": actions["player_0"][:1]})
        assert torch.equal(step.obs["player_0"][:1], again.obs["player_0"])
    assert batch.get_state()["streams/episode"].unique().numel() > 1


def test_who_is_on_no_map_needs_no_action() -> None:
    batch = pogema_v0.batched_env(2, num_agents=2, size=2, density=0.0)
    batch.reset(seed=0)
    places = {"place": torch.tensor([[0, 0], [3, 3]]), "goal": torch.tensor([[1, 1], [2, 2]])}
    batch.set_state({**batch.get_state(), **places})
    stay, right = torch.zeros(2).long(), torch.full((2,), 4)
    assert batch.step({"player_0": right, "player_1": stay}).terminations["player_0"].all()
    assert not batch.step({"player_1": stay}).rewards["player_0"].any()
    with pytest.raises(ValueError, match="none of \\['player_1'\\]; add them"):
        batch.step({"player_0": stay})


def test_new_goals_are_uniform_over_what_can_be_reached() -> None:
    batch = pogema_v0.batched_env(4000, on_target="restart", num_agents=1, size=2, density=0.0)
    batch.reset(seed=0)
    state = batch.get_state()
    nought = torch.zeros_like(state["place"])
    batch.set_state({**state, "place": nought, "goal": nought + 1})
    step = batch.step({"player_0": torch.full((4000,), 4)})  # to the right, from cell 0 to cell 1
    assert step.rewards["player_0"].all()
    counts = torch.bincount(batch.goal.flatten(), minlength=4).tolist()
    assert counts[1] == 0
    assert min(counts[0], *counts[2:]) > 4000 / 3 - 150
