"""The figure and the tables of a study's page, experiments/STUDY/README.md, from the results that lie there.

    .venv/bin/python scripts/study_tables.py pilot
    .venv/bin/python scripts/study_tables.py crossplay
    .venv/bin/python scripts/study_tables.py minimax

Draws returns.png, and prints a table for each game and kind of actions: the mean over the training runs ±
half of Student's 95 % t-interval, without an attack and under the worst one of each size (chosen on other
episodes), and the share of greedy decisions that the strongest PGD of size 0.1 changes; ▲ and ▼ are better
and worse than PPO, by the interval of the difference (Welch's t, 95 %, not corrected for the number of
comparisons). Where a game reports the share of agents who succeed, that in % stands for the return. Then how
training ended; of crossplay, every opponent and what best responses leave (crossplay_tables.py); of minimax,
its inner loop and the verdicts on its hypotheses (minimax_verdicts.py), its tuning, and what was explored. A
method appears once it has been evaluated with every seed.

--collect STUDY ... first gathers the tables from studies/pilot, or from the studies of minimax:
training.parquet with the curves of finished runs, and the results.parquet of minimax without single episodes.
Rows of games that none of these studies has played stay as they are. --again RUN ... adds runs of minimax
whose inner loop was measured again.
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
from crossplay_tables import by_side, matrix, response_table
from experiment_tables import AGAIN, collect, collect_again, read
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from minimax_verdicts import (
    PLAIN,
    in_short,
    inner_table,
    interval,
    markdown,
    methods,
    score_by_seed,
    verdicts,
)

from marl_aajr.core.checks import grouped
from marl_aajr.report.estimates import Estimate, number

EXPERIMENTS = Path(__file__).resolve().parent.parent / "experiments"
EPSILONS = (0.0, 0.05, 0.1, 0.2)
ACTIONS = ("greedy", "sampled")
SEEDS = 3
LAST = 5
ENDS = f"mean of the last {LAST} iterations of training"
_COLOURS = {
    "none": "#5c6670",
    "aajr": "#0072b2",
    "smooth_policy": "#d55e00",
    "frobenius": "#009e73",
    "adversarial_training": "#c98a00",
    "off_policy_adversarial_training": "#c98a00",
}
_EXPLORED = {
    "pogema_v0-ppo-measured": PLAIN,
    "pogema_v0-fresh": "AAJR, fresh directions",
    "pogema_v0-rollout": "AAJR, directions of play",
    "pogema_v0-epoch": "AAJR, directions of each epoch",
    "pogema_v0-entropy": "adversarial training, entropy bonus 0.05",
}
_DASHES = ("-", (0, (1.2, 1.2)), (0, (5, 1.5)), (0, (5, 1.5, 1.2, 1.5)))

Rows = Sequence[Mapping[str, Any]]


def main() -> None:
    """Draw the figure and print the tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("study", choices=("pilot", "crossplay", "minimax"))
    parser.add_argument("--out", type=Path, help="folder of the figure, if not the study's")
    parser.add_argument("--collect", type=Path, nargs="+", metavar="STUDY", help="such as studies/pilot")
    parser.add_argument("--again", type=Path, nargs="+", metavar="RUN", help="whose inner loop decides")
    options = parser.parse_args()
    folder = EXPERIMENTS / options.study
    if options.again:
        collect_again(options.again, folder)
    if options.collect:
        collect(options.collect, folder)
    rows = read(folder / "results.parquet")
    rows = rows if options.study == "minimax" else sorted(rows, key=_order)
    games = {"minimax": complete, "pilot": by_game, "crossplay": by_side}[options.study](rows)
    drawn = {game: first_coefficients(rows) for game, rows in games.items()}
    draw(drawn if options.study == "minimax" else games).savefig(
        (options.out or folder) / "returns.png", dpi=110
    )
    for game, of_game in games.items():
        for actions in kinds(of_game):
            show(f"{game}, {actions} actions", table(of(of_game, actions=actions)))
    if options.study == "crossplay":
        show("every opponent, without an attack", matrix(rows))
        show("best responses", response_table(rows))
        return
    curves = by_game(read(folder / "training.parquet"))
    if options.study == "pilot":
        show(f"simple_spread: {ENDS}", training_table(curves["simple_spread_v3"]))
        return
    for tuned in sorted(folder.glob("*_tuning.parquet")):
        show(tuned.stem.replace("_", " "), tuning_table(deciding(read(tuned))))
    show("pogema, what was left open", table(explored(read(folder / "pogema_more.parquet"))))
    suite = json.loads((folder / "pogema_more_standard.json").read_text())
    show("pogema, under the standard suite at ε = 0.1", standard_table(suite))
    show("in short", in_short({game: deciding(of_game) for game, of_game in games.items()}))
    again = by_game(read(folder / AGAIN))
    for game, of_game in curves.items():
        decides = deciding(games.get(game, []))
        show(f"{game}: {ENDS}", training_table(of_game))
        show(f"{game}: the inner loop", inner_table(of_game, decides))
        if game in again:
            show(f"{game}: the inner loop, measured again", inner_table(again[game], decides))
        show(f"{game}: the hypotheses", verdicts(again.get(game, of_game), decides))


