"""The result of a sampling call: columns `[T, G, E, ...]`, and the returns of the episodes that ended.

T steps, E copies of the environment, G agents that share a module. Every column is one tensor, so a fragment
travels to another process as a handful of arrays, and advantages are a loop over T alone.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from marl_aajr.core.policy import Tree, map_tree


class _Packed:
    """Travels as arrays: Ray moves those through shared memory uncopied, and pickles tensors bytewise."""

    def __getstate__(self) -> dict[str, Any]:
        return {name: map_tree(_to_array, value) for name, value in vars(self).items()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update({name: map_tree(_to_tensor, value) for name, value in state.items()})


def _to_array(value: Any) -> Any:
    return value.cpu().numpy() if isinstance(value, Tensor) else value


def _to_tensor(value: Any) -> Any:
    if not isinstance(value, np.ndarray):
        return value
    with warnings.catch_warnings():
        # Memory shared through Ray is read-only, and nobody writes into a fragment.
        warnings.simplefilter("ignore", UserWarning)
        return torch.from_numpy(value)


@dataclass(frozen=True)
class ModuleFragment(_Packed):
    """The observations, actions and rewards of the agents of one module.

    Observations are as the module sees them (normalised where a filter is on), actions as it chose them
    (before they are mapped to the bounds of the space).

    Attributes:
        agents: The G agents, in the order of the columns.
        obs: `[T + 1, G, E, ...]`; the last row is what follows the last step.
        mask: `[T + 1, G, E, n]` bool, legal actions; None where the game has no masks.
        acts: `[T + 1, G, E]` bool: the observation was (or is to be) acted on; None: all of them.
        actions: `[T, G, E, ...]`.
        log_probs: `[T, G, E]`.
        inputs: `[T, G, E, m]`, the distribution inputs that the actions were drawn from.
        rewards: `[T, G, E]`, what each agent was told in each step.
        terminated: `[T, G, E]` bool.
        truncated: `[T, G, E]` bool.
        final_at: `[K, 3]` int64: (t, g, e) of every agent that ended.
        final_obs: `[K, ...]`, the last observation of each of them.
        states: Recurrent states `[S, G, E, ...]` before the steps 0, L, 2 L, ... of a module with sequence
            length L; None for others.
        clean_obs: As `obs`, which then holds what the agents saw, without what an adversary changed; None:
            nobody was attacked.
        path: `[T + 1, G, E, 2, points, d]`, points of the adversary's path
            (`marl_aajr.rollout.attack.kept_path`); None: none are kept.
    """

    agents: tuple[str, ...]
    obs: Tensor
    mask: Tensor | None
    acts: Tensor | None
    actions: Tensor
    log_probs: Tensor
    inputs: Tensor
    rewards: Tensor
    terminated: Tensor
    truncated: Tensor
    final_at: Tensor
    final_obs: Tensor
    states: Tree | None = None
    clean_obs: Tensor | None = None
    path: Tensor | None = None

    @property
    def steps(self) -> int:
        """T, including a leading row for decisions whose outcome was still open (see `Collector`)."""
        return len(self.rewards)

    def to(self, device: torch.device) -> ModuleFragment:
        """The same on another device."""
        return self if self.obs.device == device else self._map(lambda x: x.to(device))

    def part(self, start: int, stop: int) -> ModuleFragment:
        """The copies `start` to `stop - 1`."""
        copies = self.final_at[:, 2]
        inside = (copies >= start) & (copies < stop)
        shift = torch.tensor([0, 0, start], device=copies.device)
        final_at, final_obs = self.final_at[inside] - shift, self.final_obs[inside]
        cut = self._map(lambda column: column[:, :, start:stop], skip=("final_at", "final_obs"))
        return replace(cut, final_at=final_at, final_obs=final_obs)

    def _map(self, function: Callable[[Tensor], Tensor], skip: tuple[str, ...] = ()) -> ModuleFragment:
        changed: dict[str, Any] = {
            field.name: map_tree(function, value)
            for field in fields(self)
            if field.name not in ("agents", *skip) and (value := getattr(self, field.name)) is not None
        }
        return replace(self, **changed)


@dataclass(frozen=True)
class Fragment(_Packed):
    """T steps of E copies of an environment, by module.

    It answers the questions that RLlib asks of its episodes: `env_steps`, `agent_steps` and its
    length, by which RLlib shares data out among learners and counts minibatches.

    Attributes:
        modules: The columns of each module.
        num_envs: E.
        steps: T, the steps that the batch took.
        episode_over: `[T, E]` bool.
        phases: Number of steps that make one step of the environment.
    """

    modules: dict[str, ModuleFragment]
    num_envs: int
    steps: int
    episode_over: Tensor
    phases: int = 1

    def env_steps(self) -> int:
        """Steps of the environment in all copies, E · T where it has one phase."""
        return self.num_envs * self.steps // self.phases

    def agent_steps(self) -> int:
        """Rows of all agents, whether they had something to do or not."""
        return self.env_steps() * sum(len(part.agents) for part in self.modules.values())

    def __len__(self) -> int:
        """Rows of the module with the most agents: equal for equal shapes, whatever happened in them."""
        return self.env_steps() * max(len(part.agents) for part in self.modules.values())

    def to(self, device: torch.device) -> Fragment:
        """The same on another device."""
        modules = {name: part.to(device) for name, part in self.modules.items()}
        return replace(self, modules=modules, episode_over=self.episode_over.to(device))

    def time_limits_terminate(self) -> Fragment:
        """The same with time limits as RLlib's PettingZoo wrapper has them: agents terminate there."""
        over = self.episode_over[:, None]
        modules = {
            name: replace(
                part, terminated=part.terminated | (part.truncated & over), truncated=part.truncated & ~over
            )
            for name, part in self.modules.items()
        }
        return replace(self, modules=modules)

    def split(self, parts: int) -> list[Fragment]:
        """The copies in `parts` equal shares, one for each learner.

        Raises:
            ValueError: The number of copies is no multiple of `parts`.
        """
        if parts == 1:
            return [self]
        if self.num_envs % parts:
            raise ValueError(
                f"expected a number of environment copies that {parts} learners can share equally, got "
                f"{self.num_envs}; make it a multiple of {parts}"
            )
        share = self.num_envs // parts
        return [
            replace(
                self,
                modules={name: part.part(start, start + share) for name, part in self.modules.items()},
                num_envs=share,
                episode_over=self.episode_over[:, start : start + share],
            )
            for start in range(0, self.num_envs, share)
        ]


