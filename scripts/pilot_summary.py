"""What the pilot found, from its table: README's figure, and the tables of experiments/pilot/README.md.

    .venv/bin/python scripts/pilot_summary.py

Reads the tables in experiments/pilot, draws returns.png there, and prints a table for
each game and kind of actions: mean return over the training runs ± half of Student's 95 % t-interval,
without an attack and under the worst one of each size (chosen on other episodes), and the share of
greedy decisions that the strongest PGD of size 0.1 changes; ▲ and ▼ are better and worse than PPO, by
the interval of the difference (Welch's t, 95 %, not corrected for the number of comparisons). Last,
what pursuers of plain PPO earn from the prey of each method, and how training on simple_spread ended.
--collect STUDY first writes training.parquet, the curves of all runs, from the folder of the study.
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

from marl_aajr.report.estimates import Estimate
from marl_aajr.training.run_directory import RunDirectory

FOLDER = Path(__file__).resolve().parent.parent / "experiments" / "pilot"
EPSILONS = (0.0, 0.05, 0.1, 0.2)
ACTIONS = ("greedy", "sampled")
PLAIN = "PPO"
SEEDS = 3
LAST = 5
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
    parser.add_argument("--out", type=Path, default=FOLDER, help="folder of the figure")
    parser.add_argument("--collect", type=Path, metavar="STUDY", help="such as studies/pilot")
    options = parser.parse_args()
    if options.collect:
        collect(options.collect)
    games = load()
    draw(games).savefig(options.out / "returns.png", dpi=110)
    for (game, rows), actions in product(games.items(), ACTIONS):
        print(f"{game}, {actions} actions\n")
        print("\n".join(table(rows, actions)) + "\n")
    print("prey of each method, pursuers of another plain run\n")
    print("\n".join(prey_table(_read("prey.parquet"))) + "\n")
    print(f"simple_spread, mean of the last {LAST} iterations of training\n")
    print("\n".join(training_table([row for row in _read("training.parquet") if "spread" in row["run"]])))


def collect(study: Path) -> None:
    """Write the curves of all runs: a row for each iteration and module."""
    rows = []
    for folder in sorted((study / "runs").iterdir()):
        run = RunDirectory(folder)
        common = {"run": folder.name, "config": run.config().model_dump_json()}
        for record in run.metrics():
            known = {name: record[name] for name in ("iteration", "env_steps", "seconds", "return_mean")}
            for module, metrics in record["modules"].items():
                gains = [value for name, value in metrics.items() if name.endswith("/gain_mean")]
                found = {"entropy": metrics["entropy"], "gain": gains[0] if gains else None}
                rows.append(common | known | {"module": module} | found)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), FOLDER / "training.parquet")


def load() -> dict[str, Rows]:
    """The rows of each game, plain PPO's first; a game is an environment, and who is met there."""
    own = _read("results.parquet")
    crossed = _read("crossplay.parquet")
    spread, tag = ([row for row in own if name in row["environment"]] for name in ("spread", "tag"))
    return {
        "simple_spread": spread,
        "simple_tag, prey of its own run": tag,
        "simple_tag, prey of another plain run": crossed,
    }


def _read(file: str) -> Rows:
    rows = pyarrow.parquet.read_table(FOLDER / file).to_pylist()
    return sorted(({**row, "label": label(row)} for row in rows), key=_order)


def _order(row: Mapping[str, Any]) -> tuple[bool, str]:
    return row["label"] != PLAIN, row["label"]


def label(row: Mapping[str, Any]) -> str:
    """The method of a row, with what tells it from its namesakes."""
    method = json.loads(row["config"])["method"]
    if method["name"] == "aajr":
        return f"AAJR, κ = {method['adversarial_weight']:g}, λ = {method['coefficient']:g}"
    names = {"none": PLAIN, "frobenius": "Frobenius"}
    return names.get(method["name"], str(method["name"]).replace("_", " "))


def table(rows: Rows, actions: str) -> list[str]:
    """Lines of Markdown: a row per method."""
    rows = [row for row in rows if row["actions"] == actions]
    sizes = " | ".join(f"ε = {epsilon:g}" for epsilon in EPSILONS[1:])
    lines = [f"| | no attack | {sizes} | decisions changed |", "|---|---|---|---|---|---|"]
    for method in dict.fromkeys(row["label"] for row in rows):
        found = ((estimate(rows, method, epsilon), estimate(rows, PLAIN, epsilon)) for epsilon in EPSILONS)
        cells = (_cell(ours, plain) for ours, plain in found)
        lines.append(f"| {method} | {' | '.join(cells)} | {_changed(rows, method):.0%} |")
    return lines


def prey_table(rows: Rows) -> list[str]:
    """Lines of Markdown: what the same pursuers earn from the prey of each method."""
    lines = ["| prey of | greedy | sampled |", "|---|---|---|"]
    for method in dict.fromkeys(row["label"] for row in rows):
        kinds = ([row for row in rows if row["actions"] == actions] for actions in ACTIONS)
        found = ((estimate(kind, method, 0.0), estimate(kind, PLAIN, 0.0)) for kind in kinds)
        lines.append(f"| {method} | {' | '.join(_cell(ours, plain) for ours, plain in found)} |")
    return lines


def training_table(rows: Rows) -> list[str]:
    """Lines of Markdown: return, entropy and gain at the end of training, means over the runs."""
    lines = ["| | return | entropy (nats) | gain of the logits |", "|---|---|---|---|"]
    last = max(row["iteration"] for row in rows) - LAST
    for method in dict.fromkeys(row["label"] for row in rows):
        ends = [row for row in rows if row["label"] == method and row["iteration"] > last]
        kept = (
            [row[name] for row in ends if row[name] is not None]
            for name in ("return_mean", "entropy", "gain")
        )
        cells = (f"{fmean(values):.2f}".replace("-", "−") if values else "" for values in kept)
        lines.append(f"| {method} | {' | '.join(cells)} |")
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
    if len(returns) != SEEDS:
        raise ValueError(f"expected {SEEDS} runs of {method} at ε = {epsilon:g}, got {len(returns)}")
    return Estimate.over("runs", returns, level=0.95)


def draw(games: Mapping[str, Rows]) -> Figure:
    """Return against ε, a panel for each game and kind of actions."""
    figure, panels = plt.subplots(2, len(games), figsize=(12, 6.2), sharex=True, squeeze=False)
    for (actions, game), axes in zip(product(ACTIONS, games), panels.flat, strict=True):
        _draw_panel(axes, [row for row in games[game] if row["actions"] == actions])
        axes.set_title(f"{game}: {actions}", loc="left", fontsize=9, fontweight="bold")
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
    for place, method in enumerate(dict.fromkeys(row["label"] for row in rows)):
        family = method.partition(",")[0]
        estimates = [estimate(rows, method, epsilon) for epsilon in EPSILONS]
        errors = [0.0 if e.high is None else e.high - e.mean for e in estimates]
        axes.errorbar(
            [epsilon + (place - 3.5) * 0.0012 for epsilon in EPSILONS],  # bars side by side
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


def _cell(found: Estimate, plain: Estimate) -> str:
    """Mean and half interval; better or worse than plain PPO by the interval of the difference (Welch)."""
    half = "" if found.high is None else f" ± {found.high - found.mean:.1f}"
    mark = " ▲" if found.minus(plain).positive else " ▼" if plain.minus(found).positive else ""
    return f"{found.mean:.1f}{half}{mark}".replace("-", "−")


if __name__ == "__main__":
    main()
