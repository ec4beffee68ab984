"""What the pilot found, from its table: README's figure, and the tables of experiments/pilot/README.md.

    .venv/bin/python scripts/pilot_summary.py

Reads experiments/pilot/results.parquet, draws experiments/pilot/returns.png and returns.svg, and prints a
table for each environment and kind of actions: mean return over the training runs ± half of Student's 95 %
t-interval, without an attack and under the worst one of each size (chosen on other episodes), and the share
of decisions that the strongest PGD of size 0.1 changes. With --crossplay the tables are those of
crossplay.json, and nothing is drawn.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from statistics import fmean
from typing import Any

import matplotlib.pyplot as plt
import pyarrow.parquet
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from marl_aajr.report.statistics import Estimate, over_runs

FOLDER = Path(__file__).resolve().parent.parent / "experiments" / "pilot"
EPSILONS = (0.0, 0.05, 0.1, 0.2)
ACTIONS = ("greedy", "sampled")
PLAIN = "PPO"
_COLOURS = {
    PLAIN: "#5c6670",
    "AAJR": "#0072b2",
    "smooth policy": "#d55e00",
    "Frobenius": "#009e73",
    "adversarial training": "#c98a00",
}
_DASHES = ("-", (0, (1.2, 1.2)), (0, (5, 1.5)), (0, (5, 1.5, 1.2, 1.5)))

Rows = Sequence[Mapping[str, Any]]


def main() -> None:
    """Draw the figure and print the tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--table", type=Path, default=FOLDER / "results.parquet")
    parser.add_argument("--out", type=Path, default=FOLDER, help="folder of the figure")
    parser.add_argument("--crossplay", action="store_true", help="the pursuers against one prey instead")
    options = parser.parse_args()
    if options.crossplay:
        found = json.loads((FOLDER / "crossplay.json").read_text())
    else:
        found = pyarrow.parquet.read_table(options.table).to_pylist()
    rows = sorted(({**row, "label": label(row)} for row in found), key=lambda row: row["label"] != PLAIN)
    if not options.crossplay:
        for ending in ("png", "svg"):
            draw(rows).savefig(options.out / f"returns.{ending}", dpi=110, metadata=_undated(ending))
    for environment, actions in product(unique(rows, "environment"), ACTIONS):
        print(f"{environment.rpartition('.')[2]}, {actions} actions\n")
        print("\n".join(table(rows, environment=environment, actions=actions)), "\n")


def label(row: Mapping[str, Any]) -> str:
    """The method of a row, with what tells it from its namesakes."""
    method = json.loads(row["config"])["method"]
    if method["name"] == "aajr":
        return f"AAJR, κ = {method['adversarial_weight']:g}, λ = {method['coefficient']:g}"
    names = {"none": PLAIN, "frobenius": "Frobenius"}
    return names.get(method["name"], str(method["name"]).replace("_", " "))


def table(rows: Rows, *, environment: str, actions: str) -> list[str]:
    """Lines of Markdown: a row per method."""
    rows = [row for row in rows if (row["environment"], row["actions"]) == (environment, actions)]
    sizes = " | ".join(f"ε = {epsilon:g}" for epsilon in EPSILONS[1:])
    lines = [f"| | no attack | {sizes} | decisions changed |", "|---|---|---|---|---|---|"]
    for method in unique(rows, "label"):
        cells = (_cell(estimate(rows, method, epsilon)) for epsilon in EPSILONS)
        lines.append(f"| {method} | {' | '.join(cells)} | {_changed(rows, method):.0%} |")
    return lines


def estimate(rows: Rows, method: str, epsilon: float) -> Estimate:
    """Return of a method's runs, each under its own worst attack of a size; ε = 0: without one."""
    returns = [
        row["return"]
        for row in rows
        if row["label"] == method
        and row["epsilon"] == epsilon
        and (row["worst"] if epsilon else row["attack"] == "none")
    ]
    return over_runs(returns, level=0.95)


def draw(rows: Rows) -> Figure:
    """Return against ε, a panel for each environment and kind of actions."""
    environments = unique(rows, "environment")
    figure, panels = plt.subplots(2, len(environments), figsize=(9.2, 6.4), sharex=True, squeeze=False)
    for (actions, environment), axes in zip(product(ACTIONS, environments), panels.flat, strict=True):
        shown = [row for row in rows if (row["environment"], row["actions"]) == (environment, actions)]
        _draw_panel(axes, shown)
        name = environment.rpartition(".")[2]
        axes.set_title(f"{name}, {actions} actions", loc="left", fontsize=9, fontweight="bold")
    for axes in panels[-1]:
        axes.set_xlabel("ε (0: no attack)")
    for axes in panels[:, 0]:
        axes.set_ylabel("return under the worst attack")
    handles, labels = panels[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="lower center", ncol=4, frameon=False, fontsize=8)
    figure.tight_layout(rect=(0, 0.08, 1, 1))
    return figure


def _draw_panel(axes: Axes, rows: Rows) -> None:
    turns = dict.fromkeys(_COLOURS, 0)
    for method in unique(rows, "label"):
        family = method.partition(",")[0]
        estimates = [estimate(rows, method, epsilon) for epsilon in EPSILONS]
        errors = [0.0 if e.high is None else e.high - e.mean for e in estimates]
        axes.errorbar(
            EPSILONS,
            [e.mean for e in estimates],
            yerr=errors,
            label=method,
            color=_COLOURS[family],
            linestyle=_DASHES[turns[family]],
            linewidth=1.4,
            elinewidth=0.6,
            capsize=2,
        )
        turns[family] += 1
    axes.grid(color="#dfe3e8", linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_xticks(EPSILONS)


def _changed(rows: Rows, method: str) -> float:
    return fmean(
        row["success_rate"]
        for row in rows
        if (row["label"], row["attack"], row["epsilon"]) == (method, "pgd-strong", 0.1)
    )


def _cell(found: Estimate) -> str:
    half = "" if found.high is None else f" ± {found.high - found.mean:.1f}"
    return f"{found.mean:.1f}{half}".replace("-", "−")


def unique(rows: Rows, key: str) -> list[str]:
    """Values of a column, in their order."""
    return list(dict.fromkeys(row[key] for row in rows))


def _undated(ending: str) -> dict[str, Any] | None:
    """The same figure is the same file."""
    return {"Date": None} if ending == "svg" else None


if __name__ == "__main__":
    main()
