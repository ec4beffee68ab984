"""One environment as the template shows it: the tables and figures that its evaluations have data for."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from marl_aajr.report import adversaries, aggregates, heatmap, panels, tables, tradeoff, trust, weakest
from marl_aajr.report.comparison import Comparison, Row
from marl_aajr.report.drawing import swatch
from marl_aajr.report.methods import Method, differences, shared
from marl_aajr.report.palette import Look, looks
from marl_aajr.report.scores import Reference, scale, summarise
from marl_aajr.report.verdict import headline, how_chosen, how_compared, verdict
from marl_aajr.report.wording import count, decimals_for, number


@dataclass(frozen=True)
class Entry:
    """A method in a legend.

    Attributes:
        label: of the method.
        line: its line in figures.
        runs: how many, in words.
    """

    label: str
    line: Markup
    runs: str


@dataclass(frozen=True)
class Legend:
    """One look per label, the same on the whole page."""

    looks: Mapping[str, Look]
    lines: Mapping[str, Markup]
    definitions: tuple[Markup, ...]

    @classmethod
    def of(cls, comparisons: Sequence[Comparison]) -> Legend:
        """The looks of all methods of the page."""
        methods: dict[str, Method] = {}
        for comparison in comparisons:
            for row in comparison.rows:
                methods.setdefault(row.method.label, row.method)
        found = dict(zip(methods, looks(list(methods.values())), strict=True))
        drawn = {label: swatch(look, key=f"line{i}") for i, (label, look) in enumerate(found.items())}
        lines = {label: use for label, (_, use) in drawn.items()}
        return cls(found, lines, tuple(definition for definition, _ in drawn.values()))

    def of_rows(self, rows: Sequence[Row]) -> list[Look]:
        """The looks of some rows."""
        return [self.looks[row.method.label] for row in rows]

    def entries(self, rows: Sequence[Row]) -> list[Entry]:
        """The methods of some rows."""
        return [
            Entry(row.method.label, self.lines[row.method.label], count(len(row.runs), "run")) for row in rows
        ]


def section(
    comparison: Comparison,
    legend: Legend,
    *,
    key: str,
    reference: Reference | None = None,
    film: bytes | str = "",
    with_training: bool = True,
) -> dict[str, Any]:
    """What the template shows of one environment.

    Args:
        comparison: the methods there.
        legend: of the page.
        key: unique in the page; ids begin with it.
        reference: fixed beforehand, for scores and hypervolumes.
        film: an animated GIF, or the reason why there is none; empty: none was asked for.
        with_training: whether to show how the runs were trained: once, where two sections have the same runs.
    """
    rows = comparison.rows
    decimals = decimals_for(e for row in rows for e in (row.clean, *row.robust.values()))
    return {
        "key": key,
        "title": comparison.scene.short,
        "protocol": str(comparison.protocol),
        "level": f"{100 * comparison.protocol.level:g} %",
        "legend": legend.entries(rows),
        "headline": headline(comparison),
        "verdict": verdict(comparison, decimals=decimals),
        "how_chosen": how_chosen(comparison),
        "how_compared": how_compared(comparison) if len(rows) > 1 else "",
        "film": f"data:image/gif;base64,{b64encode(film).decode()}" if isinstance(film, bytes) else "",
        "no_film": film if isinstance(film, str) else "",
        "several_runs": any(len(row.runs) > 1 for row in rows),
        **_tables(comparison, decimals=decimals),
        **_heat(comparison, decimals=decimals),
        **_over_runs(comparison, legend, key=key, reference=reference, decimals=decimals),
        **_figures(comparison, legend, key=key, reference=reference, decimals=decimals),
        **_training(comparison, legend if with_training else None, key=key),
    }


def _tables(comparison: Comparison, *, decimals: int) -> dict[str, Any]:
    methods = [row.method for row in comparison.rows]
    results = tables.results(comparison, decimals=decimals)
    return {
        "differences": differences(methods),
        "shared": shared(methods),
        "results": results,
        "summary": (results[0].lines[0], *results[1].lines[:-1]),
        "changed_actions": tables.changed_actions(comparison),
        "team_returns": tables.team_returns(comparison, decimals=decimals),
        "weakest": weakest.weakest_links(comparison, decimals=decimals),
        "learned": adversaries.learned(comparison, decimals=decimals),
        "replaced": adversaries.replaced(comparison, decimals=decimals),
        "worst_of_each_run": tables.worst_of_each_run(comparison, decimals=decimals),
        "checks": trust.sheet(comparison),
        "versions": tables.versions(comparison),
    }


def _heat(comparison: Comparison, *, decimals: int) -> dict[str, Any]:
    blocks = heatmap.heat_map(comparison, decimals=decimals)
    return {"heat": blocks, "heat_ends": heatmap.lowest_and_highest(blocks)}


def _over_runs(
    comparison: Comparison, legend: Legend, *, key: str, reference: Reference | None, decimals: int
) -> dict[str, Any]:
    environment = comparison.protocol.environment
    found = summarise([comparison], {} if reference is None else {environment: reference})
    unit = "return" if reference is None else "score"
    looked = legend.of_rows(comparison.rows)
    target = scale(comparison, reference, normalised=False).target
    return {
        "over_runs": aggregates.blocks(found, decimals=decimals if reference is None else 2),
        "profiles": aggregates.profiles(found, looked, unit=unit, key=f"{key}prof"),
        "target": number(target, decimals=decimals),
        "fixed": reference is not None,
    }


def _figures(
    comparison: Comparison, legend: Legend, *, key: str, reference: Reference | None, decimals: int
) -> dict[str, Any]:
    looked = legend.of_rows(comparison.rows)
    found = [tradeoff.tradeoff(comparison, e, reference) for e in comparison.epsilons]
    pareto = tradeoff.panels(comparison, looked, found, decimals=decimals, key=f"{key}pareto")
    return {
        "worst_case": panels.worst_case(comparison, looked, decimals=decimals, key=f"{key}worst"),
        "robustness": panels.robustness(comparison, looked, decimals=decimals, key=f"{key}eps"),
        "pareto": pareto if len(comparison.rows) > 1 else (),
        "volumes": tradeoff.sheet(found, decimals=decimals),
    }


def _training(comparison: Comparison, legend: Legend | None, *, key: str) -> dict[str, Any]:
    """How the runs were trained; nothing without a legend."""
    if legend is None:
        return {"learning": (), "training_metrics": (), "metrics_legend": []}
    looked = legend.of_rows(comparison.rows)
    return {
        "learning": panels.learning(comparison, looked, key=f"{key}learn"),
        "training_metrics": panels.training_metrics(comparison, looked, key=f"{key}m"),
        "metrics_legend": legend.entries(panels.logging(comparison)),
    }
