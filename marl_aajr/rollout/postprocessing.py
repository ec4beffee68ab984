"""Fragments to rows that a learner trains on: generalised advantage estimation on arrays.

The time axis is the first, with any number of copies and agents behind it. RLlib walks every episode row by
row in Python and appends a phantom row to each, for the value that it bootstraps from. Here time is the only
loop.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from marl_aajr.core.policy import Tree, map_tree
from marl_aajr.rollout.fragments import ModuleFragment

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

    `δ_t = r_t + γ V'_t − V_t` and `A_t = δ_t + γλ A_{t+1}`, where the recursion stops at the end of an
    episode and V'_t is the value of what follows step t: 0 if it terminated, V(final observation) if it was
    truncated, V_{t+1} otherwise (Schulman et al. 2016, arXiv:1506.02438, eq. 16).

    Args:
        rewards: `[T, ...]`.
        values: `[T + 1, ...]`, of the observations that were acted on and of the one after the last step.
        terminated: `[T, ...]` bool: the episode ended in a terminal state; wins over `truncated`.
        truncated: `[T, ...]` bool: the episode was cut off.
        final_values: `[T, ...]`, read where truncated: the value of the episode's last observation.
        gamma: discount.
        lambda_: λ.

    Returns:
        Advantages `[T, ...]`; value targets are `advantages + values[:-1]`.
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
        rewards: `[T, ...]`, what the agent was told in each step.
        values: `[T + 1, ...]`, read where `acts`.
        acts: `[T + 1, ...]` bool: there is an observation that the agent must act on.
        terminated: See `gae`, as for all that follow.
        truncated: `[T, ...]` bool.
        final_values: `[T, ...]`.
        gamma: Discount.
        lambda_: λ.

    Returns:
        Advantages `[T, ...]`, 0 where there is no sample, and where there is one, `[T, ...]` bool.
    """
    advantages = torch.zeros_like(rewards)
    samples = samples_of(acts, terminated | truncated)
    following = values[-1].masked_fill(~acts[-1], 0.0)
    carry, earned = torch.zeros_like(following), torch.zeros_like(following)
    for t in range(len(rewards) - 1, -1, -1):
        ended, decides = terminated[t] | truncated[t], acts[t]
        final = final_values[t].masked_fill(terminated[t], 0.0)
        following = torch.where(ended, final, following)
        carry = carry.masked_fill(ended, 0.0)
        earned = earned.masked_fill(ended, 0.0) + rewards[t]
        advantage = earned + gamma * following - values[t] + gamma * lambda_ * carry
        advantages[t] = advantage.masked_fill(~samples[t], 0.0)
        carry = torch.where(decides, advantages[t], carry)
        following = torch.where(decides, values[t], following)
        earned = earned.masked_fill(decides, 0.0)
    return advantages, samples


def samples_of(acts: Tensor, ended: Tensor) -> Tensor:
    """`[T, ...]` bool: decisions of which something has come, an end or a next observation.

    Args:
        acts: See `gae_of_turns`.
        ended: `[T, ...]` bool: the agent ended in this step.
    """
    return acts[:-1] & (ended | acts[1:]).flip(0).cummax(0).values.flip(0)


def standardize(advantages: Tensor) -> Tensor:
    """`(A − mean) / max(std, 1e-4)` over all elements, with the population's standard deviation."""
    if not len(advantages):
        return advantages
    spread = advantages.std(correction=0).clamp(min=MIN_STD)
    return (advantages - advantages.mean()) / spread


ValueFunction = Callable[[Tensor, Tensor | None], Tensor]
"""Observations `[N, ...]` and legal actions `[N, n]` (or None) to values `[N]`."""


