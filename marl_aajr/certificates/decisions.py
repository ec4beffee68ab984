"""The decisions of unattacked episodes, all at once: what bounds and attacks look at."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from marl_aajr.core.checks import grouped
from marl_aajr.evaluation.episodes import play
from marl_aajr.rollout.batched_env import BatchedEnv
from marl_aajr.victims import Victim, VictimPolicy
from marl_aajr.victims.stepper import DecisionBatch


@dataclass(frozen=True, eq=False)
class Decisions:
    """Greedy decisions by agents of one module and one filter.

    Attributes:
        policy: the agents' policy, with each row's legal actions.
        inputs: what the network was given, behind the filter, `[B, d]`.
        outputs: what it said, as it played, `[B, m]`.
        names: the agents.
        places: the place of each row's agent among the names, its episode and its step, `[B, 3]`.
    """

    policy: VictimPolicy
    inputs: Tensor
    outputs: Tensor
    names: Sequence[str]
    places: Tensor

    @property
    def agent(self) -> str:
        """One of the agents."""
        return self.names[0]

    def __len__(self) -> int:
        return len(self.inputs)

    def select(self, rows: Tensor) -> Decisions:
        """The decisions `rows` only."""
        return Decisions(
            self.policy.select(rows), self.inputs[rows], self.outputs[rows], self.names, self.places[rows]
        )

    def named(self, row: int) -> str:
        """A decision in words."""
        agent, episode, step = self.places[row].tolist()
        return f"the decision of {self.names[agent]!r} in step {step} of episode {episode}"


def clean_decisions(
    victim: Victim,
    env: BatchedEnv,
    agents: Collection[str],
    *,
    episodes: int,
    seed: int,
    on_episode: Callable[[int], None] | None = None,
) -> list[Decisions]:
    """The decisions of some agents in unattacked greedy episodes, one group for each network and filter."""
    kept: list[tuple[str, tuple[DecisionBatch, Tensor, Tensor]]] = []
    steps = torch.zeros(env.num_envs, dtype=torch.long)
    before = torch.full((env.num_envs,), -1)

    def keep(batches: Sequence[DecisionBatch], episode: Tensor) -> None:
        steps.add_(1).masked_fill_(episode != before, 0)
        before.copy_(episode)
        for batch in batches:
            copies = torch.cat(list(batch.rows.values()))
            numbers = torch.cat([torch.full_like(c, names.index(a)) for a, c in batch.rows.items()])
            wanted = torch.tensor([name in agents for name in names])
            rows = (wanted[numbers] & (episode[copies] >= 0)).nonzero().flatten()
            if len(rows):
                places = torch.stack([numbers, episode[copies], steps[copies]], -1)[rows]
                kept.append((group_of[batch.agent], (batch, rows, places)))

    names = list(env.possible_agents)
    group_of = {agent: group[0] for group in victim.alike(names) for agent in group}
    play(victim, env, episodes=episodes, seed=seed, on_step=keep, on_episode=on_episode)
    return [_joined(parts, names) for parts in grouped(kept).values()]


@torch.no_grad()
def _joined(parts: Sequence[tuple[DecisionBatch, Tensor, Tensor]], names: Sequence[str]) -> Decisions:
    policy = VictimPolicy.joined([batch.policy.select(rows) for batch, rows, _ in parts])
    inputs = torch.cat([batch.inputs[rows] for batch, rows, _ in parts])
    places = torch.cat([places for *_, places in parts])
    own = sorted(set(places[:, 0].tolist()))
    places[:, 0] = torch.tensor([own.index(number) for number in places[:, 0].tolist()])
    return Decisions(policy, inputs, policy(inputs), [names[number] for number in own], places)
