"""The worst k agents: of all that an adversary could mislead, those whose objective rises most.

    gain_i = g_i(s_i + δ_i) − g_i(s_i),   attacked are the agents of the k largest gains in a copy's step

The ascent is made for all attacked agents that see something in that step, of all modules, and the others are
shown the truth. Of equal gains the first agents' count. It is a choice step by step, by what the adversary
knows at once; the worst k of an evaluation (`marl_aajr.evaluation.budget`) are found by the returns of whole
games, and are the same ones throughout.

Between networks gains compare as far as their units do. `margin` is a difference of log-probabilities, `kl` a
divergence: both are in nats, whatever the number of actions. Chosen are those whose decisions can be moved
furthest. That says nothing of what a decision is worth, and of two networks the one with the larger logits
gains more by the same change: it is chosen more often. Values are in units of each module's own return, and a
function of one's own is in units that nobody here knows: their gains are compared within one module only.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch
from torch import Tensor

from marl_aajr.core.bound_objective import value_at
from marl_aajr.core.end_of_ascent import Ascended
from marl_aajr.core.objectives import KL, Clean, Margin, Objective
from marl_aajr.core.policy import Policy
from marl_aajr.rollout.attack.rollout_attack import RolloutAttack

_Shown = TypeVar("_Shown")
_Key = TypeVar("_Key")


@dataclass
class Attempt(Generic[_Shown]):
    """What an adversary could show the agents of one module.

    Attributes:
        show: From the rows that are attacked, `[N]` bool (None: all), to what the agents see.
        hit: The rows that may be attacked.
        ranked: The rise of the objective `[N]`, and a number of the step and copy of each row `[N]`; None:
            nobody asks for them, or nobody can be attacked.
    """

    show: Callable[[Tensor | None], _Shown]
    hit: Tensor | None = None
    ranked: tuple[Tensor, Tensor] | None = None


def settled(attempts: Mapping[_Key, Attempt[_Shown]], k: int | None) -> dict[_Key, _Shown]:
    """What agents see: of those of one step and copy the worst k are attacked; None: all that may be."""
    ranked = [(each, *each.ranked) for each in attempts.values() if each.ranked is not None]
    if k is not None and ranked:
        gains = [gain if each.hit is None else gain.where(each.hit, -torch.inf) for each, gain, _ in ranked]
        chosen = largest_in_each(torch.cat(gains), torch.cat([moment for *_, moment in ranked]), k)
        for (each, *_), own in zip(ranked, chosen.split([len(gain) for gain in gains]), strict=True):
            each.hit = own if each.hit is None else each.hit & own
    return {key: each.show(each.hit) for key, each in attempts.items()}


def largest_in_each(values: Tensor, group: Tensor, k: int) -> Tensor:
    """Whether each of `values [N]` is among the k largest of its `group [N]`, `[N]` bool.

    Of equal ones the first count.
    """
    falling = values.argsort(descending=True, stable=True)
    order = falling[group[falling].argsort(stable=True)]
    sorted_groups = group[order]
    place = torch.arange(len(order), device=order.device)
    begins = torch.ones_like(sorted_groups, dtype=torch.bool)
    begins[1:] = sorted_groups[1:] != sorted_groups[:-1]
    rank = place - torch.where(begins, place, 0).cummax(0).values
    return torch.empty_like(begins).index_put_((order,), rank < k)


@torch.no_grad()
def objective_gain(objective: Objective, policy: Policy, obs: Tensor, found: Ascended) -> Tensor:
    """g(s + δ_K) − g(s) of each row, `[N]`."""
    point = obs + found.delta
    with policy.fixed():
        g = objective.bind(policy, Clean(found.clean_outputs, values=policy.critic))
        kernel = policy.kernel(point)
        outputs = policy(point) if kernel is None else kernel(point)
        gain: Tensor = value_at(g, policy, point, outputs) - value_at(g, policy, obs, found.clean_outputs)
    return gain


def check_worst_agents(attack: RolloutAttack, members: Mapping[str, Sequence[str]]) -> None:
    """Raise `ValueError` unless the worst k are fewer than these, and can be told."""
    k, agents = attack.worst_agents, [agent for names in members.values() for agent in names]
    if k is None:
        return
    if k >= len(agents):
        raise ValueError(
            f"expected worst_agents smaller than {len(agents)}, the number of agents that can be attacked "
            f"({', '.join(agents)}), got {k}; leave it out to attack all of them"
        )
    if len(members) > 1 and not isinstance(attack.adversary, KL | Margin):
        raise ValueError(
            "expected the objective 'margin' or 'kl', whose gains are in nats, for worst_agents of modules "
            f"{', '.join(members)}, got {attack.adversary}; name the agents of one of them: agents=[...]"
        )
