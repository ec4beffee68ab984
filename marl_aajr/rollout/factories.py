"""Environment factories by import path, and what to tell a person when the import fails."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import re
from collections.abc import Callable, Iterable
from difflib import get_close_matches
from types import ModuleType
from typing import Any

from marl_aajr.rollout.adapters import configured, is_multi_agent

Factory = Callable[..., Any]

_MOVED = {"pettingzoo.mpe": "mpe2", "pettingzoo.magent": "magent2.environments"}


def load(path: str) -> Factory:
    """The environment factory at an import path.

    Args:
        path: `package.module` (its `parallel_env`, or else its `env`) or
            `package.module:factory`, also where a package only passes the module or the factory on.

    Raises:
        ValueError: If the import fails (saying what to install, or which version exists), or there is
            no factory at the path.
    """
    module_name, _, attribute = path.partition(":")
    try:
        module = _imported(module_name)
    except Exception as error:
        reason = f"importing {module_name} raised {type(error).__name__}: {error}; repair the module"
        if isinstance(error, ImportError):
            reason = explain_import_error(module_name, error)
        raise ValueError(reason) from error
    if not attribute:
        return factory_of(module, path)
    try:
        return factory_of(getattr(module, attribute), path)
    except AttributeError:
        advice = "name one of them after the colon"
        if module_name == "__main__":
            advice = "the factory was in another script or notebook: play there, or move it into a module"
        raise ValueError(
            f"expected {module_name} to define {attribute}, got a module with {_callables(module)}; {advice}"
        ) from None


def _imported(name: str) -> Any:
    """A module, or what a package calls so: documentations name what they import from elsewhere."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        parent, _, leaf = name.rpartition(".")
        if not parent or error.name != name:
            raise
        found = getattr(_imported(parent), leaf, None)
        if not (isinstance(found, ModuleType) or callable(found)):
            raise
        return found


def factory_of(found: Any, path: str) -> Factory:
    """The environment factory: the callable itself, or `parallel_env` or `env` of a module.

    Raises:
        ValueError: If there is no such thing.
    """
    if not isinstance(found, ModuleType):
        if callable(found):
            return configured(found) if is_multi_agent(found) else found
        raise ValueError(
            f"expected {path} to be an environment factory, got {type(found).__name__}; name a "
            "function or a class that returns a PettingZoo environment"
        )
    for name in ("parallel_env", "env"):
        if callable(factory := getattr(found, name, None)):
            return factory
    raise ValueError(
        f"expected the module {path} to define parallel_env or env, got a module with {_callables(found)}; "
        f"name the factory: {path}:FACTORY"
    )


def explain_import_error(module_name: str, error: ImportError) -> str:
    """One line that says why the import failed and what to do about it."""
    for old, new in _MOVED.items():
        if f"{module_name}.".startswith(f"{old}."):
            package = new.partition(".")[0]
            return (
                f"{old} left PettingZoo for the package {package}: pip install {package} and write "
                f"{new}{module_name.removeprefix(old)}"
            )
    missing = error.name or ""
    if not isinstance(error, ModuleNotFoundError) or not missing:
        return f"importing {module_name} failed: {error}"
    if not f"{module_name}.".startswith(f"{missing}."):
        family = re.match(r"pettingzoo\.(\w+)\.", module_name)
        wanted = f'"pettingzoo[{family[1]}]"' if family else missing.partition(".")[0]
        return f"{module_name} needs the module {missing}: pip install {wanted}"
    parent, _, leaf = missing.rpartition(".")
    if not parent:
        return (
            f"expected an installed package, got {missing}: pip install {missing}, or put the folder "
            "that holds it on PYTHONPATH"
        )
    return _no_such_module(parent, leaf)


def _no_such_module(parent: str, leaf: str) -> str:
    folders = getattr(importlib.import_module(parent), "__path__", [])
    present = sorted(found.name for found in pkgutil.iter_modules(folders))
    stem, _, number = leaf.rpartition("_v")
    versions = [name for name in present if stem and re.fullmatch(rf"{re.escape(stem)}_v\d+", name)]
    if versions:
        newest = max(versions, key=version)
        old = number.isdigit() and int(number) < version(newest)
        state = "is deprecated" if old else "does not exist"
        return f"{parent}.{leaf} {state}: use {parent}.{newest}"
    environments = [name for name in present if re.search(r"_v\d+$", name)]
    choice = get_close_matches(leaf, present) or environments or present
    return f"expected a module of {parent}, got {leaf}; it has {_listing(choice)}"


def version(name: str) -> int:
    """The version that a name ends with, `_v3` or `-v3`."""
    return int(re.split(r"[-_]v", name)[-1])


def _callables(module: ModuleType) -> str:
    return _listing(name for name, v in vars(module).items() if callable(v) and not name.startswith("_"))


def _listing(names: Iterable[str], most: int = 12) -> str:
    listed = list(names)
    more = f" and {len(listed) - most} more" if len(listed) > most else ""
    return (", ".join(listed[:most]) or "nothing") + more


def _accepted(factory: Factory) -> list[str]:
    """Names of the keyword arguments that the factory declares."""
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    try:
        parameters = inspect.signature(factory).parameters.values()
    except (TypeError, ValueError):  # some that are written in C have no signature
        return []
    return [parameter.name for parameter in parameters if parameter.kind in kinds]


def takes(factory: Factory) -> str:
    """The arguments of a factory, as the end of a message."""
    accepted = _accepted(factory)
    return f"; it takes {', '.join(accepted)}" if accepted else ""


def innermost(factory: Factory) -> Factory:
    """The function to which a factory of the form `def env(**kwargs)` passes its arguments.

    PettingZoo's factories wrap each other in closures, by convention under these names.
    """
    while inspect.isfunction(factory) and not _accepted(factory):
        scope = inspect.getclosurevars(factory)
        called = {**scope.globals, **scope.nonlocals}
        inner = [called[name] for name in ("raw_env", "env_fn", "env") if callable(called.get(name))]
        if not inner:
            break
        factory = inner[0]
    return factory
