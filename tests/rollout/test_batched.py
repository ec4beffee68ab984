"""A batch is its games, played one by one with the same seeds and actions."""

from __future__ import annotations

import inspect
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import Tensor

from marl_aajr.core.environment_values import EnvironmentFault
from marl_aajr.rollout.batched_env import BatchedEnv, BatchedEnvWrapper
from marl_aajr.rollout.environments import EnvironmentSpec, resolve
from marl_aajr.rollout.game_agents import GameStep
from marl_aajr.rollout.pettingzoo_batch import PettingZooBatch
from tests.rollout.toy_games import Circle, Endings, Scripted

HERE = "tests.rollout.test_batched"
RETURN_NOTHING = ("set_state", "close")


def scripted(*, endings: Endings, broken_at: int | None = None) -> Scripted:
    return Scripted(endings, broken_at=broken_at)


def circle(*, endings: Endings) -> Circle:
    return Circle(endings)


EARLY: Endings = {"a": (2, "terminated"), "b": (3, "truncated"), "c": (4, "terminated")}
REAL = [
    resolve("simple_spread_v3", {"max_cycles": 4}),
    resolve("simple_speaker_listener_v4", {"max_cycles": 4, "continuous_actions": True}),
    resolve("simple_world_comm_v3", {"max_cycles": 3}),
    resolve("classic/tictactoe-v3"),
    resolve("classic/leduc_holdem-v4"),
    resolve("sisl/pursuit-v5", {"max_cycles": 3, "n_evaders": 4, "n_pursuers": 2}),
    resolve(f"{HERE}:scripted", {"endings": EARLY}),
    resolve(f"{HERE}:circle", {"endings": {**EARLY, "c": (7, "truncated")}}),
]


def choose(batch: BatchedEnv, rng: np.random.Generator) -> dict[str, Tensor]:
    """Random legal actions for every row, active or not."""
    actions: dict[str, Tensor] = {}
    for agent, space in batch.action_spaces.items():
        if isinstance(space, spaces.Discrete):
            mask = batch.action_mask[agent]
            weights = torch.ones(batch.num_envs, int(space.n)) if mask is None else mask.float()
            noise = torch.as_tensor(rng.uniform(0.1, 1.0, weights.shape), dtype=torch.float32)
            actions[agent] = (weights * noise).argmax(1)
        else:
            assert isinstance(space, spaces.Box)
            low, high = space.low, space.high
            actions[agent] = torch.as_tensor(rng.uniform(low, high, (batch.num_envs, *space.shape)))
    return actions


def bare(obs: Any) -> Any:
    return obs["observation"] if isinstance(obs, dict) else obs


class Reference:
    """One copy, played through its Game with the documented seeds."""

    def __init__(self, spec: EnvironmentSpec, seed: int, copy: int) -> None:
        self.game, self.seed, self.copy, self.episode = spec.make(), seed, copy, 0
        self.turn = self.start()

    def start(self) -> GameStep:
        sequence = np.random.SeedSequence(self.seed, spawn_key=(self.copy, self.episode))
        self.episode += 1
        return self.game.reset(seed=int(sequence.generate_state(1)[0] >> 1))

    def expect(self, batch: BatchedEnv, obs: dict[str, Tensor]) -> None:
        e = self.copy
        for agent in batch.possible_agents:
            acts = agent in self.turn.acting
            assert bool(batch.active[agent][e]) == acts
            mask = batch.action_mask[agent]
            if acts:
                np.testing.assert_array_equal(obs[agent][e], bare(self.turn.obs[agent]))
                if mask is not None:
                    legal = self.turn.obs[agent]["action_mask"]
                    np.testing.assert_array_equal(mask[e], legal.astype(bool))
            else:
                assert not obs[agent][e].any()
                assert mask is None or bool(mask[e].all())


