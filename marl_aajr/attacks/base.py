"""The contract of every observation attack: it proposes, the base class checks and evaluates.

    perturb:  s ↦ s + δ,  δ ∈ Δ(s)

A subclass writes `Attack.run` and nothing else. An attack never grades itself: its proposal is refused
where it exceeds the budget, projected, and evaluated by asking the policy anew.

Some attacks must know whose policy they face (`Attack.against`), or play first (`Attack.ready`;
`marl_aajr.adversaries.learned`). Some remember an episode, or have no size (`marl_aajr.attacks.faults`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar, Literal, Self, get_args

import torch
from torch import Tensor

from marl_aajr.attacks.episode_memory import EpisodeMemory, RememberedRows
from marl_aajr.core.bound_objective import BoundObjective, value_at
from marl_aajr.core.channels import Channels, held
from marl_aajr.core.checks import check_finite
from marl_aajr.core.distributions import ActionDistribution, DiagGaussian
from marl_aajr.core.objectives import Clean, Custom, Objective, Surrogate, make_objective
from marl_aajr.core.policy import Policy
from marl_aajr.core.seeds import Randomness
from marl_aajr.core.threat import Norm, PerturbationSet, SetNorm, Unlimited
from marl_aajr.victims import Victim

Access = Literal["none", "queries", "gradients", "surrogate", "learned"]
"""The access to the policy that an attack needs: none, its outputs, its gradients, the gradients of another
policy, or training against it.

