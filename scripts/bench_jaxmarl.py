"""Measures fast runs beside JaxMARL's IPPO, whole iterations in turns on one core.

    .venv/bin/python scripts/bench_jaxmarl.py --python PYTHON

PYTHON is that of an environment with jaxmarl and distrax; JAX's packages are none of ours. Both train three
agents of simple_spread at the reference setting of the benchmarks (`bench_setting.py`); compilation does not
count.
"""

from __future__ import annotations

import argparse
import logging
import os
import subprocess
import sys
import time
import warnings
from contextlib import suppress
from pathlib import Path
from statistics import median

from bench_output import load, machine, progress, say, write_json
from bench_setting import COPIES, OURS, STEPS, fast_config

RIVAL = Path(__file__).with_name("jaxmarl_ippo.py")
WARM_UP = 3


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--python", required=True, help="a Python that has jaxmarl and distrax")
    parser.add_argument("--rounds", type=int, default=20, help="iterations of each (default 20)")
    parser.add_argument("--json", metavar="FILE", help="write the figures there; - for standard output")
    options = parser.parse_args()
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    import ray
    import torch

    torch.set_num_threads(1)
    say(f"{machine(1)}; load {load()}")
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    algorithm = fast_config(OURS, COPIES).build_algo()
    if hasattr(os, "sched_setaffinity"):
        core = {min(os.sched_getaffinity(0))}
        os.sched_setaffinity(0, core)  # the child inherits it
    rival = subprocess.Popen(
        [options.python, str(RIVAL)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    seconds: dict[str, list[float]] = {"fast": [], "jaxmarl": []}
    for i in range(options.rounds + WARM_UP):
        progress(f"round {i + 1} of {options.rounds + WARM_UP}")
        started = time.perf_counter()
        algorithm.train()
        taken = {"fast": time.perf_counter() - started, "jaxmarl": one_iteration(rival)}
        if i >= WARM_UP:
            for name, value in taken.items():
                seconds[name].append(value)
    progress("")
    rival.kill()
    ray.shutdown()
    rates = {name: STEPS / median(values) for name, values in seconds.items()}
    figures = {**rates, "ratio": rates["fast"] / rates["jaxmarl"]}
    line = "fast runs {fast:,.0f}, JaxMARL {jaxmarl:,.0f} env steps/s: {ratio:.2f} x"
    say(line.format(**figures))
    if options.json:
        write_json(options.json, figures)
    return 0


def one_iteration(rival: subprocess.Popen[str]) -> float:
    """The seconds of the next one."""
    assert rival.stdin is not None
    assert rival.stdout is not None
    with suppress(BrokenPipeError):
        rival.stdin.write("\n")
        rival.stdin.flush()
    for line in rival.stdout:  # packages say something, too
        if line.startswith("seconds "):
            return float(line.split()[1])
    sys.exit("error: expected a Python that has jaxmarl and distrax (--python), got one that ended")


if __name__ == "__main__":
    sys.exit(main())
