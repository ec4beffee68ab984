"""The table of everybody that a team has met, by hand-made numbers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from marl_aajr.report import write_report
from marl_aajr.report.cautions import cautions
from marl_aajr.report.learning_curves import adversary_returns
from marl_aajr.report.met_agents import agents_met
from marl_aajr.report.style import Legend
from tests.report.evaluations import against, evaluation
from tests.report.factory import cells, compared

TEAM = ("team", "team")


def replaced(kind: str, mean: float, **changes: Any) -> dict[str, Any]:
    row = {**evaluation(mean)["clean"], "kind": kind, "agents": ["agent_0"], "loyal_return": mean / 2}
    return row | changes


def trained(kind: str, mean: float, **changes: Any) -> dict[str, Any]:
    paid = "own" if kind == "opponent" else "loss"
    training = {"pays": paid, "env_steps": 1000, "foreign": False}
    return replaced(kind, mean, training=training, source="adversary", **changes)


def test_what_is_lost_stands_beside_what_the_others_earn(tmp_path: Path) -> None:
    runs = [
        evaluation(-40.0, teams=TEAM, adversarial_agents=[replaced("random", x), replaced("idle", x)])
        for x in (-50.0, -54.0)
    ]
    blocks = agents_met(compared(tmp_path, none=runs))
    assert [block.title for block in blocks] == ["Nobody replaced", "Random agents", "Idle agents"]
    (cell,) = cells(blocks, "Random agents", "agent_0")
    assert (cell.main, cell.note) == ("−52.0", "lost 12.0, the others −26.0")
    (own,) = cells(blocks, "Nobody replaced", "its own side and members")
    assert (own.main, own.note) == ("−40.0", "")


def test_of_two_traitors_the_worse_on_the_selection_episodes_counts(tmp_path: Path) -> None:
    two = [
        trained("traitor", -70.0, selection_return=-60.0),
        trained("traitor", -65.0, selection_return=-66.0, worst=True),
    ]
    blocks = agents_met(compared(tmp_path, none=[evaluation(teams=TEAM, adversarial_agents=two)]))
    (cell,) = cells(blocks, "Traitors", "agent_0")
    assert (cell.main, cell.mark) == ("−65.0", "worst")


def test_of_two_partners_the_mean_counts(tmp_path: Path) -> None:
    two = [
        replaced("partner", -50.0, source="seed-1", worst=True),
        replaced("partner", -44.0, source="seed-2"),
    ]
    blocks = agents_met(compared(tmp_path, none=[evaluation(teams=TEAM, adversarial_agents=two)]))
    (cell,) = cells(blocks, "Partners from other runs", "agent_0")
    assert (cell.main, cell.mark, cell.note) == ("−47.0", "worst", "lost 7.0, the others −23.5")


def test_friends_and_foes_of_both_kinds_of_games_are_in_one_order(tmp_path: Path) -> None:
    content = evaluation(
        50.0,
        teams=("adversary", "good"),
        opponents=[against("other", 30.0), against("strong", 10.0)],
        adversarial_agents=[
            trained("opponent", 5.0, agents=["agent_1"]),
            trained("best-response", 3.0, agents=["agent_1"]),
            replaced("idle", 0.0, agents=["agent_0"]),
            replaced("idle", 90.0, agents=["agent_1"]),
        ],
    )
    blocks = agents_met(compared(tmp_path, none=[content]))
    assert [(block.title.partition(":")[0], [line.header for line in block.lines]) for block in blocks] == [
        ("Nobody replaced", ["its own side and members"]),
        ("Strangers", ["other", "strong"]),
        ("Idle agents", ["agent_1", "the whole team"]),
        ("Opponents trained against it", ["agent_1"]),
        ("Best responses", ["agent_1"]),
    ]
    (cell,) = cells(blocks, "Opponents trained against it", "agent_1")
    assert (cell.main, cell.note) == ("5.0", "lost 45.0")
    (cell,) = cells(blocks, "Best responses: opponents trained for what it loses", "agent_1")
    assert (cell.main, cell.note) == ("3.0", "lost 47.0")


@pytest.mark.usefixtures("undrawn")
def test_a_best_response_that_is_undertrained_is_seen_as_such(tmp_path: Path) -> None:
    """It still rises against plain PPO, another opponent does more to ernie, and aajr has met its match."""

    def met(curve: list[float], other: float = 30.0) -> dict[str, Any]:
        training = {"pays": "loss", "env_steps": 4000, "foreign": False}
        training |= {"curve": [[100 * (1 + i), value] for i, value in enumerate(curve)]}
        response = {**trained("best-response", 10.0, agents=["agent_1"]), "training": training}
        sides: dict[str, Any] = {"teams": ("adversary", "good")}
        return evaluation(
            50.0, adversarial_agents=[response], opponents=[against("other", other, **sides)], **sides
        )

    rising, flat = [float(i - 50) for i in range(40)], [-10.0] * 40
    found = compared(tmp_path, none=[met(rising), met(flat)], aajr=[met(flat)], ernie=[met(flat, other=1.0)])
    blocks = agents_met(found)
    assert not any("undertrained" in cell.note for cell in cells(blocks, blocks[1].title, "other"))
    notes = [cell.note for cell in cells(blocks, blocks[-1].title, "agent_1")]
    assert notes == ["lost 40.0, undertrained in 1 of 2", "lost 40.0", "lost 40.0, undertrained in 1 of 1"]
    assert (
        "The best responses to none (plain PPO) (1 of 2 runs) and ernie (1 of 1 run) are undertrained: these "
        "teams are more exploitable than shown."
    ) in cautions(found)
    (panel,) = adversary_returns(found, Legend.of([found]).of_rows(found.rows), key="k")
    assert panel.alt == (
        "Best responses over environment steps: none (plain PPO) goes from -30.0 to -10.5; aajr goes from "
        "-10.0 to -10.0; ernie goes from -10.0 to -10.0."
    )
    assert "<b>Best responses</b>" in write_report([found], tmp_path / "report.html").read_text()


def test_a_method_that_has_not_met_them_has_a_dash(tmp_path: Path) -> None:
    some = [evaluation(adversarial_agents=[replaced("random", -50.0)])]
    blocks = agents_met(compared(tmp_path, none=some, aajr=[evaluation(adversarial_agents=[])]))
    assert [cell.main for cell in cells(blocks, "Random agents", "the whole team")] == ["−50.0", "—"]


def test_without_any_there_is_no_table(tmp_path: Path) -> None:
    assert agents_met(compared(tmp_path, none=[evaluation(adversarial_agents=[])])) == ()
