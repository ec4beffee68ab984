"""What a learned observation adversary sees and does, in the game that it learns by and under judgement.

| kind | the adversary's action for an agent | the perturbation |
|---|---|---|
| `sa-rl` | a ∈ [−1, 1]^d | a, squashed into the set (`PerturbationSet.squash`) |
| `pa-ad` | a target action, or a direction of the Gaussian mean | an ascent towards it (`direction`) |

It sees what the attacked agent's network truly receives (behind the observation filter), because the optimal
adversary of a fixed policy is a function of the true state (Zhang 2020, arXiv 2003.08938, section 3.1), and
where several agents are attacked, who the agent is, one-hot: adversaries of agents with equal spaces share a
module. What a recurrent victim remembers it is not told.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, TypeAlias

import numpy as np
import torch
from gymnasium import Space, spaces
from torch import Tensor

from marl_aajr.adversaries.game import ADVERSARY
from marl_aajr.core.direction import follow
from marl_aajr.core.distributions import Categorical, DiagGaussian, MultiCategorical
from marl_aajr.core.policy import Policy
from marl_aajr.core.threat import PerturbationSet
from marl_aajr.core.values import one_of, whole
from marl_aajr.victims import Victim

Orders: TypeAlias = Space[Any]
"""Box or MultiDiscrete."""


@dataclass(frozen=True, kw_only=True)
class Manner(ABC):
    """How an adversary's orders for an agent `[B, c]` become a perturbation of what it sees."""

    name: ClassVar[str]

    @abstractmethod
    def orders(self, victim: Victim, agent: str) -> Orders:
        """The space of the orders for one agent."""

    @abstractmethod
    def perturb(self, policy: Policy, obs: Tensor, orders: Tensor, perturbations: PerturbationSet) -> Tensor:
        """δ in the set, `[B, d], [B, c] -> [B, d]`."""

    def share(self, orders: Tensor, perturbations: PerturbationSet, agents: int) -> Tensor:
        """Orders of a joint adversary for its n agents, side by side `[E, n · c]`, held to one budget."""
        return orders

    def label(self, policy: Policy, clean: Tensor, moved: Tensor) -> Tensor:
        """The orders that would move outputs from `clean [B, m]` to `moved`, `[B, c]`.

        Raises:
            ValueError: what is done to a policy does not say by which orders.
        """
        raise ValueError(f"expected orders that follow from their effect, got those of {self.name}")

    def part(self, perturbations: PerturbationSet, agents: int) -> PerturbationSet:
        """What each of n agents of a joint adversary has of the one budget, where the orders do not say."""
        return perturbations


@dataclass(frozen=True, kw_only=True)
class Perturbing(Manner):
    """SA-RL: the orders are the perturbation, in units of the set."""

    name: ClassVar[str] = "sa-rl"

    def orders(self, victim: Victim, agent: str) -> Orders:
        return spaces.Box(-1.0, 1.0, (features(victim, agent),), np.float32)

    def perturb(self, policy: Policy, obs: Tensor, orders: Tensor, perturbations: PerturbationSet) -> Tensor:
        return perturbations.squash(orders, obs)

    def share(self, orders: Tensor, perturbations: PerturbationSet, agents: int) -> Tensor:
        unit = orders.clamp(-1.0, 1.0)
        if perturbations.norm == "linf":
            return unit
        if perturbations.mask is not None:
            unit = unit * unit.new_tensor(perturbations.mask).repeat(agents)
        return unit / torch.linalg.vector_norm(unit, dim=-1, keepdim=True).clamp_min(1.0)


@dataclass(frozen=True, kw_only=True)
class Directing(Manner):
    """PA-AD: the orders are where to move the policy.

    Attributes:
        steps: K of the inner ascent.
        step_size: η as a fraction of ε.
    """

    name: ClassVar[str] = "pa-ad"

    steps: int = 10
    step_size: float = 0.25

    def __post_init__(self) -> None:
        whole("steps", self.steps)
        if not self.step_size > 0:
            raise ValueError(f"expected a step_size > 0 (a fraction of epsilon), got {self.step_size!r}")

    def orders(self, victim: Victim, agent: str) -> Orders:
        kind = victim.distributions[victim.module_of[agent]]
        if isinstance(kind, DiagGaussian):
            return spaces.Box(-1.0, 1.0, (kind.k,), np.float32)
        assert isinstance(kind, Categorical | MultiCategorical)
        return spaces.MultiDiscrete(kind.nvec if isinstance(kind, MultiCategorical) else [kind.n])

    def perturb(self, policy: Policy, obs: Tensor, orders: Tensor, perturbations: PerturbationSet) -> Tensor:
        return follow(policy, obs, orders, perturbations, steps=self.steps, step_size=self.step_size)

    def label(self, policy: Policy, clean: Tensor, moved: Tensor) -> Tensor:
        kind = policy.distribution
        if isinstance(kind, DiagGaussian):
            mean, log_std = kind.split(clean)
            shift = (kind.mode(moved) - mean) * (-log_std).exp()
            return shift / shift.abs().amax(-1, keepdim=True).clamp_min(torch.finfo(shift.dtype).tiny)
        return kind.mode(moved).reshape(len(moved), -1)

    def part(self, perturbations: PerturbationSet, agents: int) -> PerturbationSet:
        if perturbations.norm == "linf":
            return perturbations
        return replace(perturbations, epsilon=perturbations.epsilon / agents**0.5)


MANNERS: dict[str, type[Manner]] = {cls.name: cls for cls in (Perturbing, Directing)}
"""The kinds of learned observation adversaries."""


