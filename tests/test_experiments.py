"""What the experiments' pages say is what their results hold."""

from __future__ import annotations

import html
import importlib
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from marl_aajr.certificates import Certificate
from marl_aajr.report import compare, headline

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parent.parent
STUDIES = {"pilot": 5, "crossplay": 4, "minimax": 22}
"""Study -> how many tables its page has."""
PAGES = {name: (ROOT / "experiments" / name / "README.md").read_text() for name in STUDIES}

PrintedBy = Callable[..., str]


@pytest.fixture
def printed_by(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> PrintedBy:
    """What a script prints when it is called with these words; in this process, which has loaded torch."""

    def run(script: str, *words: str) -> str:
        monkeypatch.syspath_prepend(ROOT / "scripts")
        monkeypatch.setattr("sys.argv", [script, *words])
        importlib.import_module(script).main()
        return capsys.readouterr().out

    return run


@pytest.mark.parametrize(("study", "tables"), STUDIES.items())
def test_the_tables_of_a_page_are_those_of_its_results(
    tmp_path: Path, printed_by: PrintedBy, study: str, tables: int
) -> None:
    printed = printed_by("study_tables", study, "--out", str(tmp_path))
    rows = [line for line in printed.splitlines() if line.startswith("|")]
    assert sum(row.startswith("|---") for row in rows) == tables
    assert [row for row in rows if row not in PAGES[study].splitlines()] == []
    assert (tmp_path / "returns.png").stat().st_size > 10_000


def test_the_tables_of_the_readers_are_those_of_their_results(printed_by: PrintedBy) -> None:
    printed = printed_by("language_summary")
    rows = [line for line in printed.splitlines() if line.startswith("|")]
    page = (ROOT / "experiments" / "language" / "README.md").read_text().splitlines()
    assert [row for row in rows if row not in page] == []
    assert sum(row.startswith("|---") for row in rows) == 3
    assert not any("not run yet" in row for row in rows)


def test_the_snippet_of_the_pilot_prints_a_line_for_each_run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (snippet,) = re.findall(r"```python\n(.*?)```", PAGES["pilot"], re.DOTALL)
    monkeypatch.chdir(ROOT)
    exec(compile(snippet, "README.md", "exec"), {"__name__": "__main__"})
    assert len(capsys.readouterr().out.splitlines()) == 48


@pytest.mark.parametrize("study", ["pilot", "crossplay"])
def test_a_page_says_what_the_report_beside_it_says(study: str) -> None:
    report = (ROOT / "experiments" / study / "report.html").read_text()
    (headline,) = re.findall(r'class="opening">.*?<p class="verdict">(.*?)</p>', report, re.DOTALL)
    said = " ".join(PAGES[study].replace("\n> ", " ").split())
    assert " ".join(html.unescape(headline).split()) in said


def test_the_pilots_page_on_simple_spread_is_made_of_its_tables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "scripts")
    found = compare(importlib.import_module("pilot_page").recorded_runs())
    assert len(found.runs) == 24
    said = " ".join(headline(found).removesuffix(".").split())
    assert f"On simple_spread_v3 {said}; on simple_tag" in " ".join(
        PAGES["pilot"].replace("\n> ", " ").split()
    )


