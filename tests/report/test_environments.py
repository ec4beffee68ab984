"""Runs of several environments on one page."""

from __future__ import annotations

from pathlib import Path

import pytest

from marl_aajr.report import Incident, compare, compare_each, load_run, write_report
from marl_aajr.report.cautions import Notes, all_cautions
from tests.report.evaluations import evaluation
from tests.report.factory import TAG, config, grid, runs_of, write_run
from tests.report.test_page import Page

pytestmark = pytest.mark.slow

SIDES = {"adversary_0": "adversary", "agent_0": "good"}


def test_each_environment_is_compared_by_itself(tmp_path: Path) -> None:
    spread, tag = compare_each([load_run(path) for path in grid(tmp_path)])
    assert (spread.task.short, tag.task.short) == ("simple_spread_v3", "simple_tag_v3")
    assert [row.clean.mean for row in (*spread.rows, *tag.rows)] == [-40.0, -40.0, 60.0, 60.0]
    assert [row.method.label for row in tag.rows] == ["none (plain PPO)", "aajr"]


def test_one_comparison_of_several_environments_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"same environment.*simple_spread_v3.*simple_tag_v3.*compare_each"):
        compare([load_run(path) for path in grid(tmp_path)])


def both_sides(tmp_path: Path) -> Path:
    """A run of a game of two sides, each of which was attacked; the evaluation of one failed."""
    failed = [{"name": "gradients", "verdict": "fail", "text": "Masked."}]
    files = {
        side: evaluation(clean, env=TAG, teams=tuple(SIDES.values()), checks=checks)
        | {"teams": SIDES, "team": side}
        for side, clean, checks in (("adversary", 10.0, []), ("good", -5.0, failed))
    }
    return write_run(tmp_path / "run", configuration=config(env=TAG), evaluations=files)


def test_each_side_that_was_attacked_is_compared_by_itself(tmp_path: Path) -> None:
    adversary, good = compare_each([load_run(both_sides(tmp_path))])
    assert (adversary.task.team, adversary.rows[0].clean.mean) == ("adversary", 10.0)
    assert (good.task.team, good.rows[0].clean.mean) == ("good", -5.0)


@pytest.mark.usefixtures("undrawn")
def test_sides_of_the_same_runs_show_their_training_once_and_failures_come_first(tmp_path: Path) -> None:
    notes = Notes(failures=[Incident(run="other", what="NaN")])
    text = write_report([both_sides(tmp_path)], tmp_path / "r.html", notes=notes).read_text()
    assert text.count("<summary>Learning curves</summary>") == 1
    assert text.index("the evaluation failed checks of itself") < text.index("other failed: missing here")
    assert "<summary>Of 1 check of the evaluations against themselves: 1 failed.</summary>" in text
    assert text.index("other failed: missing here") < text.index("Every method has a single run")


def test_a_run_alone_in_another_environment_adds_no_section(tmp_path: Path) -> None:
    files = {"here": evaluation(), "there": evaluation(env=TAG)}
    wide = load_run(write_run(tmp_path / "wide", evaluations=files))
    narrow = load_run(write_run(tmp_path / "narrow", configuration=config("aajr")))
    (comparison,) = compare_each([wide, narrow])
    assert comparison.task.short == "simple_spread_v3"
    assert [omission.text for omission in comparison.left_out] == ["evaluations on mpe2.simple_tag_v3"]
    assert len(compare_each([wide])) == 2


@pytest.mark.slow
@pytest.mark.usefixtures("undrawn")
def test_the_page_has_a_section_per_environment_and_one_over_all(tmp_path: Path) -> None:
    text = write_report(grid(tmp_path), tmp_path / "r.html").read_text()
    page = Page(text)
    sections = [attributes["id"] for attributes in page.all("section") if "id" in attributes]
    assert sections == ["e0", "e1"]
    assert "Over all environments" in page.headings
    assert "Who survives on 2 environments" in text
    assert "scores then compare on this page only" in text
    assert "2 methods, 12 runs" in text


def test_what_only_one_environment_must_be_warned_of_names_it(tmp_path: Path) -> None:
    paths = runs_of(tmp_path, "none", [-40.0]) + runs_of(tmp_path, "none", [1.0, 2.0, 3.0], env=TAG)
    said = all_cautions(compare_each([load_run(path) for path in paths]), Notes())
    assert any(line.startswith("simple_spread_v3: Every method has a single run") for line in said)


def test_a_side_that_was_not_attacked_is_left_out_beside_one_that_was(tmp_path: Path) -> None:
    files = {
        "adversary": evaluation(env=TAG) | {"teams": SIDES, "team": "adversary"},
        "good": evaluation(env=TAG, attacks={}) | {"teams": SIDES, "team": "good"},
    }
    (comparison,) = compare_each([load_run(write_run(tmp_path / "run", evaluations=files))])
    assert comparison.task.team == "adversary"
    assert [omission.text for omission in comparison.left_out] == ["evaluations on mpe2.simple_tag_v3, good"]


def test_many_episodes_without_an_attack_do_not_hide_fewer_with_one(tmp_path: Path) -> None:
    files = {"long": evaluation(episodes=50, attacks={}), "short": evaluation(episodes=20)}
    comparison = compare([load_run(write_run(tmp_path / "run", evaluations=files))])
    assert comparison.protocol.episodes == 20
