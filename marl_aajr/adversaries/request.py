"""The request for an adversary to train, and the configuration of its run."""

from __future__ import annotations

import hashlib
import json
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from marl_aajr.adversaries.agent_game import GAME as AGENT_GAME
from marl_aajr.adversaries.agent_game import AgentThreat
from marl_aajr.adversaries.game_settings import Threat, victim_folder
from marl_aajr.adversaries.kinds import DEFAULTS, OBSERVERS, Kind, KindDefaults
from marl_aajr.adversaries.observation_game import GAME as OBSERVATION_GAME
from marl_aajr.adversaries.observation_game import ObservationThreat
from marl_aajr.core.checks import one_of
from marl_aajr.core.threat import Norm
from marl_aajr.rollout.environments import resolve
from marl_aajr.rollout.teams import choose_agents
from marl_aajr.training.config import EnvConfig, ModelConfig, PPOSettings, RunConfig
from marl_aajr.training.fields import AgentNames, Count, Fraction, Positive, Section, Whole, once
from marl_aajr.training.resources import Resources
from marl_aajr.training.run_directory import RunDirectory
from marl_aajr.victims import Victim


class AdversaryRequest(Section):
    """An adversary to train.

    Attributes:
        kind: what the adversary does: `sa-rl` and `pa-ad` change what others observe, `traitor` and
            `opponent` act; `best-response` is an opponent paid what the team loses, with a wider search: how
            exploitable the team is.
        epsilon: radius of the perturbation set, in `units`; of sa-rl and pa-ad. None for the others, who
            change no observation.
        agents: agents whose observations it changes, or whose place it takes; None: all who may be.
        joint: one adversary with one budget for all attacked agents, not one for each. See
            `ObservationAdversaries`.
        norm: norm of the perturbation set.
        units: units of ε: the environment's (`raw`), or behind the observation filter (`network`).
        actions: how the victims take their actions: the most likely ones, or sampled.
        env_steps: environment steps of the training, the search included; None: 1,000,000 for pa-ad, 300,000
            for sa-rl, 800,000 for a best response, 400,000 for other agents.
        search: settings of PPO to try first, a tenth of the steps each, 1: none; None: 3, and 1 for traitors
            and opponents.
        seeds: seeds to try each of them with, which share its steps; None: 2 for a best response, else 1.
        alpha: of a traitor: it acts with this probability only, else the victim itself does (PR-MDP); None:
            always.
        mixed: share `alpha` of the traitor's action is mixed into the victim's (NR-MDP, Box actions).
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
    agents: Annotated[AgentNames, AfterValidator(once)] | None = None
    joint: bool = False
    norm: Norm = "linf"
    units: Literal["raw", "network"] = "raw"
    actions: Literal["greedy", "sampled"] = "greedy"
    env_steps: Count | None = None
    search: Count | None = None
    seeds: Count | None = None
    alpha: Fraction | None = None
    mixed: bool = False
    warm_start: bool = True
    seed: Whole = 0
    threat: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _possible(self) -> Self:
        most = len(self.defaults.alternatives)
        if self.tries > most:
            raise ValueError(f"expected a search of at most {most} settings, got {self.tries}")
        if self.observes and self.epsilon is None:
            raise ValueError(f"expected an epsilon for the adversary {self.kind!r}, got none; give one")
        if not self.observes and (self.epsilon is not None or self.joint or "channels" in self.threat):
            raise ValueError(
                f"expected no epsilon and no joint adversary for {self.kind!r}, and no channels: it changes "
                "no observation; leave them out"
            )
        game = ObservationThreat if self.observes else AgentThreat
        taken = {*type(self).model_fields, *(field.name for field in fields(Threat))}
        own = [field.name for field in fields(game) if field.name not in taken]
        for name in self.threat:
            one_of(f"settings in the threat of {self.kind!r}", name, own)
        if (self.alpha is not None and self.kind != "traitor") or (self.mixed and self.alpha is None):
            raise ValueError(
                f"expected alpha of a traitor, and mixed with alpha, got alpha {self.alpha} and mixed "
                f"{self.mixed} of {self.kind!r}; leave them out"
            )
        if self.kind == "traitor" and not self.agents:
            raise ValueError("expected agents, whose places the traitor takes, got none; name them")
        return self

    @property
    def observes(self) -> bool:
        """Whether the adversary changes what others observe."""
        return self.kind in OBSERVERS

    @property
    def defaults(self) -> KindDefaults:
        """What holds for its kind where nothing else is asked for."""
        return DEFAULTS[self.kind]

    @property
    def steps(self) -> int:
        """Environment steps, the search included."""
        return self.defaults.env_steps if self.env_steps is None else self.env_steps

    @property
    def tries(self) -> int:
        """How many settings of PPO are tried first."""
        return self.defaults.search if self.search is None else self.search

    @property
    def repeats(self) -> int:
        """How many seeds each of them is tried with."""
        return self.defaults.seeds if self.seeds is None else self.seeds

    @property
    def name(self) -> str:
        """A folder's name for it: `sa-rl-eps0.1`, `pa-ad-eps0.2-l2-joint-s3`, `traitor-agent_1`.

        What `threat` adds beside channels is told apart by a digest.
        """
        threat = dict(self.threat)
        parts = [
            "" if self.epsilon is None else f"eps{self.epsilon:g}",
            "" if self.norm == "linf" else self.norm,
            "" if self.units == "raw" else self.units,
            "" if self.actions == "greedy" else self.actions,
            "joint" if self.joint else "",
            *(threat.pop("channels", None) or ()),
            "" if self.alpha is None else f"{'mix' if self.mixed else 'alpha'}{self.alpha:g}",
            *(self.agents or ()),
            hashlib.sha256(json.dumps(threat, sort_keys=True).encode()).hexdigest()[:8] if threat else "",
            "" if self.seed == 0 else f"s{self.seed}",
        ]
        return "-".join([self.kind, *(part for part in parts if part)])

    def settled(self, victims: Path) -> AdversaryRequest:
        """The same with the attacked agents and the numbers named, so that equal requests are equal.

        Raises:
            ValueError: no victims there, or agents that are not.
        """
        agents = self._attacked(Victim.load(victim_folder(victims))) if self.observes else self.agents
        return self.changed(agents=agents, env_steps=self.steps, search=self.tries, seeds=self.repeats)

    def threat_to(self, victims: Path) -> Threat:
        """The settings of its game against the victims of a run, or those saved in a folder."""
        settings = {"kind": self.kind, "actions": self.actions, **self.threat}
        if not self.observes:
            some = {"alpha": self.alpha, "mixed": self.mixed} if self.alpha is not None else {}
            return AgentThreat.against(victims, agents=self.agents and list(self.agents), **settings, **some)
        return ObservationThreat.against(
            victims,
            agents=self._attacked(Victim.load(victim_folder(victims))),
            epsilon=self.epsilon,
            norm=self.norm,
            units=self.units,
            joint=self.joint,
            **settings,
        )

    def config(self, victims: Path) -> RunConfig:
        """The run without search and warm start.

        For adversaries that act, networks, PPO's numbers and the observation filter are those of the victims'
        run, if there is one, which are known to learn in this environment; but without memory and without a
        central critic, in one process. An opponent begins with the policies that opposed the victims in their
        training: on simple_tag this beats a run from nothing of three times the length. A traitor begins from
        nothing: from a loyal policy it learns to do less harm.

        Args:
            victims: their run, or the folder of a saved victim.

        Raises:
            ValueError: nothing of the kind there, agents that are not, or settings that do not fit.
        """
        threat = self.threat_to(victims)
        threat.build(1).close()
        config = RunConfig(
            env=EnvConfig(name=OBSERVATION_GAME if self.observes else AGENT_GAME, kwargs=threat.arguments),
            seed=self.seed,
            env_steps=self.steps,
            ppo=PPOSettings(**self.defaults.ppo),
            model=ModelConfig(**self.defaults.model),
        )
        run = RunDirectory(victims)
        if not self.observes and run.is_run:
            config = _as_they_learned(config, run.config())
            if self.kind != "traitor" and _can_begin(config, threat.frozen):
                config = config.model_copy(update={"initial_policy": threat.victim})
        return self._kept_short(config)

    def _kept_short(self, config: RunConfig) -> RunConfig:
        """The run with iterations that are no longer than all of it."""
        batch, tries = config.ppo.train_batch_size, self.tries * self.repeats
        if tries > 1 and self.steps < (least := (tries + 1) * batch):
            raise ValueError(
                f"expected env_steps ≥ {least:,} for a search of {tries} settings and the training, each an "
                f"iteration of {batch:,} or more, got {self.steps:,}; give more, or search = 1 and seeds = 1"
            )
        if (steps := self.steps) >= batch:
            return config
        ppo = {"train_batch_size": steps, "minibatch_size": min(steps, config.ppo.minibatch_size)}
        copies = min(config.resources.copies, steps)
        return config.changed(
            ppo=config.ppo.changed(**ppo), resources=config.resources.changed(envs_per_runner=copies)
        )

    def _attacked(self, victim: Victim) -> list[str]:
        if not victim.env_name:
            raise ValueError(
                "expected victims that name their environment, got some that do not; set env_name to an "
                "import path"
            )
        game = resolve(victim.env_name, victim.env_kwargs).make()
        game.close()
        return choose_agents(game.teams, None, self.agents)


def _as_they_learned(config: RunConfig, trained: RunConfig) -> RunConfig:
    asked = trained.resources
    return config.changed(
        policies=trained.policies,
        model=trained.model.model_copy(update={"critic": "own", "lstm": None}),
        ppo=trained.ppo,
        observation_filter=trained.observation_filter,
        resources=Resources(envs_per_runner=max(asked.env_runners, 1) * asked.copies),
    )


def _can_begin(config: RunConfig, victim: Victim) -> bool:
    """Whether the run has modules of the victims' own, and can take them over."""
    from marl_aajr.training.policy_mapping import (
        policy_mapping_of,  # which imports Ray: evaluations need none
    )

    mapping = policy_mapping_of(config)
    same = all(victim.module_of[agent] == module for agent, module in mapping.module_of.items())
    return same and not victim.recurrent and not any(victim.filters.values())
