"""Put the comparison on one HTML page that opens anywhere, without network or scripts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined, Template
from markupsafe import Markup

from marl_aajr.report import aggregates, reproduce, studied, tables, trust
from marl_aajr.report.cautions import cautions_of_all, left_out_of_all
from marl_aajr.report.comparison import Comparison, compare_each
from marl_aajr.report.notes import Notes
from marl_aajr.report.palette import dark_variables
from marl_aajr.report.records import RunRecord, load_run
from marl_aajr.report.scenes import Scene
from marl_aajr.report.scores import Reference, reference_of, summarise
from marl_aajr.report.sections import Legend, section
from marl_aajr.report.trust import FAILED
from marl_aajr.report.wording import count
from marl_aajr.training.files import write_text


def write_report(
    runs: Sequence[Path | str],
    out: Path | str,
    *,
    title: str | None = None,
    notes: Notes | None = None,
    references: Mapping[str, Reference] | None = None,
    film: bool = False,
) -> Path:
    """Compare finished, evaluated runs on one self-contained HTML page.

    The page holds its figures, styles and data; it loads nothing. The same runs give the same
    bytes, in whatever order they are named. The file appears whole or not at all.

    Args:
        runs: run directories; those that differ only in their seed become one method. Each environment has a
            section; methods that all environments have are also compared over all of them.
        out: the HTML file; its folder is created, an existing file is replaced.
        title: heading of the page; names the environments by default.
        notes: what a study knows beside its runs: tuning budgets, restarts, failures, what was cut.
        references: environment -> floor and target, fixed before the study; `"NAME, SIDE"` for one side.
            Without them scores are relative to the runs on the page, and the page says so.
        film: show in each section one clean and one attacked episode side by side, played anew: some seconds
            and up to some hundred kilobytes for each environment. Where that cannot be, the page says why.

    Returns:
        `out`.

    Raises:
        ValueError: nothing to compare, a run that cannot be used, or runs that cannot be
            compared; see `load_run` and `compare`. Nothing is written then.

    Example:
        >>> write_report(["runs/plain", "runs/robust"], "report.html", notes=Notes(cut=["seed 3"]))
    """
    comparisons = compare_each([load_run(path) for path in runs])
    return write_page(comparisons, out, title=title, notes=notes, references=references, film=film)


def write_page(
    comparisons: Sequence[Comparison],
    out: Path | str,
    *,
    title: str | None = None,
    notes: Notes | None = None,
    references: Mapping[str, Reference] | None = None,
    film: bool = False,
) -> Path:
    """Write comparisons that are there already; see `write_report`.

    Raises:
        ValueError: `out` is a folder.
    """
    target = Path(out)
    if target.is_dir():
        raise ValueError(f"expected a file to write, got the folder {target}; name a file in it")
    films = _films(comparisons) if film else {}
    text = render(comparisons, title=title, notes=notes, references=references, films=films)
    target.parent.mkdir(parents=True, exist_ok=True)
    write_text(target, text)
    return target


def render(
    comparisons: Sequence[Comparison],
    *,
    title: str | None = None,
    notes: Notes | None = None,
    references: Mapping[str, Reference] | None = None,
    films: Mapping[Scene, bytes | str] | None = None,
) -> str:
    """The page as text; see `write_report`. A film is a GIF, or the reason why there is none."""
    references, films, notes = references or {}, films or {}, notes or Notes()
    legend = Legend.of(comparisons)
    runs = _unique(comparisons)
    places = list(dict.fromkeys(comparison.scene.short for comparison in comparisons))
    return _template().render(
        title=title or f"Who survives on {places[0] if len(places) == 1 else f'{len(places)} environments'}",
        subtitle=f"{count(len(legend.looks), 'method')}, {count(len(runs), 'run')}"
        + (f"; evaluated on {comparisons[0].protocol}" if len(comparisons) == 1 else ""),
        style=_style(),
        swatches=legend.definitions,
        trust=trust.verdict_on_checks(comparisons),
        failed=bool(trust.tally(comparisons)["fail"]),
        cautions=_in_order([*studied.warnings(notes), *cautions_of_all(comparisons)]),
        left_out=left_out_of_all(comparisons),
        hidden=count(sum(o.count for c in comparisons for o in c.left_out), "evaluation"),
        notes=notes,
        study=studied.sheets(notes),
        took=tables.duration(notes.seconds) if notes.seconds else "",
        sections=_sections(comparisons, legend, references, films),
        across=_across(comparisons, legend, references),
        packages=tables.packages(runs),
        commands=notes.command or reproduce.commands(comparisons),
        configurations=reproduce.configurations(comparisons),
        attacks=reproduce.attacks(comparisons),
        several_runs=any(len(row.runs) > 1 for c in comparisons for row in c.rows),
        single_runs=any(len(row.runs) == 1 for c in comparisons for row in c.rows),
    )


def _sections(
    comparisons: Sequence[Comparison],
    legend: Legend,
    references: Mapping[str, Reference],
    films: Mapping[Scene, bytes | str],
) -> list[dict[str, object]]:
    """One per comparison; sections of the same runs show their training once."""
    found, seen = [], set()
    for i, comparison in enumerate(comparisons):
        own = frozenset(str(run.run.path) for row in comparison.rows for run in row.runs)
        found.append(
            section(
                comparison,
                legend,
                key=f"e{i}",
                reference=reference_of(references, comparison.scene),
                film=films.get(comparison.scene, ""),
                with_training=own not in seen,
            )
        )
        seen.add(own)
    return found


def _in_order(cautions: list[str]) -> list[str]:
    """Failed evaluations before all else."""
    return sorted(cautions, key=lambda caution: FAILED not in caution)


def _films(comparisons: Sequence[Comparison]) -> dict[Scene, bytes | str]:
    # Imported on demand: a page without films needs neither victims nor environments.
    from marl_aajr.report.screening import films_of

    return films_of(comparisons)


def _unique(comparisons: Sequence[Comparison]) -> list[RunRecord]:
    """The runs of the page, each once."""
    runs = (run for c in comparisons for row in c.rows for run in row.method.runs)
    return list({str(run.path): run for run in runs}.values())


def _across(
    comparisons: Sequence[Comparison], legend: Legend, references: Mapping[str, Reference]
) -> dict[str, object] | None:
    """The methods over all environments; None for a single one, or where no method is in all of them."""
    found = summarise(comparisons, references) if len(comparisons) > 1 else {}
    if not found:
        return None
    labels = [summary.label for summary in found[0.0]]
    rows = [row for label in labels for row in comparisons[0].rows if row.method.label == label]
    looked = legend.of_rows(rows)
    return {
        "legend": legend.entries(rows),
        "headline": aggregates.headline(found),
        "blocks": aggregates.blocks(found, decimals=2),
        "profiles": aggregates.profiles(found, looked, unit="score", key="across"),
        "fixed": all(reference_of(references, c.scene) for c in comparisons),
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
