"""Agents that do not play as the victim does: controls that know nothing, and policies from elsewhere.

An observation attack changes what an agent sees; a replacement changes the agent. Two controls put a scale
beside every trained adversary: an agent that acts at random, and one that does nothing. All other agents are
the victim's, frozen, over the same episodes and with the same random numbers as in every other row.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, get_args

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from marl_aajr.core.checks import grouped, one_of
from marl_aajr.core.environment_values import agent_names
from marl_aajr.evaluation.outcomes import AdversaryTraining, Control, ReplacementOutcome
from marl_aajr.evaluation.outcomes import ReplacementKind as Kind
from marl_aajr.evaluation.result import Skipped
from marl_aajr.rollout.batched_env import BatchedEnv
from marl_aajr.rollout.disturbed import random_actions
from marl_aajr.victims import Victim
from marl_aajr.victims.spaces import check_match
from marl_aajr.victims.stepper import GeneratorSampler, Stepper

CONTROLS: tuple[Control, ...] = get_args(Control)
"""The kinds that need no training."""


class ReplacementPolicy(ABC):
    """Acts for some agents: from what everybody sees to the actions `[E, ...]` of those."""

    agents: tuple[str, ...]

    @abstractmethod
    def __call__(self, env: BatchedEnv, obs: Mapping[str, Tensor]) -> dict[str, Tensor]: ...

    def reseed(self, seed: int) -> None:  # noqa: B027  # most draw nothing by themselves
        """Begin the random numbers of policies anew that draw by themselves."""

    def forget(self, over: Tensor) -> None:  # noqa: B027  # most remember nothing
        """Forget what was of episodes that are over, `[E]` bool."""


class TogetherPolicy(ReplacementPolicy):
    """Several policies that act for different agents; at each step they draw random numbers in turn."""

    def __init__(self, parts: Sequence[ReplacementPolicy]) -> None:
        self.agents = tuple(agent for part in parts for agent in part.agents)
        self._parts = parts

    def __call__(self, env: BatchedEnv, obs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {agent: action for part in self._parts for agent, action in part(env, obs).items()}

    def reseed(self, seed: int) -> None:
        for part in self._parts:
            part.reseed(seed)

    def forget(self, over: Tensor) -> None:
        for part in self._parts:
            part.forget(over)


@dataclass(frozen=True, kw_only=True)
class Replacement:
    """The agents that are replaced, in the environment's order, and what plays them.

    `random`: uniform over the legal actions (of a Box: over its bounds), independent of everything.
    `idle`: action 0, or zeros, at every step. In the particle environments that is to do nothing; where 0
    is a choice like any other, it is an agent that is stuck on it.

    Attributes:
        victim: the policies of anybody but the controls.
        source: the run that they come from; empty for the controls.
        training: of a traitor or an opponent.
    """

    kind: Kind
    agents: tuple[str, ...]
    victim: Victim | None = field(default=None, repr=False)
    source: str = ""
    training: AdversaryTraining | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "agents", agent_names(self.agents))

    def policy(self, num_envs: int, *, sampled: bool, generator: torch.Generator) -> ReplacementPolicy:
        """The policy that acts for the agents, in E copies; a trained one samples if the victim does.

        As many random numbers are drawn at each step whatever is seen.
        """
        if self.victim is not None:
            return _Trained(self.agents, self.victim, num_envs, generator if sampled else None)
        return _Random(self.agents, generator) if self.kind == "random" else _Idle(self.agents)

    @property
    def label(self) -> str:
        """For progress and messages."""
        return f"{self.kind} {', '.join(self.agents)}"


def resolve_replacements(
    requests: Sequence[str | Replacement], env: BatchedEnv, *, members: Sequence[str]
) -> tuple[Replacement, ...]:
    """The replacements that were asked for, and controls for the agents of every trained one.

    A request is `"random"` or `"idle"`, for each of `members` in turn; `"random:agent_0,agent_1"`, for these
    together; or a value. The members are the agents under attack, all of one team.

    Raises:
        ValueError: an unknown kind or agent, a trained replacement of the whole team, one given twice, or an
            action space that the control has no action in.
    """
    found: list[Replacement] = []
    for request in requests:
        found += [request] if isinstance(request, Replacement) else _parse(request, env, members)
    trained = [r.agents for r in found if r.victim is not None]
    for control in [Replacement(kind=kind, agents=agents) for agents in trained for kind in CONTROLS]:
        if control not in found:
            with suppress(ValueError):  # nobody asked for it
                _check_control(control, env)
                found.append(control)
    for replacement in found:
        _check(replacement, env, members)
    if len(set(found)) < len(found):
        raise ValueError(f"expected each replacement once, got {', '.join(r.label for r in found)}")
    return tuple(found)


def admitted_controls(
    controls: Sequence[Control], env: BatchedEnv, *, members: Sequence[str]
) -> tuple[tuple[Replacement, ...], tuple[Skipped, ...]]:
    """A suite's controls in the place of each attacked agent and of the whole team, and those left out.

    The whole team at random or idle is the return of a team that has learned nothing.
    """
    kept: list[Replacement] = []
    skipped: list[Skipped] = []
    team = tuple(agent for agent, name in env.teams.items() if name == env.teams[members[0]])
    for control in controls:
        try:
            alone = resolve_replacements([control], env, members=members)
            kept += dict.fromkeys((*alone, Replacement(kind=control, agents=team)))
        except ValueError as error:
            skipped.append(Skipped(f"{control} agents", str(error)))
    return tuple(kept), tuple(skipped)


def mark_worst(
    rows: Sequence[ReplacementOutcome], teams: Mapping[str, str]
) -> tuple[ReplacementOutcome, ...]:
    """The rows; of several of one kind, for as many agents of the same sides, the worst is marked.

    The worst has the lowest return on the selection episodes.
    """

    def alike(row: ReplacementOutcome) -> tuple[str, ...]:
        return row.met_as, *sorted(teams[agent] for agent in row.agents)

    left = grouped((alike(row), row.selection_return) for row in rows if row.selection_return is not None)
    return tuple(
        row.model_copy(update={"worst": len(rivals) > 1 and row.selection_return == min(rivals)})
        for row, rivals in ((row, left.get(alike(row), ())) for row in rows)
    )


def _parse(request: str, env: BatchedEnv, members: Sequence[str]) -> list[Replacement]:
    name, _, names = request.partition(":")
    one_of("a replacement", name, CONTROLS)
    kind: Kind = "random" if name == "random" else "idle"
    if not names:
        return [Replacement(kind=kind, agents=(agent,)) for agent in members]
    asked = [name.strip() for name in names.split(",")]
    for agent in asked:
        one_of("an agent to replace", agent, env.possible_agents)
    return [Replacement(kind=kind, agents=tuple(a for a in env.possible_agents if a in asked))]


def _check(replacement: Replacement, env: BatchedEnv, members: Sequence[str]) -> None:
    for agent in replacement.agents:
        one_of("an agent to replace", agent, env.possible_agents)
    team = env.teams[members[0]]
    loyal = [agent for agent, name in env.teams.items() if name == team and agent not in replacement.agents]
    if not loyal and replacement.victim is not None:
        raise ValueError(
            f"expected somebody of team {team!r} to be left, got all of it replaced "
            f"({', '.join(replacement.agents)}); name fewer agents, or those of another team"
        )
    if replacement.victim is not None:
        check_match(replacement.victim, env, agents=replacement.agents, what=f"a {replacement.kind}")
    else:
        _check_control(replacement, env)


def _check_control(control: Replacement, env: BatchedEnv) -> None:
    for agent in control.agents:
        space = env.action_spaces[agent]
        if control.kind == "idle":
            _idle_action(agent, env)
        elif isinstance(space, spaces.Box) and not space.is_bounded():
            raise ValueError(
                f"expected bounded actions to draw at random, got {space} for {agent!r}; use idle, or bound "
                "them in the environment"
            )


def _idle_action(agent: str, env: BatchedEnv) -> Tensor:
    """The action that means nothing, without the dimension of the copies."""
    space: spaces.Space[Any] = env.action_spaces[agent]
    assert space.shape is not None
    nothing = np.zeros(space.shape, space.dtype)
    if env.action_mask[agent] is not None:
        raise ValueError(
            f"expected an agent that may do nothing, got {agent!r}, which must make a legal move; use random"
        )
    if not space.contains(nothing[()]):
        raise ValueError(
            f"expected an action space with 0 in it for an idle agent, got {space} for {agent!r}; use random"
        )
    return torch.from_numpy(nothing)


@dataclass(frozen=True)
class _Idle(ReplacementPolicy):
    agents: tuple[str, ...]

    def __call__(self, env: BatchedEnv, obs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        idle = {agent: _idle_action(agent, env) for agent in self.agents}
        return {a: action.expand(env.num_envs, *action.shape) for a, action in idle.items()}


@dataclass(frozen=True)
class _Random(ReplacementPolicy):
    agents: tuple[str, ...]
    generator: torch.Generator

    def __call__(self, env: BatchedEnv, obs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        masks = env.action_mask
        return {agent: self._draw(env, agent, masks[agent]) for agent in self.agents}

    def _draw(self, env: BatchedEnv, agent: str, mask: Tensor | None) -> Tensor:
        space = env.action_spaces[agent]
        shares = torch.rand(env.num_envs, *(space.shape or ()), dtype=torch.float64, generator=self.generator)
        return random_actions(space, mask, shares)


class _Trained(ReplacementPolicy):
    """Trained policies: as many random numbers are drawn at each step whatever is seen.

    Agents decide one by one: the last bit of an action must not depend on who else is replaced.
    """

    def __init__(
        self, agents: tuple[str, ...], victim: Victim, num_envs: int, generator: torch.Generator | None
    ) -> None:
        self.agents, self._victim = agents, victim
        self._stepper = Stepper(victim, victim.memory(num_envs), groups=[[agent] for agent in agents])
        kinds = {agent: victim.distribution(agent) for agent in agents}
        self._sampler = None if generator is None else GeneratorSampler(kinds, num_envs, generator)

    def __call__(self, env: BatchedEnv, obs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        batches = self._stepper.see(obs, active=env.active, action_mask=env.action_mask)
        return self._stepper.act(batches, self._sampler)

    def reseed(self, seed: int) -> None:
        self._victim.reseed(seed)

    def forget(self, over: Tensor) -> None:
        self._stepper.memory.forget(over)
