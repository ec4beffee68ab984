"""The comparison as one HTML page that opens anywhere, without network or scripts.

Everything is turned into text, tables and figures here; the templates only lay them out.
"""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from marl_aajr.report import (
    adversaries,
    crossplay_tables,
    dynamics,
    figures,
    learning_curves,
    met_agents,
    pareto,
    proven,
    reproduce,
    scores,
    tables,
    threat_map,
)
from marl_aajr.report.cautions import Notes, all_cautions, left_out_of_all
from marl_aajr.report.comparison import Comparison, compare_each
from marl_aajr.report.conditions import Task
from marl_aajr.report.estimates import count, number, size_name, sizes_in
from marl_aajr.report.headline import headline, headline_of_all
from marl_aajr.report.methods import differences, shared, software_of
from marl_aajr.report.ranking import nothing_learned, ranked
from marl_aajr.report.scores import Reference, Summaries, reference_of
from marl_aajr.report.self_checks import checks_to_note, verdict_on_checks
from marl_aajr.report.style import Legend, dark_colours
from marl_aajr.report.verdict import how_chosen, how_compared, verdict_sentences
from marl_aajr.training.files import write_text


def write_report(
    runs: Sequence[Path | str] | Sequence[Comparison],
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
            section; methods that all environments have are also compared over all of them. Or what
            `compare_each` made of them.
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
        ValueError: nothing to compare, a run that cannot be used, runs that cannot be compared (see
            `load_run` and `compare`), or `out` is a folder. Nothing is written then.

    Example:
        >>> write_report(["runs/plain", "runs/robust"], "report.html", notes=Notes(cut=["seed 3"]))
    """
    target = Path(out)
    if target.is_dir():
        raise ValueError(f"expected a file to write, got the folder {target}; name a file in it")
    given = [run for run in runs if isinstance(run, Comparison)]
    comparisons = given or compare_each([run for run in runs if not isinstance(run, Comparison)])
    films: Mapping[Task, bytes | str] = {}
    if film:
        # Imported on demand: a page without films needs neither victims nor environments.
        from marl_aajr.report.films import films_of

        films = films_of(comparisons)
    with sizes_in(_only({comparison.protocol.norm for comparison in comparisons})):
        text = _render(comparisons, title, notes or Notes(), references or {}, films)
    target.parent.mkdir(parents=True, exist_ok=True)
    write_text(target, text)
    return target


def _render(
    comparisons: Sequence[Comparison],
    title: str | None,
    notes: Notes,
    references: Mapping[str, Reference],
    films: Mapping[Task, bytes | str],
) -> str:
    """The page as text. A film is a GIF, or the reason why there is none."""
    legend = Legend.of(comparisons)
    rows = [row for comparison in comparisons for row in comparison.rows]
    runs = list({str(run.path): run for row in rows for run in row.method.runs}.values())
    across = _scores(comparisons, references)
    places = list(dict.fromkeys(comparison.task.short for comparison in comparisons))
    template = _templates().get_template("report.html.j2")
    return template.render(
        title=title or f"Who survives on {places[0] if len(places) == 1 else f'{len(places)} environments'}",
        subtitle=f"{count(len(legend.looks), 'method')}, {count(len(runs), 'run')}"
        + (f"; evaluated on {comparisons[0].protocol}" if len(comparisons) == 1 else ""),
        style=_style(),
        swatches=legend.definitions,
        headline=headline_of_all(comparisons, across),
        nothing_learned=nothing_learned(comparisons),
        legend=legend.entries(list({row.method.label: row for row in rows}.values())),
        checks=verdict_on_checks(comparisons),
        checks_to_note=checks_to_note(comparisons),
        cautions=all_cautions(comparisons, notes),
        left_out=left_out_of_all(comparisons),
        hidden=count(sum(o.count for c in comparisons for o in c.left_out), "evaluation"),
        notes=notes,
        study=tables.study_tables(notes),
        took=tables.duration(notes.seconds) if notes.seconds else "",
        sections=_sections(comparisons, legend, references, films),
        across=_across(comparisons, legend, references, across),
        packages=software_of(runs),
        commands=notes.command or reproduce.commands(comparisons),
        configurations=reproduce.configurations(comparisons),
        attacks=reproduce.attacks(comparisons),
        several_runs=any(len(row.runs) > 1 for row in rows),
        single_runs=any(len(row.runs) == 1 for row in rows),
    )


@cache
def _templates() -> Environment:
    """Kept, because compiling the templates takes longer than filling them in."""
    return Environment(
        loader=PackageLoader("marl_aajr.report", ""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def _sections(
    comparisons: Sequence[Comparison],
    legend: Legend,
    references: Mapping[str, Reference],
    films: Mapping[Task, bytes | str],
) -> list[dict[str, Any]]:
    """One per comparison, with ids of its own; sections of the same runs show their training once."""
    found, seen = [], set()
    for i, comparison in enumerate(comparisons):
        own = frozenset(str(run.run.path) for run in comparison.runs)
        reference = reference_of(references, comparison.task)
        film = films.get(comparison.task, "")  # or the reason why there is none
        shown = {
            "key": f"e{i}",
            "film": f"data:image/gif;base64,{b64encode(film).decode()}" if isinstance(film, bytes) else "",
            "no_film": film if isinstance(film, str) else "",
            "legend": legend.entries(comparison.rows),
        }
        with sizes_in(comparison.protocol.norm):
            drawn = _figures(comparison, legend, key=f"e{i}", reference=reference, training=own not in seen)
            found.append(shown | _words(comparison) | _tables(comparison) | drawn)
        seen.add(own)
    return found


def _words(comparison: Comparison) -> dict[str, Any]:
    return {
        "title": comparison.task.short,
        "protocol": str(comparison.protocol),
        "level": f"{100 * comparison.protocol.level:g} %",
        "headline": headline(comparison),
        "ranked": len(ranked(comparison)) > 1,
        "verdict": verdict_sentences(comparison),
        "how_chosen": how_chosen(comparison),
        "how_compared": how_compared(comparison) if len(comparison.rows) > 1 else "",
        "several_runs": any(len(row.runs) > 1 for row in comparison.rows),
        "size_name": size_name(),
    }


def _only(norms: Collection[str]) -> str:
    """The norm of all; of several, the usual one."""
    return next(iter(norms)) if len(norms) == 1 else "linf"


def _tables(comparison: Comparison) -> dict[str, Any]:
    configs = [row.method.config for row in comparison.rows]
    results = tables.results(comparison)
    ends = tables.lowest_and_highest(comparison)
    met = crossplay_tables.lowest_and_highest(comparison) if comparison.pool else ()
    threats = threat_map.threat_map(comparison)
    return {
        "differences": differences(configs),
        "shared": shared(configs),
        "results": results,
        "summary": (results[0].lines[0], *results[1].lines[: len(comparison.epsilons)]),
        "heat": tables.heat_map(comparison),
        "heat_ends": [number(end, decimals=comparison.decimals) for end in ends],
        "cross_play": crossplay_tables.cross_play(comparison),
        "ratings": crossplay_tables.ratings(comparison),
        "between_seeds": crossplay_tables.between_seeds(comparison),
        "cross_play_ends": [number(end, decimals=comparison.decimals) for end in met],
        "changed_actions": tables.changed_actions(comparison),
        "proven": proven.proven(comparison),
        "dynamics": dynamics.dynamics(comparison),
        "threats": threats,
        "threat_ends": [number(end, decimals=comparison.decimals) for end in threats.ends],
        "team_returns": tables.team_returns(comparison),
        "metrics": tables.metrics(comparison),
        "weakest": adversaries.weakest_links(comparison),
        "of_training": adversaries.of_training(comparison),
        "learned": adversaries.learned(comparison),
        "agents_met": met_agents.agents_met(comparison),
        "worst_of_each_run": tables.worst_of_each_run(comparison),
        "checks": tables.check_table(comparison),
        "versions": tables.versions(comparison),
    }


def _figures(
    comparison: Comparison, legend: Legend, *, key: str, reference: Reference | None, training: bool
) -> dict[str, Any]:
    """The figures, and the tables beside them; curves of training only if they are asked for."""
    looks, fixed = legend.of_rows(comparison.rows), reference is not None
    found = scores.summarise([comparison], {comparison.task.environment: reference} if reference else {})
    target = scores.scale(comparison, reference, normalised=False).target
    several = len(ranked(comparison)) > 1
    tradeoffs = [pareto.tradeoff(comparison, e, reference) for e in comparison.epsilons if several]
    shown = legend.of_rows(ranked(comparison))
    learning = learning_curves.training_returns(comparison, looks, key=f"{key}learn") if training else ()
    responses = learning_curves.adversary_returns(comparison, looks, key=f"{key}resp")
    metrics = learning_curves.regulariser_metrics(comparison, looks, key=f"{key}m") if training else ()
    logging = learning_curves.logging_rows(comparison) if training else ()
    return {
        "over_runs": scores.score_table(found, decimals=2 if fixed else comparison.decimals),
        "profiles": scores.profiles(found, looks, unit="score" if fixed else "return", key=f"{key}prof"),
        "target": number(target, decimals=comparison.decimals),
        "fixed": fixed,
        "worst_case": figures.worst_case(comparison, looks, key=f"{key}worst"),
        "metric_panels": figures.metrics(comparison, looks, key=f"{key}metric"),
        "robustness": figures.robustness(comparison, looks, key=f"{key}eps"),
        "dynamics_curves": dynamics.dynamics_curves(comparison, looks, key=f"{key}dynamics"),
        "proven_curves": proven.curves(comparison, looks, key=f"{key}proven"),
        "pareto": pareto.clean_against_robust(comparison, shown, tradeoffs, key=f"{key}pareto"),
        "volumes": pareto.hypervolumes(tradeoffs) if several else None,
        "learning": learning,
        "adversary_returns": responses,
        "training_metrics": metrics,
        "metrics_legend": legend.entries(logging),
    }


def _scores(comparisons: Sequence[Comparison], references: Mapping[str, Reference]) -> Summaries:
    """Scores of the ranked methods over all environments that rank them; empty where that is only one."""
    found = [replace(each, rows=ranked(each)) for each in comparisons if ranked(each)]
    return scores.summarise(found, references) if len(found) > 1 else {}


def _across(
    comparisons: Sequence[Comparison],
    legend: Legend,
    references: Mapping[str, Reference],
    found: Summaries,
) -> dict[str, Any] | None:
    """The methods over all environments; None where there is no score."""
    if not found:
        return None
    by_label = {row.method.label: row for comparison in comparisons for row in comparison.rows}
    rows = [by_label[summary.label] for summary in found[0.0]]
    return {
        "legend": legend.entries(rows),
        "blocks": scores.score_table(found, decimals=2),
        "profiles": scores.profiles(found, legend.of_rows(rows), unit="score", key="across"),
        "fixed": all(reference_of(references, c.task) for c in comparisons),
    }


def _style() -> Markup:
    """The style sheet, with the colours of methods as variables."""
    pairs = list(dark_colours().items())
    light = "".join(f"--m{i}:{colour};" for i, (colour, _) in enumerate(pairs))
    dark = "".join(f"--m{i}:{colour};" for i, (_, colour) in enumerate(pairs))
    sheet = resources.files("marl_aajr.report").joinpath("report.css").read_text("utf-8")
    return Markup(
        f"{sheet}\n:root{{{light}}}\n@media screen and (prefers-color-scheme: dark){{:root{{{dark}}}}}"
    )
