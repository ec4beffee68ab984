"""Reasons to doubt a comparison: in its runs, in the checks of its evaluations, in the notes of a study."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import pytest

from marl_aajr.report import Incident, Notes, Tuning, compare, load_run, write_report
from marl_aajr.report.cautions import all_cautions, cautions, cautions_of_study
from marl_aajr.report.self_checks import checks_to_note, verdict_on_checks
from marl_aajr.report.tables import check_table, study_tables
from tests.report.evaluations import evaluation
from tests.report.factory import HARD, MILD, THREE, compared, config, metrics, two, write_method, write_run

NOTES = Notes(
    summary="First <paragraph>.\n\nSecond one.",
    tuning=[
        Tuning(method="none", trials=4, env_steps=4_000_000),
        Tuning(
            method="aajr",
            environment="simple_spread_v3",
            trials=8,
            env_steps=8_000_000,
            space={"coefficient": "log-uniform in [1e-4, 1e-1]"},
            chosen={"coefficient": 0.003},
            how="Optuna and ASHA",
        ),
    ],
    restarts=[Incident(run="a", what="env runner 1 was lost", times=2)],
    failures=[Incident(run=name, what="NaN", log="b.log") for name in "bcde"],
    cut=["κ has three values of five."],
    doubts=["The pool knows some of them."],
    caveats=["ASHA depends on the order."],
    seconds=7320,
)


def test_budgets_restarts_and_failures_are_tables() -> None:
    tuning, failures, restarts = study_tables(NOTES)
    assert tuning.lines[1] == (
        "aajr",
        "simple_spread_v3",
        "8",
        "8\u202f000\u202f000",
        "coefficient: log-uniform in [1e-4, 1e-1]",
        "coefficient: 0.003",
        "Optuna and ASHA",
    )
    assert tuning.lines[0][1:3] == ("all", "4")
    assert failures.lines[0] == ("b", "NaN", "1", "b.log")
    assert restarts.lines == (("a", "env runner 1 was lost", "2", "—"),)


def test_unequal_tuning_missing_and_disturbed_runs_are_warned_of() -> None:
    assert list(cautions_of_study(NOTES)) == [
        "4 runs failed: missing here (see The study).",
        "The methods were tuned with different numbers of trials (see The study).",
        "a went on after a fault (see The study).",
        "The pool knows some of them.",
    ]
    assert list(cautions_of_study(Notes())) == []


@pytest.mark.usefixtures("undrawn")
def test_all_of_it_is_on_the_page(tmp_path: Path) -> None:
    paths = write_method(tmp_path, "none", clean=[-40.0])
    text = write_report(paths, tmp_path / "r.html", notes=NOTES).read_text()
    for words in (
        "First &lt;paragraph&gt;.",
        "<p>Second one.</p>",
        "It took 2 h 02 min",
        *NOTES.cut,
        *NOTES.caveats,
    ):
        assert words in text


def with_checks(tmp_path: Path, *verdicts: str) -> Any:
    checks = [{"name": f"check {i}", "verdict": v, "text": f"Found {i}."} for i, v in enumerate(verdicts)]
    return compare([load_run(write_run(tmp_path / "run", evaluations={"e": evaluation(checks=checks)}))])


@pytest.mark.parametrize(
    ("verdicts", "says"),
    [
        ((), "hold no checks of themselves"),
        (("pass", "pass"), "passed all 2 checks"),
        (
            ("pass", "warn", "fail"),
            "Of 3 checks of the evaluations against themselves: 1 failed, 1 to note, 1 passed.",
        ),
    ],
)
def test_the_checks_are_summed_up(tmp_path: Path, verdicts: tuple[str, ...], says: str) -> None:
    assert says in verdict_on_checks([with_checks(tmp_path, *verdicts)])


def test_every_check_is_listed_failures_first(tmp_path: Path) -> None:
    listed = check_table(with_checks(tmp_path, "pass", "warn", "fail"))
    assert [line[1] for line in listed.lines] == ["failed", "to note", "passed"]
    assert listed.lines[0] == ("check 2", "failed", "1 of 1", "Found 2.")


def warnings(paths: list[Path]) -> list[str]:
    return cautions(compare([load_run(path) for path in paths]))


def test_a_sound_comparison_needs_no_caution(tmp_path: Path) -> None:
    assert warnings(two(tmp_path, HARD, MILD)) == []


def test_different_budgets_come_first(tmp_path: Path) -> None:
    paths = write_method(tmp_path, "none", clean=[-40.0])
    paths += write_method(tmp_path, "aajr", clean=[-40.0], env_steps=2_000_000)

    assert warnings(paths)[0].replace("\u202f", " ") == (
        "The methods were trained for different numbers of environment steps (100 000: none (plain PPO); "
        "2 000 000: aajr): the comparison is not like for like."
    )


def test_differences_beyond_the_method_are_flagged(tmp_path: Path) -> None:
    paths = write_method(tmp_path, "none", clean=THREE)
    paths += write_method(tmp_path, "aajr", clean=THREE, policies="independent")

    assert warnings(paths) == [
        "The methods differ in more than the method: policies. A difference in return cannot be put down to "
        "the method alone."
    ]


@pytest.mark.parametrize(
    ("names", "says"),
    [
        (("aajr", "ernie"), "No run without a regulariser (method none): no price"),
        (("none", "none"), "2 methods without a regulariser"),
    ],
)
def test_a_price_that_cannot_be_given_is_explained(tmp_path: Path, names: tuple[str, str], says: str) -> None:
    paths = write_method(tmp_path / "0", names[0], clean=THREE)
    paths += write_method(tmp_path / "1", names[1], clean=THREE, time_limits_terminate=True)

    assert any(says in caution for caution in warnings(paths))


def test_two_runs_are_too_few(tmp_path: Path) -> None:
    assert any("12.7 standard errors" in c for c in warnings(two(tmp_path, HARD, MILD, clean=THREE[:2])))


def test_other_versions_environments_and_broken_numbers_are_flagged(tmp_path: Path) -> None:
    paths = write_method(tmp_path, "none", clean=THREE[:1])
    lines = metrics(regularised=True)
    lines[3]["modules"]["shared"]["aajr/nonfinite"] = 2
    lines[4]["modules"]["shared"]["aajr/penalty"] = float("nan")
    paths.append(
        write_run(
            tmp_path / "odd",
            configuration=config("aajr", env={"name": "mpe2.simple_tag_v3", "kwargs": {}}),
            lines=lines,
            packages={"torch": "2.6.0", "ray": "2.60.0", "mpe2": "1.1.1"},
        )
    )
    found = " ".join(warnings(paths))

    assert "different versions of torch (see Versions)" in found
    assert "Trained on another environment than the one evaluated on" in found
    assert "odd (mpe2.simple_tag_v3)." in found
    assert "odd logged values that are not finite in 2 iterations" in found


class TestChecks:
    FAILED: ClassVar = {"name": "gradients", "verdict": "fail", "text": "Gradient masking: all zero."}

    def test_failures_come_first_and_say_of_whose_runs(self, tmp_path: Path) -> None:
        checks = [
            {"name": "saturation", "verdict": "warn", "text": "Saturated."},
            {"name": "order", "verdict": "pass", "text": "Fine."},
            self.FAILED,
        ]
        found = compared(tmp_path, none=[evaluation(checks=checks), evaluation()])
        assert checks_to_note([found]) == [
            "simple_spread_v3, none (plain PPO) (1 of 2 runs): gradients failed. Gradient masking: all zero.",
            "simple_spread_v3, none (plain PPO) (1 of 2 runs): saturation to note. Saturated.",
        ]
        assert all_cautions([found], Notes())[0] == (
            "simple_spread_v3, none (plain PPO) (1 of 2 runs): the evaluation failed checks of itself. What "
            "these runs keep under attack may only show that the attacks are weak."
        )

    def test_those_of_runs_that_have_learned_nothing_do_not_count(self, tmp_path: Path) -> None:
        idle = evaluation(nothing=-40.0, checks=[self.FAILED])
        found = compared(
            tmp_path, none=[evaluation(checks=[{**self.FAILED, "verdict": "pass"}])], aajr=[idle]
        )
        assert checks_to_note([found]) == []
        assert verdict_on_checks([found]) == "The evaluations passed all 1 check of themselves."
        assert not any("failed checks" in line for line in all_cautions([found], Notes()))
        assert [line[1] for line in check_table(found).lines] == ["failed", "passed"]

    def test_only_the_evaluations_that_are_shown_count(self, tmp_path: Path) -> None:
        files = {"long": evaluation(episodes=50), "short": evaluation(episodes=20, checks=[self.FAILED])}
        run = load_run(write_run(tmp_path / "run", evaluations=files))
        assert checks_to_note([compare([run])]) == []


def test_runs_without_a_team_that_does_nothing_are_warned_of(tmp_path: Path) -> None:
    found = compared(tmp_path, none=[evaluation()] * 3, aajr=[evaluation(adversarial_agents=[])] * 3)
    (line,) = cautions(found)
    assert line.startswith("Whether aajr learned anything is not known: no random or idle team played")


def test_teams_that_met_their_own_side_only_are_warned_of(tmp_path: Path) -> None:
    sides = evaluation(teams=("adversary", "good"))
    (line,) = cautions(compared(tmp_path, none=[sides] * 3, aajr=[sides] * 3))
    assert line.startswith("Each team met only the other side of its own training")