@pytest.mark.parametrize("spec", REAL, ids=lambda spec: spec.name.rpartition(":")[2])
def test_a_batch_is_its_games(spec: EnvironmentSpec) -> None:
    rng = np.random.default_rng(0)
    batch = PettingZooBatch(spec, 3)
    obs = batch.reset(seed=5)
    copies = [Reference(spec, 5, e) for e in range(3)]
    for _ in range(12):
        for copy in copies:
            copy.expect(batch, obs)
        actions = choose(batch, rng)
        step = batch.step(actions)
        for e, copy in enumerate(copies):
            native = {
                agent: actions[agent][e].numpy().astype(batch.action_spaces[agent].dtype)
                for agent in copy.turn.acting
            }
            turn = copy.game.step(native)
            assert bool(step.episode_over[e]) == turn.over
            for agent in batch.possible_agents:
                ends = turn.terminations.get(agent, False), turn.truncations.get(agent, False)
                assert step.rewards[agent][e] == np.float32(turn.rewards.get(agent, 0.0))
                flags = step.terminations[agent][e].item(), step.truncations[agent][e].item()
                assert flags == ends
                if any(ends):
                    seen = bare(turn.obs[agent])
                    np.testing.assert_array_equal(step.final_obs[agent][e], seen)
            copy.turn = copy.start() if turn.over else turn
        obs = step.obs
    assert min(copy.episode for copy in copies) > 1, "no episode ended: the test proved little"


def test_shapes_and_dtypes() -> None:
    batch = PettingZooBatch(resolve("simple_speaker_listener_v4"), 4)
    obs = batch.reset(seed=0)
    assert {agent: tuple(o.shape) for agent, o in obs.items()} == {
        "speaker_0": (4, 3),
        "listener_0": (4, 11),
    }
    step = batch.step({agent: torch.zeros(4, dtype=torch.long) for agent in obs})
    assert step.rewards["speaker_0"].dtype == torch.float32
    assert step.terminations["speaker_0"].dtype == step.episode_over.dtype == torch.bool
    assert batch.state().shape == (4, 14)
    assert batch.teams == {"speaker_0": "team", "listener_0": "team"}
    assert batch.action_mask == {"speaker_0": None, "listener_0": None}
    assert len(step.infos) == 4
    batch.close()


def test_masks_are_split_from_observations() -> None:
    batch = PettingZooBatch(resolve("classic/tictactoe-v3"), 2)
    obs = batch.reset(seed=0)
    assert obs["player_1"].shape == (2, 3, 3, 2)
    assert batch.observation_spaces["player_1"].shape == (3, 3, 2)
    batch.step({"player_1": torch.tensor([0, 4])})
    mask = batch.action_mask["player_2"]
    assert mask is not None
    assert mask.sum(1).tolist() == [8, 8]
    assert not mask[0, 0]
    assert not mask[1, 4]


def test_what_a_copy_plays_does_not_depend_on_the_others() -> None:
    spec = resolve("simple_tag_v3", {"max_cycles": 3})
    alone, together = PettingZooBatch(spec, 1), PettingZooBatch(spec, 3)
    first, second = alone.reset(seed=9), together.reset(seed=9)
    for t in range(8):
        still = {agent: torch.full((3,), t % 5) for agent in together.possible_agents}
        for agent in alone.possible_agents:
            assert torch.equal(first[agent][0], second[agent][0])
            assert not torch.equal(second[agent][0], second[agent][1])
        first = alone.step({agent: a[:1] for agent, a in still.items()}).obs
        second = together.step(still).obs


def test_the_same_seed_repeats_everything_and_another_does_not() -> None:
    batch = PettingZooBatch(resolve("simple_spread_v3", {"max_cycles": 3}), 2)
    still = {agent: torch.zeros(2, dtype=torch.long) for agent in batch.possible_agents}
    runs = []
    for seed in (1, 1, 2):
        batch.reset(seed=seed)
        runs.append(torch.stack([batch.step(still).obs["agent_0"] for _ in range(7)]))
    assert torch.equal(runs[0], runs[1])
    assert not torch.equal(runs[0], runs[2])


def test_results_may_be_kept() -> None:
    batch = PettingZooBatch(resolve("simple_spread_v3", {"max_cycles": 3}), 2)
    kept = [batch.reset(seed=0)["agent_0"]]
    activity = [batch.active["agent_0"]]
    copies = [kept[0].clone()]
    for _ in range(4):
        step = batch.step({a: torch.ones(2, dtype=torch.long) for a in batch.possible_agents})
        kept.append(step.obs["agent_0"])
        activity.append(batch.active["agent_0"])
        copies.append(kept[-1].clone())
    assert all(torch.equal(a, b) for a, b in zip(kept, copies, strict=True))
    assert all(bool(a.all()) for a in activity)


