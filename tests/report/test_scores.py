"""Scores of training runs, within one environment and over several."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import pytest

from marl_aajr.report import Reference, compare, compare_each, load_run
from marl_aajr.report.headline import headline_of_scores
from marl_aajr.report.scores import reference_of, summarise
from tests.report.factory import grid, runs_of

pytestmark = pytest.mark.slow


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
        comparison = compare([load_run(path) for path in runs_of(tmp_path, "none", [-40.0, -41.0])])
        assert summarise([comparison], {}) == {}

    def test_references_are_found_by_side_by_arguments_and_by_name(self, tmp_path: Path) -> None:
        (comparison,) = compare_each([load_run(path) for path in runs_of(tmp_path, "none", [-40.0])])
        here = Reference(0.0, 1.0)
        assert reference_of({"mpe2.simple_spread_v3": here}, comparison.task) is here
        assert reference_of({"other": here}, comparison.task) is None

    def test_a_floor_above_the_target_is_refused(self) -> None:
        with pytest.raises(ValueError, match="expected a floor below the target, got 3 and 2"):
            Reference(3.0, 2.0)
