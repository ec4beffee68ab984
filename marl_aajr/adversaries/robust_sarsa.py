"""Robust Sarsa: an attack that learns Q of the frozen victim, then makes it take actions of low Q."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import ClassVar, Literal, Self

import torch
from torch import Tensor

from marl_aajr.adversaries.action_values import ActionValue, encode, fit_action_value, watch
from marl_aajr.adversaries.learned import FittedAttack
from marl_aajr.attacks import PGD, Attack
from marl_aajr.core.checks import whole
from marl_aajr.core.objectives import Clean, Objective
from marl_aajr.core.policy import Policy
from marl_aajr.rollout.batched_env import BatchedEnv
from marl_aajr.victims import Victim


@dataclass(frozen=True, kw_only=True)
class RobustSarsa(PGD, FittedAttack):
    """`PGD` on −Q(s, π(s + δ)), Q learned from watching the victim.

    Q is asked at the true observation, so it says what the action is really worth; the actor is asked at the
    false one. For discrete actions π are the probabilities, for Gaussian ones the mean. There is one Q for
    each module, of what the attacked agents earn together.

    Attributes:
        experience: environment steps to learn from, over all copies.
        updates: of Q.
        discount: γ.
        robustness: λ, weight of Q's smoothness in the action; 0: plain Sarsa.
        radius: ρ of that smoothness, in units of the action (of probability for discrete ones).
        values: module id -> Q; None until `fit`.

    Raises:
        ValueError: a setting out of its range, or an attack that was not fitted.

    Source: Zhang 2020 (arXiv 2003.08938), section 3.5. Theirs is for continuous actions; reading a discrete
    action as a vector of probabilities is ours.
    """

    name: ClassVar[str] = "robust-sarsa"
    summary: ClassVar[str] = "projected gradient descent on a Q function fitted to the frozen victim"

    objective: str | Objective = "value"
    experience: int = 20_000
    updates: int = 2000
    discount: float = 0.9
    robustness: float = 0.1
    radius: float = 0.1
    values: Mapping[str, ActionValue] | None = field(default=None, repr=False, compare=False)
    _q: ActionValue | None = field(default=None, repr=False, compare=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        whole("experience", self.experience)
        whole("updates", self.updates)
        for name in ("robustness", "radius"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"expected {name} ≥ 0, got {getattr(self, name)!r}")
        if not 0 <= self.discount <= 1:
            raise ValueError(f"expected a discount in [0, 1], got {self.discount!r}")

    @property
    def ready(self) -> bool:
        return self.values is not None

    def fit(
        self,
        victim: Victim,
        env: BatchedEnv,
        *,
        agents: Collection[str],
        seed: int,
        units: Literal["raw", "network"] = "raw",
        home: Path | None = None,
    ) -> Self:
        generator = torch.Generator().manual_seed(seed)
        seen = watch(victim, env, agents=agents, decisions=self.experience, seed=seed, generator=generator)
        values = {
            module_id: fit_action_value(
                transitions,
                discount=self.discount,
                robustness=self.robustness,
                radius=self.radius,
                updates=self.updates,
                generator=generator,
            )
            for module_id, transitions in seen.items()
        }
        return replace(self, values=values)

    def against(self, victim: Victim, agent: str) -> Attack:
        if self.values is None:
            raise ValueError(f"expected a fitted {self.name}, got a fresh one; call fit(victim, env) first")
        return replace(self, _q=self.values[victim.module_of[agent]])

    def clean(self, policy: Policy, obs: Tensor, outputs: Tensor) -> Clean:
        if self._q is None:
            raise ValueError(f"expected fit() and against() before {self.name} runs, got neither")
        return Clean(outputs, values=_ValueOfPerturbed(self._q, policy, obs))


@dataclass(frozen=True, eq=False)
class _ValueOfPerturbed:
    """Q at the true observation of the expected action at a perturbed one, `[B, d] -> [B]`."""

    q: ActionValue
    policy: Policy
    obs: Tensor

    def __call__(self, seen: Tensor) -> Tensor:
        return self.q(self.obs, encode(self.policy.distribution, self.policy(seen), None))

    def select(self, index: Tensor) -> _ValueOfPerturbed:
        return _ValueOfPerturbed(self.q, self.policy.select(index), self.obs[index])
