"""The forms of AAJR's penalty as functions of the directional gain ‖J u‖, and the dual variable.

    squared      ‖J u‖²                         weight λ
    hinge        max(0, ‖J u‖ − γ)²             weight λ
    constraint   ‖J u‖²                         weight λ ← clip(λ + α (E‖J u‖² − γ²)) after every update

The constraint is E‖J u‖² ≤ γ² and its dual starts at `coefficient`. The forms are ours; the paper's
penalty is `squared`.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import inf, isfinite
from typing import Literal, get_args

import torch
from torch import Tensor

from marl_aajr.core.output_maps import safe_sqrt
from marl_aajr.regularizers.base import State

Form = Literal["squared", "hinge", "constraint"]
FORMS: tuple[Form, ...] = get_args(Form)

DUAL = "dual"
"""Key of λ in the state and of its metric."""

DUAL_STEP_SIZE = 1e-4
DUAL_BOUNDS = (0.0, 1.0)


def apply_form(form: Form, squared: Tensor, gain_bound: float | None) -> Tensor:
    """The penalty of each row and step from ‖J u‖², `[...] -> [...]`."""
    if form == "hinge":
        assert gain_bound is not None
        return (safe_sqrt(squared) - gain_bound).clamp_min(0).square()
    return squared


def move_dual(
    state: State,
    metrics: Mapping[str, float],
    *,
    gain_bound: float,
    step_size: float,
    bounds: tuple[float, float],
) -> None:
    """λ ← clip(λ + α (E‖J u‖² − γ²)), in place."""
    low, high = bounds
    moved = float(state[DUAL]) + step_size * (metrics["penalty"] - gain_bound**2)
    state[DUAL] = torch.full_like(state[DUAL], min(max(moved, low), high))


def check_form(
    form: Form,
    *,
    coefficient: object,
    gain_bound: float | None,
    dual_step_size: float | None,
    dual_bounds: tuple[float, float] | None,
) -> None:
    """Raise `ValueError` for settings that the form does not use, or lacks."""
    if form == "squared" and gain_bound is not None:
        raise ValueError(
            f"expected no gain_bound with form='squared', which has none, got {gain_bound!r}; "
            "use form='hinge' or 'constraint'"
        )
    if form != "squared" and not _number(gain_bound, above=0, including=True):
        raise ValueError(f"expected a gain_bound ≥ 0 with form={form!r}, got {gain_bound!r}")
    if form != "constraint":
        for name, value in (("dual_step_size", dual_step_size), ("dual_bounds", dual_bounds)):
            if value is not None:
                raise ValueError(
                    f"expected no {name} with form={form!r}, which has no dual variable, got {value!r}; "
                    "use form='constraint'"
                )
        return
    if not _number(dual_step_size, above=0):
        raise ValueError(f"expected a dual_step_size > 0, got {dual_step_size!r}")
    assert dual_bounds is not None
    low, high = dual_bounds
    if not 0 <= low < high:
        raise ValueError(f"expected dual_bounds [low, high] with 0 ≤ low < high, got {list(dual_bounds)}")
    if not isinstance(coefficient, float):
        raise ValueError(
            "expected a number as coefficient with form='constraint', whose dual variable starts there and "
            f"then moves by itself, got the schedule {coefficient}"
        )
    if not low <= coefficient <= high:
        raise ValueError(f"expected a coefficient within dual_bounds {list(dual_bounds)}, got {coefficient}")


def _number(value: object, *, above: float, including: bool = False) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float) or not isfinite(value):
        return False
    return value >= above if including else above < value < inf
