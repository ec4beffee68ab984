"""The tables of threats that have no size, as `evaluate` prints them: faults, actions, other dynamics."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from marl_aajr.cli.display import mean_and_interval, table_of
from marl_aajr.core.checks import decimals_for, written

if TYPE_CHECKING:
    from rich.table import Table

    from marl_aajr.evaluation import ActionsResult


def threat_table(result: ActionsResult) -> Table:
    """The returns under sensor faults, disturbed actions and other dynamics."""
    shown = table_of("threat", numbers=["return", "interval", "lost"])
    decimals = decimals_for([result.clean, *result.threats])
    for row in result.threats:
        lost = written(result.clean.mean - row.mean, decimals)
        shown.add_row(row.label, *mean_and_interval(row, decimals), lost)
    if any(row.form == "worst" and row.draws > 1 for row in result.threats):
        shown.caption = "worst of n: in each episode the draw that returns least, which only an oracle knows"
    return shown


def curve_lines(result: ActionsResult) -> Iterator[str]:
    """One line for each argument of the environment that was varied."""
    from marl_aajr.evaluation.threats import curves

    decimals = decimals_for([result.clean, *result.threats])
    for curve in curves(result.threats):
        worst = curve.worst
        yield (
            f"Over {len(curve.rows)} values of {curve.argument}: mean {written(curve.mean, decimals)}, worst "
            f"{written(worst.mean, decimals)} at {worst.label}"
        )
