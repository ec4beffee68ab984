"""One adversary in one game that somebody else plays, observation by observation."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor

from marl_aajr.attacks import Attack, make_attack
from marl_aajr.evaluation.adversary import prepare
from marl_aajr.evaluation.protocol import check_attack, settle_units
from marl_aajr.evaluation.suites import Units
from marl_aajr.victims import Memory, Victim
from marl_aajr.victims.groups import alike

_HERE = torch.zeros(1, dtype=torch.int64)
"""The only copy of the game."""


@dataclass
class Chance:
    """Random numbers that follow from a seed and from where a game is, however often they are asked for.

    Attributes:
        seed: of all of them.
    """

    seed: int
    _given: int = 0
    _episode: int = 0
    _step: int = 0

    def begin(self, seed: int | None) -> None:
        """A new episode; of its environment's seed, where it was given one."""
        if seed is not None:
            self._given, self._episode = seed, 0
        self._episode, self._step = self._episode + 1, 0

    def proceed(self) -> None:
        """A new step."""
        self._step += 1

    def of(self, number: int) -> torch.Generator:
        """Those of this step for the agent with a number."""
        key = (self._given, self._episode, self._step, number)
        state = np.random.SeedSequence(self.seed, spawn_key=key).generate_state(1, np.uint64)[0]
        return torch.Generator().manual_seed(int(state))


