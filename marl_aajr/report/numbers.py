"""A comparison as plain values, for programs: what `compare --json` prints."""

from __future__ import annotations

from itertools import combinations
from typing import Any

from marl_aajr.report.comparison import Comparison, Row
from marl_aajr.report.estimates import Estimate


def numbers(comparison: Comparison) -> dict[str, Any]:
    """The protocol, the methods, and the difference of each pair of them.

    Of each method its clean return and what the worst attack of each size leaves; of each pair the intervals
    that tell them apart.
    """
    protocol = comparison.protocol
    checks = [check for found in comparison.checks.values() for check in found]
    return {
        "environment": protocol.environment,
        "team": protocol.team,
        "episodes": protocol.episodes,
        "seed": protocol.seed,
        "units": protocol.units,
        "level": protocol.level,
        "failed_checks": sum(check.verdict == "fail" for check in checks),
        "methods": [
            {
                "method": row.method.label,
                **_row(row, comparison.epsilons),
                "actions": protocol.actions,
                "others": [
                    {**_row(other, comparison.epsilons), "actions": kind}
                    for kind, other in row.others.items()
                ],
            }
            for row in comparison.rows
        ],
        "differences": [_pair(*pair, comparison.epsilons) for pair in combinations(comparison.rows, 2)],
    }


def _pair(row: Row, other: Row, epsilons: tuple[float, ...]) -> dict[str, Any]:
    return {
        "method": row.method.label,
        "minus": other.method.label,
        "clean": _estimate(row.clean.minus(other.clean)),
        "worst": [{"epsilon": e, **_estimate(row.lead(other, e))} for e in epsilons],
    }


def _row(row: Row, epsilons: tuple[float, ...]) -> dict[str, Any]:
    return {
        "runs": [str(run.run.path) for run in row.runs],
        "clean": _estimate(row.clean),
        "worst": [
            {"epsilon": e, "attack": row.worst[e].attack, **_estimate(row.worst_return(e))} for e in epsilons
        ],
        "median_run_under_its_strongest_attack": [_median(row, epsilon) for epsilon in epsilons],
    }


def _median(row: Row, epsilon: float) -> dict[str, Any]:
    run = row.median_run(epsilon)
    return {
        "epsilon": epsilon,
        "attack": run.worst(epsilon).attack,
        "run": str(run.run.path),
        **_estimate(row.median_return(epsilon)),
    }


def _estimate(estimate: Estimate) -> dict[str, Any]:
    return {
        "return": estimate.mean,
        "low": estimate.low,
        "high": estimate.high,
        "interval_over": estimate.unit,
    }
