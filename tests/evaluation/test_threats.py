"""Threats without a size in an evaluation: sensor faults, other dynamics, disturbed actions."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from marl_aajr.adversaries.robust_sarsa import RobustSarsa
from marl_aajr.attacks import ATTACKS, Fault
from marl_aajr.evaluation import Evaluation, disturbed_rows, evaluate
from marl_aajr.evaluation.disturbed_rows import DescendedValue, disturbance_checks
from marl_aajr.evaluation.evaluator import Progress
from marl_aajr.evaluation.sources import file_name
from marl_aajr.evaluation.threats import curves
from marl_aajr.evaluation.variations import parse_variation
from marl_aajr.rollout.environments import make_batch, resolve
from marl_aajr.study.report import outcomes
from marl_aajr.victims import Victim
from tests.evaluation.players import sign_reader, signs, stakes, suite, team

SPREAD = resolve("marl_aajr.envs.simple_spread_v3", {"max_cycles": 8})
PHYSICS = resolve("marl_aajr.envs.simple_spread_v3", {"max_cycles": 6})
FAULTS = {name: cls for name, cls in ATTACKS.items() if issubclass(cls, Fault)}
STEPS = {"drift": {"steps": 4}, "freeze": {"steps": 4}, "delay": {"steps": 4}}


def sure() -> Victim:
    """A team on simple_spread whose actions follow from what it sees."""
    victim = team(SPREAD)
    with torch.no_grad():
        for parameter in victim.modules["shared"].parameters():
            parameter.mul_(4)
    return victim


def entries(draws: int) -> list[dict[str, Any]]:
    """Every fault of the registry, harsh enough to change returns."""
    sized = {name: {"epsilon": 1.0} if cls.sized else {} for name, cls in FAULTS.items()}
    return [{"attack": name, "draws": draws, **STEPS.get(name, {}), **sized[name]} for name in FAULTS]


@pytest.fixture(scope="module")
def spread() -> Evaluation:
    attacks = [("noise", 1.0), ("pgd", 1.0), *entries(2)]
    settings: dict[str, Any] = {"episodes": 9, "selection_episodes": 4, "num_envs": 4, "workers": 1}
    return evaluate(sure(), SPREAD, attacks=attacks, actions=["sampled"], **settings)


def test_the_worst_of_n_draws_is_the_least_of_each_episode_and_the_random_form_their_mean(
    spread: Evaluation,
) -> None:
    first = evaluate(
        sure(), SPREAD, attacks=entries(1), episodes=9, num_envs=4, workers=1, actions=["sampled"]
    ).results[0]
    assert [(row.name, row.form) for row in first.threats] == [
        (name, form) for name in FAULTS for form in ("random", "worst")
    ]
    for once, worst_once, random, worst in zip(
        first.threats[::2],
        first.threats[1::2],
        *(spread.results[0].threats[i::2] for i in (0, 1)),
        strict=True,
    ):
        assert once.returns == worst_once.returns
        second = 2 * np.array(random.returns) - once.returns
        assert np.allclose(worst.returns, np.minimum(once.returns, second)), worst.name
        assert np.less_equal(worst.returns, random.returns).all()
        assert not np.allclose(worst.returns, random.returns), worst.name
        assert not np.allclose(once.returns, spread.clean.returns), once.name
        assert (random.draws, worst.draws, once.draws) == (2, 2, 1)
        assert random.team_returns == {"team": pytest.approx(random.mean)}
        assert worst.team_returns == {"team": pytest.approx(worst.mean)}


def test_attacks_know_nothing_of_faults_beside_them(spread: Evaluation) -> None:
    """Neither their random numbers, nor the choice of the worst, nor the checks."""
    alone = evaluate(
        sure(),
        SPREAD,
        attacks=[("noise", 1.0), ("pgd", 1.0)],
        actions=["sampled"],
        episodes=9,
        selection_episodes=4,
        num_envs=4,
        workers=1,
    )
    assert (spread.attacks, spread.worst, spread.checks) == (alone.attacks, alone.worst, alone.checks)
    assert spread.clean == alone.clean
    assert not alone.results[0].threats
    assert file_name(spread) != file_name(alone)
    table = list(outcomes(spread.results[0]))
    assert len(table) == len(list(outcomes(alone.results[0]))) + 2 * len(FAULTS)
    assert [row["settings"] for row in table if row["attack"] == "swap"] == [
        "swap (random)",
        "swap (worst of 2)",
    ]
    assert Evaluation.model_validate_json(spread.model_dump_json()) == spread


def test_what_a_fault_costs_in_closed_form() -> None:
    """Who sees 0 names the first sign; who sees the last sign is right where it did not change."""
    spec = signs(longest=6)
    victim = team(spec, sign_reader())
    rows = evaluate(
        victim,
        spec,
        attacks=[
            {"attack": "dropout", "share": 1.0, "draws": 1},
            {"attack": "delay", "steps": 1, "share": 1.0},
        ],
        episodes=12,
        num_envs=5,
    ).results[0]
    dropped, _, delayed, worst = rows.threats
    assert dropped.label == "dropout, share 1 (random)"
    assert worst.label == "delay, share 1, steps 1 (worst of 8)"
    assert delayed.returns == pytest.approx(worst.returns), "a delay of all sensors is not random"
    expected_dropped, expected_delayed = [], []
    for i in range(12):
        game = spec.make()
        sequence = np.random.SeedSequence(0, spawn_key=(i % 5, i // 5))
        turn = game.reset(seed=int(sequence.generate_state(1)[0] >> 1))
        last, zero, late = dict.fromkeys(turn.acting, None), 0.0, 0.0
        while not turn.over:
            now = {agent: turn.obs[agent][0] > 0 for agent in turn.acting}
            zero += sum(1 if not sign else -1 for sign in now.values())
            late += sum(1 if last[a] in (None, sign) else -1 for a, sign in now.items())
            last = dict(now)
            turn = game.step({agent: int(sign) for agent, sign in now.items()})
        expected_dropped.append(zero)
        expected_delayed.append(late)
    assert dropped.returns == pytest.approx(expected_dropped)
    assert delayed.returns == pytest.approx(expected_delayed)


def test_the_worst_agent_of_a_fault_is_found_and_the_others_see_clearly() -> None:
    spec = stakes(worth=(1.0, 5.0), steps=6)
    victim = team(spec, sign_reader())
    settings: dict[str, Any] = {"episodes": 8, "num_envs": 4, "selection_episodes": 6}
    blind = {"attack": "dropout", "share": 1.0, "draws": 2}
    found = evaluate(victim, spec, attacks=[blind], budget="agents=1", **settings)
    named = evaluate(victim, spec, attacks=[blind], agents=["agent_1"], **settings)
    assert [row.agents for row in found.results[0].threats] == [("agent_1",)] * 2
    assert found.results[0].threats == named.results[0].threats


class TestRefusals:
    @pytest.mark.parametrize(
        ("asked", "message"),
        [
            (
                {"attacks": [{"attack": "delay", "steps": 8}]},
                "an episode of 8 steps, got delay of 9; set its",
            ),
            ({"attacks": [({"attack": "drift", "steps": 9}, 0.1)]}, "an episode of 8 steps, got drift of 9"),
            ({"attacks": ["swap"], "budget": "steps=2"}, "no steps in the budget for the fault 'swap'"),
            (
                {"attacks": ["swap"], "budget": "scale=agent_0:2"},
                "no scale in the budget for the fault 'swap'",
            ),
            ({"attacks": [("swap", 0.1)]}, "expected no epsilon for swap, which has no size, got 0.1"),
            ({"attacks": ["swap"], "epsilons": [0.1]}, "expected attacks and epsilons, or neither"),
            ({"attacks": ["swap", "swap"]}, "each attack once, got swap twice"),
        ],
    )
    def test_before_anything_is_played(self, asked: dict[str, Any], message: str) -> None:
        def played(_: object) -> None:
            raise AssertionError("an episode was played")

        with pytest.raises(ValueError, match=message):
            evaluate(team(SPREAD), SPREAD, episodes=2, on_progress=played, **asked)

    @pytest.mark.parametrize("name", ["mpe2.simple_spread_v3", "marl_aajr.envs.congestion_v0"])
    def test_the_length_of_an_episode_is_read_from_the_factory(self, name: str) -> None:
        spec = resolve(name)
        with pytest.raises(ValueError, match="an episode of 25 steps, got delay of 26"):
            evaluate(
                team(spec), spec, attacks=[{"attack": "delay", "steps": 25}], episodes=1, agents=["agent_0"]
            )

    def test_where_nobody_says_how_long_episodes_are_they_are_counted(self) -> None:
        spec = signs(longest=6)
        with pytest.raises(ValueError, match="an episode of 6 steps, got delay of 8"):
            evaluate(team(spec, sign_reader()), spec, attacks=[{"attack": "delay", "steps": 7}], episodes=20)

    def test_a_suite_leaves_out_what_does_not_fit(self, tmp_path: Path) -> None:
        own = suite(attacks=["noise", "swap", {"attack": "freeze", "steps": 20}], epsilons=[0.9])
        result = evaluate(team(SPREAD), SPREAD, suite=own)
        assert [(skip.attack, skip.reason.split(",")[0]) for skip in result.skipped] == [
            ("freeze", "expected a fault that fits into an episode of 8 steps")
        ]
        assert [row.name for row in result.results[0].threats] == ["swap", "swap"]


class TestDynamics:
    """Arguments of the environment over several values, on the same seeds."""

    def test_every_value_is_what_an_evaluation_of_that_environment_says(self) -> None:
        settings: dict[str, Any] = {"episodes": 7, "num_envs": 4, "actions": ["sampled", "greedy"]}
        victim, vary = team(PHYSICS), ["kwargs.mass=0.5:1.5:3", "kwargs.local_ratio=0.2"]
        told: list[Progress] = []
        result = evaluate(victim, PHYSICS, vary=vary, on_progress=told.append, **settings)
        assert (told[-1].done, told[-1].total) == (2 * 5 * 7, 2 * 5 * 7)
        for rows in result.results:
            assert [row.label for row in rows.threats] == [
                "mass = 0.5",
                "mass = 1",
                "mass = 1.5",
                "local_ratio = 0.2",
            ]
            for row in rows.threats:
                alone = evaluate(
                    victim, PHYSICS.name, env_kwargs={**PHYSICS.kwargs, **row.settings}, **settings
                )
                clean = next(own.clean for own in alone.results if own.actions == rows.actions)
                assert row.returns == clean.returns
            assert rows.threats[1].returns == rows.clean.returns
            mass, ratio = curves(rows.threats)
            assert (mass.argument, mass.values, ratio.values) == ("mass", (0.5, 1.0, 1.5), (0.2,))
            means = [row.mean for row in rows.threats[:3]]
            assert mass.mean == pytest.approx(np.mean(means))
            assert mass.worst.mean == min(means)
        assert Evaluation.model_validate_json(result.model_dump_json()) == result

    @pytest.mark.parametrize(
        ("text", "values"),
        [
            ("kwargs.N=3:5:3", (3, 4, 5)),
            ("env.kwargs.mass=0.5:2:4", (0.5, 1.0, 1.5, 2.0)),
            ("kwargs.mass=0:1:3", (0.0, 0.5, 1.0)),
            ("kwargs.size= 1e-1, 2", (0.1, 2)),
            ("kwargs.kind=red,true", ("red", True)),
        ],
    )
    def test_ways_to_write_values(self, text: str, values: tuple[Any, ...]) -> None:
        found = parse_variation(text).values
        assert found == values
        assert [type(value) for value in found] == [type(value) for value in values]

    @pytest.mark.parametrize(
        ("vary", "message"),
        [
            (
                ["kwargs.sise=0.1"],
                "vary sise=0.1: expected arguments that .* takes, .*'sise'.*it takes .*size",
            ),
            (["size=0.1"], r"vary: expected kwargs.NAME=VALUE.* to vary, got 'size=0.1'"),
            (["kwargs.mass="], "vary: expected kwargs.NAME=VALUE.*got 'kwargs.mass='"),
            (["kwargs.mass=1,,2"], "vary: expected kwargs.NAME=VALUE.*got 'kwargs.mass=1,,2'"),
            (["kwargs.mass=1,1"], "each value of mass once"),
            (["kwargs.mass=1", "kwargs.mass=2"], "each argument to vary once, got mass twice"),
            (["kwargs.mass=1:2:1"], "COUNT ≥ 2 to vary, got '1:2:1'"),
            (["kwargs.mass=a:2:3"], "numbers FROM:TO:COUNT"),
            (["kwargs.mass=1,0"], "vary mass=0: expected a finite mass > 0, got 0"),
            (["kwargs.N=3,4"], "vary N=4: expected the agents agent_0, agent_1, agent_2, got .*agent_3"),
            (
                ["kwargs.continuous_actions=true"],
                "vary continuous_actions=True: expected a victim for the actions",
            ),
        ],
    )
    def test_what_cannot_be_played_is_refused_before_anything_is(self, vary: list[str], message: str) -> None:
        def played(_: object) -> None:
            raise AssertionError("an episode was played")

        with pytest.raises(ValueError, match=message):
            evaluate(team(PHYSICS), PHYSICS, episodes=2, vary=vary, on_progress=played)

    def test_a_suite_leaves_out_what_the_environment_lacks(self) -> None:
        own = suite(vary=["kwargs.mass=2", "kwargs.wind=1"], attacks=["noise"], epsilons=[0.9])
        result = evaluate(team(PHYSICS), PHYSICS, suite=own)
        assert [row.label for row in result.results[0].threats] == ["mass = 2"]
        assert [skip.attack for skip in result.skipped] == ["vary wind"]


class TestActions:
    """Disturbed actions: by chance, by another policy, by the gradient of a critic."""

    BOXES = resolve("marl_aajr.envs.simple_spread_v3", {"max_cycles": 6, "continuous_actions": True})

    def test_what_changes_nothing_returns_what_is_returned_undisturbed(self, tmp_path: Path) -> None:
        """α = 0 to the bit; the team itself as its adversary to rounding, whatever α."""
        victim = sure()
        victim.save(tmp_path / "same")
        by = f"by={tmp_path / 'same'}"
        asked = ["replace=0", f"replace=1,{by}", f"replace=0.4,{by}"]
        settings: dict[str, Any] = {"episodes": 7, "num_envs": 4}
        result = evaluate(victim, SPREAD, disturb=asked, **settings)
        rows = {row.label: row for row in result.results[0].threats}
        assert list(rows) == [
            "replace, alpha 0 (random)",
            "replace, alpha 1 (random)",
            "replace, alpha 1 (trained)",
            "replace, alpha 0.4 (random)",
            "replace, alpha 0.4 (trained)",
        ]
        assert rows["replace, alpha 0 (random)"].returns == result.clean.returns
        for alpha in ("1", "0.4"):
            assert rows[f"replace, alpha {alpha} (trained)"].returns == pytest.approx(result.clean.returns)
            chance = rows[f"replace, alpha {alpha} (random)"]
            assert chance.mean != pytest.approx(result.clean.mean)
            assert (chance.agents, chance.source) == (result.agents, "")
        assert rows["replace, alpha 1 (trained)"].source == str(tmp_path / "same")
        assert Evaluation.model_validate_json(result.model_dump_json()) == result

    @pytest.mark.parametrize("normalized", [False, True])
    def test_a_gradient_descends_to_the_corner_where_a_linear_critic_is_least(self, normalized: bool) -> None:
        """Whatever units the policy's actions have, u is one of the environment's."""
        victim = replace(team(self.BOXES), normalize_actions=normalized)
        slope = torch.tensor([1.0, -2.0, 0.5, 0.0, -3.0])
        seen: list[torch.Tensor] = []

        class Linear(torch.nn.Module):
            def forward(self, obs: torch.Tensor, actions: torch.Tensor) -> torch.Tensor:
                seen.append(actions.detach())
                return actions @ slope

        worst = DescendedValue(victim, ("agent_0",), {"shared": Linear()}, 0.4)  # type: ignore[dict-item]
        own = torch.full((3, 5), 0.25)
        u = worst(make_batch(self.BOXES, 3), {"agent_0": torch.zeros(3, 18)}, {"agent_0": own})["agent_0"]
        assert torch.equal(u, -slope.sign().expand(3, 5))
        start, step = (-0.5, 0.4) if normalized else (0.25, 0.2)
        torch.testing.assert_close(seen[0], torch.full((3, 5), start))
        torch.testing.assert_close(seen[-1], start - step * slope.sign().expand(3, 5))

    def test_a_gradient_is_played_beside_noise_and_a_check_says_where_it_is_weaker(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        short = partial(RobustSarsa, experience=80, updates=2)
        monkeypatch.setattr(disturbed_rows, "RobustSarsa", short)
        result = evaluate(
            team(self.BOXES), self.BOXES, disturb=["gradient=0.5", "mix=0"], episodes=8, num_envs=4
        )
        noise, gradient, mixed = result.results[0].threats
        assert (noise.label, gradient.label) == ("noise, size 0.5 (random)", "gradient, size 0.5 (worst)")
        assert noise.returns != gradient.returns
        assert mixed.returns == result.clean.returns
        (check,) = result.checks
        assert check.name == "returns (greedy): gradient, size 0.5 (worst)"
        for loss, verdict in ((-1.0, "pass"), (1.0, "fail")):
            left = {"returns": tuple(value + loss for value in noise.returns), "mean": noise.mean + loss}
            rows = (noise, gradient.model_copy(update=left))
            (found,) = disturbance_checks(result.results[0].model_copy(update={"threats": rows}))
            assert found.verdict == verdict
            assert found.text.startswith("Undertrained" if verdict == "fail" else "It hurts")

    def test_others_play_as_they_do(self) -> None:
        """Of two agents with a worth of their own only the disturbed one loses."""
        spec = stakes(worth=(1.0, 10.0), steps=6)
        settings: dict[str, Any] = {"episodes": 9, "num_envs": 4}
        (row,) = (
            evaluate(team(spec, sign_reader()), spec, disturb=["replace=1,agents=agent_0"], **settings)
            .results[0]
            .threats
        )
        assert all(54 <= value <= 66 for value in row.returns)
        assert row.mean < 66
        assert row.agents == ("agent_0",)

    @pytest.mark.parametrize(
        ("disturb", "message"),
        [
            (["mix=0.1"], r"expected Box actions for mix, got Discrete\(5\)"),
            (["gradient=0.1"], "expected Box actions for gradient"),
            (["replace=1.1"], r"disturb: expected α of replace in \[0, 1\], got 1.1"),
            (["replace=0.1,agents=bob"], "agent whose actions are disturbed .* got 'bob'"),
            (["replace=0.1,by=/nowhere"], "expected the folder of a run, .* got /nowhere"),
            (["replace=0.1", "replace=0.10"], "expected each disturbance once, got replace=0.1 twice"),
        ],
    )
    def test_what_cannot_be_played_is_refused_before_anything_is(
        self, disturb: list[str], message: str
    ) -> None:
        def played(_: object) -> None:
            raise AssertionError("an episode was played")

        with pytest.raises(ValueError, match=message):
            evaluate(team(PHYSICS), PHYSICS, episodes=2, disturb=disturb, on_progress=played)

    def test_a_suite_leaves_out_what_actions_do_not_allow(self) -> None:
        own = suite(disturb=["replace=0.5", "noise=0.5"], attacks=["noise"], epsilons=[0.9])
        told: list[Progress] = []
        result = evaluate(team(PHYSICS), PHYSICS, suite=own, on_progress=told.append)
        assert [row.label for row in result.results[0].threats] == ["replace, alpha 0.5 (random)"]
        assert [skip.attack for skip in result.skipped] == ["disturb noise=0.5"]
        assert told[-1].done == told[-1].total
