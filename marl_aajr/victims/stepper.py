"""One step of frozen policies: they see, are perturbed, decide, and remember.

    batches = stepper.see(obs, active=env.active, action_mask=env.action_mask)
    batches = [batch.shown(perturbed(batch)) for batch in batches]
    actions = stepper.act(batches, sampler)
    stepper.memory.forget(env.step(actions).episode_over)

Everything that plays frozen policies plays them by these lines: evaluations, games of learned adversaries,
replacement policies, and a victim in somebody else's loop. The environment stays with the caller, as do the
random numbers. Decided here, once for all of them:

- **Filter.** A network is given the filtered observation, and a perturbation is one of what it is given.
- **Shared networks.** Agents of one group, which have one module and one filter, decide in one forward pass
  over the copies in which they must act.
- **Masks.** Forbidden actions have the lowest logit there is: neither greedy nor sampled play takes them.
- **Memory.** A recurrent state moves on once per decision, by what the network was shown. Asking the policy
  of a batch, as attacks do, moves nothing.
- **Actions.** Greedy, or drawn by a sampler whose numbers for an agent, a step and a copy do not depend on
  what happens to anybody else.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any, Protocol

import torch
from torch import Tensor

from marl_aajr.core.distributions import ActionDistribution, DiagGaussian, MultiCategorical
from marl_aajr.core.seeds import Streams
from marl_aajr.core.token_network import TokenNetwork
from marl_aajr.victims.recurrent import Memory, State
from marl_aajr.victims.victim import Victim
from marl_aajr.victims.victim_policy import VictimPolicy


@dataclass(frozen=True, eq=False)
class DecisionBatch:
    """The decisions of one step by agents of one module and one filter, as one batch.

    Attributes:
        rows: agent -> the copies in which it must act, `[b]`; B = Σ b.
        policy: the agents' policy, with each row's legal actions and recurrent state. Asking it changes
            nothing.
        inputs: what the network is given, behind the filter, `[B, d]`.
        outputs: the policy's outputs at `inputs`, `[B, m]`, where somebody knows them already.
    """

    rows: Mapping[str, Tensor]
    policy: VictimPolicy
    inputs: Tensor
    outputs: Tensor | None = None

    @property
    def agent(self) -> str:
        """One of the agents."""
        return next(iter(self.rows))

    def shown(self, inputs: Tensor, outputs: Tensor | None = None) -> DecisionBatch:
        """The same decisions, made on other inputs `[B, d]`; with the outputs there if they are known."""
        return replace(self, inputs=inputs, outputs=outputs)

    def split(self, values: Tensor) -> Iterator[tuple[str, Tensor, Tensor]]:
        """Values `[B, ...]` by agent: its name, its copies `[b]`, its values `[b, ...]`."""
        parts = values.split([len(index) for index in self.rows.values()])
        for (agent, index), part in zip(self.rows.items(), parts, strict=True):
            yield agent, index, part

    def everywhere(self, values: Tensor, num_envs: int) -> dict[str, Tensor]:
        """Values `[B, ...]` by agent in all copies, `[E, ...]`, zero where it does not act."""
        return {
            agent: part.new_zeros(num_envs, *part.shape[1:]).index_copy(0, copies, part)
            for agent, copies, part in self.split(values)
        }


class ActionSampler(Protocol):
    """Draws actions where a victim does not take the most likely ones."""

    def __call__(self, outputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Random actions of the agents' distributions, `[E, m] -> [E, ...]` by agent."""


class Stepper:
    """Frozen policies in E copies of a game, step by step; the module has the loop.

    Args:
        victim: plays the agents.
        memory: the states of its recurrent policies, which fixes E: `victim.memory(num_envs)`.
        groups: the agents that are played, in groups of one module and one filter; see `Victim.alike`.
    """

    def __init__(self, victim: Victim, memory: Memory, *, groups: Sequence[Sequence[str]]) -> None:
        self.victim, self.memory = victim, memory
        self.groups = [list(group) for group in groups]
        self._policies: dict[str, VictimPolicy] = {}

    def see(
        self,
        obs: Mapping[str, Tensor],
        *,
        active: Mapping[str, Tensor] | None = None,
        action_mask: Mapping[str, Tensor | None] | None = None,
    ) -> list[DecisionBatch]:
        """The decisions that are to be made in this step, one batch for each group; nothing changes.

        Args:
            obs: agent -> observations of the environment, `[E, *shape]`; an absent agent does not act.
            active: agent -> copies in which it must act, `[E]` bool; None: everywhere.
            action_mask: agent -> legal actions, `[E, m]` bool; None, also for one agent: all are.
        """
        batches = []
        for group in self.groups:
            acting = {agent: active[agent] if active else None for agent in group if agent in obs}
            rows = {agent: _copies(obs[agent], where) for agent, where in acting.items()}
            rows = {agent: copies for agent, copies in rows.items() if len(copies)}
            if not rows:
                continue
            seen = {agent: obs[agent][copies] for agent, copies in rows.items()}
            inputs = torch.cat([self.victim.inputs(*each) for each in seen.items()])
            tokens = None
            if isinstance(self.victim.modules[self.victim.module_of[group[0]]], TokenNetwork):
                tokens = torch.cat([part.flatten(1) for part in seen.values()]).long()
            masks = {agent: mask for agent in rows if (mask := (action_mask or {}).get(agent)) is not None}
            legal = torch.cat([mask[rows[agent]] for agent, mask in masks.items()]) if masks else None
            policy = self._policy(group[0], legal, self.memory.recall(rows), tokens)
            batches.append(DecisionBatch(rows, policy, inputs))
        return batches

    @torch.no_grad()
    def decide(self, batches: Sequence[DecisionBatch]) -> dict[str, Tensor]:
        """Let the policies answer what they are shown; recurrent states move on by this decision.

        Returns:
            Agent -> distribution inputs, `[E, m]`, zero in copies where it does not act.
        """
        answers: dict[str, Tensor] = {}
        for batch in batches:
            if (outputs := batch.outputs) is None:
                outputs, state = batch.policy.step(batch.inputs)
            else:
                state = batch.policy.next_state(batch.inputs)
            self.memory.advance(batch.rows, state)
            answers |= batch.everywhere(outputs, self.memory.num_envs)
        return answers

    def act(
        self, batches: Sequence[DecisionBatch], sampler: ActionSampler | None = None
    ) -> dict[str, Tensor]:
        """The environment's actions after `decide`, `[E, ...]` by agent that acts somewhere.

        Args:
            batches: of this step, with what the policies are shown.
            sampler: draws the actions; None: the most likely ones.

        Raises:
            ValueError: sampled actions of a victim that is greedy only.
        """
        if sampler is not None and self.victim.greedy_only:
            raise ValueError("expected greedy actions of a victim that is greedy only, got sampled ones")
        answers = self.decide(batches)
        if sampler is None:
            return {agent: self.victim.greedy(agent, outputs) for agent, outputs in answers.items()}
        return {agent: self.victim.to_environment(agent, a) for agent, a in sampler(answers).items()}

    def _policy(
        self, agent: str, legal: Tensor | None, state: State | None, tokens: Tensor | None
    ) -> VictimPolicy:
        """The policy of this step's rows, which is made once where they have nothing of their own."""
        if any(column is not None for column in (legal, state, tokens)):
            return self.victim.policy(agent, action_mask=legal, state=state, tokens=tokens)
        if agent not in self._policies:
            self._policies[agent] = self.victim.policy(agent)
        return self._policies[agent].redrawn()


