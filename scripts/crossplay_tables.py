"""The tables of experiments/crossplay: each method against the pool, each opponent and its best response."""

from __future__ import annotations

from statistics import fmean

from minimax_verdicts import Rows, interval, markdown, methods, score_by_seed

from marl_aajr.core.checks import grouped
from marl_aajr.evaluation.outcomes import OWN
from marl_aajr.report.estimates import Estimate


def by_side(rows: Rows) -> dict[str, Rows]:
    """The rows against the own side, and means over the pool, of each opponent under the worst attack."""
    counted = [row for row in rows if row["epsilon"] is not None and (row["worst"] or not row["epsilon"])]
    met = grouped(((row["run"], row["epsilon"]), row) for row in counted if row["opponent"] != OWN)
    means = [{**of[0], "return": fmean(row["return"] for row in of)} for of in met.values()]
    return {
        "against their own prey": [row for row in counted if row["opponent"] == OWN],
        "mean over the pool": means,
    }


def matrix(rows: Rows) -> list[str]:
    """Lines of Markdown: the mean return of each method against each opponent, without an attack."""
    clean = [row for row in rows if row["attack"] == "none"]
    opponents = list(dict.fromkeys(row["opponent"] for row in clean))
    met = grouped(((row["label"], row["opponent"]), row["return"]) for row in clean)
    lines = (
        [method, *(f"{fmean(met[method, name]):.1f}" for name in opponents)] for method in methods(clean)
    )
    return markdown(["", *opponents], lines)


def response_table(rows: Rows) -> list[str]:
    """Lines of Markdown: what a best response leaves to each method, and what is lost to it."""
    lines = []
    for method in methods(rows):
        home = score_by_seed([row for row in rows if row["opponent"] == OWN], method, 0.0)
        met = {
            row["seed"]: row["return"]
            for row in rows
            if (row["label"], row["attack"]) == (method, "best-response")
        }
        lost = {seed: home[seed] - left for seed, left in met.items()}
        cells = (
            Estimate.over("runs", [of[seed] for seed in sorted(home)], level=0.95) for of in (home, met, lost)
        )
        lines.append([method, *map(interval, cells)])
    return markdown(("", "own prey", "best response", "lost"), lines)