@dataclass
class Liar:
    """Shows agents what an attack on a victim's policies makes of their observations.

    Attributes:
        attack: what is done to them.
        victim: whose policies are attacked.
        prepared: by attacked agent: the attack, in the units of its network.
        chance: the attack's random numbers.
    """

    attack: Attack
    victim: Victim
    prepared: Mapping[str, Attack]
    chance: Chance
    _memory: Memory = field(init=False)
    _shown: dict[str, Any] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        self._memory = self.victim.memory()
        alike_ones = alike(self.victim, self.prepared)
        self._groups = [part for group in alike_ones for part in self.attack.together(group)]

    @classmethod
    def of(
        cls,
        attack: str | Attack,
        victim: Victim,
        agents: Collection[str],
        *,
        epsilon: float | None,
        units: Units | None,
        seed: int,
    ) -> Liar:
        """A liar by the name of an attack.

        Raises:
            ValueError: an unknown attack, no size, an attack that must learn first, or one that does not fit.
        """
        if isinstance(attack, str):
            if epsilon is None:
                raise ValueError(f"expected epsilon for the attack {attack!r}, got none; give its size")
            attack = make_attack(attack, epsilon=epsilon)
        elif epsilon is not None:
            attack = attack.at(epsilon)
        if not attack.ready:
            raise ValueError(
                f"expected an attack that is ready, got {attack.name!r}, which has yet to learn; give it "
                "fitted: attack.fit(victim, make_batch(resolve(name), 50), agents=..., seed=0)"
            )
        units = settle_units(units, victim, agents)
        check_attack(attack, victim, list(agents))
        prepared = {agent: prepare(attack, victim, agent, units=units) for agent in agents}
        return cls(attack, victim, prepared, Chance(seed))

    def begin(self, seed: int | None) -> None:
        """An episode begins."""
        self._memory.forget()
        self._shown = {}
        self.chance.begin(seed)

    def show(self, seen: Mapping[str, Any]) -> dict[str, Any]:
        """What agents are shown of what they see in this step; asking again changes nothing.

        Args:
            seen: by agent: an array, or a dict with `observation` and `action_mask`.
        """
        fresh = {a: seen[a] for a in self.prepared if a in seen and a not in self._shown}
        orders = self._orders(fresh)
        for group in self._groups:
            if members := [agent for agent in group if agent in fresh]:
                self._lie(members, seen, orders)
        return {agent: self._shown.get(agent, obs) for agent, obs in seen.items()}

    def decided(self, agents: Collection[str]) -> None:
        """These agents decided on what they were shown; the step is over."""
        for agent in agents if self.victim.recurrent else ():
            if agent in self._shown:
                here = {agent: _HERE}
                obs, legal = split(self._shown[agent])
                policy = self.victim.policy(agent, action_mask=legal, state=self._memory.recall(here))
                self._memory.advance(here, policy, self._inputs(agent, obs))
        self._shown = {}
        self.chance.proceed()

    def space(self, agent: str, space: gym.Space[Any]) -> gym.Space[Any]:
        """The space of what an agent is shown, given that of what it sees: by ε wider."""
        if agent not in self.prepared:
            return space
        if isinstance(space, gym.spaces.Dict):
            return gym.spaces.Dict({**space.spaces, "observation": self._wider(agent, space["observation"])})
        return self._wider(agent, space)

    def _orders(self, seen: Mapping[str, Any]) -> Mapping[str, Tensor]:
        """What an adversary that acts for all agents at once settles before each is lied to."""
        if not self.attack.confers or not seen:
            return {}
        inputs = {agent: self._inputs(agent, split(obs)[0]) for agent, obs in seen.items()}
        return self.attack.confer(inputs, generator=self.chance.of(len(self.prepared)))

    def _lie(self, agents: list[str], seen: Mapping[str, Any], orders: Mapping[str, Tensor]) -> None:
        """Attack agents that are taken together, as one batch."""
        parts = {agent: split(seen[agent]) for agent in agents}
        inputs = torch.cat([self._inputs(agent, obs) for agent, (obs, _) in parts.items()])
        legal = [mask for _, mask in parts.values() if mask is not None]
        policy = self.victim.policy(
            agents[0],
            action_mask=torch.cat(legal) if legal else None,
            state=self._memory.recall(dict.fromkeys(agents, _HERE)),
        )
        generator = self.chance.of(list(self.prepared).index(agents[0]))
        attack = self.prepared[agents[0]]
        if orders:
            attack = attack.under_orders(torch.cat([orders[agent] for agent in agents]))
        delta = attack(policy, inputs, generator=generator).delta
        for agent, row in zip(agents, delta, strict=True):
            self._shown[agent] = self._perturbed(agent, seen[agent], row)

    def _perturbed(self, agent: str, seen: Any, delta: Tensor) -> Any:
        obs = np.asarray(seen["observation"] if isinstance(seen, Mapping) else seen)
        change = (delta.double() * self._unit(agent)).reshape(obs.shape).numpy()
        shown = (obs + change).astype(obs.dtype)
        return {**seen, "observation": shown} if isinstance(seen, Mapping) else shown

    def _inputs(self, agent: str, obs: Any) -> Tensor:
        return self.victim.inputs(agent, torch.as_tensor(np.asarray(obs))[None])

    def _unit(self, agent: str) -> Tensor:
        """What one unit of the network's inputs is in the environment's, `[d]`, or one for all."""
        observed = self.victim.filters.get(agent)
        return torch.ones(1, dtype=torch.float64) if observed is None else observed.scale.flatten()

    def _wider(self, agent: str, space: gym.Space[Any]) -> gym.spaces.Box:
        assert isinstance(space, gym.spaces.Box)
        size = self.prepared[agent].perturbations
        reach = size.epsilon * torch.ones(int(np.prod(space.shape)), dtype=torch.float64) * self._unit(agent)
        if (factor := size.preconditioner(reach)) is not None:
            reach = reach * factor
        # The last bit of a sum may point outwards.
        room = np.nextafter(reach.reshape(space.shape).numpy().astype(space.dtype), np.inf)
        low, high = np.nextafter(space.low - room, -np.inf), np.nextafter(space.high + room, np.inf)
        return gym.spaces.Box(low.astype(space.dtype), high.astype(space.dtype), dtype=space.dtype.type)


def split(seen: Any) -> tuple[Any, Tensor | None]:
    """An observation and the legal actions `[1, n]`, None where there is no mask."""
    if not isinstance(seen, Mapping):
        return seen, None
    return seen["observation"], torch.as_tensor(np.asarray(seen["action_mask"])).bool()[None]
