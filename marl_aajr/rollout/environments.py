"""Environments by name: entry points, PettingZoo's registry, import paths.

A run directory holds the name and the keyword arguments of its environment and nothing else about it, so
a name must build the same environment on another machine.
"""

from __future__ import annotations

import ast
import importlib.resources
import inspect
import re
import sys
import traceback
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import gymnasium
import pettingzoo
from gymnasium.spaces import flatdim
from pettingzoo.utils.deprecated_module import DeprecatedEnv

from marl_aajr.core.channels import read_channels
from marl_aajr.rollout.adapters import find_gymnasium
from marl_aajr.rollout.factories import (
    Factory,
    explain_import_error,
    factory_of,
    innermost,
    load,
    takes,
    version,
)
from marl_aajr.rollout.game import Game
from marl_aajr.rollout.pettingzoo_games import game_of
from marl_aajr.rollout.teams import SAID, read_teams

if TYPE_CHECKING:
    import torch

    from marl_aajr.rollout.batched_env import BatchedEnv

BATCH_FACTORY = "batched_env"
"""Beside its `parallel_env`, a module may define `batched_env(num_envs, *, device, **kwargs)`."""

ENTRY_POINTS = "marl_aajr.envs"
"""Group of the entry points by which a package adds environments: a module with `parallel_env` or
`env`, or a callable that returns a PettingZoo environment."""


@dataclass(frozen=True)
class EnvironmentSpec:
    """The name and arguments of an environment; picklable, so that it travels to Ray workers.

    Attributes:
        name: Entry point, PettingZoo registry id or import path.
        kwargs: Keyword arguments of the environment's factory, and under `env.teams`, a name that no factory
            has, who plays with whom, in any form of `marl_aajr.rollout.teams.read_teams`; under
            `env.channels` what observations consist of (`marl_aajr.core.channels.read_channels`).
        summary: One line for lists.
        made_by: The factory, where only this process can find it by the name; Ray sends it by value.
    """

    name: str
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    summary: str = ""
    made_by: Factory | None = None

    def make(self) -> Game:
        """Builds the environment.

        Raises:
            ValueError: If the name is unknown, a package is missing, the environment does not take
                these arguments, or it is no PettingZoo environment.
        """
        factory, arguments, said = self.factory()
        try:
            env = factory(**arguments)
        except DeprecatedEnv as error:
            raise ValueError(f"{self.name}: {error}") from error
        except Exception as error:
            if isinstance(error, ModuleNotFoundError) and error.name:
                raise ValueError(f"{self.name}: {explain_import_error(factory.__module__, error)}") from error
            reason = f"{' '.join(str(error).split())}{takes(innermost(factory))}"
            if isinstance(error, TypeError) and "argument" in str(error):  # of a factory with `**kwargs`
                raise ValueError(
                    f"expected arguments that {self.name} takes, got {arguments}: {reason}"
                ) from error
            place = traceback.extract_tb(error.__traceback__)[-1]
            where = f"{Path(place.filename).name}, line {place.lineno}"
            raise ValueError(
                f"expected {self.name} to be built with {arguments or 'no arguments'}, got "
                f"{type(error).__name__} of its own ({where}): {reason}"
            ) from error
        return game_of(env, name=self.name, **said)

    def factory(self) -> tuple[Factory, dict[str, Any], dict[str, Any]]:
        """The environment's factory, all arguments that it is called with, and what is said of it.

        Raises:
            ValueError: If the name is unknown, a package is missing or the factory takes other arguments.
        """
        factory, defaults = (self.made_by, {}) if self.made_by else _find(self.name)[:2]
        given = dict(self.kwargs)
        said = {key.removeprefix("env."): given.pop(key) for key in SAID if key in given}
        try:
            inspect.signature(factory).bind(**given)
        except TypeError as error:
            raise ValueError(
                f"expected arguments that {self.name} takes, got {given}: {error}{takes(factory)}"
            ) from None
        except ValueError:  # it has no signature
            pass
        return factory, {**defaults, **given}, said

    def argument(self, name: str) -> Any:
        """The value of an argument of the factory, or its default; None: it has none that anybody can see."""
        factory, arguments, _ = self.factory()
        try:
            parameter = inspect.signature(innermost(factory)).parameters.get(name)
        except (TypeError, ValueError):
            parameter = None
        return arguments.get(name, getattr(parameter, "default", None))


