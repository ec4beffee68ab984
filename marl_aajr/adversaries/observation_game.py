"""The game of learned observation adversaries: frozen victims play on what their adversaries show them.

An environment like any other (`marl_aajr.adversaries.observation_game:parallel_env`), so that training an
adversary is a run like any other. Its arguments are those of `ObservationThreat`.

An adversary observes what the attacked agent's network truly receives (behind the observation filter),
because the optimal adversary of a fixed policy is a function of the true state (Zhang 2020, arXiv 2003.08938,
section 3.1). Where several agents are attacked, it also observes which agent it is, one-hot: adversaries of
agents with equal spaces share a module. The memory of a recurrent victim is not shown to it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from gymnasium import Space, spaces
from torch import Tensor

from marl_aajr.adversaries.game_settings import Threat, factories
from marl_aajr.adversaries.kinds import OBSERVERS, check_joint
from marl_aajr.adversaries.victim_game import VictimGame
from marl_aajr.attacks import StrongPGD
from marl_aajr.core.adversary_actions import AdversaryActions, adversary_actions, side_by_side, width
from marl_aajr.core.channels import check_channels, held
from marl_aajr.core.checks import one_of
from marl_aajr.core.policy import Policy
from marl_aajr.core.threat import Norm, PerturbationSet
from marl_aajr.rollout.batched_env import BatchedEnv
from marl_aajr.rollout.perturbed import ADVERSARY, adversary_of
from marl_aajr.rollout.teams import choose_agents
from marl_aajr.victims import Victim
from marl_aajr.victims.filters import at_network
from marl_aajr.victims.stepper import DecisionBatch

GAME = f"{__name__}:parallel_env"
"""The game as an environment's name."""


