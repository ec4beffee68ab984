"""Whole episodes of a victim, with and without somebody who lies to its sensors.

What makes returns comparable is decided here. Episode i is the (i // E)-th episode of copy i mod E and is
seeded as such, so every attack faces the same episodes. Each copy plays its own share to the end: taking the
first episodes to finish would favour short ones. Sampled actions share their random numbers too: those of a
step and a copy are the same under every attack.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from marl_aajr.attacks import Attack, Attacked
from marl_aajr.distributions import ActionDistribution
from marl_aajr.evaluation.suites import Units
from marl_aajr.rollout.batched import BatchedEnv
from marl_aajr.victims import Victim, VictimPolicy
from marl_aajr.victims.groups import alike
from marl_aajr.victims.units import through_filter

LONGEST_EPISODE = 100_000
"""Steps after which an episode counts as endless."""


@dataclass
class Tally:
    """What an attack did to single decisions, summed over every attacked decision of every episode.

    Attributes:
        decisions: how many were attacked.
        changed: how many greedy actions changed.
        gain: sum of g(δ) − g(0), g the attack's objective.
        kl: sum of KL(π(·|s) ‖ π(·|s + δ)), in nats.
    """

    decisions: int = 0
    changed: float = 0.0
    gain: float = 0.0
    kl: float = 0.0

    def add(self, attacked: Attacked, distribution: ActionDistribution) -> None:
        """Count one attacked batch."""
        self.decisions += len(attacked.success)
        self.changed += attacked.success.double().sum().item()
        self.gain += (attacked.value - attacked.clean_value).double().sum().item()
        self.kl += distribution.kl(attacked.clean_outputs, attacked.outputs).double().sum().item()


@dataclass(frozen=True, kw_only=True)
class Adversary:
    """An attack, whom it lies to, its random numbers, and what it did.

    Attributes:
        attack: what it does, fitted where it must be.
        victim: who is attacked.
        agents: whose observations it changes.
        units: of the attack's perturbation set.
        generator: the attack's random numbers.
        tally: what it did to single decisions.
    """

    attack: Attack
    victim: Victim
    agents: Collection[str]
    units: Units
    generator: torch.Generator
    tally: Tally = field(default_factory=Tally)

    @cached_property
    def prepared(self) -> dict[str, Attack]:
        """By attacked agent: the attack on its policy, in the units of its network."""
        return {agent: prepare(self.attack, self.victim, agent, units=self.units) for agent in self.agents}


def prepare(attack: Attack, victim: Victim, agent: str, *, units: Units) -> Attack:
    """The attack on one agent's policy, in the units of its network.

    Raises:
        ValueError: the victim lacks what the attack needs.
    """
    if units == "raw":
        inside = through_filter(attack.perturbations, victim.filters.get(agent))
        attack = replace(attack, perturbations=inside)
    return attack.against(victim, agent)


Spy = Callable[[str, VictimPolicy, Tensor], None]
"""Told of every batch that was decided on: first agent of the group, policy, its inputs ``[B, d]``."""

StandIn = Callable[[BatchedEnv, Mapping[str, Tensor]], dict[str, Tensor]]
"""Acts for some agents: from what everybody sees to the actions ``[E, ...]`` of those."""


def play(
    victim: Victim,
    env: BatchedEnv,
    *,
    episodes: int,
    seed: int,
    sampled: bool = False,
    adversary: Adversary | None = None,
    stand_in: StandIn | None = None,
    on_episode: Callable[[int], None] | None = None,
    spy: Spy | None = None,
) -> Tensor:
    """Play exactly ``episodes`` episodes.

    Args:
        victim: plays all agents.
        env: E copies; E ≤ ``episodes``.
        episodes: how many.
        seed: of the episodes, and of sampled actions.
        sampled: sample actions rather than take the most likely ones.
        adversary: who lies to whom; None: everybody sees what is there.
        stand_in: acts for some agents instead of the victim, whose own random numbers stay as they are.
        on_episode: told how many episodes are done, after each.
        spy: told what the policies are asked.

    Returns:
        Returns ``[episodes, agents]`` float64: undiscounted sums of rewards, in the order of
        ``env.possible_agents``.

    Raises:
        ValueError: an episode that does not end.
    """
    share = torch.tensor([len(range(e, episodes, env.num_envs)) for e in range(env.num_envs)])
    finished = torch.zeros_like(share)
    returns = torch.zeros(episodes, len(env.possible_agents), dtype=torch.float64)
    running = torch.zeros(env.num_envs, len(env.possible_agents), dtype=torch.float64)
    length = torch.zeros_like(share)
    table = _Table(
        victim=victim,
        env=env,
        groups=alike(victim, env.possible_agents),
        adversary=adversary,
        sampler=stream(seed, ACTIONS) if sampled else None,
        spy=spy,
        stand_in=stand_in,
    )
    obs = env.reset(seed=seed)
    while (live := finished < share).any():
        step = env.step(table.decide(obs, live))
        obs = step.obs
        running += torch.stack([step.rewards[agent] for agent in env.possible_agents], -1)
        length += 1
        if length.max() > LONGEST_EPISODE:
            raise ValueError(
                f"expected episodes to end, got one of more than {LONGEST_EPISODE} steps; give the "
                "environment a time limit"
            )
        for e in step.episode_over.nonzero().flatten().tolist():
            if live[e]:
                returns[finished[e] * env.num_envs + e] = running[e]
                finished[e] += 1
                if on_episode is not None:
                    on_episode(int(finished.sum()))
            running[e] = 0
            length[e] = 0
    return returns


ATTACK, ACTIONS, SELECTION, FIT, PROBE, REPLACED = (int(key) for key in (1 << 31) + np.arange(6))
"""Streams of random numbers that one seed has beside those of its episodes."""


def stream(seed: int, key: int) -> torch.Generator:
    """The random numbers of one purpose: the same for all attacks and sizes, apart from the episodes'."""
    return torch.Generator().manual_seed(_state(seed, key))


