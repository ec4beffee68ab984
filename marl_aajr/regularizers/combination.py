"""Sums: several regularizers as one.

    R = R_1 + R_2 + …

Each member draws its own rows and noise, keeps its own state, and reports under its own name.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Self, TypeVar

import torch
from torch import Tensor, nn

from marl_aajr.core.distributions import ActionDistribution
from marl_aajr.core.jacobian import BACKENDS, Backend
from marl_aajr.core.objectives import EVERYTHING, Need
from marl_aajr.core.policy import Policy
from marl_aajr.regularizers.adversarial import Perturbing
from marl_aajr.regularizers.base import Evaluation, Regularizer, Sample, State

_T = TypeVar("_T")


@dataclass(frozen=True, kw_only=True)
class Sum(Regularizer):
    """The sum of its members; `a + b` makes one.

    Attributes:
        members: the regularizers, at least two; sums among them are taken apart.

    Raises:
        ValueError: fewer than two members, or something else among them.

    Example:
        >>> AAJR(coefficient=3e-3) + SmoothPolicy(coefficient=0.1)
    """

    name: ClassVar[str] = "sum"
    summary: ClassVar[str] = "several regularizers at once; members: a list of {name: ..., settings}"

    members: tuple[Regularizer, ...]

    def __post_init__(self) -> None:
        flat: list[Regularizer] = []
        for member in self.members:
            if not isinstance(member, Regularizer):
                raise ValueError(f"expected regularizers as members of a sum, got {member!r}")
            flat += member.members if isinstance(member, Sum) else [member]
        if len(flat) < 2:
            raise ValueError(f"expected at least two members in a sum, got {len(flat)}")
        leaves = {member.leaves for member in flat if isinstance(member, Perturbing)}
        if len(leaves) > 1:
            raise ValueError(
                "expected members of a sum to perturb the same leaves, got "
                f"{' and '.join(sorted(map(str, leaves)))}; name all of them, and use mask"
            )
        object.__setattr__(self, "members", tuple(flat))

    @property
    def perturbed_leaves(self) -> tuple[str, ...] | None:
        return next((member.leaves for member in self.members if isinstance(member, Perturbing)), None)

    @property
    def labelled(self) -> tuple[tuple[str, Regularizer], ...]:
        """Each member with a name of its own: `aajr`, `smooth_policy`, a second `aajr_2`."""
        count: dict[str, int] = {}
        labelled = []
        for member in self.members:
            count[member.name] = number = count.get(member.name, 0) + 1
            labelled.append((member.name if number == 1 else f"{member.name}_{number}", member))
        return tuple(labelled)

    def active(self, timestep: float) -> bool:
        return any(member.active(timestep) for member in self.members)

    def check(self, distribution: ActionDistribution, *, offers: Collection[Need] = EVERYTHING) -> None:
        for member in self.members:
            member.check(distribution, offers=offers)

    def fitted(self, policy: Policy, obs: Tensor, *, backends: Sequence[Backend] = BACKENDS) -> Self:
        fitted = (member.fitted(policy, obs, backends=backends) for member in self.members)
        return replace(self, members=tuple(fitted))

    def ramped(self, start: float, end: float) -> Self:
        return replace(self, members=tuple(member.ramped(start, end) for member in self.members))

    def initial_state(self) -> dict[str, Tensor]:
        return {
            f"{label}/{key}": value
            for label, member in self.labelled
            for key, value in member.initial_state().items()
        }

    def evaluate(
        self,
        sample: Sample,
        *,
        timestep: float,
        generator: torch.Generator,
        state: State | None = None,
        check: bool = False,
    ) -> Evaluation:
        total: Tensor | None = None
        nonfinite: Tensor | None = None
        metrics: dict[str, Tensor] = {}
        for label, member in self.labelled:
            if not member.active(timestep):
                continue
            own = None if state is None else _own(state, label)
            answer = member.evaluate(sample, timestep=timestep, generator=generator, state=own, check=check)
            _put_back(state, label, own)
            metrics |= {f"{label}/{key}": value for key, value in answer.metrics.items()}
            total = answer.loss if total is None else total + answer.loss
            count = answer.metrics["nonfinite"]
            nonfinite = count if nonfinite is None else nonfinite + count
        assert total is not None
        assert nonfinite is not None
        return Evaluation(total, metrics | {"nonfinite": nonfinite})

    def after_update(self, state: State, metrics: Mapping[str, float]) -> None:
        for label, member in self.labelled:
            # A member that a schedule has kept out of this update has no metrics.
            if own_metrics := _own(metrics, label):
                own = _own(state, label)
                member.after_update(own, own_metrics)
                _put_back(state, label, own)

    @property
    def constrains(self) -> bool:
        return any(member.constrains for member in self.members)

    def constrain(self, module: nn.Module, state: State, *, exact: bool = False) -> Mapping[str, Tensor]:
        metrics: dict[str, Tensor] = {}
        for label, member in self.labelled:
            own = _own(state, label)
            answer = member.constrain(module, own, exact=exact)
            _put_back(state, label, own)
            metrics |= {f"{label}/{key}": value for key, value in answer.items()}
        return metrics


def _own(entries: Mapping[str, _T], label: str) -> dict[str, _T]:
    """A member's entries, under the keys that it knows."""
    prefix = f"{label}/"
    return {key.removeprefix(prefix): value for key, value in entries.items() if key.startswith(prefix)}


def _put_back(state: State | None, label: str, own: Mapping[str, Tensor] | None) -> None:
    if state is not None and own is not None:
        state.update({f"{label}/{key}": value for key, value in own.items()})
