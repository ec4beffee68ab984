"""``marl-aajr compare``: evaluated runs side by side, in the terminal and on one page."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from marl_aajr.cli.teaching import guide, told

if TYPE_CHECKING:
    from rich.table import Table

    from marl_aajr.report import Comparison
    from marl_aajr.report.statistics import Estimate

HELP = guide(
    "Compare evaluated runs: prints the returns under attack and writes one HTML page that opens without a "
    "network. Runs that differ only in their seed are one method.",
    "marl-aajr compare runs/simple_spread_v3-*",
    "marl-aajr compare runs/plain runs/robust --out report.html",
)


def compare(
    *,
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Folders of evaluated runs.")],
    out: Annotated[Path, typer.Option(metavar="FILE.html", help="The page; replaced if it exists.")] = Path(
        "report.html"
    ),
    title: Annotated[
        str | None,
        typer.Option(metavar="TEXT", help=told("Heading of the page.", "names the environment")),
    ] = None,
) -> None:
    """Build the report and print its headline."""
    from rich.console import Console

    from marl_aajr.report import build_report, load_run
    from marl_aajr.report import compare as compare_runs

    page = build_report(runs, out=out, title=title)
    console = Console()
    comparison = compare_runs([load_run(run) for run in runs])
    console.print(f"Mean return: {comparison.protocol}", soft_wrap=True, highlight=False, markup=False)
    console.print(table(comparison))
    console.print(f"Report: {page.resolve()}", soft_wrap=True, highlight=False)


def table(comparison: Comparison) -> Table:
    """Clean return and return under the worst attack of each size, one row per method."""
    from rich.table import Table

    result = Table(show_lines=True)
    result.add_column("method")
    result.add_column("clean", justify="right")
    for epsilon in comparison.epsilons:
        result.add_column(f"worst at ε {epsilon:g}", justify="right")
    for row in comparison.rows:
        worst = (_words(row.worst_return(e), row.worst[e].attack) for e in comparison.epsilons)
        result.add_row(row.method.label, _words(row.clean), *worst)
    return result


def _words(estimate: Estimate, attack: str = "") -> str:
    """The mean, by which attack, and the interval on a line of its own."""
    first = f"{attack} {estimate.mean:.1f}".strip()
    if estimate.low is None or estimate.high is None:
        return first
    return f"{first}\n{estimate.low:.1f} to {estimate.high:.1f}"
