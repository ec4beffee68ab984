"""An attack on the observations of a game that somebody else plays, computed as its agents look."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor

from marl_aajr.attacks import Attack, WordAttack, attack_class, make_attack
from marl_aajr.attacks.episode_memory import EpisodeMemory
from marl_aajr.core.channels import NO_CHANNELS, Channels, check_channels
from marl_aajr.core.environment_values import agent_name, agent_names, as_array, named, own_key, split
from marl_aajr.core.flat_observations import FlatBox
from marl_aajr.core.token_network import TokenNetwork
from marl_aajr.evaluation.admission import check_attack, settle_units
from marl_aajr.evaluation.outcomes import Units
from marl_aajr.evaluation.prepared_attack import prepare, reachable
from marl_aajr.victims import Victim
from marl_aajr.victims.one_game import one_copy
from marl_aajr.victims.stepper import DecisionBatch, Stepper


@dataclass
class StepGenerators:
    """Random numbers that follow from a seed and from where a game is, however often they are asked for."""

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
        """The generator of this step for the agent with a number."""
        key = (self._given, self._episode, self._step, number)
        state = np.random.SeedSequence(self.seed, spawn_key=key).generate_state(1, np.uint64)[0]
        return torch.Generator().manual_seed(int(state))


class ObservationAttacker:
    """Shows agents what an attack on a victim's policies makes of their observations.

    The attack is a name, or one that is ready; ε and its units are its own and those of `settle_units`, if
    they are None. The seed is that of the attack's random numbers; an attack that is held to channels needs
    those of the agents' observations.

    Raises:
        ValueError: an unknown attack, no size, an attack that must learn first, or one that does not fit.
    """

    def __init__(
        self,
        attack: str | Attack,
        victim: Victim,
        agents: Collection[str],
        *,
        epsilon: float | None,
        units: Units | None,
        seed: int,
        channels: Mapping[str, Channels] = NO_CHANNELS,
    ) -> None:
        self.attack, self.victim = _ready(attack, epsilon), victim
        check_channels(self.attack.perturbations.channels, channels, agents, env="the environment")
        agents = reachable(self.attack, victim, agents, channels)
        if flat := [agent for agent in agents if isinstance(victim.observation_spaces[agent], FlatBox)]:
            raise ValueError(
                f"expected a policy that reads an array to attack in somebody's loop, got one that reads "
                f"{victim.observation_spaces[flat[0]].structure} of {flat[0]!r}, flattened; evaluate it"
            )
        self._readers = {
            agent: network.embeddings.detach() / network.unit
            for agent in agents
            if isinstance(network := victim.modules[victim.module_of[agent]], TokenNetwork)
        }
        if self._readers and not isinstance(self.attack, WordAttack):
            raise ValueError(
                "expected an attack on words, such as words-greedy, to show agents that read, got "
                f"{self.attack.name!r} for {next(iter(self._readers))!r}, which moves embeddings to where no "
                "word is; evaluate the victim under it"
            )
        units = settle_units(units, victim, agents)
        check_attack(self.attack, victim, list(agents), channels)
        self._prepared = {a: prepare(self.attack, victim, a, units=units, channels=channels) for a in agents}
        groups = [part for group in victim.alike(agents) for part in self.attack.together(group)]
        self._stepper = Stepper(victim, victim.memory(), groups=groups)
        self._generators = StepGenerators(seed)
        self._memory: EpisodeMemory | None = None
        self._shown: dict[str, Any] = {}
        self._legal: dict[str, Any] = {}

    def begin(self, seed: int | None) -> None:
        """An episode begins."""
        self._stepper.memory.forget()
        self._shown, self._legal = {}, {}
        self._generators.begin(seed)
        drawn = int(torch.randint(2**62, (1,), generator=self._generators.of(len(self._prepared) + 1)))
        self._memory = self.attack.remember(1, seed=drawn)

    def show(self, seen: Mapping[Any, Any], infos: Mapping[Any, Any]) -> dict[Any, Any]:
        """The observations that agents are shown in this step; asking again changes nothing.

        What they see is an array, or a dict of one and its `action_mask`, which their infos may hold, too.
        """
        self._legal |= named(infos)
        by_name = named(seen)
        batches = self._see({a: by_name[a] for a in self._prepared if a in by_name and a not in self._shown})
        chosen: Mapping[str, Tensor] = {}
        if self.attack.acts_jointly and batches:  # an adversary that looks at all before each is attacked
            inputs = {agent: part for batch in batches for agent, _, part in batch.split(batch.inputs)}
            generator = self._generators.of(len(self._prepared))
            chosen = self.attack.choose_actions(inputs, generator=generator)
        for batch in batches:
            attack = self._prepared[batch.agent]
            if chosen:
                attack = attack.with_actions(torch.cat([chosen[agent] for agent in batch.rows]))
            if self._memory is not None:
                attack = attack.with_memory(self._memory.at(batch.rows))
            generator = self._generators.of(list(self._prepared).index(batch.agent))
            deltas = attack(batch.policy, batch.inputs, generator=generator).delta
            for agent, _, delta in batch.split(deltas):
                self._shown[agent] = self._perturbed(agent, by_name[agent], delta[0])
        return {agent: self._shown.get(agent_name(agent), given) for agent, given in seen.items()}

    def decided(self, agents: Collection[Any]) -> None:
        """These agents decided on what they were shown; the step is over."""
        if self.victim.recurrent:
            for agent in agent_names(agents):
                self._stepper.decide(self._see({a: s for a, s in self._shown.items() if a == agent}))
        if self._memory is not None:
            self._memory.advance(agent_names(agents))
        self._shown, self._legal = {}, {}
        self._generators.proceed()

    def space(self, agent: Any, space: gym.Space[Any]) -> gym.Space[Any]:
        """The space of what an agent is shown: that of what it sees; of floats wider by ε, or endless."""
        if (name := agent_name(agent)) not in self._prepared or name in self._readers:
            return space
        if isinstance(space, gym.spaces.Dict):
            key = own_key(space)
            return gym.spaces.Dict({**space.spaces, key: self._wider(name, space[key])})
        return self._wider(name, space)

    def _see(self, seen: Mapping[str, Any]) -> list[DecisionBatch]:
        obs, legal = one_copy(self.victim, seen, self._legal)
        return self._stepper.see(obs, action_mask=legal)

    def _perturbed(self, agent: str, seen: Any, delta: Tensor) -> Any:
        obs = as_array(split(seen)[0], self._box(agent).shape, np.float64)
        if (table := self._readers.get(agent)) is not None:
            shown = _written(obs, delta, table).astype(self._box(agent).dtype)
        else:
            change = (delta.double() * self._unit(agent)).reshape(obs.shape).numpy()
            shown = (obs + change).astype(_float_type(self._box(agent)))
        return {**seen, own_key(seen): shown} if isinstance(seen, Mapping) else shown

    def _box(self, agent: str) -> gym.spaces.Box:
        space = self.victim.observation_spaces[agent]
        assert isinstance(space, gym.spaces.Box)
        return space

    def _unit(self, agent: str) -> Tensor:
        """The size of one unit of the network's inputs in the environment's units, `[d]`, or one for all."""
        observed = self.victim.filters.get(agent)
        return torch.ones(1, dtype=torch.float64) if observed is None else observed.scale.flatten()

    def _wider(self, agent: str, space: gym.Space[Any]) -> gym.spaces.Box:
        assert isinstance(space, gym.spaces.Box)
        size = self._prepared[agent].perturbations
        if not self.attack.sized:
            return gym.spaces.Box(-np.inf, np.inf, space.shape, _float_type(space).type)
        reach = size.epsilon * torch.ones(int(np.prod(space.shape)), dtype=torch.float64) * self._unit(agent)
        if (factor := size.preconditioner(reach)) is not None:
            reach = reach * factor
        kind = _float_type(space)
        # The last bit of a sum may point outwards.
        room = np.nextafter(reach.reshape(space.shape).numpy().astype(kind), np.inf)
        low, high = np.nextafter(space.low - room, -np.inf), np.nextafter(space.high + room, np.inf)
        return gym.spaces.Box(low.astype(kind), high.astype(kind), dtype=kind.type)


def _written(tokens: np.ndarray[Any, Any], delta: Tensor, table: Tensor) -> np.ndarray[Any, Any]:
    """The words `[L]` whose embeddings are those of `tokens` and δ `[L·e]`, by the table of all `[V, e]`."""
    known = torch.from_numpy(tokens).long().flatten()
    moved = delta.view(len(known), -1)
    nearest = torch.cdist(table[known] + moved, table).argmin(-1)
    return torch.where((moved != 0).any(-1), nearest, known).view(tokens.shape).numpy()


def _float_type(space: gym.spaces.Box) -> np.dtype[Any]:
    """The type of a perturbed observation: that of its space where it can hold δ, else a float that can."""
    return np.result_type(space.dtype, np.float32)


def _ready(attack: str | Attack, epsilon: float | None) -> Attack:
    if isinstance(attack, str):
        if epsilon is None and attack_class(attack).sized:
            raise ValueError(f"expected epsilon for the attack {attack!r}, got none; give its size")
        attack = make_attack(attack, epsilon=epsilon)
    if not isinstance(attack, Attack):
        raise ValueError(f"expected the name of an attack, or an Attack, got {attack!r}")
    if not attack.ready:
        raise ValueError(
            f"expected an attack that is ready, got {attack.name!r}, which has yet to learn; give it "
            "fitted: attack.fit(victim, make_batch(resolve(name), 50), agents=..., seed=0)"
        )
    return attack if epsilon is None else attack.at(epsilon)
