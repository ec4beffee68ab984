"""Which regularizers go together with which rollouts."""

from __future__ import annotations

from marl_aajr.regularizers.aajr import AAJR
from marl_aajr.regularizers.regularizer import Regularizer
from marl_aajr.rollout.attack.rollout_attack import KeptPath, RolloutAttack


def check_beside(regularizer: Regularizer, rollouts: RolloutAttack | None) -> None:
    """Raise `ValueError` for a regularizer that the rollouts contradict, or do not serve."""
    for member in getattr(regularizer, "members", (regularizer,)):
        if rollouts is not None and getattr(member, "perturbs_loss", False):
            raise ValueError(
                "expected a regularizer that leaves the policy loss as it is with rollouts under attack, got "
                f"{member!r}: actions are drawn at the perturbed observations, and say nothing of others; "
                "set its adversarial_weight to 0, or play without attack"
            )
        if isinstance(member, AAJR) and member.directions == "rollout":
            _check_path(member, rollouts)


def _check_path(member: AAJR, rollouts: RolloutAttack | None) -> None:
    if rollouts is None or rollouts.path != member.points:
        raise ValueError(
            f"expected rollouts under attack that keep the path, path={member.points!r}, for aajr with "
            f"directions='rollout', got {'none' if rollouts is None else rollouts.path!r}; add them, or take "
            "directions='fresh'"
        )
    if rollouts.adversary != member.adversary:
        raise ValueError(
            f"expected the objective of the rollouts, {rollouts.adversary}, for aajr with "
            f"directions='rollout', got {member.adversary}; set the same"
        )


def path_for(regularizer: Regularizer | None) -> KeptPath:
    """The points of an attack's path that a regularizer wants kept."""
    for member in getattr(regularizer, "members", (regularizer,)):
        if isinstance(member, AAJR) and member.directions == "rollout":
            return member.points
    return "none"
