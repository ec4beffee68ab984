"""Observations that a victim really meets, kept for the checks."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from marl_aajr.victims import Victim, VictimPolicy

_PER_STEP = 32
"""Rows kept of each step, so that one long episode does not fill the sample."""


@dataclass(frozen=True)
class Sample:
    """Decisions of agents that share a policy.

    Attributes:
        agent: one of them.
        policy: theirs, with each row's legal actions.
        obs: network inputs, ``[B, d]``.
    """

    agent: str
    policy: VictimPolicy
    obs: Tensor


@dataclass
class Probe:
    """Keeps a random part of what the policies are asked; see :data:`~marl_aajr.evaluation.episodes.Spy`.

    Attributes:
        generator: chooses the rows.
    """

    generator: torch.Generator
    _inputs: dict[str, list[Tensor]] = field(default_factory=dict)
    _masks: dict[str, list[Tensor]] = field(default_factory=dict)

    def __call__(self, agent: str, policy: VictimPolicy, inputs: Tensor) -> None:
        chosen = torch.randperm(len(inputs), generator=self.generator)[:_PER_STEP]
        self._inputs.setdefault(agent, []).append(inputs[chosen])
        if policy.action_mask is not None:
            self._masks.setdefault(agent, []).append(policy.action_mask[chosen])

    def samples(self, victim: Victim, agents: list[list[str]], *, rows: int) -> list[Sample]:
        """At most ``rows`` decisions of each group of agents."""
        found = []
        for group in agents:
            if group[0] not in self._inputs:
                continue
            inputs = torch.cat(self._inputs[group[0]])
            chosen = torch.randperm(len(inputs), generator=self.generator)[:rows]
            masks = self._masks.get(group[0])
            legal = None if masks is None else torch.cat(masks)[chosen]
            found.append(Sample(group[0], victim.policy(group[0], action_mask=legal), inputs[chosen]))
        return found
