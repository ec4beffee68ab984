"""Sensor faults: what each of them shows, and what is remembered of episodes that end at different times."""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from mpe2 import simple_spread_v3
from torch import Tensor

from marl_aajr.attacks import Fault, make_attack
from marl_aajr.attacks.episode_memory import EpisodeMemory
from marl_aajr.attacks.faults import FAULTS
from marl_aajr.core.distributions import Categorical
from marl_aajr.core.threat import PerturbationSet
from marl_aajr.evaluation.prepared_attack import prepare
from marl_aajr.pettingzoo import attacked
from marl_aajr.victims import ObservationFilter, Victim
from tests.networks import generator, tanh_policy
from tests.victims.teams import network

STEPS, COPIES, FEATURES = 12, 4, 6
POLICY = tanh_policy(Categorical(5))
SETTINGS: dict[str, dict[str, Any]] = {"drift": {"steps": 4}, "delay": {"steps": 3}, "freeze": {"steps": 4}}
NAMES = [fault.name for fault in FAULTS]


def fault_of(name: str, **settings: Any) -> Fault:
    cls = next(fault for fault in FAULTS if fault.name == name)
    own = {"epsilon": 0.3} if cls.sized else {}
    attack = make_attack(name, **(own | SETTINGS.get(name, {}) | settings))
    assert isinstance(attack, Fault)
    return attack


def world() -> tuple[Tensor, Tensor]:
    """Observations `[T, E, d]`, and where episodes end after a step, `[T, E]`; each copy has its own."""
    obs = torch.randn(STEPS, COPIES, FEATURES, generator=generator(), dtype=torch.float64)
    ends = (torch.arange(STEPS)[:, None] + 1) % torch.tensor([5, 6, 7, 99]) == 0
    return obs, ends


def begins(ends: Tensor) -> Tensor:
    """The first step of the episode that each step is in, `[T, E]`."""
    starts = torch.zeros_like(ends, dtype=torch.int64)
    for t in range(1, len(ends)):
        starts[t] = torch.where(ends[t - 1], t, starts[t - 1])
    return starts


