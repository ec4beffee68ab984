"""The tables of the page: returns, the heat map of attacks, the runs, the checks, the notes of a study."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

from marl_aajr.core.checks import METRIC_DECIMALS, grouped
from marl_aajr.report.cautions import Incident, Notes, Tuning
from marl_aajr.report.comparison import Comparison, MethodRow
from marl_aajr.report.conditions import Condition, unlimited
from marl_aajr.report.estimates import (
    NOTHING,
    Block,
    Cell,
    Estimate,
    Line,
    Sheet,
    estimated,
    marked,
    metric_of,
    number,
    shaded,
    size,
    size_name,
)
from marl_aajr.report.methods import EvaluatedRun, show
from marl_aajr.report.ranking import unranked
from marl_aajr.report.run_results import RunResults
from marl_aajr.report.self_checks import VERDICTS, checks_by_verdict


def results(comparison: Comparison) -> tuple[Block, ...]:
    """Clean return and price, then the worst attack at each ε, and the median run under its own worst."""
    rows, decimals, out = comparison.rows, comparison.decimals, unranked(comparison)
    clean = marked("clean return", rows, lambda row: row.clean, decimals=decimals, unranked=out)
    prices = (row.price and estimated(row.price, decimals=decimals) for row in rows)
    price = Line("price of robustness", tuple(cell or Cell("reference") for cell in prices))
    area = marked(f"mean over {size_name()}", rows, lambda row: row.area, decimals=decimals, unranked=out)

    def in_other_ways(kind: str) -> Block:
        own = [row.others[kind] for row in rows]
        unattacked = marked("clean return", own, lambda row: row.clean, decimals=decimals, unranked=out)
        title = f"With {kind} actions: clean, and worst attack"
        return Block(title, (unattacked, *_strongest(comparison, own)))

    several = len(comparison.attacks) > 1
    title = "Worst of the attacks tried, of each run its own" if several else "Under attack"
    return (
        Block("Without an attack", (clean, price) if comparison.plain else (clean,)),
        Block(title, (*_strongest(comparison, rows), area)),
        *(in_other_ways(kind) for kind in rows[0].others),
    )


def metrics(comparison: Comparison) -> tuple[Block, ...]:
    """What the environment reports beside rewards: clean, under the worst attacks, and the least of any."""
    rows, level = comparison.rows, comparison.protocol.level

    def least(row: MethodRow, name: str, epsilon: float) -> tuple[Estimate, str]:
        of_size = [found for found in unlimited(comparison.conditions) if found.epsilon == epsilon]
        found = ((metric_of([r.attacked[c] for r in row.runs], name, level=level), c.attack) for c in of_size)
        return min(found, key=lambda pair: pair[0].mean)

    def line(header: str, found: Iterable[tuple[Estimate, str]]) -> Line:
        shown = list(found)
        notes = {id(value): note for value, note in shown}
        return marked(
            header,
            [value for value, _ in shown],
            lambda value: value,
            note=lambda value: notes[id(value)],
            decimals=METRIC_DECIMALS,
            unranked=unranked(comparison),
        )

    def lines(name: str) -> Iterator[Line]:
        yield line("no attack", ((row.metric(name), "") for row in rows))
        for e in comparison.epsilons:
            worst = [(row.metric(name, e), row.worst_attack[e].attack) for row in rows]
            yield line(f"worst return, {size(e)}", worst)
            yield line(f"least, {size(e)}", [least(row, name, e) for row in rows])

    return tuple(Block(name, tuple(lines(name))) for name in comparison.metrics)


def worst_of_each_run(comparison: Comparison) -> Sheet:
    """Every run with its clean return, and at each ε its own worst attack."""

    def line(method: str, run: RunResults) -> tuple[str, ...]:
        worst = [run.worst(epsilon) for epsilon in comparison.epsilons]
        clean, *left = (
            number(outcome.mean, decimals=comparison.decimals)
            for outcome in (run.clean, *map(run.strongest, comparison.epsilons))
        )
        named = (f"{mean} ({condition.attack})" for mean, condition in zip(left, worst, strict=True))
        return (str(run.run.path), method, clean, *named)

    lines = (line(row.method.label, run) for row in comparison.rows for run in row.runs)
    columns = ("run", "method", "clean", *(f"worst at {size(e)}" for e in comparison.epsilons))
    return Sheet("Every run under its own worst attack.", columns, tuple(lines))


def changed_actions(comparison: Comparison) -> tuple[Block, ...]:
    """Share of the attacked decisions that each attack changed."""

    def line(condition: Condition) -> Line:
        rates = [[run.attacked[condition].success_rate for run in row.runs] for row in comparison.rows]
        return Line(size(condition.epsilon), tuple(Cell(f"{100 * sum(r) / len(r):.0f} %") for r in rates))

    lines = grouped((condition.attack, line(condition)) for condition in comparison.conditions)
    return tuple(Block(f"Attack: {attack}", tuple(own)) for attack, own in lines.items())


def team_returns(comparison: Comparison) -> tuple[Block, ...]:
    """Mean return of each side, without and under attack; empty where there is one side."""
    teams = dict.fromkeys(team for run in comparison.runs for team in run.clean.team_returns)
    if len(teams) < 2:
        return ()

    def line(team: str, condition: Condition | None) -> Line:
        def cell(row: MethodRow) -> Cell:
            outcomes = [run.attacked[condition] if condition else run.clean for run in row.runs]
            known = [o.team_returns[team] for o in outcomes if team in o.team_returns]
            return Cell(number(sum(known) / len(known), decimals=comparison.decimals)) if known else NOTHING

        header = f"{condition.attack}, {size(condition.epsilon)}" if condition else "no attack"
        return Line(header, tuple(map(cell, comparison.rows)))

    shown = (None, *comparison.conditions)
    return tuple(Block(f"Side: {team}", tuple(line(team, c) for c in shown)) for team in teams)


def _strongest(comparison: Comparison, rows: Sequence[MethodRow]) -> tuple[Line, ...]:
    """The worst attack at each ε; where a method has several runs, also the median run under its own."""
    decimals = comparison.decimals

    def line(epsilon: float) -> Line:
        return marked(
            size(epsilon),
            rows,
            lambda row: row.worst_return[epsilon],
            note=lambda row: row.worst_attack[epsilon].attack,
            decimals=decimals,
            unranked=unranked(comparison),
        )

    def median(epsilon: float) -> Line:
        runs = [row.median_run(epsilon) for row in rows]
        notes = [f"seed {run.run.seed}, {run.worst(epsilon).attack}" for run in runs]
        cells = (
            estimated(row.median_return(epsilon), decimals=decimals, note=note)
            for row, note in zip(rows, notes, strict=True)
        )
        return Line(f"median run, {size(epsilon)}", tuple(cells))

    several = any(len(row.runs) > 1 for row in rows)
    return *map(line, comparison.epsilons), *(map(median, comparison.epsilons) if several else ())


def heat_map(comparison: Comparison) -> tuple[Block, ...]:
    """One block per size, rows by attack: return of each method, its worst attacks marked.

    Attacks that are limited to some agents or steps stand in blocks of their own.
    """
    rows, ends = comparison.rows, lowest_and_highest(comparison)

    def cell(row: MethodRow, condition: Condition | None) -> Cell:
        estimate = row.clean if condition is None else row.robust[condition]
        worst = condition is not None and row.worst_attack.get(condition.epsilon) == condition
        return shaded(estimate, ends, decimals=comparison.decimals, mark="worst" if worst else "")

    def line(header: str, condition: Condition | None) -> Line:
        return Line(header, tuple(cell(row, condition) for row in rows))

    by_block = grouped(((c.limits, c.epsilon), c) for c in comparison.conditions)
    blocks = [Block("No attack", (line("none", None),))]
    for (limits, epsilon), conditions in sorted(by_block.items()):
        ending = f", {limits}" if limits else ""
        lines = tuple(line(c.attack.removesuffix(ending), c) for c in conditions)
        blocks.append(Block(size(epsilon) + ending, lines))
    return tuple(blocks)


def lowest_and_highest(comparison: Comparison) -> tuple[float, float]:
    """The returns at the two ends of the shading."""
    means = [e.mean for row in comparison.rows for e in (row.clean, *row.robust.values())]
    return min(means), max(means)


def versions(comparison: Comparison) -> Sheet:
    """One line per run: how long it trained, and where."""

    def line(method: str, run: EvaluatedRun) -> tuple[str, ...]:
        trained = ("trained elsewhere", "—", "—", "—")
        if run.status is not None and run.versions is not None:
            steps, iterations = (number(n, decimals=0) for n in (run.status.env_steps, run.status.iteration))
            trained = (steps, iterations, duration(run.metrics[-1].seconds), run.versions.platform)
        return (str(run.path), method, str(run.seed), *trained)

    columns = ("run", "method", "seed", "environment steps", "iterations", "training time", "machine")
    lines = (line(row.method.label, run) for row in comparison.rows for run in row.method.runs)
    return Sheet("The runs.", columns, tuple(lines))


def duration(seconds: float) -> str:
    """`42 s`, `5 min` or `3 h 07 min`."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60:02d} min" if minutes >= 60 else f"{minutes} min"


