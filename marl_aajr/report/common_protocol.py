"""Find what all runs were evaluated on, so that like is compared with like."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from marl_aajr.core.checks import grouped
from marl_aajr.evaluation.outcomes import AttackOutcome, Outcome
from marl_aajr.evaluation.result import Evaluation, Rows
from marl_aajr.evaluation.worst_attack import worst_of_each_size
from marl_aajr.report.conditions import (
    Condition,
    Faced,
    Key,
    Omission,
    Played,
    Task,
    exact,
    keys_of,
    label_all,
    missing_somewhere,
    share_attacks,
)
from marl_aajr.report.estimates import listing, some
from marl_aajr.report.methods import EvaluatedRun
from marl_aajr.report.run_results import PoolResults, RunResults


@dataclass(frozen=True, order=True)
class CommonProtocol:
    """The settings that two evaluations must share before their returns may be compared."""

    task: Task
    episodes: int
    seed: int
    actions: str
    level: float
    units: str
    num_envs: int
    norm: str
    channels: tuple[str, ...]
    smoothing: str

    @classmethod
    def of(cls, evaluation: Evaluation) -> CommonProtocol:
        """The protocol that an evaluation followed."""
        same = ("episodes", "seed", "actions", "level", "units", "num_envs", "norm", "channels")
        smoothing = str(evaluation.smoothing or "")
        return cls(
            Task.of(evaluation), **{name: getattr(evaluation, name) for name in same}, smoothing=smoothing
        )

    def __str__(self) -> str:
        parts = (
            self.task.environment,
            self.task.team and f"return of {self.task.team}",
            f"{self.episodes} episodes, seed {self.seed}, {self.actions} actions",
            f"{100 * self.level:g} % intervals",
            *_sizes(self.norm, self.units),
            f"attacks on {listing(self.channels)}" if self.channels else "",
            f"smoothing {self.smoothing}" if self.smoothing else "",
        )
        return ", ".join(filter(None, parts))


def _sizes(norm: str, units: str) -> tuple[str, ...]:
    if norm == "words":
        return ("words replaced by their synonyms",)
    return f"ε in {units} units", f"ε in the {norm.upper()} norm" if norm != "linf" else ""


@dataclass(frozen=True)
class Evidence:
    """Everything that all runs share: protocol and conditions, by attack, then size; a result of each run.

    `left_out` is what some runs have and others lack, and other protocols.
    """

    protocol: CommonProtocol
    conditions: tuple[Condition, ...]
    runs: tuple[RunResults, ...]
    left_out: tuple[Omission, ...]


def gather(records: Sequence[EvaluatedRun]) -> Evidence:
    """Line up the evaluations of all runs, the files of one run read together.

    Where the runs share several protocols, the one with the most episodes is taken, of those with attacks if
    there are any.

    Raises:
        ValueError: no protocol or no attack is common to all runs, or two files of one run
            contradict each other.
    """
    per_run = [grouped((CommonProtocol.of(e), e) for e in record.evaluations.values()) for record in records]
    protocol = _common_protocol(records, per_run)
    played = [[(e.results[0], e) for e in found[protocol]] for found in per_run]
    faced = {str(record.path): _merge(record, rows)[1] for record, rows in zip(records, played, strict=True)}
    first, *rest = faced.values()
    common = [key for key in first if all(key in attacked for attacked in rest)]
    if not common:
        each = (f"{run}: {', '.join(map(str, attacked)) or 'no attack'}" for run, attacked in faced.items())
        raise ValueError(
            f"expected runs under the same attacks, got {'; '.join(each)}; evaluate them with the same "
            "--attack and --epsilon"
        )
    conditions = label_all(common)
    results = tuple(
        replace(
            _results(record, rows, conditions),
            others=_others(record, rows, conditions),
            played=tuple(rows),
        )
        for record, rows in zip(records, played, strict=True)
    )
    left_out = (*_elsewhere(records, per_run, protocol), *missing_somewhere(faced))
    results, strangers = _over_pool(results, conditions)
    return Evidence(protocol, _ordered(conditions.values()), results, (*left_out, *strangers))


def _elsewhere(
    records: Sequence[EvaluatedRun], per_run: Sequence[Iterable[CommonProtocol]], shown: CommonProtocol
) -> Iterator[Omission]:
    """Evaluations under other protocols than the one shown."""
    everybody = (str(record.path) for record in records)
    whose = grouped((other, path) for path, found in zip(everybody, per_run, strict=True) for other in found)
    for other, paths in sorted(whose.items()):
        if other != shown:
            yield Omission(1, f"evaluations on {other} (of {some(paths, of=len(records), noun='runs')})")


def _ordered(conditions: Iterable[Condition]) -> tuple[Condition, ...]:
    """Without limits first, then by attack in the order of the evaluations, then by size."""
    given = list(conditions)
    order = list(dict.fromkeys(condition.attack for condition in given))
    return tuple(sorted(given, key=lambda c: (c.limits != "", order.index(c.attack), c.epsilon)))


def _common_protocol(
    records: Sequence[EvaluatedRun], per_run: Sequence[Mapping[CommonProtocol, list[Evaluation]]]
) -> CommonProtocol:
    common = [key for key in per_run[0] if all(key in found for found in per_run)]
    if not common:
        named = (" / ".join(map(str, sorted(found))) for found in per_run)
        whose = grouped(zip(named, (str(record.path) for record in records), strict=True))
        each = "; ".join(f"{some(runs, of=len(records), noun='runs')}: {how}" for how, runs in whose.items())
        cure = "run `marl-aajr evaluate` on each with the same --episodes and --seed"
        if len({protocol.task for found in per_run for protocol in found}) > 1:
            cure = "compare each environment and side by itself (compare_each does)"
        raise ValueError(
            f"expected runs evaluated on the same environment, episodes and seed, got {each}; {cure}"
        )

    def worth(protocol: CommonProtocol) -> tuple[bool, int, CommonProtocol]:
        return share_attacks([found[protocol] for found in per_run]), protocol.episodes, protocol

    return max(common, key=worth)


def _others(
    record: EvaluatedRun, shown: Sequence[Played], conditions: Mapping[Key, Condition]
) -> dict[str, RunResults]:
    """The kinds of actions that were played under every condition of the comparison."""
    kinds = grouped((rows.actions, (rows, found)) for _, found in shown for rows in found.results[1:])
    return {
        kind: replace(_results(record, played, conditions), played=tuple(played))
        for kind, played in kinds.items()
        if _merge(record, played)[1].keys() >= conditions.keys()
    }


def _results(
    record: EvaluatedRun, played: Sequence[Faced], conditions: Mapping[Key, Condition]
) -> RunResults:
    clean, attacked = _merge(record, played)
    shared = {condition: attacked[key] for key, condition in conditions.items()}
    return RunResults(
        record,
        clean,
        shared,
        _chosen(played, conditions),
        selected=_selected([rows for rows, _ in played]),
        controls={
            row.kind: row
            for rows, evaluation in played
            for row in rows.adversarial_agents
            if set(row.agents) == set(evaluation.members)  # only controls may play a whole team
        },
    )


def _selected(files: Sequence[Rows]) -> dict[float, float]:
    """By size, 0 for no attack, the least mean return on the selection episodes of all files."""
    clean = [(0.0, rows.clean_selection_return) for rows in files]
    found = [*clean, *((worst.epsilon, worst.selection_return) for rows in files for worst in rows.worst)]
    known = grouped((size, left) for size, left in found if left is not None)
    return {size: min(values) for size, values in known.items()}


def _over_pool(
    home: Sequence[RunResults], conditions: Mapping[Key, Condition]
) -> tuple[tuple[RunResults, ...], list[Omission]]:
    """The runs by what they return against the opponents that all of them met, and the other opponents."""
    met = {str(run.run.path): _met(run, conditions) for run in home}
    names = dict.fromkeys(name for found in met.values() for name in found)
    lacking = {name: [path for path, found in met.items() if name not in found] for name in names}
    pool = [name for name, paths in lacking.items() if not paths]
    left_out = [
        Omission(1, f"the opponent {name}: not met by {some(paths, of=len(home), noun='runs')}")
        for name, paths in lacking.items()
        if paths
    ]
    if not pool:
        return tuple(home), left_out
    over = (
        replace(
            _against(pool, run, met[str(run.run.path)]),
            others={
                kind: _against(pool, other, found)
                for kind, other in run.others.items()
                if (found := _met(other, conditions)).keys() >= set(pool)
            },
        )
        for run in home
    )
    return tuple(over), left_out


def _against(pool: Sequence[str], home: RunResults, met: Mapping[str, RunResults]) -> PoolResults:
    return PoolResults.of(home, {name: met[name] for name in pool})


def _met(run: RunResults, conditions: Mapping[Key, Condition]) -> dict[str, RunResults]:
    """By opponent, the results under every condition of the comparison."""
    by_name = grouped((rows.opponent, (rows, e)) for own, e in run.played for rows in own.opponents)
    return {
        name: _results(run.run, found, conditions)
        for name, found in by_name.items()
        if _merge(run.run, found)[1].keys() >= conditions.keys()
    }


def _merge(record: EvaluatedRun, played: Sequence[Faced]) -> tuple[Outcome, dict[Key, AttackOutcome]]:
    attacked: dict[Key, AttackOutcome] = {}
    clean, keys = played[0][0].clean, keys_of(played)
    for rows, evaluation in played:
        if rows.clean.returns != clean.returns:
            raise _contradiction(record, "the clean return")
        for outcome in rows.attacks:
            key = keys[exact(outcome, evaluation)]
            if key in attacked and attacked[key].returns != outcome.returns:
                raise _contradiction(record, str(key))
            attacked[key] = outcome
    return clean, attacked


def _chosen(played: Sequence[Faced], conditions: Mapping[Key, Condition]) -> dict[float, Condition]:
    """The worst attack of each size: the one with the lowest return on the selection episodes of all files.

    An attack with limits counts only where there is no other.
    """
    keys = keys_of(played)
    choices = [(c, keys.get(exact(c, evaluation))) for rows, evaluation in played for c in rows.worst]
    shared = [(c, conditions[key]) for c, key in choices if key is not None and key in conditions]
    by_size = worst_of_each_size(
        shared, size=lambda choice: choice[0].epsilon, left=lambda choice: choice[0].selection_return
    )
    free = {size: [c for _, c in found if not c.limits] for size, found in by_size.items()}
    return {size: (free[size] or [found[0][1]])[0] for size, found in by_size.items()}


def _contradiction(record: EvaluatedRun, what: str) -> ValueError:
    return ValueError(
        f"expected one result per attack, got evaluations of {record.path} with the same episodes and seed "
        f"that disagree on {what}; delete the outdated file in {record.path / 'evaluations'}"
    )
