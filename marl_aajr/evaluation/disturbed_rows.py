"""The rows of disturbed actions: by chance, by trained adversaries, by the gradient of a critic."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from gymnasium import spaces
from torch import Tensor

from marl_aajr.adversaries.action_value import ActionValue
from marl_aajr.adversaries.robust_sarsa import RobustSarsa
from marl_aajr.core.checks import written
from marl_aajr.core.distributions import DiagGaussian
from marl_aajr.core.seeds import Purpose, derived_seed
from marl_aajr.core.threat import PerturbationSet
from marl_aajr.evaluation import sources
from marl_aajr.evaluation.evaluator import Evaluator
from marl_aajr.evaluation.order_checks import lower
from marl_aajr.evaluation.outcomes import Actions
from marl_aajr.evaluation.result import ActionsResult, Check, Skipped
from marl_aajr.evaluation.row_games import Row
from marl_aajr.evaluation.threats import Form, ThreatOutcome
from marl_aajr.rollout.batched_env import BatchedEnv
from marl_aajr.rollout.disturbances import Disturbance, half_range, parse_disturbance
from marl_aajr.rollout.disturbed import (
    ActionAdversary,
    DisturbedBatch,
    disturbed_agents,
    disturbed_batch,
)
from marl_aajr.rollout.environments import make_batch
from marl_aajr.victims import Victim
from marl_aajr.victims.spaces import check_match

_STEPS = 5
"""Steps of the descent of a critic, each of half of the way."""


@dataclass(frozen=True, eq=False)
class DisturbedRow:
    """A disturbance of some agents' actions, and the trained adversary, if it has one."""

    disturbance: Disturbance
    agents: tuple[str, ...]
    adversary: Victim | None = field(default=None, repr=False)

    @property
    def form(self) -> Form:
        """What chooses the other action."""
        if self.disturbance.kind == "gradient":
            return "worst"
        return "random" if self.adversary is None else "trained"

    @property
    def control(self) -> DisturbedRow:
        """The same by chance, which it must be stronger than."""
        kind = "noise" if self.disturbance.kind == "gradient" else self.disturbance.kind
        return DisturbedRow(replace(self.disturbance, kind=kind, by=""), self.agents)

    @property
    def settings(self) -> dict[str, Any]:
        """α, or the size."""
        return {"alpha" if self.disturbance.has_adversary else "size": self.disturbance.size}


def admitted_disturbances(
    texts: Sequence[str], victim: Victim, env: BatchedEnv, members: Sequence[str], *, asked: bool
) -> tuple[tuple[DisturbedRow, ...], tuple[Skipped, ...]]:
    """The disturbances that can be played, with the random forms of others, and those of a suite that cannot.

    Raises:
        ValueError: one that was `asked` for cannot be played.
    """
    kept: dict[tuple[Disturbance, tuple[str, ...]], DisturbedRow] = {}
    skipped = []
    for disturbance in map(parse_disturbance, texts):
        try:
            row = _resolved(disturbance, victim, env, members)
        except ValueError as error:
            if asked:
                raise
            skipped.append(Skipped(f"disturb {disturbance}", str(error)))
            continue
        for each in (*([row.control] if row.form != "random" else []), row):
            kept.setdefault((replace(each.disturbance, agents=None), each.agents), each)
    return tuple(kept.values()), tuple(skipped)


def _resolved(
    disturbance: Disturbance, victim: Victim, env: BatchedEnv, members: Sequence[str]
) -> DisturbedRow:
    agents = disturbed_agents(env, disturbance, agents=members)
    if disturbance.kind == "gradient":
        for agent in agents:
            if not isinstance(victim.distribution(agent), DiagGaussian):
                raise ValueError(f"expected a Gaussian policy of {agent!r} for {disturbance}; use noise")
    if not disturbance.by:
        return DisturbedRow(disturbance, agents)
    adversary = sources.adversary_policies(Path(disturbance.by))
    check_match(adversary, env, agents=agents, what="an adversary")
    return DisturbedRow(disturbance, agents, adversary)


