"""The suite of all threats, and its heat map: what each costs, in both forms, and what carries over."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from marl_aajr.evaluation import Evaluation, evaluate
from marl_aajr.report import Comparison, compare, load_run, threat_map
from marl_aajr.report.estimates import Block
from marl_aajr.report.page import write_report
from marl_aajr.rollout.environments import resolve
from tests.evaluation.players import team
from tests.report.factory import cells, config, write_run

SPREAD = resolve("marl_aajr.envs.simple_spread_v3", {"max_cycles": 25})


@pytest.fixture(scope="module")
def played() -> Evaluation:
    """The suite on few episodes, of a random team."""
    how: dict[str, Any] = {"episodes": 4, "selection_episodes": 2, "workers": 1}
    return evaluate(team(SPREAD), suite="threats", **how)


@pytest.fixture(scope="module")
def comparison(played: Evaluation, tmp_path_factory: pytest.TempPathFactory) -> Comparison:
    """Plain PPO, and a method that returns 1 more under everything but actions, 2 less under these."""
    root = tmp_path_factory.mktemp("threats")
    return compare([load_run(path) for path in _runs(played, root)])


def _runs(played: Evaluation, root: Path) -> list[Path]:
    paths = []
    for method, settings in (("none", {}), ("aajr", {"epsilon": 0.1, "channels": ["others"]})):
        for seed in range(2):
            data = played.model_dump(mode="json")
            rows = data["results"][0]
            rows["clean"] = moved(rows["clean"], 0.001 * seed)
            for row in (*rows["attacks"], *rows["threats"], *rows["adversarial_agents"]):
                own = {"actions": -2.0}.get(row.get("kind", ""), 1.0) if method == "aajr" else 0.0
                row.update(moved(row, own + 0.001 * seed))
            folder = root / f"{method}-{seed}"
            paths.append(
                write_run(folder, configuration=config(method, settings=settings, seed=seed), evaluations={})
            )
            (folder / "evaluations" / "threats.json").write_text(
                Evaluation.model_validate(data).model_dump_json()
            )
    return paths


def moved(row: dict[str, Any], by: float) -> dict[str, Any]:
    return {**row, "mean": row["mean"] + by, "returns": [value + by for value in row["returns"]]}


def headers(blocks: tuple[Block, ...]) -> dict[str, list[str]]:
    return {block.title: [line.header for line in block.lines] for block in blocks}


def test_the_suite_plays_everything_on_the_same_episodes(played: Evaluation) -> None:
    rows = played.results[0]
    kinds = {row.kind for row in rows.threats}
    assert kinds == {"channel", "fault", "actions", "dynamics"}
    channels = {row.settings["channels"][0] for row in rows.threats if row.kind == "channel"}
    assert channels == {"velocity", "position", "landmarks", "others", "messages"}
    assert all(len(row.returns) == 4 for row in (*rows.threats, *rows.attacks))
    left_out = {skipped.attack for skipped in played.skipped}
    assert {"message-random", "message-worst"} <= left_out
    assert any("noise" in name for name in left_out)  # of actions that are choices, and of congestion
    assert not [check for check in played.checks if check.verdict == "fail" and "gradient" in check.name]


def test_no_random_form_costs_more_than_its_worst(played: Evaluation) -> None:
    """Of faults by construction, episode by episode."""
    forms: dict[tuple[str, str], dict[str, Any]] = {}
    for row in (row for row in played.results[0].threats if row.kind == "fault"):
        forms.setdefault(threat_map._threat(row), {})[row.form] = row
    assert len(forms) == 7
    for each in forms.values():
        assert all(w <= r + 1e-6 for w, r in zip(each["worst"].returns, each["random"].returns, strict=True))


def test_what_is_lost_stands_by_kind_with_both_forms(comparison: Comparison, played: Evaluation) -> None:
    blocks = threat_map.threat_map(comparison).lost
    assert list(headers(blocks)) == [
        "Observations",
        "One channel of the observation",
        "Sensor faults",
        "Actions",
        "One member of the team",
        "Dynamics",
    ]
    assert headers(blocks)["Observations"] == ["everything, ε = 0.1"]
    assert "others, ε = 0.1" in headers(blocks)["One channel of the observation"]
    assert headers(blocks)["One member of the team"] == ["random agent", "idle agent"]
    delay = next(header for header in headers(blocks)["Sensor faults"] if header.startswith("delay"))
    plain, other = cells(blocks, "Sensor faults", delay)
    rows = {row.form: row for row in played.results[0].threats if row.name == "delay"}
    clean = played.clean.mean
    assert float(plain.main.replace("−", "-")) == pytest.approx(clean - rows["worst"].mean, abs=0.06)
    assert float(other.main.replace("−", "-")) == pytest.approx(clean - rows["worst"].mean - 1, abs=0.06)
    assert plain.note.startswith("random ")
    assert {0, 8} <= {cell.shade for block in blocks for line in block.lines for cell in line.cells}


def test_what_carries_over_is_beside_plain_and_says_what_was_trained(comparison: Comparison) -> None:
    blocks = threat_map.threat_map(comparison).carried_over
    plain, gained = cells(blocks, "One channel of the observation", "others, ε = 0.1")
    assert plain.main == "—"
    assert (gained.mark, gained.note) == ("best", "trained against")
    assert float(gained.main) == pytest.approx(1.0, abs=0.06)
    _, worse = cells(blocks, "Actions", "replace, alpha 0.1")
    assert (worse.mark, worse.note) == ("worst", "")
    (sentence,) = threat_map.threat_map(comparison).words
    assert "others, ε = 0.1" not in sentence
    assert "everything, ε = 0.1" in sentence.partition("less under")[0]
    assert "replace, alpha 0.1" in sentence.partition("less under")[2]


@pytest.mark.usefixtures("undrawn")
def test_the_page_has_it_and_one_without_threats_has_not(played: Evaluation, tmp_path: Path) -> None:
    page = write_report(_runs(played, tmp_path / "all"), tmp_path / "page.html").read_text()
    for text in ("All threats", "One channel of the observation", "What carries over from training"):
        assert text in page
    data = played.model_copy(update={"results": (played.results[0].model_copy(update={"threats": ()}),)})
    plain = write_report(_runs(data, tmp_path / "none"), tmp_path / "plain.html").read_text()
    assert "All threats" not in plain
