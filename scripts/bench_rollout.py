"""Measures sampling and training against RLlib's own runner and learner, in one run, interleaved.

Everything at one reference setting: three agents of simple_spread that share a 64x64 tanh policy, 4,000
environment steps an iteration, 10 epochs, minibatches of 1,000. What is compared is measured in turns, round
by round, and reported as medians, so that a machine that is busy for a while is busy for all.
"""

from __future__ import annotations

import argparse
import logging
import os
import resource
import time
import warnings
from collections.abc import Callable, Iterable
from functools import partial
from itertools import pairwise
from statistics import median
from typing import Any

from bench_output import Bars, judge, load, machine, progress, say, write_json
from bench_setting import (
    COPIES,
    OURS,
    STEPS,
    STOCK_COPIES,
    THEIRS,
    fast_config,
    fast_runner,
    register_stock_env,
    stock_config,
    stock_runner,
)

PARTS = ("sampling", "iteration", "attacked", "adapter", "copies", "runners")
CPU_COPIES, CUDA_COPIES = (64, 256, 1024, 4096), (1024, 4096, 16384, 65536)
FRAGMENTS = (25, 100, 400)
BARS: Bars = {
    "sampling_ratio": ("at least", 120.0),
    "single_thread_iteration_ratio": ("at least", 20.0),
    "iteration_ratio": ("at least", 27.0),
    "attacked_iteration_ratio": ("at most", 1.3),
    "adapter_ratio": ("at least", 4.0),
    "two_runner_ratio": ("at least", 1.6),
}
Measure = Callable[[], float]
"""Does something once and says how many environment steps a second that was."""


def main() -> None:
    options = parse()
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    import ray
    import torch

    torch.set_num_threads(options.threads)
    ray.init(num_cpus=4, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    register_stock_env()
    say(f"{machine(options.threads)}; load {load()}")
    figures = compare(options)
    if "copies" in options.only:
        figures |= over_copies(options)
    if "runners" in options.only:
        figures |= over_runners(options)
    ray.shutdown()
    ratios = {name: figures[name] for name in BARS if name in figures}
    report(ratios, figures)
    if options.json:
        write_json(options.json, {**ratios, **figures, "machine": machine(options.threads), "load": load()})


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--rounds", type=int, default=5, help="measurements of each (default 5)")
    parser.add_argument("--threads", type=int, default=1, help="torch threads of each process (default 1)")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS), help="what to measure")
    parser.add_argument("--device", default="cpu", help="where copies are, for the table over copies")
    parser.add_argument("--copies", nargs="+", type=int, help="rows of that table")
    parser.add_argument("--json", metavar="FILE", help="write the figures there (- for standard output)")
    return parser.parse_args()


def compare(options: argparse.Namespace) -> dict[str, Any]:
    """RLlib and ours in turns."""
    measures: dict[str, Measure] = {}
    if "sampling" in options.only or "adapter" in options.only:
        measures["stock sampling"] = sampling(stock_runner())
    if "sampling" in options.only:
        measures["fast sampling"] = sampling(fast_runner(OURS, COPIES))
    if "adapter" in options.only:
        measures["mpe2 alone, one core"] = playing_alone()
        alone = fast_runner(THEIRS, STOCK_COPIES, env_processes=1)
        measures["adapter sampling, one process"] = sampling(alone)
        measures["adapter sampling"] = sampling(fast_runner(THEIRS, STOCK_COPIES))
    if "iteration" in options.only:
        stock, fast = training(stock_config()), training(fast_config(OURS, COPIES))
        for threads in sorted({1, os.cpu_count() or 1}):
            measures[f"stock iteration, {threads} thread(s)"] = with_threads(threads, stock)
            measures[f"fast iteration, {threads} thread(s)"] = with_threads(threads, fast)
    if "attacked" in options.only:
        from marl_aajr import RolloutAttack as Attack

        measures["plain iteration"] = training(fast_config(OURS, COPIES))
        measures["attacked iteration"] = training(fast_config(OURS, COPIES, rollouts=Attack()))
        measures["gradients of the attack"] = gradients(Attack.steps)
    rates = interleaved(measures, options.rounds)
    found: dict[str, Any] = {f"{name} (env steps/s)": rate for name, rate in rates.items()}
    one, all_cores = "1 thread(s)", f"{os.cpu_count()} thread(s)"
    for name, ours, theirs in (
        ("attacked_iteration_ratio", "plain iteration", "attacked iteration"),
        ("sampling_ratio", "fast sampling", "stock sampling"),
        ("adapter_ratio", "adapter sampling", "stock sampling"),
        ("adapter_one_process_ratio", "adapter sampling, one process", "stock sampling"),
        ("single_thread_iteration_ratio", f"fast iteration, {one}", f"stock iteration, {one}"),
        ("iteration_ratio", f"fast iteration, {all_cores}", f"stock iteration, {all_cores}"),
    ):
        if ours in rates and theirs in rates:
            found[name] = rates[ours] / rates[theirs]
    if "attacked" in options.only:
        found["attacked_iteration_floor"] = 1 + rates["plain iteration"] / rates["gradients of the attack"]
    return found


def interleaved(measures: dict[str, Measure], rounds: int) -> dict[str, float]:
    """The median of each, measured in turns; quick ones several times a turn."""
    for measure in [*measures.values()] * 2:
        measure()
    rates: dict[str, list[float]] = {name: [] for name in measures}
    for i in range(rounds):
        progress(f"round {i + 1} of {rounds}")
        for name, measure in measures.items():
            rates[name] += [measure() for _ in range(1 if "stock" in name else 5)]
    progress("")
    return {name: median(values) for name, values in rates.items()}


