"""What a study says of itself, and what evaluations say against themselves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from marl_aajr.report import Incident, Notes, Tuning, compare, how_chosen, load_run, write_report
from marl_aajr.report.cautions import cautions_of_study, verdict_on_checks
from marl_aajr.report.tables import check_table, study_tables
from tests.report.factory import config, evaluation, write_method, write_run

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
    assert cautions_of_study(NOTES) == [
        "4 runs failed: missing here (see The study).",
        "The methods were tuned with different numbers of trials (see The study).",
        "a went on after a fault (see The study).",
    ]
    assert cautions_of_study(Notes()) == []


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


class TestHowTheWorstWasChosen:
    """The page and the terminal say what is true of the evaluations at hand."""

    def said(self, tmp_path: Path, *contents: dict[str, Any]) -> str:
        return how_chosen(
            compare(
                [
                    load_run(
                        write_run(tmp_path / str(i), configuration=config(seed=i), evaluations={"e": content})
                    )
                    for i, content in enumerate(contents)
                ]
            )
        )

    def test_elsewhere(self, tmp_path: Path) -> None:
        text = self.said(tmp_path, evaluation(selection_episodes=25))
        assert text.endswith("chosen by its return on 25 other episodes than those it is reported on.")

    def test_on_the_same_episodes(self, tmp_path: Path) -> None:
        assert "on the very episodes that it is reported on." in self.said(tmp_path, evaluation(worst=[]))

    def test_for_some_runs_only(self, tmp_path: Path) -> None:
        text = self.said(tmp_path, evaluation(), evaluation(worst=[]))
        assert "for some chosen by its return on" in text
        assert "for the rest the one with the lowest return" in text

    def test_a_single_attack_is_not_chosen(self, tmp_path: Path) -> None:
        assert (
            self.said(tmp_path, evaluation(attacks={("pgd", 0.1): -1.0}))
            == "Worst: the only attack tried, pgd."
        )
