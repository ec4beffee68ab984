"""The common part of our batched environments: clocks, random streams, automatic reset, saved states.

An environment is its variables, tensors whose last dimension is the copies `[..., E]`, and four hooks: how
they begin, how a step changes them, what the agents see, and when an episode ends before its time.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from gymnasium.spaces.utils import flatdim
from torch import Tensor

from marl_aajr.core.checks import whole
from marl_aajr.core.seeds import Streams
from marl_aajr.rollout.batched_env import BatchedEnv, BatchedStep, gather_actions


class TensorBatch(BatchedEnv):
    """E copies whose state is tensors, on any device.

    What copy e plays follows from the seed and e alone, not from how many copies there are, nor from the
    device, up to rounding (a CPU computes exp in a vector's tail otherwise than in its lanes). Every agent
    acts at every step and all end together, unless `active` and `_ends` say otherwise. Where no episode can
    end early, the copies' clocks agree and the host knows when to reset without asking the device; where one
    can, a CUDA device resets under a mask at every step rather than be waited for.

    Discrete actions beyond their space are not looked for, because that would cost a good part of a step;
    `SingleCopy` looks. Flags of a step are shared between agents and steps: they are read-only. Per-copy
    `infos` are one empty dict, shared too, unless an environment has something to say.

    Args:
        options: Settings of the environment, from which a subclass builds itself:
            `subclass(options, num_envs, device=, dtype=)`.
        num_envs: E, at least 1.
        observation_spaces: By agent; fixes the agents and their order.
        action_spaces: By agent.
        teams: By agent.
        max_cycles: Steps after which an episode is truncated.
        ends_early: Whether an episode can end before that.
        device: Where the tensors live.
        dtype: float32, or float64 for proofs; of observations, rewards and everything between.

    Raises:
        ValueError: If `num_envs` or `max_cycles` is not a positive integer, or the dtype is another.
    """

    def __init__(
        self,
        *,
        options: Any,
        num_envs: int,
        observation_spaces: Mapping[str, spaces.Space[Any]],
        action_spaces: Mapping[str, spaces.Space[Any]],
        teams: Mapping[str, str],
        max_cycles: int,
        ends_early: bool,
        device: torch.device | str,
        dtype: torch.dtype,
    ) -> None:
        whole("num_envs", num_envs)
        whole("max_cycles", max_cycles)
        if dtype not in (torch.float32, torch.float64):
            raise ValueError(f"expected dtype torch.float32 or torch.float64, got {dtype}")
        self.options, self.num_envs, self.max_cycles = options, num_envs, max_cycles
        self.device, self.dtype = torch.device(device), dtype
        self.possible_agents = tuple(observation_spaces)
        self.observation_spaces = dict(observation_spaces)
        self.action_spaces = dict(action_spaces)
        self.teams = dict(teams)
        self.state_space = unbounded(sum(map(flatdim, observation_spaces.values())), dtype)
        self._ends_early = ends_early
        self._streams: Streams | None = None
        self._clock = 0
        with torch.inference_mode(False):
            self._clocks = torch.zeros(num_envs, dtype=torch.int64, device=self.device)
            self._no = torch.zeros(num_envs, dtype=torch.bool, device=self.device)
            self._yes = torch.ones(num_envs, dtype=torch.bool, device=self.device)
        self._infos: tuple[dict[str, Any], ...] = ({},) * num_envs
        self._last: dict[str, Tensor] = {}
        self._final: dict[str, Tensor] = {}

    @property
    @abstractmethod
    def _variables(self) -> dict[str, Tensor]:
        """Everything that a copy remembers: tensors `[..., E]` that are written in place."""

    @abstractmethod
    def _initial(self, streams: Streams) -> dict[str, Tensor]:
        """Values of the variables at the beginning of the streams' current episodes."""

    @abstractmethod
    def _advance(self, actions: Sequence[Tensor]) -> Tensor:
        """Changes the variables by one step, given the agents' actions; returns rewards `[A, E]`."""

    @abstractmethod
    def _observe(self) -> dict[str, Tensor]:
        """Observations of the agents `[E, ...]`, in fresh tensors."""

    def __reduce__(self) -> tuple[Any, ...]:
        """Instructions for pickle to build the same; by itself it would tear views from their tensors."""
        build = partial(type(self), device=self.device, dtype=self.dtype)
        state = None if self._streams is None else self.get_state()
        return build, (self.options, self.num_envs), state

    def __setstate__(self, state: Mapping[str, Tensor]) -> None:
        self.set_state(state)

    def _derive(self) -> None:
        """Recomputes what follows from the variables, after they were set."""

    def _success(self) -> Tensor:
        """`[E]` bool: which episodes end now, before their time; asked if `ends_early`."""
        return self._no

    def _ends(self, late: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """What ends in a step: agents that terminate, agents that are cut off, episodes; if `ends_early`.

        Args:
            late: `[E]` bool: episodes at their last step.

        Returns:
            Three flags `[E]`; the first two `[A, E]` where agents end by themselves.
        """
        success = self._success() & ~late
        return success, late, success | late

    def _tell(self) -> tuple[dict[str, Any], ...]:
        """One dict by agent for each copy, about the step that was just taken."""
        return self._infos

    def _episode_metrics(self) -> dict[str, Tensor]:
        """`[E]` by name, what is reported of episodes that end now; higher is better."""
        return {}

    def reset(self, *, seed: int) -> dict[str, Tensor]:
        self._streams = Streams(seed, self.num_envs, device=self.device)
        self._restart(self._streams)
        self._last = self._observe()
        return dict(self._last)

    def step(self, actions: Mapping[str, Tensor]) -> BatchedStep:
        if self._streams is None:
            raise ValueError("expected reset before the first step; call reset(seed=...)")
        given = gather_actions(actions, self.action_spaces, self.num_envs)
        self._clock += 1
        rewards = self._advance(given)
        self._final = final_obs = self._observe()
        infos, self._metrics = self._tell(), dict[str, Tensor]()
        end = self._end_some if self._ends_early else self._end_all
        terminated, truncated, over, changed = end(self._streams)
        self._last = self._observe() if changed else final_obs
        agents = self.possible_agents
        return BatchedStep(
            obs=dict(self._last),
            rewards=dict(zip(agents, rewards.unbind(0), strict=True)),
            terminations=self._by_agent(terminated),
            truncations=self._by_agent(truncated),
            episode_over=over,
            final_obs=final_obs,
            infos=infos,
            metrics=self._metrics,
        )

    @property
    def active(self) -> dict[str, Tensor]:
        return dict.fromkeys(self.possible_agents, self._yes)

    @property
    def action_mask(self) -> dict[str, Tensor | None]:
        return dict.fromkeys(self.possible_agents)

    def state(self) -> Tensor:
        """All agents' current observations side by side `[E, sum of sizes]`, as in `mpe2`."""
        return self._joint(self._last)

    def final_state(self) -> Tensor:
        return self._joint(self._final)

    def _joint(self, obs: Mapping[str, Tensor]) -> Tensor:
        return torch.cat([own.flatten(1) for own in obs.values()], 1).to(self.dtype)

    def close(self) -> None:
        """Nothing is held."""

    def get_state(self) -> dict[str, Tensor]:
        if self._streams is None:
            raise ValueError("expected reset before get_state; call reset(seed=...)")
        return {
            **{name: value.clone() for name, value in self._variables.items()},
            "clocks": self._clocks.clone() if self._ends_early else self._clocks + self._clock,
            **{f"streams/{name}": value for name, value in self._streams.get_state().items()},
        }

    def set_state(self, state: Mapping[str, Tensor]) -> None:
        """Continues from where `get_state` was asked.

        Raises:
            ValueError: If the state is of another environment or number of copies, or copies are at
                different times where no episode can end early.
        """
        expected = {name: tuple(value.shape) for name, value in self._variables.items()}
        given = {name: tuple(state[name].shape) for name in expected if name in state}
        if given != expected:
            raise ValueError(f"expected a state with {expected}, got {given}; build the same environment")
        if not self._ends_early:
            if bool((state["clocks"] != state["clocks"][0]).any()):
                raise ValueError("expected all copies at the same step, because none can end early")
            self._clock = int(state["clocks"][0])
        else:
            self._clocks.copy_(state["clocks"])
        for name, variable in self._variables.items():
            variable.copy_(state[name])
        self._streams = self._streams or Streams(0, self.num_envs, device=self.device)
        self._streams.set_state({n: state[f"streams/{n}"].to(self.device) for n in ("copies", "episode")})
        self._derive()
        self._last = self._observe()

    def _end_all(self, streams: Streams) -> tuple[Tensor, Tensor, Tensor, bool]:
        if self._clock < self.max_cycles:
            return self._no, self._no, self._no, False
        self._metrics = self._episode_metrics()
        self._restart(streams)
        return self._no, self._yes, self._yes, True

    def _end_some(self, streams: Streams) -> tuple[Tensor, Tensor, Tensor, bool]:
        self._clocks += 1
        terminated, truncated, over = self._ends(self._clocks >= self.max_cycles)
        restarts = self.device.type != "cpu" or bool(over.any())
        if restarts:
            self._metrics = self._episode_metrics()
            self._restart(streams, over)
        return terminated, truncated, over, restarts or bool(terminated.any())

    def _by_agent(self, flags: Tensor) -> dict[str, Tensor]:
        if flags.dim() == 1:
            return dict.fromkeys(self.possible_agents, flags)
        return dict(zip(self.possible_agents, flags.unbind(0), strict=True))

    def _restart(self, streams: Streams, where: Tensor | None = None) -> None:
        streams.begin(where)
        fresh = self._initial(streams)
        for name, variable in self._variables.items():
            variable.copy_(fresh[name] if where is None else torch.where(where, fresh[name], variable))
        self._clock = 0
        self._clocks.masked_fill_(self._yes if where is None else where, 0)
        self._derive()


def unbounded(size: int, dtype: torch.dtype) -> spaces.Box:
    """The space of observations of `size` numbers."""
    return spaces.Box(-np.inf, np.inf, (size,), numpy_dtype(dtype))


def numpy_dtype(dtype: torch.dtype) -> type[np.floating[Any]]:
    """NumPy's name of the dtypes that batches have."""
    return np.float64 if dtype == torch.float64 else np.float32
