"""Measures of an attack on RLlib's episodes, under the names that fast runs log them by."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from random import Random
from typing import Any

import torch
from torch import Tensor

from marl_aajr.core.end_of_ascent import Ascended
from marl_aajr.rllib.internals.algorithms import connectors_of
from marl_aajr.rllib.internals.runners import samples_to_train
from marl_aajr.rllib.sampling.episode_metrics import ATTACK_KEY, RETURNS_KEY, team_returns
from marl_aajr.rollout.attack.attackable import ActingRows
from marl_aajr.rollout.attack.attacked_metrics import AttackedDecisions, sums_of
from marl_aajr.rollout.attack.rollout_attack import RolloutAttack

_KEY = (RETURNS_KEY, ATTACK_KEY)


class AttackedMeasures:
    """Logs to an env runner's metrics, as sums; a sample is what is played between two updates of weights.

    The inner loop is measured in one step of every so many samples. The step is drawn, because episodes may
    begin in the first one, from as many as the sample before had, or as RLlib asks for: nobody says how many
    there will be. If the sample ends before that step, the next one is measured.
    """

    def __init__(self, attack: RolloutAttack) -> None:
        self._interval = attack.gap_interval
        self._began, self._steps = -1, 0
        self._samples_left = 1
        self._drawn: int | None = None
        self._measured: set[str] = set()

    def step(self, runner: Any, epsilon: float, *, acts: bool, draw: Random) -> None:
        """A step is played at this ε, in which somebody acts or not; `draw` may be drawn from."""
        runner.metrics.log_dict({"samples": 1.0, "epsilon": epsilon}, key=_KEY, reduce="sum")
        if not epsilon or not acts:
            return
        if self._began != (began := runner.num_env_steps_sampled_lifetime):
            asked = runner.config.get_rollout_fragment_length(runner.worker_index or 0)
            steps = self._steps or max(1, asked)
            self._began, self._steps = began, 0
            self._samples_left -= 1
            self._measured.clear()
            due = self._interval > 0 and self._samples_left <= 0
            self._drawn = draw.randrange(steps) if due else None
        self._steps += 1

    @torch.no_grad()
    def decisions(
        self,
        runner: Any,
        module: str,
        attack: RolloutAttack,
        rows: ActingRows,
        found: Ascended,
        *,
        acts: Tensor,
        hit: Tensor | None,
        epsilon: float | Tensor,
        generator: torch.Generator,
    ) -> None:
        """A module's observations in a step, of which the rows `hit [N]` (None: all) are attacked.

        Measured are the decisions, in the rows `acts [N]`.
        """
        if not acts.any():
            return
        index = acts.nonzero().squeeze(1)
        policy, obs = rows.policy.select(index), rows.obs[index]
        decided = ActingRows(policy, obs, rows.seen, rows.scale)
        noted = AttackedDecisions()
        noted.note(
            0,
            decided,
            found.clean_outputs[index],
            epsilon[index] if isinstance(epsilon, Tensor) else epsilon,
            None if hit is None else hit[index],
        )
        gap = generator if self._is_due(module) else None
        sums = sums_of(attack, noted, policy(obs + found.delta[index]).unsqueeze(0), gap)
        numbers = {name: float(value) for name, value in sums.items()}
        runner.metrics.log_dict(numbers, key=_KEY, reduce="sum")

    def _is_due(self, module: str) -> bool:
        """Whether the inner loop is measured now: at a module's first decisions from the drawn step on."""
        if self._drawn is None or self._steps <= self._drawn or module in self._measured:
            return False
        self._measured.add(module)
        self._samples_left = self._interval
        return True


@dataclass(frozen=True)
class ReturnsUnderAttack:
    """RLlib's `on_episode_end` in our own runs: the returns of attacked and of other copies, as sums."""

    teams: Mapping[str, str]

    def __call__(self, *, env_runner: Any, env_index: int, metrics_logger: Any, **_: Any) -> None:
        attacked = [p.is_attacked(env_index) for p in connectors_of(env_runner) if hasattr(p, "is_attacked")]
        if not attacked or env_runner.config.in_evaluation or not samples_to_train(env_runner):
            return
        found = {"episodes": 1.0, "returns": team_returns(env_runner, env_index, self.teams)}
        kind = "attacked" if attacked[0] else "clean"
        metrics_logger.log_dict({kind: found}, key=_KEY, reduce="sum")
