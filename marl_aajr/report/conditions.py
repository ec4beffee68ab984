"""The conditions that runs are compared under: attack, size, attacked agents and steps; what is left out."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from marl_aajr.evaluation.budget import Budget
from marl_aajr.evaluation.outcomes import AttackOutcome, AttackSpec, WorstAttack
from marl_aajr.evaluation.result import ActionsResult, Evaluation
from marl_aajr.report.estimates import epsilons, listing, some


class Key(NamedTuple):
    """The properties that make rows of several runs the same condition.

    Attributes:
        attack: without its source, which is each run's own.
        whom: the attacked agents, where they are not everybody under attack; else empty.
        budget: the steps, where they are limited, and the scales of ε, where they differ; else empty.
        turn: counts the surrogates or adversaries of one run that would otherwise be the same.
    """

    attack: AttackSpec
    whom: str = ""
    budget: str = ""
    turn: int = 1

    @property
    def name(self) -> str:
        """The attack's name."""
        return self.attack.name

    @property
    def epsilon(self) -> float:
        """The attack's size."""
        return self.attack.epsilon

    @property
    def limits(self) -> str:
        """The limits of the attacker, in words; empty for an attack on everybody at every step."""
        return ", ".join(filter(None, (self.whom, self.budget)))

    def __str__(self) -> str:
        limits = f", {self.limits}" if self.limits else ""
        return f"{self.name} at ε = {self.epsilon:g}{limits} [{self.attack.described}]"


@dataclass(frozen=True)
class Condition:
    """One attack at one size.

    Attributes:
        attack: label of the attack on the page; attacks of one name are told apart by settings.
        spec: the attack, size included, without its source.
        limits: the limits of the attacker, in words (`"agent_0 only"`); empty: there are none.
    """

    attack: str
    spec: AttackSpec
    limits: str = ""

    @property
    def name(self) -> str:
        """The attack's name, as the command line takes it."""
        return self.spec.name

    @property
    def epsilon(self) -> float:
        """Size of the perturbation."""
        return self.spec.epsilon


Exact = tuple[AttackSpec, frozenset[str], Budget]
"""A row as its file has it: attack, agents and the budget of the evaluation."""

Played = tuple[ActionsResult, Evaluation]
"""The result for one kind of actions, and the evaluation that holds it."""


def exact(row: AttackOutcome | WorstAttack, evaluation: Evaluation) -> Exact:
    """The key that tells the rows of one run apart."""
    return row.attack, frozenset(row.agents), evaluation.budget


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
            attack = row.attack.anonymous
            plain = Key(attack, _whom(row, rows, evaluation), _limits(evaluation.budget))
            turns = [key.turn for key in keys.values() if key._replace(turn=1) == plain]
            keys[exact(row, evaluation)] = plain._replace(turn=len(turns) + 1)
    return keys


def label_all(keys: Iterable[Key]) -> dict[Key, Condition]:
    """The conditions of the keys, labelled so that no two attacks share a label."""
    unique = list(dict.fromkeys(keys))
    alike: dict[str, set[AttackSpec]] = {}
    for key in unique:
        alike.setdefault(key.name, set()).add(key.attack.at(1.0))
    return {key: _condition(key, alone=len(alike[key.name]) == 1) for key in unique}


def _condition(key: Key, *, alone: bool) -> Condition:
    label = key.name if alone else f"{key.name}: {key.attack.described}"
    if key.turn > 1:
        label = f"{label} ({key.turn})"
    return Condition(f"{label}, {key.limits}" if key.limits else label, key.attack, key.limits)


def _whom(row: AttackOutcome, rows: ActionsResult, evaluation: Evaluation) -> str:
    agents = set(row.agents)
    if agents == set(evaluation.members):
        return ""
    searched = {frozenset(subset.agents) for subset in rows.subsets}
    if evaluation.budget.worst is not None and frozenset(agents) in searched:
        return f"worst {len(agents)} of {len(evaluation.agents)} agents"
    return f"{', '.join(sorted(agents))} only"


def unlimited(conditions: Iterable[Condition]) -> tuple[Condition, ...]:
    """The attacks on everybody at every step; all of them where there are none such."""
    given = tuple(conditions)
    return tuple(condition for condition in given if not condition.limits) or given


def _limits(budget: Budget) -> str:
    """The attacked steps, and the agents with an ε of their own, in words.

    Of the evaluation's budget: a row's own words hold the lengths of its run's episodes.
    """
    when = f"{budget.steps} steps ({budget.timing})" if budget.steps is not None else ""
    scales = ", ".join(f"{agent}:{scale:g}" for agent, scale in budget.scale_of.items())
    return ", ".join(filter(None, (when, f"ε × {scales}" if scales else "")))


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
            sizes[lacking, key.limits, _named(key, keys)].append(key.epsilon)
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


def _named(key: Key, keys: Iterable[Key]) -> str:
    """The attack's name; its settings are too long to read, so that they differ must do."""
    variants = {other.attack.at(1.0) for other in keys if other.name == key.name}
    name = key.name if key.turn == 1 else f"{key.name} ({key.turn})"
    return f"{name} with settings of its own" if len(variants) > 1 else name
