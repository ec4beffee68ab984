"""The attack that a share of the rollouts is played under, as a value: minimax training on-policy.

    max_θ E[ Σ_t r(s_t, a_t) ],   a_t ~ π_θ(· | s_t + δ_t),   δ_t the end of an ascent on the acting policy

Agents act on what the adversary shows them, and PPO learns from what they saw, with the action and the
log-probability there: its loss is exactly that of the perturbed game ("Adv-PPO"; SA-MDP, Zhang et al. 2020,
arXiv 2003.08938). The same loss taken off-policy, at s + δ with actions that were drawn at s, unlearns: see
`marl_aajr.regularizers.augmentation`.

Nothing here knows an environment, a runner or RLlib: `RolloutAttack.perturb` maps observations to δ.

BARPO (arXiv 2512.01228), which modulates the adversary's strength, is not offered: of its definition no more
than the abstract was at hand. A schedule of ε, or a radius drawn for each episode, is what there is instead.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, Self, get_args

import torch
from torch import Tensor

from marl_aajr.core.ascent import steepest
from marl_aajr.core.checks import (
    Schedule,
    as_values,
    maximum,
    one_of,
    positive,
    raised,
    refuse_search_spaces,
    value_at,
    whole,
)
from marl_aajr.core.distributions import ActionDistribution
from marl_aajr.core.end_of_ascent import Ascended, end_of_ascent, from_both_sides
from marl_aajr.core.environment_values import agent_names
from marl_aajr.core.objectives import Need, Objective, ObjectiveLike, make_objective
from marl_aajr.core.policy import Policy
from marl_aajr.core.starts import near_observations
from marl_aajr.core.threat import PerturbationSet, PerturbationSets, SetNorm
from marl_aajr.core.word_budget import WordBudget

CriticReads = Literal["clean", "seen"]
KeptPath = Literal["none", "one", "all"]
AscentStep = Literal["auto", "sign", "normalized", "raw"]


@dataclass(frozen=True, kw_only=True)
class RolloutAttack:
    """Play under a gradient attack on the acting policy, and learn from what was seen.

    The first copies of each env runner are the attacked ones, from the beginning of an episode to its end:
    copies are alike, so that rotating them would change nothing but the returns of both kinds, which would no
    longer be those of whole episodes.

    Attributes:
        share: κ in [0, 1], share of the environment copies that is played under attack; a number or a
            schedule.
        epsilon: ε, radius of the perturbation set, in units of the environment's observations, also where a
            filter normalises them; a number or a schedule. Where it is 0 nobody is attacked.
        epsilon_draw: [a, b], each episode's radius is ε times a number drawn uniformly from this range in
            [0, 1]; None: ε itself.
        objective: quantity that the adversary maximises: `"margin"` (discrete actions), `"kl"` (from two
            mirrored starts, of which the better one counts) or `"value"` (of modules that act with their
            critic at hand). In Python also a function `(outputs [B, m], clean) -> [B]`.
        steps: K ≥ 1, ascent steps.
        step_size: η > 0, size of an ascent step as a fraction of ε; for `raw` steps η itself.
        step: `"sign"` (steepest in L∞), `"normalized"` (in L2), `"raw"` (the gradient itself), or `"auto"`:
            the steepest one in the set's norm.
        norm: norm of the radius: `"linf"` or `"l2"`; of agents that read words `"words"`: ε is the number m
            of words that HotFlip replaces by synonyms (`marl_aajr.rollout.attack.on_words`), a whole one, of
            schedules the next below, and there is no `steps`, `step_size` or `step`.
        mask: per feature, whether it can be perturbed; None: all can.
        scale: per feature, the size > 0 of one unit of ε; None: 1.
        low: lower bound of perturbed observations, a number or one per feature; None: none.
        high: upper bound of perturbed observations, a number or one per feature; None: none.
        channels: names of what can be perturbed, such as `[messages]`, as the environment has them; agents
            that observe none of them are not attacked; None: all of it.
        agents: the attacked agents, whoever they act by; None: all whose modules are trained. Opponents
            that are not (`policies_to_train`) see the truth: a team should not train against misled ones.
        worst_agents: k ≥ 1, fewer than the attacked agents: in each step of each copy, the k whose objective
            rises most see what the adversary shows them, the others the truth
            (`marl_aajr.rollout.attack.worst_agents` says how gains compare); None: all of them.
        attacked_steps: [m, T], m of every T steps of an episode are attacked, at random; None: every step.
        critic: observations that the critic reads: those that the agent has `"seen"`, also at the end of an
            episode or a sample, or `"clean"` ones, as they were. On simple_spread the two do not differ:
            over three seeds of 1 M steps -46.0 and -46.6 under the worst attack of ε 0.1, -31.0 and -31.1
            without attack (plain PPO: -48.3 and -30.3).
        path: points δ_t of each attacked row's path that are kept, with the direction u_t there, for aajr
            with `directions: rollout`: `"one"`, drawn uniformly, `"all"` K, or `"none"`. A run sets it.
        gap_interval: samples of an env runner between two measurements of how much the K steps leave to a
            strong adversary; 0: none.

    Raises:
        ValueError: a setting out of its range.

    Example:
        >>> RolloutAttack(epsilon=0.1, steps=5)
    """

    name: ClassVar[str] = "adversarial_training"
    summary: ClassVar[str] = "agents act under a gradient attack, PPO learns from what they saw (Adv-PPO)"

    share: Schedule = 1.0
    epsilon: Schedule = 0.1
    epsilon_draw: tuple[float, float] | None = None
    objective: ObjectiveLike = "margin"
    steps: int = 5
    step_size: float = 0.5
    step: AscentStep = "auto"
    norm: SetNorm = "linf"
    mask: tuple[bool, ...] | None = None
    scale: tuple[float, ...] | None = None
    low: float | tuple[float, ...] | None = None
    high: float | tuple[float, ...] | None = None
    channels: tuple[str, ...] | None = None
    agents: tuple[str, ...] | None = None
    worst_agents: int | None = None
    attacked_steps: tuple[int, int] | None = None
    critic: CriticReads = "seen"
    path: KeptPath = "none"
    gap_interval: int = 10

    def __post_init__(self) -> None:
        refuse_search_spaces(type(self).__name__, vars(self))
        tuples = ("mask", "scale", "low", "high", "channels", "epsilon_draw", "attacked_steps")
        as_values(self, schedules=("share", "epsilon"), tuples=tuples)
        if self.agents is not None:
            object.__setattr__(self, "agents", agent_names(self.agents))
        if maximum(self.share) > 1:
            raise ValueError(f"expected a share in [0, 1], got {self.share}")
        whole("steps", self.steps)
        whole("gap_interval", self.gap_interval, least=0)
        if self.worst_agents is not None:
            whole("worst_agents", self.worst_agents)
        self._check_step_size()
        one_of("step", self.step, get_args(AscentStep))
        one_of("critic", self.critic, get_args(CriticReads))
        one_of("path", self.path, get_args(KeptPath))
        self._check_ranges()
        self._check_objective()
        self._check_words()
        self.perturbations(1.0)

    def _check_step_size(self) -> None:
        size: object = self.step_size
        if not isinstance(size, int | float):
            raise ValueError(
                f"expected a number as step_size of rollouts under attack, got {size!r}: steps of aajr's own "
                "adversary alone follow a schedule or the curvature ('auto'); leave it out for "
                f"{type(self).step_size:g} of epsilon, or set another fraction"
            )
        positive("step_size", self.step_size, note=" (a fraction of epsilon)")

    def _check_ranges(self) -> None:
        drawn, some_of = self.epsilon_draw, self.attacked_steps
        if drawn is not None and not (len(drawn) == 2 and 0 <= drawn[0] < drawn[1] <= 1):
            raise ValueError(
                f"expected epsilon_draw [a, b], 0 ≤ a < b ≤ 1, fractions of epsilon, got {list(drawn)}"
            )
        if some_of is not None:
            if len(some_of) != 2:
                raise ValueError(f"expected attacked_steps [m, T], got {list(some_of)}")
            some, of = some_of
            whole("m in attacked_steps [m, T]", some)
            whole(f"T in attacked_steps [{some}, T]", of, least=some)

    def _check_words(self) -> None:
        if self.norm != "words":
            return
        sizes = [self.epsilon] if isinstance(self.epsilon, float) else [value for _, value in self.epsilon]
        if wrong := [size for size in sizes if size != int(size)]:
            raise ValueError(
                f"expected a whole number of words as epsilon with norm words, got {wrong[0]:g}; set 1 or 2"
            )
        for name in ("steps", "step_size", "step"):
            if (value := getattr(self, name)) != getattr(RolloutAttack, name):
                raise ValueError(
                    f"expected no {name} with norm words, got {value}: HotFlip takes one step a word; "
                    "leave it out"
                )
        if self.epsilon_draw is not None or self.path != "none":
            raise ValueError(
                f"expected no epsilon_draw and path none with norm words, got {self.epsilon_draw} and "
                f"{self.path}: nothing lies between words"
            )

    def _check_objective(self) -> None:
        if "advantages" in self.adversary.needs:
            raise ValueError(
                f"expected an objective that needs no advantages, got {self.adversary}: while agents act "
                "nobody knows them; use 'margin' or 'kl'"
            )

    @property
    def adversary(self) -> Objective:
        """The objective that the adversary maximises."""
        return make_objective(self.objective)

    def active(self, timestep: float) -> bool:
        """Whether anybody is attacked at this environment step."""
        return value_at(self.share, timestep) > 0 and self.size_at(timestep) > 0

    def size_at(self, timestep: float) -> float:
        """ε at an environment step; of words a whole number."""
        size = value_at(self.epsilon, timestep)
        return float(int(size)) if self.norm == "words" else size

    @property
    def ever(self) -> bool:
        """Whether anybody is ever attacked."""
        return maximum(self.share) > 0 and maximum(self.epsilon) > 0

    def copies(self, num_envs: int, timestep: float) -> int:
        """The number of attacked copies, of so many."""
        return round(value_at(self.share, timestep) * num_envs) if self.active(timestep) else 0

    def ramped(self, start: float, end: float) -> Self:
        """The same with ε, if it is a number, rising from 0 at environment step `start` to `end`."""
        return replace(self, epsilon=raised(self.epsilon, start, end))

    def perturbations(self, epsilon: float | Tensor) -> PerturbationSet:
        """Δ of a radius, or of each row's, `[B, 1]`."""
        names = ("norm", "mask", "scale", "low", "high", "channels")
        limits: dict[str, Any] = {name: getattr(self, name) for name in names}
        if self.norm == "words":
            return WordBudget(epsilon=float(epsilon), **limits)
        one = PerturbationSet(epsilon=1.0 if isinstance(epsilon, Tensor) else epsilon, **limits)
        return PerturbationSets.of(one, epsilon) if isinstance(epsilon, Tensor) else one

    def check(self, distribution: ActionDistribution, *, offers: Collection[Need]) -> None:
        """Raise `ValueError` where the attack needs what an acting policy has not."""
        self.adversary.check(distribution)
        if "critic" in self.adversary.needs and "critic" not in offers:
            raise ValueError(
                "expected a module that acts with a critic of the agent's own observation for "
                f"{self.adversary}, got one without: RLlib's env runners leave it out; use 'margin' or 'kl'"
            )

    def check_memory(self, memory: bool) -> None:
        """Raise `ValueError` where the critic cannot read what it should, of a module that has a memory."""
        if memory and self.critic == "clean":
            raise ValueError(
                "expected critic 'seen' for a module with a memory, got 'clean'; its state follows from what "
                "was seen"
            )

    def check_copies(self, num_envs: int) -> None:
        """Raise `ValueError` where the share gives no copy."""
        most = maximum(self.share)
        if self.ever and round(most * num_envs) == 0:
            raise ValueError(
                f"expected a share that gives at least one of the {num_envs} copies of an env runner, got "
                f"{most:g}; raise it to {1 / num_envs:.2g}, or have more copies"
            )

    def perturb(
        self,
        policy: Policy,
        obs: Tensor,
        *,
        epsilon: float | Tensor,
        generator: torch.Generator,
        keep_path: bool = False,
    ) -> Ascended:
        """Attack observations `[B, d]` of a policy as it acts now; nothing of it changes.

        Args:
            policy: the acting policy, from these observations.
            obs: clean observations, in the units of ε.
            epsilon: the radius; `[B, 1]` for one of each row's own.
            generator: source of the starts.
            keep_path: whether δ_t and v_t are kept; of the better start, where there are two.

        Raises:
            ValueError: norm words, without their synonyms (`marl_aajr.rollout.attack.on_words.attack_on`).
        """
        if self.norm == "words":
            raise ValueError("expected the synonyms of the words with norm words, got none; use attack_on")
        perturbations = self.perturbations(epsilon)
        how: dict[str, Any] = {
            "steps": self.steps,
            "step_size": self.step_size if self.step == "raw" else self.step_size * epsilon,
            "step": steepest(self.norm) if self.step == "auto" else self.step,
            "keep_path": keep_path,
        }
        objective = self.adversary
        with policy.fixed():
            if not objective.flat_at_zero:
                return end_of_ascent(policy, obs, objective, perturbations, **how)
            near = near_observations(perturbations, obs, generator=generator)
            return from_both_sides(policy, obs, objective, perturbations, start=near, how=how)