def look(fault: Fault, memory: EpisodeMemory, obs: Tensor, agents: Sequence[str] = ("a",)) -> Tensor:
    rows = {agent: torch.arange(len(obs) // len(agents)) for agent in agents}
    return fault.with_memory(memory.at(rows))(POLICY, obs, generator=generator()).perturbed


def play(fault: Fault, obs: Tensor, ends: Tensor, *, seed: int = 0) -> Tensor:
    """What one agent is shown, `[T, E, d]`."""
    memory, shown = fault.remember(obs.shape[1], seed=seed), []
    for seen, over in zip(obs, ends, strict=True):
        shown.append(look(fault, memory, seen))
        memory.advance()
        memory.forget(over)
    return torch.stack(shown)


class TestWhatIsShown:
    """Equation by equation; `own` are all observations of the row's episode up to now."""

    def check(self, name: str, expected: Any, **settings: Any) -> None:
        """Every reading is the true one or `expected(own, i)`, the broken sensors are the same all along."""
        (obs, ends), fault = world(), fault_of(name, **settings)
        shown, starts = play(fault, obs, ends), begins(ends)
        for e in range(COPIES):
            for start in starts[:, e].unique().tolist():
                here = [t for t in range(STEPS) if starts[t, e] == start]
                moved = (shown[here, e] != obs[here, e]).any(0)
                assert moved.sum() <= round(getattr(fault, "share", 1.0) * FEATURES)
                for t in here:
                    for i in moved.nonzero().flatten().tolist():
                        allowed = expected(obs[start : t + 1, e], i)
                        assert min(abs(shown[t, e, i].item() - value) for value in allowed) < 1e-12, (t, e, i)
        assert (shown != obs).any(0).any(-1).all(), "somebody is never wrong"

    def test_delay(self) -> None:
        self.check("delay", lambda own, i: [own[max(len(own) - 4, 0), i].item()])

    def test_dropout(self) -> None:
        self.check("dropout", lambda own, i: [0.0], share=0.34)

    def test_swap_is_of_one_pair(self) -> None:
        self.check("swap", lambda own, i: own[-1].tolist())
        obs, ends = world()
        shown = play(fault_of("swap"), obs, ends)
        assert ((shown != obs).sum(-1) == 2).all()
        torch.testing.assert_close(shown.sort(-1).values, obs.sort(-1).values)

    def test_freeze_holds_what_was_there_at_a_random_time(self) -> None:
        self.check("freeze", lambda own, i: [value.item() for value in own[: min(len(own), 4), i]])
        obs, ends = world()
        fault = fault_of("freeze", share=1.0)
        frozen = [
            int((play(fault, obs, ends & False, seed=s)[:, 0] == obs[:, 0]).all(-1).sum()) for s in range(40)
        ]
        assert set(frozen) == {1, 2, 3, 4}

    def test_bias_and_drift_are_corners_of_the_set(self) -> None:
        obs, ends = world()
        ends = ends & False
        scale = (1.0, 1.0, 0.5, 1.0, 2.0, 1.0)
        delta = play(fault_of("bias", scale=scale), obs, ends) - obs
        torch.testing.assert_close(delta.abs(), 0.3 * torch.tensor(scale).double().expand_as(delta))
        torch.testing.assert_close(delta, delta[:1].expand_as(delta))
        assert len({tuple(row) for row in delta[0].sign().tolist()}) == COPIES
        grown = play(fault_of("drift", scale=scale), obs, ends) - obs
        torch.testing.assert_close(grown, delta * torch.tensor([0.25, 0.5, 0.75] + [1.0] * 9)[:, None, None])

    @pytest.mark.parametrize("norm", ["linf", "l2"])
    def test_quantize_leaves_readings_on_a_grid(self, norm: str) -> None:
        obs, ends = world()
        shown = play(fault_of("quantize", norm=norm), obs, ends & False)
        step = 0.6 if norm == "linf" else 0.6 / 6**0.5
        places = (shown - shown[:1]) / step
        torch.testing.assert_close(places, places.round())
        assert (shown - obs).abs().max() > 0.4 * step
        assert len(shown[0].remainder(step).flatten().unique()) > 20, "grids have the same origin"

    @pytest.mark.parametrize("name", NAMES)
    def test_only_what_the_mask_leaves_can_break(self, name: str) -> None:
        obs, ends = world()
        mask = (False, True, False, True, True, False)
        shown = play(fault_of(name, mask=mask), obs, ends)
        free = torch.tensor(mask)
        assert torch.equal(shown[..., ~free], obs[..., ~free])
        assert (shown != obs)[..., free].any()
        if name == "dropout":
            every = play(fault_of(name, mask=mask, share=1.0), obs, ends)
            assert (every[..., free] == 0).all()


@pytest.mark.parametrize("name", NAMES)
class TestMemory:
    def test_numbers_follow_from_the_seed_and_from_each_episode(self, name: str) -> None:
        (obs, ends), fault = world(), fault_of(name)
        shown = play(fault, obs, ends)
        assert torch.equal(play(fault, obs, ends), shown)
        assert not torch.equal(play(fault, obs, ends, seed=1), shown)
        obs[6:], ends = obs[:6], torch.zeros_like(ends)
        ends[5] = True
        again = play(fault, obs, ends)
        assert not torch.equal(again[6:], again[:6]), "the second episode's numbers are new"
        memory = fault.remember(COPIES, seed=0)
        both = []
        for seen in obs[:6]:
            both.append(look(fault, memory, torch.cat([seen, seen]), agents=("a", "b")))
            memory.advance()
        mine, other = torch.stack(both).split(COPIES, 1)
        assert torch.equal(mine, again[:6])
        assert not torch.equal(mine, other), "another agent's numbers are others"

    def test_looking_changes_nothing_and_each_row_has_its_own_time(self, name: str) -> None:
        """One agent decides always, another in some copies and at some steps: it sees its own past."""
        (obs, _), fault = world(), fault_of(name)
        memory = fault.remember(COPIES, seed=0)
        mine: list[Tensor] = []
        for t in range(STEPS):
            copies = torch.tensor([1, 3])[: 1 + t % 2]
            rows = {"a": torch.arange(COPIES), "b": copies}
            for _ in range(2):  # looks twice
                both = torch.cat([obs[t], obs[t, copies]])
                seen = fault.with_memory(memory.at(rows))(POLICY, both, generator=generator()).perturbed
            memory.advance(["b"])
            if t % 2:
                mine.append(seen[COPIES:][1])
            memory.advance()
        alone = fault.remember(COPIES, seed=0)
        for t, shown in zip(range(1, STEPS, 2), mine, strict=True):
            own = alone.at({"b": torch.tensor([3])})
            expected = fault.with_memory(own)(POLICY, obs[t, 3:4], generator=generator()).perturbed
            alone.advance()
            assert torch.equal(shown, expected[0])

    def test_a_saved_state_goes_on_to_the_same(self, name: str) -> None:
        (obs, ends), fault = world(), fault_of(name)
        memory = fault.remember(COPIES, seed=7)
        for t in range(STEPS):
            if t == 6:
                state = pickle.dumps(memory.get_state())
            look(fault, memory, obs[t])
            memory.advance()
            memory.forget(ends[t])
        shown = play(fault, obs, ends, seed=7)
        other = fault.remember(COPIES, seed=0)
        other.set_state(pickle.loads(state))
        for t in range(6, STEPS):
            assert torch.equal(look(fault, other, obs[t]), shown[t])
            other.advance()
            other.forget(ends[t])


class TestAgainstAVictim:
    def victim(self, *, clip: float | None = None) -> Victim:
        env = simple_spread_v3.parallel_env()
        mean = torch.linspace(-1, 1, 18)
        own = ObservationFilter(mean, torch.linspace(0.5, 2, 18), clip)
        return Victim.from_policies(
            network(5, features=18), env, filters=dict.fromkeys(env.possible_agents, own)
        )

    @pytest.mark.parametrize("name", ["dropout", "swap", "delay"])
    def test_readings_are_those_of_the_environment_behind_a_filter(self, name: str) -> None:
        victim = self.victim()
        fault = prepare(fault_of(name), victim, "agent_0", units="raw")
        assert isinstance(fault, Fault)
        raw = torch.randn(COPIES, 18, generator=generator())
        memory = fault.remember(COPIES, seed=0)
        policy = victim.policy("agent_0")
        for t in range(3):
            inputs = victim.inputs("agent_0", raw + t)
            shown = fault.with_memory(memory.at({"a": torch.arange(COPIES)}))(
                policy, inputs, generator=generator()
            )
            memory.advance()
        own = victim.filters["agent_0"]
        assert own is not None
        seen = shown.perturbed * own.scale + own.mean
        broken = (seen - (raw + 2)).abs() > 1e-5
        expected = {"dropout": torch.zeros_like(seen), "delay": raw.double()}.get(name)
        if expected is None:
            torch.testing.assert_close(seen.sort(-1).values, (raw + 2).double().sort(-1).values)
            assert (broken.sum(-1) == 2).all()
        else:
            assert (broken.sum(-1) == 9).all()
            torch.testing.assert_close(seen[broken], expected[broken], atol=1e-5, rtol=0)

    def test_a_swap_needs_two_sensors(self) -> None:
        mask = (True,) + (False,) * 17
        with pytest.raises(
            ValueError, match="expected several sensors of 'agent_0' for the fault 'swap', got one"
        ):
            prepare(fault_of("swap", mask=mask), self.victim(), "agent_0", units="raw")

    def test_it_must_have_the_set_that_it_is_meant_for(self) -> None:
        cls = next(fault for fault in FAULTS if not fault.sized)
        with pytest.raises(
            ValueError, match=r"an Unlimited set: it has no size for the attack 'delay', got Pert"
        ):
            cls(perturbations=PerturbationSet(epsilon=0.1))

    @pytest.mark.parametrize("turns", [False, True])
    def test_in_somebodys_loop_a_delay_counts_decisions_not_looks(self, turns: bool) -> None:
        """Everything is late by two steps, in the second episode, too; turn by turn somebody looks twice."""
        make = simple_spread_v3.env if turns else simple_spread_v3.parallel_env
        victim = Victim.from_policies(network(5, features=18), simple_spread_v3.parallel_env())
        env, true = (
            attacked(make(max_cycles=5), fault_of("delay", steps=2, share=1.0), victim),
            make(max_cycles=5),
        )
        for episode in range(2):
            env.reset(seed=episode)
            true.reset(seed=episode)
            shown: dict[str, list[Any]] = {"agent_0": [], "agent_1": []}
            there: dict[str, list[Any]] = {"agent_0": [], "agent_1": []}
            actions = dict.fromkeys(true.possible_agents, 1 + episode)
            if turns:
                while env.agents:
                    agent, out = env.agent_selection, env.truncations[env.agent_selection]
                    if agent in shown and not out:
                        env.observe("agent_0")  # whosever turn it is
                        shown[agent].append([env.observe(agent) for _ in range(2)][1])
                        there[agent].append(true.observe(agent))
                    move = None if out else 1
                    env.step(move)
                    true.step(move)
            else:
                seen, seen_there = env.reset(seed=episode)[0], true.reset(seed=episode)[0]
                while env.agents:
                    for agent, readings in shown.items():
                        readings.append(seen[agent])
                        there[agent].append(seen_there[agent])
                    seen, seen_there = env.step(actions)[0], true.step(actions)[0]
            for agent, readings in shown.items():
                assert len(readings) == 5
                for t in range(5):
                    assert readings[t] == pytest.approx(there[agent][max(t - 2, 0)]), (episode, agent, t)