The cross-checks rest on it: an attack with gradients that loses to one without is blind (gradient masking).
"""

AUTO = "auto"
"""The objective that fits the policy: `margin` for discrete actions, `kl` for Gaussian ones."""


class BudgetError(ValueError):
    """An attack asked for more than its perturbation set allows."""


@dataclass(frozen=True)
class Attacked:
    """One batch under attack, as the base class evaluated it.

    Attributes:
        delta: the perturbation δ, in the set, `[B, d]`.
        perturbed: what the policy is shown, s + δ, `[B, d]`.
        clean_outputs: distribution inputs at s, `[B, m]`.
        outputs: distribution inputs at s + δ, `[B, m]`.
        success: whether the greedy action changed, `[B]` bool (see `greedy_action_changed`).
        clean_value: the attack's objective g at δ = 0, `[B]`.
        value: g at δ, `[B]`.
    """

    delta: Tensor
    perturbed: Tensor
    clean_outputs: Tensor
    outputs: Tensor
    success: Tensor
    clean_value: Tensor
    value: Tensor

    def split(self, counts: Sequence[int]) -> list[Attacked]:
        """Consecutive batches of so many rows."""
        columns = (getattr(self, column.name).split(counts) for column in fields(self))
        return list(map(Attacked, *columns))


@dataclass(frozen=True, kw_only=True)
class Attack(ABC):
    """An adversary that shows the policy s + δ instead of s. A value: compare it, print it, pickle it.

    Attributes:
        perturbations: the set Δ that δ must stay in.
        objective: g, what the adversary maximises and is evaluated by: `"kl"`, `"margin"`, `"value"` (of a
            policy with a critic), `"auto"` (`AUTO`), or an `Objective` of your own.

    Raises:
        ValueError: an unknown objective, or one that needs more than observations (`"surrogate"`).

    Example:
        >>> attack = PGD(perturbations=PerturbationSet(epsilon=0.1), steps=20)
        >>> attack(policy, obs, generator=torch.Generator().manual_seed(0)).success
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    access: ClassVar[Access] = "gradients"
    acts_jointly: ClassVar[bool] = False
    """Whether it chooses for all attacked agents of a step at once: see `choose_actions`."""
    sized: ClassVar[bool] = True
    """Whether δ is held to a radius ε; if not, its set is `Unlimited`."""
    norms: ClassVar[tuple[SetNorm, ...]] = get_args(Norm)  # that the radius may be in
    _mixes_sizes: ClassVar[bool] = False

    perturbations: PerturbationSet
    objective: str | Objective = AUTO

    def __init_subclass__(cls, *, mixes_sizes: bool = False, **kwargs: Any) -> None:
        """See the property `mixes_sizes`, which a subclass has to claim for itself."""
        super().__init_subclass__(**kwargs)
        cls._mixes_sizes = mixes_sizes

    def __post_init__(self) -> None:
        if self.sized == isinstance(self.perturbations, Unlimited):
            wanted = "a set with a radius" if self.sized else "an Unlimited set: it has no size"
            raise ValueError(f"expected {wanted} for the attack {self.name!r}, got {self.perturbations}")
        if self.objective != AUTO and isinstance(make_objective(self.objective), Surrogate):
            raise ValueError(
                "expected an objective out of auto, kl, margin for an attack, got 'surrogate', which needs "
                "actions and advantages"
            )

    @abstractmethod
    def run(self, policy: Policy, obs: Tensor, *, generator: torch.Generator) -> Tensor:
        """Propose δ.

        Args:
            policy: the policy under attack.
            obs: clean observations s, `[B, d]`; a copy of its own.
            generator: the only source of randomness.

        Returns:
            δ, `[B, d]`, within `perturbations` up to rounding.
        """

    @property
    def mixes_sizes(self) -> bool:
        """Whether `run` takes batches of several sizes and generators as one, to the same numbers.

        Then the perturbation set may be `PerturbationSets`, and the generator `RowGenerators`. A class says
        so, `class MyAttack(Attack, mixes_sizes=True)`; a function as the objective may look at several rows.
        """
        return self._mixes_sizes and not callable(self.objective) and not isinstance(self.objective, Custom)

    @property
    def ready(self) -> bool:
        """Whether it can attack as it is; False where it must be fitted first."""
        return True

    def held_to(self, channels: Channels, width: int) -> Self | None:
        """The attack on an agent that observes these channels in d = `width` features; None: in vain."""
        inside = held(self.perturbations, channels, width)
        return None if inside is None else replace(self, perturbations=inside)

    def against(self, victim: Victim, agent: str) -> Attack:
        """The attack on the policy of one agent, and of those that are taken `together` with it.

        Raises:
            ValueError: the victim lacks what the attack needs.
        """
        return self

    def together(self, agents: Collection[str]) -> list[list[str]]:
        """Agents of one module and one filter in groups that one call of the attack can take."""
        return [list(agents)]

    def choose_actions(
        self, seen: Mapping[str, Tensor], *, generator: torch.Generator
    ) -> Mapping[str, Tensor]:
        """The actions of an adversary that `acts_jointly`, for all attacked agents, once in each step.

        The agents' policies are then attacked batch by batch, by `with_actions` of the batch's rows.

        Args:
            seen: by attacked agent, its network's inputs in every copy of the game, `[E, d]`; zeros where it
                is not attacked in this step. An agent who acts nowhere is left out.
            generator: the only source of randomness.

        Returns:
            Actions for each of these agents, `[E, c]`.
        """
        raise NotImplementedError(f"{type(self).__name__} does not act for several agents at once")

    def with_actions(self, actions: Tensor) -> Attack:
        """The attack on a batch whose rows have these actions of `choose_actions`, `[B, c]`."""
        raise NotImplementedError(f"{type(self).__name__} does not act for several agents at once")

    def remember(self, num_envs: int, *, seed: int) -> EpisodeMemory | None:
        """A memory of the episodes that begin now in E copies of a game; None: it remembers nothing.

        Whoever plays keeps it, shows it by `with_memory`, and moves it on with the game.
        """
        return None

    def with_memory(self, rows: RememberedRows) -> Attack:
        """The attack on a batch of which this is remembered."""
        raise NotImplementedError(f"{type(self).__name__} remembers nothing")

    def clean(self, policy: Policy, obs: Tensor, outputs: Tensor) -> Clean:
        """The clean batch as the objective knows it: outputs `[B, m]` at `obs`, and the policy's critic."""
        return Clean(outputs, values=policy.critic)

    def __call__(self, policy: Policy, obs: Tensor, *, generator: Randomness) -> Attacked:
        """Attack a batch, verify the budget, and evaluate the result.

        Args:
            policy: the policy under attack; no parameter's `.grad` changes.
            obs: clean observations s, `[B, d]`.
            generator: source of random starts and noise; of `RowGenerators` where it `mixes_sizes`.

        Raises:
            BudgetError: the attack left its set by more than rounding.
            NonFiniteError: it returned a NaN or an infinity.
            ValueError: observations that are not float `[B, d]`, or an objective that does not fit.
        """
        if obs.ndim != 2 or not obs.is_floating_point():
            raise ValueError(
                f"expected float observations [B, d] to attack, got {obs.dtype} {list(obs.shape)}; "
                "flatten images, and convert integers in the environment"
            )
        obs = obs.detach()
        if (own := self.perturbations.fitting(policy.block)) is not self.perturbations:
            return replace(self, perturbations=own)(policy, obs, generator=generator)
        objective = self.objective_for(policy.distribution)
        with policy.fixed():
            run: Any = self.run  # which takes generators of several batches where it mixes sizes
            proposed: Tensor = run(policy, obs.clone(), generator=generator).detach()
            self._verify(proposed, obs)
            delta = self.perturbations.project(proposed, obs)
            return self._evaluate(policy.redrawn(), obs, delta, objective)

    def at(self, epsilon: float) -> Self:
        """The same attack with another radius; itself where it has none."""
        if not self.sized:
            return self
        return replace(self, perturbations=replace(self.perturbations, epsilon=epsilon))

    def objective_for(self, distribution: ActionDistribution) -> Objective:
        """The objective against a policy of this kind.

        Raises:
            ValueError: it is not defined for the distribution.
        """
        objective = make_objective(resolve_objective(self.objective, distribution))
        objective.check(distribution)
        return objective

    def bound(self, policy: Policy, obs: Tensor) -> BoundObjective:
        """g of a batch at its clean observations `[B, d]`."""
        objective = self.objective_for(policy.distribution)
        return objective.bind(policy, self.clean(policy, obs, policy.once(obs)))

    def _verify(self, delta: Tensor, obs: Tensor) -> None:
        if delta.shape != obs.shape:
            raise BudgetError(
                f"expected {self.name} to return a delta {list(obs.shape)}, got {list(delta.shape)}"
            )
        check_finite(f"the perturbation of {self.name}", delta)
        outside = ~self.perturbations.contains(delta, obs)
        if outside.any():
            distance = (delta - self.perturbations.project(delta, obs)).abs().max().item()
            raise BudgetError(
                f"expected {self.name} to stay in {self.perturbations}, got {int(outside.sum())} of "
                f"{len(obs)} rows outside, by up to {distance:.3g}; project in its run()"
            )

    @torch.no_grad()
    def _evaluate(self, policy: Policy, obs: Tensor, delta: Tensor, objective: Objective) -> Attacked:
        perturbed = obs + delta
        clean_outputs, outputs = policy(obs), policy(perturbed)
        check_finite("the policy's outputs at clean observations", clean_outputs)
        check_finite("the policy's outputs at perturbed observations", outputs)
        g = objective.bind(policy, self.clean(policy, obs, clean_outputs))
        return Attacked(
            delta=delta,
            perturbed=perturbed,
            clean_outputs=clean_outputs,
            outputs=outputs,
            success=greedy_action_changed(policy.distribution, clean_outputs, outputs),
            clean_value=value_at(g, policy, obs, clean_outputs),
            value=value_at(g, policy, perturbed, outputs),
        )


def resolve_objective(objective: str | Objective, distribution: ActionDistribution) -> str | Objective:
    """The objective itself; in the place of `AUTO` the one that fits policies of this kind."""
    if objective != AUTO:
        return objective
    return "kl" if isinstance(distribution, DiagGaussian) else "margin"


def greedy_action_changed(distribution: ActionDistribution, clean: Tensor, outputs: Tensor) -> Tensor:
    """Whether the greedy action at `outputs` differs from that at `clean`, `[B, m] -> [B]` bool.

    Continuous actions always move a little: there it means by more than one standard deviation of the clean
    policy, in some component. A policy with a large σ looks robust by this measure; its return does not.
    """
    if isinstance(distribution, DiagGaussian):
        mean, log_std = distribution.split(clean)
        return ((distribution.mode(outputs) - mean).abs() > log_std.exp()).any(-1)
    before, after = distribution.mode(clean), distribution.mode(outputs)
    return (before != after).reshape(len(before), -1).any(-1)
