"""Find what all runs were evaluated on, so that like is compared with like."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from marl_aajr.report.records import Attacked, Evaluation, Outcome, Rows, RunRecord


@dataclass(frozen=True, order=True)
class Protocol:
    """What must be the same in two evaluations before their returns may be compared."""

    environment: str
    episodes: int
    seed: int
    actions: str
    level: float
    units: str = ""
    agents: str = ""
    num_envs: int = 0

    @classmethod
    def of(cls, evaluation: Evaluation) -> Protocol:
        """The protocol that an evaluation followed."""
        kwargs = json.dumps(evaluation.env.kwargs, sort_keys=True)
        return cls(
            environment=evaluation.env.name + (f" {kwargs}" if evaluation.env.kwargs else ""),
            episodes=evaluation.episodes,
            seed=evaluation.seed,
            actions=evaluation.actions,
            level=evaluation.interval.level,
            units=evaluation.units,
            agents=evaluation.part,
            num_envs=evaluation.num_envs,
        )

    def __str__(self) -> str:
        return (
            f"{self.environment}, {self.episodes} episodes, seed {self.seed}, "
            f"{self.actions} actions, {100 * self.level:g} % intervals"
            + (f", ε in {self.units} units" if self.units else "")
            + (f", attack on {self.agents} only" if self.agents else "")
        )


@dataclass(frozen=True)
class Condition:
    """One attack at one size.

    Attributes:
        name: the attack's name, as the command line takes it.
        attack: label of the attack on the page; attacks of one name are told apart by settings.
        settings: the attack as it was run, apart from its size.
        epsilon: size of the perturbation.
    """

    name: str
    attack: str
    settings: str
    epsilon: float


@dataclass(frozen=True)
class Results:
    """The evaluations of one run under the common protocol.

    Attributes:
        run: the run.
        clean: without an attack.
        attacked: under each attack and size.
        chosen: ε -> the worst attack, chosen on episodes that are not reported; without the sizes of which
            the evaluation chose none, or one that not all runs faced.
        others: the same with other kinds of actions than the protocol's, by kind.
    """

    run: RunRecord
    clean: Outcome
    attacked: Mapping[Condition, Attacked]
    chosen: Mapping[float, Condition] = field(default_factory=dict)
    others: Mapping[str, Results] = field(default_factory=dict)

    def worst(self, epsilon: float) -> Condition:
        """The attack of a size that hurts this run most: as chosen, or else by the returns reported."""
        if epsilon in self.chosen:
            return self.chosen[epsilon]
        tried = [condition for condition in self.attacked if condition.epsilon == epsilon]
        return min(tried, key=lambda condition: self.attacked[condition].mean)


@dataclass(frozen=True)
class Evidence:
    """What all runs share.

    Attributes:
        protocol: followed by all results.
        conditions: attacks and sizes that every run faced; by attack, then size.
        results: one per run, in the order of the records.
        left_out: in words, what some runs have and others lack.
    """

    protocol: Protocol
    conditions: tuple[Condition, ...]
    results: tuple[Results, ...]
    left_out: tuple[str, ...]


_Key = tuple[str, str, float]


def gather(records: Sequence[RunRecord]) -> Evidence:
    """Line up the evaluations of all runs.

    Several evaluation files of one run are read together. Where the runs share several
    protocols, the one with the most episodes is taken.

    Raises:
        ValueError: no protocol or no attack is common to all runs, or two files of one run
            contradict each other.
    """
    per_run = [_by_protocol(record) for record in records]
    protocol = _common_protocol(records, per_run)
    merged = [_merge(record, found[protocol]) for record, found in zip(records, per_run, strict=True)]
    common = [key for key in merged[0][1] if all(key in attacked for _, attacked in merged)]
    if not common:
        raise ValueError(
            "expected runs under the same attacks, got "
            + "; ".join(
                f"{record.path}: {', '.join(map(_name, attacked)) or 'no attack'}"
                for record, (_, attacked) in zip(records, merged, strict=True)
            )
            + "; evaluate them with the same --attack and --epsilon"
        )
    conditions = {key: _condition(key, common) for key in common}
    results = tuple(
        Results(
            record,
            clean,
            {conditions[key]: attacked[key] for key in common},
            _chosen(found[protocol], conditions),
            _others(record, found[protocol], conditions),
        )
        for record, found, (clean, attacked) in zip(records, per_run, merged, strict=True)
    )
    order = list(dict.fromkeys(condition.attack for condition in conditions.values()))
    ordered = sorted(conditions.values(), key=lambda c: (order.index(c.attack), c.epsilon))
    others = {other for found in per_run for other in found} - {protocol}
    left_out = [f"evaluations on {other}" for other in sorted(others)]
    left_out += _missing_somewhere(records, [attacked for _, attacked in merged])
    return Evidence(protocol, tuple(ordered), results, tuple(left_out))


def _by_protocol(record: RunRecord) -> dict[Protocol, list[Evaluation]]:
    found = defaultdict(list)
    for evaluation in record.evaluations.values():
        found[Protocol.of(evaluation)].append(evaluation)
    return dict(found)


def _common_protocol(records: Sequence[RunRecord], per_run: Sequence[Mapping[Protocol, object]]) -> Protocol:
    common = [key for key in per_run[0] if all(key in found for found in per_run)]
    if not common:
        raise ValueError(
            "expected runs evaluated on the same environment, episodes and seed, got "
            + "; ".join(
                f"{record.path}: {' / '.join(map(str, sorted(found)))}"
                for record, found in zip(records, per_run, strict=True)
            )
            + "; run `marl-aajr evaluate` on each with the same --episodes and --seed"
        )
    return max(common, key=lambda protocol: (protocol.episodes, protocol))


def _others(
    record: RunRecord, evaluations: Sequence[Evaluation], conditions: Mapping[_Key, Condition]
) -> dict[str, Results]:
    """The kinds of actions that were played under every condition of the comparison."""
    kinds: dict[str, list[Rows]] = defaultdict(list)
    for evaluation in evaluations:
        for rows in evaluation.others:
            kinds[rows.actions].append(rows)
    found = {}
    for kind, played in kinds.items():
        clean, attacked = _merge(record, played)
        if attacked.keys() >= conditions.keys():
            shared = {condition: attacked[key] for key, condition in conditions.items()}
            found[kind] = Results(record, clean, shared, _chosen(played, conditions))
    return found


def _merge(
    record: RunRecord, evaluations: Sequence[Evaluation | Rows]
) -> tuple[Outcome, dict[_Key, Attacked]]:
    attacked: dict[_Key, Attacked] = {}
    clean = evaluations[0].clean
    for evaluation in evaluations:
        if evaluation.clean.returns != clean.returns:
            raise _contradiction(record, "the clean return")
        for outcome in evaluation.attacks:
            key = (outcome.attack, outcome.settings, outcome.epsilon)
            if key in attacked and attacked[key].returns != outcome.returns:
                raise _contradiction(record, _name(key))
            attacked[key] = outcome
    return clean, attacked


def _chosen(
    evaluations: Sequence[Evaluation | Rows], conditions: Mapping[_Key, Condition]
) -> dict[float, Condition]:
    """Of several files, the choice with the lowest return on the selection episodes."""
    choices = sorted((c for e in evaluations for c in e.worst), key=lambda c: -c.selection_return)
    keys = {choice.epsilon: (choice.attack, choice.settings, choice.epsilon) for choice in choices}
    return {epsilon: conditions[key] for epsilon, key in keys.items() if key in conditions}


def _contradiction(record: RunRecord, what: str) -> ValueError:
    return ValueError(
        f"expected one result per attack, got evaluations of {record.path} with the same "
        f"episodes and seed that disagree on {what}; delete the outdated file in "
        f"{record.path / 'evaluations'}"
    )


def _condition(key: _Key, keys: Sequence[_Key]) -> Condition:
    name, settings, epsilon = key
    alone = len({other[1] for other in keys if other[0] == name}) == 1
    return Condition(name, name if alone else f"{name}: {settings}", settings, epsilon)


def _missing_somewhere(
    records: Sequence[RunRecord], attacked: Sequence[Mapping[_Key, Attacked]]
) -> list[str]:
    keys = dict.fromkeys(key for found in attacked for key in found)
    lines = []
    for key in keys:
        lacking = [
            str(record.path) for record, found in zip(records, attacked, strict=True) if key not in found
        ]
        if lacking:
            lines.append(f"{_name(key)} (not evaluated on {', '.join(lacking)})")
    return lines


def _name(key: _Key) -> str:
    name, settings, epsilon = key
    return f"{name} at ε = {epsilon:g} [{settings}]"
