"""The request for a certificate, and the certificate: what `certify` is asked, and what it writes.

A file in RUN/certificates is `Certificate.model_dump_json()`, and `Certificate.model_validate_json` reads it.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import AfterValidator, Field, FiniteFloat, model_validator

from marl_aajr.core.threat import Norm, PerturbationSet
from marl_aajr.evaluation.attack_entries import Attacks
from marl_aajr.evaluation.outcomes import AttackSpec, Radius, ResultModel, Units
from marl_aajr.evaluation.protocol import ChannelNames, Sizes, SmoothingText
from marl_aajr.evaluation.result import PlayedEnvironment
from marl_aajr.training.fields import AgentNames, Count, Positive, Section, Whole, some
from marl_aajr.victims.noise import ReadSmoothing

Share = Annotated[FiniteFloat, Field(ge=0, le=1)]
Numbers = float | tuple[float, ...]


class CertificateRequest(Section):
    """What is to be certified, and what it is held against.

    Attributes:
        epsilons: sizes of the perturbation sets, in `units`.
        norm: norm of epsilon: every feature on its own (`linf`), or the length of the whole perturbation.
        units: units of epsilon: the environment's, or those behind the observation filter; None: it must be
            said where a policy has a filter.
        mask: per feature of an observation, whether it can be perturbed; None: all can.
        scale: per feature, the size > 0 of one unit of epsilon; None: 1.
        channels: channels of observations that can be perturbed, such as `messages`, as the environment or
            `env.channels` names them; agents that observe none of them are left out; None: all.
        low: lower bound of perturbed observations, a number or one per feature; None: none.
        high: upper bound of perturbed observations, a number or one per feature; None: none.
        attacks: names of `list attacks`, played on the same decisions. Without any they are `pgd-margin` from
            five starts, `pgd-targeted` and `pgd-strong-margin`; for Box actions `pgd` from five starts and
            `pgd-strong`.
        smoothing: let the team vote under Gaussian noise, `SIGMA:SAMPLES` as in `evaluate`, and certify the
            votes, of any network, by more noise; None: bounds certify it as it plays.
        samples: draws of noise that the votes of each decision are certified by.
        alpha: probability with which the certificate of a decision by votes may be wrong.
        episodes: unattacked episodes, whose greedy decisions are looked at.
        seed: seed of the episodes and of the attacks.
        team: team whose decisions are looked at; None: the only one, or the largest.
        agents: agents of the team whose decisions are looked at; None: all.
    """

    epsilons: Annotated[Sizes, AfterValidator(some)] = (0.01, 0.05, 0.1)
    norm: Norm = "linf"
    units: Units | None = None
    mask: tuple[bool, ...] | None = None
    scale: tuple[Positive, ...] | None = None
    channels: Annotated[ChannelNames, AfterValidator(some)] | None = None
    low: Numbers | None = None
    high: Numbers | None = None
    attacks: Attacks = ()
    smoothing: SmoothingText | None = None
    samples: Count = 1000
    alpha: Annotated[float, Field(gt=0, lt=0.5)] = 0.001
    episodes: Count = 10
    seed: Whole = 0
    team: str | None = None
    agents: AgentNames | None = None

    @model_validator(mode="after")
    def _draws_are_of_votes(self) -> CertificateRequest:
        defaults = type(self).model_fields
        given = [name for name in ("samples", "alpha") if getattr(self, name) != defaults[name].default]
        if self.smoothing is None and given:
            raise ValueError(
                f"expected smoothing with {' and '.join(given)}, which certify votes, got none; give "
                "smoothing, such as 0.1:100"
            )
        return self

    def perturbations(self, epsilon: float) -> PerturbationSet:
        """The set of one size, in `units`."""
        return PerturbationSet(epsilon=epsilon, norm=self.norm, **self.limits)

    @property
    def limits(self) -> dict[str, Any]:
        """What limits the set beside its size, by name."""
        return {name: getattr(self, name) for name in ("mask", "scale", "channels", "low", "high")}


class CertifiedSize(ResultModel):
    """The decisions at one size; all shares are of all decisions.

    Attributes:
        epsilon: the size.
        interval: share that interval bounds certify; None of votes.
        certified: share that is certified: no perturbation of this size changes them.
        attacked: share that the attacks changed; between the two, nobody knows.
        mean_change: of Box actions, the mean over decisions of the bound on how far the mean of the action
            moves, in its furthest component; None of others, and where votes bound nothing.
        whole_steps: of votes, the share of steps in which the decisions of all agents are certified at once;
            None of others.
    """

    epsilon: Radius
    interval: Share | None
    certified: Share
    attacked: Share
    mean_change: FiniteFloat | None = None
    whole_steps: Share | None = None


class Votes(ResultModel):
    """The noise that a team votes under, and how its votes were certified.

    Attributes:
        smoothing: the noise and the votes of a decision.
        samples: draws of noise that each was certified by.
        alpha: the probability with which the certificate of one decision, or of one whole step, may be wrong.
        abstained: share of decisions of which nothing can be said: too few draws agree with the choice.
    """

    smoothing: ReadSmoothing
    samples: int
    alpha: float
    abstained: Share


class Certificate(ResultModel):
    """What is proven of the greedy decisions of unattacked episodes, and what attacks found on the same ones.

    A decision of Box actions counts as changed where some component of the mean moves by more than one
    standard deviation of the unattacked policy, as in evaluations.

    Attributes:
        env: the environment.
        teams: the team of each agent.
        team: the team whose decisions these are.
        agents: the agents among them.
        units: of ε.
        norm: of ε.
        seed: of episodes and attacks.
        episodes: how many.
        decisions: how many of them in all.
        continuous: whether actions are Box.
        perturbations: mask, scale, channels and limits of the perturbation set, where there are some.
        votes: how votes were certified; None: bounds certified what one pass decides.
        attacks: as they were run, at the first size.
        sizes: one for each ε, the smallest first.
        largest: the largest ε that each decision is certified for, sorted; 0 where none was found.
        reach: the largest ε that was looked at for it.
        rounding: the largest margin that was taken off for rounding, in the units of the network's outputs.
    """

    env: PlayedEnvironment
    teams: dict[str, str]
    team: str
    agents: tuple[str, ...]
    units: Units
    norm: Norm
    seed: int
    episodes: int = Field(ge=1)
    decisions: int = Field(ge=1)
    continuous: bool = False
    perturbations: dict[str, Numbers | tuple[bool, ...] | tuple[str, ...]] = Field(default_factory=dict)
    votes: Votes | None = None
    attacks: tuple[AttackSpec, ...]
    sizes: tuple[CertifiedSize, ...] = Field(min_length=1)
    largest: tuple[FiniteFloat, ...]
    reach: Radius
    rounding: FiniteFloat

    def share(self, epsilon: float) -> float:
        """The share of decisions that are certified for a size up to `reach`."""
        return sum(size >= epsilon for size in self.largest) / self.decisions
