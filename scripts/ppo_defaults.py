"""The evidence for the PPO defaults of `marl-aajr train`: each choice, undone one at a time.

    .venv/bin/python scripts/ppo_defaults.py

Trains every variant with every seed on 3-agent simple_spread (two runs at a time, each on one core), keeps
the runs under runs/ppo_defaults (finished ones are not repeated, interrupted ones resume), and writes the
curves to experiments/ppo_defaults/results.json and a table to standard output.
"""

from __future__ import annotations

import argparse
import json
from statistics import mean
from typing import Any

from variants import ROOT, train_all

RUNS = ROOT / "runs" / "ppo_defaults"
RESULTS = ROOT / "experiments" / "ppo_defaults" / "results.json"
VARIANTS: dict[str, dict[str, Any]] = {
    "defaults": {},
    "learning rate 5e-4": {"ppo.lr": 5e-4},
    "6 epochs": {"ppo.epochs": 6},
    "torch's initialisation": {"model.initialization": "torch"},
    "gamma 0.99": {"ppo.gamma": 0.99},
    "vf_clip 10 (RLlib's)": {"ppo.vf_clip": 10},
    "RLlib's PPO defaults": {
        "ppo.lr": 5e-5,
        "ppo.epochs": 30,
        "ppo.minibatch_size": 128,
        "ppo.gamma": 0.99,
        "ppo.gae_lambda": 1.0,
        "ppo.clip": 0.3,
        "ppo.vf_clip": 10,
        "ppo.kl_coeff": 0.2,
        "ppo.entropy_coeff": 0,
        "model.initialization": "torch",
        "model.hidden": "[256, 256]",
    },
}
SLOW = ("RLlib's PPO defaults",)
"""Twenty times the gradient steps: one seed."""


def main() -> None:
    """Train what is missing, write the results, print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--env-steps", type=int, default=300_000)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time, one core each")
    options = parser.parse_args()
    cells = [
        (name, seed) for seed in range(options.seeds) for name in VARIANTS if seed == 0 or name not in SLOW
    ]
    records = train_all(
        VARIANTS, cells, runs=RUNS, method="none", env_steps=options.env_steps, jobs=options.jobs
    )
    curves = [[{key: r[key] for key in ("env_steps", "return_mean")} for r in run] for run in records]
    results: dict[str, Any] = {
        name: {"settings": settings, "curves": {}} for name, settings in VARIANTS.items()
    }
    for (name, seed), curve in zip(cells, curves, strict=True):
        results[name]["curves"][seed] = curve
    RESULTS.write_text(json.dumps({"env_steps": options.env_steps, "variants": results}) + "\n")
    print(f"Sampled return of the last 5 iterations after {options.env_steps:,} env steps, by seed")
    for name, result in results.items():
        finals = [mean(point["return_mean"] for point in curve[-5:]) for curve in result["curves"].values()]
        print(f"{name:26s} {mean(finals):7.1f}   " + "  ".join(f"{final:.1f}" for final in finals))


if __name__ == "__main__":
    main()
