"""How a scenario becomes an environment: as a batch, and as one copy for PettingZoo."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch

from .particle_batch import ParticleBatch
from .scenario import Scenario
from .view import SingleCopy


def batched_factory(scenario: type[Scenario]) -> Callable[..., ParticleBatch]:
    """A function `(num_envs, *, device, dtype, **options)` that builds batches of the scenario."""

    def batched_env(
        num_envs: int,
        *,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        **options: Any,
    ) -> ParticleBatch:
        return ParticleBatch(scenario(**options), num_envs, device=device, dtype=dtype)

    declare(batched_env, scenario)
    return batched_env


def parallel_factory(scenario: type[Scenario]) -> Callable[..., SingleCopy]:
    """A function `(*, render_mode, **options)` that builds one copy for PettingZoo."""

    def parallel_env(*, render_mode: str | None = None, **options: Any) -> SingleCopy:
        batch = ParticleBatch(scenario(**options), 1)
        return SingleCopy(batch, name=scenario.name, render_mode=render_mode)

    declare(parallel_env, scenario)
    return parallel_env


def declare(factory: Callable[..., Any], options: Callable[..., Any]) -> None:
    """Names the options in the factory's signature and documentation, for checks and `help()`."""
    own = inspect.signature(factory)
    named = [p for p in own.parameters.values() if p.kind is not p.VAR_KEYWORD]
    named += [p.replace(kind=p.KEYWORD_ONLY) for p in inspect.signature(options).parameters.values()]
    vars(factory)["__signature__"] = own.replace(parameters=named)
    factory.__module__ = options.__module__
    factory.__doc__ = f"Builds the environment; the options are described at `{options.__qualname__}`."
