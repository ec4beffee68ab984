"""Which regularizers go together with which rollouts."""

from __future__ import annotations

from dataclasses import replace
from typing import NoReturn, TypeGuard

from marl_aajr.core.ascent import steepest
from marl_aajr.core.checks import maximum
from marl_aajr.regularizers.aajr import AAJR
from marl_aajr.regularizers.regularizer import Regularizer, Sum
from marl_aajr.rollout.attack.rollout_attack import KeptPath, RolloutAttack


def taking_over(regularizer: Regularizer, rollouts: RolloutAttack | None, *names: str) -> Regularizer:
    """The same with these settings of the rollouts where aajr follows their path, and has none of its own.

    They are limits: `"mask"`, `"scale"` or `"channels"`.
    """
    if isinstance(regularizer, Sum):
        members = tuple(taking_over(member, rollouts, *names) for member in regularizer.members)
        return replace(regularizer, members=members)
    if rollouts is None or not _follows(regularizer):
        return regularizer
    missing = [name for name in names if getattr(regularizer, name) is None]
    return replace(regularizer, **{name: getattr(rollouts, name) for name in missing})


def _follows(regularizer: Regularizer | None) -> TypeGuard[AAJR]:
    return isinstance(regularizer, AAJR) and regularizer.directions == "rollout"


def check_beside(regularizer: Regularizer, rollouts: RolloutAttack | None) -> None:
    """Raise `ValueError` for a regularizer that the rollouts contradict, or do not serve."""
    for member in getattr(regularizer, "members", (regularizer,)):
        if rollouts is not None and getattr(member, "perturbs_loss", False):
            raise ValueError(
                "expected a regularizer that leaves the policy loss as it is with rollouts under attack, got "
                f"{member!r}: actions are drawn at the perturbed observations, and say nothing of others; "
                "set its adversarial_weight to 0, or play without attack"
            )
        if _follows(member):
            _check_path(member, rollouts)


def _check_path(member: AAJR, rollouts: RolloutAttack | None) -> None:
    if rollouts is None or rollouts.path != member.points:
        raise ValueError(
            f"expected rollouts under attack that keep the path, path={member.points!r}, for aajr with "
            f"directions='rollout', got {'none' if rollouts is None else rollouts.path!r}; add them, or take "
            "directions='fresh'"
        )
    if rollouts.adversary != member.adversary:
        _refuse("objective", member.adversary, rollouts.adversary)
    _check_preconditioner(member, rollouts)
    names = ("norm", "low", "high", "epsilon", "steps", "step_size")
    theirs = {name: getattr(rollouts, name) for name in names}
    theirs["step"] = steepest(rollouts.norm) if rollouts.step == "auto" else rollouts.step
    theirs |= {"start": None, "leaves": None}  # two mirrored starts, or the clean observation; all leaves
    if member.epsilon == maximum(rollouts.epsilon):  # a run raises that of the rollouts from 0
        del theirs["epsilon"]
    for name, value in theirs.items():
        if (own := getattr(member, name)) not in (value, getattr(AAJR, name)):
            _refuse(name, own, value)


def _check_preconditioner(member: AAJR, rollouts: RolloutAttack) -> None:
    """The same M = mask · scale: AAJR compares kept directions M ∇g with fresh ones, and has to know it."""
    names = ["scale", "mask", "channels"]
    # A run has put the mask of its channels in their place.
    if rollouts.channels is not None and member.channels is None and member.mask is not None:
        names = names[:1]
    for name in names:
        if (own := getattr(member, name)) != (value := getattr(rollouts, name)):
            _refuse(name, own, value)


def _refuse(name: str, own: object, theirs: object) -> NoReturn:
    raise ValueError(
        f"expected the {name} of the rollouts, {theirs!r}, for aajr with directions='rollout', whose path is "
        f"that of their adversary, got {own!r}; set it as there"
    )


def path_for(regularizer: Regularizer | None) -> KeptPath:
    """The points of an attack's path that a regularizer wants kept."""
    for member in getattr(regularizer, "members", (regularizer,)):
        if _follows(member):
            return member.points
    return "none"
