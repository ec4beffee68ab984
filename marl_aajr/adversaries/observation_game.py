"""The game of learned observation adversaries: frozen victims play on what their adversaries show them.

An environment like any other (`marl_aajr.adversaries.observation_game:parallel_env`), so that training an
adversary is a run like any other. Its arguments are those of `ObservationThreat`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from marl_aajr.adversaries.game_settings import Threat, factories
from marl_aajr.adversaries.observation_adversaries import ObservationAdversaries
from marl_aajr.adversaries.victim_game import VictimGame
from marl_aajr.attacks import StrongPGD
from marl_aajr.core.adversary_actions import AdversaryActions, adversary_actions
from marl_aajr.core.checks import one_of
from marl_aajr.core.threat import Norm, PerturbationSet
from marl_aajr.rollout.batched_env import BatchedEnv
from marl_aajr.rollout.teams import choose_agents
from marl_aajr.victims.filters import at_network
from marl_aajr.victims.stepper import DecisionBatch

GAME = f"{__name__}:parallel_env"
"""The game as an environment's name."""


@dataclass(frozen=True, kw_only=True)
class ObservationThreat(Threat):
    """The settings of an `ObservationGame`, of the kind `"sa-rl"` or `"pa-ad"`.

    The attacked agents are all of one team: those of the largest where none are named.

    Attributes:
        epsilon: radius of the perturbation set.
        norm: `"linf"` or `"l2"`.
        mask: one for all agents; see `PerturbationSet`, as for `scale`, `low` and `high`.
        scales: ε by agent as a multiple of `epsilon`; absent: 1.
        units: `"raw"` (of the environment's observations) or `"network"` (behind the observation filter).
        joint: one adversary for all of them with one budget; see `ObservationAdversaries`.
        action_settings: of the adversary's actions, such as PA-AD's `steps`.
    """

    epsilon: float
    norm: Norm = "linf"
    mask: Sequence[bool] | None = None
    scale: Sequence[float] | None = None
    low: float | Sequence[float] | None = None
    high: float | Sequence[float] | None = None
    scales: Mapping[str, float] = field(default_factory=dict)
    units: Literal["raw", "network"] = "raw"
    joint: bool = False
    action_settings: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__post_init__()
        one_of("units", self.units, ("raw", "network"))
        _ = self.adversary_actions, self.perturbations

    @cached_property
    def adversary_actions(self) -> AdversaryActions:
        """What the adversary's actions mean."""
        return adversary_actions(self.kind, **self.action_settings)

    @cached_property
    def perturbations(self) -> PerturbationSet:
        """Δ, in `units`."""
        names = ("epsilon", "norm", "mask", "scale", "low", "high")
        return PerturbationSet(**{name: getattr(self, name) for name in names})

    def build(self, num_envs: int, *, device: torch.device | str = "cpu") -> ObservationGame:
        victim, env = self.frozen, self.copies(num_envs, device=device)
        agents = tuple(choose_agents(env.teams, None, self.agents))
        for agent in self.scales:
            one_of("scales", agent, agents)
        adversaries = ObservationAdversaries(
            actions=self.adversary_actions, victim=victim, agents=agents, joint=self.joint
        )
        sets = {}
        for agent in agents:
            own = replace(self.perturbations, epsilon=self.epsilon * self.scales.get(agent, 1.0))
            space, observed = victim.observation_spaces[agent], victim.filters.get(agent)
            sets[agent] = at_network(own, space, observed, units=self.units)
        return ObservationGame(env, adversaries, sets, sampled=self.sampled)


class ObservationGame(VictimGame):
    """The game of adversaries that choose what some agents are shown.

    Args:
        env: see `VictimGame`, as for `sampled`.
        adversaries: what they observe, and how their actions perturb.
        sets: Δ of each attacked agent, in the units of its network.
    """

    def __init__(
        self,
        env: BatchedEnv,
        adversaries: ObservationAdversaries,
        sets: Mapping[str, PerturbationSet],
        *,
        sampled: bool = False,
    ) -> None:
        self.adversaries, self.sets, self.sampled = adversaries, dict(sets), sampled
        super().__init__(
            env,
            adversaries.victim,
            agents_of=adversaries.agents_of,
            team=env.teams[adversaries.agents[0]],
            observation_spaces=adversaries.observation_spaces,
            action_spaces=adversaries.action_spaces,
            groups=[
                [agent for agent in group if sets.get(agent) == own]
                for group in adversaries.victim.alike(env.possible_agents)
                for own in dict.fromkeys(sets.get(agent) for agent in group)
            ],
            sampled=sampled,
        )

    def observe(self, obs: Mapping[str, Tensor], active: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return self.adversaries.observe(
            {
                agent: self.victim.inputs(agent, obs[agent]) * active[agent].unsqueeze(-1)
                for agent in self.adversaries.agents
            }
        )

    def show(self, batch: DecisionBatch, actions: Mapping[str, Tensor]) -> Tensor:
        own = self.sets.get(batch.agent)
        if own is None:
            return batch.inputs
        by_agent = self.adversaries.split(actions, own)
        given = torch.cat([by_agent[agent][copies] for agent, copies in batch.rows.items()])
        return batch.inputs + self.adversaries.perturb(batch.policy, batch.inputs, given, own)


class AttackedBatch(NamedTuple):
    """Decisions on the true network inputs s, and what PGD, within Δ, made of their outputs, `[B, m]`."""

    batch: DecisionBatch
    outputs: Tensor
    perturbations: PerturbationSet


class PGDGame(ObservationGame):
    """A game with PGD in the place of its adversaries, whose actions do not count.

    Attributes:
        attacked: what PGD did since the list was last emptied.
    """

    def __init__(self, game: ObservationGame, *, generator: torch.Generator) -> None:
        super().__init__(game.env, game.adversaries, game.sets, sampled=game.sampled)
        self._generator = generator
        self.attacked: list[AttackedBatch] = []

    def show(self, batch: DecisionBatch, actions: Mapping[str, Tensor]) -> Tensor:
        own = self.sets.get(batch.agent)
        if own is None:
            return batch.inputs
        part = replace(own, epsilon=own.epsilon / len(self.adversaries.agents) ** 0.5)
        teacher = StrongPGD(perturbations=part if self.adversaries.joint and own.norm == "l2" else own)
        shown = batch.inputs + teacher.run(batch.policy, batch.inputs, generator=self._generator)
        self.attacked.append(AttackedBatch(batch, batch.policy(shown), own))
        return shown


batched_env, parallel_env = factories(ObservationThreat)
