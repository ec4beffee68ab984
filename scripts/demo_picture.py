"""Draws the README's first picture from the runs of scripts/demo: return under the worst attack of each size.

.venv/bin/python scripts/demo_picture.py runs/demo experiments/demo/returns.png
"""

from __future__ import annotations

import argparse
from pathlib import Path

import matplotlib.pyplot as plt

from marl_aajr.report import compare

LOOKS = {
    "none": ("plain PPO", "#5c6670"),
    "adversarial_training": ("adversarial training", "#c98a00"),
    "aajr": ("adversarial training with AAJR", "#0072b2"),
}


def main() -> None:
    """Draw a curve for each method, with the 95 % intervals over episodes."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("demo", type=Path, help="folder of a finished demo")
    parser.add_argument("out", type=Path, help="the picture, such as returns.png")
    options = parser.parse_args()
    comparison = compare([options.demo / name for name in LOOKS])
    figure, axes = plt.subplots(figsize=(7, 3.6), layout="constrained")
    for shift, row in enumerate(comparison.rows, start=-1):
        label, colour = LOOKS[row.runs[0].run.path.name]
        points = {0.0: row.clean, **row.worst_return}
        means = [point.mean for point in points.values()]
        below = [point.mean - (point.low or point.mean) for point in points.values()]
        above = [(point.high or point.mean) - point.mean for point in points.values()]
        at = [epsilon + 0.0015 * shift for epsilon in points]
        axes.errorbar(at, means, (below, above), label=label, color=colour, capsize=3, linewidth=1.6)
    axes.set(
        xlabel="size ε of the attack (0: none)",
        ylabel="return under the worst attack",
        xticks=[0.0, *comparison.epsilons],
        title=f"{comparison.task.short}, {comparison.protocol.episodes} episodes, one training run each",
    )
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="#e3e7ea")
    axes.legend(frameon=False)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(options.out, dpi=110)


if __name__ == "__main__":
    main()
