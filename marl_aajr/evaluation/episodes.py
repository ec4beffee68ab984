"""Whole episodes of a victim, with and without somebody who lies to its sensors.

What makes returns comparable is decided here. Episode i is the (i // E)-th episode of copy i mod E and is
seeded as such, so every attack faces the same episodes. Each copy plays its own share to the end: taking the
first episodes to finish would favour short ones.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from marl_aajr.attacks import Attack, Attacked
from marl_aajr.distributions import ActionDistribution
from marl_aajr.rollout.batched import BatchedEnv
from marl_aajr.victims import Victim, VictimPolicy

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
    """An attack, its victims among the agents, its random numbers, and what it did."""

    attack: Attack
    agents: Collection[str]
    generator: torch.Generator
    tally: Tally = field(default_factory=Tally)


def play(
    victim: Victim,
    env: BatchedEnv,
    *,
    episodes: int,
    seed: int,
    adversary: Adversary | None = None,
    on_episode: Callable[[int], None] | None = None,
) -> Tensor:
    """Play exactly ``episodes`` episodes with greedy actions.

    Args:
        victim: plays all agents.
        env: E copies; E ≤ ``episodes``.
        episodes: how many.
        seed: of the episodes.
        adversary: who lies to whom; None: everybody sees what is there.
        on_episode: told how many episodes are done, after each.

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
    obs = env.reset(seed=seed)
    while (live := finished < share).any():
        step = env.step(_decide(victim, env, obs, live, adversary))
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


def attack_generator(seed: int) -> torch.Generator:
    """The attacker's own random numbers: the same for all attacks and sizes, apart from the episodes'."""
    state = np.random.SeedSequence(seed, spawn_key=(1 << 31,)).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(state[0]))


def _decide(
    victim: Victim, env: BatchedEnv, obs: dict[str, Tensor], live: Tensor, adversary: Adversary | None
) -> dict[str, Tensor]:
    """Actions of everybody whose turn it is: one batch, and one attack, for each module."""
    active, masks = env.active, env.action_mask
    actions: dict[str, Tensor] = {}
    for module_id in victim.modules:
        rows = {a: active[a].nonzero().flatten() for a in victim.agents_of(module_id) if a in active}
        rows = {agent: index for agent, index in rows.items() if len(index)}
        if not rows:
            continue
        inputs = torch.cat([victim.inputs(agent, obs[agent][index]) for agent, index in rows.items()])
        legal = [mask[index] for a, index in rows.items() if (mask := masks[a]) is not None]
        policy = victim.policy(next(iter(rows)), action_mask=torch.cat(legal) if legal else None)
        if adversary is None:
            outputs = _see(policy, inputs)
        else:
            attacked = [live[index] & (agent in adversary.agents) for agent, index in rows.items()]
            outputs = _see_lies(policy, inputs, torch.cat(attacked), adversary)
        parts = outputs.split([len(index) for index in rows.values()])
        for (agent, index), part in zip(rows.items(), parts, strict=True):
            chosen = victim.greedy(agent, part)
            actions[agent] = chosen.new_zeros(env.num_envs, *chosen.shape[1:])
            actions[agent][index] = chosen
    return actions


@torch.no_grad()
def _see(policy: VictimPolicy, inputs: Tensor) -> Tensor:
    return policy(inputs)


def _see_lies(policy: VictimPolicy, inputs: Tensor, where: Tensor, adversary: Adversary) -> Tensor:
    """Outputs of all rows, at perturbed inputs ``where`` (``[B]`` bool) the adversary strikes."""
    index, rest = where.nonzero().flatten(), (~where).nonzero().flatten()
    if not len(index):
        return _see(policy, inputs)
    attacked = adversary.attack(policy.select(index), inputs[index], generator=adversary.generator)
    adversary.tally.add(attacked, policy.distribution)
    outputs = attacked.outputs.new_empty(len(inputs), attacked.outputs.shape[-1])
    outputs[index] = attacked.outputs
    if len(rest):
        outputs[rest] = _see(policy.select(rest), inputs[rest])
    return outputs
