"""Put the comparison on one HTML page that opens anywhere, without network or scripts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined, Template
from markupsafe import Markup

from marl_aajr.report import panels, reproduce, tables
from marl_aajr.report.cautions import cautions
from marl_aajr.report.comparison import Comparison, Row, compare
from marl_aajr.report.figures import swatch
from marl_aajr.report.methods import differences, shared
from marl_aajr.report.palette import dark_variables, looks
from marl_aajr.report.records import load_run
from marl_aajr.report.verdict import verdict
from marl_aajr.report.wording import count, decimals_for
from marl_aajr.training.files import write_text


@dataclass(frozen=True)
class _Entry:
    """A method in a legend."""

    row: Row
    line: Markup

    @property
    def label(self) -> str:
        return self.row.method.label

    @property
    def runs(self) -> str:
        return count(len(self.row.runs), "run")


def build_report(runs: Sequence[Path], *, out: Path, title: str | None = None) -> Path:
    """Compare finished, evaluated runs on one self-contained HTML page.

    The page holds its figures, styles and data; it loads nothing. The same runs give the same
    bytes, in whatever order they are named. The file appears whole or not at all.

    Args:
        runs: run directories; those that differ only in their seed become one method.
        out: the HTML file; its folder is created, an existing file is replaced.
        title: heading of the page; names the environment by default.

    Returns:
        ``out``.

    Raises:
        ValueError: nothing to compare, a run that cannot be used, or runs that cannot be
            compared; see `load_run` and `compare`. Nothing is written then.
    """
    if out.is_dir():
        raise ValueError(f"expected a file to write, got the folder {out}; name a file in it")
    comparison = compare([load_run(path) for path in runs])
    out.parent.mkdir(parents=True, exist_ok=True)
    write_text(out, render(comparison, title=title))
    return out


def render(comparison: Comparison, *, title: str | None = None) -> str:
    """The page as text.

    Args:
        comparison: what `compare` found.
        title: heading; names the environment by default.
    """
    methods = [row.method for row in comparison.rows]
    runs = [run for method in methods for run in method.runs]
    decimals = decimals_for(
        estimate for row in comparison.rows for estimate in (row.clean, *row.robust.values())
    )
    return _template().render(
        title=title or f"Who survives on {comparison.protocol.environment}",
        subtitle=f"{count(len(methods), 'method')}, {count(len(runs), 'run')}; evaluated on "
        f"{comparison.protocol}",
        style=_style(),
        cautions=cautions(comparison),
        verdict=verdict(comparison, decimals=decimals),
        differences=differences(methods),
        shared=shared(methods),
        results=tables.results(comparison, decimals=decimals),
        changed_actions=tables.changed_actions(comparison),
        team_returns=tables.team_returns(comparison, decimals=decimals),
        run_columns=tables.RUN_COLUMNS,
        versions=tables.versions(comparison),
        packages=tables.packages(runs),
        commands=reproduce.commands(comparison),
        configurations=reproduce.configurations(comparison),
        attacks=reproduce.attacks(comparison),
        level=f"{100 * comparison.protocol.level:g} %",
        several_runs=any(len(row.runs) > 1 for row in comparison.rows),
        single_runs=any(len(row.runs) == 1 for row in comparison.rows),
        **_figures(comparison, decimals=decimals),
    )


def _figures(comparison: Comparison, *, decimals: int) -> dict[str, object]:
    """Legends and panels, in which every method has one look."""
    drawn = looks([row.method for row in comparison.rows])
    swatches = [swatch(look, key=f"line{i}") for i, look in enumerate(drawn)]
    legend = [_Entry(row, use) for row, (_, use) in zip(comparison.rows, swatches, strict=True)]
    return {
        "swatches": [definition for definition, _ in swatches],
        "legend": legend,
        "metrics_legend": [entry for entry in legend if entry.row in panels.logging(comparison)],
        "robustness": panels.robustness(comparison, drawn, decimals=decimals),
        "learning": panels.learning(comparison, drawn),
        "training_metrics": panels.training_metrics(comparison, drawn),
    }


def _template() -> Template:
    environment = Environment(
        loader=PackageLoader("marl_aajr.report", ""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("report.html.j2")


def _style() -> Markup:
    """The style sheet, with the palette's colours as variables."""
    pairs = list(dark_variables().items())
    light = "".join(f"--m{i}:{colour};" for i, (colour, _) in enumerate(pairs))
    dark = "".join(f"--m{i}:{colour};" for i, (_, colour) in enumerate(pairs))
    sheet = resources.files("marl_aajr.report").joinpath("report.css").read_text("utf-8")
    return Markup(
        f"{sheet}\n:root{{{light}}}\n@media screen and (prefers-color-scheme: dark){{:root{{{dark}}}}}"
    )
