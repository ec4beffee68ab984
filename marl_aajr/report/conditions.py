"""The things that are compared: a task, and in it the conditions that all runs were evaluated under.

A task is an environment and the side whose return counts; a condition is an attack of one size, on some
agents, at some steps. Evaluations that only some runs have are left out, and listed.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from marl_aajr.certificates.certificate import Certificate
from marl_aajr.core.checks import grouped
from marl_aajr.evaluation.budget import Budget
from marl_aajr.evaluation.outcomes import AttackOutcome, AttackSpec
from marl_aajr.evaluation.result import ActionsResult, Evaluation, Rows
from marl_aajr.evaluation.worst_attack import WorstAttack
from marl_aajr.report.estimates import epsilons, listing, size, some
from marl_aajr.report.methods import EvaluatedRun


@dataclass(frozen=True, order=True)
class Task:
    """An environment with its arguments as JSON, and the side whose return is compared, if there are several.

    Within a task returns have a meaning in common.
    """

    environment: str
    team: str = ""

    @classmethod
    def of(cls, evaluation: Evaluation | Certificate) -> Task:
        """The task of an evaluation, or of a certificate."""
        kwargs = json.dumps(evaluation.env.kwargs, sort_keys=True) if evaluation.env.kwargs else ""
        several = len(set(evaluation.teams.values())) > 1
        return cls(f"{evaluation.env.name} {kwargs}".strip(), evaluation.team if several else "")

    def __str__(self) -> str:
        return f"{self.environment}, {self.team}" if self.team else self.environment

    @property
    def short(self) -> str:
        """Without the package, for headings."""
        name, _, kwargs = self.environment.partition(" ")
        return f"{name.rpartition('.')[2]} {kwargs}".strip() + (f" ({self.team})" if self.team else "")


def by_task(records: Sequence[EvaluatedRun]) -> dict[Task, list[EvaluatedRun]]:
    """The runs of each task, with their evaluations in it, in order of the tasks' names.

    Left out are a task of a single run that is compared in another task, where nothing would be compared;
    and, beside one with attacks, a task in which the runs share none.
    """
    found = grouped(
        (task, replace(record, evaluations=dict(own)))
        for record in records
        for task, own in grouped((Task.of(e), (name, e)) for name, e in record.evaluations.items()).items()
    )
    paths = {task: {run.path for run in found[task]} for task in sorted(found)}
    shown = [task for task, own in paths.items() if len(own) > 1 or not any(own < o for o in paths.values())]
    attacked = [task for task in shown if share_attacks([run.evaluations.values() for run in found[task]])]
    return {task: found[task] for task in attacked or shown}


def share_attacks(per_run: Sequence[Iterable[Evaluation]]) -> bool:
    """True where an attack of one size is in the evaluations of every run."""
    keys = [set(keys_of([(e.results[0], e) for e in evaluations]).values()) for evaluations in per_run]
    return bool(set.intersection(*keys))


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
    def limits(self) -> str:
        """The limits of the attacker, in words; empty for an attack on everybody at every step."""
        return ", ".join(filter(None, (self.whom, self.budget)))

    def __str__(self) -> str:
        limits = f", {self.limits}" if self.limits else ""
        return f"{self.attack.label} at {size(self.attack.epsilon)}{limits} [{self.attack.described}]"


@dataclass(frozen=True)
class Condition:
    """One attack at one size, its spec without its source.

    `attack` is its label on the page, by which attacks of one name are told apart; `limits` are those of the
    attacker in words (`"agent_0 only"`), empty where there are none.
    """

    attack: str
    spec: AttackSpec
    limits: str = ""

    @property
    def epsilon(self) -> float:
        """Size of the perturbation."""
        return self.spec.epsilon


Exact = tuple[AttackSpec, frozenset[str], Budget]
"""A row as its file has it: attack, agents and the budget of the evaluation."""

Played = tuple[ActionsResult, Evaluation]
"""The result for one kind of actions, and the evaluation that holds it."""

Faced = tuple[Rows, Evaluation]
"""The same, or the rows against one opponent."""


def exact(row: AttackOutcome | WorstAttack, evaluation: Evaluation) -> Exact:
    """The key that tells the rows of one run apart."""
    return row.attack, frozenset(row.agents), evaluation.budget


def keys_of(played: Sequence[Faced]) -> dict[Exact, Key]:
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
    alike = grouped((key.attack.label, key.attack.at(1.0)) for key in unique)
    found = {}
    for key in unique:
        alone = len(set(alike[key.attack.label])) == 1
        label = key.attack.label if alone else f"{key.attack.label}: {key.attack.described}"
        label += f" ({key.turn})" if key.turn > 1 else ""
        label += f", {key.limits}" if key.limits else ""
        found[key] = Condition(label, key.attack, key.limits)
    return found


def _whom(row: AttackOutcome, rows: Rows, evaluation: Evaluation) -> str:
    agents = set(row.agents)
    everybody = evaluation.agents == evaluation.members and evaluation.budget.agents is None
    if agents == set(evaluation.members) or (row.attack.channels and everybody):
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
    """So many evaluations (attacks of one size, or protocols) that are left out for one reason."""

    count: int
    text: str


def missing_somewhere(faced: Mapping[str, Collection[Key]]) -> tuple[Omission, ...]:
    """Attacks that only some runs faced, those that the same runs lack together; `faced` is by run."""
    keys = list(dict.fromkeys(key for own in faced.values() for key in own))
    sizes = grouped(
        ((lacking, key.limits, _named(key, keys)), key.attack.epsilon)
        for key in keys
        if (lacking := tuple(run for run, own in faced.items() if key not in own))
    )
    attacks = grouped(
        ((lacking, limits, tuple(sorted(found))), name) for (lacking, limits, name), found in sizes.items()
    )
    return tuple(
        Omission(
            len(names) * len(found),
            f"{listing(names)} at {epsilons(found)}{f' ({limits})' if limits else ''}: "
            f"not evaluated on {some(lacking, of=len(faced), noun='runs')}",
        )
        for (lacking, limits, found), names in attacks.items()
    )


def _named(key: Key, keys: Iterable[Key]) -> str:
    """The attack's name; that its settings differ must do, they are too long to read."""
    variants = {other.attack.at(1.0) for other in keys if other.attack.label == key.attack.label}
    name = key.attack.label if key.turn == 1 else f"{key.attack.label} ({key.turn})"
    return f"{name} with settings of its own" if len(variants) > 1 else name
