"""Suites: a readable file that is checked when it is read, and what it makes of an evaluation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from marl_aajr.attacks import ATTACKS, Fault, make_attack
from marl_aajr.core.seeds import Purpose, derived_seed
from marl_aajr.core.threat import PerturbationSet
from marl_aajr.evaluation import Protocol, builtin_suites, evaluate, load_suite
from marl_aajr.rollout.environments import resolve
from marl_aajr.victims import ObservationFilter
from marl_aajr.victims.filters import through_filter
from tests.evaluation.players import FIELDS, sign_reader, signs, suite, team
from tests.networks import generator, observations

SPREAD = resolve("marl_aajr.envs.simple_spread_v3", {"max_cycles": 5})


class TestFile:
    def test_the_suites_and_what_issue_and_field_demand_of_them(self) -> None:
        suites = builtin_suites()
        assert list(suites) == ["quick", "standard", "full", "threats", "words"]
        for name in ("standard", "full"):
            chosen = suites[name]
            assert chosen.episodes >= 100
            assert set(chosen.actions) == {"greedy", "sampled"}
            assert chosen.units == "raw"
            assert chosen.selection_episodes > 0
            accesses = {entry.at(0.1).access for entry in chosen.attacks}
            # Learned adversaries take minutes: the full suite has them.
            expected = {"none", "queries", "gradients", "surrogate"}
            assert accesses == (expected | {"learned"} if name == "full" else expected)
        attacks = {name for name, cls in ATTACKS.items() if cls.sized and not issubclass(cls, Fault)}
        on_words = {name for name in attacks if ATTACKS[name].norms == ("words",)}
        assert {entry.attack for entry in suites["full"].attacks} == attacks - on_words
        assert {entry.attack for entry in suites["words"].attacks} == on_words
        beside = {name for name, cls in ATTACKS.items() if not cls.sized or issubclass(cls, Fault)}
        assert {entry.attack for entry in suites["threats"].attacks} >= beside
        assert len(suites["standard"].epsilons) == 3

    @pytest.mark.parametrize(
        ("asked", "expected"),
        [
            ({"suite": "quick"}, 25),
            ({"suite": "quick", "episodes": 4}, 2),
            ({"suite": "quick", "episodes": 5}, 3),
            ({"suite": "quick", "episodes": 1000}, 500),
            ({"suite": "quick", "episodes": 4, "selection_episodes": 25}, 25),
            ({"suite": suite(episodes=3, selection_episodes=1), "episodes": 4}, 2),
            ({"suite": suite(selection_episodes=0), "episodes": 4}, 0),
            ({"budget": "agents=1", "episodes": 4}, 2),
            ({"budget": "agents=1"}, 50),
            ({"episodes": 4}, 0),
        ],
    )
    def test_the_selection_keeps_its_proportion_to_the_episodes(
        self, asked: dict[str, Any], expected: int
    ) -> None:
        assert Protocol(**asked).settled().selection_episodes == expected

    def test_a_file_of_your_own(self, tmp_path: Path) -> None:
        path = tmp_path / "mine.yaml"
        path.write_text(yaml.safe_dump({**FIELDS, "attacks": [{"attack": "pgd", "steps": 3}]}))
        chosen = load_suite(path)
        assert chosen.name == "mine"
        assert chosen.attacks[0].at(0.5) == make_attack("pgd", epsilon=0.5, steps=3)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (
                {"attacks": ["pdg"]},
                r"attacks\.0: expected an attack out of .*; got 'pdg' \(did you mean pgd\?\)$",
            ),
            ({"attacks": [{"attack": "pgd", "sped": 1}]}, "settings of 'pgd' out of .*; got sped"),
            ({"attacks": []}, "attacks: missing or empty; add it"),
            ({"attacks": ["pgd", "pgd"]}, "expected each attack once, got pgd twice"),
            ({"epsilons": [0.1, -1]}, r"epsilons\.1: .*greater than 0"),
            ({"epsilons": [0.1, 0.1]}, "epsilons: expected each once"),
            ({"epsilons": [float("nan")]}, r"epsilons\.0: "),
            ({"actions": ["random"]}, r"actions\.0: .*'greedy' or 'sampled'"),
            ({"units": "metres"}, "units: .*'raw' or 'network'"),
            ({"episodes": 0}, "episodes: .*greater than or equal to 1"),
            ({"episode": 10}, "episode: unknown key; did you mean episodes"),
        ],
    )
    def test_mistakes_are_named_with_file_line_and_field(
        self, tmp_path: Path, change: dict[str, Any], message: str
    ) -> None:
        path = tmp_path / "mine.yaml"
        path.write_text(yaml.safe_dump({**FIELDS, **change}))
        with pytest.raises(ValueError, match=rf"mine\.yaml:\d+: .*{message}"):
            load_suite(path)

    def test_unknown_names_and_files(self, tmp_path: Path) -> None:
        with pytest.raises(
            ValueError, match="a suite out of quick, standard, full, threats, words; got 'quik'"
        ):
            load_suite("quik")
        with pytest.raises(ValueError, match=r"a configuration file at .*none\.yaml: No such file"):
            load_suite(tmp_path / "none.yaml")
        (tmp_path / "list.yaml").write_text("- 1")
        with pytest.raises(ValueError, match=r"a mapping of settings in .*list\.yaml, got list"):
            load_suite(tmp_path / "list.yaml")


class TestWorst:
    def test_it_is_chosen_on_other_episodes_and_reported_on_these(self) -> None:
        victim = team(SPREAD)
        attacks = ["fgsm", "pgd-margin", "pgd-targeted"]
        result = evaluate(victim, SPREAD, suite=suite(attacks=attacks, epsilons=[0.5]), seed=3)
        elsewhere = evaluate(
            victim,
            SPREAD,
            attacks=[(name, 0.5) for name in attacks],
            episodes=4,
            seed=derived_seed(3, Purpose.SELECTION),
        )
        assert elsewhere.clean.returns != result.clean.returns[:4]
        (worst,) = result.worst
        tried = {row.attack.name: row.mean for row in elsewhere.attacks}
        assert worst.attack.name == min(tried, key=lambda name: tried[name])
        assert worst.selection_return == pytest.approx(min(tried.values()))
        row = next(row for row in result.attacks if row.attack == worst.attack)
        assert (worst.mean, worst.low, worst.high) == (row.mean, row.low, row.high)

    def test_one_for_each_size(self) -> None:
        result = evaluate(team(signs(), sign_reader()), suite=suite())
        assert [(w.epsilon, w.attack.name) for w in result.worst][1] == (1.1, "pgd-margin")
        assert result.worst[1].mean == -result.clean_return

    def test_without_selection_nothing_is_chosen(self) -> None:
        assert evaluate(team(signs(), sign_reader()), attacks=[("pgd", 1.1)], episodes=3).worst == ()


class TestActions:
    def test_sampled_actions_are_paired_with_greedy_ones_and_share_their_random_numbers(self) -> None:
        """An attack that may not touch what counts changes no sampled action: the numbers are the same."""
        harmless = make_attack("noise", epsilon=9.0, mask=(False, True))
        result = evaluate(
            team(signs(), sign_reader()),
            attacks=[(harmless, 9.0)],
            actions=["greedy", "sampled"],
            episodes=20,
            num_envs=6,
        )
        greedy, sampled = result.results
        assert (greedy.actions, sampled.actions) == ("greedy", "sampled")
        assert sampled.clean.mean < greedy.clean.mean, "the sign reader is unsure at x = ±1: p = 0.88"
        assert sampled.attacks[0].returns == sampled.clean.returns
        assert result.clean is greedy.clean

    def test_an_attack_that_splits_the_agents_leaves_the_random_numbers_where_they_were(self) -> None:
        harmless = make_attack("noise", epsilon=9.0, mask=(False, True))
        result = evaluate(
            team(signs(), sign_reader()),
            attacks=[(harmless, 9.0)],
            actions=["sampled"],
            episodes=20,
            num_envs=6,
            budget="scale=agent_1:0.5",
        )
        assert result.attacks[0].returns == result.clean.returns

    def test_sampled_frequencies_are_the_policys(self) -> None:
        """p(right) = σ(2) at x = ±1, so a decision earns 2 σ(2) − 1 on average."""
        spec = signs(longest=1)
        result = evaluate(team(spec, sign_reader()), spec, actions=["sampled"], episodes=600)
        expected = 3 * (2 / (1 + np.exp(-2)) - 1)
        assert result.clean_return == pytest.approx(expected, abs=0.15)


class TestWho:
    def test_only_the_named_agents_are_lied_to(self) -> None:
        spec = signs(longest=1)
        result = evaluate(
            team(spec, sign_reader()), attacks=[("fgsm", 1.1)], episodes=5, agents=["agent_2", "agent_0"]
        )
        assert result.agents == ("agent_0", "agent_2")
        assert result.attacks[0].returns == (1.0 - 2.0,) * 5
        assert result.clean_return == 3.0
        assert result.attacks[0].success_rate == 1.0

    def test_refusals(self) -> None:
        victim = team(signs(teams=True), sign_reader())
        with pytest.raises(ValueError, match="agents out of agent_0, agent_1, agent_2; got 'agent_9'"):
            evaluate(victim, agents=["agent_9"])
        with pytest.raises(ValueError, match="agents of one team, got agent_0 of left, agent_1 of right"):
            evaluate(victim, agents=["agent_0", "agent_1"])
        with pytest.raises(ValueError, match="agents of one team, got agent_0 of left for team 'right'"):
            evaluate(victim, agents=["agent_0"], team="right")
        with pytest.raises(ValueError, match="at least one agent to attack, got none"):
            evaluate(victim, agents=[])


class TestUnits:
    def test_a_set_behind_a_filter_is_the_same_set(self) -> None:
        """Raw δ in the raw set ⇔ δ / scale in the filtered one; masks, scales and bounds move along."""
        seen = ObservationFilter(mean=torch.tensor([1.0, -2.0, 0.0]), std=torch.tensor([2.0, 0.5, 1.0]))
        raw = PerturbationSet(
            epsilon=0.3, scale=(1.0, 2.0, 1.0), mask=(True, True, False), low=-2.0, high=(2.0, 0.0, 5.0)
        )
        inside = through_filter(raw, seen)
        obs = observations(200, 3)
        deltas = 0.4 * observations(200, 3, seed=1) * torch.tensor([1.0, 1.0, 0.0])
        before = raw.contains(deltas, obs)
        after = inside.contains(deltas / seen.scale, seen(obs))
        assert torch.equal(before, after)
        assert 0.1 < before.float().mean() < 0.9
        assert through_filter(raw, None) is raw

    def test_nothing_passes_the_clipping(self) -> None:
        seen = ObservationFilter(mean=torch.zeros(1), std=torch.ones(1), clip=2.0)
        inside = through_filter(PerturbationSet(epsilon=1.0), seen)
        obs = torch.full((50, 1), 1.5, dtype=torch.float64)
        assert (obs + inside.sample(obs, generator=generator())).max() <= 2.0