def derived_seed(seed: int, key: int) -> int:
    """A seed of episodes for one purpose."""
    return _state(seed, key) >> 33  # 31 bits, which every environment takes


def _state(seed: int, key: int) -> int:
    return int(np.random.SeedSequence(seed, spawn_key=(key,)).generate_state(1, np.uint64)[0])


@dataclass(kw_only=True)
class _Table:
    """Where the decisions of one row are made."""

    victim: Victim
    env: BatchedEnv
    groups: list[list[str]]
    adversary: Adversary | None
    sampler: torch.Generator | None
    spy: Spy | None
    stand_in: StandIn | None

    def decide(self, obs: dict[str, Tensor], live: Tensor) -> dict[str, Tensor]:
        """Actions of everybody whose turn it is: one batch, and one attack, for each group."""
        active, masks = self.env.active, self.env.action_mask
        actions: dict[str, Tensor] = {}
        for group in self.groups:
            rows = {agent: active[agent].nonzero().flatten() for agent in group}
            rows = {agent: index for agent, index in rows.items() if len(index)}
            if not rows:
                continue
            inputs = torch.cat(
                [self.victim.inputs(agent, obs[agent][index]) for agent, index in rows.items()]
            )
            legal = [mask[index] for a, index in rows.items() if (mask := masks[a]) is not None]
            policy = self.victim.policy(group[0], action_mask=torch.cat(legal) if legal else None)
            if self.spy is not None:
                self.spy(group[0], policy, inputs)
            outputs = self._outputs(policy, inputs, rows, live)
            for (agent, index), part in zip(
                rows.items(), outputs.split([len(index) for index in rows.values()]), strict=True
            ):
                actions[agent] = self._act(agent, index, part)
        return actions if self.stand_in is None else {**actions, **self.stand_in(self.env, obs)}

    def _outputs(self, policy: VictimPolicy, inputs: Tensor, rows: dict[str, Tensor], live: Tensor) -> Tensor:
        if self.adversary is None:
            return _see(policy, inputs)
        targets = [agent for agent in rows if agent in self.adversary.agents]
        if not targets:
            return _see(policy, inputs)
        where = torch.cat([live[index] & (agent in targets) for agent, index in rows.items()])
        return _see_lies(policy, inputs, where, self.adversary, self.adversary.prepared[targets[0]])

    def _act(self, agent: str, index: Tensor, outputs: Tensor) -> Tensor:
        """Actions ``[E, ...]``; random numbers are drawn for every copy, so that a copy's are its own."""
        everywhere = outputs.new_zeros(self.env.num_envs, outputs.shape[-1])
        everywhere[index] = outputs
        if self.sampler is None:
            return self.victim.greedy(agent, everywhere)
        return self.victim.sample(agent, everywhere, generator=self.sampler)


@torch.no_grad()
def _see(policy: VictimPolicy, inputs: Tensor) -> Tensor:
    return policy(inputs)


def _see_lies(
    policy: VictimPolicy, inputs: Tensor, where: Tensor, adversary: Adversary, attack: Attack
) -> Tensor:
    """Outputs of all rows, at perturbed inputs ``where`` (``[B]`` bool) the adversary strikes."""
    index, rest = where.nonzero().flatten(), (~where).nonzero().flatten()
    if not len(index):
        return _see(policy, inputs)
    attacked = attack(policy.select(index), inputs[index], generator=adversary.generator)
    adversary.tally.add(attacked, policy.distribution)
    outputs = attacked.outputs.new_empty(len(inputs), attacked.outputs.shape[-1])
    outputs[index] = attacked.outputs
    if len(rest):
        outputs[rest] = _see(policy.select(rest), inputs[rest])
    return outputs
