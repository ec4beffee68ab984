"""Measures sampling and training with 1, 2 and 4 env runners over 1 and 2 nodes, interleaved, here.

The nodes are processes of this machine (two raylets), so its cores bound what can be seen: efficiency is
against the cores that are there. Everything is at the reference setting of the other benchmarks. Beside it:
the pickled size of what goes through the object store, what a run takes to start, what a study adds to each
run (`scheduling_overhead`: of the time of a million environment steps), and what 64 nodes would come to. The
parts "networks" and "growth" are about one process, on one thread: see `bench_growth.py`.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import median
from typing import Any

import bench_growth
import yaml
from bench_output import Bars, judge, load, machine, progress, say, write_json
from bench_setting import COPIES, EPOCHS, OURS, STEPS, fast_config

PARTS = ("runners", "start", "study", "networks", "growth")
LAYOUTS = ((1, 1), (2, 1), (4, 1), (2, 2), (4, 2))  # (env runners, nodes)
FRAGMENT = 16_000
"""Environment steps that each runner samples at a time: the trip through Ray must not dominate."""
BARS: Bars = {"run_start_seconds": ("at most", 5.0), "scheduling_overhead": ("at most", 0.02)}
STUDY_RUNS, STUDY_STEPS, DEFAULT_STEPS = 9, 20 * STEPS, 1_000_000
NODES = 64

Measure = Callable[[], float]


def main() -> int:
    options = parse()
    os.environ |= {
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
        "OMP_NUM_THREADS": "1",
    }
    # Elsewhere than other Rays of this machine, which would find this one.
    folder = tempfile.mkdtemp(prefix="ray", dir="/tmp")
    os.environ["RAY_TMPDIR"] = folder
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    import ray
    import torch
    from ray.cluster_utils import Cluster

    torch.set_num_threads(1)
    # "alone" is on the first node only, "two" and "four" have room for half of so many runners on each.
    shares = {"two": 1, "four": 2}
    cluster = Cluster(
        initialize_head=True,
        head_node_args={"num_cpus": 16, "include_dashboard": False, "resources": {"alone": 16, **shares}},
    )
    cluster.add_node(num_cpus=16, resources=shares)
    ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
    say(f"{machine(1)}; load {load()}")
    figures: dict[str, Any] = {}
    try:
        if "runners" in options.only:
            figures |= over_runners(options.rounds)
        if "start" in options.only:
            figures |= starts(options.rounds)
        figures |= study() if "study" in options.only else {}
        figures |= bench_growth.figures(options.only, options.rounds)
    finally:
        ray.shutdown()
        cluster.shutdown()
    say("")
    judge(figures, {**BARS, **bench_growth.BARS})
    if options.json:
        write_json(options.json, {**figures, "machine": machine(1), "load": load()})
    return 0


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="measurements of each (default 5)")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS), help="what to measure")
    parser.add_argument("--json", metavar="FILE", help="write the figures there (- for standard output)")
    return parser.parse_args()


def over_runners(rounds: int) -> dict[str, Any]:
    """Sampling and whole iterations of each layout, in turns."""
    progress("starting env runners")
    algorithms = {layout: algorithm(*layout) for layout in LAYOUTS}
    measures: dict[str, Measure] = {}
    for (runners, nodes), algo in algorithms.items():
        measures[f"sampling {runners}x{nodes}"] = sampling(algo, runners)
        measures[f"training {runners}x{nodes}"] = training(algo)
        measures[f"trip {runners}x{nodes}"] = trip(algo)
    found = interleaved(measures, rounds)
    learning = median(learn_seconds(algorithms[1, 1]) for _ in range(rounds))
    sizes = traffic(algorithms[2, 1])
    for algo in algorithms.values():
        algo.stop()
    cores = os.cpu_count() or 1
    say(f"\n{'runners':>8} {'nodes':>6} {'sampling':>10} {'efficiency':>11} {'training':>10}   (env steps/s)")
    figures: dict[str, Any] = {"cores": cores}
    for runners, nodes in LAYOUTS:
        sampled, trained = found[f"sampling {runners}x{nodes}"], found[f"training {runners}x{nodes}"]
        efficiency = sampled / found["sampling 1x1"] / min(runners, cores)
        say(f"{runners:>8} {nodes:>6} {sampled:>10,.0f} {efficiency:>11.2f} {trained:>10,.0f}")
        figures |= {
            f"sampling {runners}x{nodes} (env steps/s)": sampled,
            f"training {runners}x{nodes} (env steps/s)": trained,
            f"efficiency {runners}x{nodes}": efficiency,
        }
    figures |= sizes | {
        "efficiency_2_runners": figures["efficiency 2x1"],
        "seconds of a call to a runner": max(found["trip 4x1"] - found["trip 1x1"], 0.0) / 3,
        "seconds of learning": learning,
    }
    say(
        f"\nthrough the object store: {sizes['bytes of an iteration']:,.0f} bytes an iteration of {STEPS:,} "
        f"env steps, as pickled\n(fragments {sizes['bytes of fragments']:,.0f}, weights "
        f"{sizes['bytes of weights']:,.0f} to each of 2 runners)"
    )
    extrapolate(figures)
    return figures


def algorithm(runners: int, nodes: int) -> Any:
    config = fast_config(OURS, COPIES).env_runners(
        num_env_runners=runners,
        num_envs_per_env_runner=COPIES // runners,
        custom_resources_per_env_runner={"alone": 1} if nodes == 1 else {{2: "two", 4: "four"}[runners]: 1},
    )
    return config.build_algo()


def sampling(algo: Any, runners: int) -> Measure:
    def measure() -> float:
        started = time.perf_counter()
        algo.env_runner_group.foreach_env_runner(sample, local_env_runner=False)
        return runners * FRAGMENT / (time.perf_counter() - started)

    return measure


def sample(runner: Any) -> Any:
    return runner.sample(num_timesteps=FRAGMENT)


def training(algo: Any) -> Measure:
    def measure() -> float:
        started = time.perf_counter()
        algo.train()
        return STEPS / (time.perf_counter() - started)

    return measure


def trip(algo: Any) -> Measure:
    """Seconds of asking every runner for nothing."""

    def measure() -> float:
        started = time.perf_counter()
        algo.env_runner_group.foreach_env_runner(nothing, local_env_runner=False)
        return time.perf_counter() - started

    return measure


def nothing(runner: Any) -> None: ...


def interleaved(measures: Mapping[str, Measure], rounds: int) -> dict[str, float]:
    values: dict[str, list[float]] = {name: [] for name in measures}
    for i in range(rounds + 1):
        progress(f"round {i} of {rounds}")
        for name, measure in measures.items():
            values[name].append(measure())
    progress("")
    return {name: median(some[1:]) for name, some in values.items()}  # the first warms up


def learn_seconds(algo: Any) -> float:
    """Of the learner's update in an iteration."""
    algo.train()
    result = algo.train()
    return float(result["timers"]["learner_update_timer"])


