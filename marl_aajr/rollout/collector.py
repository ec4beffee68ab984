"""The sampling loop: plays E copies of an environment and keeps what happened as a `Fragment`."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from functools import partial
from typing import Protocol

import torch
from torch import Tensor

from marl_aajr.core.checks import grouped
from marl_aajr.rollout.attack.attacked_play import AttackedPlay
from marl_aajr.rollout.attack.worst_agents import Attempt
from marl_aajr.rollout.batched_env import BatchedEnv, BatchedStep
from marl_aajr.rollout.checked_batch import CheckedBatch
from marl_aajr.rollout.fragments import EpisodeLog, Episodes, Fragment, ModuleFragment
from marl_aajr.rollout.reported_metrics import of_episodes
from marl_aajr.rollout.rollout_buffer import (
    Decision,
    RolloutBuffer,
    Row,
    StepInputs,
    pending_decisions,
    stacked,
)


class RolloutPolicies(Protocol):
    """The policies that decide.

    Rows that no agent acts on hold zeros (and legal everything); the answer to them is ignored.
    """

    def filter_obs(self, module: str, obs: Tensor, rows: Tensor | None) -> Tensor:
        """Observations `[N, ...]` as the module sees them; only `rows [N]` (None: all) are real and new."""

    def sequence_length(self, module: str) -> int | None:
        """L of a recurrent module, whose decisions then come with their states; None for others."""

    def act(self, module: str, obs: Tensor, mask: Tensor | None, rows: Tensor | None) -> Decision:
        """The decision of a module on observations `[N, ...]` with legal actions `[N, n]`."""

    def begin_episodes(self, episode_over: Tensor) -> None:
        """New episodes begin in these copies `[E]`."""


def agent_groups(env: BatchedEnv, module_of: Mapping[str, str]) -> dict[str, tuple[str, ...]]:
    """The agents of each module, modules in the order of their first agent.

    Raises:
        ValueError: Agents of one module whose spaces differ.
    """
    members = grouped((module_of[agent], agent) for agent in env.possible_agents)
    for kind, spaces in (("observation", env.observation_spaces), ("action", env.action_spaces)):
        for module, (first, *others) in members.items():
            for agent in (other for other in others if spaces[other] != spaces[first]):
                raise ValueError(
                    f"expected agents of module {module!r} to have the same {kind} space, got "
                    f"{spaces[first]} for {first!r} and {spaces[agent]} for {agent!r}; "
                    "give them modules of their own"
                )
    return {module: tuple(agents) for module, agents in members.items()}


class Collector:
    """Plays E copies of an environment and keeps what happened as a `Fragment`.

    A turn-based agent may have acted without having been told what came of it when a fragment ends. Such
    decisions are no samples of this fragment: they lead the next one, as its first row.

    Args:
        env: The copies.
        module_of: Module of each agent.
        policies: The policies of all modules.
        name: Name of the environment in faults.
        attack: The attack that a share of the copies is played under; None: there is none.

    Attributes:
        attack: The same.
        attack_metrics: Its measures in the last fragment.
    """

    def __init__(
        self,
        env: BatchedEnv,
        module_of: Mapping[str, str],
        policies: RolloutPolicies,
        *,
        name: str = "",
        attack: AttackedPlay | None = None,
    ) -> None:
        self.env = env
        self._checked = CheckedBatch(env, name or type(env).__name__)
        self.groups = agent_groups(env, module_of)
        self.policies = policies
        self.attack = attack
        self.attack_metrics: Mapping[str, float] = {}
        self._heads: dict[str, StepInputs] = {}
        self._given: dict[str, StepInputs] = {}
        self._open: dict[str, Row] = {}
        self._known: dict[str, tuple[list[Tensor], bool, bool]] = {}
        self._latest: dict[str, Decision] = {}

    @property
    def agents(self) -> tuple[str, ...]:
        """All agents in the order of the returns in `Episodes`: module by module."""
        return tuple(agent for agents in self.groups.values() for agent in agents)

    def reset(self, *, seed: int) -> None:
        """Begin new episodes in all copies; raises `EnvironmentFault`, as `collect` does."""
        self._begin_episodes(torch.ones(self.env.num_envs, dtype=torch.bool, device=self.env.device))
        self._log = EpisodeLog(len(self.agents), self.env.num_envs, phases=self.env.phases)
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
        for module, given in self._given.items():
            self._filter(module, given, count=False)
        lead = int(bool(self._open))
        columns = {
            module: RolloutBuffer(
                agents, steps + lead, self._open.get(module), sequence=self.policies.sequence_length(module)
            )
            for module, agents in self.groups.items()
        }
        over = torch.zeros(steps + lead, self.env.num_envs, dtype=torch.bool, device=self.env.device)
        reported: list[Mapping[str, Tensor]] = []
        for t in range(lead, lead + steps):
            step = self._step(columns, t)
            over[t] = step.episode_over
            reported.append(step.metrics)
            self._begin_episodes(step.episode_over)
            self._look(step.obs)
        parts = self._finish(columns, lead=lead)
        self.attack_metrics = {} if self.attack is None else self.attack.metrics(parts)
        rewards = torch.cat([part.rewards[lead:] for part in parts.values()], 1)
        played = over[lead:]
        self._checked.check_finite(parts.values(), lead=lead, position=partial(self._log.position, played))
        episodes = self._log.add(rewards, _acted(parts.values(), lead), played)
        if any(reported):
            episodes = episodes._replace(metrics=of_episodes(reported, played))
        opened = {module: pending_decisions(part, columns[module].before) for module, part in parts.items()}
        self._open = {module: rows for module, rows in opened.items() if rows is not None}
        return Fragment(parts, self.env.num_envs, steps, over, self.env.phases), episodes

    def _step(self, columns: Mapping[str, RolloutBuffer], t: int) -> BatchedStep:
        actions: dict[str, Tensor] = {}
        heads = self._seen(t)
        for module, agents in self.groups.items():
            head = heads[module]
            decision = self._decide(module, head)
            columns[module].write(t, head, decision)
            shape = (*head.acts.shape, *decision.env_actions.shape[1:])
            actions.update(zip(agents, decision.env_actions.view(shape).unbind(0), strict=True))
        step = self._checked.step(actions)
        for column in columns.values():
            column.outcome(t, step)
        return step

    def _decide(self, module: str, head: StepInputs) -> Decision:
        """The decision of a module; where nobody is asked, its last one."""
        latest = self._latest.get(module)
        # With a memory, a decision tells the state before it.
        if latest is None or latest.state is not None or not head.none_acts:
            latest = self._latest[module] = self.policies.act(module, *head.rows())
        return latest

    def _begin_episodes(self, over: Tensor) -> None:
        if self.attack is not None:
            self.attack.begin_episodes(over)
        self.policies.begin_episodes(over)

    def _seen(self, row: int) -> dict[str, StepInputs]:
        """What the agents of each module see now, kept in this row."""
        if self.attack is None:
            return self._heads
        clean = {module: head.obs for module, head in self._heads.items()}
        return self._heads | self.attack.seen(self._given, clean, row=row)

    def _finish(self, columns: Mapping[str, RolloutBuffer], *, lead: int) -> dict[str, ModuleFragment]:
        """The columns, with what the agents of each module see after the last row and at ends of episodes."""
        heads, last = dict(self._heads), dict[tuple[str, int], Tensor]()
        tried, tried_last = dict[str, Attempt[StepInputs]](), dict[tuple[str, int], Attempt[Tensor]]()
        for module, column in columns.items():
            if self.attack is not None and self.attack.attacks(module):
                head = self._heads[module].obs
                tried[module] = self.attack.attempt(module, self._given[module], head, row=None)
            for i, (given, at) in enumerate(column.last()):
                last[module, i] = clean = self.policies.filter_obs(module, given, None)
                if self.attack is not None:
                    attempt = self.attack.last_attempt(module, given, clean, at, lead=lead)
                    tried_last[module, i] = attempt
        if self.attack is not None:
            heads |= self.attack.settled(tried)
            last |= self.attack.settled(tried_last)
        return {
            module: column.finish(heads[module], [obs for (m, _), obs in last.items() if m == module])
            for module, column in columns.items()
        }

    def _look(self, obs: Mapping[str, Tensor]) -> None:
        """Keeps the observations of all agents, filtered, and who must act on them."""
        active, masks = self.env.active, self.env.action_mask
        for module, agents in self.groups.items():
            acts = stacked(active, agents)
            flags = self._who_acts(module, [active[agent] for agent in agents], acts)
            mask = None if masks[agents[0]] is None else stacked(masks, agents)
            self._given[module] = StepInputs(stacked(obs, agents), acts, mask, *flags)
            self._filter(module, self._given[module])

    def _filter(self, module: str, given: StepInputs, *, count: bool = True) -> None:
        """Keeps observations as the module sees them.

        Once more as a sample begins: what runners have merged since may have moved the filter, and an attack
        looks through it as it is then.
        """
        flat, _, rows = given.rows()
        counted = rows if count else torch.zeros(len(flat), dtype=torch.bool, device=flat.device)
        seen = self.policies.filter_obs(module, flat, counted)
        self._heads[module] = given._replace(obs=seen.view(given.obs.shape))

    def _who_acts(self, module: str, flags: list[Tensor], acts: Tensor) -> tuple[bool, bool]:
        """Whether all agents of a module must act, and whether none; asked once where nothing changes."""
        known = self._known.get(module)
        if known is None or any(a is not b for a, b in zip(known[0], flags, strict=True)):
            everybody = bool(acts.all())
            known = self._known[module] = (flags, everybody, not everybody and not bool(acts.any()))
        return known[1:]


def _acted(parts: Collection[ModuleFragment], lead: int) -> Tensor | None:
    """Whether each agent acted in the steps after the leading row, `[T, A, E]`; None: everybody."""
    if all(part.acts is None for part in parts):
        return None
    acts = [torch.ones_like(p.terminated) if p.acts is None else p.acts[:-1] for p in parts]
    return torch.cat(acts, 1)[lead:]
