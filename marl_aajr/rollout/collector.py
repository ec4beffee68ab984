"""The sampling loop: plays E copies of an environment and keeps what happened as a `Fragment`.

`EpisodeLog` keeps the returns and lengths of the episodes that end meanwhile.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from marl_aajr.rollout.batched_env import BatchedEnv, BatchedStep
from marl_aajr.rollout.checked_batch import CheckedBatch
from marl_aajr.rollout.fragments import Fragment, ModuleFragment
from marl_aajr.rollout.rollout_buffer import Decision, PendingDecisions, RolloutBuffer, StepInputs, stacked


class Episodes(NamedTuple):
    """Episodes that ended, in the order of their ends; those of one step in the order of the copies.

    Attributes:
        returns: `[n, A]` float64, the sum of each agent's rewards.
        lengths: `[n]` int64, in steps of the environment.
        agent_steps: `[n, A]` int64, how often each agent acted.
        copies: `[n]` int64, where they were played.
    """

    returns: Tensor
    lengths: Tensor
    agent_steps: Tensor
    copies: Tensor


class EpisodeLog:
    """The returns so far of the episodes in progress, on the CPU.

    Args:
        agents: A, the number of agents.
        num_envs: E.
        phases: Steps of the batch that make one step of the environment.
    """

    def __init__(self, agents: int, num_envs: int, *, phases: int = 1) -> None:
        self._phases = phases
        self._earned = torch.zeros(agents, num_envs, dtype=torch.float64)
        self._acted = torch.zeros(agents, num_envs, dtype=torch.int64)
        self._length = torch.zeros(num_envs, dtype=torch.int64)

    def clear(self) -> None:
        """Forget the episodes in progress."""
        for kept in (self._earned, self._acted, self._length):
            kept.zero_()

    def position(self, over: Tensor, t: int, e: int) -> int:
        """The number in its episode, from 1, of the coming step `t` in copy `e`.

        Args:
            over: `[T, E]` bool, where episodes end in those steps.
            t: From 0.
            e: Copy.
        """
        ended = over[:t, e].nonzero().flatten().tolist()
        passed = t - ended[-1] if ended else t + 1 + int(self._length[e])
        return -(-passed // self._phases)

    def take(self, rewards: Tensor, acts: Tensor | None, over: Tensor) -> Episodes:
        """Take in T steps.

        Args:
            rewards: `[T, A, E]`.
            acts: `[T, A, E]` bool, who acted; None: everybody.
            over: `[T, E]` bool, where episodes ended.

        Returns:
            Those that ended.
        """
        rewards, over = rewards.cpu(), over.cpu()
        acts = None if acts is None else acts.cpu()
        ended = [self._ended(torch.arange(0))]
        start = 0
        for last in over.any(1).nonzero().flatten().tolist():
            self._add(rewards, acts, slice(start, last + 1))
            ended.append(self._ended(over[last].nonzero().flatten()))
            start = last + 1
        self._add(rewards, acts, slice(start, None))
        return Episodes(*(torch.cat(column) for column in zip(*ended, strict=True)))

    def _add(self, rewards: Tensor, acts: Tensor | None, steps: slice) -> None:
        count = len(rewards[steps])
        self._earned += rewards[steps].sum(0, dtype=torch.float64)
        self._acted += count if acts is None else acts[steps].sum(0)
        self._length += count

    def _ended(self, copies: Tensor) -> Episodes:
        lengths = self._length[copies] // self._phases
        episodes = Episodes(self._earned[:, copies].T, lengths, self._acted[:, copies].T, copies)
        for kept in (self._earned, self._acted, self._length):
            kept[..., copies] = 0
        return episodes


class RolloutPolicies(Protocol):
    """The policies that decide.

    Rows that no agent acts on hold zeros (and legal everything); the answer to them is ignored.
    """

    def filter_obs(self, module: str, obs: Tensor, rows: Tensor | None) -> Tensor:
        """Observations `[N, ...]` as the module sees them; only `rows [N]` (None: all) are real."""
        ...

    def sequence_length(self, module: str) -> int | None:
        """L of a recurrent module, whose decisions then come with their states; None for others."""
        ...

    def act(self, module: str, obs: Tensor, mask: Tensor | None, rows: Tensor | None) -> Decision:
        """The decision of a module on observations `[N, ...]` with legal actions `[N, n]`."""
        ...

    def begin_episodes(self, episode_over: Tensor) -> None:
        """New episodes begin in these copies `[E]`."""
        ...


@dataclass(frozen=True)
class AgentGroup:
    """The agents that share a module."""

    module: str
    agents: tuple[str, ...]


def agent_groups(env: BatchedEnv, module_of: Mapping[str, str]) -> tuple[AgentGroup, ...]:
    """The groups of an environment's agents, in the order of their first agent.

    Raises:
        ValueError: Agents of one module whose spaces differ.
    """
    members: dict[str, list[str]] = {}
    for agent in env.possible_agents:
        members.setdefault(module_of[agent], []).append(agent)
    for module, agents in members.items():
        for kind, spaces in (("observation", env.observation_spaces), ("action", env.action_spaces)):
            for agent in agents[1:]:
                if spaces[agent] != spaces[agents[0]]:
                    raise ValueError(
                        f"expected agents of module {module!r} to have the same {kind} space, got "
                        f"{spaces[agents[0]]} for {agents[0]!r} and {spaces[agent]} for {agent!r}; "
                        "give them modules of their own"
                    )
    return tuple(AgentGroup(module, tuple(agents)) for module, agents in members.items())


class Collector:
    """Plays E copies of an environment and keeps what happened as a `Fragment`.

    A turn-based agent may have acted without having been told what came of it when a fragment ends. Such
    decisions are no samples of this fragment: they lead the next one, as its first row.

    Args:
        env: The copies.
        module_of: Module of each agent.
        policies: The policies of all modules.
        name: Name of the environment in faults.
    """

    def __init__(
        self,
        env: BatchedEnv,
        module_of: Mapping[str, str],
        policies: RolloutPolicies,
        *,
        name: str | None = None,
    ) -> None:
        self.env = env
        self._checked = CheckedBatch(env, name or type(env).__name__)
        self.groups = agent_groups(env, module_of)
        self.policies = policies
        self._log = EpisodeLog(len(self.agents), env.num_envs, phases=env.phases)
        self._heads: dict[str, StepInputs] = {}
        self._open: dict[str, PendingDecisions] = {}
        self._known: dict[str, tuple[list[Tensor], bool, bool]] = {}
        self._latest: dict[str, Decision] = {}

    @property
    def agents(self) -> tuple[str, ...]:
        """All agents in the order of the returns in `Episodes`: group by group."""
        return tuple(agent for group in self.groups for agent in group.agents)

    def reset(self, *, seed: int) -> None:
        """Begin new episodes in all copies.

        Raises:
            EnvironmentFault: The environment breaks its contract.
        """
        self.policies.begin_episodes(torch.ones(self.env.num_envs, dtype=torch.bool, device=self.env.device))
        self._log.clear()
        self._open = {}
        self._look(self._checked.reset(seed=seed))

    def collect(self, steps: int) -> tuple[Fragment, Episodes]:
        """Play `steps` steps of the environment in every copy, with all their phases.

        Returns:
            What happened, and the episodes that ended.

        Raises:
            EnvironmentFault: The environment breaks its contract.
        """
        steps *= self.env.phases
        lead = int(bool(self._open))
        columns = {
            g.module: RolloutBuffer(
                g.agents,
                steps + lead,
                self._open.get(g.module),
                sequence=self.policies.sequence_length(g.module),
            )
            for g in self.groups
        }
        over = torch.zeros(steps + lead, self.env.num_envs, dtype=torch.bool, device=self.env.device)
        for t in range(lead, lead + steps):
            step = self._step(columns, t)
            over[t] = step.episode_over
            self.policies.begin_episodes(step.episode_over)
            self._look(step.obs)
        parts = {
            module: column.finish(self._heads[module], self._filter_obs(module))
            for module, column in columns.items()
        }
        self._checked.values(parts.values(), lead=lead, where=partial(self._log.position, over[lead:]))
        rewards = torch.cat([part.rewards[lead:] for part in parts.values()], 1)
        episodes = self._log.take(rewards, _acted(parts.values(), lead), over[lead:])
        opened = {module: PendingDecisions.of(part, columns[module].before) for module, part in parts.items()}
        self._open = {module: rows for module, rows in opened.items() if rows is not None}
        return Fragment(parts, self.env.num_envs, steps, over, self.env.phases), episodes

    def _step(self, columns: Mapping[str, RolloutBuffer], t: int) -> BatchedStep:
        actions: dict[str, Tensor] = {}
        for group in self.groups:
            head = self._heads[group.module]
            decision = self._decide(group, head)
            columns[group.module].write(t, head, decision)
            shape = (*head.acts.shape, *decision.env_actions.shape[1:])
            actions.update(zip(group.agents, decision.env_actions.view(shape).unbind(0), strict=True))
        step = self._checked.step(actions)
        for column in columns.values():
            column.outcome(t, step)
        return step

    def _decide(self, group: AgentGroup, head: StepInputs) -> Decision:
        """The decision of a module; where nobody is asked, its last one."""
        latest = self._latest.get(group.module)
        # With a memory, a decision tells the state before it.
        if head.none_acts and latest is not None and latest.state is None:
            return latest
        self._latest[group.module] = self.policies.act(group.module, *head.rows())
        return self._latest[group.module]

    def _filter_obs(self, module: str) -> Callable[[Tensor], Tensor]:
        return lambda obs: self.policies.filter_obs(module, obs, None)

    def _look(self, obs: Mapping[str, Tensor]) -> None:
        """Take in the observations of all agents, and who must act on them."""
        active, masks = self.env.active, self.env.action_mask
        for group in self.groups:
            acts = stacked(active, group.agents)
            head = StepInputs(
                stacked(obs, group.agents),
                acts,
                None if masks[group.agents[0]] is None else stacked(masks, group.agents),
                *self._who_acts(group, active, acts),
            )
            flat, _, rows = head.rows()
            seen = self.policies.filter_obs(group.module, flat, rows)
            self._heads[group.module] = head._replace(obs=seen.view(head.obs.shape))

    def _who_acts(self, group: AgentGroup, active: Mapping[str, Tensor], acts: Tensor) -> tuple[bool, bool]:
        """Whether all agents of a group must act, and whether none; asked once where nothing changes."""
        flags = [active[agent] for agent in group.agents]
        known = self._known.get(group.module)
        if known is None or any(a is not b for a, b in zip(known[0], flags, strict=True)):
            everybody = bool(acts.all())
            known = (flags, everybody, not everybody and not bool(acts.any()))
            self._known[group.module] = known
        return known[1:]


def _acted(parts: Collection[ModuleFragment], lead: int) -> Tensor | None:
    """Whether each agent acted in the steps after the leading row, `[T, A, E]`; None: everybody."""
    if all(part.acts is None for part in parts):
        return None
    everybody = [part.terminated.new_ones(part.terminated.shape) for part in parts]
    acts = [full if p.acts is None else p.acts[:-1] for p, full in zip(parts, everybody, strict=True)]
    return torch.cat(acts, 1)[lead:]
