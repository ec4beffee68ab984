"""ATLA as a method: its settings, and which side an iteration trains."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

from marl_aajr.core.adversary_actions import KINDS, AdversaryActions, Kind, PAADActions, adversary_actions
from marl_aajr.core.checks import Schedule, as_values, maximum, one_of, raised, value_at, whole
from marl_aajr.core.environment_values import agent_names
from marl_aajr.core.threat import Norm, PerturbationSet
from marl_aajr.regularizers import Regularizer, make_regularizer, settings_of

_PLAIN = PerturbationSet(epsilon=1.0)


@dataclass(frozen=True, kw_only=True)
class ATLA:
    """ATLA: a team and the adversaries of its agents learn in alternation.

        max_π min_ν  E[ Σ_t r(s_t, a_t) ],   a_t ~ π(· | s_t + δ_t),   δ_t = Π_Δ(ε M · clamp(ν(s_t), −1, 1))

    The adversaries ν are policies of their own, trained by PPO as the team is, on minus its reward (Zhang et
    al. 2021, arXiv 2101.08452, algorithm 1); or they choose where to move the policy, and an ascent finds the
    δ that does it (`adversary: pa-ad`: PA-ATLA, Sun et al. 2022, arXiv 2106.05087). A run is one ordinary run
    of PPO on a game of two sides (`marl_aajr.rollout.perturbed`); an iteration trains one of them, as its
    number says, and leaves the other as it is. A run's environment steps are those of both sides together.

    Or they act: with `adversary: replace` an agent's action is its adversary's with probability α = `epsilon`
    (the PR-MDP of Tessler et al. 2019, arXiv 1901.09184, which alternates its two sides as well):

        max_π min_ν  E[ Σ_t r(s_t, ã_t) ],   ã_t = ā_t ~ ν(· | s_t) with probability α, else a_t ~ π(· | s_t)

    The paper trains each side for one iteration in turn and perturbs in full from the beginning, by an
    adversary that is still random: here that is `ramp: null`. With a ramp, ε rises from 0, and where it is
    0 the team alone is trained. Both sides sample their actions, whichever is trained.

    Attributes:
        adversary: `sa-rl` (its action is the perturbation), `pa-ad` (a direction of the policy) or `replace`
            (an action in the place of the agent's); see `marl_aajr.core.adversary_actions`. Where ε changes
            few actions, `sa-rl` learns slowly: in simple_spread at 0.1 it is as harmless as noise after
            300,000 steps, which `pa-ad` is not.
        epsilon: radius of the perturbation set, in units of the environment's observations, also where a
            filter normalises them; of `replace` the probability α; number or schedule over environment
            steps.
        norm: `"linf"` or `"l2"`.
        mask: per feature, whether it can be perturbed.
        scale: per feature, the size of one unit of ε.
        low: lower bound of perturbed observations.
        high: upper bound of perturbed observations.
        channels: names of what can be perturbed, such as `[messages]`; agents that observe none of them are
            not attacked.
        agents: the attacked agents; None: all.
        team_iterations: iterations in a row that train the team.
        adversary_iterations: iterations in a row that then train the adversaries.
        adversary_entropy_coeff: weight of their entropy bonus; a number or schedule.
        regularizer: a regularizer for the team, by name and settings as under `method`
            (the paper's ATLA-SA: `{name: smooth_policy}`); None: nothing. The ramp raises it too.
        steps: K, steps of the ascent of `pa-ad`; see `PAADActions` for what fewer cost and save.
        step_size: η as a fraction of ε, of the ascent of `pa-ad`.
    """

    name: ClassVar[str] = "atla"
    summary: ClassVar[str] = "alternates with learned adversaries of what agents see (ATLA) or do (PR-MDP)"

    adversary: Kind = "sa-rl"
    epsilon: Schedule = 0.1
    norm: Norm = "linf"
    mask: tuple[bool, ...] | None = None
    scale: tuple[float, ...] | None = None
    low: float | tuple[float, ...] | None = None
    high: float | tuple[float, ...] | None = None
    channels: tuple[str, ...] | None = None
    agents: tuple[str, ...] | None = None
    team_iterations: int = 1
    adversary_iterations: int = 1
    adversary_entropy_coeff: Schedule = 0.0
    regularizer: Mapping[str, Any] | None = None
    steps: int = PAADActions.steps
    step_size: float = PAADActions.step_size

    def __post_init__(self) -> None:
        schedules = ("epsilon", "adversary_entropy_coeff")
        as_values(self, schedules=schedules, tuples=("mask", "scale", "low", "high", "channels"))
        if self.agents is not None:
            object.__setattr__(self, "agents", agent_names(self.agents))
        one_of("adversary", self.adversary, KINDS)
        PAADActions(steps=self.steps, step_size=self.step_size)
        whole("team_iterations", self.team_iterations)
        whole("adversary_iterations", self.adversary_iterations)
        if (regularizer := self.team_regularizer()) is not None:
            object.__setattr__(self, "regularizer", settings_of(regularizer))
        if maximum(self.epsilon) == 0:
            raise ValueError("expected an epsilon > 0, got 0; for no perturbation use method none")
        if self.adversary == "replace" and (maximum(self.epsilon) > 1 or self.set_of(1.0) != _PLAIN):
            raise ValueError(
                "expected an epsilon of at most 1, a probability, and nothing that limits observations for "
                f"adversary replace, got epsilon {maximum(self.epsilon):g} and {self.set_of(1.0)}"
            )
        self.set_of(1.0)

    @property
    def actions(self) -> AdversaryActions:
        """The meaning of the adversaries' actions."""
        ascent = {"steps": self.steps, "step_size": self.step_size}
        return adversary_actions(self.adversary, **(ascent if self.adversary == "pa-ad" else {}))

    def team_regularizer(self) -> Regularizer | None:
        """The regularizer of the team, as it was given."""
        if self.regularizer is None:
            return None
        if not isinstance(self.regularizer, Mapping) or "name" not in self.regularizer:
            raise ValueError(
                f"expected a regularizer such as {{name: smooth_policy}}, got {self.regularizer!r}"
            )
        return make_regularizer(**{str(key): value for key, value in self.regularizer.items()})

    def ramped(self, start: float, end: float) -> Self:
        """The same with ε, if it is a number, rising from 0 at environment step `start` to `end`."""
        return replace(self, epsilon=raised(self.epsilon, start, end))

    def trains_adversaries(self, *, iteration: int, env_steps: int) -> bool:
        """Whether the iteration that follows so many others trains the adversaries, or else the team."""
        place = iteration % (self.team_iterations + self.adversary_iterations)
        return place >= self.team_iterations and value_at(self.epsilon, env_steps) > 0

    def perturbations(self, env_steps: float) -> PerturbationSet | None:
        """Δ at an environment step; None where ε is 0."""
        epsilon = value_at(self.epsilon, env_steps)
        return None if epsilon == 0 else self.set_of(epsilon)

    def set_of(self, epsilon: float) -> PerturbationSet:
        """Δ of a radius."""
        names = ("norm", "mask", "scale", "low", "high", "channels")
        return PerturbationSet(epsilon=epsilon, **{name: getattr(self, name) for name in names})
