"""The checks that evaluations made of themselves, summed up over the runs of a page."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence

from marl_aajr.evaluation.result import Check, Verdict
from marl_aajr.report.comparison import Comparison
from marl_aajr.report.estimates import count, some
from marl_aajr.report.ranking import learned_nothing

VERDICTS: dict[Verdict, str] = {"fail": "failed", "warn": "to note", "pass": "passed"}
"""Verdict of a check -> its name on the page, the gravest first."""


def failed_evaluations(comparisons: Sequence[Comparison]) -> Iterator[str]:
    """That evaluations failed checks of themselves, of runs that have learned something."""
    for each in comparisons:
        checks = _checks_that_count(each)
        if failed := [path for path, own in checks.items() if any(c.verdict == "fail" for c in own)]:
            yield (
                f"{_whose(each, failed)}: the evaluation failed checks of itself. What these runs keep under "
                "attack may only show that the attacks are weak."
            )


def verdict_on_checks(comparisons: Sequence[Comparison]) -> str:
    """The numbers of checks that failed, are to note and passed, over all runs that learned something."""
    checks = (check for each in comparisons for found in _checks_that_count(each).values() for check in found)
    found = Counter(check.verdict for check in checks)
    if not found:
        return "These evaluations hold no checks of themselves: evaluate again to have them."
    if set(found) == {"pass"}:
        return f"The evaluations passed all {count(found.total(), 'check')} of themselves."
    parts = [f"{found[verdict]} {word}" for verdict, word in VERDICTS.items() if found[verdict]]
    return f"Of {count(found.total(), 'check')} of the evaluations against themselves: {', '.join(parts)}."


def checks_to_note(comparisons: Sequence[Comparison]) -> list[str]:
    """One line for each kind of check that did not pass, failures first, with the first finding."""
    found = [
        (verdict, f"{_whose(each, by_run)}: {name} {VERDICTS[verdict]}. {next(iter(by_run.values()))}")
        for each in comparisons
        for (verdict, name), by_run in checks_by_verdict(each, _checks_that_count(each)).items()
        if verdict != "pass"
    ]
    return [line for _, line in sorted(found, key=lambda pair: list(VERDICTS).index(pair[0]))]


def _checks_that_count(comparison: Comparison) -> dict[str, tuple[Check, ...]]:
    """Without the checks of runs that have learned nothing: there is nothing that an attack could take."""
    idle = {str(run.run.path) for row in comparison.rows for run in learned_nothing(row)}
    return {path: checks for path, checks in comparison.checks.items() if path not in idle}


def _whose(comparison: Comparison, paths: Collection[str]) -> str:
    """Environment, methods and numbers of their runs: `simple_tag_v3, aajr (2 of 3 runs)`."""
    numbers = (
        (row.method.label, sum(str(run.run.path) in paths for run in row.runs), len(row.runs))
        for row in comparison.rows
    )
    named = [f"{label} ({n} of {count(of, 'run')})" for label, n, of in numbers if n]
    return f"{comparison.task.short}, {some(named, of=len(comparison.rows), noun='methods')}"


def checks_by_verdict(
    comparison: Comparison, checks: Mapping[str, Sequence[Check]] | None = None
) -> dict[tuple[Verdict, str], dict[str, str]]:
    """(verdict, name) of each check -> path of the run -> text; failures first. None: of all runs."""
    found: dict[tuple[Verdict, str], dict[str, str]] = defaultdict(dict)
    for path, own in (comparison.checks if checks is None else checks).items():
        for check in own:
            found[check.verdict, check.name].setdefault(path, check.text)
    order = list(VERDICTS)
    return dict(sorted(found.items(), key=lambda item: order.index(item[0][0])))
