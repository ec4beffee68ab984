"""Threats beside an ε-ball, as rows of a result: faults of sensors, disturbed actions, other dynamics.

They are played on the episodes of the row without attack, so that all returns are paired with it.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from marl_aajr.evaluation.outcomes import Outcome, Settings

ThreatKind = Literal["fault", "actions", "dynamics"]
Form = Literal["random", "worst", "trained", "value"]


class ThreatOutcome(Outcome):
    """The returns under one threat that is no ball around an observation.

    Attributes:
        kind: of sensors (`fault`), of `actions`, or of the environment (`dynamics`).
        name: a fault of `list attacks`; a disturbance of actions; the argument of the environment.
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
        parts = [self.name, *(f"{name} {_written(value)}" for name, value in self.settings.items())]
        if self.form == "value":
            return f"{self.name} = {_written(self.settings[self.name])}"
        form = f"{self.form} of {self.draws}" if self.draws > 1 and self.form == "worst" else self.form
        return f"{', '.join(parts)} ({form})"

    @property
    def asked(self) -> tuple[str, str, str, str]:
        """What it is, whatever came out: rows of two results with the same can be compared."""
        return self.kind, self.label, ",".join(self.agents), self.source


def _written(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