def resolve(
    env: str | ModuleType | Factory | EnvironmentSpec, kwargs: Mapping[str, Any] | None = None
) -> EnvironmentSpec:
    """Finds an environment and checks its arguments, without building it.

    Args:
        env: A specification, a factory, its module, or a name: an entry point (`simple_spread_v3`), an id of
            PettingZoo's registry (`sisl/pursuit-v5`) or of Gymnasium's (`CartPole-v1`,
            `rware:rware-tiny-2ag-v2`), or an import path (`mpe2.simple_spread_v3`,
            `my_package.my_env:make`). Where a module has both kinds of environment, the parallel one
            is taken.
        kwargs: Keyword arguments of the environment's factory, `env.teams` and `env.channels` (see
            `EnvironmentSpec`).

    Returns:
        The specification, whose `make()` builds a `Game`.

    Raises:
        ValueError: If the name is unknown (proposing those that are close), an import
            fails (saying what to install), or the factory does not take the arguments.
    """
    if isinstance(env, EnvironmentSpec):
        if kwargs:
            raise ValueError(f"expected kwargs with a name or a factory, got {env}, which has its own")
        return env
    if isinstance(env, ModuleType):
        env = env.__name__
    if isinstance(env, str):
        factory, _, spec = _find(env)
        made_by = factory if env.startswith("__main__:") else None
    elif not callable(env):
        raise ValueError(
            f"expected the environment's name, import path or factory, such as my_package.my_env:make, got a "
            f"{type(env).__name__}: each run and each row is played on fresh copies"
        )
    else:
        named = getattr(env, "func", env)  # of a partial
        name = f"{named.__module__}:{getattr(named, '__qualname__', type(named).__name__)}"
        made_by, spec = factory_of(env, name), EnvironmentSpec(name)
    spec = replace(spec, kwargs=dict(kwargs or {}), made_by=made_by)
    spec.factory()
    return spec


def known_environments() -> list[EnvironmentSpec]:
    """Everything that has a short name: entry points first, then PettingZoo's registry.

    Nothing is imported or built: some of these need packages that are not installed.
    """
    points = [_summarize_entry_point(point) for _, point in sorted(_entry_points().items())]
    ids = sorted({*pettingzoo.parallel_registry, *pettingzoo.aec_registry})
    return points + [_summarize_registered(name) for name in ids]


def make_batch(
    spec: EnvironmentSpec, num_envs: int, *, device: torch.device | str = "cpu", flat: bool = False
) -> BatchedEnv:
    """E copies of an environment.

    Where the module of the environment's factory defines `batched_env`, that builds them, as arrays;
    otherwise they are E environments stepped one after the other (`PettingZooBatch`), by several processes
    within `marl_aajr.rollout.game_shares.in_processes`.

    Args:
        spec: The environment.
        num_envs: E.
        device: Device of the tensors.
        flat: Make one vector of observations that are no Box, as victims see them (`FlatBox`).

    Raises:
        ValueError: If the environment cannot be built or has no array form.
    """
    factory, kwargs, said = spec.factory()
    batched_env: Any = getattr(sys.modules.get(factory.__module__), BATCH_FACTORY, None)
    if not callable(batched_env):
        from marl_aajr.rollout.pettingzoo_batch import PettingZooBatch  # late: lists need no torch

        return PettingZooBatch(spec, num_envs, device=device, flat=flat)
    kwargs.pop("render_mode", None)  # a batch draws one copy when it is asked to
    batch: BatchedEnv = batched_env(num_envs, device=device, **kwargs)
    if (teams := said.get("teams")) is not None:
        agents = dict(zip(batch.possible_agents, batch.possible_agents, strict=True))
        batch.teams = read_teams(teams, agents, name=spec.name)
    if (channels := said.get("channels")) is not None:
        widths = {agent: flatdim(space) for agent, space in batch.observation_spaces.items()}
        batch.channels = read_channels(channels, widths, env=spec.name)
    return batch


