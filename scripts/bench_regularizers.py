"""Measures what regularizers cost: time and peak memory of one PPO minibatch update, beside the plain one.

"Plain" is RLlib's own PPOTorchLearner; "lean" is the learner of fast runs. All of a size are measured in
turns, round by round, in one process, and reported as medians. Every update is of the same minibatch. Time is
the process's own: on one thread of a quiet machine that of the clock, on a busy one still that of the work.
GFLOP counts the operations of matrix products, which no implementation of the same thing can be without;
peak memory is what the learner holds (weights, optimizer, minibatch) and the most that an update adds to it.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import platform
import sys
import time
import warnings
from dataclasses import dataclass
from statistics import median
from typing import Any

EPOCHS = 4
HIDDEN = 64
MODULE = "shared"
JACREV = "aajr_k3_full_jacrev"


@dataclass(frozen=True)
class Size:
    """A minibatch: features d, actions m, rows B; of sequences of length T where T > 1."""

    d: int
    m: int
    rows: int
    steps: int = 1
    jacrev: bool = False

    def __str__(self) -> str:
        network = (
            f"LSTM of {HIDDEN}, sequences of {self.steps}" if self.steps > 1 else f"{HIDDEN}x{HIDDEN} tanh"
        )
        return f"d = {self.d}, m = {self.m}, {self.rows:,} rows, {network}"


SIZES = {
    "small": Size(18, 5, 1_000, jacrev=True),
    "large": Size(128, 16, 4_096, jacrev=True),
    "lstm": Size(18, 5, 1_000, steps=20),
}
BARS = {
    "small.aajr_k3_full.time_ratio": (3.5, "at most"),
    "small.aajr_default.time_ratio": (1.6, "at most"),
    "large.aajr_k3_full.speedup_over_jacrev": (5.0, "at least"),
    "small.aajr_k3_full.memory_ratio": (2.5, "at most"),
    "small.aajr_default.memory_ratio": (2.5, "at most"),
    "large.aajr_k3_full.memory_ratio": (2.5, "at most"),
}


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
        for method, found in measure(name, SIZES[name], options).items():
            figures |= {f"{name}.{method}.{key}": value for key, value in found.items()}
    report(figures)
    if options.json:
        write_json(options.json, {**figures, "machine": machine(options.threads), "load": load()})
    return 0


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=15, help="measurements of each (default 15)")
    parser.add_argument("--threads", type=int, default=1, help="torch threads (default 1)")
    parser.add_argument("--only", nargs="+", choices=list(SIZES), default=list(SIZES), help="what to measure")
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
            say(f"\r{key:<40} round {i + 1} of {options.rounds}", end="")
            if key != JACREV or i < max(3, options.rounds // 5):
                seconds[key].append(update())
    say("\r" + " " * 70 + "\r", end="")
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


def methods(size: Size) -> dict[str, Any]:
    """By the name of the figure: every regularizer as it comes, and AAJR's variants on whole minibatches."""
    from marl_aajr.jacobian import BACKENDS
    from marl_aajr.regularizers import AAJR, REGULARIZERS, make_regularizer

    found: dict[str, Any] = {"aajr_k3_full": AAJR(steps=3, sample_fraction=1.0)}
    if size.jacrev:
        found[JACREV] = exact()
    for backend in BACKENDS:
        if size.steps == 1 or backend in ("double", "central"):
            found[f"aajr_k3_full_{backend}"] = AAJR(steps=3, sample_fraction=1.0, backend=backend)
    found["aajr_k3_full_secant"] = AAJR(steps=3, sample_fraction=1.0, secant=True)
    found["aajr_k3_full_kappa"] = AAJR(steps=3, sample_fraction=1.0, adversarial_weight=0.5)
    for name in REGULARIZERS:
        if name != "sum" and not (size.steps > 1 and name == "spectral_normalization"):
            found[f"{name}_default"] = make_regularizer(name)
    return found


