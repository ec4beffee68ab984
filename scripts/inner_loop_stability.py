"""How stable the inner ascent is while a policy trains: PPO against AAJR, over the step size η.

    .venv/bin/python scripts/inner_loop_stability.py

Trains both with every seed on 3-agent simple_spread (runs are kept under runs/inner_loop_stability and not
repeated), and measures every checkpoint on observations of its own play: L_eff along the ascent directions,
and the share of raw-gradient steps that do not lower the objective. The objective is `surrogate` with
actions of the policy and advantages ±1 at random: for Â < 0 it is concave in places, so steps can overshoot.

Writes results.json, stability.svg and stability.png to experiments/inner_loop_stability; a few minutes.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from ray.rllib.core.rl_module import RLModule
from torch import Tensor

from marl_aajr.core.ascent import ascend
from marl_aajr.core.diagnostics import diagnose
from marl_aajr.core.distributions import Categorical
from marl_aajr.core.objectives import Clean, Surrogate
from marl_aajr.core.policy import ModulePolicy
from marl_aajr.core.threat import PerturbationSet
from marl_aajr.rllib.internals.modules import trained_actor
from marl_aajr.rollout.environments import resolve
from marl_aajr.rollout.pettingzoo_batch import PettingZooBatch
from marl_aajr.training import trainer as training
from marl_aajr.training.config import RunConfig

ROOT = Path(__file__).resolve().parent.parent
RUNS, OUT = ROOT / "runs" / "inner_loop_stability", ROOT / "experiments" / "inner_loop_stability"
ENV = "marl_aajr.envs.simple_spread_v3"
METHODS: dict[str, dict[str, Any]] = {
    "none": {"name": "none"},
    "aajr": {"name": "aajr", "coefficient": 0.003, "sample_fraction": 0.5},
}
LABELS = {"none": "PPO", "aajr": "AAJR, λ = 0.003"}
COLOURS = {"none": "#5c6670", "aajr": "#0072b2"}
EPSILONS = (0.1, 0.5)
"""The radius trained with, and one at which the path is long enough to bend."""
STEP_SIZES = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)
STEPS, COPIES, EPISODE = 5, 16, 25
CHECKPOINT_EVERY = 5
"""Iterations of 4,000 environment steps."""


def train(method: str, seed: int, env_steps: int) -> Path:
    """Train a run, if it is not there yet, and keep the policy of every checkpoint: the folder of both."""
    folder = RUNS / f"{method}-s{seed}-{env_steps}"
    if (folder / "run" / "victim").exists():
        return folder
    shutil.rmtree(folder, ignore_errors=True)
    config = RunConfig.model_validate(
        {
            "env": {"name": ENV},
            "method": METHODS[method],
            "seed": seed,
            "env_steps": env_steps,
            "checkpoint_every": CHECKPOINT_EVERY,
        }
    )

    def keep(_: object) -> None:
        """Checkpoints are for resuming: a run deletes the older ones."""
        for checkpoint in (folder / "run" / "checkpoints").glob(
            "*/algorithm/learner_group/learner/rl_module"
        ):
            kept = folder / "policies" / checkpoint.parents[3].name
            if not kept.exists():
                shutil.copytree(checkpoint, kept)

    training.train(config, folder / "run", on_iteration=keep)
    return folder


def policies(folder: Path) -> Iterable[tuple[int, ModulePolicy]]:
    """Environment steps and policy of every checkpoint, oldest first."""
    lines = (folder / "run" / "metrics.jsonl").read_text("utf-8").splitlines()
    env_steps = {record["iteration"]: record["env_steps"] for record in map(json.loads, lines)}
    for kept in sorted((folder / "policies").iterdir()):
        (path,) = (entry for entry in kept.iterdir() if entry.is_dir())
        yield (
            env_steps[int(kept.name)],
            ModulePolicy(trained_actor(RLModule.from_checkpoint(path)), Categorical(5)),
        )


@torch.no_grad()
def observe(policy: ModulePolicy, generator: torch.Generator) -> Tensor:
    """What the agents see in one episode of each copy, with sampled actions, `[B, d]`."""
    env = PettingZooBatch(resolve("simple_spread_v3"), COPIES)
    obs, seen = env.reset(seed=0), []
    for _ in range(EPISODE):
        seen += list(obs.values())
        actions = {
            agent: policy.distribution.sample(policy(rows), generator=generator)
            for agent, rows in obs.items()
        }
        obs = env.step(actions).obs
    env.close()
    return torch.cat(seen)


def measure(policy: ModulePolicy) -> dict[str, Any]:
    """L_eff and gain along the ascent, and the monotone share by ε and η."""
    generator = torch.Generator().manual_seed(0)
    obs = observe(policy, generator)
    outputs = policy(obs).detach()
    advantages = torch.where(torch.rand(len(obs), generator=generator) < 0.5, 1.0, -1.0)
    clean = Clean(outputs, policy.distribution.sample(outputs, generator=generator), advantages)
    found: dict[str, Any] = {"monotone": {}}
    for epsilon in EPSILONS:
        threat = PerturbationSet(epsilon=epsilon)
        shares = {}
        for size in STEP_SIZES:
            path = ascend(
                policy, obs, Surrogate(), threat, steps=STEPS, step_size=size, step="raw", clean=clean
            )
            moved = (path.deltas[1:] != path.deltas[:-1]).any(-1)
            shares[size] = path.monotone[moved].double().mean().item()
        found["monotone"][epsilon] = shares
    here = PerturbationSet(epsilon=EPSILONS[0])
    diagnosis = diagnose(
        policy, obs, Surrogate(), here, steps=STEPS, step_size=EPSILONS[0] / 2, step="sign", clean=clean
    )
    smoothness = diagnosis.smoothness.flatten()
    found["smoothness"] = {str(q): smoothness.quantile(q).item() for q in (0.5, 0.95)}
    found["gain"] = diagnosis.gain.mean().item()
    found["alignment"] = diagnosis.alignment.mean().item()
    return found


def draw(results: Sequence[dict[str, Any]]) -> Figure:
    """L_eff over training, and the monotone share over η at its end; one line for each seed."""
    figure = Figure(figsize=(12, 3.6), layout="constrained")
    over_time, *at_end = figure.subplots(1, 1 + len(EPSILONS))
    for run in results:
        colour, label = COLOURS[run["method"]], LABELS[run["method"]] if run["seed"] == 0 else None
        steps = [point["env_steps"] / 1000 for point in run["checkpoints"]]
        for quantile, dashes in (("0.5", "-"), ("0.95", ":")):
            values = [point["smoothness"][quantile] for point in run["checkpoints"]]
            over_time.plot(steps, values, dashes, color=colour, label=label if dashes == "-" else None)
        for axes, epsilon in zip(at_end, EPSILONS, strict=True):
            shares = run["checkpoints"][-1]["monotone"][epsilon]
            axes.plot(list(shares), list(shares.values()), marker="o", color=colour, label=label)
    over_time.set(
        xlabel="thousand environment steps", yscale="log", title="L_eff: median (full), 95 % (dotted)"
    )
    over_time.legend(frameon=False)
    for axes, epsilon in zip(at_end, EPSILONS, strict=True):
        title = f"monotone steps after training, ε = {epsilon:g}"
        axes.set(xlabel="step size η (raw gradient)", xscale="log", title=title)
    for axes in (over_time, *at_end):
        _plain(axes)
    return figure


def _plain(axes: Axes) -> None:
    axes.grid(color="#dfe3e8")
    axes.spines[["top", "right"]].set_visible(False)


def main() -> None:
    """Train what is missing, measure, write numbers and figure, print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--env-steps", type=int, default=200_000)
    parser.add_argument("--seeds", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(1)
    results = []
    for seed in range(options.seeds):
        for method in METHODS:
            folder = train(method, seed, options.env_steps)
            checkpoints = [{"env_steps": steps, **measure(policy)} for steps, policy in policies(folder)]
            lines = (folder / "run" / "metrics.jsonl").read_text("utf-8").splitlines()
            returns = [json.loads(line)["return_mean"] for line in lines]
            final = mean(returns[-5:])
            results.append({"method": method, "seed": seed, "return": final, "checkpoints": checkpoints})
            last = checkpoints[-1]
            monotone = {epsilon: min(shares.values()) for epsilon, shares in last["monotone"].items()}
            print(
                f"{LABELS[method]:16s} seed {seed}  return {final:6.1f}  gain {last['gain']:5.2f}  "
                f"L_eff {last['smoothness']['0.5']:7.2f} (95 %: {last['smoothness']['0.95']:7.2f})  "
                f"worst monotone share {monotone}",
                flush=True,
            )
    OUT.mkdir(parents=True, exist_ok=True)
    document = {"env": ENV, "env_steps": options.env_steps, "methods": METHODS, "results": results}
    (OUT / "results.json").write_text(json.dumps(document, indent=1) + "\n", "utf-8")
    figure = draw(results)
    figure.savefig(OUT / "stability.svg", metadata={"Date": None})
    figure.savefig(OUT / "stability.png", dpi=150)


if __name__ == "__main__":
    main()
