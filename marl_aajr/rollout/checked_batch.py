"""A batch whose faults say whose they are."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any, NoReturn

import torch
from torch import Tensor

from marl_aajr.core.environment_values import EnvironmentFault
from marl_aajr.rollout.batched_env import BatchedEnv, BatchedStep
from marl_aajr.rollout.fragments import ModuleFragment


class CheckedBatch:
    """A batch whose faults are raised as `EnvironmentFault`, with batch, agent, copy and step.

    Batches that are made of arrays have no `Game` that checks them. Shapes are checked at every step, values
    once per fragment: reading one makes a device wait.
    """

    def __init__(self, env: BatchedEnv, name: str) -> None:
        self._env = env
        self._name = name
        self._steps = 0
        self._obs = {
            agent: torch.Size((env.num_envs, *(space.shape or ())))
            for agent, space in env.observation_spaces.items()
        }
        self._each = dict.fromkeys(self._obs, torch.Size((env.num_envs,)))

    def reset(self, *, seed: int) -> dict[str, Tensor]:
        self._steps = 0
        obs = self._call(lambda: self._env.reset(seed=seed))
        self._check("observation", obs, self._obs)
        return obs

    def step(self, actions: Mapping[str, Tensor]) -> BatchedStep:
        self._steps += 1
        step = self._call(lambda: self._env.step(actions))
        self._check("observation", step.obs, self._obs)
        self._check("last observation", step.final_obs, self._obs)
        self._check("reward", step.rewards, self._each)
        self._check("termination", step.terminations, self._each)
        self._check("truncation", step.truncations, self._each)
        return step

    def check_finite(
        self, parts: Collection[ModuleFragment], *, lead: int, position: Callable[[int, int], int]
    ) -> None:
        """Raises `EnvironmentFault` where a number is not finite.

        Args:
            parts: The collected columns.
            lead: Rows before the first step.
            position: From step `t` of copy `e` to its number in its episode, from 1.
        """
        columns = [(part, name) for part in parts for name in ("rewards", "obs", "final_obs")]
        floats = [(part, name) for part, name in columns if getattr(part, name).is_floating_point()]
        # A sum shows what is not finite in a fraction of the time that a look at each number takes.
        sums = [getattr(part, name).sum(dtype=torch.float32) for part, name in floats]
        if bool(torch.stack(sums).isfinite().all()):
            return
        bad = ((part, name, ~getattr(part, name).isfinite()) for part, name in floats)
        found = next((case for case in bad if bool(case[2].any())), None)
        if found is None:  # the sum was too large
            return
        part, name, which = found
        at = which.nonzero()[0].tolist()
        t, g, e = part.final_at[at[0]].tolist() if name == "final_obs" else at[:3]
        # An observation is what came of the step before.
        t -= lead + (name == "obs")
        what = {"rewards": "reward", "obs": "observation", "final_obs": "last observation"}[name]
        where = f"copy {e}, step {0 if t < 0 else position(t, e)}"
        self._fail(f"the {what} of agent {part.agents[g]!r} is not finite", where=where)

    def _call(self, play: Callable[[], Any]) -> Any:
        try:
            return play()
        except EnvironmentFault:
            raise
        except Exception as error:
            self._fail(f"raised {type(error).__name__}: {error}", error)

    def _check(self, what: str, given: Mapping[str, Tensor], shapes: Mapping[str, torch.Size]) -> None:
        for agent, shape in shapes.items():
            tensor = given.get(agent)
            if tensor is None:
                self._fail(f"gave agent {agent!r} no {what}")
            if tensor.shape != shape:
                self._fail(
                    f"the {what} of agent {agent!r} has shape {tuple(tensor.shape)} for "
                    f"{self._env.num_envs} copies, expected {tuple(shape)}"
                )

    def _fail(self, what: str, cause: Exception | None = None, *, where: str = "") -> NoReturn:
        where = where or f"{self._env.num_envs} copies, step {self._steps} since the reset"
        raise EnvironmentFault(f"environment {self._name}, {where}: {what}") from cause