def traffic(algo: Any) -> dict[str, float]:
    """Pickled sizes of what an iteration sends."""
    from ray import cloudpickle

    fragments = algo.env_runner_group.foreach_env_runner(share, local_env_runner=False)
    parts = sum(len(cloudpickle.dumps(part)) for part in fragments)
    weights = len(cloudpickle.dumps(algo.learner_group.get_weights()))
    return {
        "bytes of fragments": parts,
        "bytes of weights": weights,
        "bytes of an iteration": parts + 2 * weights,
    }


def share(runner: Any) -> Any:
    return runner.sample(num_timesteps=STEPS // 2)


def starts(rounds: int) -> dict[str, Any]:
    """From the call of `train` to the first iteration, without and with processes to start."""
    from marl_aajr.training.config import make_config
    from marl_aajr.training.trainer import train

    def start(runners: int) -> float:
        known: dict[str, float] = {}

        def first(record: dict[str, Any]) -> None:
            known["seconds"] = time.perf_counter() - started
            known["iteration"] = record["env_steps"] / record["env_steps_per_second"]

        config = make_config(
            {"env": {"name": OURS}, "env_steps": STEPS, "resources": {"env_runners": runners}}
        )
        with tempfile.TemporaryDirectory() as folder:
            started = time.perf_counter()
            train(config, Path(folder) / "run", on_iteration=first)
        return known["seconds"] - known["iteration"]

    seconds: dict[int, list[float]] = {0: [], 2: []}
    for i in range(rounds):
        progress(f"start {i + 1} of {rounds}")
        for runners, some in seconds.items():
            some.append(start(runners))
    progress("")
    alone, with_two = (median(some) for some in seconds.values())
    say(f"\na run starts in {alone:.1f} s, with two env runners in {with_two:.1f} s; Ray is up, Python warm")
    return {"run_start_seconds": with_two, "run_start_seconds_without_runners": alone}


def study() -> dict[str, Any]:
    """A study of runs that take seconds, one after the other: what is not theirs is scheduling."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "study.yaml"
        file.write_text(yaml.safe_dump(small_study()))
        out = Path(folder) / "out"
        progress("a study")
        command = [sys.executable, "-m", "marl_aajr", "study", str(file), "--out", str(out)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        progress("")
        events = [json.loads(line) for line in (out / "events.jsonl").read_text().splitlines()]
    whole = sum(event["seconds"] for event in events if event["event"] == "session")
    runs = [event["seconds"] for event in events if event["event"] == "finished"]
    added = (whole - sum(runs)) / len(runs)
    typical = median(runs) * DEFAULT_STEPS / STUDY_STEPS
    say(
        f"\na study of {len(runs)} runs of {median(runs):.1f} s adds {added:.2f} s to each, "
        f"{whole / sum(runs) - 1:.1%};\na run of {DEFAULT_STEPS:,} env steps would take {typical:.0f} s here"
    )
    return {
        "scheduling_overhead": added / typical,
        "scheduling_overhead_of_these_runs": whole / sum(runs) - 1,
        "seconds a study adds to a run": added,
    }


def small_study() -> dict[str, Any]:
    return {
        "name": "scheduling",
        "environments": [{"name": OURS}],
        "methods": [{"name": "none"}],
        "seeds": list(range(STUDY_RUNS)),
        "run": {"env_steps": STUDY_STEPS},
        "evaluation": {"suite": None},
        "max_concurrent": 1,
    }


def extrapolate(figures: Mapping[str, Any]) -> None:
    """What would saturate first with one runner on each of 64 nodes."""
    one = figures["sampling 1x1 (env steps/s)"]
    learner = STEPS / figures["seconds of learning"]
    call = figures["seconds of a call to a runner"]
    size = figures["bytes of fragments"] / STEPS
    say(
        f"\n{NODES} nodes with a runner each would sample {NODES * one:,.0f} env steps/s and send the "
        f"learner {NODES * one * size / 1e9:.1f} GB/s; calling all of them takes {1e3 * NODES * call:.0f} ms."
        f"\nOne learner takes {learner:,.0f} env steps/s ({EPOCHS} epochs): it saturates first, at "
        f"{learner / one:.1f} runners with this environment,\nat {learner / 100:,.0f} with one that makes "
        f"100 env steps/s on a runner. Iterations of {NODES * call * learner:,.0f} env steps and more keep "
        "the calls below the learning."
    )


if __name__ == "__main__":
    sys.exit(main())
