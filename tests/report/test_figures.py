"""Clean against robust return, by hand-made numbers."""

from __future__ import annotations

from pathlib import Path

import pytest

from marl_aajr.report import Comparison
from marl_aajr.report.pareto import hypervolumes, tradeoff
from marl_aajr.report.scores import Reference
from tests.report.evaluations import evaluation
from tests.report.factory import compared


class TestTradeoff:
    def three(self, tmp_path: Path) -> Comparison:
        """(clean, robust): none (−40, −48), aajr (−42, −44), ernie (−43, −45), which aajr beats."""
        of = {"none": (-40.0, -8.0), "aajr": (-42.0, -2.0), "ernie": (-43.0, -2.0)}
        runs = {name: [evaluation(clean, attacks={("pgd", 0.1): loss})] for name, (clean, loss) in of.items()}
        return compared(tmp_path, **runs)

    def test_front_and_volumes_by_hand(self, tmp_path: Path) -> None:
        """Above (−50, −50): none covers 10 · 2, aajr 8 · 6, ernie 7 · 5; together 8 · 6 + 2 · 2."""
        found = tradeoff(self.three(tmp_path), 0.1, Reference(-50.0, 0.0))
        assert found.front == ("aajr", "none (plain PPO)")
        assert found.volumes == pytest.approx({"none": 20.0, "aajr": 48.0, "ernie": 35.0})
        assert found.whole == pytest.approx(52.0)

    def test_without_a_reference_the_lowest_returns_of_the_page_are_the_corner(self, tmp_path: Path) -> None:
        found = tradeoff(self.three(tmp_path), 0.1, None)
        assert found.reference == (-43.0, -48.0)
        assert found.volumes["none"] == 0.0

    def test_areas_that_are_all_zero_are_not_shown(self, tmp_path: Path) -> None:
        """Two methods, each the lowest in one return: neither covers anything above that corner."""
        crossed = {"none": [evaluation(-40.0, attacks={("pgd", 0.1): -9.0})]}
        crossed["aajr"] = [evaluation(-42.0, attacks={("pgd", 0.1): -2.0})]
        comparison = compared(tmp_path, **crossed)
        assert hypervolumes([tradeoff(comparison, 0.1, None)]) is None
        shown = hypervolumes([tradeoff(comparison, 0.1, Reference(-50.0, 0.0))])
        assert shown is not None
