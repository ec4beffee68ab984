"""The heat map of threats: what each costs a team, and what carries over from what it trained against.

Robustness to one kind of disturbance says little of another (arXiv 2510.11824). All threats were played on
the episodes of the row without attack, so what is lost is a mean of differences.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from marl_aajr.core.checks import grouped
from marl_aajr.evaluation.outcomes import Outcome
from marl_aajr.evaluation.result import ActionsResult, Evaluation
from marl_aajr.evaluation.threats import ThreatOutcome, curves
from marl_aajr.report.comparison import Comparison, MethodRow
from marl_aajr.report.estimates import (
    NOTHING,
    SHADES,
    Block,
    Cell,
    Estimate,
    Line,
    count,
    estimate_of,
    estimated,
    listing,
    number,
    size,
)
from marl_aajr.report.run_results import RunResults, mean_over_pool

_TITLES = {
    "observation": "Observations",
    "channel": "One channel of the observation",
    "message": "Words of messages",
    "fault": "Sensor faults",
    "actions": "Actions",
    "company": "One member of the team",
    "dynamics": "Dynamics",
}
_BESIDE = ("channel", "message", "fault", "actions", "dynamics")

Threat = tuple[str, str]
"""Its kind, a key of the titles, and which it is of its kind."""


class Faced(NamedTuple):
    """The returns under a threat in its random and in its worst form, as far as they were played."""

    random: Outcome | None
    worst: Outcome | None

    @property
    def most(self) -> Outcome:
        """The worst form, if there is one."""
        found = self.worst or self.random
        assert found is not None
        return found


@dataclass(frozen=True)
class ThreatMap:
    """The tables of all threats; empty where none but attacks on all that is observed were played.

    Attributes:
        lost: Return lost to each threat in its worst form, with the random one below. Random: of faults the
            mean of their draws, of dynamics the mean over the values of an argument, of members of the team
            the mean over the places. Worst: the least of these, else the strongest attack.
        ends: The returns lost at the two ends of the shading.
        carried_over: Return under each threat, minus that of the plain method; empty without exactly one
            such. Marked are intervals without 0, noted the threats that a method trained against.
        words: What carried over, a sentence for each method.
    """

    lost: tuple[Block, ...] = ()
    ends: tuple[float, float] = (0.0, 0.0)
    carried_over: tuple[Block, ...] = ()
    words: tuple[str, ...] = ()


def threat_map(comparison: Comparison) -> ThreatMap:
    """The tables of all threats that the methods of a comparison faced."""
    methods = [_Method(row, [_of_run(run) for run in row.runs]) for row in comparison.rows]
    order = dict.fromkeys(threat for method in methods for found in method.runs for threat in found)
    threats = [threat for threat in order if any(method.faced(threat) for method in methods)]
    if not any(kind in _BESIDE for kind, _ in threats):
        return ThreatMap()
    costs = [method.lost(threat).mean for method in methods for threat in threats if method.faced(threat)]
    ends, decimals = (min(costs), max(costs)), comparison.decimals
    plain = next((method for method in methods if method.row is comparison.plain), None)
    others = [method for method in methods if method is not plain] if plain else []

    def lost(threat: Threat) -> Iterator[Cell]:
        return (_lost(method, threat, ends, decimals=decimals) for method in methods)

    def gained(threat: Threat) -> Iterator[Cell]:
        return (_gain(method, plain, threat, decimals=decimals) for method in methods)

    return ThreatMap(
        _blocks(threats, lost),
        ends,
        _blocks(threats, gained) if others else (),
        tuple(_words(method, plain, threats) for method in others if plain is not None),
    )


@dataclass(frozen=True)
class _Method:
    """A method, and what each of its runs faced."""

    row: MethodRow
    runs: list[dict[Threat, Faced]]

    def faced(self, threat: Threat) -> bool:
        """Whether all of its runs did."""
        return all(threat in found for found in self.runs)

    def under(self, threat: Threat) -> Estimate:
        """Return under a threat in its worst form."""
        return estimate_of([found[threat].most for found in self.runs], level=self.row.clean.level)

    def lost(self, threat: Threat, *, worst: bool = True) -> Estimate:
        """Return that is lost to a threat, on the same episodes."""
        level, each = self.row.clean.level, [found[threat] for found in self.runs]
        outcomes = [faced.most if worst else faced.random or faced.most for faced in each]
        pairs = [(run.clean, outcome) for run, outcome in zip(self.row.runs, outcomes, strict=True)]
        if len(pairs) > 1:
            return Estimate.over("runs", [clean.mean - outcome.mean for clean, outcome in pairs], level=level)
        ((clean, outcome),) = pairs
        return Estimate.over("episodes", np.subtract(clean.returns, outcome.returns).tolist(), level=level)

    def over(self, plain: _Method, threat: Threat) -> Estimate | None:
        """Return under a threat minus the plain method's; None where one of them did not face it."""
        if not (self.faced(threat) and plain.faced(threat)):
            return None
        return self.under(threat).minus(plain.under(threat))

    @property
    def trained_against(self) -> set[str]:
        """The kinds of threats, and the channels, that its configuration trains against."""
        config, found = self.row.method.config, set()
        if config.get("method.adversary") == "replace":
            return {"actions"}
        for part in ("method", "rollouts"):
            if config.get(f"{part}.epsilon") is not None:
                channels = config.get(f"{part}.channels")
                found |= {f"channel {name}" for name in channels} if channels else {"observation", "channel"}
        disturbed = any(key.partition(".")[0] == "disturb" and value for key, value in config.items())
        return found | ({"actions"} if disturbed else set())

    def trained_for(self, threat: Threat) -> bool:
        """Whether it trained against a threat."""
        kind, what = threat
        return not self.trained_against.isdisjoint({kind, f"{kind} {what.partition(',')[0]}"})


