"""Checks and measures fast runs on a GPU, in less than eight minutes on a large one.

The tests that need a device; sampling with 1,024 to 65,536 copies; how often a step of sampling and a
minibatch of the learner make the host wait for the device or copy from it; and iterations with
environments, policy and learner on the device, plain and with AAJR at its defaults. `--device cpu` does all
of it on the processor, with small numbers: there the host waits where it costs nothing, as the list says.
"""

from __future__ import annotations

import argparse
import logging
import os
import subprocess
import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import bench_rollout
from bench_output import load, machine, progress, say, write_json
from bench_setting import EPOCHS, OURS, base_config, fast_runner, iteration_seconds
from bench_update import Size, Update
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

ROOT = Path(__file__).resolve().parents[1]
PARTS = ("tests", "waits", "sampling", "iteration")
TESTS = (
    "tests/envs/test_batches.py",
    "tests/regularizers/test_contract.py",
    *(f"tests/rllib/test_{name}.py" for name in ("policies", "robustify", "fast_runner", "attack_devices")),
)
PATIENCE = 240
"""Seconds that the tests may take."""
LENGTH = 25
"""Steps of an episode, and of a fragment."""


def main() -> int:
    options = parse()
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    import ray
    import torch

    if options.device != "cpu" and not torch.cuda.is_available():
        sys.exit("error: expected a GPU that PyTorch can use, got none; give --device cpu to try the script")
    small = options.device == "cpu"
    if small:
        torch.set_num_threads(1)
    options.copies = options.copies or ((64, 256) if small else bench_rollout.CUDA_COPIES)
    figures: dict[str, Any] = {"device": options.device if small else torch.cuda.get_device_name()}
    started = time.perf_counter()
    if "tests" in options.only:
        figures |= tests()
    ray.init(num_cpus=4, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    say(f"{figures['device']}; {machine(torch.get_num_threads())}; load {load()}")
    if "waits" in options.only:
        figures |= waits(options)
    if "sampling" in options.only:
        figures |= bench_rollout.over_copies(options)
    if "iteration" in options.only:
        figures |= iterations(options)
    ray.shutdown()
    figures["seconds"] = time.perf_counter() - started
    say(f"\n{figures['seconds']:.0f} s in all")
    write_json(options.json, figures)
    return int(figures.get("tests_exit_code", 0))


def parse() -> argparse.Namespace:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("--device", default="cuda", help="where everything is (default cuda)")
    parser.add_argument("--rounds", type=int, default=5, help="measurements of each (default 5)")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS), help="what to do")
    parser.add_argument("--copies", nargs="+", type=int, help="copies of the environment that are sampled")
    parser.add_argument(
        "--json", metavar="FILE", default="check_gpu.json", help="where figures go, - for standard output"
    )
    return parser.parse_args()


def tests() -> dict[str, Any]:
    """The tests that look at devices, in a process of their own."""
    progress("tests")
    command = [sys.executable, "-m", "pytest", "-q", *TESTS, "-k", "cuda or accelerator or device"]
    found = subprocess.run(
        ["timeout", str(PATIENCE), *command], cwd=ROOT, capture_output=True, text=True, check=False
    )
    progress("")
    lines = found.stdout.splitlines() or ["nothing"]
    failed = [line for line in lines if line.startswith(("FAILED", "ERROR"))]
    say("\n".join([*failed, f"tests: {lines[-1]}"]))
    return {"tests": lines[-1], "tests_failed": failed, "tests_exit_code": found.returncode}


class Waits(TorchDispatchMode):
    """Counts, by our line that asked, what makes the host wait: numbers read, and copies between devices."""

    def __init__(self, device: str) -> None:
        super().__init__()
        self._device = device
        self.found: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        reads = name in {"_local_scalar_dense", "nonzero", "equal", "masked_select", "_unique2"}
        if name in {"index", "index_put_"}:
            reads = any(isinstance(part, Tensor) and not part.dtype.is_signed for part in args[1])
        tensors = [part for part in (*args, out) if isinstance(part, Tensor)]
        moves = name in {"_to_copy", "copy_"} and len({tensor.device for tensor in tensors}) > 1
        reads = reads and any(tensor.device.type == self._device for tensor in tensors)
        if reads or moves:
            self.found[_line()] += 1
        return out


