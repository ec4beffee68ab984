"""Reasons to doubt a comparison: in its runs, in their evaluations, in the notes of a study."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from marl_aajr.core.checks import grouped
from marl_aajr.report.adversaries import undertrained
from marl_aajr.report.comparison import Comparison
from marl_aajr.report.estimates import FEW, count, listing, number, some
from marl_aajr.report.met_agents import undertrained_responses
from marl_aajr.report.methods import EvaluatedRun, Method, differences, software_of
from marl_aajr.report.ranking import floor, own_side
from marl_aajr.report.self_checks import failed_evaluations
from marl_aajr.rollout.teams import sideless


@dataclass(frozen=True, kw_only=True)
class Tuning:
    """The search behind the settings of one method; env steps are those of all trials together.

    Attributes:
        method: its label on the page, or `method.name`.
        environment: where it was tuned; empty: for all environments together.
        trials: how many settings were tried, those stopped early included.
        space: searched setting -> what it was drawn from, in words (`"log-uniform in [1e-4, 1e-1]"`).
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
    """A restart or a failure of one run: what happened in one sentence, how often, and where to read more."""

    run: str
    what: str
    times: int = 1
    log: str = ""


@dataclass(frozen=True, kw_only=True)
class Notes:
    """Facts that a study knows and the run directories do not: they decide how much a comparison is worth.

    Attributes:
        summary: what was asked, in a person's words; paragraphs are separated by empty lines.
        command: the shell command that repeats all of it; shown instead of one command per run.
        restarts: runs that went on after a fault; their numbers may differ from undisturbed ones.
        cut: what was planned and not done, one sentence each.
        doubts: what speaks against the comparison, one sentence each.
        caveats: why the same study would not give the same numbers (such as ASHA), one sentence each.
        seconds: wall time of the whole.
    """

    summary: str = ""
    command: str = ""
    tuning: Sequence[Tuning] = ()
    restarts: Sequence[Incident] = ()
    failures: Sequence[Incident] = ()
    cut: Sequence[str] = ()
    doubts: Sequence[str] = ()
    caveats: Sequence[str] = ()
    seconds: float | None = None


def all_cautions(comparisons: Sequence[Comparison], notes: Notes) -> list[str]:
    """The cautions of the page, the gravest first: failed evaluations, what the study says, then the rest."""
    return [*failed_evaluations(comparisons), *cautions_of_study(notes), *_together(comparisons, cautions)]


def left_out_of_all(comparisons: Sequence[Comparison]) -> list[str]:
    """Evaluations that the page does not show, in words."""
    return _together(comparisons, lambda comparison: [omission.text for omission in comparison.left_out])


def _together(
    comparisons: Sequence[Comparison], sentences: Callable[[Comparison], Sequence[str]]
) -> list[str]:
    """The sentences of several comparisons; a sentence that only some of them say names those."""
    said = grouped((sentence, each.task.short) for each in comparisons for sentence in sentences(each))
    every = len(comparisons)
    places = {sentence: some(where, of=every, noun="environments") for sentence, where in said.items()}
    return [s if len(where) == every else f"{places[s]}: {s}" for s, where in said.items()]


def cautions_of_study(notes: Notes) -> Iterator[str]:
    """One sentence for each weakness that a study notes."""
    if notes.failures:
        yield f"{_runs(notes.failures)} failed: missing here (see The study)."
    if len({tuning.trials for tuning in notes.tuning}) > 1:
        yield "The methods were tuned with different numbers of trials (see The study)."
    if notes.restarts:
        yield f"{_runs(notes.restarts)} went on after a fault (see The study)."
    yield from notes.doubts


def _runs(incidents: Sequence[Incident]) -> str:
    names = list(dict.fromkeys(incident.run for incident in incidents))
    return listing(names) if len(names) <= FEW else count(len(names), "run")


def cautions(comparison: Comparison) -> list[str]:
    """One sentence per weakness of the comparison, the gravest first."""
    methods = [row.method for row in comparison.rows]
    runs = [run for method in methods for run in method.runs]
    return [
        *_own_side(comparison),
        *_without_controls(comparison),
        *(f"{line}." for line in (*undertrained(comparison), *undertrained_responses(comparison))),
        *_budgets(methods),
        *_other_differences(methods),
        *_from_elsewhere(methods),
        *_seeds(methods),
        *_baseline(methods),
        *_environment(comparison, runs),
        *_versions(runs),
        *_nonfinite(runs),
        *_selection(comparison),
    ]