def exact() -> Any:
    """AAJR by the whole Jacobian, one reverse pass an output: what a Jacobian-vector product saves."""
    import torch
    from torch.func import jacrev, vmap

    from marl_aajr.outputs import squared_gain
    from marl_aajr.regularizers import AAJR

    class ExactAAJR(AAJR):
        def squared_gains(self, policy: Any, points: Any, directions: Any) -> Any:
            rows, u = points.flatten(0, 1), directions.flatten(0, 1)
            jacobian = vmap(jacrev(policy))(rows)
            tangent = (jacobian @ u.unsqueeze(-1)).squeeze(-1)
            with torch.no_grad():
                outputs = policy(rows)
            squared = squared_gain(self.output, policy.distribution, outputs, tangent)
            return squared.unflatten(0, (len(points), -1))

    return ExactAAJR(steps=3, sample_fraction=1.0, backend="forward")


class Update:
    """One learner and one minibatch; a call makes a few updates and says how long one took."""

    def __init__(self, size: Size, regularizer: Any = None, *, lean: bool = False) -> None:
        self.size = size
        self.learner = build_learner(size, regularizer, lean=lean)
        self.batch = minibatch(self.learner, size)
        self(), self()

    def __call__(self, epochs: int = EPOCHS) -> float:
        from ray.rllib.utils.metrics import NUM_ENV_STEPS_SAMPLED_LIFETIME

        started = time.process_time()
        self.learner.update(
            batch=self.batch,
            timesteps={NUM_ENV_STEPS_SAMPLED_LIFETIME: 0},
            num_epochs=epochs,
            minibatch_size=self.size.rows,
            shuffle_batch_per_epoch=False,
        )
        return (time.process_time() - started) / epochs

    def peak_bytes(self) -> float:
        """What the learner holds, and the highest sum of what an update allocates and frees, in order."""
        from torch.profiler import ProfilerActivity, profile

        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
            self(epochs=1)
        events = [e for e in profiler.profiler.kineto_results.events() if e.name() == "[memory]"]
        now = peak = 0
        for event in sorted(events, key=lambda event: event.start_ns()):
            now += event.nbytes()
            peak = max(peak, now)
        return self._resident() + peak

    def gflop(self) -> float:
        """Operations in matrix products, by PyTorch's own formulas."""
        from torch.utils._python_dispatch import TorchDispatchMode
        from torch.utils.flop_counter import flop_registry

        total = 0

        class Counter(TorchDispatchMode):  # FlopCounterMode's hooks forbid derivatives of derivatives
            def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
                nonlocal total
                out = func(*args, **(kwargs or {}))
                if count := flop_registry.get(func.overloadpacket):
                    total += count(*args, **(kwargs or {}), out_val=out)
                return out

        with Counter():
            self(epochs=1)
        return total / 1e9

    def _resident(self) -> int:
        import torch
        import tree

        module = self.learner.module[MODULE].unwrapped()
        held: list[Any] = [*module.parameters(), *tree.flatten(dict(self.batch[MODULE]))]
        for optimizer in self.learner.get_optimizers_for_module(MODULE):
            for _, state in optimizer[1].state.items():
                held += [value for value in state.values() if isinstance(value, torch.Tensor)]
        return sum(tensor.numel() * tensor.element_size() for tensor in held)


