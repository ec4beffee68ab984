"""The tables of the page, as text; the template only lays them out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from marl_aajr.report.comparison import Comparison, Row
from marl_aajr.report.protocol import Condition
from marl_aajr.report.records import Outcome, RunRecord
from marl_aajr.report.statistics import Estimate
from marl_aajr.report.wording import interval, number


@dataclass(frozen=True)
class Cell:
    """One value.

    Attributes:
        main: the number.
        under: a smaller second line.
        note: a smaller third line.
        mark: ``best``, ``tied`` (not distinguishable from the best) or nothing.
    """

    main: str
    under: str = ""
    note: str = ""
    mark: str = ""


@dataclass(frozen=True)
class Line:
    """A row of a table."""

    header: str
    cells: tuple[Cell, ...]


@dataclass(frozen=True)
class Block:
    """Rows under a common heading."""

    title: str
    lines: tuple[Line, ...]


def results(comparison: Comparison, *, decimals: int) -> tuple[Block, ...]:
    """Clean return, price, strongest attack at each ε, then every attack."""
    rows = comparison.rows
    clean = _marked("clean return", rows, lambda row: row.clean, decimals=decimals)
    price = Line("price of robustness", tuple(_price(row, decimals=decimals) for row in rows))
    blocks = [Block("Without an attack", (clean, price) if comparison.plain else (clean,))]
    if len(comparison.attacks) > 1:
        blocks.append(_strongest(rows, comparison.epsilons, decimals=decimals))
    for kind in rows[0].others:
        blocks.append(_other_actions(kind, comparison, decimals=decimals))
    for attack in comparison.attacks:
        lines = tuple(
            _marked(_size(c.epsilon), rows, _under_attack(c), decimals=decimals)
            for c in comparison.conditions
            if c.attack == attack
        )
        blocks.append(Block(f"Attack: {attack}", lines))
    return tuple(blocks)


def changed_actions(comparison: Comparison) -> tuple[Block, ...]:
    """Fraction of greedy actions that each attack changed; empty where none was recorded."""

    def cell(row: Row, condition: Condition) -> Cell:
        rates = [run.attacked[condition].success_rate for run in row.runs]
        known = [rate for rate in rates if rate is not None]
        return Cell(f"{100 * sum(known) / len(known):.0f} %" if known else "—")

    blocks = tuple(
        Block(
            f"Attack: {attack}",
            tuple(
                Line(_size(c.epsilon), tuple(cell(row, c) for row in comparison.rows))
                for c in comparison.conditions
                if c.attack == attack
            ),
        )
        for attack in comparison.attacks
    )
    cells = (cell for block in blocks for line in block.lines for cell in line.cells)
    return blocks if any(cell.main != "—" for cell in cells) else ()


def team_returns(comparison: Comparison, *, decimals: int) -> tuple[Block, ...]:
    """Mean return of each side, without and under attack; empty where there is one side."""
    clean = [run.clean for row in comparison.rows for run in row.runs]
    teams = tuple(dict.fromkeys(team for outcome in clean for team in outcome.team_returns))
    if len(teams) < 2:
        return ()

    def line(header: str, team: str, outcomes: Callable[[Row], list[Outcome]]) -> Line:
        cells = []
        for row in comparison.rows:
            known = [o.team_returns[team] for o in outcomes(row) if team in o.team_returns]
            mean = number(sum(known) / len(known), decimals=decimals) if known else "—"
            cells.append(Cell(mean))
        return Line(header, tuple(cells))

    def of(condition: Condition) -> Callable[[Row], list[Outcome]]:
        return lambda row: [run.attacked[condition] for run in row.runs]

    return tuple(
        Block(
            f"Side: {team}",
            (
                line("no attack", team, lambda row: [run.clean for run in row.runs]),
                *(line(f"{c.attack}, {_size(c.epsilon)}", team, of(c)) for c in comparison.conditions),
            ),
        )
        for team in teams
    )


RUN_COLUMNS = ("run", "method", "seed", "environment steps", "iterations", "training time", "machine")


def versions(comparison: Comparison) -> tuple[tuple[str, ...], ...]:
    """One line per run, under `RUN_COLUMNS`."""
    return tuple(
        (
            str(run.path),
            row.method.label,
            str(run.seed),
            number(run.status.env_steps, decimals=0),
            number(run.status.iteration, decimals=0),
            _duration(run.metrics[-1].seconds),
            run.versions.platform,
        )
        for row in comparison.rows
        for run in row.method.runs
    )


def packages(runs: Sequence[RunRecord]) -> dict[str, str]:
    """Package -> version, or the versions that differ between runs; Python first."""
    names = sorted({name for run in runs for name in run.versions.packages})
    found = {"python": dict.fromkeys(run.versions.python for run in runs)}
    for name in names:
        found[name] = dict.fromkeys(run.versions.packages.get(name, "absent") for run in runs)
    return {name: " / ".join(versions) for name, versions in found.items()}


def _under_attack(condition: Condition) -> Callable[[Row], Estimate]:
    return lambda row: row.robust[condition]


def _strongest(rows: Sequence[Row], epsilons: Sequence[float], *, decimals: int) -> Block:
    def line(epsilon: float) -> Line:
        return _marked(
            _size(epsilon),
            rows,
            lambda row: row.worst_return(epsilon),
            note=lambda row: row.worst[epsilon].attack,
            decimals=decimals,
        )

    return Block("Strongest of the attacks tried", tuple(map(line, epsilons)))


def _other_actions(kind: str, comparison: Comparison, *, decimals: int) -> Block:
    """Clean return and strongest attack, with actions taken in another way."""
    rows = [row.others[kind] for row in comparison.rows]
    clean = _marked("clean return", rows, lambda row: row.clean, decimals=decimals)
    strongest = _strongest(rows, comparison.epsilons, decimals=decimals)
    return Block(f"With {kind} actions: clean, and strongest attack", (clean, *strongest.lines))


def _marked(
    header: str,
    rows: Sequence[Row],
    value: Callable[[Row], Estimate],
    *,
    decimals: int,
    note: Callable[[Row], str] = lambda row: "",
) -> Line:
    """A line whose best mean is marked, and what cannot be distinguished from it."""
    best = max((value(row) for row in rows), key=lambda estimate: estimate.mean)

    def mark(estimate: Estimate) -> str:
        if len(rows) == 1:
            return ""
        if estimate is best:
            return "best"
        return "" if best.above(estimate) else "tied"

    return Line(
        header,
        tuple(
            Cell(
                number(value(row).mean, decimals=decimals),
                interval(value(row), decimals=decimals),
                note(row),
                mark(value(row)),
            )
            for row in rows
        ),
    )


def _price(row: Row, *, decimals: int) -> Cell:
    if row.price is None:
        return Cell("reference")
    return Cell(number(row.price.mean, decimals=decimals), interval(row.price, decimals=decimals))


def _size(epsilon: float) -> str:
    return f"ε = {epsilon:g}"


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60:02d} min" if minutes >= 60 else f"{minutes} min"
