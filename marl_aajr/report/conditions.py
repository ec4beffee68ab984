"""What a run was put under: one attack, at one size, on some agents, for some of the time."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from marl_aajr.report.evaluations import Attacked, Chosen, Evaluation, Rows

_COUNTED = re.compile(r"agents=\d+")
_STEPS = re.compile(r"steps=(\d+)(?:,timing=(\w+))?")
_SCALE = re.compile(r"scale=([^,]+)")
_SOURCE = re.compile(r"\b(source|adversary)='[^']+'")


class Key(NamedTuple):
    """What makes two rows the same condition, whichever run they are of.

    Attributes:
        name: of the attack.
        settings: without what is each run's own (the run that its adversary or surrogate comes from).
        epsilon: the size.
        whom: who is attacked, where it is not everybody under attack; else empty.
        budget: when, where it is not always, and by how much where it is not the same for all; else empty.
        turn: counts the surrogates or adversaries of one run that would otherwise be the same.
    """

    name: str
    settings: str
    epsilon: float
    whom: str = ""
    budget: str = ""
    turn: int = 1

    @property
    def limits(self) -> str:
        """What the attacker may not do, in words; empty for an attack on everybody at every step."""
        return ", ".join(filter(None, (self.whom, self.budget)))

    def __str__(self) -> str:
        limits = f", {self.limits}" if self.limits else ""
        return f"{self.name} at ε = {self.epsilon:g}{limits} [{self.settings}]"


@dataclass(frozen=True)
class Condition:
    """One attack at one size.

    Attributes:
        name: the attack's name, as the command line takes it.
        attack: label of the attack on the page; attacks of one name are told apart by settings.
        settings: the attack as it was run, apart from its size.
        epsilon: size of the perturbation.
        limits: what the attacker may not do, in words (`"agent_0 only"`); empty: nothing.
    """

    name: str
    attack: str
    settings: str
    epsilon: float
    limits: str = ""


Exact = tuple[str, str, float, frozenset[str], str]
"""A row as its file has it: attack, settings, size, agents and the budget of the evaluation."""

Played = tuple[Rows, Evaluation]
"""What was played with one kind of actions, and the file that holds it."""


def exact(row: Attacked | Chosen, evaluation: Evaluation) -> Exact:
    """What tells the rows of one run apart."""
    agents = frozenset(row.agents or evaluation.agents)
    return row.attack, row.settings, row.epsilon, agents, evaluation.budget


def keys_of(played: Sequence[Played]) -> dict[Exact, Key]:
    """The keys of all attacked rows of one run.

    Agents that were searched for are named by their number, because each run has its own weakest; several
    surrogates or adversaries of one kind are numbered in the order of the files.
    """
    keys: dict[Exact, Key] = {}
    for rows, evaluation in played:
        for row in rows.attacks:
            if exact(row, evaluation) in keys:
                continue
            plain = Key(
                row.attack,
                _SOURCE.sub(r"\1=…", row.settings),
                row.epsilon,
                _whom(row, rows, evaluation),
                _limits(evaluation),
            )
            turns = [key.turn for key in keys.values() if key._replace(turn=1) == plain]
            keys[exact(row, evaluation)] = plain._replace(turn=len(turns) + 1)
    return keys


def label_all(keys: Iterable[Key]) -> dict[Key, Condition]:
    """The conditions of the keys, labelled so that no two attacks share a label."""
    unique = list(dict.fromkeys(keys))
    settings: dict[str, set[str]] = {}
    for key in unique:
        settings.setdefault(key.name, set()).add(key.settings)
    return {key: _condition(key, alone=len(settings[key.name]) == 1) for key in unique}


def _condition(key: Key, *, alone: bool) -> Condition:
    label = key.name if alone else f"{key.name}: {key.settings}"
    if key.turn > 1:
        label = f"{label} ({key.turn})"
    return Condition(
        key.name,
        f"{label}, {key.limits}" if key.limits else label,
        key.settings,
        key.epsilon,
        key.limits,
    )


def _whom(row: Attacked, rows: Rows, evaluation: Evaluation) -> str:
    agents = set(row.agents or evaluation.agents)
    if not agents or agents == evaluation.members:
        return ""
    searched = {frozenset(subset.agents) for subset in rows.subsets}
    if _COUNTED.search(evaluation.budget) and frozenset(agents) in searched:
        return f"worst {len(agents)} of {len(evaluation.agents)} agents"
    return f"{', '.join(sorted(agents))} only"


def unlimited(conditions: Iterable[Condition]) -> tuple[Condition, ...]:
    """The attacks on everybody at every step; all of them where there are none such."""
    given = tuple(conditions)
    return tuple(condition for condition in given if not condition.limits) or given


def _limits(evaluation: Evaluation) -> str:
    """When the adversary may lie, and to whom by more or less than the size, in words.

    Of the evaluation's budget: a row's own words hold the lengths of its run's episodes.
    """
    steps, scale = _STEPS.search(evaluation.budget), _SCALE.search(evaluation.budget)
    when = f"{steps[1]} steps ({steps[2] or 'random'})" if steps else ""
    how_much = f"ε × {scale[1].replace('+', ', ')}" if scale else ""
    return ", ".join(filter(None, (when, how_much)))
