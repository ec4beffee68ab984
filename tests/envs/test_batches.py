"""Our batches keep the contract of batched environments, alone and beside others, in both dtypes."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import pytest
import torch
from gymnasium import spaces
from marl_aajr.envs import NAMES

from marl_aajr.rollout.batched_env import BatchedEnv, BatchedStep
from marl_aajr.rollout.env_checker import check_batched_env, random_actions
from marl_aajr.rollout.environments import resolve
from marl_aajr.rollout.pettingzoo_batch import PettingZooBatch

CPU = torch.device("cpu")
DEVICES = [CPU] + ([torch.device("cuda")] if torch.cuda.is_available() else [])
SHORT = {"max_cycles": 7}
GRID: tuple[str, dict[str, Any]] = ("pogema_v0", {"max_episode_steps": 7})
VARIANTS: list[tuple[str, dict[str, Any]]] = [
    *[(name, SHORT) for name in NAMES if name != GRID[0]],
    GRID,
    ("simple_reference_v3", {**SHORT, "continuous_actions": True}),
    ("simple_world_comm_v3", {**SHORT, "continuous_actions": True}),
    ("simple_spread_v3", {"N": 1, "max_cycles": 20, "terminate_on_success": True}),
    ("simple_tag_v3", {**SHORT, "curriculum": True, "terminate_on_success": True}),
]

WAITLESS = [variant for variant in VARIANTS if variant is not GRID]


def maker(name: str, **options: Any) -> Callable[[int], BatchedEnv]:
    factory = importlib.import_module(f"marl_aajr.envs.{name}").batched_env
    return lambda num_envs: factory(num_envs, **options)


@pytest.mark.parametrize("device", DEVICES, ids=str)
@pytest.mark.parametrize(("name", "options"), VARIANTS, ids=[f"{n}-{o}" for n, o in VARIANTS])
@pytest.mark.slow
def test_the_contract_holds(name: str, options: dict[str, Any], device: torch.device) -> None:
    check_batched_env(maker(name, device=device, **options), steps=25)


@pytest.mark.parametrize(("name", "options"), WAITLESS, ids=[f"{n}-{o}" for n, o in WAITLESS])
def test_a_step_never_waits_for_its_device(name: str, options: dict[str, Any]) -> None:
    """On the device without values, reading one fails, and so does mixing it with the processor's.

    pogema is waited for, once in eight steps, when it draws maps.
    """
    env = maker(name, device="meta", **options)(6)
    env.reset(seed=0)
    for _ in range(options["max_cycles"] + 1):
        actions = {
            agent: torch.zeros(6, *(space.shape or ()), device="meta", dtype=torch.float32)
            if isinstance(space, spaces.Box)
            else torch.zeros(6, device="meta", dtype=torch.int64)
            for agent, space in env.action_spaces.items()
        }
        step = env.step(actions)
        given = (*step.obs.values(), *step.rewards.values(), *step.terminations.values(), step.episode_over)
        assert {tensor.device.type for tensor in given} == {"meta"}


def test_the_contract_holds_for_adapted_environments() -> None:
    """The check is no mirror of our own code: it takes PettingZoo's games too."""
    for spec in (resolve("simple_tag_v3", SHORT), resolve("classic/tictactoe-v3")):
        check_batched_env(lambda num_envs, spec=spec: PettingZooBatch(spec, num_envs), steps=12)  # type: ignore[misc]


class Broken(BatchedEnv):
    """A good batch that breaks one promise."""

    def __init__(self, num_envs: int, promise: str) -> None:
        self._inner = maker("simple_tag_v3", **SHORT)(num_envs)
        self._promise = promise
        self._seed_offset = num_envs if promise == "independent" else 0
        for name in ("num_envs", "possible_agents", "observation_spaces", "action_spaces", "teams", "device"):
            setattr(self, name, getattr(self._inner, name))

    def reset(self, *, seed: int) -> dict[str, torch.Tensor]:
        self._obs = self._inner.reset(seed=seed + self._seed_offset)
        return self._obs

    def step(self, actions: Any) -> BatchedStep:
        if self._promise == "refuse":
            actions = {agent: actions.get(agent, actions["agent_0"]) for agent in self.possible_agents}
        step = self._inner.step(actions)
        if self._promise == "fresh":
            for agent, kept in self._obs.items():
                kept.copy_(step.obs[agent])
            step = step._replace(obs=self._obs)
        if self._promise == "shape":
            step = step._replace(rewards={a: r[:, None] for a, r in step.rewards.items()})
        if self._promise == "finite":
            step.obs["agent_0"][0] = torch.nan
        return step

    @property
    def active(self) -> dict[str, torch.Tensor]:
        active = self._inner.active
        return {**active, "agent_0": ~active["agent_0"]} if self._promise == "active" else active

    @property
    def action_mask(self) -> dict[str, torch.Tensor | None]:
        return self._inner.action_mask

    def state(self) -> torch.Tensor:
        return self._inner.state()

    def get_state(self) -> dict[str, Any]:
        state = dict(self._inner.get_state())
        if self._promise == "save":
            state |= self._inner._variables  # type: ignore[attr-defined]
        return state

    def set_state(self, state: Any) -> None:
        self._inner.set_state(state)

    def close(self) -> None:
        self._inner.close()


