"""Transfer: perturbations computed on another team of policies, shown to the victim.

An attack that does not look at the victim at all must not work better than one that reads its gradients; if
it does, the gradients mislead (gradient masking).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from dataclasses import dataclass, field, replace
from typing import ClassVar, Self

import torch
from torch import Tensor

from marl_aajr.attacks.auto_pgd import StrongMarginPGD, StrongPGD
from marl_aajr.attacks.base import Access, Attack
from marl_aajr.core.distributions import DiagGaussian
from marl_aajr.core.policy import Policy, differentiable
from marl_aajr.victims import ObservationFilter, Victim, VictimPolicy
from marl_aajr.victims.recurrent import is_recurrent


@dataclass(frozen=True, kw_only=True)
class Transfer(Attack, mixes_sizes=True):
    """Attack a surrogate, and show the result to the victim.

    The perturbation means the same thing to both: it is searched in the inputs of the victim's network, which
    the surrogate reads through the inverse of the victim's filter and its own.

    Attributes:
        surrogate: another victim for the same agents.
        source: what to call it in results: two transfers from different sources are different attacks.
        method: the attack on the surrogate; None: `pgd-strong-margin` for discrete actions, `pgd-strong`
            for Gaussian ones. Its perturbation set is replaced by this attack's.

    Raises:
        ValueError: no surrogate, one that does not play the attacked agents' spaces, or one that torch cannot
            differentiate for a method that needs gradients.
    """

    name: ClassVar[str] = "transfer"
    summary: ClassVar[str] = "perturbations computed on another run's policies (--surrogate)"
    access: ClassVar[Access] = "surrogate"

    surrogate: Victim | None = field(default=None, repr=False, compare=False)
    source: str = ""
    method: Attack | None = None
    _agent: str | None = field(default=None, repr=False, compare=False)
    _filter: ObservationFilter | None = field(default=None, repr=False, compare=False)

    def against(self, victim: Victim, agent: str) -> Attack:
        surrogate = self._required()
        if agent not in surrogate.module_of:
            raise ValueError(
                f"expected a surrogate that plays {agent!r}, got one for {', '.join(surrogate.agents)}; "
                "train it on the same environment"
            )
        for kind, own, needed in (
            ("observations", surrogate.observation_spaces[agent], victim.observation_spaces[agent]),
            ("actions", surrogate.action_spaces[agent], victim.action_spaces[agent]),
        ):
            if own.shape != needed.shape or (kind == "actions" and own != needed):
                raise ValueError(
                    f"expected a surrogate for the {kind} {needed} of {agent!r}, got one for {own}; train it "
                    "on the same environment"
                )
        if is_recurrent(surrogate.modules[surrogate.module_of[agent]]):
            raise ValueError(
                f"expected a surrogate without memory, got a recurrent policy for {agent!r}, whose state "
                "would have to follow a game that it does not play; use a feed-forward run"
            )
        policy = surrogate.policy(agent)
        size = math.prod(surrogate.observation_spaces[agent].shape or ())
        if self._method(policy).access == "gradients" and not differentiable(policy, torch.zeros(1, size)):
            raise ValueError(
                f"expected a surrogate with gradients, got one for {agent!r} that torch cannot "
                "differentiate by its inputs; use another run, or a method without gradients"
            )
        return replace(self, _agent=agent, _filter=victim.filters.get(agent))

    def together(self, agents: Collection[str]) -> list[list[str]]:
        surrogate = self._required()
        played = [agent for agent in agents if agent in surrogate.module_of]
        others = [agent for agent in agents if agent not in played]
        return [*surrogate.alike(played), *([others] if others else [])]

    def run(self, policy: Policy, obs: Tensor, *, generator: torch.Generator) -> Tensor:
        surrogate = self._required()
        if self._agent is None:
            raise ValueError("expected against(victim, agent) before a transfer attack runs, got none")
        mask = policy.action_mask if isinstance(policy, VictimPolicy) else None
        other = surrogate.policy(self._agent, action_mask=mask)
        own = surrogate.filters.get(self._agent)
        seen = other if self._filter is own is None else _Through(other, self._filter, own)
        return self._method(policy).run(seen, obs, generator=generator)

    @property
    def mixes_sizes(self) -> bool:
        return super().mixes_sizes and (self.method is None or self.method.mixes_sizes)

    def _method(self, policy: Policy) -> Attack:
        if self.method is not None:
            return replace(self.method, perturbations=self.perturbations)
        cls = StrongPGD if isinstance(policy.distribution, DiagGaussian) else StrongMarginPGD
        return cls(perturbations=self.perturbations)

    def _required(self) -> Victim:
        if self.surrogate is None:
            raise ValueError(
                "expected a surrogate for the attack 'transfer', got none; name another run of the same "
                "environment: --surrogate RUN (in Python surrogates={name: victim})"
            )
        return self.surrogate


class _Through(Policy):
    """A policy that reads another filter's outputs: x ↦ f(own(x · scale + mean))."""

    def __init__(
        self, policy: Policy, given: ObservationFilter | None, own: ObservationFilter | None
    ) -> None:
        super().__init__(policy.distribution)
        self._policy, self._given, self._own = policy, given, own

    def __call__(self, obs: Tensor) -> Tensor:
        raw = obs.double()
        if self._given is not None:
            raw = raw * self._given.scale.flatten() + self._given.mean.flatten()
        if self._own is not None:
            raw = self._own(raw.unflatten(-1, self._own.mean.shape)).flatten(-self._own.mean.ndim)
        return self._policy(raw.to(obs.dtype))

    def changed(self, change: Callable[[Tensor], Tensor]) -> Self:
        return type(self)(self._policy.changed(change), self._given, self._own)
