"""What a bound on the gain costs: one target policy, fitted under the global and the adaptive constraint.

    .venv/bin/python scripts/approximation_gap.py

    F_γ       ‖J(s + δ_t)‖_op ≤ γ            F_ad(γ)   ‖J(s + δ_t) u_t‖ ≤ γ

A network with two Gaussian action components is fitted by least squares to a known policy, while the hinge
max(0, gain − γ)² at the sampled points s + δ_t keeps it in the class. The adversary climbs the KL divergence.
The target has a large gain in one direction; in one variant it is harmless (its action component is noisy
anyway, so the KL divergence hardly moves), in the other it is just where the adversary goes.

Writes results.json, gap.svg and gap.png to experiments/approximation_gap; a few minutes on one core.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from marl_aajr.core.ascent import Trajectory, ascend
from marl_aajr.core.distributions import DiagGaussian
from marl_aajr.core.jacobian import safe_sqrt
from marl_aajr.core.objectives import KL, Clean
from marl_aajr.core.policy import ModulePolicy
from marl_aajr.core.threat import PerturbationSet

OUT = Path(__file__).resolve().parent.parent / "experiments" / "approximation_gap"
FEATURES, EPSILON, STEPS = 4, 0.2, 3
BATCH, UPDATES, LEARNING_RATE = 128, 600, 1e-2
HINGE = 1000.0
"""Weight of the constraint: at this one 99 % of the held-out points keep it to within a few percent."""

TARGETS = {"harmless": (4.0, 0.25), "attacked": (0.25, 4.0)}
"""σ of the two action components: the first has the large gain."""

CLASSES = ("global", "adaptive")
BOUNDS = (0.5, 1.0, 1.5, 2.0, 3.0, 4.0)
LABELS = {"global": "F_γ: every direction", "adaptive": "F_ad(γ): along the ascent"}
COLOURS = {"global": "#d55e00", "adaptive": "#0072b2"}


def target(obs: Tensor) -> Tensor:
    """μ*(s): gain up to 4 along the first feature, about 1 along the others, `[B, 4] -> [B, 2]`."""
    first = 4 * torch.sin(obs[:, 0]) + 0.5 * obs[:, 2]
    second = torch.sin(obs[:, 1]) + 0.5 * torch.tanh(obs[:, 3])
    return torch.stack([first, second], -1)


@dataclass(frozen=True)
class Fit:
    """One network fitted under one constraint.

    Attributes:
        error: mean squared error over the variance of the target, held-out observations.
        along: 99th percentile of ‖J u_t‖ at held-out points.
        overall: 99th percentile of ‖J‖_op there.
    """

    error: float
    along: float
    overall: float


class Student(nn.Module):
    """A tanh network for the mean, with a constant σ that is not trained."""

    def __init__(self, sigma: tuple[float, float]) -> None:
        super().__init__()
        width = 32
        self.mean = nn.Sequential(
            nn.Linear(FEATURES, width), nn.Tanh(), nn.Linear(width, width), nn.Tanh(), nn.Linear(width, 2)
        )
        self.register_buffer("log_std", torch.tensor(sigma).log())

    def forward(self, obs: Tensor) -> Tensor:
        log_std = self.get_buffer("log_std").expand(*obs.shape[:-1], -1)
        return torch.cat([self.mean(obs), log_std], -1)


def fit(kind: str, gain_bound: float, sigma: tuple[float, float], seed: int) -> Fit:
    """Fit one network; the same seed gives the same weights, observations and noise to both classes."""
    torch.manual_seed(seed)
    student, noise = Student(sigma), torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(student.parameters(), lr=LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, UPDATES)
    for _ in range(UPDATES):
        obs = torch.empty(BATCH, FEATURES).uniform_(-2, 2, generator=noise)
        error = (student.mean(obs) - target(obs)).square().mean()
        along, overall = gains(student, obs, noise)
        constrained = along if kind == "adaptive" else overall
        loss = error + HINGE * (constrained - gain_bound).clamp_min(0).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    held_out = torch.empty(2000, FEATURES).uniform_(-2, 2, generator=torch.Generator().manual_seed(10**6))
    wanted = target(held_out)
    error = (student.mean(held_out) - wanted).square().mean() / wanted.var(0).mean()
    along, overall = gains(student, held_out, noise)
    return Fit(error.item(), along.quantile(0.99).item(), overall.quantile(0.99).item())


def gains(student: Student, obs: Tensor, noise: torch.Generator) -> tuple[Tensor, Tensor]:
    """‖J u_t‖ and ‖J‖_op of the mean at the points s + δ_t, differentiable in the weights, `[K · B]`."""
    trajectory = attack(student, obs, noise)
    points = (obs + trajectory.deltas[:STEPS]).flatten(0, 1).requires_grad_(True)
    outputs = student.mean(points)
    rows = [torch.autograd.grad(outputs[:, i].sum(), points, create_graph=True)[0] for i in range(2)]
    jacobian = torch.stack(rows, 1)
    along = jacobian @ trajectory.directions.flatten(0, 1).unsqueeze(-1)
    # The larger eigenvalue of the 2 x 2 matrix J Jᵀ.
    (a, b, c) = ((rows[i] * rows[j]).sum(-1) for i, j in ((0, 0), (1, 1), (0, 1)))
    largest = (a + b + safe_sqrt((a - b).square() + 4 * c.square())) / 2
    return safe_sqrt(along.square().sum((-2, -1))), safe_sqrt(largest)


def attack(student: Student, obs: Tensor, noise: torch.Generator) -> Trajectory:
    """The adversary's path: raw gradient direction, steps of ε/2, KL divergence."""
    policy = ModulePolicy(student, DiagGaussian(2))
    with torch.no_grad():
        clean = Clean(student(obs))
    return ascend(
        policy,
        obs,
        KL(),
        PerturbationSet(epsilon=EPSILON, norm="l2"),
        steps=STEPS,
        step_size=EPSILON / 2,
        step="normalized",
        generator=noise,
        clean=clean,
        check=False,
    )