def with_threads(threads: int, measure: Measure) -> Measure:
    """The same with this number of torch threads, where it is meant to be one again afterwards."""
    import torch

    def measured() -> float:
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            return measure()
        finally:
            torch.set_num_threads(before)

    return measured


def timed(work: Callable[[], float]) -> Measure:
    """Something that says how many environment steps it took, as a measure of them a second."""

    def measure() -> float:
        started = time.perf_counter()
        return work() / (time.perf_counter() - started)

    return measure


def sampling(runner: Any) -> Measure:
    def work() -> float:
        steps = steps_in(runner.sample(num_timesteps=STEPS))
        runner.get_metrics()
        return steps

    return timed(work)


def steps_in(parts: Iterable[Any]) -> float:
    return float(sum(part.env_steps() for part in parts))


def playing_alone() -> Measure:
    """The environment's own steps and nothing else, behind none of its wrappers: the floor of one core."""
    from mpe2 import simple_spread_v3

    env = simple_spread_v3.raw_env()

    def work() -> float:
        for t in range(STEPS // 4):
            if t % 25 == 0:
                env.reset(seed=t)
            for _ in env.agents:
                env.step(t % 5)
            for agent in env.agents:
                env.observe(agent)
        return t + 1

    return timed(work)


def training(config: Any) -> Measure:
    algorithm = config.build_algo()
    return timed(lambda: float(algorithm.train()["env_runners"]["num_env_steps_sampled"]))


def gradients(steps: int) -> Measure:
    """K forward and backward passes by the observations of an iteration, as many at a time as it steps."""
    import torch

    from marl_aajr.core.mlp import PlainMLP

    sizes = (18, 64, 64, 5)
    layers = [torch.nn.Linear(*pair) for pair in pairwise(sizes)]
    mlp = PlainMLP([part for layer in layers for part in (layer, torch.nn.Tanh())][:-1])
    rows, upstream = torch.randn(3 * COPIES, sizes[0]), torch.randn(3 * COPIES, sizes[-1])

    def work() -> float:
        for _ in range(steps * STEPS // COPIES):
            _, pull = mlp.vjp(rows)
            pull(upstream)
        return STEPS

    return timed(work)


def over_copies(options: argparse.Namespace) -> dict[str, Any]:
    """Time and memory of an environment step for more and more copies."""
    say(f"\n{'copies':>8} {'env steps/s':>12} {'µs/step':>9} {'bytes/step':>11} {'peak MiB':>9}")
    found = {}
    for copies in options.copies or (CUDA_COPIES if options.device != "cpu" else CPU_COPIES):
        runner = fast_runner(OURS, copies, device=options.device)
        sample = partial(runner.sample, num_timesteps=25 * copies)
        once, parts = timed(lambda sample=sample: steps_in(sample())), sample()
        size = sum(map(bytes_of, parts)) / steps_in(parts)
        rate = median(once() for _ in range(options.rounds))
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        say(f"{copies:>8} {rate:>12,.0f} {1e6 / rate:>9.2f} {size:>11,.0f} {peak:>9,.0f}")
        found[str(copies)] = {"env_steps_per_second": rate, "bytes_per_step": size, "peak_mib": peak}
    return {f"copies on {options.device}": found}


def bytes_of(fragment: Any) -> int:
    values = (value for part in fragment.modules.values() for value in vars(part).values())
    return sum(value.nbytes for value in values if hasattr(value, "nbytes"))


def over_runners(options: argparse.Namespace) -> dict[str, Any]:
    """One and two runners in processes of their own, for longer and longer fragments."""
    import ray

    from marl_aajr.rllib.sampling.env_runners import FastEnvRunner

    say(f"\n{'fragment':>9} {'1 runner':>12} {'2 runners':>12} {'ratio':>6}   (env steps/s, one thread each)")
    remote = ray.remote(num_cpus=1)(FastEnvRunner)
    config = fast_config(OURS, COPIES)
    runners = [remote.remote(config=config, worker_index=i + 1) for i in range(2)]
    ray.get([runner.apply.remote(one_thread) for runner in runners])
    found, ratio, enough = {}, 0.0, None

    def played(some: Iterable[Any], steps: int) -> float:
        parts = ray.get([runner.sample.remote(num_timesteps=steps) for runner in some])
        return sum(map(steps_in, parts))

    for length in FRAGMENTS:
        steps = length * COPIES
        some = {"one": runners[:1], "two": runners}
        measures = {name: timed(partial(played, chosen, steps)) for name, chosen in some.items()}
        rates = interleaved(measures, options.rounds)
        ratio = rates["two"] / rates["one"]
        if ratio >= BARS["two_runner_ratio"][1] and enough is None:
            enough = steps
        say(f"{steps:>9,} {rates['one']:>12,.0f} {rates['two']:>12,.0f} {ratio:>6.2f}")
        found[str(steps)] = {**rates, "ratio": ratio}
    for runner in runners:
        ray.kill(runner)
    if enough is None:
        say("no fragment was long enough for the trip through Ray not to dominate")
    else:
        say(f"from {enough:,} env steps in a fragment on, the trip through Ray does not dominate")
    return {"two_runner_ratio": ratio, "fragments": found, "fragment_that_is_enough": enough}


def one_thread(runner: Any) -> None:
    import torch

    torch.set_num_threads(1)


def report(ratios: dict[str, float], figures: dict[str, Any]) -> None:
    say("")
    for name, value in figures.items():
        if name.endswith("(env steps/s)"):
            say(f"{name.removesuffix(' (env steps/s)'):<30} {value:>10,.0f} env steps/s")
    say("")
    judge(ratios, BARS)
    if "attacked_iteration_floor" in figures:
        say(f"the attack's gradients alone would make it {figures['attacked_iteration_floor']:.2f}")


if __name__ == "__main__":
    main()
