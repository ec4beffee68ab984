"""The commands that make the page again, and the configurations they need."""

from __future__ import annotations

import shlex
from collections import Counter, defaultdict
from pathlib import PurePath

import yaml

from marl_aajr.report.comparison import Comparison
from marl_aajr.report.methods import Method
from marl_aajr.report.protocol import Protocol

_AGAIN = PurePath("again")


def commands(comparison: Comparison) -> str:
    """Shell commands: train every run anew into ``again/``, evaluate it, write the page."""
    runs = [run for row in comparison.rows for run in row.method.runs]
    names = Counter(run.path.resolve().name for run in runs)
    targets = []
    for i, run in enumerate(runs):
        name = run.path.resolve().name
        targets.append(str(_AGAIN / (f"{i}-{name}" if names[name] > 1 else name)))
    lines = ["# train: each run directory holds its resolved configuration, seed included"]
    for run, target in zip(runs, targets, strict=True):
        config = str(run.path / "config.yaml")
        lines.append(shlex.join(["marl-aajr", "train", "--config", config, "--out", target]))
    lines += ["", "# evaluate: the same episodes and attacks for every run"]
    lines.append(f"for run in {shlex.join(targets)}; do")
    lines += [f'  marl-aajr evaluate "$run" {shlex.join(how)}' for how in _evaluations(comparison)]
    lines.append("done")
    lines += ["", "# this page", shlex.join(["marl-aajr", "compare", *targets])]
    return "\n".join(lines)


def configurations(comparison: Comparison) -> list[tuple[str, str]]:
    """Label and YAML of each method, as its first run had it; the other runs change the seed."""
    return [
        (_heading(row.method), yaml.safe_dump(dict(row.method.runs[0].config), sort_keys=False))
        for row in comparison.rows
    ]


def attacks(comparison: Comparison) -> list[tuple[str, str]]:
    """Name and settings of each attack, exactly."""
    return list(dict.fromkeys((c.name, c.settings) for c in comparison.conditions))


def _heading(method: Method) -> str:
    seeds = ", ".join(str(run.seed) for run in method.runs)
    return f"{method.label}: {'seed' if len(method.runs) == 1 else 'seeds'} {seeds}"


def _evaluations(comparison: Comparison) -> list[list[str]]:
    """Arguments of the evaluations: of each suite, and of attacks that were named by hand.

    Attacks that share their sizes share a command.
    """
    protocol = comparison.protocol
    common = ["--episodes", str(protocol.episodes), "--seed", str(protocol.seed)]
    if protocol.units:
        common += ["--units", protocol.units]
    for agent in filter(None, protocol.agents.split(", ")):
        common += ["--agents", agent]
    suites = _suites(comparison)
    found = [[*common, "--suite", suite] for suite in suites if suite]
    if suites != [*filter(None, suites)]:
        found += [[*common, *how] for how in _by_hand(comparison)]
    return found


def _suites(comparison: Comparison) -> list[str]:
    """Names of the suites that were played; an empty one where attacks were named by hand."""
    evaluations = (e for row in comparison.rows for run in row.runs for e in run.run.evaluations.values())
    return sorted({e.suite for e in evaluations if Protocol.of(e) == comparison.protocol})


def _by_hand(comparison: Comparison) -> list[list[str]]:
    sizes: dict[str, dict[float, None]] = defaultdict(dict)
    for condition in comparison.conditions:
        sizes[condition.name][condition.epsilon] = None
    together = defaultdict(list)
    for name, epsilons in sizes.items():
        together[tuple(epsilons)].append(name)
    return [
        [
            *(part for name in names for part in ("--attack", name)),
            *(part for epsilon in epsilons for part in ("--epsilon", f"{epsilon:g}")),
        ]
        for epsilons, names in together.items()
    ]