def check_table(comparison: Comparison) -> Sheet:
    """Every check with its verdict, how many runs it is about, and what it found in the first of them."""
    lines = tuple(
        (name, VERDICTS[verdict], f"{len(by_run)} of {len(comparison.checks)}", next(iter(by_run.values())))
        for (verdict, name), by_run in checks_by_verdict(comparison).items()
    )
    return Sheet("The checks.", ("check", "verdict", "runs", "what it found in the first of them"), lines)


def study_tables(notes: Notes) -> list[Sheet]:
    """Tuning budgets, failures and restarts; without those that are empty."""
    tuned = "What the tuning of each method took. A method that was searched longer has an advantage."
    what = ("method", "environment", "trials", "environment steps", "searched", "chosen", "how")
    incident = ("run", "what happened", "times", "log")
    found = [
        Sheet(tuned, what, tuple(map(_tuning, notes.tuning))),
        Sheet("Runs that failed and are missing here.", incident, tuple(map(_incident, notes.failures))),
        Sheet("Runs that went on after a fault.", incident, tuple(map(_incident, notes.restarts))),
    ]
    return [sheet for sheet in found if sheet.lines]


def _tuning(tuning: Tuning) -> tuple[str, ...]:
    def pairs(settings: Mapping[str, object]) -> str:
        return "; ".join(f"{key}: {show(value)}" for key, value in settings.items()) or "—"

    return (
        tuning.method,
        tuning.environment or "all",
        str(tuning.trials),
        number(tuning.env_steps, decimals=0),
        pairs(tuning.space),
        pairs(tuning.chosen),
        tuning.how or "—",
    )


def _incident(incident: Incident) -> tuple[str, ...]:
    return incident.run, incident.what, str(incident.times), incident.log or "—"
