"""Returns under attack: against closed forms, and against a loop that plays one game at a time."""

from __future__ import annotations

import importlib
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from marl_aajr.attacks import PGD, UniformNoise
from marl_aajr.core.policy import Policy
from marl_aajr.core.threat import PerturbationSet
from marl_aajr.evaluation import AttackSpec, Progress, evaluate
from marl_aajr.evaluation.outcomes import Units
from marl_aajr.rollout.batched_env import BatchedEnv
from marl_aajr.rollout.environments import EnvironmentSpec, resolve
from marl_aajr.rollout.pettingzoo_batch import PettingZooBatch
from marl_aajr.victims import ObservationFilter, Victim
from tests.evaluation.players import moves, network, returns_one_by_one, sign_reader, signs, team

evaluate_module = importlib.import_module("marl_aajr.evaluation.api")
"""The package has a function of this name."""

SPREAD = resolve("simple_spread_v3", {"max_cycles": 6})
ARRAYS = resolve("marl_aajr.envs.simple_spread_v3", {"max_cycles": 6})
CONTINUOUS = resolve("simple_spread_v3", {"max_cycles": 6, "continuous_actions": True})


def decisions(spec: EnvironmentSpec, *, episodes: int, seed: int, num_envs: int) -> list[float]:
    """In Signs a perfect team earns 1 for each decision."""
    perfect = team(spec, sign_reader())
    played = returns_one_by_one(perfect, spec, episodes=episodes, seed=seed, num_envs=num_envs)
    return [sum(total.values()) for total in played]


class TestClosedForm:
    """In Signs with x = ±1, an attack with ε < 1 changes nothing and one with ε > 1 everything."""

    @pytest.mark.parametrize("attack", ["fgsm", "pgd", "pgd-margin"])
    def test_returns_turn_over_exactly_where_they_must(self, attack: str) -> None:
        spec = signs()
        result = evaluate(
            team(spec, sign_reader()), attacks=[(attack, 0.9), (attack, 1.1)], episodes=20, num_envs=8
        )
        below, above = result.attacks
        expected = decisions(spec, episodes=20, seed=0, num_envs=8)
        assert list(result.clean.returns) == expected
        assert list(below.returns) == expected
        assert list(above.returns) == [-x for x in expected]
        assert (below.success_rate, above.success_rate) == (0.0, 1.0)
        assert result.clean_return == pytest.approx(np.mean(expected))

    def test_gain_is_the_objectives(self) -> None:
        """The margin is −2|x|; the worst δ adds 2ε."""
        result = evaluate(team(signs(), sign_reader()), attacks=[("pgd-margin", 0.3)], episodes=5)
        assert result.attacks[0].objective_gain == pytest.approx(0.6, abs=1e-5)

    def test_epsilon_is_in_units_of_the_frozen_filter(self) -> None:
        """x = ±50 and std = 50: the network sees ±1, so 0.9 is too little and 1.1 enough."""
        spec = signs(size=50.0)
        seen = ObservationFilter(mean=torch.zeros(2), std=torch.full((2,), 50.0))
        victim = team(spec, sign_reader(), filters=dict.fromkeys(["agent_0", "agent_1", "agent_2"], seen))
        sizes: dict[Units, tuple[float, float]] = {"network": (0.9, 1.1), "raw": (45.0, 55.0)}
        for units, (small, large) in sizes.items():
            result = evaluate(victim, attacks=[("fgsm", small), ("fgsm", large)], episodes=10, units=units)
            below, above = result.attacks
            assert below.returns == result.clean.returns
            assert above.mean == pytest.approx(-result.clean_return)
        with pytest.raises(
            ValueError, match=r"units 'raw' .* or 'network' .*'agent_0' has a filter; say which"
        ):
            evaluate(victim, attacks=[("fgsm", 0.9)], episodes=10)
        assert torch.equal(seen.mean, torch.zeros(2, dtype=torch.float64))

    def test_only_the_attacked_team_is_lied_to(self) -> None:
        spec = signs(teams=True)
        victim = team(spec, sign_reader())
        default = evaluate(victim, attacks=[("fgsm", 1.1)], episodes=9)
        assert default.team == "right", "the larger one"
        attacked, clean = default.attacks[0], default.clean
        assert attacked.team_returns["left"] == clean.team_returns["left"] > 0
        assert attacked.team_returns["right"] == -clean.team_returns["right"] == attacked.mean
        other = evaluate(victim, attacks=[("fgsm", 1.1)], episodes=9, team="left")
        assert other.attacks[0].mean == -clean.team_returns["left"]
        assert other.attacks[0].team_returns["right"] == clean.team_returns["right"]