def build_learner(size: Size, regularizer: Any, *, lean: bool) -> Any:
    """A PPO learner without Ray, as runs have it."""
    import gymnasium as gym
    import numpy as np
    import torch
    from ray.rllib.algorithms.ppo import PPOConfig
    from ray.rllib.core.rl_module import MultiRLModuleSpec, RLModuleSpec
    from ray.rllib.core.rl_module.default_model_config import DefaultModelConfig

    from marl_aajr import robustify
    from marl_aajr.rllib.lean_learner import LeanPPOTorchLearner

    model = DefaultModelConfig(
        fcnet_hiddens=[HIDDEN] if size.steps > 1 else [HIDDEN, HIDDEN],
        vf_share_layers=False,
        use_lstm=size.steps > 1,
        lstm_cell_size=HIDDEN,
        max_seq_len=size.steps,
    )
    config = (
        PPOConfig()
        .multi_agent(policies={MODULE}, policy_mapping_fn=lambda *_, **__: MODULE)
        .training(lr=5e-4, entropy_coeff=0.01, use_kl_loss=False, vf_clip_param=float("inf"))
        .debugging(seed=0, log_level="ERROR")
    )
    if lean:
        config.training(learner_class=LeanPPOTorchLearner)
    if regularizer is not None:
        config = robustify(config, regularizer)
    torch.manual_seed(0)
    spec = RLModuleSpec(
        module_class=config.get_default_rl_module_spec().module_class,
        observation_space=gym.spaces.Box(-10, 10, (size.d,), np.float32),
        action_space=gym.spaces.Discrete(size.m),
        model_config=model,
    )
    learner = config.learner_class(
        config=config, module_spec=MultiRLModuleSpec(rl_module_specs={MODULE: spec})
    )
    learner.build()
    return learner


def minibatch(learner: Any, size: Size) -> Any:
    """Random observations and the actions that the module would take there."""
    import torch
    import tree
    from ray.rllib.core.columns import Columns
    from ray.rllib.evaluation.postprocessing import Postprocessing
    from ray.rllib.policy.sample_batch import MultiAgentBatch, SampleBatch

    module = learner.module[MODULE].unwrapped()
    torch.manual_seed(0)
    lead = (size.rows // size.steps, size.steps) if size.steps > 1 else (size.rows,)
    columns: dict[str, Any] = {Columns.OBS: torch.randn(*lead, size.d)}
    if size.steps > 1:
        state = tree.map_structure(torch.as_tensor, module.get_initial_state())
        columns[Columns.STATE_IN] = tree.map_structure(
            lambda part: part.expand(lead[0], *part.shape).clone(), state
        )
        columns[Columns.LOSS_MASK] = torch.ones(lead, dtype=torch.bool)
        columns[Columns.SEQ_LENS] = torch.full(lead[:1], size.steps)
    with torch.no_grad():
        inputs = module.forward_train(dict(columns))[Columns.ACTION_DIST_INPUTS]
    distribution = module.get_train_action_dist_cls().from_logits(inputs)
    actions = distribution.sample()
    columns |= {
        Columns.ACTIONS: actions,
        Columns.ACTION_LOGP: distribution.logp(actions),
        Columns.ACTION_DIST_INPUTS: inputs,
        Postprocessing.ADVANTAGES: torch.randn(lead),
        Postprocessing.VALUE_TARGETS: torch.randn(lead),
    }
    return MultiAgentBatch({MODULE: SampleBatch(columns)}, env_steps=size.rows)


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


def report(figures: dict[str, Any]) -> None:
    say("")
    for name, (bar, side) in BARS.items():
        if name in figures:
            good = figures[name] <= bar if side == "at most" else figures[name] >= bar
            say(f"{name:<40} {figures[name]:>6.2f}   ({side} {bar:g}: {'reached' if good else 'MISSED'})")


def machine(threads: int) -> str:
    import torch

    return (
        f"{os.cpu_count()} CPUs, {platform.machine()}, torch {torch.__version__}, {threads} torch thread(s)"
    )


def load() -> str:
    return " ".join(f"{value:.1f}" for value in os.getloadavg())


def write_json(target: str, figures: dict[str, Any]) -> None:
    text = json.dumps(figures, indent=2) + "\n"
    if target == "-":
        sys.stdout.write(text)
    else:
        with open(target, "w", encoding="utf-8") as file:
            file.write(text)


def say(line: str, end: str = "\n") -> None:
    sys.stderr.write(line + end)
    sys.stderr.flush()


if __name__ == "__main__":
    sys.exit(main())
