"""A batch of any environment: the one that its module provides, or else copies of the environment itself."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import torch

from marl_aajr.rollout.batched_env import BatchedEnv
from marl_aajr.rollout.environments import EnvironmentSpec
from marl_aajr.rollout.pettingzoo import PettingZooBatch

FACTORY = "batched_env"
"""Beside its `parallel_env`, a module may define `batched_env(num_envs, *, device, **kwargs)`."""


def make_batch(spec: EnvironmentSpec, num_envs: int, *, device: torch.device | str = "cpu") -> BatchedEnv:
    """E copies of an environment.

    Where the module of the environment's factory defines `batched_env`, that builds them, as arrays;
    otherwise they are E environments stepped one after the other (`PettingZooBatch`).

    Args:
        spec: Which environment.
        num_envs: E.
        device: Where the tensors live.

    Raises:
        ValueError: If the environment cannot be built or has no array form.
    """
    factory = batched_factory(spec)
    if factory is None:
        return PettingZooBatch(spec, num_envs, device=device)
    _, kwargs = spec.factory()
    kwargs.pop("render_mode", None)  # a batch draws one copy when it is asked to
    return factory(num_envs, device=device, **kwargs)


def batched_factory(spec: EnvironmentSpec) -> Callable[..., BatchedEnv] | None:
    """The `batched_env` beside the factory of an environment, if there is one."""
    factory, _ = spec.factory()
    found: Any = getattr(sys.modules.get(factory.__module__), FACTORY, None)
    return found if callable(found) else None