def _copies(obs: Tensor, active: Tensor | None) -> Tensor:
    return torch.arange(len(obs), device=obs.device) if active is None else active.nonzero().flatten()


@dataclass(frozen=True, eq=False)
class GeneratorSampler:
    """Draws actions one after the other from a generator.

    Numbers are drawn for every agent in every copy, whoever acts, so that those of an agent, a step and a
    copy are the same whatever happens in the others, and under every attack.

    Attributes:
        distributions: agent -> kind of its actions, in the order in which they are drawn.
        num_envs: E.
        generator: the random numbers.
    """

    distributions: Mapping[str, ActionDistribution]
    num_envs: int
    generator: torch.Generator

    def __call__(self, outputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        drawn = {}
        for agent, kind in self.distributions.items():
            given = outputs.get(agent)
            if given is None:
                given = torch.zeros(self.num_envs, kind.num_inputs, device=self.generator.device)
            drawn[agent] = kind.sample(given, generator=self.generator)
        return {agent: drawn[agent] for agent in outputs}


_SALT = 0x5EED0FAC
"""Environments hash the same seed for numbers of their own."""


class CounterSampler:
    """Draws actions by numbers that are hashes of seed, copy, episode, step and agent.

    A copy's numbers are the same whatever the number of copies beside it; a saved state can be gone on from.

    Args:
        distributions: agent -> kind of its actions.
        num_envs: E.
        device: where the numbers are made.
    """

    def __init__(
        self, distributions: Mapping[str, ActionDistribution], num_envs: int, *, device: torch.device
    ) -> None:
        self._distributions = dict(distributions)
        widths = [kind.num_inputs for kind in distributions.values()]
        self._starts = dict(zip(distributions, accumulate(widths, initial=0), strict=False))
        self._count = sum(widths)
        self._device = device
        self._step = torch.zeros(num_envs, dtype=torch.int64, device=device)
        self._streams = Streams(0, num_envs, device=device)

    def reset(self, *, seed: int) -> None:
        """Begin the first episode of every copy."""
        self._step.zero_()
        self._streams = Streams(seed ^ _SALT, len(self._step), device=self._device)
        self._streams.begin()

    def advance(self, over: Tensor) -> None:
        """Move on to the next step; to the next episode in the copies `over`, `[E]` bool."""
        self._step = (self._step + 1).masked_fill(over, 0)
        self._streams.begin(over)

    def __call__(self, outputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {agent: self._draw(agent, y) for agent, y in outputs.items()}

    def get_state(self) -> dict[str, Any]:
        """The state of now, for `set_state`."""
        return {"step": self._step.clone(), "streams": self._streams.get_state()}

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Go on from where `get_state` was asked."""
        self._step = state["step"].clone()
        self._streams.set_state(state["streams"])

    def _draw(self, agent: str, outputs: Tensor) -> Tensor:
        kind, place = self._distributions[agent], self._step * self._count + self._starts[agent]
        uniform = self._streams.uniform(kind.num_inputs, start=place).T.float().clamp(1e-7, 1 - 1e-7)
        if isinstance(kind, DiagGaussian):
            mean, log_std = kind.split(outputs)
            noise = torch.erfinv(2 * uniform[..., : kind.k] - 1) * math.sqrt(2)
            return mean + log_std.exp() * noise
        gumbel = -(-uniform.log()).log()
        if isinstance(kind, MultiCategorical):
            return torch.stack([part.argmax(-1) for part in kind.split(outputs + gumbel)], -1)
        return (outputs + gumbel).argmax(-1)
