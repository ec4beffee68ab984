"""Measures of an attack on RLlib's episodes, under the names that fast runs log them by."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from marl_aajr.core.end_of_ascent import Ascended
from marl_aajr.rllib.internals.algorithms import connectors_of
from marl_aajr.rllib.sampling.episode_metrics import ATTACK_KEY, RETURNS_KEY, team_returns
from marl_aajr.rollout.attack.attackable import ActingRows
from marl_aajr.rollout.attack.attacked_metrics import AttackedDecisions, sums_of
from marl_aajr.rollout.attack.rollout_attack import RolloutAttack

_KEY = (RETURNS_KEY, ATTACK_KEY)


class AttackedMeasures:
    """Logs to an env runner's metrics, as sums; a sample is what is played between two updates of weights."""

    def __init__(self, attack: RolloutAttack) -> None:
        self._interval = attack.gap_interval
        self._began, self._samples = -1, 0
        self._measured: set[str] = set()

    def step(self, runner: Any, epsilon: float) -> None:
        """A step is played at this ε."""
        self._log = runner.metrics.log_dict
        self._log({"samples": 1.0, "epsilon": epsilon}, key=_KEY, reduce="sum")
        if epsilon and self._began != (began := runner.num_env_steps_sampled_lifetime):
            self._began = began
            self._samples += 1
            self._measured.clear()

    @torch.no_grad()
    def decisions(
        self,
        module: str,
        attack: RolloutAttack,
        rows: ActingRows,
        found: Ascended,
        *,
        hit: Tensor | None,
        epsilon: float | Tensor,
        generator: torch.Generator,
    ) -> None:
        """A module's decisions in a step, of which the rows `hit [N]` (None: all) are attacked.

        The gap is measured in the first step of every so many samples.
        """
        due = self._interval > 0 and (self._samples - 1) % self._interval == 0
        gap = generator if due and module not in self._measured else None
        self._measured.add(module)
        noted = AttackedDecisions()
        noted.note(0, rows, found.clean_outputs, epsilon, hit)
        sums = sums_of(attack, noted, rows.policy(rows.obs + found.delta).unsqueeze(0), gap)
        self._log({name: float(value) for name, value in sums.items()}, key=_KEY, reduce="sum")


@dataclass(frozen=True)
class ReturnsUnderAttack:
    """RLlib's `on_episode_end` in our own runs: the returns of attacked and of other copies, as sums."""

    teams: Mapping[str, str]

    def __call__(self, *, env_runner: Any, env_index: int, metrics_logger: Any, **_: Any) -> None:
        attacked = [p.is_attacked(env_index) for p in connectors_of(env_runner) if hasattr(p, "is_attacked")]
        if not attacked or env_runner.config.in_evaluation:
            return
        found = {"episodes": 1.0, "returns": team_returns(env_runner, env_index, self.teams)}
        kind = "attacked" if attacked[0] else "clean"
        metrics_logger.log_dict({kind: found}, key=_KEY, reduce="sum")
