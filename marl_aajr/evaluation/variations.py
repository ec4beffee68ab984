"""Other dynamics: an argument of the environment over several values, on the same seeds.

kwargs.size=0.1,0.15,0.2      these values
kwargs.mass=0.5:2:4           four values from 0.5 to 2, at equal distances
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import yaml

from marl_aajr.evaluation.result import Skipped
from marl_aajr.rollout.batched_env import BatchedEnv
from marl_aajr.rollout.environments import EnvironmentSpec, make_batch
from marl_aajr.training.files import NumberLoader
from marl_aajr.victims import Victim
from marl_aajr.victims.spaces import check_match

_FORM = "kwargs.NAME=VALUE,… or kwargs.NAME=FROM:TO:COUNT, such as kwargs.mass=0.5,1,2"
_ARGUMENT = re.compile(r"(?:env\.)?kwargs\.(\w+)\s*=\s*(.+)")


@dataclass(frozen=True)
class Variation:
    """An argument of the environment, and its values."""

    argument: str
    values: tuple[Any, ...]

    def specs(self, spec: EnvironmentSpec) -> list[tuple[Any, EnvironmentSpec]]:
        """Each value, and the environment with it."""
        return [(value, replace(spec, kwargs={**spec.kwargs, self.argument: value})) for value in self.values]

    def check(self, victim: Victim, spec: EnvironmentSpec, env: BatchedEnv) -> None:
        """Raise `ValueError` unless the environment takes every value, and the same agents play it then."""
        for value, other in self.specs(spec):
            try:
                with closing(make_batch(other, 1, flat=True)) as varied:
                    if varied.possible_agents != env.possible_agents:
                        raise ValueError(
                            f"expected the agents {', '.join(env.possible_agents)}, got "
                            f"{', '.join(varied.possible_agents)}"
                        )
                    check_match(victim, varied)
            except ValueError as error:
                raise ValueError(f"vary {self.argument}={value}: {error}") from error


def parse_variation(text: str) -> Variation:
    """A variation from its text; see the module.

    Raises:
        ValueError: another form, no value, or a value twice.
    """
    found = _ARGUMENT.fullmatch(text.strip())
    if found is None:
        raise ValueError(f"expected {_FORM} to vary, got {text!r}")
    argument, given = found.groups()
    values = _range(given) if given.count(":") == 2 else tuple(_value(part) for part in given.split(","))
    if None in values:
        raise ValueError(f"expected {_FORM} to vary, got {text!r}")
    if len(set(map(repr, values))) < len(values):
        raise ValueError(f"expected each value of {argument} once, got {text!r}")
    return Variation(argument, values)


def read_variations(texts: Sequence[str]) -> Sequence[str]:
    """The texts, if each can be parsed and they are about different arguments."""
    arguments = [parse_variation(text).argument for text in texts]
    for argument in arguments:
        if arguments.count(argument) > 1:
            raise ValueError(f"expected each argument to vary once, got {argument} twice; list its values")
    return texts


def admitted_variations(
    texts: Sequence[str], victim: Victim, spec: EnvironmentSpec, env: BatchedEnv, *, asked: bool
) -> tuple[tuple[str, ...], tuple[Skipped, ...]]:
    """The variations that can be played, and those of a suite that cannot.

    Raises:
        ValueError: one that was `asked` for cannot be played.
    """
    kept, skipped = [], []
    for text in texts:
        variation = parse_variation(text)
        try:
            variation.check(victim, spec, env)
        except ValueError as error:
            if asked:
                raise
            skipped.append(Skipped(f"vary {variation.argument}", str(error)))
        else:
            kept.append(text)
    return tuple(kept), tuple(skipped)


def _range(given: str) -> tuple[Any, ...]:
    """The values of FROM:TO:COUNT; integers where all of them are and both ends were."""
    start, stop, count = (_value(part) for part in given.split(":"))
    numbers = all(isinstance(end, int | float) and not isinstance(end, bool) for end in (start, stop))
    if not numbers or not isinstance(count, int) or count < 2:
        raise ValueError(f"expected numbers FROM:TO:COUNT with COUNT ≥ 2 to vary, got {given!r}")
    values = [float(value) for value in np.linspace(start, stop, count)]
    whole = isinstance(start, int) and isinstance(stop, int) and all(value.is_integer() for value in values)
    return tuple(int(value) for value in values) if whole else tuple(round(value, 12) for value in values)


def _value(text: str) -> Any:
    return yaml.load(text.strip(), Loader=NumberLoader)
