"""The adversaries of a team of frozen victims: what they observe, and which action is for which agent.

An adversary observes what the attacked agent's network truly receives (behind the observation filter),
because the optimal adversary of a fixed policy is a function of the true state (Zhang 2020, arXiv 2003.08938,
section 3.1). Where several agents are attacked, it also observes which agent it is, one-hot: adversaries of
agents with equal spaces share a module. The memory of a recurrent victim is not shown to it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from gymnasium import Space, spaces
from torch import Tensor

from marl_aajr.core.adversary_actions import AdversaryActions, side_by_side, width
from marl_aajr.core.policy import Policy
from marl_aajr.core.threat import PerturbationSet
from marl_aajr.rollout.perturbed import ADVERSARY, adversary_of
from marl_aajr.victims import Victim


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
