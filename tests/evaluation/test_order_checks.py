"""Attacks that come in the wrong order, made up: what is said of each disorder."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from marl_aajr.attacks import Attack, make_attack
from marl_aajr.core.distributions import Categorical
from marl_aajr.evaluation.attack_entries import AttackEntry
from marl_aajr.evaluation.order_checks import lower, objective_checks, return_checks
from marl_aajr.evaluation.outcomes import AttackOutcome, AttackSpec, Outcome
from marl_aajr.evaluation.result import ActionsResult, Check
from tests.networks import generator


def names(checks: list[Check], verdict: str) -> list[str]:
    return [check.name for check in checks if check.verdict == verdict]


class TestOrderOfObjectives:
    ROWS = 200

    def gains(self, **changed: float) -> dict[str, Tensor]:
        base = {
            "noise": 1.0,
            "one step": 2.0,
            "ten steps": 3.0,
            "twenty steps": 3.1,
            "strong": 3.2,
            "square": 3.0,
        }
        wiggle = 0.1 * torch.randn(self.ROWS, generator=generator(), dtype=torch.float64)
        return {name: value + wiggle for name, value in (base | changed).items()}

    def test_sound(self) -> None:
        larger = {name: 2 * gain for name, gain in self.gains().items()}
        checks = objective_checks({0.1: self.gains(), 0.2: larger})
        assert names(checks, "pass") == [check.name for check in checks]

    @pytest.mark.parametrize(
        ("changed", "name", "verdict"),
        [
            ({"noise": 2.5}, "noise ≤ one step", "fail"),
            ({"one step": 3.5}, "one step ≤ ten steps", "fail"),
            ({"twenty steps": 4.0}, "ten steps ≈ twenty steps", "warn"),
            ({"square": 4.0}, "no gradients ≤ gradients", "fail"),
        ],
    )
    def test_each_disorder_is_named(self, changed: dict[str, float], name: str, verdict: str) -> None:
        assert names(objective_checks({0.1: self.gains(**changed)}), verdict) == [name]

    def test_a_larger_ball_that_yields_less(self) -> None:
        smaller = {name: 0.5 * gain for name, gain in self.gains().items()}
        assert names(objective_checks({0.1: self.gains(), 0.2: smaller}), "fail") == [
            "larger ε, larger objective"
        ]

    def test_a_hair_ahead_is_not_ahead(self) -> None:
        """Random search on small observations comes close to the optimum: 2 % more is no masking."""
        assert names(objective_checks({0.1: self.gains(square=3.26)}), "fail") == []


def fields(returns: Iterable[float]) -> dict[str, Any]:
    """The fields of an `Outcome` with these returns, without an interval."""
    values = tuple(returns)
    return {"mean": sum(values) / len(values), "low": None, "high": None, "returns": values}


class TestOrderOfReturns:
    def rows(self, *found: tuple[str | Attack, float, float], gains: Sequence[float] = ()) -> ActionsResult:
        """(attack, ε, mean return), and what each gains on the objective: the same where nothing is said."""
        spread = torch.randn(40, generator=generator(), dtype=torch.float64).tolist()

        attacks = tuple(
            AttackOutcome(
                **fields(mean + x for x in spread),
                attack=AttackSpec.of(AttackEntry.model_validate(attack).at(epsilon)),
                epsilons={"agent_0": epsilon},
                success_rate=0.0,
                objective_gain=gain,
                kl=0.0,
            )
            for (attack, epsilon, mean), gain in zip(found, gains or [0.0] * len(found), strict=True)
        )
        return ActionsResult(actions="greedy", clean=Outcome(**fields(spread)), attacks=attacks)

    def checks(self, rows: ActionsResult) -> list[Check]:
        return return_checks(rows, [Categorical(2)])

    def test_sound(self) -> None:
        rows = self.rows(("noise", 0.1, -1.0), ("square", 0.1, -3.0), ("pgd", 0.1, -4.0), ("pgd", 0.2, -5.0))
        assert [check.verdict for check in self.checks(rows)] == ["pass"]

    @pytest.mark.parametrize("weak", ["noise", "fgsm"])
    def test_noise_or_a_single_step_that_hurts_more(self, weak: str) -> None:
        (check,) = self.checks(self.rows((weak, 0.1, -5.0), ("pgd", 0.1, -4.0)))
        assert (check.verdict, check.name) == ("fail", "returns (greedy): noise, one step ≤ many steps")
        assert f"{weak} lowers the return to -5" in check.text

    def test_a_single_step_alone_is_the_strongest(self) -> None:
        (check,) = self.checks(self.rows(("noise", 0.1, -5.0), ("fgsm", 0.1, -4.0)))
        assert check.verdict == "fail"
        assert " of fgsm, the strongest" in check.text

    @pytest.mark.parametrize("black", ["square", "transfer"])
    def test_an_attack_without_gradients_that_hurts_more(self, black: str) -> None:
        (check,) = self.checks(self.rows((black, 0.1, -5.0), ("pgd", 0.1, -4.0)))
        assert check.verdict == "fail"
        assert f"{black} lowers the return" in check.text

    @pytest.mark.parametrize(
        ("weak", "strong", "gain", "verdict"),
        [
            ("noise", "fgsm", 1.0, "fail"),
            ("noise", "fgsm", -1.0, "warn"),
            ("fgsm", "pgd-margin", 1.0, "fail"),
            ("fgsm", "pgd", 1.0, "warn"),
            (make_attack("pgd", epsilon=1.0), make_attack("pgd", epsilon=1.0, steps=20), 1.0, "fail"),
            ("pgd", "pgd-strong", 1.0, "fail"),
            ("pgd-margin", "pgd-strong-margin", 1.0, "fail"),
            ("pgd", "pgd-margin", 1.0, "pass"),
            ("pgd", "pgd-strong-margin", 1.0, "pass"),
        ],
    )
    def test_each_step_of_the_ladder(
        self, weak: str | Attack, strong: str | Attack, gain: float, verdict: str
    ) -> None:
        """Of two that maximise the same, the one that gains more may not hurt less; critic is the worst."""
        rows = self.rows(
            (weak, 0.1, -5.0), (strong, 0.1, -4.0), ("critic", 0.1, -6.0), gains=(0.0, gain, 0.0)
        )
        (check,) = self.checks(rows)
        assert check.verdict == verdict
        if verdict != "pass":
            assert check.name == "returns (greedy): noise ≤ one step ≤ many steps ≤ twice as many"
            assert "lowers the return to -5" in check.text

    def test_of_many_pairs_one_is_out_of_order_by_chance(self) -> None:
        """Differences of 0.05 ± 0.1 (t = 3 of 39 degrees): beyond doubt alone, not as one of thirty."""
        gaps = torch.linspace(-1, 1, 40, dtype=torch.float64)
        gaps = 0.05 + 0.1 * gaps / gaps.std()
        nothing, more = (Outcome(**fields(x.tolist())) for x in (0 * gaps, gaps))
        assert lower(nothing, more)
        assert not lower(nothing, more, among=30)

    def test_a_learned_adversary_that_hurts_less_than_a_myopic_one_is_undertrained(self) -> None:
        (check,) = self.checks(self.rows(("pgd", 0.1, -5.0), ("sa-rl", 0.1, -4.0), ("pa-ad", 0.1, -6.0)))
        assert (check.verdict, check.name) == ("warn", "returns (greedy): myopic ≤ learned")
        assert check.text.startswith("Undertrained: at ε = 0.1 sa-rl leaves a return of -4")
        assert "no evidence of robustness" in check.text

    @pytest.mark.parametrize(("noise", "learned"), [(-1.0, 1.0), (-3.0, -2.0)])
    def test_one_that_hurts_less_than_noise_or_nothing_fails(self, noise: float, learned: float) -> None:
        rows = self.rows(("noise", 0.1, noise), ("pgd", 0.1, -5.0), ("sa-rl", 0.1, learned))
        (check,) = self.checks(rows)
        assert (check.verdict, check.name) == ("fail", "returns (greedy): untrained ≤ learned")

    @pytest.mark.parametrize(("gain", "verdict"), [(1.0, "fail"), (-1.0, "warn")])
    def test_more_room_and_less_harm(self, gain: float, verdict: str) -> None:
        (check,) = self.checks(self.rows(("pgd", 0.1, -5.0), ("pgd", 0.2, -4.0), gains=(0.0, gain)))
        assert (check.verdict, check.name) == (verdict, "returns (greedy): larger ε, lower return")

    def test_within_the_paired_interval_nothing_is_said(self) -> None:
        """The episodes differ by 1, their differences by nothing but 0.001: pairing decides."""
        rows = self.rows(("square", 0.1, -4.0), ("pgd", 0.1, -4.0))
        assert [check.verdict for check in self.checks(rows)] == ["pass"]