@dataclass(frozen=True, kw_only=True)
class ObservationAdversaries:
    """The adversaries of some agents, one for each, or the one joint adversary of all of them.

    One budget of a joint adversary means one set around the observations of all its agents side by side:
    ‖(δ_1, …, δ_n) / scale‖ ≤ ε. In L∞ that is ε for every feature of every agent, the same as without
    `joint`. In L2 the agents share ε: the more one observation is changed, the less the others are. SA-RL
    decides how they share it; PA-AD's agents get ε / √n each.

    Attributes:
        actions: what the adversaries' actions mean.
        victim: the victims.
        agents: the attacked agents.
        joint: one adversary for all.

    Raises:
        ValueError: one adversary for agents whose actions are discrete and continuous.
    """

    actions: AdversaryActions
    victim: Victim
    agents: tuple[str, ...]
    joint: bool = False

    def __post_init__(self) -> None:
        continuous = {isinstance(self._space(agent), spaces.Box) for agent in self.agents}
        if self.joint and len(continuous) > 1:
            raise ValueError(
                f"expected agents with one kind of actions for a joint {self.actions.kind} adversary, got "
                f"{', '.join(self.agents)} with several; train adversaries of their own"
            )

    @property
    def agents_of(self) -> dict[str, tuple[str, ...]]:
        """The agents that each adversary attacks."""
        if self.joint:
            return {ADVERSARY: self.agents}
        return {adversary_of(agent): (agent,) for agent in self.agents}

    @property
    def observation_spaces(self) -> dict[str, spaces.Box]:
        """The observation space of each adversary."""
        told = len(self.agents) if self._tells_agent else 0
        widths = {p: sum(features(self.victim, a) for a in agents) for p, agents in self.agents_of.items()}
        return {p: spaces.Box(-np.inf, np.inf, (own + told,), np.float32) for p, own in widths.items()}

    @property
    def action_spaces(self) -> dict[str, Space[Any]]:
        """The action space of each adversary: the actions for its agents side by side."""
        return {p: side_by_side([self._space(a) for a in agents]) for p, agents in self.agents_of.items()}

    def observe(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """What each adversary observes, `[E, w]`.

        Args:
            inputs: by agent, what its network truly receives, `[E, d]`; zeros where it does not act.
        """
        if self.joint:
            return {ADVERSARY: torch.cat([inputs[agent] for agent in self.agents], -1)}
        seen = {}
        for agent, which in zip(self.agents, torch.eye(len(self.agents)), strict=True):
            if (own := inputs.get(agent)) is not None:
                told = [which.to(own).expand(len(own), -1)] if self._tells_agent else []
                seen[adversary_of(agent)] = torch.cat([own, *told], -1)
        return seen

    def split(self, actions: Mapping[str, Tensor], perturbations: PerturbationSet) -> dict[str, Tensor]:
        """The actions for each agent, `[E, c]`, held to one budget where the adversary is joint.

        Args:
            actions: of the adversaries, as their spaces define them; some may be missing.
            perturbations: the set, for its norm and mask.
        """
        rows = {name: given.reshape(len(given), -1) for name, given in actions.items()}
        if not self.joint:
            return {agent: rows[name] for name, (agent,) in self.agents_of.items() if name in rows}
        action = self.actions.share(rows[ADVERSARY], perturbations, len(self.agents))
        return dict(zip(self.agents, action.split(list(self._widths.values()), -1), strict=True))

    def join(self, by_agent: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The adversaries' actions that consist of these, `[E, c]` by agent; agents may be missing."""
        joined = {adversary_of(agent): actions for agent, actions in by_agent.items()}
        if self.joint:
            like = next(iter(by_agent.values()))
            parts = [by_agent.get(a, like.new_zeros(len(like), w)) for a, w in self._widths.items()]
            joined = {ADVERSARY: torch.cat(parts, -1)}
        spaces_of = self.action_spaces
        return {name: a.reshape(len(a), *(spaces_of[name].shape or ())) for name, a in joined.items()}

    def perturb(self, policy: Policy, obs: Tensor, actions: Tensor, perturbations: PerturbationSet) -> Tensor:
        """δ of a batch of agents with one policy, `[B, d], [B, c] -> [B, d]`."""
        part = self.actions.part(perturbations, len(self.agents)) if self.joint else perturbations
        return self.actions.perturb(policy, obs, actions, part)

    @property
    def _tells_agent(self) -> bool:
        return not self.joint and len(self.agents) > 1

    @property
    def _widths(self) -> dict[str, int]:
        return {agent: width(self._space(agent)) for agent in self.agents}

    def _space(self, agent: str) -> Space[Any]:
        return self.actions.space(self.victim.observation_spaces[agent], self.victim.action_spaces[agent])


def features(victim: Victim, agent: str) -> int:
    """d, how many numbers the agent's network receives."""
    return int(np.prod(victim.observation_spaces[agent].shape or ()))


@dataclass(frozen=True, kw_only=True)
class ObservationThreat(Threat):
    """The settings of an `ObservationGame`, of the kind `"sa-rl"` or `"pa-ad"`.

    The attacked agents are all of one team: those of the largest where none are named.

    Attributes:
        epsilon: radius of the perturbation set.
        norm: `"linf"` or `"l2"`.
        mask: one for all agents; see `PerturbationSet`, as for `scale`, `low` and `high`.
        channels: of what may be perturbed; agents that observe none of them are not attacked.
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
    channels: Sequence[str] | None = None
    scales: Mapping[str, float] = field(default_factory=dict)
    units: Literal["raw", "network"] = "raw"
    joint: bool = False
    action_settings: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__post_init__()
        one_of("units", self.units, ("raw", "network"))
        check_joint(self.joint, self.channels)
        _ = self.adversary_actions, self.perturbations

    @cached_property
    def adversary_actions(self) -> AdversaryActions:
        """What the adversary's actions mean."""
        one_of("kind", self.kind, OBSERVERS)
        return adversary_actions(self.kind, **self.action_settings)

    @cached_property
    def perturbations(self) -> PerturbationSet:
        """Δ, in `units`."""
        names = ("epsilon", "norm", "mask", "scale", "low", "high", "channels")
        return PerturbationSet(**{name: getattr(self, name) for name in names})

    def build(self, num_envs: int, *, device: torch.device | str = "cpu") -> ObservationGame:
        victim, env = self.frozen, self.copies(num_envs, device=device)
        agents = choose_agents(env.teams, None, self.agents)
        for agent in self.scales:
            one_of("scales", agent, agents)
        check_channels(self.perturbations.channels, env.channels, agents, env=self.env)
        sets = {}
        for agent in agents:
            scaled = replace(self.perturbations, epsilon=self.epsilon * self.scales.get(agent, 1.0))
            space, observed = victim.observation_spaces[agent], victim.filters.get(agent)
            if (own := held(scaled, env.channels.get(agent, {}), features(victim, agent))) is not None:
                sets[agent] = at_network(own, space, observed, units=self.units)
        who: dict[str, Any] = {"actions": self.adversary_actions, "agents": tuple(sets), "joint": self.joint}
        return ObservationGame(env, ObservationAdversaries(victim=victim, **who), sets, sampled=self.sampled)


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