@pytest.mark.parametrize(
    ("promise", "words"),
    [
        ("independent", "other copies"),
        ("fresh", "later steps do not change"),
        ("shape", r"rewards\['adversary_0'\] \[E\]"),
        ("finite", r"obs\['agent_0'\] in its space"),
        ("active", "0 where it is not active"),
        ("refuse", "ValueError that names"),
        ("save", "a restored state"),
    ],
)
def test_a_broken_promise_is_found(promise: str, words: str) -> None:
    with pytest.raises(AssertionError, match=words):
        check_batched_env(lambda num_envs: Broken(num_envs, promise), steps=12)


@pytest.mark.parametrize("name", NAMES)
def test_float32_follows_float64(name: str) -> None:
    """Both begin alike, and differ by rounding until a contact doubts."""
    single, double = (maker(name, dtype=dtype)(16) for dtype in (torch.float32, torch.float64))
    seen = [env.reset(seed=5) for env in (single, double)]
    for t in range(10):
        for agent, obs in seen[0].items():
            torch.testing.assert_close(obs.double(), seen[1][agent].double(), rtol=1e-3, atol=1e-4)
        actions = random_actions(single, seed=t)
        steps = [env.step(actions) for env in (single, double)]
        assert all(reward.dtype == torch.float32 for reward in steps[0].rewards.values())
        seen = [step.obs for step in steps]


def test_episodes_and_copies_begin_differently() -> None:
    env = maker("simple_spread_v3", **SHORT)(4)
    begins = [env.reset(seed=0)["agent_0"]]
    for t in range(14):
        step = env.step(random_actions(env, seed=t))
        if step.episode_over.any():
            assert not torch.equal(step.obs["agent_0"], step.final_obs["agent_0"])
            begins.append(step.obs["agent_0"])
    rows = torch.cat(begins)
    assert len(begins) == 3
    assert len(rows.unique(dim=0)) == 12


def test_an_early_end_resets_its_copy_alone() -> None:
    env = maker("simple_tag_v3", terminate_on_success=True)(6)
    env.reset(seed=0)
    state = env.get_state()
    state["rows"][:, 2] *= 0.01  # everybody in one place: all prey are caught
    env.set_state(state)
    step = env.step(random_actions(env, seed=0))
    assert step.episode_over.tolist() == [False, False, True, False, False, False]
    for agent in env.possible_agents:
        changed = (step.obs[agent] != step.final_obs[agent]).any(1)
        assert changed.tolist() == step.episode_over.tolist()
        assert torch.equal(step.terminations[agent], step.episode_over)
        assert not step.truncations[agent].any()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mass": 0.0}, "a finite mass > 0, got 0.0"),
        ({"damping": 1.1}, r"damping in \[0, 1\], got 1.1"),
        ({"sensitivity": -1.0}, "a finite sensitivity ≥ 0, got -1.0"),
        ({"size": float("nan")}, "a finite size > 0, got nan"),
        ({"time_step": 0}, "a finite time_step > 0, got 0"),
        ({"contact_force": float("inf")}, "a finite contact_force ≥ 0, got inf"),
    ],
)
def test_constants_out_of_range_are_refused(options: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        maker("simple_tag_v3", **options)(1)


def test_a_state_of_another_environment_is_refused() -> None:
    one, other = maker("simple_spread_v3")(2), maker("simple_spread_v3", N=2)(2)
    one.reset(seed=0)
    with pytest.raises(ValueError, match="build the same environment"):
        other.set_state(one.get_state())
    with pytest.raises(ValueError, match="reset"):
        other.get_state()
    with pytest.raises(ValueError, match="reset"):
        other.step({})


def test_teams_are_the_sides_of_mpe2() -> None:
    for name in NAMES:
        env = maker(name)(1)
        spec = resolve(name) if name.startswith("simple") else None
        if spec is not None:
            assert env.teams == spec.make().teams, name
