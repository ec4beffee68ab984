"""What a study knows and the run directories do not say: how methods were tuned, what failed, what was cut.

Everything is optional, and everything is shown: a method that was tuned longer than its rivals, or a run that
is missing, decides how much a comparison is worth.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True)
class Tuning:
    """The search behind the settings of one method.

    Attributes:
        method: its label on the page, or `method.name`.
        environment: where it was tuned; empty: for all environments together.
        trials: how many settings were tried, those stopped early included.
        env_steps: environment steps of all trials together.
        space: searched setting -> what it was drawn from, in words (`"log-uniform in [1e-4, 1e-1]"`).
        chosen: searched setting -> the value that won.
        how: search, scheduler and score in a phrase (`"Optuna and ASHA, on clean and worst return"`).
    """

    method: str
    trials: int
    env_steps: int
    environment: str = ""
    space: Mapping[str, str] = field(default_factory=dict)
    chosen: Mapping[str, object] = field(default_factory=dict)
    how: str = ""


@dataclass(frozen=True, kw_only=True)
class Incident:
    """Something that happened to one run: a restart, or a failure.

    Attributes:
        run: its name or folder.
        what: in one sentence, such as the first line of the error.
        times: how often.
        log: where to read more; may be empty.
    """

    run: str
    what: str
    times: int = 1
    log: str = ""


@dataclass(frozen=True, kw_only=True)
class Notes:
    """What a study tells its report.

    Attributes:
        summary: what was asked, in a person's words; paragraphs are separated by empty lines.
        command: the shell command that repeats all of it; shown instead of one command per run.
        tuning: the budget of each method.
        restarts: runs that went on after a fault; their numbers may differ from undisturbed ones.
        failures: runs that are missing from the page because they failed.
        cut: what was planned and not done, one sentence each.
        caveats: where the same study would not give the same numbers (asynchronous sampling, ASHA, …), one
            sentence each.
        seconds: wall time of the whole.
    """

    summary: str = ""
    command: str = ""
    tuning: Sequence[Tuning] = ()
    restarts: Sequence[Incident] = ()
    failures: Sequence[Incident] = ()
    cut: Sequence[str] = ()
    caveats: Sequence[str] = ()
    seconds: float | None = None