def play_disturbed(
    evaluator: Evaluator, rows: Sequence[DisturbedRow], actions: Actions
) -> Iterator[ThreatOutcome]:
    """A row for each disturbance, on copies of their own."""
    values: Mapping[str, ActionValue] = {}
    for row in rows:
        if row.form == "worst" and not values:
            values = _critics(evaluator, row)
        with closing(make_batch(evaluator.spec, evaluator.env.num_envs, flat=True)) as env:
            batch = _batch(evaluator, row, env, values)
            (played,) = evaluator.play_rows(f"{row.disturbance} ({row.form})", [Row(actions, env=batch)])
        yield ThreatOutcome(
            **evaluator.returns.outcome(played),
            kind="actions",
            name=row.disturbance.kind,
            form=row.form,
            settings=row.settings,
            agents=row.agents,
            source=row.disturbance.by,
        )


def disturbance_checks(rows: ActionsResult) -> Iterator[Check]:
    """What is trained or found by a gradient must hurt as much as chance, where both are played."""
    played = [row for row in rows.threats if row.kind == "actions"]
    for row in (row for row in played if row.form != "random"):
        kind = "noise" if row.name == "gradient" else row.name
        alike = (kind, row.settings, row.agents)
        chance = next(r for r in played if r.form == "random" and (r.name, r.settings, r.agents) == alike)
        weak = lower(chance, row)
        text = "It hurts as much as chance does."
        if weak:
            text = (
                f"Undertrained: it leaves a return of {written(row.mean)}, chance {written(chance.mean)}. "
                "That is no evidence of robustness."
            )
        yield Check(f"returns ({rows.actions}): {row.label}", "fail" if weak else "pass", text)


def _batch(
    evaluator: Evaluator, row: DisturbedRow, env: BatchedEnv, values: Mapping[str, ActionValue]
) -> DisturbedBatch:
    if row.form != "worst":
        return disturbed_batch(env, row.disturbance, row.adversary, agents=row.agents)
    descends = DescendedValue(evaluator.victim, row.agents, values, row.disturbance.size)
    return DisturbedBatch(env, row.disturbance, agents=row.agents, adversary=descends)


def _critics(evaluator: Evaluator, row: DisturbedRow) -> Mapping[str, ActionValue]:
    """Q of the frozen victim by module, as `robust-sarsa` learns it."""
    evaluator.tell("a critic of actions, which is fitted first")
    sarsa = RobustSarsa(perturbations=PerturbationSet(epsilon=1.0))
    seed = derived_seed(evaluator.seed, Purpose.FIT)
    with closing(make_batch(evaluator.spec, evaluator.env.num_envs, flat=True)) as env:
        fitted = sarsa.fit(evaluator.victim, env, agents=row.agents, seed=seed)
    assert fitted.values is not None
    return fitted.values


@dataclass(frozen=True, eq=False)
class DescendedValue(ActionAdversary):
    """u that descends Q(s, a + ξ u) from u = 0, by steps of its sign; the lowest of all is kept.

    Attributes:
        victim: whose Q it is, and who reads observations.
        values: Q by module.
        size: ξ.
    """

    victim: Victim
    agents: tuple[str, ...]
    values: Mapping[str, ActionValue]
    size: float

    def __call__(
        self, env: BatchedEnv, obs: Mapping[str, Tensor], own: Mapping[str, Tensor]
    ) -> Mapping[str, Tensor]:
        return {agent: self._descend(agent, obs[agent], action) for agent, action in own.items()}

    @torch.enable_grad()
    def _descend(self, agent: str, obs: Tensor, action: Tensor) -> Tensor:
        space, q = self.victim.action_spaces[agent], self.values[self.victim.module_of[agent]]
        assert isinstance(space, spaces.Box)
        inputs, reach = self.victim.inputs(agent, obs), self.size * half_range(space, action).flatten()
        encoded = action.flatten(1).float()
        if self.victim.normalize_actions and space.is_bounded():
            low = torch.from_numpy(space.low).to(encoded).flatten()
            encoded = (encoded - low) / half_range(space, encoded).flatten() - 1
            reach = torch.full_like(reach, self.size)
        u = best = torch.zeros_like(encoded)
        least = torch.full_like(encoded[:, 0], torch.inf)
        for _ in range(_STEPS + 1):
            moved = u.detach().requires_grad_()
            value = q(inputs, encoded + reach * moved)
            (slope,) = torch.autograd.grad(value.sum(), moved)
            lower_now = value.detach() < least
            best = torch.where(lower_now.unsqueeze(1), u, best)
            least = torch.where(lower_now, value.detach(), least)
            u = (u - slope.sign() / 2).clamp(-1, 1)
        return best.view_as(action)
