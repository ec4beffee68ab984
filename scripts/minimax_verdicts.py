"""The hypotheses of experiments/minimax/README.md, decided by the rules that were written down there.

Everything is paired by the seed of training: a method's value of a seed minus another's, and Student's
t-interval over these differences.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from marl_aajr.report.estimates import Estimate, number, with_interval

Rows = Sequence[Mapping[str, Any]]

PLAIN, MINIMAX, SMOOTH = "PPO", "adversarial training", "smooth policy"
OFF_POLICY = "off-policy adversarial loss"
"""Taken at observations that nobody acted on: by AAJR without a penalty, or the pilot's method of its own."""

MAPS = ("logits", "margin")
_BESIDE = ("AAJR on logits", "AAJR on margin", SMOOTH, "Frobenius")
_COMPARED = (
    (MINIMAX, PLAIN),
    *((f"{MINIMAX} + {penalty}", MINIMAX) for penalty in _BESIDE),
    (SMOOTH, MINIMAX),
)
INNER = ("inner_gain", "strong_gain", "monotone_fraction", "smoothness", "changed_decisions")
"""Measures of training's own attack in a run's metrics."""

TRAINED_WITH = "pgd-margin", "steps=5,"
"""Name and settings by which rows of the attack of training are known."""


def label(run: Mapping[str, Any]) -> str:
    """The method of a run's configuration, with what tells it from its namesakes."""
    method, beside = run["method"], bool(run.get("rollouts"))
    if "adversarial_weight" in method and not method.get("coefficient"):  # of the pilot, under its later name
        return f"{OFF_POLICY}, κ = {method['adversarial_weight']:g}"
    names = {"none": PLAIN, "frobenius": "Frobenius"}
    name = names.get(method["name"], str(method["name"]).replace("_", " "))
    if method["name"] == "aajr":
        name = f"AAJR on {method['output']}" if beside else f"AAJR, κ = {method['adversarial_weight']:g}"
    if "coefficient" in method and (method["name"] == "aajr" or "rollouts" in run):
        name += f", λ = {method['coefficient']:g}"  # the pilot, whose runs are older, has one of each rival
    return f"{MINIMAX} + {name}" if beside else name


def score(row: Mapping[str, Any]) -> float:
    """The share of agents who succeed, in %, where the game reports it, else the return.

    In the congestion game 100 times the mean reward of one of 20 agents in one of 25 rounds.
    """
    metrics = dict(row.get("metrics") or ())
    if row.get("game") == "congestion_v0":
        return float(row["return"]) / 5
    rate = metrics.get("individual_success")
    return float(row["return"]) if rate is None else 100 * rate


def score_by_seed(rows: Rows, method: str, epsilon: float) -> dict[int, float]:
    """Scores of a method's runs, each under its own worst attack of a size; ε = 0: without one."""
    return {
        row["seed"]: score(row)
        for row in rows
        if row["label"] == method
        and row["epsilon"] == epsilon
        and (row["worst"] if epsilon else row["attack"] == "none")
    }


def inner_by_seed(curves: Rows, method: str, name: str = "gap") -> dict[int, float]:
    """A measure of the inner loop, the mean of the last quarter of each run.

    `gap` is 100 (strong_gain − inner_gain) / strong_gain: how much of a strong adversary's gain the steps of
    training miss, in %.
    """
    found: dict[int, list[float]] = {}
    for row in curves:
        if row["label"] == method and row["env_steps"] > 0.75 * row["of_steps"] and row["strong_gain"]:
            value = 100 - 100 * row["inner_gain"] / row["strong_gain"] if name == "gap" else row[name]
            found.setdefault(row["seed"], []).append(value)
    return {seed: fmean(values) for seed, values in found.items()}


def paired(ours: Mapping[int, float], theirs: Mapping[int, float], *, level: float = 0.95) -> Estimate:
    """The mean difference over the seeds; `ValueError` where they are not the same."""
    if set(ours) != set(theirs) or not ours:
        raise ValueError(f"expected the same seeds, got {sorted(ours)} and {sorted(theirs)}")
    return Estimate.over("runs", [ours[seed] - theirs[seed] for seed in sorted(ours)], level=level)


