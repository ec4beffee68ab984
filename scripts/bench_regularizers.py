"""Measures what regularizers cost: time and peak memory of one PPO minibatch update, beside the plain one.

"Plain" is RLlib's own PPOTorchLearner; "lean" is the learner of fast runs. All of a size are measured in
turns, round by round, in one process, and reported as medians. Every update is of the same minibatch. Time is
the process's own: on one thread of a quiet machine that of the clock, on a busy one still that of the work.
GFLOP counts the operations of matrix products, which no implementation of the same thing can be without (of
fused LSTMs it knows nothing);
peak memory is what the learner holds (weights, optimizer, minibatch) and the most that an update adds to it.
The part "iteration" measures whole training iterations of fast runs, sampling included, with a method at its
defaults beside the plain one.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
import time
import warnings
from statistics import median
from typing import Any

from bench_output import Bars, judge, load, machine, progress, say, write_json
from bench_update import Size, Update

JACREV = "aajr_k3_full_jacrev"
SIZES = {
    "small": Size(18, 5, 1_000, jacrev=True),
    "large": Size(128, 16, 4_096, jacrev=True),
    "lstm": Size(18, 5, 1_000, steps=20),
}
BARS: Bars = {
    "small.aajr_k3_full.time_ratio": ("at most", 3.5),
    "small.aajr_default.time_ratio": ("at most", 1.6),
    "large.aajr_k3_full.speedup_over_jacrev": ("at least", 5.0),
    "small.aajr_k3_full.memory_ratio": ("at most", 2.5),
    "small.aajr_default.memory_ratio": ("at most", 2.5),
    "large.aajr_k3_full.memory_ratio": ("at most", 2.5),
    "large.aajr_default.memory_ratio": ("at most", 2.5),
    "lstm.aajr_k3_full.memory_ratio": ("at most", 2.5),
    "lstm.aajr_default.memory_ratio": ("at most", 2.5),
    "iteration.aajr_default.ratio": ("at most", 1.3),
    "iteration.smooth_policy_default.ratio": ("at most", 1.3),
}
ITERATION = "iteration"
PARTS = (*SIZES, ITERATION)


def main() -> int:
    options = parse()
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    import torch

    torch.set_num_threads(options.threads)
    say(f"{machine(options.threads)}; load {load()}")
    figures: dict[str, Any] = {}
    for name in options.only:
        if name == ITERATION:
            figures |= iterations(options)
            continue
        for method, found in measure(name, SIZES[name], options).items():
            figures |= {f"{name}.{method}.{key}": value for key, value in found.items()}
    say("")
    judge(figures, BARS)
    if options.json:
        write_json(options.json, {**figures, "machine": machine(options.threads), "load": load()})
    return 0


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=15, help="measurements of each (default 15)")
    parser.add_argument("--threads", type=int, default=1, help="torch threads (default 1)")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS), help="what to measure")
    parser.add_argument("--methods", nargs="+", metavar="NAME", help="only these, beside plain and lean")
    parser.add_argument("--json", metavar="FILE", help="write the figures there (- for standard output)")
    return parser.parse_args()


def measure(name: str, size: Size, options: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Seconds, bytes, operations and ratios of every method at one size."""
    say(f"\n{name}: {size}")
    chosen = methods(size)
    if options.methods:
        chosen = {key: value for key, value in chosen.items() if key in options.methods}
    updates = {"plain": Update(size), "lean": Update(size, lean=True)}
    for key, regularizer in chosen.items():
        updates[key] = Update(size, regularizer)
    if "aajr_default" in chosen and size.steps == 1:
        updates["lean_aajr_default"] = Update(size, chosen["aajr_default"], lean=True)
    seconds: dict[str, list[float]] = {key: [] for key in updates}
    for i in range(options.rounds):
        for key, update in updates.items():
            progress(f"{key:<40} round {i + 1} of {options.rounds}")
            if key != JACREV or i < max(3, options.rounds // 5):
                seconds[key].append(update())
    progress("")
    found = {
        key: {
            "seconds": median(seconds[key]),
            "bytes": update.peak_bytes(),
            "gflop": update.gflop(),
        }
        for key, update in updates.items()
    }
    plain = found["plain"]
    for figures in found.values():
        figures["time_ratio"] = figures["seconds"] / plain["seconds"]
        figures["lean_ratio"] = figures["seconds"] / found["lean"]["seconds"]
        figures["memory_ratio"] = figures["bytes"] / plain["bytes"]
        figures["flop_ratio"] = figures["gflop"] / plain["gflop"]
    if JACREV in found:
        full = found["aajr_k3_full"]
        full["speedup_over_jacrev"] = found[JACREV]["seconds"] / full["seconds"]
    table(found)
    return found


def iterations(options: argparse.Namespace) -> dict[str, float]:
    """Seconds of a whole iteration, and its ratio to a plain one, in turns."""
    import ray
    from bench_setting import COPIES, OURS, fast_config, iteration_seconds

    from marl_aajr import robustify
    from marl_aajr.regularizers import make_regularizer

    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    algorithms = {"plain": fast_config(OURS, COPIES).build_algo()}
    for name in ("aajr", "smooth_policy"):
        config = robustify(fast_config(OURS, COPIES), make_regularizer(name))
        algorithms[f"{name}_default"] = config.build_algo()
    seconds = iteration_seconds(algorithms, options.rounds, clock=time.process_time)
    ray.shutdown()
    plain = seconds["plain"]
    say(f"\n{ITERATION + ', sampling included':<34} {'ms':>8} {'x plain':>8}")
    found = {}
    for name, taken in seconds.items():
        say(f"{name:<34} {1e3 * taken:>8.2f} {taken / plain:>8.2f}")
        found |= {f"{ITERATION}.{name}.seconds": taken, f"{ITERATION}.{name}.ratio": taken / plain}
    return found


def methods(size: Size) -> dict[str, Any]:
    """By the name of the figure: every regularizer as it comes, and AAJR's variants on whole minibatches."""
    from marl_aajr.core.jacobian import BACKENDS
    from marl_aajr.regularizers import AAJR, REGULARIZERS, make_regularizer

    found: dict[str, Any] = {"aajr_k3_full": AAJR(steps=3, sample_fraction=1.0, points="all")}
    if size.jacrev:
        found[JACREV] = exact()
    for backend in BACKENDS:
        if size.steps == 1 or backend in ("double", "central"):
            found[f"aajr_k3_full_{backend}"] = AAJR(
                steps=3, sample_fraction=1.0, points="all", backend=backend
            )
    found["aajr_k3_full_secant"] = AAJR(steps=3, sample_fraction=1.0, secant=True)
    found["aajr_k3_full_kappa"] = AAJR(steps=3, sample_fraction=1.0, points="all", adversarial_weight=0.5)
    for name in REGULARIZERS:
        if name != "sum" and not (size.steps > 1 and name == "spectral_normalization"):
            found[f"{name}_default"] = make_regularizer(name)
    return found


def exact() -> Any:
    """AAJR by the whole Jacobian of all points at once, as jacrev gives it."""
    import torch
    from torch.func import jacrev, vmap

    from marl_aajr.core.output_maps import squared_gain
    from marl_aajr.regularizers import AAJR

    class ExactAAJR(AAJR):
        def mean_squared_gain(self, sample: Any, deltas: Any, directions: Any, form: Any) -> Any:
            squared = self.squared_gains(sample.policy, sample.obs + deltas, directions)
            return sample.mean(form(squared)), squared.detach()

        def squared_gains(self, policy: Any, points: Any, directions: Any) -> Any:
            rows, u = points.flatten(0, 1), directions.flatten(0, 1)
            jacobian = vmap(jacrev(policy))(rows)
            tangent = (jacobian @ u.unsqueeze(-1)).squeeze(-1)
            with torch.no_grad():
                outputs = policy(rows)
            squared = squared_gain(self.output, policy.distribution, outputs, tangent)
            return squared.unflatten(0, (len(points), -1))

    return ExactAAJR(steps=3, sample_fraction=1.0, points="all", backend="forward")


def table(found: dict[str, dict[str, float]]) -> None:
    say(
        f"{'':<34} {'ms':>8} {'x plain':>8} {'x lean':>7} "
        f"{'GFLOP':>7} {'x plain':>8} {'MiB':>7} {'x plain':>8}"
    )
    for name, f in found.items():
        say(
            f"{name:<34} {1e3 * f['seconds']:>8.2f} {f['time_ratio']:>8.2f} {f['lean_ratio']:>7.2f} "
            f"{f['gflop']:>7.3f} {f['flop_ratio']:>8.2f} {f['bytes'] / 2**20:>7.2f} {f['memory_ratio']:>8.2f}"
        )


if __name__ == "__main__":
    sys.exit(main())