def _budgets(methods: Sequence[Method]) -> Iterator[str]:
    budgets = grouped((int(m.config["env_steps"]), m.label) for m in methods if "env_steps" in m.config)
    if len(budgets) > 1:
        whose = {steps: some(budgets[steps], of=len(methods), noun="methods") for steps in sorted(budgets)}
        each = "; ".join(f"{number(steps, decimals=0)}: {labels}" for steps, labels in whose.items())
        yield (
            f"The methods were trained for different numbers of environment steps ({each}): "
            "the comparison is not like for like."
        )


def _other_differences(methods: Sequence[Method]) -> Iterator[str]:
    ours = [method.config for method in methods if method.runs[0].trained_here]
    keys = [key for key in differences(ours) if not key.startswith("method.") and key != "env_steps"]
    if keys:
        yield (
            f"The methods differ in more than the method: {listing(keys)}. A difference in return "
            "cannot be put down to the method alone."
        )


def _from_elsewhere(methods: Sequence[Method]) -> Iterator[str]:
    others = [method.label for method in methods if not method.runs[0].trained_here]
    if others:
        verb = "was" if len(others) == 1 else "were"
        yield f"{listing(others)} {verb} trained elsewhere: for how long and on what is not known here."


def _seeds(methods: Sequence[Method]) -> Iterator[str]:
    single = [method.label for method in methods if len(method.runs) == 1]
    double = [method.label for method in methods if len(method.runs) == 2]
    if single:
        who = "Every method has" if len(single) == len(methods) else _have(single, of=len(methods))
        yield (
            f"{who} a single run. Intervals over episodes say how well this one policy was measured; "
            "training seeds are what matters, so train at least three."
        )
    if double:
        yield (
            f"{_have(double, of=len(methods))} two runs: an interval over two runs reaches 12.7 standard "
            "errors to each side, and hardly anything is distinguishable with it."
        )


def _have(labels: Sequence[str], *, of: int) -> str:
    return f"{some(labels, of=of, noun='methods')} {'has' if len(labels) == 1 else 'have'}"


def _baseline(methods: Sequence[Method]) -> Iterator[str]:
    plain = [method.label for method in methods if method.plain]
    if len(plain) != 1 and len(methods) > 1:
        what, cure = "No run without a regulariser (method none)", "train one"
        if plain:
            what = f"{count(len(plain), 'method')} without a regulariser ({listing(plain)})"
            cure = "compare against one of them"
        yield f"{what}: no price of robustness can be given; {cure}."


def _environment(comparison: Comparison, runs: Sequence[EvaluatedRun]) -> Iterator[str]:
    odd = []
    for run in runs:
        trained = run.config["env"]["name"], sideless(run.config["env"].get("kwargs") or {})
        if all((e.env.name, sideless(e.env.kwargs)) != trained for e in run.evaluations.values()):
            odd.append(f"{run.path} ({trained[0]})")
    if odd:
        yield (
            "Trained on another environment than the one evaluated on "
            f"({comparison.task.environment}): {listing(odd)}."
        )


def _versions(runs: Sequence[EvaluatedRun]) -> Iterator[str]:
    if differ := [name for name, versions in software_of(runs).items() if len(versions) > 1]:
        yield f"The runs were made with different versions of {listing(differ)} (see Versions)."


def _nonfinite(runs: Sequence[EvaluatedRun]) -> Iterator[str]:
    def bad(name: str, value: float | None) -> bool:
        return value is not None and (not math.isfinite(value) or (name == "aajr/nonfinite" and value > 0))

    for run in runs:
        logged = ([item for of in row.modules.values() for item in of.items()] for row in run.metrics)
        if times := sum(any(bad(*item) for item in items) for items in logged):
            yield (
                f"{run.path} logged values that are not finite in {count(times, 'iteration')}; "
                "its curves have gaps there."
            )


def _own_side(comparison: Comparison) -> Iterator[str]:
    if own_side(comparison) and len(comparison.rows) > 1:
        yield (
            "Each team met only the other side of its own training: a method that trains easier opponents "
            "looks better. Let all of them meet the same opponents (evaluate --opponent)."
        )


def _without_controls(comparison: Comparison) -> Iterator[str]:
    labels = [row.method.label for row in comparison.rows if not all(map(floor, row.runs))]
    if labels:
        yield (
            f"Whether {some(labels, of=len(comparison.rows), noun='methods')} learned anything is not known: "
            "no random or idle team played these episodes; evaluate with --suite to have that."
        )


def _selection(comparison: Comparison) -> Iterator[str]:
    if not comparison.chosen_elsewhere and len(comparison.attacks) > 1:
        which = "The" if comparison.chosen_here else "For some runs the"
        yield (
            f"{which} worst attack of each size was chosen on the very episodes that it is reported on, "
            "which makes it look a little stronger than it is; evaluate with --suite or --selection-episodes "
            "to choose on others."
        )
