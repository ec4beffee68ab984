"""Preflight: questions to a policy that tell whether the attacks have the means to attack it at all.

A gradient attack against a policy that hides its gradients proves nothing. These questions are asked of
every victim, on decisions that it really meets (`ObservationSampler`), before its returns are believed
(Athalye 2018, arXiv 1802.00420; Carlini 2019, arXiv 1902.06705; Croce 2020, arXiv 2003.01690). On the same
decisions a ladder of attacks is climbed, whichever the suite has; `order_checks` checks their order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import NamedTuple

import gymnasium as gym
import torch
from torch import Tensor

from marl_aajr.attacks import FGSM, PGD, Attack, SquareAttack, StrongPGD, Transfer, UniformNoise
from marl_aajr.core.bound_objective import value_and_gradient
from marl_aajr.core.distributions import ActionDistribution, DiagGaussian, MultiCategorical
from marl_aajr.core.objectives import Clean, make_objective
from marl_aajr.core.policy import differentiable
from marl_aajr.core.seeds import Purpose, derived_seed, stream
from marl_aajr.core.threat import PerturbationSet
from marl_aajr.core.word_budget import WordBudget
from marl_aajr.evaluation.evaluator import Evaluator
from marl_aajr.evaluation.order_checks import objective_checks
from marl_aajr.evaluation.prepared_attack import reachable
from marl_aajr.evaluation.result import Check
from marl_aajr.evaluation.word_checks import in_ball, word_objective_checks
from marl_aajr.victims import Victim, VictimPolicy
from marl_aajr.victims.stepper import DecisionBatch

_FORWARDS = 5
_SAME = 1e-4
_NOISES = 20
_SATURATED = 1e-6
_HIDDEN_SHARE = 0.01
_FLAT_SHARE = 0.1
_SATURATED_SHARE = 0.1

_PER_STEP = 32
"""Rows kept of each step, so that one long episode does not fill the sample."""

_PROBED = 256
"""Decisions of each policy that are asked about."""


class DecisionSample(NamedTuple):
    """Decisions of agents that share a policy, as network inputs `[B, d]`; one of the agents is named.

    The policy has each row's legal actions and state.
    """

    agent: str
    policy: VictimPolicy
    obs: Tensor


@dataclass
class ObservationSampler:
    """Keeps a random part of the decisions that policies meet; a `StepCallback`."""

    generator: torch.Generator
    _kept: dict[str, list[tuple[VictimPolicy, Tensor]]] = field(default_factory=dict)

    def __call__(self, batches: Sequence[DecisionBatch], episode: Tensor) -> None:
        for batch in batches:
            chosen = torch.randperm(len(batch.inputs), generator=self.generator)[:_PER_STEP]
            kept = self._kept.setdefault(batch.agent, [])
            kept.append((batch.policy.select(chosen), batch.inputs[chosen]))

    def samples(self, groups: Sequence[Sequence[str]]) -> list[DecisionSample]:
        """At most `_PROBED` decisions of each group of agents."""
        found = []
        for agent in (group[0] for group in groups if group[0] in self._kept):
            policies, inputs = zip(*self._kept[agent], strict=True)
            every = torch.cat(inputs)
            chosen = torch.randperm(len(every), generator=self.generator)[:_PROBED]
            found.append(DecisionSample(agent, VictimPolicy.joined(policies).select(chosen), every[chosen]))
        return found


def attack_checks(
    evaluator: Evaluator, attacks: Sequence[Attack], observed: ObservationSampler
) -> list[Check]:
    """The checks of the policies and of the objective, at the sizes of these attacks; at least one."""
    victim = evaluator.victim
    groups = [g for g in victim.alike(evaluator.env.possible_agents) if set(g) & set(evaluator.agents)]
    reached = reachable(attacks[0], victim, evaluator.env.possible_agents, evaluator.env.channels)
    samples = observed.samples([group for group in groups if group[0] in reached])
    by_size = {a.perturbations.epsilon: a.perturbations for a in attacks}
    noise = UniformNoise(perturbations=in_ball(by_size[max(by_size)]))
    health = [
        examine(
            sample,
            victim,
            evaluator.prepared(noise, sample.agent).perturbations.fitting(sample.policy.block),
            generator=stream(evaluator.seed, Purpose.PROBE),
        )
        for sample in samples
    ]
    if not all(h.differentiable for h in health):
        return report(health)
    seed = derived_seed(evaluator.seed, Purpose.PROBE)
    if words := [own for _, own in sorted(by_size.items()) if isinstance(own, WordBudget)]:
        own = partial(climb, samples, prepared=evaluator.prepared, seed=seed)
        return [*report(health), *word_objective_checks(words, own)]
    transfers = list({a.source: a for a in attacks if isinstance(a, Transfer)}.values())
    gains = {
        epsilon: climb(samples, ladder(by_size[epsilon], transfers), evaluator.prepared, seed=seed)
        for epsilon in sorted(by_size)
    }
    return [*report(health), *objective_checks(gains)]


def ladder(perturbations: PerturbationSet, transfers: Sequence[Transfer] = ()) -> dict[str, Attack]:
    """The attacks that are compared row by row, all on the objective that fits the policy."""
    steps = PGD(perturbations=perturbations, objective="auto", restarts=1)
    rungs: dict[str, Attack] = {
        "noise": UniformNoise(perturbations=perturbations),
        "one step": FGSM(perturbations=perturbations),
        "ten steps": steps,
        "twenty steps": replace(steps, steps=20),
        "strong": StrongPGD(perturbations=perturbations, objective="auto"),
        "square": SquareAttack(perturbations=perturbations),
    }
    others = {f"transfer {t.source}".strip(): replace(t, perturbations=perturbations) for t in transfers}
    return rungs | others


def climb(
    samples: Sequence[DecisionSample],
    rungs: Mapping[str, Attack],
    prepared: Callable[[Attack, str], Attack],
    *,
    seed: int,
) -> dict[str, Tensor]:
    """The gain of each attack on each probed decision; all start from the same random numbers."""
    gains: dict[str, list[Tensor]] = {name: [] for name in rungs}
    for sample in samples:
        for name, attack in rungs.items():
            own, generator = prepared(attack, sample.agent), torch.Generator().manual_seed(seed)
            attacked = own(sample.policy, sample.obs, generator=generator)
            gains[name].append((attacked.value - attacked.clean_value).double())
    return {name: torch.cat(parts) for name, parts in gains.items()}


@dataclass(frozen=True)
class Health:
    """The findings about the policy of an agent, at a number of `rows` of decisions.

    Attributes:
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
    """Look at one policy, at decisions that it met, in the largest set that it will be attacked in.

    The set is in units of its network; the generator draws the noise.
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


def report(health: Sequence[Health]) -> list[Check]:
    """The answers, over all policies."""
    return [_randomised(health), _masked(health), _saturation(health), *_inflation(health)]


def _randomised(health: Sequence[Health]) -> Check:
    worst = max(health, key=lambda h: h.spread)
    if worst.spread <= _SAME:
        return Check("deterministic policy", "pass", "Five calls at the same observations agree.")
    text = (
        f"The policy of {worst.agent} draws random numbers: five calls at the same observation differ by up "
        f"to {worst.spread:.2g}. Attacks must average over them; these did not."
    )
    return Check("deterministic policy", "fail", text)


def _masked(health: Sequence[Health]) -> Check:
    opaque = [h.agent for h in health if not h.differentiable]
    if opaque:
        text = (
            f"The policy of {opaque[0]} cannot be differentiated: only attacks without gradients were tried, "
            "and a stronger adversary than they may exist."
        )
        return Check("gradients", "warn", text)
    worst = max(health, key=lambda h: (h.hidden, h.zero_gradient))
    if worst.hidden > _HIDDEN_SHARE:
        text = (
            f"Gradient masking: in {worst.hidden:.0%} of the decisions of {worst.agent} the gradient is zero "
            "although noise changes what the attacks maximise. Gradient attacks prove nothing here."
        )
        return Check("gradients", "fail", text)
    text = f"The gradient is zero in {worst.zero_gradient:.0%} of the decisions of {worst.agent}"
    if worst.zero_gradient <= _FLAT_SHARE:
        return Check("gradients", "pass", f"{text}.")
    text += ", and noise changes nothing there either: the policy does not look."
    return Check("gradients", "warn", text)


def _saturation(health: Sequence[Health]) -> Check:
    worst = max(health, key=lambda h: h.saturated)
    if worst.saturated <= _SATURATED_SHARE:
        return Check("saturation", "pass", f"{worst.saturated:.0%} of the decisions are saturated.")
    what = "a mean beyond the actions' bounds" if worst.sigma is not None else "probability 1 in float32"
    text = (
        f"In {worst.saturated:.0%} of the decisions {worst.agent} is saturated ({what}): attacks on the KL "
        "divergence see no gradient there. Rely on margins and on attacks without gradients."
    )
    return Check("saturation", "warn", text)


def _inflation(health: Sequence[Health]) -> Iterator[Check]:
    noisy = [(h.sigma, h.agent) for h in health if h.sigma is not None]
    if not noisy:
        return
    sigma, agent = max(noisy, key=lambda found: found[0])
    text = f"Mean σ is at most {sigma:.2g} of half the range."
    if sigma > 1:
        text = (
            f"The mean σ of {agent} is {sigma:.2g}, more than half the range of its actions: its KL "
            "divergences look small because it is noisy, and sampled actions hide what an attack does."
        )
    yield Check("σ inflation", "warn" if sigma > 1 else "pass", text)
