"""Whole episodes of a victim, with and without an attack on its observations.

What makes returns comparable is decided here. Episode i is the (i // E)-th episode of copy i mod E and is
seeded as such, so every attack faces the same episodes. Each copy plays its own share to the end: taking the
first episodes to finish would favour short ones. Sampled actions share their random numbers too: those of a
step and a copy are the same under every attack.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from marl_aajr.core.seeds import Purpose, stream
from marl_aajr.evaluation.attack_run import AttackRun
from marl_aajr.evaluation.replacements import ReplacementPolicy
from marl_aajr.rollout.batched_env import BatchedEnv, BatchedStep
from marl_aajr.victims import Victim
from marl_aajr.victims.stepper import DecisionBatch, GeneratorSampler, Stepper

LONGEST_EPISODE = 100_000
"""Steps after which an episode counts as endless."""

StepCallback = Callable[[Sequence[DecisionBatch], Tensor], None]
"""Called in every step with the decisions that are to be made, on what is really there, and with the number
of each copy's episode, `[E]`; −1 where it does not count."""


def play(
    victim: Victim,
    env: BatchedEnv,
    *,
    episodes: int,
    seed: int,
    sampled: bool = False,
    attack: AttackRun | None = None,
    replacement: ReplacementPolicy | None = None,
    on_episode: Callable[[int], None] | None = None,
    on_step: StepCallback | None = None,
) -> Tensor:
    """Play exactly `episodes` episodes.

    Args:
        victim: plays all agents.
        env: E copies; E ≤ `episodes`.
        episodes: how many.
        seed: of the episodes, of sampled actions and of the attacked steps.
        sampled: sample actions rather than take the most likely ones.
        attack: perturbs observations; None: all policies are shown what is there.
        replacement: acts for some agents instead of the victim, whose own random numbers stay as they are.
        on_episode: called after each episode with the number of those that are done.
        on_step: called in every step, before anybody is attacked.

    Returns:
        Returns `[episodes, agents]` float64: undiscounted sums of rewards, in the order of
        `env.possible_agents`.

    Raises:
        ValueError: an episode that does not end.
        BudgetError: an attack that takes more than it may.
    """
    agents = env.possible_agents
    groups = victim.alike(agents)
    if attack is not None:
        groups = [part for group in groups for part in attack.together(group)]
        attack.begin(env.num_envs, generator=stream(seed, Purpose.TIMING))
    stepper = Stepper(victim, victim.memory(env.num_envs), groups=groups)
    kinds = {agent: victim.distribution(agent) for agent in agents}
    sampler = GeneratorSampler(kinds, env.num_envs, stream(seed, Purpose.ACTIONS)) if sampled else None
    counted = _CountedEpisodes(env, episodes)
    obs = env.reset(seed=seed)
    while (live := counted.live).any():
        batches = stepper.see(obs, active=env.active, action_mask=env.action_mask)
        if on_step is not None:
            on_step(batches, counted.episode)
        if attack is not None:
            batches = attack.perturb(batches, live)
        actions = stepper.act(batches, sampler)
        if replacement is not None:
            actions |= replacement(env, obs)
        step = env.step(actions)
        obs = step.obs
        stepper.memory.forget(step.episode_over)
        if replacement is not None:
            replacement.forget(step.episode_over)
        if attack is not None:
            attack.restart(step.episode_over)
        counted.add(step, on_episode)
    return counted.returns


class _CountedEpisodes:
    """The episodes that count: each copy's share of them, and what the agents earn in each.

    Attributes:
        returns: `[episodes, agents]` float64, complete once no copy is `live`.
    """

    def __init__(self, env: BatchedEnv, episodes: int) -> None:
        self._agents, self._num_envs = env.possible_agents, env.num_envs
        self._share = torch.tensor([len(range(e, episodes, env.num_envs)) for e in range(env.num_envs)])
        self._finished, self._length = torch.zeros_like(self._share), torch.zeros_like(self._share)
        self._running = torch.zeros(env.num_envs, len(self._agents), dtype=torch.float64)
        self.returns = torch.zeros(episodes, len(self._agents), dtype=torch.float64)

    @property
    def live(self) -> Tensor:
        """Copies whose episode counts, `[E]` bool."""
        return self._finished < self._share

    @property
    def episode(self) -> Tensor:
        """The number of each copy's episode, `[E]`; −1 where it does not count."""
        numbers = self._finished * self._num_envs + torch.arange(self._num_envs)
        return torch.where(self.live, numbers, -1)

    def add(self, step: BatchedStep, on_episode: Callable[[int], None] | None) -> None:
        """Count one step.

        Raises:
            ValueError: an episode of more than `LONGEST_EPISODE` steps.
        """
        self._running += torch.stack([step.rewards[agent] for agent in self._agents], -1)
        self._length += 1
        if self._length.max() > LONGEST_EPISODE:
            raise ValueError(
                f"expected episodes to end, got one of more than {LONGEST_EPISODE} steps; give the "
                "environment a time limit"
            )
        numbers = self.episode.tolist()
        for copy in step.episode_over.nonzero().flatten().tolist():
            if numbers[copy] >= 0:
                self.returns[numbers[copy]] = self._running[copy]
                self._finished[copy] += 1
                if on_episode is not None:
                    on_episode(int(self._finished.sum()))
            self._running[copy] = 0
            self._length[copy] = 0