def alike(fragments: Sequence[Fragment], module: str) -> list[Fragment]:
    """The fragments with `clean_obs` and `path` of a module in all of them, if they are in any."""
    parts = [fragment.modules[module] for fragment in fragments]
    attacked = next((part for part in parts if part.clean_obs is not None), None)
    if attacked is None or all(part.clean_obs is not None for part in parts):
        return list(fragments)

    def filled(fragment: Fragment) -> Fragment:
        part = fragment.modules[module]
        if part.clean_obs is None:
            nothing = attacked.path
            if nothing is not None:
                nothing = nothing.new_zeros((*part.obs.shape[:3], *nothing.shape[3:]))
            part = replace(part, clean_obs=part.obs, path=nothing)
        return replace(fragment, modules={**fragment.modules, module: part})

    return [filled(fragment) for fragment in fragments]


class Episodes(NamedTuple):
    """Episodes that ended, in the order of their ends; those of one step in the order of the copies.

    Attributes:
        returns: `[n, A]` float64, the sum of each agent's rewards.
        lengths: `[n]` int64, in steps of the environment.
        agent_steps: `[n, A]` int64, how often each agent acted.
        copies: `[n]` int64, where they were played.
        metrics: `[n]` by name, what the environment reports of them; NaN where it does not.
    """

    returns: Tensor
    lengths: Tensor
    agent_steps: Tensor
    copies: Tensor
    metrics: Mapping[str, Tensor] = {}

    def select(self, index: Sequence[int]) -> Episodes:
        """Some of them."""
        columns: dict[str, Any] = {name: getattr(self, name)[index] for name in self._fields[:-1]}
        return Episodes(**columns, metrics={name: values[index] for name, values in self.metrics.items()})

    @classmethod
    def join(cls, parts: Sequence[Episodes]) -> Episodes:
        """All of them."""
        names = dict.fromkeys(name for part in parts for name in part.metrics)
        unknown = [torch.full_like(part.lengths, torch.nan, dtype=torch.float64) for part in parts]
        metrics = {
            name: torch.cat([p.metrics.get(name, nan) for p, nan in zip(parts, unknown, strict=True)])
            for name in names
        }
        columns: dict[str, Any] = {n: torch.cat([getattr(p, n) for p in parts]) for n in cls._fields[:-1]}
        return cls(**columns, metrics=metrics)


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

    def add(self, rewards: Tensor, acts: Tensor | None, over: Tensor) -> Episodes:
        """Counts T steps; the episodes that ended in them.

        Args:
            rewards: `[T, A, E]`.
            acts: `[T, A, E]` bool, who acted; None: everybody.
            over: `[T, E]` bool, where episodes ended.
        """
        rewards, over = rewards.cpu(), over.cpu()
        acts = None if acts is None else acts.cpu()
        ended = [self._ended(torch.arange(0))]
        start = 0
        for last in over.any(1).nonzero().flatten().tolist():
            self._count(rewards, acts, slice(start, last + 1))
            ended.append(self._ended(over[last].nonzero().flatten()))
            start = last + 1
        self._count(rewards, acts, slice(start, None))
        return Episodes.join(ended)

    def _count(self, rewards: Tensor, acts: Tensor | None, steps: slice) -> None:
        number = len(rewards[steps])
        self._earned += rewards[steps].sum(0, dtype=torch.float64)
        self._acted += number if acts is None else acts[steps].sum(0)
        self._length += number

    def _ended(self, copies: Tensor) -> Episodes:
        lengths = self._length[copies] // self._phases
        episodes = Episodes(self._earned[:, copies].T, lengths, self._acted[:, copies].T, copies)
        for kept in (self._earned, self._acted, self._length):
            kept[..., copies] = 0
        return episodes