def make_manner(kind: str, **settings: Any) -> Manner:
    """The manner of a kind, with settings of its own.

    Raises:
        ValueError: an unknown kind or setting, or a value out of range.
    """
    one_of("kind", kind, MANNERS)
    try:
        return MANNERS[kind](**settings)
    except TypeError:
        raise ValueError(f"expected settings of {kind!r}, got {', '.join(settings)}; remove them") from None


@dataclass(frozen=True, kw_only=True)
class Crew:
    """The adversaries of some agents, or the one joint adversary of all of them.

    One budget of a joint adversary means one set around the observations of all its agents side by side:
    ‖(δ_1, …, δ_n) / scale‖ ≤ ε. In L∞ that is ε for every feature of every agent, the same as without
    `joint`. In L2 the agents share ε: what one is lied to more, the others are lied to less. SA-RL decides
    how they share it; PA-AD's agents get ε / √n each.

    Attributes:
        manner: what their actions mean.
        victim: who is lied to.
        agents: whom they lie to.
        joint: one adversary for all.
    """

    manner: Manner
    victim: Victim
    agents: tuple[str, ...]
    joint: bool = False

    def __post_init__(self) -> None:
        kinds = {type(self.manner.orders(self.victim, agent)) for agent in self.agents}
        if self.joint and len(kinds) > 1:
            raise ValueError(
                f"expected agents with one kind of actions for a joint {self.manner.name} adversary, got "
                f"{', '.join(self.agents)} with several; train adversaries of their own"
            )

    @property
    def seats(self) -> dict[str, tuple[str, ...]]:
        """The agents behind each adversary, by its name."""
        return {ADVERSARY: self.agents} if self.joint else {agent: (agent,) for agent in self.agents}

    @property
    def observation_spaces(self) -> dict[str, spaces.Box]:
        """Of each adversary."""
        named = 0 if self.joint or len(self.agents) == 1 else len(self.agents)
        widths = {
            name: sum(features(self.victim, agent) for agent in seat) + named
            for name, seat in self.seats.items()
        }
        return {name: spaces.Box(-np.inf, np.inf, (width,), np.float32) for name, width in widths.items()}

    @property
    def action_spaces(self) -> dict[str, Space[Any]]:
        """Of each adversary: its orders, side by side."""
        found: dict[str, Space[Any]] = {}
        for name, seat in self.seats.items():
            parts = [self.manner.orders(self.victim, agent) for agent in seat]
            if isinstance(parts[0], spaces.Box):
                found[name] = spaces.Box(-1.0, 1.0, (sum(width(part) for part in parts),), np.float32)
            else:
                nvec = [int(n) for part in parts if isinstance(part, spaces.MultiDiscrete) for n in part.nvec]
                found[name] = spaces.Discrete(nvec[0]) if len(nvec) == 1 else spaces.MultiDiscrete(nvec)
        return found

    def look(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """What each adversary sees, `[E, w]`.

        Args:
            inputs: by agent, what its network truly receives, `[E, d]`; zeros where it does not act.
        """
        if self.joint:
            return {ADVERSARY: torch.cat([inputs[agent] for agent in self.agents], -1)}
        if len(self.agents) == 1:
            return {agent: inputs[agent] for agent in self.agents}
        return {
            agent: torch.cat([inputs[agent], self.badge(agent, inputs[agent])], -1)
            for agent in self.agents
            if agent in inputs
        }

    def badge(self, agent: str, like: Tensor) -> Tensor:
        """Who it is, one-hot, `[E, n]`."""
        badge = like.new_zeros(len(like), len(self.agents))
        badge[:, self.agents.index(agent)] = 1.0
        return badge

    def orders(self, actions: Mapping[str, Tensor], perturbations: PerturbationSet) -> dict[str, Tensor]:
        """The orders for each agent, `[E, c]`, held to one budget where the adversary is joint.

        Args:
            actions: of the adversaries, as their spaces define them.
            perturbations: the set, for its norm and mask.
        """
        if not self.joint:
            return {agent: action.reshape(len(action), -1) for agent, action in actions.items()}
        action = actions[ADVERSARY].reshape(len(actions[ADVERSARY]), -1)
        action = self.manner.share(action, perturbations, len(self.agents))
        widths = [width(self.manner.orders(self.victim, agent)) for agent in self.agents]
        return dict(zip(self.agents, action.split(widths, -1), strict=True))

    def actions(self, orders: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The adversaries' actions that give these orders, `[E, c]` by agent; agents may be missing."""
        if self.joint:
            like = next(iter(orders.values()))
            widths = {agent: width(self.manner.orders(self.victim, agent)) for agent in self.agents}
            parts = [orders.get(a, like.new_zeros(len(like), w)) for a, w in widths.items()]
            orders = {ADVERSARY: torch.cat(parts, -1)}
        spaces_of = self.action_spaces
        return {p: o.reshape(len(o), *(spaces_of[p].shape or ())) for p, o in orders.items()}

    def perturb(self, policy: Policy, obs: Tensor, orders: Tensor, perturbations: PerturbationSet) -> Tensor:
        """δ of a batch of agents with one policy, `[B, d], [B, c] -> [B, d]`."""
        part = self.manner.part(perturbations, len(self.agents)) if self.joint else perturbations
        return self.manner.perturb(policy, obs, orders, part)


def features(victim: Victim, agent: str) -> int:
    """d, how many numbers the agent's network receives."""
    return int(np.prod(victim.observation_spaces[agent].shape or ()))


def width(space: Orders) -> int:
    """c, how many numbers an order is."""
    return int(np.prod(space.shape or ()))
