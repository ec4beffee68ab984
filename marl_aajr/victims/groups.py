"""Agents of a victim that one forward pass, and one attack, can take together."""

from __future__ import annotations

from collections.abc import Collection

import torch

from marl_aajr.victims.filters import ObservationFilter
from marl_aajr.victims.victim import Victim


def alike(victim: Victim, agents: Collection[str]) -> list[list[str]]:
    """Agents in groups of one module and one filter: what a batch, and an attack, can take together."""
    groups: list[list[str]] = []
    for agent in agents:
        for group in groups:
            same_module = victim.module_of[group[0]] == victim.module_of[agent]
            if same_module and _same_filter(victim.filters.get(group[0]), victim.filters.get(agent)):
                group.append(agent)
                break
        else:
            groups.append([agent])
    return groups


def _same_filter(a: ObservationFilter | None, b: ObservationFilter | None) -> bool:
    if a is None or b is None or a is b:
        return a is b
    return a.clip == b.clip and torch.equal(a.mean, b.mean) and torch.equal(a.std, b.std)
