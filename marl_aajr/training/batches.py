"""What a run plays in: its environment, that with adversaries who perturb, or with disturbed actions."""

from __future__ import annotations

from contextlib import closing

import torch

from marl_aajr.rollout.disturbances import parse_disturbance
from marl_aajr.rollout.disturbed import DisturbedGame
from marl_aajr.rollout.environments import EnvironmentSpec
from marl_aajr.rollout.perturbed import PerturbedGame
from marl_aajr.rollout.replaced import ReplacedGame
from marl_aajr.training.atla import ATLA
from marl_aajr.training.config import RunConfig
from marl_aajr.training.run_directory import RunDirectory
from marl_aajr.victims import Victim
from marl_aajr.victims.portable import DESCRIPTION


def batches_of(
    config: RunConfig, spec: EnvironmentSpec, atla: ATLA | None
) -> EnvironmentSpec | PerturbedGame | DisturbedGame:
    """The source of the copies of a run with the fast runner.

    Raises:
        ValueError: an adversary of `disturb` that is not there or does not fit, an unknown agent, or actions
            that the disturbance is not defined for.
    """
    if atla is not None:
        two_sides = ReplacedGame if atla.adversary == "replace" else PerturbedGame
        return two_sides(spec, atla.agents, atla.adversary)
    if config.disturb is None:
        return spec
    disturbance, adversary = parse_disturbance(config.disturb), None
    if disturbance.by:
        folder = RunDirectory(disturbance.by).victim
        if not (folder / DESCRIPTION).is_file():
            raise ValueError(
                f"expected the folder of a finished run as the adversary of disturb, got {disturbance.by}; "
                "train one: marl-aajr adversary train VICTIM_RUN --kind traitor --alpha 0.1 --agents NAME"
            )
        adversary = Victim.load(folder)
    game = DisturbedGame(spec, disturbance, adversary)
    try:
        with closing(game(1, torch.device("cpu"))):
            return game
    except ValueError as error:
        raise ValueError(f"disturb {disturbance}: {error}") from error


def check_disturbance(config: RunConfig) -> None:
    """Raise `ValueError` where a run cannot learn under its disturbance of actions."""
    if config.disturb is None:
        return
    if parse_disturbance(config.disturb).kind == "gradient":
        raise ValueError(
            f"expected disturb replace, mix or noise, got {config.disturb}: its critic is learned from "
            "policies that are frozen; use it in evaluations"
        )
    if config.resources.runner != "fast" or config.atla is not None:
        raise ValueError(
            f"expected resources.runner fast and a method other than atla with disturb, got "
            f"{config.resources.runner} and {config.method.label}; change them"
        )
