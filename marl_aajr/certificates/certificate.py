"""The request for a certificate, and the certificate: what `certify` is asked, and what it writes.

A file in RUN/certificates is `Certificate.model_dump_json()`, and `Certificate.model_validate_json` reads it.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, Field, FiniteFloat

from marl_aajr.core.threat import Norm, PerturbationSet
from marl_aajr.evaluation.attack_entries import Attacks
from marl_aajr.evaluation.outcomes import AttackSpec, Radius, ResultModel, Units
from marl_aajr.evaluation.protocol import Sizes
from marl_aajr.evaluation.result import PlayedEnvironment
from marl_aajr.training.fields import AgentNames, Count, Positive, Section, Whole, some

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
        low: lower bound of perturbed observations, a number or one per feature; None: none.
        high: upper bound of perturbed observations, a number or one per feature; None: none.
        attacks: names of `list attacks`, played on the same decisions. Without any they are `pgd-margin` from
            five starts, `pgd-targeted` and `pgd-strong-margin`; for Box actions `pgd` from five starts and
            `pgd-strong`.
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
    low: Numbers | None = None
    high: Numbers | None = None
    attacks: Attacks = ()
    episodes: Count = 10
    seed: Whole = 0
    team: str | None = None
    agents: AgentNames | None = None

    def perturbations(self, epsilon: float) -> PerturbationSet:
        """The set of one size, in `units`."""
        limits = {name: getattr(self, name) for name in ("norm", "mask", "scale", "low", "high")}
        return PerturbationSet(epsilon=epsilon, **limits)


class CertifiedSize(ResultModel):
    """The decisions at one size; all shares are of all decisions.

    Attributes:
        epsilon: the size.
        interval: share that interval bounds certify.
        certified: share that either kind of bounds certifies: no perturbation of this size changes them.
        attacked: share that the attacks changed; between the two, nobody knows.
        mean_change: of Box actions, the mean over decisions of the bound on how far the mean of the action
            moves, in its furthest component; None of others.
    """

    epsilon: Radius
    interval: Share
    certified: Share
    attacked: Share
    mean_change: FiniteFloat | None = None


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
        perturbations: mask, scale and limits of the perturbation set, where there are some.
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
    perturbations: dict[str, Numbers | tuple[bool, ...]] = Field(default_factory=dict)
    attacks: tuple[AttackSpec, ...]
    sizes: tuple[CertifiedSize, ...] = Field(min_length=1)
    largest: tuple[FiniteFloat, ...]
    reach: Radius
    rounding: FiniteFloat

    def share(self, epsilon: float) -> float:
        """The share of decisions that are certified for a size up to `reach`."""
        return sum(size >= epsilon for size in self.largest) / self.decisions
