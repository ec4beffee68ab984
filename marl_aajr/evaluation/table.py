"""Where the decisions of one row are made: who sees what, who is lied to, and who acts how."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from marl_aajr.attacks import Attack
from marl_aajr.evaluation.adversary import Adversary
from marl_aajr.evaluation.timing import Clock, Ledger, mean_where, stakes
from marl_aajr.evaluation.view import View
from marl_aajr.rollout.batched_env import BatchedEnv
from marl_aajr.victims import Memory, Victim, VictimPolicy
from marl_aajr.victims.groups import alike
from marl_aajr.victims.recurrent import State


class StandIn(Protocol):
    """Acts for some agents: from what everybody sees to the actions `[E, ...]` of those."""

    def __call__(self, env: BatchedEnv, obs: Mapping[str, Tensor]) -> dict[str, Tensor]: ...

    def forget(self, over: Tensor) -> None:
        """Forget what was of episodes that are over, `[E]` bool."""


@dataclass(kw_only=True)
class Table:
    """One game in E copies, step by step: first everybody looks, then the adversary strikes, then all act.

    Attributes:
        victim: plays all agents.
        env: the copies.
        adversary: who lies to whom; None: everybody sees what is there.
        sampler: of the actions; None: the most likely ones.
        chances: of an adversary that does not strike at every step, when to.
        stand_in: acts for some agents instead of the victim.
    """

    victim: Victim
    env: BatchedEnv
    adversary: Adversary | None
    sampler: torch.Generator | None
    chances: torch.Generator
    stand_in: StandIn | None
    _groups: list[list[str]] = field(init=False)
    _memory: Memory = field(init=False)
    _policies: dict[str, VictimPolicy] = field(init=False, default_factory=dict)
    _clock: Clock | None = field(init=False, default=None)
    _ledger: Ledger | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        self._memory = self.victim.memory(self.env.num_envs)
        self._groups = alike(self.victim, self.env.possible_agents)
        if self.adversary is not None:
            self._groups = [part for group in self._groups for part in self.adversary.together(group)]
        if self.adversary is not None and self.adversary.pace is not None:
            pace, num_envs = self.adversary.pace, self.env.num_envs
            self._clock = Clock(pace, num_envs=num_envs, generator=self.chances)
            self._ledger = Ledger(pace.steps, num_envs=num_envs)

    def look(self, obs: Mapping[str, Tensor]) -> list[View]:
        """What is to be decided in this step: a view for each group of agents that are taken together."""
        active, masks = self.env.active, self.env.action_mask
        views = []
        for group in self._groups:
            rows = {agent: active[agent].nonzero().flatten() for agent in group}
            rows = {agent: index for agent, index in rows.items() if len(index)}
            if not rows:
                continue
            inputs = torch.cat([self.victim.inputs(a, obs[a][index]) for a, index in rows.items()])
            legal = [mask[index] for a, index in rows.items() if (mask := masks[a]) is not None]
            policy = self._policy(group[0], torch.cat(legal) if legal else None, self._memory.recall(rows))
            views.append(View(rows, inputs, policy))
        return views

    def _policy(self, agent: str, legal: Tensor | None, state: State | None) -> VictimPolicy:
        """The policy of this step's rows, which is made once where they have nothing of their own."""
        if legal is not None or state is not None:
            return self.victim.policy(agent, action_mask=legal, state=state)
        if agent not in self._policies:
            self._policies[agent] = self.victim.policy(agent)
        return self._policies[agent]

    def act(self, views: Sequence[View], obs: Mapping[str, Tensor], live: Tensor) -> dict[str, Tensor]:
        """Actions `[E, ...]` of everybody who must act.

        Args:
            views: of this step.
            obs: for those who stand in.
            live: copies whose episode counts, `[E]` bool; nobody is lied to in the others.
        """
        answers: dict[str, Tensor] = {}
        strikes = self._strikes(views, live)
        orders = self._orders(views, strikes)
        for view in views:
            shown, outputs = self._shown(view, strikes, orders)
            self._memory.advance(view.rows, view.policy, shown)
            for agent, index, part in view.split(outputs):
                answers[agent] = part.new_zeros(self.env.num_envs, part.shape[-1])
                answers[agent][index] = part
        actions = self._chosen(answers)
        return actions if self.stand_in is None else {**actions, **self.stand_in(self.env, obs)}

    def restart(self, over: Tensor) -> None:
        """Forget what was of episodes that are over, `[E]` bool."""
        self._memory.forget(over)
        if self.stand_in is not None:
            self.stand_in.forget(over)
        if self._clock is not None and self._ledger is not None:
            self._clock.restart(over)
            self._ledger.restart(over)

    def _strikes(self, views: Sequence[View], live: Tensor) -> Tensor:
        """Copies where the adversary lies in this step, `[E]` bool: its wish, and the judge's count."""
        if self.adversary is None or self._clock is None or self._ledger is None:
            return live
        pace = self.adversary.pace
        assert pace is not None
        due, preferences = stakes(
            views, list(self.adversary.agents), len(live), strategic=pace.timing == "strategic"
        )
        due &= live.unsqueeze(-1)
        strikes = self._clock.strike(due.any(1), mean_where(preferences, due)) & live
        self._ledger.enter(strikes & due.any(1))
        self.adversary.tally.strikes = self._ledger.total
        return strikes

    def _orders(self, views: Sequence[View], strikes: Tensor) -> Mapping[str, Tensor]:
        """By agent, what an adversary that acts for all of them at once settles before each is lied to."""
        if self.adversary is None or not self.adversary.attack.confers:
            return {}
        seen = {}
        for view in views:
            for agent, index, part in view.split(view.inputs):
                if agent in self.adversary.agents:
                    everywhere = part.new_zeros(len(strikes), part.shape[-1])
                    everywhere[index] = part * strikes[index].unsqueeze(-1)
                    seen[agent] = everywhere
        return self.adversary.attack.confer(seen, generator=self.adversary.generator) if seen else {}

    def _shown(self, view: View, strikes: Tensor, orders: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """What the policies are shown `[B, d]`, and what they answer `[B, m]`."""
        targets = [] if self.adversary is None else [a for a in view.rows if a in self.adversary.agents]
        if self.adversary is None or not targets:
            return view.inputs, _see(view.policy, view.inputs)
        hit = torch.cat([strikes[index] & (agent in targets) for agent, index in view.rows.items()])
        index, rest = hit.nonzero().flatten(), (~hit).nonzero().flatten()
        if not len(index):
            return view.inputs, _see(view.policy, view.inputs)
        attack: Attack = self.adversary.prepared[targets[0]]
        if orders:
            attack = attack.under_orders(
                torch.cat([orders[a][i[strikes[i]]] for a, i in view.rows.items() if a in targets])
            )
        attacked = attack(view.policy.select(index), view.inputs[index], generator=self.adversary.generator)
        self.adversary.tally.add(attacked, view.policy.distribution)
        shown, outputs = view.inputs.clone(), attacked.outputs.new_empty(len(hit), attacked.outputs.shape[-1])
        shown[index], outputs[index] = attacked.perturbed, attacked.outputs
        if len(rest):
            outputs[rest] = _see(view.policy.select(rest), view.inputs[rest])
        return shown, outputs

    def _chosen(self, answers: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Actions `[E, ...]` by what the policies answered in every copy, `[E, m]`.

        Random numbers are drawn for every agent in every copy, whoever acts, so that those of a copy and a
        step are the same whatever happens in the others, and under every attack.
        """
        if self.sampler is None:
            return {agent: self.victim.greedy(agent, outputs) for agent, outputs in answers.items()}
        drawn = {}
        for agent in self.env.possible_agents:
            outputs = answers[agent] if agent in answers else self._nothing(agent)
            drawn[agent] = self.victim.sample(agent, outputs, generator=self.sampler)
        return {agent: drawn[agent] for agent in answers}

    def _nothing(self, agent: str) -> Tensor:
        """Outputs `[E, m]` where an agent acts nowhere."""
        width = self.victim.distributions[self.victim.module_of[agent]].num_inputs
        return torch.zeros(self.env.num_envs, width)


@torch.no_grad()
def _see(policy: VictimPolicy, inputs: Tensor) -> Tensor:
    return policy(inputs)
