"""The evidence for AAJR's defaults: how much of each minibatch is regularised, and how often.

    .venv/bin/python scripts/sample_share.py

Trains AAJR with every variant and seed on 3-agent simple_spread, or the environment that is named, keeps the
runs under runs/sample_share (finished ones are not repeated, interrupted ones resume), and writes the curves
to experiments/sample_share/ENVIRONMENT.json and a table to standard output. If a share is too small for its
purpose, its directional gain is larger or its return lower than with whole minibatches. The same holds for
lazy regularization: whole minibatches now and then, with a greater weight, at one point of each row's path.
"""

from __future__ import annotations

import argparse
import json
from statistics import mean, stdev
from typing import Any

from variants import ENV, ROOT, train_all

RUNS = ROOT / "runs" / "sample_share"
RESULTS = ROOT / "experiments" / "sample_share"
COEFFICIENT = 3e-3
"""Three times the default: the penalty must bite for a smaller share of it to be missed."""
SHARES = (1.0, 0.2, 0.1, 0.05)
LAST = 10


def main() -> None:
    """Train what is missing, write the results, print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--env", default=ENV)
    parser.add_argument("--env-steps", type=int, default=150_000)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only", action="append", metavar="VARIANT", help="repeatable; default: all")
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time, one core each")
    options = parser.parse_args()
    variants: dict[str, dict[str, Any]] = {
        f"share {share:g}": {"method.sample_fraction": share, "method.interval": 1, "method.points": "all"}
        for share in SHARES
    }
    variants["lazy, all points"] = {"method.sample_fraction": 0.1, "method.points": "all"}
    variants["lazy"] = {"method.sample_fraction": 0.1}
    variants["lazy, share 0.05"] = {}  # the default
    for settings in variants.values():
        settings["method.coefficient"] = COEFFICIENT
    if unknown := set(options.only or ()) - set(variants):
        parser.error(f"expected variants out of {', '.join(variants)}, got {', '.join(unknown)}")
    variants = {name: variants[name] for name in options.only or variants}
    cells = [(name, seed) for seed in range(options.seeds) for name in variants]
    game = options.env.rpartition(".")[2]
    records = train_all(
        variants,
        cells,
        runs=RUNS / game,
        method="aajr",
        env_steps=options.env_steps,
        jobs=options.jobs,
        env=options.env,
    )
    curves: dict[str, dict[int, list[dict[str, Any]]]] = {name: {} for name in variants}
    for (name, seed), run in zip(cells, records, strict=True):
        curves[name][seed] = [point(record) for record in run]
    RESULTS.mkdir(parents=True, exist_ok=True)
    (RESULTS / f"{game}.json").write_text(
        json.dumps({"env_steps": options.env_steps, "curves": curves}) + "\n"
    )
    print(f"Last {LAST} iterations of {options.env_steps:,} env steps; mean ± standard deviation over seeds")
    for name, by_seed in curves.items():
        cells_of = [summary([run[-LAST:] for run in by_seed.values()], key) for key in KEYS]
        print(f"{name:17s}" + "".join(f"   {key} {cell}" for key, cell in zip(KEYS, cells_of, strict=True)))


KEYS = ("return", "gain", "objective_gain")


def point(record: dict[str, Any]) -> dict[str, Any]:
    """What is kept of an iteration, over modules; before the ramp begins there is no penalty to measure."""
    modules = record["modules"].values()

    def over_modules(key: str) -> float | None:
        found = [module[key] for module in modules if key in module]
        return mean(found) if found else None

    return {
        "env_steps": record["env_steps"],
        "return": record["return_mean"],
        "gain": over_modules("aajr/gain_mean"),
        "objective_gain": over_modules("aajr/objective_gain"),
    }


def summary(runs: list[list[dict[str, Any]]], key: str) -> str:
    finals = [mean(p[key] for p in run) for run in runs]
    return f"{mean(finals):.4g} ± {stdev(finals) if len(finals) > 1 else 0:.2g}"


if __name__ == "__main__":
    main()
