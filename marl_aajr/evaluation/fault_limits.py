"""The episodes and budgets that a sensor fault can be played in."""

from __future__ import annotations

from marl_aajr.attacks import Fault
from marl_aajr.evaluation.budget import Budget
from marl_aajr.rollout.batched_env import BatchedEnv
from marl_aajr.rollout.environments import EnvironmentSpec

LIMIT = "max_cycles"
"""The argument and attribute by which environments say how long an episode can be."""


def check_fault(fault: Fault, budget: Budget) -> None:
    """Raise `ValueError` for a budget that means nothing to a fault."""
    if budget.steps is not None:
        raise ValueError(
            f"expected no steps in the budget for the fault {fault.name!r}, which lasts, got "
            f"steps={budget.steps}; leave one of the two out"
        )
    if budget.scales and not fault.sized:
        raise ValueError(
            f"expected no scale in the budget for the fault {fault.name!r}, which has no size, got {budget}; "
            "leave one of the two out"
        )


def check_fits(fault: Fault, longest: int | None) -> None:
    """Raise `ValueError` for a fault that is longer than the longest episode; None: that is not known."""
    if longest is not None and fault.length > longest:
        raise ValueError(
            f"expected a fault that fits into an episode of {longest} steps, got {fault.name} of "
            f"{fault.length}; set its steps"
        )


def longest_episode(env: BatchedEnv, spec: EnvironmentSpec) -> int | None:
    """The steps after which the environment ends an episode, where it says so (`max_cycles`); else None."""
    found = getattr(env, LIMIT, None) or spec.argument(LIMIT)
    return found if isinstance(found, int) and found > 0 else None