class TestEpisodes:
    @pytest.mark.parametrize("spec", [signs(), moves(), SPREAD, CONTINUOUS], ids=lambda spec: spec.name)
    @pytest.mark.parametrize("num_envs", [4, 50])
    def test_every_assigned_episode_counts_once(self, spec: EnvironmentSpec, num_envs: int) -> None:
        """Ten episodes of very different length on four copies: no short one is preferred."""
        victim = team(spec)
        result = evaluate(victim, episodes=10, seed=7, num_envs=num_envs)
        expected = returns_one_by_one(victim, spec, episodes=10, seed=7, num_envs=min(num_envs, 10))
        members = [agent for agent, name in result.teams.items() if name == result.team]
        np.testing.assert_allclose(
            result.clean.returns, [sum(total[a] for a in members) for total in expected], rtol=1e-5
        )
        assert len(set(result.clean.returns)) > 1

    @pytest.mark.parametrize("spec", [SPREAD, ARRAYS], ids=["one by one", "as arrays"])
    def test_a_copy_plays_the_same_whatever_the_others_do(self, spec: EnvironmentSpec) -> None:
        victim = team(spec)
        few = evaluate(victim, attacks=[("fgsm", 0.3)], episodes=4, num_envs=4)
        many = evaluate(victim, attacks=[("fgsm", 0.3)], episodes=9, num_envs=9)
        assert many.clean.returns[:4] == few.clean.returns
        assert many.attacks[0].returns[:4] == few.attacks[0].returns

    def test_our_environments_are_played_as_arrays(self, monkeypatch: pytest.MonkeyPatch) -> None:
        built: list[type] = []
        original = evaluate_module.make_batch

        def spy(spec: EnvironmentSpec, num_envs: int, *, flat: bool) -> BatchedEnv:
            env = original(spec, num_envs, flat=flat)
            built.append(type(env))
            return env

        monkeypatch.setattr(evaluate_module, "make_batch", spy)
        for spec in (SPREAD, ARRAYS):
            evaluate(team(spec), spec, episodes=2)
        assert [issubclass(cls, PettingZooBatch) for cls in built] == [True, False]

    def test_a_row_is_the_same_whatever_the_other_rows_are(self) -> None:
        victim = team(SPREAD)
        alone = evaluate(victim, attacks=[("pgd", 0.3)], episodes=5)
        among = evaluate(victim, attacks=[("noise", 0.1), ("pgd", 0.1), ("pgd", 0.3)], episodes=5)
        assert alone.clean == among.clean
        assert alone.attacks[0] == among.attacks[2]

    def test_same_seed_same_json_and_no_global_random_numbers(self) -> None:
        victim = team(SPREAD)
        before = torch.get_rng_state()
        results = [
            evaluate(victim, attacks=[("noise", 0.5), ("pgd", 0.1)], episodes=4, seed=seed)
            for seed in (3, 3, 4)
        ]
        assert results[0].model_dump_json() == results[1].model_dump_json()
        assert results[0].clean.returns != results[2].clean.returns
        assert torch.equal(torch.get_rng_state(), before)

    def test_illegal_moves_are_never_made(self) -> None:
        """Moves raises on one; the attack is large enough to want them all."""
        victim = team(moves())
        result = evaluate(
            victim, attacks=[(a, 5.0) for a in ("noise", "fgsm", "pgd")], episodes=12, num_envs=5
        )
        assert all(row.success_rate > 0.1 for row in result.attacks)
        assert result.clean.team_returns["first"] == -result.clean.team_returns["second"]

    @pytest.mark.parametrize("spec", [SPREAD, CONTINUOUS], ids=["discrete", "continuous"])
    def test_attacks_bite_in_the_order_of_their_strength(self, spec: EnvironmentSpec) -> None:
        result = evaluate(team(spec), attacks=[("noise", 0.2), ("pgd", 0.2), ("pgd", 0.4)], episodes=6)
        noise, weak, strong = (row.kl for row in result.attacks)
        assert 0 < noise < weak < strong

    def test_agents_with_modules_of_their_own(self) -> None:
        spec = resolve("simple_speaker_listener_v4", {"max_cycles": 4})
        game = spec.make()
        shapes = {a: (s.shape or (0,))[0] for a, s in game.observation_spaces.items()}
        sizes = {a: int(getattr(s, "n", 0)) for a, s in game.action_spaces.items()}
        victim = Victim(
            module_of={agent: agent for agent in game.possible_agents},
            modules={a: network(sizes[a], shapes[a]) for a in game.possible_agents},
            observation_spaces=game.observation_spaces,
            action_spaces=game.action_spaces,
        )
        result = evaluate(victim, spec, attacks=[("pgd", 0.5)], episodes=5)
        expected = returns_one_by_one(victim, spec, episodes=5, seed=0, num_envs=5)
        np.testing.assert_allclose(result.clean.returns, [sum(e.values()) for e in expected], rtol=1e-5)
        assert result.attacks[0].returns != result.clean.returns

    def test_an_attack_of_your_own(self) -> None:
        attack = PGD(perturbations=PerturbationSet(epsilon=9.0, mask=(False, True)), steps=2)
        result = evaluate(team(signs(), sign_reader()), attacks=[(attack, 5.0)], episodes=6)
        assert result.attacks[0].attack == AttackSpec.of(attack.at(5.0))
        assert result.attacks[0].returns == result.clean.returns, "the sign may not be touched"

    def test_only_decisions_of_counted_episodes_are_attacked(self) -> None:
        rows: list[int] = []

        @dataclass(frozen=True, kw_only=True)
        class Counting(UniformNoise):
            def run(self, policy: Policy, obs: Tensor, *, generator: torch.Generator) -> Tensor:
                rows.append(len(obs))
                return torch.zeros_like(obs)

        spec = signs()
        attack = Counting(perturbations=PerturbationSet(epsilon=1.0))
        evaluate(team(spec, sign_reader()), attacks=[(attack, 1.0)], episodes=7, num_envs=3)
        assert sum(rows) == sum(decisions(spec, episodes=7, seed=0, num_envs=3))


