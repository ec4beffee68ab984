"""Preflight: questions to a policy that tell whether the attacks have the means to attack it at all.

A gradient attack against a policy that hides its gradients proves nothing. These questions are asked of
every victim, on decisions that it really meets (`ObservationSampler`), before its returns are believed. They
are the field's list: Athalye 2018 (arXiv 1802.00420), Carlini 2019 (arXiv 1902.06705), Croce 2020 (arXiv
2003.01690).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import gymnasium as gym
import torch
from torch import Tensor

from marl_aajr.core.distributions import ActionDistribution, DiagGaussian, MultiCategorical
from marl_aajr.core.objectives import Clean, make_objective, value_and_gradient
from marl_aajr.core.policy import differentiable
from marl_aajr.core.threat import PerturbationSet
from marl_aajr.evaluation.result import Check, Verdict
from marl_aajr.victims import Victim, VictimPolicy
from marl_aajr.victims.stepper import DecisionBatch

_PER_STEP = 32
"""Rows kept of each step, so that one long episode does not fill the sample."""


@dataclass(frozen=True)
class DecisionSample:
    """Decisions of agents that share a policy.

    Attributes:
        agent: one of them.
        policy: theirs, with each row's legal actions and state.
        obs: network inputs, `[B, d]`.
    """

    agent: str
    policy: VictimPolicy
    obs: Tensor


@dataclass
class ObservationSampler:
    """Keeps a random part of the decisions that policies meet; a `StepCallback`.

    Attributes:
        generator: chooses the rows.
    """

    generator: torch.Generator
    _inputs: dict[str, list[Tensor]] = field(default_factory=dict)
    _policies: dict[str, list[VictimPolicy]] = field(default_factory=dict)

    def __call__(self, batches: Sequence[DecisionBatch], episode: Tensor) -> None:
        for batch in batches:
            self._keep(batch.agent, batch.policy, batch.inputs)

    def _keep(self, agent: str, policy: VictimPolicy, inputs: Tensor) -> None:
        chosen = torch.randperm(len(inputs), generator=self.generator)[:_PER_STEP]
        self._inputs.setdefault(agent, []).append(inputs[chosen])
        self._policies.setdefault(agent, []).append(policy.select(chosen))

    def samples(self, agents: list[list[str]], *, rows: int) -> list[DecisionSample]:
        """At most `rows` decisions of each group of agents."""
        found = []
        for group in agents:
            if group[0] not in self._inputs:
                continue
            inputs = torch.cat(self._inputs[group[0]])
            chosen = torch.randperm(len(inputs), generator=self.generator)[:rows]
            policy = VictimPolicy.joined(self._policies[group[0]])
            found.append(DecisionSample(group[0], policy.select(chosen), inputs[chosen]))
        return found


_FORWARDS = 5
_SAME = 1e-4
_NOISES = 20
_SATURATED = 1e-6
_HIDDEN_SHARE = 0.01
_FLAT_SHARE = 0.1
_SATURATED_SHARE = 0.1


@dataclass(frozen=True)
class Health:
    """The findings about one policy.

    Attributes:
        agent: one of the agents that it plays for.
        rows: decisions looked at.
        differentiable: whether torch can follow the policy to its inputs.
        spread: largest difference between the outputs of five calls at the same observations.
        zero_gradient: share of decisions where the attack's objective has no gradient.
        hidden: share of decisions without a gradient where noise in the set does change the objective.
        saturated: share of decisions where all probability is on one action (1 − p < 1e-6), or where a
            Gaussian's mean lies beyond the actions' bounds.
        sigma: mean σ of a Gaussian, in units of half the actions' range where they have one; None: discrete.
    """

    agent: str
    rows: int
    differentiable: bool
    spread: float
    zero_gradient: float
    hidden: float
    saturated: float
    sigma: float | None


def examine(
    sample: DecisionSample, victim: Victim, perturbations: PerturbationSet, *, generator: torch.Generator
) -> Health:
    """Look at one policy.

    Args:
        sample: decisions that it met.
        victim: whose policy it is.
        perturbations: the largest set that it will be attacked in, in units of its network.
        generator: of the noise.
    """
    policy, obs = sample.policy, sample.obs
    with torch.no_grad():
        outputs = policy(obs)
        again = torch.stack([policy(obs) for _ in range(_FORWARDS - 1)])
    spread = (again - outputs).abs().masked_fill(again == outputs, 0.0).max().item()
    gaussian = isinstance(policy.distribution, DiagGaussian)
    g = make_objective("kl" if gaussian else "margin").bind(policy, Clean(outputs))
    # The margin is asked at δ = 0, the KL divergence, which is flat there, at a random δ.
    start = perturbations.sample(obs, generator=generator) if gaussian else torch.zeros_like(obs)
    traceable = differentiable(policy, obs)
    flat = torch.ones(len(obs), dtype=torch.bool)
    if traceable:
        flat = value_and_gradient(g, obs, start)[1].abs().amax(-1) == 0
    moved = torch.zeros_like(flat)
    with torch.no_grad():
        here = g(obs + start)
        for _ in range(_NOISES):
            there = g(obs + perturbations.sample(obs, generator=generator))
            moved |= (there - here).abs() > max(_SAME, spread)
    return Health(
        agent=sample.agent,
        rows=len(obs),
        differentiable=traceable,
        spread=spread,
        zero_gradient=flat.float().mean().item(),
        hidden=(flat & moved).float().mean().item(),
        saturated=_saturated(policy.distribution, outputs, victim, sample.agent).float().mean().item(),
        sigma=_sigma(policy.distribution, outputs, victim, sample.agent),
    )


def report(health: Sequence[Health]) -> list[Check]:
    """The answers, over all policies."""
    return [_randomised(health), _masked(health), _saturation(health), *_inflation(health)]


def _saturated(distribution: ActionDistribution, outputs: Tensor, victim: Victim, agent: str) -> Tensor:
    if isinstance(distribution, DiagGaussian):
        unit = victim.normalize_actions and _bounded(victim, agent)
        return (distribution.mode(outputs).abs() > 1).any(-1) if unit else torch.zeros(len(outputs)).bool()
    parts = distribution.split(outputs) if isinstance(distribution, MultiCategorical) else (outputs,)
    # 1 − p of the greedy action as the sum of the others: in float32 1 − p itself is rounding.
    rest = [torch.softmax(y.double(), -1).sort(-1).values[:, :-1].sum(-1) for y in parts]
    return (torch.stack(rest) < _SATURATED).all(0)


def _sigma(distribution: ActionDistribution, outputs: Tensor, victim: Victim, agent: str) -> float | None:
    if not isinstance(distribution, DiagGaussian):
        return None
    sigma = distribution.split(outputs)[1].exp()
    space = victim.action_spaces[agent]
    assert isinstance(space, gym.spaces.Box)
    if _bounded(victim, agent) and not victim.normalize_actions:
        sigma = sigma / torch.from_numpy((space.high - space.low) / 2)
    return sigma.mean().item()


def _bounded(victim: Victim, agent: str) -> bool:
    space = victim.action_spaces[agent]
    return isinstance(space, gym.spaces.Box) and space.is_bounded()


def _randomised(health: Sequence[Health]) -> Check:
    worst = max(health, key=lambda h: h.spread)
    if worst.spread <= _SAME:
        return Check("deterministic policy", "pass", "Five calls at the same observations agree.")
    return Check(
        "deterministic policy",
        "fail",
        f"The policy of {worst.agent} draws random numbers: five calls at the same observation differ by up "
        f"to {worst.spread:.2g}. Attacks must average over them; these did not.",
    )


def _masked(health: Sequence[Health]) -> Check:
    name = "gradients"
    opaque = [h.agent for h in health if not h.differentiable]
    if opaque:
        return Check(
            name,
            "warn",
            f"The policy of {opaque[0]} cannot be differentiated: only attacks without gradients were tried, "
            "and a stronger adversary than they may exist.",
        )
    worst = max(health, key=lambda h: (h.hidden, h.zero_gradient))
    if worst.hidden > _HIDDEN_SHARE:
        return Check(
            name,
            "fail",
            f"Gradient masking: in {worst.hidden:.0%} of the decisions of {worst.agent} the gradient is zero "
            "although noise changes what the attacks maximise. Gradient attacks prove nothing here.",
        )
    verdict: Verdict = "warn" if worst.zero_gradient > _FLAT_SHARE else "pass"
    text = f"The gradient is zero in {worst.zero_gradient:.0%} of the decisions of {worst.agent}"
    if verdict == "warn":
        text += ", and noise changes nothing there either: the policy does not look"
    return Check(name, verdict, f"{text}.")


def _saturation(health: Sequence[Health]) -> Check:
    worst = max(health, key=lambda h: h.saturated)
    if worst.saturated <= _SATURATED_SHARE:
        return Check("saturation", "pass", f"{worst.saturated:.0%} of the decisions are saturated.")
    what = "a mean beyond the actions' bounds" if worst.sigma is not None else "probability 1 in float32"
    return Check(
        "saturation",
        "warn",
        f"In {worst.saturated:.0%} of the decisions {worst.agent} is saturated ({what}): attacks on the KL "
        "divergence see no gradient there. Rely on margins and on attacks without gradients.",
    )


def _inflation(health: Sequence[Health]) -> list[Check]:
    gaussian = [h for h in health if h.sigma is not None]
    if not gaussian:
        return []
    worst = max(gaussian, key=lambda h: h.sigma or 0.0)
    assert worst.sigma is not None
    if worst.sigma <= 1:
        return [Check("σ inflation", "pass", f"Mean σ is at most {worst.sigma:.2g} of half the range.")]
    return [
        Check(
            "σ inflation",
            "warn",
            f"The mean σ of {worst.agent} is {worst.sigma:.2g}, more than half the range of its actions: its "
            "KL divergences look small because it is noisy, and sampled actions hide what an attack does.",
        )
    ]
