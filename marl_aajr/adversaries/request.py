"""The request for an adversary to train, and the configuration of its run.

What length and search give at ε = 0.1 against one plain PPO team on simple_spread (three agents, trained for
2.5 million steps; 300 held-out episodes, greedy actions; clean -27.1, pgd-strong -47.7), with the CPU seconds
of the adversary's training:

    steps        search    pa-ad           sa-rl
      300,000    1                         -35.5 (21 s)
      400,000    1         -42.2 (46 s)
      500,000    3         -41.7 (48 s)
    1,000,000    1         -43.7 (90 s)    -35.5 (53 s)
    1,000,000    3         -43.8 (90 s)    -35.5 (52 s)

PA-AD gains by its length; the search gains what it costs, and is there for games that want other settings.
SA-RL stays where its warm start puts it, however long it learns: noise in 18 features moves a policy so
little that PPO learns next to nothing from it (a dozen settings tried, none better by more than 1). From
random weights it stays near the clean return.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import AfterValidator, Field, model_validator

from marl_aajr.adversaries.agent_game import agent_config
from marl_aajr.adversaries.game import victim_folder
from marl_aajr.adversaries.observation_game import GAME, ObservationThreat
from marl_aajr.core.threat import Norm
from marl_aajr.rollout.environments import resolve
from marl_aajr.rollout.teams import choose_agents
from marl_aajr.training.config import RunConfig, make_config
from marl_aajr.training.fields import Count, Positive, Section, Whole, once
from marl_aajr.victims import Victim, fingerprint, load_victim

Kind = Literal["sa-rl", "pa-ad", "traitor", "opponent"]
KINDS: tuple[Kind, ...] = get_args(Kind)
OBSERVERS: tuple[Kind, ...] = ("sa-rl", "pa-ad")
"""The kinds that change what others observe."""

ENV_STEPS: Mapping[Kind, int] = {
    "sa-rl": 300_000,
    "pa-ad": 1_000_000,
    "traitor": 400_000,
    "opponent": 400_000,
}
"""Environment steps by default, the search included."""

SEARCH: Mapping[Kind, int] = {"sa-rl": 3, "pa-ad": 3, "traitor": 1, "opponent": 1}
"""Settings of PPO that are tried by default."""

PPO: Mapping[Kind, Mapping[str, Any]] = {
    "sa-rl": {"lr": 1e-4, "epochs": 5, "entropy_coeff": 0.0},
}
"""What differs from the defaults of `marl_aajr.training.config.PPOSettings`."""

MODEL: Mapping[Kind, Mapping[str, Any]] = {"sa-rl": {"free_log_std": True}}
"""What differs from the defaults of `marl_aajr.training.config.ModelConfig`."""

ALTERNATIVES: Mapping[Kind, Sequence[Mapping[str, Any]]] = {
    "sa-rl": ({}, {"lr": 3e-4}, {"gamma": 0.99}, {"lr": 3e-5}),
    "pa-ad": ({}, {"gamma": 0.99}, {"entropy_coeff": 0.003}, {"lr": 3e-4}),
    "traitor": ({}, {"gamma": 0.99}, {"lr": 3e-4}, {"entropy_coeff": 0.0}),
    "opponent": ({}, {"gamma": 0.99}, {"lr": 3e-4}, {"entropy_coeff": 0.0}),
}
"""Settings of PPO that a search tries, the first ones first."""

SEARCH_SHARE = 0.1
"""Part of the environment steps that each setting is tried for."""


class AdversaryRequest(Section):
    """An adversary to train.

    Attributes:
        kind: what the adversary does: `sa-rl` and `pa-ad` change what others observe, `traitor` and
            `opponent` act.
        epsilon: radius of the perturbation set, in `units`; of sa-rl and pa-ad. None for the others, who
            change no observation.
        agents: agents whose observations it changes, or whose place it takes; None: all who may be.
        joint: one adversary with one budget for all attacked agents, not one for each. See
            `ObservationAdversaries`.
        norm: norm of the perturbation set.
        units: units of ε: the environment's (`raw`), or behind the observation filter (`network`).
        actions: how the victims take their actions: the most likely ones, or sampled.
        env_steps: environment steps of the training, the search included; None: 1,000,000 for pa-ad, 300,000
            for sa-rl, 400,000 for agents.
        search: settings of PPO to try first, a tenth of the steps each, 1: none; None: 3, and 1 for agents.
        warm_start: begin with what PGD does (sa-rl and pa-ad).
        seed: seed of everything random.
        threat: more of `ObservationThreat`, such as `mask` or `action_settings`; for traitors and
            opponents more of `AgentThreat`: `team` or `pays`.

    Raises:
        ValueError: an unknown kind, numbers out of range, an observation adversary without epsilon, or
            another one with what only those have.
    """

    kind: Kind
    epsilon: Positive | None = None
    agents: Annotated[tuple[str, ...], AfterValidator(once)] | None = None
    joint: bool = False
    norm: Norm = "linf"
    units: Literal["raw", "network"] = "raw"
    actions: Literal["greedy", "sampled"] = "greedy"
    env_steps: Count | None = None
    search: Count | None = None
    warm_start: bool = True
    seed: Whole = 0
    threat: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _possible(self) -> Self:
        most = len(ALTERNATIVES[self.kind])
        if self.tries > most:
            raise ValueError(f"expected a search of at most {most} settings, got {self.tries}")
        if self.observes and self.epsilon is None:
            raise ValueError(f"expected an epsilon for the adversary {self.kind!r}, got none; give one")
        if not self.observes and (self.epsilon is not None or self.joint):
            raise ValueError(
                f"expected no epsilon and no joint adversary for {self.kind!r}, which changes no "
                "observation; leave them out"
            )
        if self.kind == "traitor" and not self.agents:
            raise ValueError("expected agents, whose places the traitor takes, got none; name them")
        return self

    @property
    def observes(self) -> bool:
        """Whether the adversary changes what others observe."""
        return self.kind in OBSERVERS

    @property
    def steps(self) -> int:
        """Environment steps, the search included."""
        return ENV_STEPS[self.kind] if self.env_steps is None else self.env_steps

    @property
    def tries(self) -> int:
        """How many settings of PPO are tried first."""
        return SEARCH[self.kind] if self.search is None else self.search

    @property
    def name(self) -> str:
        """A folder's name for it: `sa-rl-eps0.1`, `pa-ad-eps0.2-l2-joint-s3`, `traitor-agent_1`.

        What `threat` adds is told apart by a digest.
        """
        threat = json.dumps(self.threat, sort_keys=True)
        parts = [
            "" if self.epsilon is None else f"eps{self.epsilon:g}",
            "" if self.norm == "linf" else self.norm,
            "" if self.units == "raw" else self.units,
            "" if self.actions == "greedy" else self.actions,
            "joint" if self.joint else "",
            *(self.agents or ()),
            hashlib.sha256(threat.encode()).hexdigest()[:8] if self.threat else "",
            "" if self.seed == 0 else f"s{self.seed}",
        ]
        return "-".join([self.kind, *(part for part in parts if part)])

    def settled(self, victims: Path) -> AdversaryRequest:
        """The same with the attacked agents and the numbers named, so that equal requests are equal.

        Raises:
            ValueError: no victims there, or agents that are not.
        """
        agents = self._attacked(load_victim(victim_folder(victims))) if self.observes else self.agents
        return self.changed(agents=agents, env_steps=self.steps, search=self.tries)

    def config(self, victims: Path) -> RunConfig:
        """The run without search and warm start.

        Args:
            victims: their run, or the folder of a saved victim.

        Raises:
            ValueError: nothing of the kind there, agents that are not, or settings that do not fit.
        """
        if self.kind in ("traitor", "opponent"):
            return agent_config(
                victims,
                kind=self.kind,
                agents=self.agents,
                actions=self.actions,
                env_steps=self.steps,
                seed=self.seed,
                **self.threat,
            )
        threat = self.observation_threat(victims)
        threat.build(1).close()
        return make_config(
            {
                "env": {"name": GAME, "kwargs": threat.arguments},
                "seed": self.seed,
                "env_steps": self.steps,
                "ppo": PPO.get(self.kind, {}),
                "model": MODEL.get(self.kind, {}),
            }
        )

    def observation_threat(self, victims: Path) -> ObservationThreat:
        """The game of an observation adversary."""
        folder = victim_folder(victims)
        victim = load_victim(folder)
        assert self.epsilon is not None
        return ObservationThreat(
            env=victim.env_name,
            env_kwargs=dict(victim.env_kwargs),
            victim=str(folder.resolve()),
            digest=fingerprint(victim),
            kind=self.kind,
            epsilon=self.epsilon,
            norm=self.norm,
            units=self.units,
            agents=self._attacked(victim),
            joint=self.joint,
            actions=self.actions,
            **self.threat,
        )

    def _attacked(self, victim: Victim) -> list[str]:
        if not victim.env_name:
            raise ValueError(
                "expected victims that name their environment, got some that do not; set env_name to an "
                "import path"
            )
        game = resolve(victim.env_name, victim.env_kwargs).make()
        try:
            return choose_agents(game.teams, None, self.agents)
        finally:
            game.close()