def draw(results: Sequence[dict[str, Any]], bounds: tuple[float, ...]) -> Figure:
    """Error over γ for both targets; bands are one standard deviation over the seeds."""
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    for axes, name in zip(figure.subplots(1, 2, sharey=True), TARGETS, strict=True):
        for kind in CLASSES:
            errors = [
                [r["error"] for r in results if (r["target"], r["class"], r["bound"]) == (name, kind, bound)]
                for bound in bounds
            ]
            middle = [mean(values) for values in errors]
            spread = [stdev(values) if len(values) > 1 else 0.0 for values in errors]
            low, high = ([m + sign * s for m, s in zip(middle, spread, strict=True)] for sign in (-1, 1))
            axes.plot(bounds, middle, marker="o", color=COLOURS[kind], label=LABELS[kind])
            axes.fill_between(bounds, low, high, color=COLOURS[kind], alpha=0.2, linewidth=0)
        axes.set_title(f"large gain in {'a harmless' if name == 'harmless' else 'the attacked'} direction")
        axes.set_xlabel("gain bound γ")
        axes.set_ylim(bottom=0)
        axes.grid(color="#dfe3e8")
        axes.spines[["top", "right"]].set_visible(False)
    figure.axes[0].set_ylabel("squared error / variance of the target")
    figure.axes[0].legend(frameon=False)
    return figure


def main() -> None:
    """Fit all, write numbers and figure, print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seeds", type=int, default=4)
    options = parser.parse_args()
    torch.set_num_threads(1)
    results = []
    print("target     bound   class      error   p99 ‖J u‖   p99 ‖J‖_op")
    for name, bound, kind in product(TARGETS, BOUNDS, CLASSES):
        fits = [fit(kind, bound, TARGETS[name], seed) for seed in range(options.seeds)]
        results += [
            {"target": name, "class": kind, "bound": bound, "seed": seed, **vars(one)}
            for seed, one in enumerate(fits)
        ]
        row = [mean(getattr(one, key) for one in fits) for key in ("error", "along", "overall")]
        print(
            f"{name:9s}  {bound:5.2f}   {kind:8s}  {row[0]:6.3f}   {row[1]:9.2f}   {row[2]:10.2f}", flush=True
        )
    OUT.mkdir(parents=True, exist_ok=True)
    settings = {"epsilon": EPSILON, "steps": STEPS, "updates": UPDATES, "batch": BATCH, "hinge": HINGE}
    document = {"settings": settings, "sigma": TARGETS, "results": results}
    (OUT / "results.json").write_text(json.dumps(document, indent=1) + "\n", "utf-8")
    figure = draw(results, BOUNDS)
    figure.savefig(OUT / "gap.svg", metadata={"Date": None})
    figure.savefig(OUT / "gap.png", dpi=150)


if __name__ == "__main__":
    main()
