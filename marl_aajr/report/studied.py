"""The notes of a study as tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from marl_aajr.report.estimates import Sheet, listing, number
from marl_aajr.report.methods import show
from marl_aajr.report.notes import Incident, Notes, Tuning


def sheets(notes: Notes) -> list[Sheet]:
    """Tuning budgets, restarts and failures; without those that are empty."""
    found = [
        Sheet(
            "What the tuning of each method took. A method that was searched longer has an advantage.",
            ("method", "environment", "trials", "environment steps", "searched", "chosen", "how"),
            tuple(map(_tuning, notes.tuning)),
        ),
        Sheet(
            "Runs that failed and are missing here.",
            ("run", "what happened", "times", "log"),
            tuple(map(_incident, notes.failures)),
        ),
        Sheet(
            "Runs that went on after a fault.",
            ("run", "what happened", "times", "log"),
            tuple(map(_incident, notes.restarts)),
        ),
    ]
    return [sheet for sheet in found if sheet.lines]


def warnings(notes: Notes) -> list[str]:
    """What the study says against itself, one sentence each."""
    trials = {tuning.trials for tuning in notes.tuning}
    found = []
    if notes.failures:
        found.append(f"{_runs(notes.failures)} failed: missing here (see The study).")
    if len(trials) > 1:
        found.append("The methods were tuned with different numbers of trials (see The study).")
    if notes.restarts:
        found.append(f"{_runs(notes.restarts)} went on after a fault (see The study).")
    return found


def _runs(incidents: Sequence[Incident]) -> str:
    names = list(dict.fromkeys(incident.run for incident in incidents))
    return listing(names) if len(names) <= 3 else f"{len(names)} runs"


def _tuning(tuning: Tuning) -> tuple[str, ...]:
    return (
        tuning.method,
        tuning.environment or "all",
        str(tuning.trials),
        number(tuning.env_steps, decimals=0),
        _pairs(tuning.space),
        _pairs(tuning.chosen),
        tuning.how or "—",
    )


def _incident(incident: Incident) -> tuple[str, ...]:
    return incident.run, incident.what, str(incident.times), incident.log or "—"


def _pairs(settings: Mapping[str, object]) -> str:
    return "; ".join(f"{key}: {show(value)}" for key, value in settings.items()) or "—"
