"""Attacks that must play or train before they attack: the contract of `fit`, and adversaries trained by PPO.

SA-RL and PA-AD are not myopic, unlike the other attacks: what they maximise is what the attacked team loses
until the end of the episode. They are as strong as their training, so one that is weaker than PGD says
nothing about the victim (`marl_aajr.evaluation` reports it as undertrained).
"""

from __future__ import annotations

import json
import tempfile
from abc import abstractmethod
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import ClassVar, Literal, Self

import torch
from torch import Tensor

from marl_aajr.adversaries.kinds import DEFAULTS, STEPS_PER_SECOND, check_joint
from marl_aajr.adversaries.observation_game import (
    GAME,
    ObservationAdversaries,
    ObservationThreat,
    features,
)
from marl_aajr.adversaries.request import AdversaryRequest
from marl_aajr.adversaries.store import KEPT, RECORD
from marl_aajr.attacks import Access, Attack
from marl_aajr.core.checks import one_of
from marl_aajr.core.policy import Policy
from marl_aajr.rollout.batched_env import BatchedEnv
from marl_aajr.training.run_directory import RunDirectory
from marl_aajr.victims import Victim, fingerprint


@dataclass(frozen=True, kw_only=True)
class FittedAttack(Attack):
    """An attack that learns from the frozen victim what it needs; `ready` says whether it has."""

    per_size: ClassVar[bool] = False
    """Whether `fit` is for one radius; else what was fitted once serves all."""

    @property
    @abstractmethod
    def ready(self) -> bool:
        """Whether it has been fitted."""

    @property
    def seconds(self) -> float:
        """The seconds that `fit` may take on one core, for whoever waits."""
        return 10.0

    @property
    def unfitted(self) -> ValueError:
        """The error of one that is not `ready`."""
        return ValueError(f"expected a fitted {self.name}, got a fresh one; call fit(victim, env) first")

    @abstractmethod
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
        """Learn from the frozen victim what the attack needs.

        Args:
            victim: the policies that will be attacked; it plays all agents.
            env: copies to play on; left in the middle of some episode.
            agents: the agents that will be attacked, all of one team; what the team earns is to fall.
            seed: of the episodes and of the learning.
            units: of the perturbation set: the environment's, or those behind the observation filter.
            home: folder of the victim's run, which keeps what is worth it; None: nothing is kept.

        Returns:
            The attack, `ready`.
        """