def test_wrong_actions_say_what_is_right() -> None:
    batch = PettingZooBatch(resolve("simple_spread_v3"), 2)
    right = {agent: torch.zeros(2, dtype=torch.long) for agent in batch.possible_agents}
    with pytest.raises(ValueError, match="call reset first"):
        batch.step(right)
    batch.reset(seed=0)
    with pytest.raises(ValueError, match="actions of 'agent_2', which is active"):
        batch.step({agent: right[agent] for agent in ("agent_0", "agent_1")})
    with pytest.raises(ValueError, match=r"'agent_0' as integers of shape \(2,\), got .*\(3,\)"):
        batch.step({**right, "agent_0": torch.zeros(3, dtype=torch.long)})
    with pytest.raises(ValueError, match=r"as integers .* got torch.float32"):
        batch.step({**right, "agent_0": torch.zeros(2)})
    with pytest.raises(ValueError, match="got some of 'agent_9'"):
        batch.step({**right, "agent_9": right["agent_0"]})
    with pytest.raises(ValueError, match="expected at least 1 environment, got 0"):
        PettingZooBatch(resolve("simple_spread_v3"), 0)


class Structured(Scripted):
    def __init__(self, *, kind: str) -> None:
        super().__init__(dict.fromkeys("abc", (1, "truncated")))
        self.kind = kind

    def observation_space(self, agent: str) -> spaces.Space[Any]:
        box = spaces.Box(-1.0, 1.0, (2,), np.float32)
        odd = {"tuple": spaces.Tuple((box, box)), "dict": spaces.Dict({"camera": box, "gps": box})}
        return odd.get(self.kind, box)

    def action_space(self, agent: str) -> spaces.Space[Any]:
        box = spaces.Box(-1.0, 1.0, (2,), np.float32)
        return spaces.Tuple((box, box)) if self.kind == "action" else box


def test_structures_are_refused_by_name() -> None:
    for kind, says in (
        ("dict", "agent 'a' an array .* got Dict.*camera"),
        ("tuple", "agent 'a' an array .* got Tuple"),
        ("action", "agent 'a' of .*Structured to act with an array or a number, got Tuple"),
    ):
        with pytest.raises(ValueError, match=says):
            PettingZooBatch(resolve(f"{HERE}:Structured", {"kind": kind}), 1)


def test_a_fault_in_one_copy_stops_the_batch() -> None:
    spec = resolve(f"{HERE}:scripted", {"endings": EARLY, "broken_at": 2})
    batch = PettingZooBatch(spec, 2)
    batch.reset(seed=0)
    still = {agent: torch.zeros(2, dtype=torch.long) for agent in "abc"}
    batch.step(still)
    with pytest.raises(EnvironmentFault, match="copy 0, step 2: the reward of agent 'b' is nan"):
        batch.step(still)


MEMBERS = sorted(
    name for name in {*vars(BatchedEnv), *BatchedEnv.__annotations__} if not name.startswith("_")
)


@pytest.mark.parametrize("name", MEMBERS)
def test_a_wrapper_delegates_every_member(name: str) -> None:
    """Also one that is added to the contract later."""
    inner = Mock(spec_set=[*MEMBERS])
    wrapper = BatchedEnvWrapper(inner)
    member = getattr(BatchedEnv, name, None)
    if not callable(member):
        assert getattr(wrapper, name) is getattr(inner, name)
        return
    arguments = {
        parameter: object() for parameter in inspect.signature(member).parameters if parameter != "self"
    }
    assert getattr(wrapper, name)(**arguments) is getattr(inner, name).return_value or name in RETURN_NOTHING
    ((given, named),) = getattr(inner, name).call_args_list
    assert [*given, *named.values()] == [*arguments.values()]


def test_a_wrapper_passes_on_what_is_set_before_playing() -> None:
    inner = Mock(spec_set=[*MEMBERS])
    BatchedEnvWrapper(inner).keeps_final_states = True
    assert inner.keeps_final_states is True