def _find(name: str) -> tuple[Factory, dict[str, Any], EnvironmentSpec]:
    """The factory, its registered default arguments and the canonical specification."""
    point = _entry_points().get(name)
    if point is not None:
        return load(point.value), {}, _summarize_entry_point(point)
    registered = _registry_id(name)
    if registered is not None:
        listed = pettingzoo.parallel_registry.get(registered) or pettingzoo.aec_registry[registered]
        factory = load(listed.entry_point) if isinstance(listed.entry_point, str) else listed.entry_point
        limit = {} if listed.max_cycles is None else {"max_cycles": listed.max_cycles}
        return factory, {**limit, **listed.kwargs}, _summarize_registered(registered)
    try:
        made_by_gymnasium = find_gymnasium(name)
    except ImportError as error:
        raise ValueError(explain_import_error(name.partition(":")[0], error)) from error
    if made_by_gymnasium is not None:
        return made_by_gymnasium, {}, EnvironmentSpec(name, summary="Gymnasium, one team")
    if re.fullmatch(r"\w+(\.\w+)+|\w+(\.\w+)*:\w+", name):
        return load(name), {}, EnvironmentSpec(name, summary=f"import path {name}")
    raise ValueError(_unknown(name))


@cache
def _entry_points() -> Mapping[str, EntryPoint]:
    # Reading them takes 20 ms, and every copy of an environment asks.
    return {point.name: point for point in entry_points(group=ENTRY_POINTS)}


def _summarize_entry_point(point: EntryPoint) -> EnvironmentSpec:
    own = point.module.startswith("marl_aajr.")
    return EnvironmentSpec(point.name, summary=_first_words(point.module) if own else point.value)


@cache
def _first_words(module: str) -> str:
    """How the docstring of one of our environments begins, without importing it."""
    file = importlib.resources.files("marl_aajr.envs") / f"{module.rpartition('.')[2]}.py"
    docstring = ast.get_docstring(ast.parse(file.read_text("utf-8"))) or module
    return f"{docstring.splitlines()[0].partition(': `')[0].rstrip('.')}; batched in torch"


def _registry_id(name: str) -> str | None:
    """The registry's own spelling of an id: it takes `_v3` for `-v3`, and no version for the newest."""
    wanted = re.sub(r"_v(?=\d+$)", "-v", name)
    ids = {*pettingzoo.parallel_registry, *pettingzoo.aec_registry}
    if wanted in ids or "/" not in name:
        return wanted if wanted in ids else None
    versions = [known for known in ids if re.fullmatch(rf"{re.escape(wanted)}-v\d+", known)]
    return max(versions, key=version, default=None)


def _summarize_registered(name: str) -> EnvironmentSpec:
    family = name.rpartition("/")[0] or "no family"
    kind = "simultaneous" if name in pettingzoo.parallel_registry else "turn-based"
    return EnvironmentSpec(name, summary=f"PettingZoo {family}, {kind}")


def _unknown(name: str) -> str:
    known = [spec.name for spec in known_environments()]
    known += [other for other in gymnasium.registry if "/" not in other]
    spellings = {re.sub(r".*/", "", other).replace("-v", "_v"): other for other in known}
    spellings |= {other: other for other in known}
    wanted = re.sub(r"-v(?=\d+$)", "_v", name)
    close = list(dict.fromkeys(spellings[s] for s in get_close_matches(wanted, spellings, n=4)))
    if "/" in name:
        family = re.sub(r"[-_]v\d+$", "", name)
        close = [other for other in known if other.startswith(f"{family}-v")] or close
    close = close or [other for other in known if len(name) > 3 and name in other][:4]
    hint = f" (did you mean {' or '.join(close)}?)" if close else ""
    return (
        f"unknown environment {name!r}{hint}; see marl-aajr list envs, or give an import path such as "
        "my_package.my_env:make, or what a package registers in Gymnasium: my_package:MyEnv-v1"
    )
