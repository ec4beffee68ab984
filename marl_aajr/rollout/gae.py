"""Generalised advantage estimation on arrays: the time axis first, any number of copies and agents behind it.

RLlib walks every episode row by row in Python and appends a phantom row to each, for the value that it
bootstraps from. Here time is the only loop.
"""

from __future__ import annotations

import torch
from torch import Tensor

MIN_STD = 1e-4
"""RLlib's lower bound of the standard deviation that advantages are divided by."""


def gae(
    rewards: Tensor,
    values: Tensor,
    *,
    terminated: Tensor,
    truncated: Tensor,
    final_values: Tensor,
    gamma: float,
    lambda_: float,
) -> Tensor:
    """Advantages of agents that act at every step.

    ``δ_t = r_t + γ V'_t − V_t`` and ``A_t = δ_t + γλ A_{t+1}``, where the recursion stops at the end of an
    episode and V'_t is the value of what follows step t: 0 if it terminated, V(final observation) if it was
    truncated, V_{t+1} otherwise (Schulman et al. 2016, arXiv:1506.02438, eq. 16).

    Args:
        rewards: ``[T, ...]``.
        values: ``[T + 1, ...]``, of the observations that were acted on and of the one after the last step.
        terminated: ``[T, ...]`` bool: the episode ended in a terminal state; wins over ``truncated``.
        truncated: ``[T, ...]`` bool: the episode was cut off.
        final_values: ``[T, ...]``, read where truncated: the value of the episode's last observation.
        gamma: discount.
        lambda_: λ.

    Returns:
        Advantages ``[T, ...]``; value targets are ``advantages + values[:-1]``.
    """
    ended = terminated | truncated
    following = torch.where(ended, final_values.masked_fill(terminated, 0.0), values[1:])
    deltas = torch.add(rewards, following, alpha=gamma).sub_(values[:-1])
    carries = (~ended).to(rewards.dtype).mul_(gamma * lambda_)
    for t in range(len(deltas) - 2, -1, -1):
        deltas[t].addcmul_(carries[t], deltas[t + 1])
    return deltas


def gae_of_turns(
    rewards: Tensor,
    values: Tensor,
    *,
    acts: Tensor,
    terminated: Tensor,
    truncated: Tensor,
    final_values: Tensor,
    gamma: float,
    lambda_: float,
) -> tuple[Tensor, Tensor]:
    """Advantages of agents that act at some of the steps: turns, late arrivals, early endings.

    An agent's time is its own decisions: the discount counts them, and what it is paid until its next
    decision (or its end) is the reward of this one. A decision whose outcome lies beyond the last step is no
    sample; its value is still what the decision before it bootstraps from.

    Args:
        rewards: ``[T, ...]``, what the agent was told in each step.
        values: ``[T + 1, ...]``, read where ``acts``.
        acts: ``[T + 1, ...]`` bool: there is an observation that the agent must act on.
        terminated: see :func:`gae`.
        truncated: see :func:`gae`.
        final_values: see :func:`gae`.
        gamma: see :func:`gae`.
        lambda_: see :func:`gae`.

    Returns:
        Advantages ``[T, ...]``, 0 where there is no sample, and where there is one, ``[T, ...]`` bool.
    """
    advantages = torch.zeros_like(rewards)
    known = acts[-1].clone()
    following = values[-1].masked_fill(~known, 0.0)
    carry, earned = torch.zeros_like(following), torch.zeros_like(following)
    samples = torch.zeros_like(acts[:-1])
    for t in range(len(rewards) - 1, -1, -1):
        ended, decides = terminated[t] | truncated[t], acts[t]
        final = final_values[t].masked_fill(terminated[t], 0.0)
        following = torch.where(ended, final, following)
        carry = carry.masked_fill(ended, 0.0)
        earned = earned.masked_fill(ended, 0.0) + rewards[t]
        known = known | ended
        samples[t] = decides & known
        advantage = earned + gamma * following - values[t] + gamma * lambda_ * carry
        advantages[t] = advantage.masked_fill(~samples[t], 0.0)
        carry = torch.where(decides, advantages[t], carry)
        following = torch.where(decides, values[t], following)
        earned = earned.masked_fill(decides, 0.0)
        known = known | decides
    return advantages, samples


def standardize(advantages: Tensor) -> Tensor:
    """``(A − mean) / max(std, 1e-4)`` over all elements, with the population's standard deviation."""
    if not len(advantages):
        return advantages
    spread = advantages.std(correction=0).clamp(min=MIN_STD)
    return (advantages - advantages.mean()) / spread
