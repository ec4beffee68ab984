"""Whole episodes of a victim, with and without somebody who lies to its sensors.

What makes returns comparable is decided here. Episode i is the (i // E)-th episode of copy i mod E and is
seeded as such, so every attack faces the same episodes. Each copy plays its own share to the end: taking the
first episodes to finish would favour short ones. Sampled actions share their random numbers too: those of a
step and a copy are the same under every attack.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from marl_aajr.core.seeds import Purpose, stream
from marl_aajr.evaluation.adversary import Adversary
from marl_aajr.evaluation.table import StandIn, Table
from marl_aajr.evaluation.view import Spy
from marl_aajr.rollout.batched_env import BatchedEnv
from marl_aajr.victims import Victim

LONGEST_EPISODE = 100_000
"""Steps after which an episode counts as endless."""


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
    """Play exactly `episodes` episodes.

    Args:
        victim: plays all agents.
        env: E copies; E ≤ `episodes`.
        episodes: how many.
        seed: of the episodes, and of sampled actions.
        sampled: sample actions rather than take the most likely ones.
        adversary: who lies to whom; None: everybody sees what is there.
        stand_in: acts for some agents instead of the victim, whose own random numbers stay as they are.
        on_episode: told how many episodes are done, after each.
        spy: told what the policies are asked, at every step.

    Returns:
        Returns `[episodes, agents]` float64: undiscounted sums of rewards, in the order of
        `env.possible_agents`.

    Raises:
        ValueError: an episode that does not end.
        BudgetError: an adversary that takes more than it may.
    """
    share = torch.tensor([len(range(e, episodes, env.num_envs)) for e in range(env.num_envs)])
    finished = torch.zeros_like(share)
    returns = torch.zeros(episodes, len(env.possible_agents), dtype=torch.float64)
    running = torch.zeros(env.num_envs, len(env.possible_agents), dtype=torch.float64)
    length = torch.zeros_like(share)
    copies = torch.arange(env.num_envs)
    table = Table(
        victim=victim,
        env=env,
        adversary=adversary,
        sampler=stream(seed, Purpose.ACTIONS) if sampled else None,
        chances=stream(seed, Purpose.TIMING),
        stand_in=stand_in,
    )
    obs = env.reset(seed=seed)
    while (live := finished < share).any():
        views = table.look(obs)
        if spy is not None:
            spy(views, torch.where(live, finished * env.num_envs + copies, -1))
        step = env.step(table.act(views, obs, live))
        table.restart(step.episode_over)
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