@dataclass(frozen=True)
class TrainingRows:
    """N independent samples of one module; or B sequences of L, padded with zeros: then N reads B, L.

    Attributes:
        obs: `[N, ...]`.
        mask: `[N, n]` bool, legal actions; None where the game has no masks.
        actions: `[N, ...]`.
        log_probs: `[N]`.
        inputs: `[N, m]`.
        advantages: `[N]`, standardised over the samples.
        value_targets: `[N]`.
        clean_obs: `[N, ...]`, observations without what an adversary changed; None: nobody was attacked.
        path: `[N, 2, points, d]`, points of the adversary's path; None: none are kept.
        loss_mask: `[N]` bool, False for padding and rows that only look like samples; None: all are samples.
        states: Recurrent states `[B, ...]` before the first sample of each sequence.
    """

    obs: Tensor
    mask: Tensor | None
    actions: Tensor
    log_probs: Tensor
    inputs: Tensor
    advantages: Tensor
    value_targets: Tensor
    clean_obs: Tensor | None = None
    path: Tensor | None = None
    loss_mask: Tensor | None = None
    states: Tree | None = None

    @classmethod
    def of(
        cls,
        part: ModuleFragment,
        rows: Callable[[Tensor], Tensor],
        values: Tensor,
        advantages: Tensor,
        **more: Any,
    ) -> TrainingRows:
        """The rows that `rows` takes out of the columns `[T, G, E, ...]` of a fragment."""
        names = ("obs", "clean_obs", "path", "mask", "actions", "log_probs", "inputs")
        kept = {name: getattr(part, name) for name in names}
        columns = {**kept, "advantages": advantages, "value_targets": advantages + values[:-1]}
        taken: dict[str, Any] = {name: None if x is None else rows(x) for name, x in columns.items()}
        return cls(**taken, **more)

    def __len__(self) -> int:
        return len(self.advantages)


def training_rows(
    parts: Sequence[ModuleFragment],
    critic: ValueFunction,
    *,
    gamma: float,
    lambda_: float,
    clean_critic: bool = False,
) -> TrainingRows:
    """The samples of one module in some fragments.

    Truncated episodes bootstrap from their last observation, fragments from the one that follows them.
    Only samples become rows, so standardisation and means in the loss are over samples alone.

    Args:
        parts: The module's part of each fragment.
        critic: The values of the module that is trained.
        gamma: Discount.
        lambda_: λ of GAE.
        clean_critic: Whether the critic reads observations without what an adversary changed.

    Returns:
        The rows, fragment by fragment; within one, by time, agent and copy.
    """
    rows = join([_rows(part, critic, clean_critic, gamma=gamma, lambda_=lambda_) for part in parts])
    return replace(rows, advantages=standardize(rows.advantages))


def join(pieces: Sequence[TrainingRows]) -> TrainingRows:
    """The rows of all pieces."""
    if len(pieces) == 1:
        return pieces[0]
    columns = map_tree(lambda *parts: None if parts[0] is None else torch.cat(parts), *map(vars, pieces))
    return TrainingRows(**columns)


def _rows(
    part: ModuleFragment, critic: ValueFunction, clean_critic: bool, **discounts: float
) -> TrainingRows:
    read = part.clean_obs if clean_critic else None
    values, final_values = values_of(part if read is None else replace(part, obs=read), critic)
    advantages, samples = advantages_of(part, values, final_values, **discounts)

    def rows(column: Tensor) -> Tensor:
        column = column[: part.steps]
        return column.flatten(0, 2) if samples is None else column[samples]

    return TrainingRows.of(part, rows, values, advantages)


def advantages_of(
    part: ModuleFragment, values: Tensor, final_values: Tensor, *, gamma: float, lambda_: float
) -> tuple[Tensor, Tensor | None]:
    """Advantages `[T, G, E]` of a fragment's decisions, and which of them are samples (None: all)."""
    ends: dict[str, Any] = {name: getattr(part, name) for name in ("terminated", "truncated")}
    ends |= {"final_values": final_values, "gamma": gamma, "lambda_": lambda_}
    if part.acts is None:
        return gae(part.rewards, values, **ends), None
    return gae_of_turns(part.rewards, values, acts=part.acts, **ends)


@torch.no_grad()
def values_of(part: ModuleFragment, critic: ValueFunction) -> tuple[Tensor, Tensor]:
    """Values of a fragment's observations `[T + 1, G, E]`, and of the last ones of episodes `[T, G, E]`.

    They are 0 where there is none.
    """
    shape = part.obs.shape[:3]
    if part.acts is None:
        mask = None if part.mask is None else part.mask.flatten(0, 2)
        values = critic(part.obs.flatten(0, 2), mask).view(shape)
    else:
        values = part.rewards.new_zeros(shape)
        mask = None if part.mask is None else part.mask[part.acts]
        values[part.acts] = critic(part.obs[part.acts], mask)
    final_values = part.rewards.new_zeros(part.rewards.shape)
    if len(part.final_at):
        legal = None if part.mask is None else part.mask.new_ones((len(part.final_at), part.mask.shape[-1]))
        final_values[part.final_at.unbind(1)] = critic(part.final_obs, legal)
    return values, final_values
