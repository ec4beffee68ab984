"""The one step of frozen policies: what it must do about filters, groups, masks, memory and chance."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from marl_aajr.attacks import make_attack
from marl_aajr.core.distributions import ActionDistribution
from marl_aajr.core.policy import leaves
from marl_aajr.victims import ObservationFilter, Recurrent, Victim
from marl_aajr.victims.stepper import ActionSampler, CounterSampler, GeneratorSampler, Stepper
from tests.victims.teams import FixedLogits, network, victim

E = 5


class Counted(nn.Module):
    """A network that knows the batches that it was asked for."""

    batches: list[int]

    def __init__(self) -> None:
        super().__init__()
        self.batches = []
        self.net = network(5)

    def forward(self, obs: Tensor) -> Tensor:
        self.batches.append(len(obs))
        return self.net(obs)


def stepper(team: Victim, num_envs: int = E) -> Stepper:
    return Stepper(team, team.memory(num_envs), groups=team.alike(team.agents))


def seen(num_envs: int = E, *, seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {agent: torch.randn(num_envs, 6, generator=generator) for agent in ("a_0", "a_1")}


def recurrent() -> Victim:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return victim(modules={"shared": Recurrent(nn.Linear(6, 8), nn.GRU(8, 8), nn.Linear(8, 5))})


def where(*copies: int) -> Tensor:
    return torch.isin(torch.arange(E), torch.tensor(copies, dtype=torch.int64))


class TestFilters:
    def test_networks_are_given_filtered_observations(self) -> None:
        own = ObservationFilter(mean=torch.ones(6), std=torch.full((6,), 2.0))
        obs = seen()
        filtered, plain = stepper(victim(filters={"a_1": own})).see(obs)[::-1]
        assert (filtered.agent, plain.agent) == ("a_1", "a_0")
        assert torch.equal(filtered.inputs, own(obs["a_1"]))
        assert torch.equal(plain.inputs, obs["a_0"])

    def test_what_is_shown_is_not_filtered_again(self) -> None:
        team = victim(filters={"a_0": ObservationFilter(mean=torch.ones(6), std=torch.ones(6))})
        step = stepper(team)
        batch = step.see({"a_0": seen()["a_0"]})[0]
        shown = torch.full_like(batch.inputs, 0.5)
        torch.testing.assert_close(step.decide([batch.shown(shown)])["a_0"], team.modules["shared"](shown))


class TestSharedNetworks:
    def test_agents_alike_decide_in_one_forward_pass(self) -> None:
        team = victim(modules={"shared": Counted()})
        counted = team.modules["shared"]
        assert isinstance(counted, Counted)
        counted.batches.clear()
        step = stepper(team)
        step.act(step.see(seen()))
        assert counted.batches == [2 * E]

    def test_only_copies_in_which_an_agent_must_act_are_asked(self) -> None:
        step, obs = stepper(victim()), seen()
        active = {"a_0": where(0, 3), "a_1": where(1)}
        (batch,) = step.see(obs, active=active)
        assert torch.equal(batch.inputs, torch.stack([obs["a_0"][0], obs["a_0"][3], obs["a_1"][1]]))
        answers = step.decide([batch])
        expected = step.victim.modules["shared"](batch.inputs)
        torch.testing.assert_close(answers["a_0"][where(0, 3)], expected[:2])
        torch.testing.assert_close(answers["a_1"][where(1)], expected[2:])
        assert not answers["a_0"][where(1, 2, 4)].any()

    def test_who_acts_nowhere_or_is_absent_has_no_action(self) -> None:
        step = stepper(victim())
        nobody = {"a_0": where(), "a_1": where()}
        assert step.see(seen(), active=nobody) == []
        assert set(step.act(step.see(seen(), active=nobody | {"a_1": where(2)}))) == {"a_1"}
        assert set(step.act(step.see({"a_0": seen()["a_0"]}))) == {"a_0"}

    def test_agents_of_other_networks_and_filters_are_groups_of_their_own(self) -> None:
        own = ObservationFilter(mean=torch.zeros(6), std=torch.ones(6))
        same = ObservationFilter(mean=torch.zeros(6), std=torch.ones(6))
        assert victim().alike(("a_0", "a_1")) == [["a_0", "a_1"]]
        assert victim(filters={"a_0": own, "a_1": same}).alike(("a_0", "a_1")) == [["a_0", "a_1"]]
        assert victim(filters={"a_0": own}).alike(("a_0", "a_1")) == [["a_0"], ["a_1"]]
        two = victim(module_of={"a_0": "x", "a_1": "y"}, modules={"x": network(5), "y": network(5)})
        assert two.alike(("a_0", "a_1")) == [["a_0"], ["a_1"]]


SAMPLERS: dict[str, Callable[[Mapping[str, ActionDistribution]], ActionSampler]] = {
    "generator": lambda kinds: GeneratorSampler(kinds, E, torch.Generator().manual_seed(1)),
    "counter": lambda kinds: counter(kinds, E),
}


def counter(kinds: Mapping[str, ActionDistribution], num_envs: int) -> CounterSampler:
    sampler = CounterSampler(kinds, num_envs, device=torch.device("cpu"))
    sampler.reset(seed=1)
    return sampler


def kinds_of(team: Victim) -> dict[str, ActionDistribution]:
    return {agent: team.distribution(agent) for agent in team.agents}


@pytest.mark.parametrize("sampler", [None, *SAMPLERS.values()], ids=["greedy", *SAMPLERS])
def test_forbidden_actions_are_never_chosen(sampler: Any) -> None:
    team = victim(modules={"shared": FixedLogits()})
    step, draw = stepper(team), sampler and sampler(kinds_of(team))
    legal = torch.tensor([[True, False, False, True, False]]).expand(E, 5)
    for t in range(20):
        batches = step.see(seen(seed=t), action_mask={"a_0": legal, "a_1": legal})
        actions = step.act(batches, draw)
        assert all(set(action.tolist()) <= {0, 3} for action in actions.values())


def test_greedy_actions_are_the_most_likely_ones_of_the_environment() -> None:
    team, obs = victim("box", normalize_actions=True), seen()
    step = stepper(team)
    actions = step.act(step.see(obs))
    for agent, given in obs.items():
        torch.testing.assert_close(actions[agent], team.greedy(agent, team.policy(agent)(given)))


class TestSampling:
    @pytest.mark.parametrize("kind", ["discrete", "multi", "box"])
    @pytest.mark.parametrize("sampler", SAMPLERS.values(), ids=list(SAMPLERS))
    def test_a_copy_draws_the_same_whatever_happens_in_the_others(self, sampler: Any, kind: str) -> None:
        """Whether others act there or not, and what they are shown."""
        team = victim(kind)
        everybody, some = sampler(kinds_of(team)), sampler(kinds_of(team))
        for t in range(4):
            obs, step = seen(seed=t), stepper(team)
            disturbed = {"a_0": obs["a_0"].clone(), "a_1": torch.randn(E, 6)}
            disturbed["a_0"][0] += 3
            active = {"a_0": where(0, 2, 3), "a_1": where(t % 3)}
            all_actions = step.act(step.see(obs), everybody)
            few_actions = step.act(step.see(disturbed, active=active), some)
            torch.testing.assert_close(few_actions["a_0"][where(2, 3)], all_actions["a_0"][where(2, 3)])
            for each in (everybody, some):
                if isinstance(each, CounterSampler):
                    each.advance(where(t))

    def test_a_counter_does_not_mind_how_many_copies_there_are(self) -> None:
        team = victim()
        many, few = counter(kinds_of(team), E), counter(kinds_of(team), 2)
        for t in range(6):
            outputs = {agent: torch.zeros(E, 5) for agent in team.agents}
            drawn = few({agent: y[:2] for agent, y in outputs.items()})
            for agent, action in many(outputs).items():
                assert torch.equal(action[:2], drawn[agent])
            over = where(t % 2)
            many.advance(over)
            few.advance(over[:2])

    def test_a_counter_goes_on_from_a_saved_state(self) -> None:
        outputs = {"a_0": torch.zeros(E, 5), "a_1": torch.zeros(E, 5)}
        sampler = counter(kinds_of(victim()), E)
        sampler.advance(where(3))
        other = CounterSampler(kinds_of(victim()), E, device=torch.device("cpu"))
        other.set_state(sampler.get_state())
        for agent, action in sampler(outputs).items():
            assert torch.equal(action, other(outputs)[agent])

    @pytest.mark.parametrize("sampler", ["generator", "counter"])
    def test_actions_are_drawn_by_their_probabilities(self, sampler: str) -> None:
        team, rows = victim(modules={"shared": FixedLogits()}), 20_000
        draw = (
            counter(kinds_of(team), rows)
            if sampler == "counter"
            else GeneratorSampler(kinds_of(team), rows, torch.Generator().manual_seed(0))
        )
        step = stepper(team, rows)
        shares = torch.bincount(step.act(step.see(seen(rows)), draw)["a_0"], minlength=5) / rows
        expected = torch.softmax(torch.tensor([0.0, 2.0, 3.0, 1.0, 0.0]), 0)
        torch.testing.assert_close(shares, expected, atol=0.015, rtol=0)

    def test_a_victim_that_is_greedy_only_is_not_sampled(self) -> None:
        team = victim(greedy_only=True)
        step = stepper(team)
        with pytest.raises(ValueError, match="greedy only"):
            step.act(step.see(seen()), SAMPLERS["generator"](kinds_of(team)))


class TestMemory:
    def test_an_attack_does_not_move_the_state_and_the_decision_does_once(self) -> None:
        step = stepper(recurrent())
        (batch,) = step.see(seen())
        before = leaves(step.memory.recall(batch.rows))
        attack = make_attack("pgd", epsilon=0.3)
        attacked = attack(batch.policy, batch.inputs, generator=torch.Generator().manual_seed(0))
        for then, now in zip(before, leaves(step.memory.recall(batch.rows)), strict=True):
            assert torch.equal(then, now)
        step.decide([batch.shown(attacked.perturbed, attacked.outputs)])
        expected = leaves(batch.policy.next_state(attacked.perturbed))
        for now, then in zip(leaves(step.memory.recall(batch.rows)), expected, strict=True):
            assert torch.equal(now, then)
        assert not torch.equal(leaves(batch.policy.next_state(batch.inputs))[0], expected[0])

    def test_states_move_only_where_an_agent_decides_and_begin_anew_with_an_episode(self) -> None:
        step = stepper(recurrent())
        step.decide(step.see(seen(), active={"a_0": where(1, 2), "a_1": where()}))
        state = leaves(step.memory.recall({"a_0": torch.arange(E)}))[0]
        assert state[where(1, 2)].any()
        assert not state[where(0, 3, 4)].any()
        assert not leaves(step.memory.recall({"a_1": torch.arange(E)}))[0].any()
        step.memory.forget(where(1))
        state = leaves(step.memory.recall({"a_0": torch.arange(E)}))[0]
        assert state[where(2)].any()
        assert not state[where(1)].any()

    def test_seeing_again_changes_nothing(self) -> None:
        step = stepper(recurrent())
        first, again = step.see(seen()), step.see(seen())
        assert torch.equal(first[0].policy(first[0].inputs), again[0].policy(again[0].inputs))


def test_outputs_that_are_known_are_not_computed_again() -> None:
    step = stepper(victim())
    (batch,) = step.see(seen())
    known = torch.arange(2 * E * 5.0).reshape(2 * E, 5)
    answers = step.decide([batch.shown(batch.inputs, known)])
    assert torch.equal(torch.cat([answers["a_0"], answers["a_1"]]), known)


def test_a_victims_own_act_is_a_step_of_one_copy() -> None:
    team, obs = victim(), seen(1)
    step = stepper(team, 1)
    expected = step.act(step.see(obs))
    assert team.act({agent: row[0].numpy() for agent, row in obs.items()}) == {
        agent: int(action[0]) for agent, action in expected.items()
    }