def show(title: str, lines: Sequence[str]) -> None:
    """Print a table under its title."""
    print(title, "", *lines, "", sep="\n")


def kinds(rows: Rows) -> list[str]:
    """The kinds of actions that were played."""
    return [actions for actions in ACTIONS if of(rows, actions=actions)]


def deciding(rows: Rows) -> Rows:
    """The rows of the actions that a study decides by: greedy ones, if any were played."""
    return [row for row in rows if row["actions"] in kinds(rows)[:1]]


def explored(rows: Rows) -> Rows:
    """The rows of pogema_more.yaml, labelled as its methods are."""
    known = [row for row in rows if row["epsilon"] is not None]  # others have no size
    return [{**row, "label": _EXPLORED[row["run"].rpartition("-s")[0]]} for row in known]


def standard_table(methods: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Lines of Markdown: each seed's score under the attack that other episodes chose as the worst."""
    lines = []
    for name, runs in methods.items():
        worst = {seed: (run["scores"][run["worst"]], run["worst"]) for seed, run in runs.items()}
        lines.append([name, *(f"{number(score, decimals=1)} ({attack})" for score, attack in worst.values())])
    return markdown(["", *(f"seed {seed}" for seed in worst)], lines)


def of(rows: Rows, *, actions: str) -> Rows:
    """The rows of one kind of actions."""
    return [row for row in rows if row["actions"] == actions]


def _order(row: Mapping[str, Any]) -> tuple[bool, str]:
    return row["label"] != PLAIN, row["label"]


def by_game(rows: Rows) -> Mapping[str, Rows]:
    """The rows of each environment."""
    return grouped((row["game"], row) for row in rows)


def complete(rows: Rows) -> Mapping[str, Rows]:
    """The rows of each environment, of methods that have been evaluated with every seed."""
    seeds: dict[tuple[str, str], set[int]] = {}
    for row in rows:
        seeds.setdefault((row["game"], row["label"]), set()).add(row["seed"])
    whole = [row for row in rows if len(seeds[row["game"], row["label"]]) == SEEDS]
    return by_game(whole)


def first_coefficients(rows: Rows) -> Rows:
    """The rows of each method with the coefficient that hypotheses rest on, labelled without it."""
    first: dict[str, str] = {}
    for method in methods(rows):
        first.setdefault(method.partition(", λ")[0], method)
    return [
        {**row, "label": name} for name, method in first.items() for row in rows if row["label"] == method
    ]


def table(rows: Rows) -> list[str]:
    """Lines of Markdown: a row per method, of one kind of actions."""
    strong = any(row["attack"] == "pgd-strong" for row in rows)
    sizes = [f"ε = {epsilon:g}" for epsilon in EPSILONS[1:]]
    lines = []
    for method in methods(rows):
        found = ((estimate(rows, method, epsilon), estimate(rows, PLAIN, epsilon)) for epsilon in EPSILONS)
        cells = [_cell(ours, plain) for ours, plain in found]
        cells += [f"{_changed(rows, method):.0%}"] if strong else []
        lines.append([method, *cells])
    return markdown(["", "no attack", *sizes, *["decisions changed"] * strong], lines)


def tuning_table(rows: Rows) -> list[str]:
    """Lines of Markdown: the single run of every setting that was tried, without and under attack."""
    lines = []
    for method in methods(rows):
        found = (score_by_seed(rows, method, epsilon) for epsilon in (0.0, 0.1))
        cells = (number(score, decimals=1) for scores in found for score in scores.values())
        lines.append([method, *cells])
    return markdown(("tried", "no attack", "ε = 0.1"), lines)


def training_table(rows: Rows) -> list[str]:
    """Lines of Markdown: the end of training, means over the runs of what any of them has."""
    named = {"return": "return_mean", "entropy (nats)": "entropy"}
    named |= {"logit scale": "logit_scale", "gain": "gain"}
    known = {title: name for title, name in named.items() if any(row.get(name) is not None for row in rows)}
    last, lines = max(row["iteration"] for row in rows) - LAST, []
    for method in methods(rows):
        ends = [row for row in rows if row["label"] == method and row["iteration"] > last]
        kept = ([row[name] for row in ends if row[name] is not None] for name in known.values())
        lines.append(
            [method, *(f"{fmean(values):.2f}".replace("-", "−") if values else "" for values in kept)]
        )
    return markdown(["", *known], lines)


def estimate(rows: Rows, method: str, epsilon: float) -> Estimate:
    """Mean score of a method's runs, each under its own worst attack of a size; ε = 0: without one."""
    scores = score_by_seed(rows, method, epsilon)
    if len(scores) != SEEDS:
        raise ValueError(f"expected {SEEDS} runs of {method} at ε = {epsilon:g}, got {len(scores)}")
    return Estimate.over("runs", list(scores.values()), level=0.95)


def draw(games: Mapping[str, Rows]) -> Figure:
    """Score against ε, a panel for each game and kind of actions."""
    shown = kinds([row for rows in games.values() for row in rows])
    found = {f"{game}: {k}": of(rows, actions=k) for k, (game, rows) in product(shown, games.items())}
    played = {title: rows for title, rows in found.items() if rows}
    wide = len(games) if len(played) == len(found) else 2
    tall = -(-len(played) // wide)
    figure, panels = plt.subplots(tall, wide, figsize=(3 + 3 * wide, 0.6 + 2.8 * tall), squeeze=False)
    for axes in panels.flat[len(played) :]:
        axes.set_visible(False)
    for (title, rows), axes in zip(played.items(), panels.flat, strict=False):
        _draw_panel(axes, rows)
        axes.set_title(title, loc="left", fontsize=9, fontweight="bold")
    for axes in panels[-1]:
        axes.set_xlabel("ε (0: no attack)")
    for axes in panels[:, 0]:
        axes.set_ylabel("score under the worst attack")
    handles = {
        label: line
        for axes in panels.flat
        for line, label in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    figure.legend(handles.values(), handles, loc="lower center", ncol=1 + wide, frameon=False, fontsize=8)
    figure.tight_layout(rect=(0, 0.08 if wide > 1 else 0.16, 1, 1))
    return figure


def _draw_panel(axes: Axes, rows: Rows) -> None:
    turns = dict.fromkeys(_COLOURS, 0)
    families = {row["label"]: json.loads(row["config"])["method"]["name"] for row in rows}
    for place, (method, family) in enumerate(families.items()):
        estimates = [estimate(rows, method, epsilon) for epsilon in EPSILONS]
        errors = [0.0 if e.high is None else e.high - e.mean for e in estimates]
        axes.errorbar(
            [epsilon + (place - len(families) / 2) * 0.0012 for epsilon in EPSILONS],  # bars side by side
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
    mark = " ▲" if found.minus(plain).positive else " ▼" if plain.minus(found).positive else ""
    return f"{interval(found)}{mark}"


if __name__ == "__main__":
    main()
