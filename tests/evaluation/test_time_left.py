"""The time that an evaluation takes, by a clock that only the test turns."""

from __future__ import annotations

import io
from typing import Any

import pytest
from rich.console import Console

from marl_aajr.attacks import UniformNoise
from marl_aajr.attacks.base import Attacked
from marl_aajr.cli.display import PlayingProgress
from marl_aajr.core.threat import PerturbationSet
from marl_aajr.evaluation import Progress, evaluate, time_left
from tests.evaluation import toys
from tests.evaluation.players import sign_reader, stakes, team

EPISODES, COPIES, STEPS = 8, 4, 4
STEP, CALL = 0.5, 4.0
"""Seconds of a step of all copies, and those of a call of the slow attack."""


class Clock:
    now = 0.0

    def monotonic(self) -> float:
        return self.now


CLOCK = Clock()


class Slow(UniformNoise):
    name = "slow"

    def __call__(self, *args: Any, **kwargs: Any) -> Attacked:
        CLOCK.now += CALL
        return super().__call__(*args, **kwargs)


class Warming(Slow):
    """Its first calls take ten times what it takes later."""

    name = "warming"
    first = 1
    calls = 0

    def __call__(self, *args: Any, **kwargs: Any) -> Attacked:
        type(self).calls += 1
        CLOCK.now += 9 * CALL * (self.calls <= self.first)
        return super().__call__(*args, **kwargs)


class Hasty(Warming):
    """Beforehand it is called twice: all that is known of it is too long."""

    name = "hasty"
    first = 2
    calls = 0


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time_left, "time", CLOCK)
    step = toys.Stakes.step

    def timed(self: toys.Stakes, actions: dict[str, int]) -> Any:
        CLOCK.now += STEP / COPIES
        return step(self, actions)

    monkeypatch.setattr(toys.Stakes, "step", timed)


def told(attack: type[UniformNoise], **protocol: Any) -> list[tuple[float, Progress]]:
    """Time and progress, again and again."""
    spec = stakes(steps=STEPS)
    found: list[tuple[float, Progress]] = []
    evaluate(
        team(spec, sign_reader()),
        spec,
        attacks=[(attack(perturbations=PerturbationSet(epsilon=1.0)), size) for size in (0.1, 0.2)],
        episodes=EPISODES,
        num_envs=COPIES,
        workers=1,
        on_progress=lambda progress: found.append((CLOCK.now, progress)),
        **protocol,
    )
    return found


def test_the_first_estimate_is_what_it_takes() -> None:
    """Two rows of two rounds of four steps, each with a call; and as many on four selection episodes."""
    found = told(Slow, selection_episodes=4)
    assert {progress.left for _, progress in found[:EPISODES]} == {None}, "while the clean row is played"
    (begun, first), (ended, last) = found[EPISODES], found[-1]
    round_ = STEPS * (STEP + CALL)
    assert first.left == pytest.approx((2 * 2 + 2 * 1) * round_ - 2 * round_ / EPISODES)
    assert ended - begun == pytest.approx(5 * round_)
    assert last.left == pytest.approx(0.0, abs=1e-9)


def test_replacements_count() -> None:
    found = told(UniformNoise, replace=["random"])
    assert found[EPISODES][1].left == pytest.approx((2 + 2) * 2 * STEPS * STEP * (1 - 1 / 4 / EPISODES))
    assert found[-1][1].left == pytest.approx(0.0, abs=1e-9)


def test_the_first_call_of_an_attack_does_not_count() -> None:
    found = told(Warming)
    assert found[EPISODES][1].left == pytest.approx(2 * 2 * STEPS * (STEP + CALL) * (1 - 1 / 2 / EPISODES))


def test_the_pace_of_finished_rows_corrects_the_estimate() -> None:
    found = told(Hasty)
    first, second = found[EPISODES][1], found[2 * EPISODES][1]
    assert first.left is not None
    assert first.left > 5 * STEPS * (STEP + CALL) * 2
    assert second.left == pytest.approx(2 * STEPS * (STEP + CALL) * (1 - 1 / EPISODES))


@pytest.mark.parametrize(("left", "said"), [(750.0, "This will take about 12:30.\n"), (20.0, "")])
def test_a_long_evaluation_is_announced(left: float, said: str) -> None:
    out = io.StringIO()
    with PlayingProgress(Console(file=out, width=20)) as progress:
        progress(Progress(5, 100, "clean"))
        progress(Progress(10, 100, "pgd 0.1", left))
        progress(Progress(20, 100, "pgd 0.1", left / 2))
    row = f"playing pgd 0.1, 10/100 episodes, {'12:30' if said else '0:20'} left\n"
    assert out.getvalue() == f"playing clean, 5/100 episodes\n{said}{row}"
