"""Threats beside an ε-ball, as rows of a result: faults of sensors, disturbed actions, other dynamics.

They are played on the episodes of the row without attack, so that all returns are paired with it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any, Literal

from pydantic import Field

from marl_aajr.core.checks import grouped
from marl_aajr.evaluation.outcomes import Outcome, Settings

ThreatKind = Literal["channel", "message", "fault", "actions", "dynamics"]
Form = Literal["random", "worst", "trained", "value"]


class ThreatOutcome(Outcome):
    """The returns under one threat that is no ball around an observation.

    Attributes:
        kind: an ε-ball on one `channel`, words of a `message`, of sensors (`fault`), of `actions`, or of the
            environment (`dynamics`).
        name: an attack or fault of `list attacks`; a disturbance of actions; the argument of the environment.
        form: `random`; `worst`: of a fault the worst of its draws in each episode, of actions by the gradient
            of a learned Q; `trained`: by an adversary; `value`: of the environment's argument.
        settings: of the threat.
        agents: those whose sensors or actions it is about; empty for the dynamics.
        draws: how often each episode was played, with other random numbers.
        source: the run that a trained adversary comes from.
    """

    kind: ThreatKind
    name: str
    form: Form
    settings: Settings = Field(default_factory=dict)
    agents: tuple[str, ...] = ()
    draws: int = Field(default=1, ge=1)
    source: str = ""

    @property
    def label(self) -> str:
        """Name, settings and form: `delay, steps 2, share 0.5 (worst of 8)`."""
        channels = self.settings.get("channels", ())
        named = self.name + (f" on {', '.join(channels)}" if channels else "")
        others = {name: value for name, value in self.settings.items() if name != "channels"}
        parts = [named, *(f"{name} {_written(value)}" for name, value in others.items())]
        if self.form == "value":
            return f"{self.name} = {_written(self.settings[self.name])}"
        form = f"{self.form} of {self.draws}" if self.draws > 1 and self.form == "worst" else self.form
        return f"{', '.join(parts)} ({form})"

    @property
    def asked(self) -> tuple[str, str, str, str]:
        """What it is, whatever came out: rows of two results with the same can be compared."""
        return self.kind, self.label, ",".join(self.agents), self.source


@dataclass(frozen=True)
class Curve:
    """What a team earns with each value of an argument of the environment, in their order."""

    argument: str
    rows: tuple[ThreatOutcome, ...]

    @property
    def values(self) -> tuple[Any, ...]:
        """The values of the argument."""
        return tuple(row.settings[self.argument] for row in self.rows)

    @property
    def mean(self) -> float:
        """Mean return over the values."""
        return fmean(row.mean for row in self.rows)

    @property
    def worst(self) -> ThreatOutcome:
        """The value that leaves the least return."""
        return min(self.rows, key=lambda row: row.mean)


def curves(rows: Sequence[ThreatOutcome]) -> tuple[Curve, ...]:
    """The curves of all arguments that were varied."""
    by_argument = grouped((row.name, row) for row in rows if row.kind == "dynamics")
    return tuple(Curve(argument, tuple(own)) for argument, own in by_argument.items())


def _written(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
