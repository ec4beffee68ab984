"""Certificates on the page: shares between two ends, of the runs that have some."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from marl_aajr.certificates import Certificate, CertifiedSize
from marl_aajr.evaluation import AttackSpec
from marl_aajr.evaluation.result import PlayedEnvironment
from marl_aajr.report import compare, write_report
from marl_aajr.report.comparison import Comparison
from marl_aajr.report.proven import curves, proven
from marl_aajr.report.style import Legend
from tests.report.evaluations import ENV
from tests.report.factory import cells, write_method

LARGEST = (0.0, 0.01, 0.03, 0.06)


def certificate(*sizes: tuple[float, float], **changes: Any) -> Certificate:
    """Of four decisions; sizes are ε and the share that is attacked."""
    known: dict[str, Any] = {
        "env": PlayedEnvironment(**ENV),  # type: ignore[arg-type]
        "teams": {"agent_0": "team"},
        "team": "team",
        "agents": ("agent_0",),
        "units": "raw",
        "norm": "linf",
        "seed": 0,
        "episodes": 1,
        "decisions": 4,
        "attacks": (AttackSpec(name="pgd-margin", access="gradients", epsilon=0.01, norm="linf"),),
        "largest": LARGEST,
        "reach": 0.2,
        "rounding": 1e-5,
    }
    known |= changes
    rows = (
        CertifiedSize(
            epsilon=epsilon,
            interval=0.0,
            certified=sum(one >= epsilon for one in known["largest"]) / 4,
            attacked=attacked,
        )
        for epsilon, attacked in sizes
    )
    return Certificate(sizes=tuple(rows), **known)


def compared(tmp_path: Path, **methods: Sequence[Sequence[Certificate]]) -> tuple[Comparison, list[Path]]:
    """Methods whose runs have these certificates."""
    paths: list[Path] = []
    for name, runs in methods.items():
        written = write_method(tmp_path, name, clean=[-40.0 - i for i in range(len(runs))])
        for path, certificates in zip(written, runs, strict=True):
            (path / "certificates").mkdir()
            for number, one in enumerate(certificates):
                (path / "certificates" / f"{number}.json").write_text(one.model_dump_json())
        paths += written
    return compare(paths), paths


@pytest.mark.usefixtures("undrawn")
def test_every_share_stands_between_what_is_proven_and_what_is_found(tmp_path: Path) -> None:
    plain = [[certificate((0.01, 0.25), (0.05, 0.5))], [certificate((0.01, 0.0))], []]
    other = certificate((0.01, 0.0), norm="l2")
    comparison, paths = compared(tmp_path, none=plain, aajr=[[other, certificate((0.05, 0.75))]])
    blocks = proven(comparison)
    assert [block.title for block in blocks] == ["L2, raw units", "L∞, raw units"]
    first, second = cells(blocks, "L∞, raw units", "ε = 0.01")
    assert (first.main, first.note) == ("75.0 to 87.5 %", "2 of 3 runs")
    assert second.main == "—"
    first, second = cells(blocks, "L∞, raw units", "ε = 0.05")
    assert (first.main, first.note) == ("25.0 to 50.0 %", "1 of 3 runs")
    assert second.main == "25.0 to 25.0 %"
    page = write_report(paths, tmp_path / "page.html").read_text()
    assert page.count("What provably does not change") == 1
    assert "25.0 to 50.0 %" in page
    assert "says nothing of the return" in page


def test_the_curve_is_in_words_as_well(tmp_path: Path) -> None:
    comparison, _ = compared(tmp_path, none=[[certificate((0.01, 0.25), (0.05, 0.5))]])
    looks = Legend.of([comparison]).of_rows(comparison.rows)
    (panel,) = curves(comparison, looks, key="k")
    assert panel.title == "L∞, raw units"
    assert panel.alt.endswith(f"{comparison.rows[0].method.label} 75% to 75% at 0.01, 25% to 50% at 0.05.")


@pytest.mark.usefixtures("undrawn")
def test_certificates_of_another_task_are_not_shown(tmp_path: Path) -> None:
    elsewhere = certificate((0.01, 0.0), env=PlayedEnvironment(name="simple_tag_v3"), decisions=80)
    few, many = certificate((0.01, 0.0)), certificate((0.01, 0.25), decisions=8)
    comparison, paths = compared(tmp_path / "both", none=[[few, elsewhere, many]])
    (found,) = cells(proven(comparison), "L∞, raw units", "ε = 0.01")
    assert found.main == "75.0 to 75.0 %"  # of the certificate of most decisions
    limited = certificate((0.01, 0.0), perturbations={"low": -1.0})
    comparison, paths = compared(tmp_path, none=[[elsewhere, limited]])
    (block,) = proven(comparison)
    assert block.title == 'L∞, raw units, within {"low": -1.0}'
    comparison, paths = compared(tmp_path / "other", none=[[elsewhere]])
    assert proven(comparison) == ()
    assert "provably" not in write_report(paths, tmp_path / "page.html").read_text()