def test_the_leads_of_simple_tag_vanish_once_all_meet_the_same_prey(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """At home five methods lead plain PPO somewhere; over the pool two do, elsewhere, and pay for it."""
    monkeypatch.syspath_prepend(ROOT / "scripts")
    summary = importlib.import_module("study_tables")
    sides = summary.by_side(summary.read(ROOT / "experiments/crossplay/results.parquet"))
    kappas = [f"AAJR, κ = {kappa}, λ = 0.001" for kappa in (0, 0.5, 1)]
    small, frobenius, smooth = "AAJR, κ = 0, λ = 0.0001", "Frobenius, λ = 0.001", "smooth policy, λ = 0.1"
    methods = (*kappas, small, frobenius, smooth, "off-policy adversarial loss, κ = 0.5")

    def leads(rows: Rows, *, ahead: bool = True) -> set[tuple[str, float]]:
        found = {
            (method, epsilon): [summary.estimate(rows, name, epsilon) for name in (method, "PPO")]
            for method in methods
            for epsilon in (0.0, 0.05, 0.1, 0.2)
        }
        pairs = {place: pair if ahead else pair[::-1] for place, pair in found.items()}
        return {place for place, (ours, plain) in pairs.items() if ours.minus(plain).positive}

    home, pool = (sides[side] for side in ("against their own prey", "mean over the pool"))
    aajr, half, whole = kappas
    at_home = {0.05: {aajr, smooth}, 0.1: {whole}, 0.2: {aajr, half, whole, frobenius}}
    assert leads(home) == {(method, epsilon) for epsilon, ahead in at_home.items() for method in ahead}
    assert leads(pool) == {(smooth, 0.1), (frobenius, 0.1)}
    behind = leads(pool, ahead=False)
    assert {method for method, epsilon in behind if epsilon == 0.0} == set(methods) - {small}
    assert {(whole, epsilon) for epsilon in (0.05, 0.1)} < behind


ALONE = "adversarial training"
METHODS: tuple[str, ...] = ("PPO", ALONE, f"{ALONE} + AAJR on logits", f"{ALONE} + AAJR on margin")
METHODS += (f"{ALONE} + Frobenius", "smooth policy")
Scores = Sequence[tuple[int, int]]
Rows = Sequence[dict[str, Any]]


def _rows(scores: Scores, spread: float) -> list[dict[str, Any]]:
    """Three runs of each of `METHODS`, with these mean scores clean and under attacks of either size."""
    rows = []
    for place, (method, (clean, worst)) in enumerate(zip(METHODS, scores, strict=True)):
        for seed in (10, 11, 12):
            shared, own = 20 * (seed - 11), spread * (place % 3) * (seed - 11)
            for epsilon, score in ((0.0, clean), (0.1, worst), (0.2, worst)):
                row = {"label": method, "seed": seed, "epsilon": epsilon, "worst": epsilon > 0}
                rows.append(row | {"attack": "none", "return": score + shared + own})
    return rows


def _read(scores: dict[str, Sequence[float]]) -> list[dict[str, Any]]:
    """Three runs of each method: without an attack, under the worst two words, under a liar."""
    rows: list[dict[str, Any]] = []
    for label, (clean, worst, liar) in scores.items():
        for seed in (10, 11, 12):
            row: dict[str, Any] = {"label": label, "seed": seed, "worst": False}
            shift = 0.1 * (seed - 11)
            rows += [
                row | {"attack": "none", "epsilon": 0.0, "return": clean + shift},
                row | {"attack": "words-greedy", "epsilon": 2.0, "return": worst, "worst": True},
                row | {"attack": "traitor", "epsilon": None, "return": liar + shift},
            ]
    return rows


@pytest.mark.parametrize(
    ("plain", "others", "expected"),
    [
        (
            (15.0, 12.0, 3.0),
            [(14.5, 13.0, 2.0), (14.5, 14.0, 2.0), (14.5, 13.0, 2.0), (14.5, 13.0, 2.0)],
            "sssssss",
        ),
        (
            (11.0, 11.0, 3.0),
            [(11.0, 10.0, 12.0), (11.0, 9.0, 2.0), (11.0, 10.0, 2.0), (11.0, 9.0, 2.0)],
            "rrrrrrr",
        ),
        (
            (13.0, 12.5, 3.0),
            [(11.0, 13.0, 2.0), (11.0, 13.0, 2.0), (11.0, 13.0, 2.0), (11.0, 13.0, 2.0)],
            "usuuusu",
        ),
    ],
)
def test_hypotheses_on_readers_are_decided_by_the_rules_of_the_page(
    monkeypatch: pytest.MonkeyPatch, plain: Sequence[float], others: Sequence[Any], expected: str
) -> None:
    monkeypatch.syspath_prepend(ROOT / "scripts")
    summary = importlib.import_module("language_summary")
    names = ("PPO", summary.LOSS, summary.AAJR, summary.SMOOTH, summary.ATTACKED)
    lines = summary.verdicts(_read(dict(zip(names, (plain, *others), strict=True))))
    assert [word[0] for word in re.findall(r"\*\*(\w+)\*\* \|", "\n".join(lines))] == list(expected)


def test_certified_shares_are_those_of_the_certificates() -> None:
    folder = ROOT / "experiments/certificates"
    lines = re.findall(
        r"^\| \[.*\]\((\w+\.json)\) \|[^|]*\|(.*)\|$", (folder / "README.md").read_text(), re.M
    )
    assert {name for name, _ in lines} == {path.name for path in folder.glob("*.json")}
    for name, cells in lines:
        certificate = Certificate.model_validate_json((folder / name).read_text())
        shares = [f"{100 * s.certified:.1f} %, {100 * s.attacked:.1f} %" for s in certificate.sizes]
        assert [cell.strip() for cell in cells.split("|")] == shares
        assert certificate.decisions == 750


def _curves(gaps: Sequence[float]) -> list[dict[str, Any]]:
    """Two measurements of three runs with adversarial training: far from the end of training, and near."""
    rows = []
    for method, gap in zip(METHODS[1:4], gaps, strict=True):
        for seed in (10, 11, 12):
            row = {"label": method, "seed": seed, "of_steps": 100, "strong_gain": 2.0}
            rows += [
                row | {"env_steps": 50, "inner_gain": 2 * gap},
                row | {"env_steps": 90, "inner_gain": 2 - 2 * gap},
            ]
    return rows


@pytest.mark.parametrize(
    ("scores", "gaps", "spread", "expected"),
    [
        ([(0, 0), (-2, 1), (-2, 2), (-4, 0), (-2, 1), (-4, 1)], (0.05, 0.04, 0.06), 0.1, "sssss"),
        ([(0, 0), (-4, 1), (-4, 0), (-4, 0), (-2, 1), (-3, 1)], (0.05, 0.06, 0.06), 0.1, "rrrrr"),
        ([(0, 0), (-2, 1), (-2, 2), (-4, 2), (-2, 1), (-4, 1)], (0.05, 0.05, 0.06), 9.0, "uuuuu"),
        ([(0, 0), (-2, 1), (-4, 2), (-2, 1), (-2, 2), (-4, 3)], (0.05, 0.06, 0.04), 0.1, "srsuu"),
    ],
)
def test_hypotheses_are_decided_by_the_rules_of_the_page(
    monkeypatch: pytest.MonkeyPatch, scores: Scores, gaps: Sequence[float], spread: float, expected: str
) -> None:
    monkeypatch.syspath_prepend(ROOT / "scripts")
    verdicts = importlib.import_module("minimax_verdicts").verdicts
    lines = verdicts(_curves(gaps), _rows(scores, spread))
    assert [word[0] for word in re.findall(r"\*\*(\w+)\*\* \|", "\n".join(lines))] == list(expected)
