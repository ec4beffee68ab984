"""What a comparison does not show, because it would not compare like with like: grouped, in words."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from marl_aajr.report.conditions import Key
from marl_aajr.report.estimates import epsilons, listing, some


@dataclass(frozen=True)
class Omission:
    """Evaluations that are left out for one reason.

    Attributes:
        count: how many: attacks of one size, or protocols.
        text: which, and why.
    """

    count: int
    text: str


def missing_somewhere(faced: Mapping[str, Collection[Key]]) -> tuple[Omission, ...]:
    """Attacks that only some runs faced, those that the same runs lack together.

    Args:
        faced: run -> the attacks that it faced.
    """
    keys = list(dict.fromkeys(key for own in faced.values() for key in own))
    sizes: dict[tuple[tuple[str, ...], str, str], list[float]] = defaultdict(list)
    for key in keys:
        if lacking := tuple(run for run, own in faced.items() if key not in own):
            sizes[lacking, key.limits, _name(key, keys)].append(key.epsilon)
    attacks: dict[tuple[tuple[str, ...], str, tuple[float, ...]], list[str]] = defaultdict(list)
    for (lacking, limits, name), found in sizes.items():
        attacks[lacking, limits, tuple(sorted(found))].append(name)
    return tuple(
        Omission(
            len(names) * len(found),
            f"{listing(names)} at {epsilons(found)}{f' ({limits})' if limits else ''}: "
            f"not evaluated on {some(lacking, of=len(faced), noun='runs')}",
        )
        for (lacking, limits, found), names in attacks.items()
    )


def _name(key: Key, keys: Iterable[Key]) -> str:
    """The attack's name; its settings are too long to read, so that they differ must do."""
    variants = {other.attack.at(1.0) for other in keys if other.name == key.name}
    name = key.name if key.turn == 1 else f"{key.name} ({key.turn})"
    return f"{name} with settings of its own" if len(variants) > 1 else name
