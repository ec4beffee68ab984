"""Whether the evaluations can be believed: what each found against itself."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence

from marl_aajr.report.comparison import Comparison
from marl_aajr.report.estimates import Sheet, count, some

FAILED = "EVALUATION FAILED"
"""Begins what is said of a check that failed."""

_ORDER = ("fail", "warn", "pass")
_WORDS = {"fail": "failed", "warn": "to note", "pass": "passed"}


def tally(comparisons: Sequence[Comparison]) -> Counter[str]:
    """How many checks of all runs failed (`fail`), are worth knowing (`warn`) and passed (`pass`)."""
    checks = (check for c in comparisons for found in c.checks.values() for check in found)
    return Counter(check.verdict for check in checks)


def verdict_on_checks(comparisons: Sequence[Comparison]) -> str:
    """The tally in words."""
    found = tally(comparisons)
    if not found:
        return "These evaluations hold no checks of themselves: evaluate again to have them."
    if not found["fail"] and not found["warn"]:
        return f"The evaluations passed all {count(found.total(), 'check')} of themselves."
    parts = [f"{found[verdict]} {word}" for verdict, word in _WORDS.items() if found[verdict]]
    return f"Of {count(found.total(), 'check')} of the evaluations against themselves: {', '.join(parts)}."


def doubts(comparison: Comparison) -> list[str]:
    """One sentence for each check that did not pass, failures first."""
    return [
        f"{FAILED if verdict == 'fail' else 'Evaluation'}, {name} "
        f"({some(list(by_run), of=len(comparison.checks), noun='runs')}): {next(iter(by_run.values()))}"
        for (verdict, name), by_run in _grouped(comparison).items()
        if verdict != "pass"
    ]


def sheet(comparison: Comparison) -> Sheet:
    """Every check with its verdict, how many runs it is about, and what it found in the first of them."""
    lines = tuple(
        (name, _WORDS[verdict], f"{len(by_run)} of {len(comparison.checks)}", next(iter(by_run.values())))
        for (verdict, name), by_run in _grouped(comparison).items()
    )
    return Sheet("The checks.", ("check", "verdict", "runs", "what it found in the first of them"), lines)


def _grouped(comparison: Comparison) -> dict[tuple[str, str], dict[str, str]]:
    """(verdict, name) -> path of the run -> text; failures first."""
    found: dict[tuple[str, str], dict[str, str]] = defaultdict(dict)
    for path, checks in comparison.checks.items():
        for check in checks:
            found[check.verdict, check.name].setdefault(path, check.text)
    return dict(sorted(found.items(), key=lambda item: _ORDER.index(item[0][0])))