class TestResults:
    def test_intervals_hold_the_mean_and_shrink(self) -> None:
        victim = team(signs(longest=30), sign_reader())
        few, many = (evaluate(victim, episodes=n).clean for n in (10, 160))
        for outcome in (few, many):
            assert outcome.low is not None
            assert outcome.high is not None
            assert outcome.low < outcome.mean < outcome.high
        assert many.high - many.low < 0.5 * (few.high - few.low)  # type: ignore[operator]
        spread = np.std(many.returns, ddof=1) / np.sqrt(160)
        assert many.high - many.low == pytest.approx(2 * 1.96 * spread, rel=0.1)  # type: ignore[operator]

    def test_a_single_episode_has_no_interval_and_equal_ones_a_point(self) -> None:
        victim = team(signs(longest=1), sign_reader())
        single = evaluate(victim, episodes=1).clean
        assert (single.low, single.high) == (None, None)
        equal = evaluate(victim, episodes=5).clean
        assert equal.low == equal.mean == equal.high == 3.0

    def test_progress_counts_every_episode_of_every_row(self) -> None:
        told: list[Progress] = []
        evaluate(team(signs()), attacks=[("noise", 0.5)], episodes=7, num_envs=3, on_progress=told.append)
        assert [p.done for p in told] == list(range(1, 15))
        assert {p.total for p in told} == {14}
        assert [p.what for p in told] == ["clean"] * 7 + ["noise 0.5"] * 7

    @pytest.mark.usefixtures("two_threads")
    def test_it_takes_one_thread_and_gives_back_the_others(self) -> None:
        taken = []

        def stop(progress: Progress) -> None:
            taken.append(torch.get_num_threads())
            if progress.done == 2:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            evaluate(team(signs()), episodes=3, on_progress=stop)
        assert (taken, torch.get_num_threads()) == ([1, 1], 2)


def test_gradients_are_off_and_the_victim_is_as_before() -> None:
    victim = team(SPREAD)
    kept = [p.clone() for p in victim.modules["shared"].parameters()]
    evaluate(victim, attacks=[("pgd", 0.5)], episodes=2)
    for parameter, before in zip(victim.modules["shared"].parameters(), kept, strict=True):
        assert parameter.grad is None
        assert torch.equal(parameter, before)
    assert isinstance(victim.modules["shared"], nn.Module)