def _line() -> str:
    """The line of ours that the program is at."""
    frame = sys._getframe(2)
    while frame.f_back is not None:
        path = Path(frame.f_code.co_filename)
        if path.is_relative_to(ROOT) and path.parts[len(ROOT.parts)] in {"marl_aajr", "envs"}:
            return f"{path.relative_to(ROOT)}:{frame.f_lineno}"
        frame = frame.f_back
    return "elsewhere"


def counted(work: Callable[[int], Any], few: int, many: int, *, device: str) -> dict[str, float]:
    """Waits per unit of work, by line: what `many` units have more than `few`."""
    seen = []
    for units in (few, few, many):  # the first copies constants
        with Waits(device) as counter:
            work(units)
        seen.append(counter.found)
    lines = seen[2].keys() | seen[1].keys()
    more = {line: (seen[2][line] - seen[1][line]) / (many - few) for line in sorted(lines)}
    return {line: count for line, count in more.items() if count}


def waits(options: argparse.Namespace) -> dict[str, Any]:
    """Of a step of sampling, and of a minibatch of the plain learner and of AAJR's."""
    import torch

    from marl_aajr.regularizers import make_regularizer

    size, copies = Size(18, 5, 1_000), 64
    runner = fast_runner(OURS, copies, device=options.device)
    aajr = make_regularizer("aajr")
    plain, regularized = (Update(size, r, lean=True, device=options.device) for r in (None, aajr))
    units: dict[str, tuple[Callable[[int], Any], int, int]] = {
        "step": (lambda steps: runner.sample(num_timesteps=steps * copies), LENGTH, 5 * LENGTH),
        "minibatch": (plain, 8, 24),
        "minibatch_aajr": (regularized, 10, 30),
    }
    device = torch.device(options.device).type
    found = {what: counted(*unit, device=device) for what, unit in units.items()}
    say("\nthe host waits for the device")
    for what, lines in found.items():
        say(f"{what:<16} {sum(lines.values()):>6.2f} times")
        for line, count in lines.items():
            say(f"{'':<16} {count:>6.2f} {line}")
    return {"waits": found}


def iterations(options: argparse.Namespace) -> dict[str, Any]:
    """Environment steps a second of whole iterations, plain and with AAJR, in turns."""
    from marl_aajr import robustify
    from marl_aajr.regularizers import make_regularizer
    from marl_aajr.rllib.sampling.fast import fast

    copies = 64 if options.device == "cpu" else 4_096
    steps = LENGTH * copies

    def config() -> Any:
        made = base_config(copies).learners(num_gpus_per_learner=int(options.device != "cpu"))
        made.training(train_batch_size_per_learner=steps, minibatch_size=3 * steps // 12, num_epochs=EPOCHS)
        return fast(made, OURS, device=options.device)

    algorithms = {
        "plain": config().build_algo(),
        "aajr": robustify(config(), make_regularizer("aajr")).build_algo(),
    }
    seconds = iteration_seconds(algorithms, options.rounds)
    where = {str(p.device) for p in algorithms["plain"].get_module("shared").parameters()}
    rates = {name: steps / taken for name, taken in seconds.items()}
    ratio = rates["plain"] / rates["aajr"]
    say(
        f"\niterations of {steps:,} env steps: {rates['plain']:,.0f} env steps/s, AAJR {ratio:.2f} × the time"
    )
    return {"iteration (env steps/s)": rates, "aajr_ratio": ratio, "policy_on": sorted(where)}


if __name__ == "__main__":
    sys.exit(main())
