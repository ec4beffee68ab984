"""`marl-aajr compare`: evaluated runs side by side, in the terminal and on one page."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from marl_aajr.cli.display import table_of
from marl_aajr.cli.options import guide, takes
from marl_aajr.core.checks import written

if TYPE_CHECKING:
    from rich.table import Table

    from marl_aajr.report import Comparison, Reference
    from marl_aajr.report.comparison import MethodRow
    from marl_aajr.report.estimates import Estimate

HELP = guide(
    "Compare evaluated runs: prints the returns under attack and writes one HTML page that opens without a "
    "network. Runs that differ only in their seed are one method; each environment has a section.",
    "marl-aajr compare runs/simple_spread_v3-*",
    "marl-aajr compare runs/plain runs/robust --out report.html",
)


@takes()
def compare(
    runs: list[Path],
    *,
    out: Path = Path("report.html"),
    title: str | None = None,
    reference: list[str] | None = None,
    film: bool = False,
    json_: bool = False,
) -> None:
    """Build the report, and print its headline or its numbers.

    Args:
        runs (RUN...): Folders of evaluated runs.
        out (FILE.html): The page; replaced if it exists.
        title (TEXT): Heading of the page. Default: names the environment.
        reference (ENV=FLOOR,TARGET): Two returns of an environment, fixed before the runs: scores go from 0
            to 1 between them. May be repeated.
        film: Show in each environment an episode without and with an attack.
        json_: Print a list instead, an object for each environment: methods (clean; worst, by epsilon, over
            all runs; median_run_under_its_strongest_attack; others, with other actions), differences (of
            each pair of methods, with the interval that tells them apart), the verdict, and the methods of
            which one may be called the best (ranked).
    """
    from rich.console import Console

    from marl_aajr.report import compare_each, write_report
    from marl_aajr.report.scores import check_references

    references = _references(reference or ())
    comparisons = compare_each(runs)
    check_references(references, [comparison.task for comparison in comparisons])
    page = write_report(comparisons, out, title=title, references=references, film=film)
    if json_:
        print(json.dumps([_as_json(comparison) for comparison in comparisons], ensure_ascii=False))
        return
    console = Console()
    for comparison in comparisons:
        shown = (f"Mean return: {comparison.protocol}", table(comparison), closing(comparison))
        console.print(*shown, sep="\n", highlight=False, markup=False)
    console.print(f"Report: {page.resolve()}", soft_wrap=True, highlight=False)


def _as_json(comparison: Comparison) -> dict[str, Any]:
    from marl_aajr.report import headline
    from marl_aajr.report.ranking import ranked

    ordered = [row.method.label for row in ranked(comparison)]
    return {**comparison.to_json(), "verdict": headline(comparison), "ranked": ordered}


def closing(comparison: Comparison) -> str:
    """What stands below the table: how it was made, what is left out or failed, the verdict."""
    from marl_aajr.report import headline, how_chosen, how_compared
    from marl_aajr.report.estimates import count
    from marl_aajr.report.ranking import nothing_learned

    failed = sum(check.verdict == "fail" for checks in comparison.checks.values() for check in checks)
    doubt = f"{count(failed, 'check')} of the evaluations FAILED: see the report." if failed else ""
    hidden = sum(omission.count for omission in comparison.left_out)
    left_out = f"Not shown, to compare like with like: {count(hidden, 'evaluation')}; the report lists them."
    lines = (
        how_chosen(comparison),
        how_compared(comparison) if len(comparison.rows) > 1 else "",
        left_out if hidden else "",
        doubt,
        *nothing_learned([comparison]),
        f"Verdict: {headline(comparison)}",
    )
    return "\n".join(filter(None, lines))


def _references(given: Sequence[str]) -> dict[str, Reference]:
    from marl_aajr.report import Reference

    found = {}
    for text in given:
        name, _, ends = text.partition("=")
        try:
            floor, target = map(float, ends.split(","))
        except ValueError:
            raise ValueError(
                f"expected --reference ENV=FLOOR,TARGET such as simple_spread_v3=-90,-30, got {text!r}"
            ) from None
        found[name] = Reference(floor, target)
    return found


def table(comparison: Comparison) -> Table:
    """Clean return, and what the worst attack of each size leaves of all runs and of the median one."""
    named = "worst, {:g} words" if comparison.protocol.norm == "words" else "worst at ε {:g}"
    numbers = ("clean", *map(named.format, comparison.epsilons))
    result = table_of("method", numbers=numbers, show_lines=True)
    for row in comparison.rows:
        worst = (_under_attack(row, epsilon, comparison.decimals) for epsilon in comparison.epsilons)
        result.add_row(row.method.label, _words(row.clean, comparison.decimals), *worst)
    return result


def _under_attack(row: MethodRow, epsilon: float, decimals: int) -> str:
    """What the worst attacks leave of a method, and of its median run where there are several."""
    words = _words(row.worst_return[epsilon], decimals, row.worst_attack[epsilon].attack)
    if len(row.runs) < 2:
        return words
    median = written(row.median_return(epsilon).mean, decimals)
    return f"{words}\nmedian run: {row.median_run(epsilon).worst(epsilon).attack} {median}"


def _words(estimate: Estimate, decimals: int, attack: str = "") -> str:
    """The mean, by which attack, and the interval on a line of its own."""
    first = f"{attack} {written(estimate.mean, decimals)}".strip()
    if estimate.low is None or estimate.high is None:
        return first
    return f"{first}\n{written(estimate.low, decimals)} to {written(estimate.high, decimals)}"
