"""Observations that a victim really meets, kept for the checks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from marl_aajr.victims import VictimPolicy
from marl_aajr.victims.stepper import DecisionBatch

_PER_STEP = 32
"""Rows kept of each step, so that one long episode does not fill the sample."""


@dataclass(frozen=True)
class DecisionSample:
    """Decisions of agents that share a policy.

    Attributes:
        agent: one of them.
        policy: theirs, with each row's legal actions and state.
        obs: network inputs, `[B, d]`.
    """

    agent: str
    policy: VictimPolicy
    obs: Tensor


@dataclass
class ObservationSampler:
    """Keeps a random part of the decisions that policies meet; a `StepCallback`.

    Attributes:
        generator: chooses the rows.
    """

    generator: torch.Generator
    _inputs: dict[str, list[Tensor]] = field(default_factory=dict)
    _policies: dict[str, list[VictimPolicy]] = field(default_factory=dict)

    def __call__(self, batches: Sequence[DecisionBatch], episode: Tensor) -> None:
        for batch in batches:
            self._keep(batch.agent, batch.policy, batch.inputs)

    def _keep(self, agent: str, policy: VictimPolicy, inputs: Tensor) -> None:
        chosen = torch.randperm(len(inputs), generator=self.generator)[:_PER_STEP]
        self._inputs.setdefault(agent, []).append(inputs[chosen])
        self._policies.setdefault(agent, []).append(policy.select(chosen))

    def samples(self, agents: list[list[str]], *, rows: int) -> list[DecisionSample]:
        """At most `rows` decisions of each group of agents."""
        found = []
        for group in agents:
            if group[0] not in self._inputs:
                continue
            inputs = torch.cat(self._inputs[group[0]])
            chosen = torch.randperm(len(inputs), generator=self.generator)[:rows]
            policy = VictimPolicy.joined(self._policies[group[0]])
            found.append(DecisionSample(group[0], policy.select(chosen), inputs[chosen]))
        return found
