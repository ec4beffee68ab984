"""The decisions that provably nothing changes, beside those that attacks changed: `marl-aajr certify`.

certified share  ≤  share that no perturbation changes  ≤  share that no attack changed
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from marl_aajr.certificates.certificate import Certificate, CertifiedSize
from marl_aajr.core.threat import PerturbationSet
from marl_aajr.report.comparison import Comparison
from marl_aajr.report.conditions import Task
from marl_aajr.report.estimates import NOTHING, Block, Cell, Line, size
from marl_aajr.report.style import Look, Panel, draw_lines, svg

_POINTS = 120


@dataclass(frozen=True, order=True)
class Threat:
    """The perturbation sets of certificates that can be compared, but for their size.

    Attributes:
        norm: of ε.
        units: of ε.
        limits: mask, scale and limits as JSON.
        smoothing: noise that the team votes under; empty: it decides by one pass.
    """

    norm: str
    units: str
    limits: str
    smoothing: str

    @classmethod
    def of(cls, certificate: Certificate) -> Threat:
        """That of a certificate."""
        limits = json.dumps(certificate.model_dump(mode="json")["perturbations"], sort_keys=True)
        smoothing = "" if certificate.votes is None else str(certificate.votes.smoothing)
        return cls(certificate.norm, certificate.units, limits, smoothing)

    def __str__(self) -> str:
        limits = "" if self.limits == "{}" else f", within {self.limits}"
        votes = f", votes under noise {self.smoothing}" if self.smoothing else ""
        return f"{ {'linf': 'L∞', 'l2': 'L2'}[self.norm] }, {self.units} units{limits}{votes}"


def proven(comparison: Comparison) -> tuple[Block, ...]:
    """Of each size what is certified, and what no attack changed; empty where nobody asked."""

    def cell(runs: Sequence[Sequence[Certificate]], epsilon: float) -> Cell:
        found = [one for own in runs if (one := _at(own, epsilon)) is not None]
        if not found:
            return NOTHING
        least, most = (sum(ends) / len(found) for ends in zip(*map(_between, found), strict=True))
        note = "" if len(found) == len(runs) else f"{len(found)} of {len(runs)} runs"
        return Cell(f"{100 * least:.1f} to {100 * most:.1f} %", note=note)

    blocks = []
    for threat, rows in _by_threat(comparison).items():
        sizes = sorted({each.epsilon for row in rows for own in row for one in own for each in one.sizes})
        lines = (Line(size(epsilon), tuple(cell(row, epsilon) for row in rows)) for epsilon in sizes)
        blocks.append(Block(str(threat), tuple(lines)))
    return tuple(blocks)


def arguments(certificate: Certificate) -> list[str]:
    """The options of `marl-aajr certify RUN` that repeat this certificate."""
    same = ("norm", "units", "episodes", "seed", "team")
    given: dict[str, Any] = {name: getattr(certificate, name) for name in same}
    if set(certificate.agents) != {a for a, team in certificate.teams.items() if team == certificate.team}:
        given["agents"] = certificate.agents
    given["epsilon"] = [f"{each.epsilon:.15g}" for each in certificate.sizes]
    limits = dict(certificate.perturbations)
    given["channel"] = limits.pop("channels", ())
    for name, value in limits.items():
        listed = json.dumps(value)
        given[name] = listed if name in ("low", "high") else listed.strip("[]")
    if votes := certificate.votes:
        given |= {"smoothing": votes.smoothing, "samples": votes.samples, "alpha": votes.alpha}
    of_set = {field.name for field in fields(PerturbationSet)}
    given["attack"] = [
        json.dumps({"attack": each.name} | {k: v for k, v in each.settings.items() if k not in of_set})
        for each in certificate.attacks
    ]
    several = ((name, value if isinstance(value, list | tuple) else [value]) for name, value in given.items())
    return [word for name, values in several for value in values for word in (f"--{name}", str(value))]


def curves(comparison: Comparison, looks: Sequence[Look], *, key: str) -> tuple[Panel, ...]:
    """The certified share against ε, and dotted the share that no attack changed; a panel for each threat."""
    return tuple(
        _panel(comparison, threat, rows, looks, key=f"{key}{i}")
        for i, (threat, rows) in enumerate(_by_threat(comparison).items())
    )


def _panel(
    comparison: Comparison,
    threat: Threat,
    rows: Sequence[Sequence[Sequence[Certificate]]],
    looks: Sequence[Look],
    *,
    key: str,
) -> Panel:
    top = max(each.epsilon for row in rows for own in row for one in own for each in one.sizes)
    x, said = np.linspace(0, top, _POINTS), []

    def draw(axes: Axes) -> None:
        for row, look in zip(rows, looks, strict=True):
            if known := [own[0] for own in row if own]:
                shares = [[1.0, *(one.share(float(e)) for e in x[1:])] for one in known]
                draw_lines(axes, look, [(x, y) for y in shares], (x, np.mean(shares, 0)))
                sizes = sorted(set.intersection(*({each.epsilon for each in one.sizes} for one in known)))
                left = [1.0, *(1 - sum(_size(one, e).attacked for one in known) / len(known) for e in sizes)]
                axes.plot([0.0, *sizes], left, color=look.colour, ls=":", marker=look.marker, markersize=4.5)
        axes.set(xlabel="ε", ylabel="share of decisions", ylim=(-0.03, 1.03))

    for row, shown in zip(comparison.rows, rows, strict=True):
        if known := [own[0] for own in shown if own]:
            at = ", ".join(
                f"{least:.0%} to {most:.0%} at {each.epsilon:g}"
                for each in known[0].sizes
                for least, most in [_between(each)]
            )
            said.append(f"{row.method.label} {at}")
    alt = f"Share of decisions that no perturbation changes against ε, {threat}: {'; '.join(said)}."
    return Panel(str(threat), svg(draw, key=key), alt, "lines: certified; dotted: not attacked")


def _by_threat(comparison: Comparison) -> dict[Threat, list[list[list[Certificate]]]]:
    """For each threat, row by row and run by run, its certificates: that of most decisions first."""

    def of(run: Sequence[Certificate], threat: Threat) -> list[Certificate]:
        own = [one for one in run if Threat.of(one) == threat and Task.of(one) == comparison.task]
        return sorted(own, key=lambda one: -one.decisions)

    rows = [[tuple(run.run.certificates.values()) for run in row.runs] for row in comparison.rows]
    every = [one for row in rows for run in row for one in run if Task.of(one) == comparison.task]
    return {
        threat: [[of(run, threat) for run in row] for row in rows]
        for threat in sorted(set(map(Threat.of, every)))
    }


def _at(certificates: Sequence[Certificate], epsilon: float) -> CertifiedSize | None:
    """What is known of a size, from the most decisions."""
    asked = (one for one in certificates if any(each.epsilon == epsilon for each in one.sizes))
    return next((_size(one, epsilon) for one in asked), None)


def _size(certificate: Certificate, epsilon: float) -> CertifiedSize:
    """A size that was asked for."""
    return next(each for each in certificate.sizes if each.epsilon == epsilon)


def _between(found: CertifiedSize) -> tuple[float, float]:
    """The ends that the truth is between."""
    return found.certified, 1 - found.attacked
