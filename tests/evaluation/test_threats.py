"""Threats without a size in an evaluation: sensor faults, other dynamics, disturbed actions."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from marl_aajr.attacks import ATTACKS, Fault
from marl_aajr.evaluation import Evaluation, evaluate
from marl_aajr.evaluation.evaluator import Progress
from marl_aajr.evaluation.sources import file_name
from marl_aajr.evaluation.threats import curves
from marl_aajr.evaluation.variations import parse_variation
from marl_aajr.rollout.environments import resolve
from marl_aajr.study.report import outcomes
from tests.evaluation.players import sign_reader, signs, stakes, suite, sure, team

SPREAD = resolve("marl_aajr.envs.simple_spread_v3", {"max_cycles": 8})
FAULTS = {name: cls for name, cls in ATTACKS.items() if issubclass(cls, Fault)}
STEPS = {"drift": {"steps": 4}, "freeze": {"steps": 4}, "delay": {"steps": 4}}


def entries(draws: int) -> list[dict[str, Any]]:
    """Every fault of the registry, harsh enough to change returns."""
    sized = {name: {"epsilon": 1.0} if cls.sized else {} for name, cls in FAULTS.items()}
    return [{"attack": name, "draws": draws, **STEPS.get(name, {}), **sized[name]} for name in FAULTS]


@pytest.fixture(scope="module")
def spread() -> Evaluation:
    attacks = [("noise", 1.0), ("pgd", 1.0), *entries(2)]
    settings: dict[str, Any] = {"episodes": 9, "selection_episodes": 4, "num_envs": 4, "workers": 1}
    return evaluate(sure(SPREAD), SPREAD, attacks=attacks, actions=["sampled"], **settings)


def test_the_worst_of_n_draws_is_the_least_of_each_episode_and_the_random_form_their_mean(
    spread: Evaluation,
) -> None:
    first = evaluate(
        sure(SPREAD), SPREAD, attacks=entries(1), episodes=9, num_envs=4, workers=1, actions=["sampled"]
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
        sure(SPREAD),
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


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"attacks": [{"attack": "delay", "steps": 8}]}, "an episode of 8 steps, got delay of 9; set its"),
    ({"attacks": [({"attack": "drift", "steps": 9}, 0.1)]}, "an episode of 8 steps, got drift of 9"),
    ({"attacks": ["swap"], "budget": "steps=2"}, "no steps in the budget for the fault 'swap'"),
    ({"attacks": ["swap"], "budget": "scale=agent_0:2"}, "no scale in the budget for the fault 'swap'"),
    ({"attacks": [("swap", 0.1)]}, "expected no epsilon for swap, which has no size, got 0.1"),
    ({"attacks": ["swap"], "epsilons": [0.1]}, "expected attacks and epsilons, or neither"),
    ({"attacks": ["swap", "swap"]}, "each attack once, got swap twice"),
    ({"vary": ["kwargs.sise=0.1"]}, "vary sise=0.1: expected arguments that .*'sise'.*takes .*size"),
    ({"vary": ["size=0.1"]}, r"vary: expected kwargs.NAME=VALUE.* to vary, got 'size=0.1'"),
    ({"vary": ["kwargs.mass="]}, "vary: expected kwargs.NAME=VALUE.*got 'kwargs.mass='"),
    ({"vary": ["kwargs.mass=1,,2"]}, "vary: expected kwargs.NAME=VALUE.*got 'kwargs.mass=1,,2'"),
    ({"vary": ["kwargs.mass=1,1"]}, "each value of mass once"),
    ({"vary": ["kwargs.mass=1", "kwargs.mass=2"]}, "each argument to vary once, got mass twice"),
    ({"vary": ["kwargs.mass=1:2:1"]}, "COUNT ≥ 2 to vary, got '1:2:1'"),
    ({"vary": ["kwargs.mass=a:2:3"]}, "numbers FROM:TO:COUNT"),
    ({"vary": ["kwargs.mass=1,0"]}, "vary mass=0: expected a finite mass > 0, got 0"),
    ({"vary": ["kwargs.N=3,4"]}, "vary N=4: expected the agents agent_0, agent_1, agent_2, got .*agent_3"),
    ({"vary": ["kwargs.continuous_actions=true"]}, "vary continuous_actions=True: .* victim for the actions"),
    ({"disturb": ["mix=0.1"]}, r"expected Box actions for mix, got Discrete\(5\)"),
    ({"disturb": ["gradient=0.1"]}, "expected Box actions for gradient"),
    ({"disturb": ["replace=1.1"]}, r"disturb: expected α of replace in \[0, 1\], got 1.1"),
    ({"disturb": ["replace=0.1,agents=bob"]}, "agent whose actions are disturbed .* got 'bob'"),
    ({"disturb": ["replace=0.1,by=/nowhere"]}, "expected the folder of a run, .* got /nowhere"),
    ({"disturb": ["replace=0.1", "replace=0.10"]}, "expected each disturbance once, got replace=0.1 twice"),
]


class TestRefusals:
    @pytest.mark.parametrize(("asked", "message"), REFUSED)
    def test_before_anything_is_played(self, asked: dict[str, Any], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            evaluate(
                team(SPREAD), SPREAD, episodes=2, on_progress=lambda _: pytest.fail("it was played"), **asked
            )

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

    def test_a_suite_leaves_out_what_does_not_fit(self) -> None:
        """A fault that is too long, an argument that the environment lacks, noise on discrete actions."""
        own = suite(
            attacks=["noise", "swap", {"attack": "freeze", "steps": 20}],
            epsilons=[0.9],
            vary=["kwargs.mass=2", "kwargs.wind=1"],
            disturb=["replace=0.5", "noise=0.5"],
        )
        told: list[Progress] = []
        result = evaluate(team(SPREAD), SPREAD, suite=own, on_progress=told.append)
        assert [skip.attack for skip in result.skipped] == ["freeze", "vary wind", "disturb noise=0.5"]
        assert result.skipped[0].reason.startswith("expected a fault that fits into an episode of 8 steps,")
        assert [row.label.partition(" (")[0] for row in result.results[0].threats] == [
            "swap",
            "swap",
            "replace, alpha 0.5",
            "mass = 2",
        ]
        assert told[-1].done == told[-1].total


class TestDynamics:
    """Arguments of the environment over several values, on the same seeds."""

    def test_every_value_is_what_an_evaluation_of_that_environment_says(self) -> None:
        settings: dict[str, Any] = {"episodes": 7, "num_envs": 4, "actions": ["sampled", "greedy"]}
        victim, vary = team(SPREAD), ["kwargs.mass=0.5:1.5:3", "kwargs.local_ratio=0.2"]
        told: list[Progress] = []
        result = evaluate(victim, SPREAD, vary=vary, on_progress=told.append, **settings)
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
                    victim, SPREAD.name, env_kwargs={**SPREAD.kwargs, **row.settings}, **settings
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