def inner_table(curves: Rows, rows: Rows) -> list[str]:
    """Lines of Markdown: the inner loop at the end of training, and what it leaves to the worst attack."""
    titles = ("", "inner gap", "monotone", "L_eff", "decisions changed", "return beyond training's attack")
    lines = []
    for method in methods([row for row in curves if row["strong_gain"]]):
        gap, monotone, smoothness, changed = (
            fmean(inner_by_seed(curves, method, name).values())
            for name in ("gap", "monotone_fraction", "smoothness", "changed_decisions")
        )
        beyond = _beyond(rows, method)
        cells = (f"{gap:.1f} %", f"{monotone:.1%}", f"{smoothness:.2f}", f"{changed:.0%}", beyond)
        lines.append((method, *cells))
    return markdown(titles, lines)


def interval(found: Estimate) -> str:
    """The mean ± half of its interval."""
    half = "" if found.high is None else f" ± {found.high - found.mean:.1f}"
    return f"{found.mean:.1f}{half}".replace("-", "−")


def markdown(titles: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """The lines of a table."""
    head = f"| {' | '.join(titles)} |".replace("|  |", "| |")
    return [head, "|---" * len(titles) + "|", *(f"| {' | '.join(row)} |" for row in rows)]


def methods(rows: Rows) -> list[str]:
    """The methods of the rows, in their order."""
    return list(dict.fromkeys(row["label"] for row in rows))


def _beyond(rows: Rows, method: str) -> str:
    """The score under the attack of training minus that under the worst attack, at ε = 0.1."""
    name, steps = TRAINED_WITH
    of_training = {
        row["seed"]: score(row)
        for row in rows
        if (row["label"], row["epsilon"], row["attack"]) == (method, 0.1, name) and steps in row["settings"]
    }
    worst = score_by_seed(rows, method, 0.1)
    return with_interval(paired(of_training, worst), decimals=1) if worst else ""


def verdicts(curves: Rows, rows: Rows) -> list[str]:
    """Lines of Markdown: hypotheses with their statistics and verdicts, by rows of one kind of actions."""
    compare = Comparison(curves, rows)
    lines = ["| hypothesis | statistics: difference with its interval | verdict |", "|---|---|---|"]
    for hypothesis in (_learns, _cheaper, _easier, _better, _direction):
        try:
            lines.append(hypothesis(compare))
        except ValueError:
            lines.append(f"| {(hypothesis.__doc__ or '').rstrip('.')} | | not run yet |")
    return lines


def in_short(games: Mapping[str, Rows]) -> list[str]:
    """Lines of Markdown: clean and worst score at ε = 0.1 of plain PPO, then differences; a column per game.

    AT is adversarial training. Bold where the paired interval excludes 0: of 95 %, or 97.5 % of AAJR, which
    has two chances.
    """
    compared = [Comparison([], rows) for rows in games.values()]
    lines = [[PLAIN, *map(_plain, compared)]]
    for ours, theirs in _COMPARED:
        cells = [_difference(compare, ours, theirs) for compare in compared]
        lines.append([f"{ours} − {theirs}".replace(MINIMAX, "AT"), *cells])
    return markdown(["", *games], lines)


def _plain(compare: Comparison) -> str:
    scores = (fmean(score_by_seed(compare.rows, PLAIN, epsilon).values()) for epsilon in (0.0, 0.1))
    return ", ".join(number(score, decimals=1) for score in scores)


def _difference(compare: Comparison, ours: str, theirs: str) -> str:
    level = 0.975 if "AAJR" in ours else 0.95
    found = compare.scores(compare.first(ours), theirs, 0.0, 0.1, level=level)
    return ", ".join(f"**{_signed(each)}**" if _clear(each) else _signed(each) for each in found)


def _clear(found: Estimate) -> bool:
    return found.positive or found.negative


def _signed(found: Estimate) -> str:
    return "+" * (round(found.mean, 1) > 0) + number(found.mean, decimals=1)


@dataclass(frozen=True)
class Comparison:
    """The results of one game, curves of training and rows of evaluations."""

    curves: Rows
    rows: Rows

    def scores(self, ours: str, theirs: str, *epsilons: float, level: float = 0.95) -> list[Estimate]:
        """The differences of the scores, one for each size."""
        return [
            paired(*(score_by_seed(self.rows, name, epsilon) for name in (ours, theirs)), level=level)
            for epsilon in epsilons
        ]

    def first(self, name: str) -> str:
        """The first method of the study whose name begins so: with the better coefficient of tuning."""
        rows = (row for rows in (self.rows, self.curves) for row in rows)
        return next((row["label"] for row in rows if row["label"].startswith(name)), "")

    def with_aajr(self) -> dict[str, str]:
        """Adversarial training with AAJR on logits and on margins, as far as they have run."""
        names = {output: self.first(f"{MINIMAX} + AAJR on {output}") for output in MAPS}
        if not any(names.values()):
            raise ValueError("expected results of AAJR, got none; resume the study")
        return {output: name for output, name in names.items() if name}


def _learns(compare: Comparison) -> str:
    """0. The minimax learns."""
    clean, small, large = compare.scores(MINIMAX, PLAIN, 0.0, 0.1, 0.2)
    return line(
        _learns,
        {"clean": clean, "ε = 0.1": small, "ε = 0.2": large},
        supported=clean.mean > -3 and small.positive and large.positive,
        refuted=below(clean, -3) or below(small, 0) or below(large, 0),
    )


def _cheaper(compare: Comparison) -> str:
    """(a) It is cheaper than the smooth policy."""
    clean, worst = compare.scores(MINIMAX, compare.first(SMOOTH), 0.0, 0.1)
    return line(
        _cheaper,
        {"clean": clean, "ε = 0.1": worst},
        supported=clean.positive and worst.mean >= -1,
        refuted=below(clean, 0) or below(worst, -1),
    )


def _easier(compare: Comparison) -> str:
    """(b) AAJR makes the inner maximisation easier."""
    alone = inner_by_seed(compare.curves, MINIMAX)
    gaps = {
        f"gap in %, {output}": paired(inner_by_seed(compare.curves, name), alone, level=0.975)
        for output, name in compare.with_aajr().items()
    }
    return line(
        _easier,
        gaps,
        supported=any(below(gap, 0) for gap in gaps.values()),
        refuted=len(gaps) == len(MAPS) and all(gap.positive for gap in gaps.values()),
    )


def _better(compare: Comparison) -> str:
    """(c) AAJR makes the result better."""
    found = {
        output: compare.scores(name, MINIMAX, 0.0, 0.1, level=0.975)
        for output, name in compare.with_aajr().items()
    }
    return line(
        _better,
        {
            f"{output}, {what}": each
            for output, pair in found.items()
            for what, each in zip(("clean", "ε = 0.1"), pair, strict=True)
        },
        supported=any(worst.positive and clean.mean >= -1 for clean, worst in found.values()),
        refuted=len(found) == len(MAPS) and all(below(worst, 0) for _, worst in found.values()),
    )


def _direction(compare: Comparison) -> str:
    """(d) The direction matters."""
    frobenius = compare.first(f"{MINIMAX} + Frobenius")
    (worst,) = compare.scores(compare.first(f"{MINIMAX} + AAJR on logits"), frobenius, 0.1)
    return line(_direction, {"ε = 0.1": worst}, supported=worst.positive, refuted=below(worst, 0))


def line(
    hypothesis: Callable[..., str],
    statistics: Mapping[str, Estimate],
    *,
    supported: bool,
    refuted: bool,
) -> str:
    """A line of Markdown: a hypothesis, named by the docstring of what decides it, and its verdict."""
    verdict = "refuted" if refuted else "supported" if supported else "undecided"
    found = "; ".join(f"{name}: {with_interval(each, decimals=1)}" for name, each in statistics.items())
    return f"| {(hypothesis.__doc__ or '').rstrip('.')} | {found} | **{verdict}** |"


def below(found: Estimate, bound: float) -> bool:
    """Whether an interval lies below a bound."""
    return found.high is not None and found.high < bound
