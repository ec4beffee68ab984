"""Measures of a rollout attack in one sample, as sums, so that those of several runners can be added up."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from random import Random

import torch
from torch import Tensor

from marl_aajr.attacks.base import greedy_action_changed
from marl_aajr.core.objectives import Clean
from marl_aajr.core.policy import ModulePolicy
from marl_aajr.rollout.attack.attackable import ActingRows
from marl_aajr.rollout.attack.inner_gap import inner_gap
from marl_aajr.rollout.attack.rollout_attack import RolloutAttack
from marl_aajr.rollout.fragments import ModuleFragment


@dataclass
class AttackedDecisions:
    """What the metrics need of the attacked decisions of one module in one sample.

    Attributes:
        draw: Source of the step whose rows are measured: the first one would be where episodes begin.
        measured: The rows of one attacked step, drawn uniformly, their ε, and which were attacked.
        steps: Of each attacked step its number t, the outputs at clean observations `[N, m]` and which rows
            were attacked, `[N]` (None: all).
    """

    draw: Random = field(default_factory=lambda: Random(0))
    measured: tuple[ActingRows, float | Tensor, Tensor | None] | None = None
    steps: list[tuple[int, Tensor, Tensor | None]] = field(default_factory=list)

    def note(
        self, t: int, rows: ActingRows, clean_outputs: Tensor, epsilon: float | Tensor, hit: Tensor | None
    ) -> None:
        """Keep what is needed of step t."""
        self.steps.append((t, clean_outputs, hit))
        if self.draw.random() * len(self.steps) < 1:
            self.measured = rows, epsilon, hit


def sums_of(
    attack: RolloutAttack, noted: AttackedDecisions, inputs: Tensor, generator: torch.Generator | None
) -> dict[str, Tensor]:
    """The sums over one module's attacked decisions.

    Args:
        attack: The attack.
        noted: What was noted of the decisions.
        inputs: The distribution inputs that they were made with, `[T, N, m]`.
        generator: Of the measurement of the inner loop; None: it is not measured.

    Returns:
        `rows`, `changed` (decisions whose greedy action is another), `gain` of the objective where that is a
        function of the outputs; those of `inner_gap`.
    """
    if noted.measured is None:
        return {}
    rows, epsilon, attacked = noted.measured
    distribution, objective = rows.policy.distribution, attack.adversary
    clean = torch.cat([outputs for _, outputs, _ in noted.steps])
    seen = inputs[[t for t, _, _ in noted.steps]].flatten(0, 1)
    hit = torch.cat(
        [
            torch.ones(len(outputs), dtype=torch.bool, device=outputs.device) if hit is None else hit
            for _, outputs, hit in noted.steps
        ]
    )
    found = {
        "rows": hit.sum(),
        "changed": (greedy_action_changed(distribution, clean, seen) & hit).sum(),
    }
    if "critic" not in objective.needs:
        g = objective.bind(ModulePolicy(lambda outputs: outputs, distribution), Clean(clean))
        found["gain"] = torch.where(hit, g(seen) - g(clean), 0.0).sum()
    if generator is not None:
        found |= inner_gap(
            attack, rows.policy, rows.obs, epsilon=epsilon, attacked=attacked, generator=generator
        )
    return found


@torch.no_grad()
def attack_metrics(
    noted: Mapping[str, tuple[RolloutAttack, AttackedDecisions, ModuleFragment, tuple[int, ...]]],
    *,
    reach: int,
    generator: torch.Generator | None,
) -> dict[str, float]:
    """The sums of all modules; arguments as for `sums_of`.

    Args:
        noted: By module: the attack on it, its decisions, its columns, and the places of the attacked agents
            among its own.
        reach: The number of copies that may be attacked.
        generator: See `sums_of`.
    """
    total: dict[str, Tensor] = {}
    for attack, decisions, part, agents in noted.values():
        inputs = part.inputs[:, list(agents), :reach].flatten(1, 2)
        for name, value in sums_of(attack, decisions, inputs, generator).items():
            total[name] = total.get(name, torch.zeros_like(value)) + value
    if not total:
        return {}
    numbers = torch.stack([value.double() for value in total.values()]).tolist()
    return dict(zip(total, numbers, strict=True))