@dataclass(frozen=True, kw_only=True)
class LearnedAttack(FittedAttack):
    """An adversary that was trained, or will be (`fit`), for one size of the perturbation set.

    It learns to attack in every step, each agent by its own size. Under a budget it is no stronger than that:
    it does not know in which steps it may not act, and where a budget scales an agent's size, its actions
    were learned for another size.

    Attributes:
        adversary: folder of a finished adversary (`marl-aajr adversary train`), or what results call it;
            empty: `fit` finds one in the victims' run, or trains it.
        joint: one adversary with one budget for all attacked agents; see `ObservationAdversaries`.
        env_steps: of the training, the search included; None: the kind's default.
        search: how many settings of PPO are tried first; None: the kind's default.
        warm_start: begin with what PGD does.
        actions: how the victims take their actions while it learns; whatever is evaluated later.

    Raises:
        ValueError: a folder without a finished adversary of this kind, or settings out of range.

    Source: `marl_aajr.core.adversary_actions`.
    """

    access: ClassVar[Access] = "learned"
    per_size: ClassVar[bool] = True
    acts_jointly: ClassVar[bool] = True

    adversary: str = ""
    joint: bool = False
    env_steps: int | None = None
    search: int | None = None
    warm_start: bool = True
    actions: Literal["greedy", "sampled"] = "greedy"
    _policy: Victim | None = field(default=None, repr=False, compare=False)
    _adversaries: ObservationAdversaries | None = field(default=None, repr=False, compare=False)
    _digest: str = field(default="", repr=False, compare=False)
    _agent: str = field(default="", repr=False, compare=False)
    _actions: Tensor | None = field(default=None, repr=False, compare=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        one_of("actions", self.actions, ("greedy", "sampled"))
        check_joint(self.joint, self.perturbations.channels)
        if not self.adversary or self.ready:
            return
        found = loaded(self.adversary, kind=self.name)
        if found.perturbations != self.perturbations:
            raise ValueError(
                f"expected the size that {self.adversary} was trained for, {found.perturbations}, got "
                f"{self.perturbations}; train another"
            )
        for name in ("joint", "actions", "_policy", "_adversaries", "_digest"):
            object.__setattr__(self, name, getattr(found, name))

    @property
    def ready(self) -> bool:
        return self._policy is not None

    @property
    def seconds(self) -> float:
        return (self.env_steps or DEFAULTS[self.name].env_steps) / STEPS_PER_SECOND  # type: ignore[index]

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
        from marl_aajr.adversaries.training import find_or_train  # which imports Ray: playing needs none

        budget = vars(self.perturbations)

        def reaches(agent: str) -> bool:
            width = features(victim, agent)
            return self.held_to(env.channels.get(agent, {}), width) is not None

        asked = ("joint", "actions", "env_steps", "search", "warm_start")
        request = AdversaryRequest(
            kind=self.name,  # type: ignore[arg-type]
            epsilon=budget["epsilon"],
            norm=budget["norm"],
            agents=tuple(agent for agent in env.possible_agents if agent in agents and reaches(agent)),
            units=units,
            seed=seed,
            threat={
                name: budget[name]
                for name in ("mask", "scale", "low", "high", "channels")
                if budget[name] is not None
            },
            **{name: getattr(self, name) for name in asked},
        )
        with tempfile.TemporaryDirectory(prefix="marl-aajr-") as scratch:
            found = loaded(find_or_train(victim, request, home=home or Path(scratch)), kind=self.name)
        names = ("env_steps", "search", "warm_start", "_policy", "_adversaries", "_digest")
        return replace(self, **{name: getattr(found, name) for name in names})

    def against(self, victim: Victim, agent: str) -> Attack:
        (adversaries, _), name = self._required(), self.adversary or self.name
        if fingerprint(victim) != self._digest:
            raise ValueError(
                f"expected the victims that {name} was trained against, got others; train an adversary "
                "against these"
            )
        one_of(f"an agent that {name} was trained to attack", agent, adversaries.agents)
        return replace(self, _agent=agent)

    @torch.no_grad()
    def choose_actions(
        self, seen: Mapping[str, Tensor], *, generator: torch.Generator
    ) -> Mapping[str, Tensor]:
        adversaries, policy = self._required()
        like = next(iter(seen.values()))
        nothing = {a: like.new_zeros(len(like), features(adversaries.victim, a)) for a in adversaries.agents}
        obs = adversaries.observe(nothing | dict(seen))
        actions = {name: policy.greedy(name, policy.policy(name)(own)) for name, own in obs.items()}
        return adversaries.split(actions, self.perturbations)

    def with_actions(self, actions: Tensor) -> Attack:
        return replace(self, _actions=actions)

    def run(self, policy: Policy, obs: Tensor, *, generator: torch.Generator) -> Tensor:
        adversaries, _ = self._required()
        actions = self._actions
        if actions is None:
            if adversaries.joint or not self._agent:
                raise ValueError(
                    f"expected all attacked agents' observations of a step for {self.name} "
                    "(choose_actions, then with_actions), got one agent's"
                )
            actions = self.choose_actions({self._agent: obs}, generator=generator)[self._agent]
        return adversaries.perturb(policy, obs, actions, self.perturbations)

    def _required(self) -> tuple[ObservationAdversaries, Victim]:
        if self._adversaries is None or self._policy is None:
            raise self.unfitted
        return self._adversaries, self._policy


@dataclass(frozen=True, kw_only=True)
class SARL(LearnedAttack):
    """SA-RL: an adversary whose action is the perturbation.

    Source: Zhang 2020 (arXiv 2003.08938), section 3.1; trained adversaries: Zhang 2021 (arXiv 2101.08452).
    """

    name: ClassVar[str] = "sa-rl"
    summary: ClassVar[str] = "an adversary trained by PPO, whose actions are the perturbations"


@dataclass(frozen=True, kw_only=True)
class PAAD(LearnedAttack):
    """PA-AD: a director that chooses where to move the policy, and an inner ascent that moves it there.

    Source: Sun 2022 (arXiv 2106.05087).
    """

    name: ClassVar[str] = "pa-ad"
    summary: ClassVar[str] = "an adversary trained by PPO that directs an ascent in the policy's space"


LEARNED: dict[str, type[LearnedAttack]] = {cls.name: cls for cls in (SARL, PAAD)}
"""The learned attacks by name."""


def loaded(run: Path | str, *, kind: str | None = None, name: str | None = None) -> LearnedAttack:
    """A finished adversary as an attack of the size that it was trained for.

    Args:
        run: its folder.
        kind: the expected one; None: any.
        name: what results call it; None: its folder.

    Raises:
        ValueError: no finished observation adversary there, or another kind.
    """
    directory = RunDirectory(run)
    config = directory.config()
    record = directory.path / RECORD
    if config.env.name != GAME or not record.is_file():
        what = "an unfinished run" if config.env.name == GAME else f"one in {config.env.name}"
        raise ValueError(
            f"expected the folder of a finished observation adversary, got {run}, {what}; train one with: "
            "marl-aajr adversary train"
        )
    threat = ObservationThreat(**config.env.kwargs)
    if kind not in (None, threat.kind):
        raise ValueError(f"expected an adversary of the kind {kind!r} in {run}, got {threat.kind!r}")
    kept = json.loads(record.read_text(encoding="utf-8"))
    return LEARNED[threat.kind](
        perturbations=threat.perturbations,
        adversary=str(run) if name is None else name,
        joint=threat.joint,
        actions=threat.actions,
        env_steps=kept["env_steps"],
        search=kept["search"],
        warm_start=kept["warm_start"],
        _policy=Victim.load(directory.path / KEPT[kept["kept"]]),
        _adversaries=ObservationAdversaries(
            actions=threat.adversary_actions,
            victim=threat.frozen,
            agents=tuple(threat.agents or ()),
            joint=threat.joint,
        ),
        _digest=threat.digest,
    )
