"""A recurrent victim's state follows what it was shown in the game, and never an attack's queries."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from marl_aajr.attacks import PGD
from marl_aajr.core.policy import leaves, map_tree
from marl_aajr.core.threat import PerturbationSet
from marl_aajr.victims import Recurrent, Victim
from tests.networks import generator
from tests.victims.teams import network, victim


class Counter(nn.Module):
    """Prefers the action whose number is that of its decisions in this episode; sums what it sees."""

    def initial_state(self, rows: int) -> dict[str, Tensor]:
        return {"decisions": torch.zeros(rows, dtype=torch.int64), "sum": torch.zeros(rows, 6)}

    def forward(self, obs: Tensor, state: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        after = {"decisions": state["decisions"] + 1, "sum": state["sum"] + obs}
        logits = 10.0 * nn.functional.one_hot(state["decisions"] % 5, 5) + obs[:, :5]
        return logits, after


def stack() -> Recurrent:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Recurrent(
            nn.Linear(6, 8),
            nn.Tanh(),
            nn.LSTM(8, 7, batch_first=True),
            nn.GRU(7, 4, num_layers=2),
            nn.Linear(4, 5),
        )


def two(values: list[int]) -> dict[str, Tensor]:
    return {"a_0": torch.tensor(values), "a_1": torch.tensor(values[:1])}


class TestMemory:
    def test_advances_once_per_decision_and_only_where_one_was_made(self) -> None:
        team = victim(modules={"shared": Counter()})
        memory = team.memory(3)
        for rows in (two([0, 2]), {"a_0": torch.tensor([2])}):
            shown = torch.ones(sum(map(len, rows.values())), 6)
            memory.advance(rows, team.policy("a_0", state=memory.recall(rows)).next_state(shown))
        state = memory.recall({"a_0": torch.arange(3), "a_1": torch.arange(3)})
        assert state["decisions"].tolist() == [1, 0, 2, 1, 0, 0]
        assert state["sum"][:, 0].tolist() == [1, 0, 2, 1, 0, 0]

    def test_forgets_where_the_episode_is_over(self) -> None:
        team = victim(modules={"shared": Counter()})
        memory, rows = team.memory(2), {"a_0": torch.arange(2)}
        memory.advance(rows, team.policy("a_0", state=memory.recall(rows)).next_state(torch.ones(2, 6)))
        memory.forget(torch.tensor([True, False]))
        assert memory.recall(rows)["decisions"].tolist() == [0, 1]
        memory.forget()
        assert memory.recall(rows)["decisions"].tolist() == [0, 0]

    def test_holds_nothing_for_policies_without_a_state(self) -> None:
        memory = victim().memory(2)
        rows = {"a_0": torch.arange(2)}
        assert memory.recall(rows) is None
        memory.advance(rows, victim().policy("a_0").next_state(torch.zeros(2, 6)))

    def test_an_attack_asks_without_moving_the_state(self) -> None:
        team = victim(modules={"shared": stack()})
        memory, rows = team.memory(4), {"a_0": torch.arange(4)}
        obs = torch.randn(4, 6, generator=generator())
        memory.advance(rows, team.policy("a_0", state=memory.recall(rows)).next_state(obs))
        before = memory.recall(rows)
        policy = team.policy("a_0", state=before)
        attack = PGD(perturbations=PerturbationSet(epsilon=0.5), steps=5, restarts=2, objective="kl")
        attacked = attack(policy, obs, generator=generator())
        assert (attacked.value > attacked.clean_value).all(), "it climbs by the gradient through the LSTM"
        for then, now in zip(leaves(before), leaves(memory.recall(rows)), strict=True):
            assert torch.equal(then, now)
        memory.advance(rows, policy.next_state(attacked.perturbed))
        _, expected = team.modules["shared"](attacked.perturbed, before)
        for now, then in zip(leaves(memory.recall(rows)), leaves(expected), strict=True):
            assert torch.equal(now, then)


class TestPolicy:
    def test_the_state_follows_the_rows(self) -> None:
        team = victim(modules={"shared": stack()})
        state = map_tree(lambda x: torch.randn(x.shape, generator=generator()), stack().initial_state(4))
        policy = team.policy("a_0", state=state)
        obs = torch.randn(4, 6, generator=generator())
        index = torch.tensor([2, 0])
        torch.testing.assert_close(policy.select(index)(obs[index]), policy(obs)[index])
        torch.testing.assert_close(policy.repeat(2)(torch.cat([obs, obs])), policy(obs).repeat(2, 1))
        halves = [policy.select(part) for part in (index, torch.tensor([1, 3]))]
        torch.testing.assert_close(type(policy).joined(halves)(obs[[2, 0, 1, 3]]), policy(obs)[[2, 0, 1, 3]])

    def test_is_not_asked_without_a_state(self) -> None:
        with pytest.raises(ValueError, match=r"expected the state of a recurrent policy"):
            victim(modules={"shared": Counter()}).policy("a_0")(torch.zeros(1, 6))


class TestSingleGame:
    def test_act_moves_a_memory_that_begins_with_the_episode(self) -> None:
        team = victim(modules={"shared": Counter()})
        obs = {"a_0": torch.zeros(6).numpy()}
        for _ in range(2):
            memory = team.memory()
            assert [team.act(obs, memory=memory)["a_0"] for _ in range(3)] == [0, 1, 2]

    def test_act_asks_for_the_memory(self) -> None:
        with pytest.raises(ValueError, match=r"expected a memory .*victim\.memory\(\)"):
            victim(modules={"shared": Counter()}).act({"a_0": torch.zeros(6).numpy()})


class TestFiles:
    def test_layers_survive_to_the_last_bit(self, tmp_path: Path) -> None:
        teams = [team := victim(modules={"shared": stack()}), Victim.load(team.save(tmp_path / "victim"))]
        outputs = []
        for each in teams:
            memory, rows = each.memory(8), {"a_0": torch.arange(8)}
            for step in range(3):
                obs = torch.randn(8, 6, generator=generator(step))
                policy = each.policy("a_0", state=memory.recall(rows))
                outputs.append(policy(obs))
                memory.advance(rows, policy.next_state(obs))
        for first, second in zip(outputs[:3], outputs[3:], strict=True):
            assert torch.equal(first, second)

    def test_other_networks_are_not_saved(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match=r"expected layers out of .*got tests.*Counter"):
            victim(modules={"shared": Counter()}).save(tmp_path / "victim")


class TestRefused:
    @pytest.mark.parametrize(
        ("layers", "message"),
        [
            ([nn.Linear(2, 2)], "an LSTM or a GRU among the layers"),
            ([nn.GRU(2, 2, bidirectional=True)], "of one direction"),
            ([nn.LSTM(2, 2, proj_size=1)], "without projections"),
        ],
    )
    def test_stacks(self, layers: list[nn.Module], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            Recurrent(*layers)

    @pytest.mark.parametrize(
        ("result", "message"),
        [
            (lambda obs, state: obs[:, :5], r"return \(outputs, state\), got Tensor"),
            (lambda obs, state: (obs[:, :5], state[:1]), r"states \[B, \.\.\.\] of fixed shapes"),
        ],
    )
    def test_modules_that_do_not_keep_the_contract(self, result: Any, message: str) -> None:
        class Broken(Counter):
            def initial_state(self, rows: int) -> Any:
                return torch.zeros(rows, 3)

            def forward(self, obs: Tensor, state: Any) -> Any:
                return result(obs, state)

        with pytest.raises(ValueError, match=message):
            victim(modules={"shared": Broken()})

    def test_feed_forward_modules_need_no_state(self) -> None:
        assert not victim(modules={"shared": network(5)}).recurrent
        assert victim(modules={"shared": stack()}).recurrent
