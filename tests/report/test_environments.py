"""Runs of several environments on one page."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import pytest

from marl_aajr.report import Incident, Reference, compare, compare_each, load_run, write_report
from marl_aajr.report.cautions import Notes, all_cautions
from marl_aajr.report.scores import headline_of_scores, reference_of, summarise
from tests.report.factory import ENV, config, evaluation, write_run
from tests.report.test_page import Page

TAG = {"name": "mpe2.simple_tag_v3", "kwargs": {}}
SIDES = {"adversary_0": "adversary", "agent_0": "good"}


def runs(
    root: Path, method: str, clean: list[float], *, env: dict[str, Any] = ENV, loss: float = -8.0
) -> list[Path]:
    """One run per clean return, trained and evaluated on the environment."""
    return [
        write_run(
            root / f"{env['name']}-{method}-{seed}",
            configuration=config(method, seed=seed, env=env),
            evaluations={"e": evaluation(value, attacks={("pgd", 0.1): loss}, env=env)},
        )
        for seed, value in enumerate(clean)
    ]


def grid(root: Path) -> list[Path]:
    """Two methods on two environments, three seeds each; aajr loses 2 to the attack, the plain method 8."""
    found = []
    for env, shift in ((ENV, 0.0), (TAG, 100.0)):
        clean = [shift - 40.0, shift - 41.0, shift - 39.0]
        found += runs(root, "none", clean, env=env) + runs(root, "aajr", clean, env=env, loss=-2.0)
    return found


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


def test_sides_of_the_same_runs_show_their_training_once_and_failures_come_first(tmp_path: Path) -> None:
    notes = Notes(failures=[Incident(run="other", what="NaN")])
    text = write_report([both_sides(tmp_path)], tmp_path / "r.html", notes=notes).read_text()
    assert text.count("<summary>Learning curves</summary>") == 1
    assert text.index("EVALUATION FAILED, gradients") < text.index("other failed: missing here")
    assert text.index("other failed: missing here") < text.index("Every method has a single run")


def test_a_run_alone_in_another_environment_adds_no_section(tmp_path: Path) -> None:
    files = {"here": evaluation(), "there": evaluation(env=TAG)}
    wide = load_run(write_run(tmp_path / "wide", evaluations=files))
    narrow = load_run(write_run(tmp_path / "narrow", configuration=config("aajr")))
    (comparison,) = compare_each([wide, narrow])
    assert comparison.task.short == "simple_spread_v3"
    assert [omission.text for omission in comparison.left_out] == ["evaluations on mpe2.simple_tag_v3"]
    assert len(compare_each([wide])) == 2


class TestOverEnvironments:
    """Scores by hand: floor 0 and target 10 in one, the same game shifted by 100 in the other."""

    references: ClassVar = {
        "mpe2.simple_spread_v3": Reference(-50.0, -40.0),
        "mpe2.simple_tag_v3": Reference(50.0, 60.0),
    }

    def test_scores_are_normalised_before_they_are_pooled(self, tmp_path: Path) -> None:
        comparisons = compare_each([load_run(path) for path in grid(tmp_path)])
        found = summarise(comparisons, self.references)
        plain, aajr = found[0.1]
        assert (plain.label, aajr.label) == ("none (plain PPO)", "aajr")
        assert plain.iqm.mean == pytest.approx(0.2)  # (−48 + 50) / 10, in both
        assert aajr.iqm.mean == pytest.approx(0.8)
        assert aajr.gap.mean == pytest.approx(0.2)
        assert aajr.improvement is not None
        assert aajr.improvement.mean == 1.0
        assert plain.improvement is None
        assert plain.iqm.low is not None
        assert plain.iqm.low < 0.2

    def test_without_references_the_scale_is_made_of_the_runs(self, tmp_path: Path) -> None:
        comparisons = compare_each([load_run(path) for path in grid(tmp_path)])
        plain, _ = summarise(comparisons, {})[0.0]
        assert plain.iqm.mean == pytest.approx(1.0)  # its clean return is the target
        plain, _ = summarise(comparisons, {})[0.1]
        assert min(plain.profile[1][:2]) < 1.0, "the lowest run of all scores 0, which is not above 0"

    def test_the_headline_names_who_scores_highest_and_who_ties(self, tmp_path: Path) -> None:
        comparisons = compare_each([load_run(path) for path in grid(tmp_path)])
        found = summarise(comparisons, self.references)
        assert headline_of_scores(found).startswith(
            "Over all environments, under the worst attack of ε = 0.1, aajr has the highest score "
            "(interquartile mean aajr 0.80"
        )
        assert ", not distinguishable from " in headline_of_scores({0.0: found[0.0]})

    def test_two_runs_are_too_few(self, tmp_path: Path) -> None:
        comparison = compare([load_run(path) for path in runs(tmp_path, "none", [-40.0, -41.0])])
        assert summarise([comparison], {}) == {}

    def test_references_are_found_by_side_by_arguments_and_by_name(self, tmp_path: Path) -> None:
        (comparison,) = compare_each([load_run(path) for path in runs(tmp_path, "none", [-40.0])])
        here = Reference(0.0, 1.0)
        assert reference_of({"mpe2.simple_spread_v3": here}, comparison.task) is here
        assert reference_of({"other": here}, comparison.task) is None

    def test_a_floor_above_the_target_is_refused(self) -> None:
        with pytest.raises(ValueError, match="expected a floor below the target, got 3 and 2"):
            Reference(3.0, 2.0)


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
    paths = runs(tmp_path, "none", [-40.0]) + runs(tmp_path, "none", [1.0, 2.0, 3.0], env=TAG)
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
