"""Compares what fast runs learn with what RLlib's own runner and learner learn, at the same number of steps.

The same configuration is trained with resources.runner stock on mpe2's environments and with fast on our
batched ones, over several seeds. A run's score is its mean return over the last tenth of its iterations; a
score is lost where the interval of the difference of the means lies below 0. Runs that are there are not
trained again, so the script can be stopped and called again.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from statistics import mean
from typing import Any

from bench_output import say, write_json

ENVIRONMENTS = ("simple_spread_v3", "simple_tag_v3")
PACKAGES = {"stock": "mpe2", "fast": "marl_aajr.envs"}
LAST = 0.1
LEVEL = 0.95


def main() -> int:
    options = parse()
    figures: dict[str, Any] = {}
    for environment in options.environments:
        scores = {
            runner: [score(environment, runner, seed, options) for seed in range(options.seeds)]
            for runner in PACKAGES
        }
        figures[environment] = compare(environment, scores)
    lost = [f"{env} ({team})" for env, teams in figures.items() for team, f in teams.items() if f["lost"]]
    say(f"learning is lost in {', '.join(lost)}" if lost else "no learning is lost")
    if options.json:
        write_json(options.json, {"seeds": options.seeds, "env_steps": options.env_steps, "figures": figures})
    return 1 if lost else 0


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", default="runs/bench_learning", help="where the runs are kept")
    parser.add_argument("--environments", nargs="+", default=list(ENVIRONMENTS), metavar="ENV")
    parser.add_argument("--seeds", type=int, default=5, help="runs of each (default 5)")
    parser.add_argument("--env-steps", type=int, default=300_000, help="length of a run (default 300,000)")
    parser.add_argument("--json", metavar="FILE", help="write the figures there")
    return parser.parse_args()


def score(environment: str, runner: str, seed: int, options: argparse.Namespace) -> dict[str, float]:
    """The score of each team in one run, which is trained if it is not there."""
    from marl_aajr.training.config import make_config
    from marl_aajr.training.run_directory import RunDirectory
    from marl_aajr.training.trainer import train

    config = make_config(
        {
            "env": {"name": f"{PACKAGES[runner]}.{environment}"},
            "seed": seed,
            "env_steps": options.env_steps,
            "resources": {"runner": runner},
        }
    )
    path = Path(options.out) / f"{environment}-{runner}-{options.env_steps}-{seed}"
    directory = RunDirectory(path)
    started = time.perf_counter()
    if not directory.is_run:
        train(config, path)
    elif directory.status().state != "finished":
        train(config, path, resume=True)
    lines = [line for line in directory.metrics() if line["team_returns"]]
    last = lines[-max(1, round(LAST * len(lines))) :]
    teams = {team: mean(line["team_returns"][team] for line in last) for team in last[-1]["team_returns"]}
    shown = ", ".join(f"{team} {value:.2f}" for team, value in teams.items())
    say(f"{environment} {runner} seed {seed}: {shown}   ({time.perf_counter() - started:.0f} s)")
    return teams


def compare(environment: str, scores: dict[str, list[dict[str, float]]]) -> dict[str, Any]:
    """Means and the interval of their difference (Welch), by team."""
    from scipy import stats

    result = {}
    for team in scores["stock"][0]:
        stock, fast = ([run[team] for run in scores[runner]] for runner in ("stock", "fast"))
        interval = stats.ttest_ind(fast, stock, equal_var=False).confidence_interval(LEVEL)
        low, high = float(interval.low), float(interval.high)
        say(
            f"{environment}, {team}: stock {mean(stock):.2f}, fast {mean(fast):.2f}; difference "
            f"{mean(fast) - mean(stock):+.2f} [{low:+.2f}, {high:+.2f}]"
        )
        result[team] = {"stock": stock, "fast": fast, "low": low, "high": high, "lost": high < 0.0}
    return result


if __name__ == "__main__":
    sys.exit(main())