def _blocks(threats: Iterable[Threat], cells: Callable[[Threat], Iterable[Cell]]) -> tuple[Block, ...]:
    lines = grouped((threat[0], Line(threat[1], tuple(cells(threat)))) for threat in threats)
    return tuple(Block(title, tuple(lines[kind])) for kind, title in _TITLES.items() if kind in lines)


def _lost(method: _Method, threat: Threat, ends: tuple[float, float], *, decimals: int) -> Cell:
    if not method.faced(threat):
        return NOTHING
    estimate, (low, high) = method.lost(threat), ends
    faced = [found[threat] for found in method.runs]
    note = "random form only" if any(each.worst is None for each in faced) else ""
    if not note and all(each.random for each in faced):
        note = f"random {number(method.lost(threat, worst=False).mean, decimals=decimals)}"
    share = (high - estimate.mean) / (high - low) if high > low else 1.0
    cell = estimated(estimate, decimals=decimals, note=note)
    return replace(cell, shade=min(int(share * SHADES), SHADES - 1))


def _gain(method: _Method, plain: _Method | None, threat: Threat, *, decimals: int) -> Cell:
    gain = None if plain is None or method is plain else method.over(plain, threat)
    if gain is None:
        return NOTHING
    mark = "best" if gain.positive else "worst" if gain.negative else ""
    note = "trained against" if method.trained_for(threat) else ""
    return estimated(gain, decimals=decimals, mark=mark, note=note)


def _words(method: _Method, plain: _Method, threats: Iterable[Threat]) -> str:
    others = [threat for threat in threats if not method.trained_for(threat)]
    gains = {threat[1]: gain for threat in others if (gain := method.over(plain, threat)) is not None}
    better = listing([what for what, gain in gains.items() if gain.positive]) or "none"
    worse = listing([what for what, gain in gains.items() if gain.negative]) or "none"
    return (
        f"{method.row.method.label} beside {plain.row.method.label}: of {count(len(gains), 'threat')} that "
        f"it did not train against, it returns more under {better} and less under {worse}."
    )


def _of_run(run: RunResults) -> dict[Threat, Faced]:
    found: dict[Threat, Faced] = {}
    for rows, evaluation in run.played:
        for threat, outcome in (*_attacks(rows), *_beside(rows), *_company(rows, evaluation)):
            found.setdefault(threat, outcome)
    return found


def _attacks(rows: ActionsResult) -> Iterator[tuple[Threat, Faced]]:
    """Attacks on all that is observed, by size; the worst as it was chosen on other episodes."""
    for epsilon, own in grouped((row.epsilon, row) for row in rows.attacks).items():
        chosen = {worst.attack for worst in rows.worst}
        random = [row for row in own if row.attack.access == "none"]
        others = [row for row in own if row.attack.access != "none"]
        worst = [row for row in own if row.attack in chosen] or others
        what = f"{', '.join(own[0].attack.channels) or 'everything'}, {size(epsilon)}"
        yield ("observation", what), Faced(_least(random), _least(worst))


def _beside(rows: ActionsResult) -> Iterator[tuple[Threat, Faced]]:
    for curve in curves(rows.threats):
        mean = mean_over_pool(curve.rows)
        yield (
            ("dynamics", f"{curve.argument} = {', '.join(map(str, curve.values))}"),
            Faced(mean, curve.worst),
        )
    named = grouped((_threat(row), row) for row in rows.threats if row.kind != "dynamics")
    for threat, own in named.items():
        forms = grouped((row.form == "random", row) for row in own)
        yield threat, Faced(_least(forms.get(True, [])), _least(forms.get(False, [])))


def _threat(row: ThreatOutcome) -> Threat:
    """What a row is about, whatever its form; who attacks a channel or words does not matter."""
    settings = dict(row.settings)
    channels, epsilon = settings.pop("channels", ()), settings.pop("epsilon", None)
    at = f", {size(epsilon)}" if epsilon is not None else ""
    if row.kind in ("channel", "message"):
        return row.kind, (", ".join(channels) or "messages") + at
    name = "noise" if row.name == "gradient" else row.name
    said = [
        f"{key} {value:g}" if isinstance(value, float) else f"{key} {value}"
        for key, value in settings.items()
    ]
    return row.kind, ", ".join([name + (f" on {', '.join(channels)}" if channels else ""), *said]) + at


def _company(rows: ActionsResult, evaluation: Evaluation) -> Iterator[tuple[Threat, Faced]]:
    """Somebody else in the place of one member or some, by kind."""
    members = set(evaluation.members)
    own = [row for row in rows.adversarial_agents if set(row.agents) < members]
    for kind, found in grouped((row.kind, row) for row in own).items():
        yield ("company", f"{kind} agent"), Faced(mean_over_pool(found), _least(found))


def _least(found: list[Any]) -> Any:
    return min(found, key=lambda row: row.mean, default=None)
