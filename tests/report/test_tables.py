"""The tables of the page, by hand-made numbers."""

from __future__ import annotations

from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from marl_aajr.cli.compare import table
from marl_aajr.report.tables import heat_map, lowest_and_highest, results, worst_of_each_run
from marl_aajr.report.verdict import verdict
from tests.report.evaluations import evaluation
from tests.report.factory import cells, compared


class TestHeatMap:
    def test_attacks_stand_in_the_block_of_their_size_and_the_worst_is_marked(self, tmp_path: Path) -> None:
        comparison = compared(tmp_path, none=[evaluation()])
        blocks = heat_map(comparison)
        assert [block.title for block in blocks] == ["No attack", "ε = 0.1", "ε = 0.2"]
        (pgd,), (noise,) = cells(blocks, "ε = 0.2", "pgd"), cells(blocks, "ε = 0.2", "noise")
        assert (pgd.main, pgd.mark, pgd.shade) == ("−60.0", "worst", 0)
        assert (noise.main, noise.mark, noise.shade) == ("−43.0", "", 7)
        (clean,) = cells(blocks, "No attack", "none")
        assert (clean.main, clean.mark, clean.shade) == ("−40.0", "", 8)
        assert lowest_and_highest(comparison) == (-60.0, -40.0)

    def test_an_attack_that_takes_nothing_has_the_shade_of_no_attack(self, tmp_path: Path) -> None:
        blocks = heat_map(compared(tmp_path, none=[evaluation(attacks={("pgd", 0.1): 0.0})]))
        assert {cell.shade for block in blocks for line in block.lines for cell in line.cells} == {8}


class TestWorstOfSuite:
    def test_every_run_is_listed_under_its_own(self, tmp_path: Path) -> None:
        noise, pgd = (
            {(name, 0.1): loss for name, loss in (("noise", a), ("pgd", b))} for a, b in ((-9, -8), (-1, -30))
        )
        comparison = compared(tmp_path, none=[evaluation(attacks=noise), evaluation(-41.0, attacks=pgd)])
        sheet = worst_of_each_run(comparison)
        assert sheet.columns == ("run", "method", "clean", "worst at ε = 0.1")
        assert [line[2:] for line in sheet.lines] == [("−40", "−49 (noise)"), ("−41", "−71 (pgd)")]

    def test_the_area_under_the_curve_is_the_mean_over_sizes(self, tmp_path: Path) -> None:
        """Trapezoids over 0, 0.1, 0.2: (44 + 54) / 2; of a single run with its interval over episodes."""
        blocks = results(compared(tmp_path, none=[evaluation()]))
        (area,) = cells(blocks, "Worst of the attacks tried, of each run its own", "mean over ε")
        assert (area.main, area.under) == ("−49.0", "[−51.0,\u00a0−47.0]")


@pytest.mark.parametrize(
    ("scale", "clean", "said"),
    [(1e-4, "−0.0040", "−0.00400"), (1.0, "−40.0", "−40.0"), (1e5, "−4\u202f000\u202f000", "−4,000,000")],
)
def test_precision_follows_the_scale_of_the_return(
    tmp_path: Path, scale: float, clean: str, said: str
) -> None:
    """The page, its verdict and the terminal."""
    losses = {("pgd", 0.1): -8.0 * scale}
    comparison = compared(tmp_path, none=[evaluation(-40.0 * scale, attacks=losses, spread=5.0 * scale)])
    (cell,) = cells(results(comparison), "Without an attack", "clean return")
    assert cell.main.startswith(clean)
    assert f"The return of none (plain PPO) is {cell.main}\u00a0[" in verdict(comparison)
    shown = Console(width=200, file=StringIO())
    shown.print(table(comparison))
    assert said.replace("−", "-") in shown.file.getvalue()  # type: ignore[attr-defined]
