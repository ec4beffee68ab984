"""Games of several sides: a pool of opponents that all teams met decides, their own side never."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from marl_aajr.report import Comparison, headline
from marl_aajr.report.cautions import cautions
from marl_aajr.report.crossplay_tables import between_seeds, cross_play, ratings
from marl_aajr.report.figures import worst_case
from marl_aajr.report.ranking import nothing_learned, own_side, ranked
from marl_aajr.report.style import Legend
from marl_aajr.report.tables import results
from tests.report.evaluations import against, evaluation
from tests.report.factory import cells, compared

LOSS = {("noise", 0.1): -1.0, ("pgd", 0.1): -8.0}
SIDES: dict[str, Any] = {"teams": ("adversary", "good"), "attacks": LOSS}


def met(home: float, nothing: float | None = None, **pool: float) -> dict[str, Any]:
    """An evaluation of a team that returns so much at home, and against each opponent; `nothing` if idle."""
    opponents = [
        against(name, clean, clean_selection=[clean - 1.0], nothing=nothing, **SIDES)
        for name, clean in pool.items()
    ]
    return evaluation(home, opponents=opponents, **SIDES)


@pytest.fixture
def planted(tmp_path: Path) -> Comparison:
    """aajr beats its own side by far; against the same opponents plain PPO is better."""
    plain = [met(50.0 + i, weak=60.0 + i, strong=40.0 + i) for i in range(3)]
    aajr = [met(90.0 + i, weak=50.0 + i, strong=20.0 + i) for i in range(3)]
    return compared(tmp_path, none=plain, aajr=aajr)


def test_the_pool_decides_and_not_the_own_side(planted: Comparison) -> None:
    assert planted.pool == ("weak", "strong")
    plain, aajr = planted.rows
    assert [row.clean.mean for row in (plain, aajr)] == [51.0, 36.0]
    assert [row.worst_return[0.1].mean for row in (plain, aajr)] == [43.0, 28.0]
    assert not own_side(planted)
    assert headline(planted) == (
        "plain PPO survives attacks best; judged against 2 opponents that every team met."
    )
    marks = [cell.mark for cell in cells(results(planted), "Without an attack", "clean return")]
    assert marks == ["best", ""]
    assert not any("own training" in line for line in cautions(planted))


def test_without_the_pool_nobody_is_named(tmp_path: Path) -> None:
    found = compared(tmp_path, none=[met(50.0 + i) for i in range(3)], aajr=[met(90.0 + i) for i in range(3)])
    assert found.pool == ()
    assert ranked(found) == ()
    assert headline(found).startswith("No winner can be named, because each team was judged against its own")
    assert cross_play(found) == ()


def test_the_matrix_has_every_opponent_with_means_on_both_sides(planted: Comparison) -> None:
    blocks = cross_play(planted)
    assert [block.title for block in blocks] == ["No attack", "Worst attack, ε = 0.1"]
    headers = ["weak", "strong", "mean over the pool", "worst of the pool", "own side (does not count)"]
    assert [[line.header for line in block.lines] for block in blocks] == [headers] * 2
    assert [[cell.main for cell in line.cells] for line in blocks[1].lines] == [
        ["53.0", "43.0", "48.0"],
        ["33.0", "13.0", "23.0"],
        ["43.0", "28.0", "35.5"],
        ["33.0", "13.0", "23.0"],
        ["43.0", "83.0", "63.0"],
    ]
    weak, strong, mean, worst, own = blocks[0].lines
    assert weak.cells[0].under == "[58.5,\u00a063.5]"
    assert weak.cells[0].shade == 8
    assert [cell.shade for cell in blocks[1].lines[1].cells] == [3, 0, None]
    assert [cell.mark for cell in mean.cells] == ["best", "", ""]
    assert [cell.note for cell in worst.cells] == ["strong", "strong", ""]
    assert {cell.mark for line in (weak, strong, worst, own) for cell in line.cells} == {""}


def test_ratings_stand_beside_the_mean_with_their_uncertainty(planted: Comparison) -> None:
    """Plain PPO is better against each opponent: it is the whole equilibrium, which takes the strong one."""
    clean, attacked = ratings(planted, resamples=20)
    assert (clean.title, attacked.title) == ("No attack", "Worst attack, ε = 0.1")
    nash, share, first, elo = clean.lines
    assert [cell.main for cell in nash.cells] == ["41.0", "21.0"]
    low, high = (float(end) for end in nash.cells[0].under.strip("[]").split(",\u00a0"))
    assert 40.0 <= low < 41.0 < high <= 42.0
    assert [cell.main for cell in share.cells] == ["100 %", "0 %"]
    assert [cell.main for cell in first.cells] == ["100 %", "0 %"]
    stronger, weaker = (float(cell.main.replace("\u202f", "")) for cell in elo.cells)
    assert stronger > 1500 > weaker
    assert stronger + weaker == pytest.approx(3000, abs=1)


def test_what_learned_nothing_has_no_rating(tmp_path: Path) -> None:
    idle = met(50.0, weak=1.0, strong=1.0, nothing=1.0)
    other = met(50.0, weak=2.0, strong=1.0)
    nash, _, first, _ = ratings(compared(tmp_path, none=[other], aajr=[idle], ernie=[other]))[0].lines
    assert [cell.main for cell in nash.cells] == ["1.0", "—", "1.0"]
    assert [cell.main for cell in first.cells] == ["—"] * 3


def test_the_worst_member_is_chosen_on_other_episodes(tmp_path: Path) -> None:
    lucky = met(50.0, weak=60.0, strong=40.0)
    lucky["opponents"][0]["clean_selection"] = [-5.0]
    worst = cells(cross_play(compared(tmp_path, none=[lucky])), "No attack", "worst of the pool")
    assert (worst[0].note, worst[0].main) == ("weak", "60.0")


def test_each_opponent_is_met_under_its_own_worst_attack(tmp_path: Path) -> None:
    content = met(50.0, weak=60.0, strong=40.0)
    content["opponents"][1] = against("strong", 40.0, attacks={("noise", 0.1): -9.0, ("pgd", 0.1): -2.0})
    (row,) = compared(tmp_path, none=[content]).rows
    assert row.worst_return[0.1].mean == ((60 - 8) + (40 - 9)) / 2


def test_seeds_play_with_each_other_in_each_place(tmp_path: Path) -> None:
    def with_partners(own: float, **others: tuple[float, float]) -> dict[str, Any]:
        rows = [
            {
                **evaluation(mean)["clean"],
                "kind": "partner",
                "source": name,
                "agents": [agent],
                "loyal_return": 0,
            }
            for name, means in others.items()
            for agent, mean in zip(("agent_0", "agent_1"), means, strict=True)
        ]
        return evaluation(own, teams=("team", "team"), adversarial_agents=rows)

    trio = [
        with_partners(-40.0, s1=(-50.0, -54.0), s2=(-60.0, -60.0)),
        with_partners(-41.0, s0=(-50.0, -50.0), s2=(-70.0, -60.0)),
        with_partners(-42.0, s0=(-44.0, -44.0), s1=(-46.0, -46.0)),
    ]
    lone = [with_partners(-40.0, s1=(-50.0, -50.0)), with_partners(-40.0)]
    (sheet,) = between_seeds(compared(tmp_path, none=trio, aajr=lone))
    assert sheet.caption.startswith("none (plain PPO): mean return of each seed with a member of another one")
    assert sheet.columns == ("seed", "s0", "s1", "s2", "mean of the others")
    assert sheet.lines == (
        ("s0", "−40.0", "−52.0", "−60.0", "−56.0"),
        ("s1", "−50.0", "−41.0", "−65.0", "−57.5"),
        ("s2", "−44.0", "−46.0", "−42.0", "−45.0"),
    )


def test_an_opponent_that_only_some_met_is_left_out(tmp_path: Path) -> None:
    found = compared(tmp_path, none=[met(50.0, weak=60.0, strong=40.0)], aajr=[met(50.0, weak=60.0)])
    assert found.pool == ("weak",)
    (text,) = [omission.text for omission in found.left_out]
    assert text.startswith("the opponent strong: not met by ")


def test_sampled_actions_are_judged_by_the_pool_too(tmp_path: Path) -> None:
    content = met(50.0, weak=60.0, strong=40.0)
    content["others"] = [{**met(10.0, weak=30.0, strong=0.0), "actions": "sampled"}]
    (row,) = compared(tmp_path, none=[content]).rows
    assert row.others["sampled"].clean.mean == 15.0


def test_what_learned_nothing_is_told_by_the_pool_and_not_at_home(tmp_path: Path) -> None:
    """At home plain PPO returns less than a team that does nothing; in the pool aajr as much as that."""
    plain = met(50.0, weak=30.0, strong=10.0, nothing=-20.0)
    plain["adversarial_agents"][0] |= {"mean": 90.0, "returns": [x + 40 for x in plain["clean"]["returns"]]}
    found = compared(tmp_path, none=[plain], aajr=[met(50.0, weak=-10.0, strong=-30.0, nothing=-20.0)])
    assert [row.method.label for row in ranked(found)] == ["none (plain PPO)"]
    assert nothing_learned([found]) == [
        "aajr learned nothing against the pool (return −20.0, doing nothing −20.0) and is not ranked."
    ]
    assert headline(found) == (
        "none (plain PPO) returns 20.0 without an attack and 12.0 under the worst attack of ε = 0.1; judged "
        "against 2 opponents that every team met; doing nothing returns −20.0; no other method has learned "
        "anything."
    )


def test_attacks_may_leave_no_more_than_doing_nothing_returns_against_the_pool(tmp_path: Path) -> None:
    found = compared(
        tmp_path, none=[met(50.0, weak=30.0, nothing=23.0)], aajr=[met(9.0, weak=29, nothing=23)]
    )
    said = "under attacks of any size tried no method does better than doing nothing."
    assert headline(found).endswith(said)


def test_without_idle_teams_against_the_pool_the_floor_is_not_known(tmp_path: Path) -> None:
    content = met(50.0, weak=-90.0, strong=-90.0)
    content["opponents"][1]["adversarial_agents"] = []
    found = compared(tmp_path, none=[content])
    assert headline(found) == (
        "none (plain PPO) returns −90.0 without an attack and −98.0 under the worst attack of ε = 0.1; "
        "judged against 2 opponents that every team met; nothing was compared with it."
    )
    assert any(line.startswith("Whether none (plain PPO) learned anything") for line in cautions(found))


def test_the_picture_says_what_the_returns_are_means_over(planted: Comparison) -> None:
    looks = Legend.of([planted]).of_rows(planted.rows)
    panel = worst_case(planted, looks, key="k")
    assert panel.title == "Return under the worst attack, mean over 2 common opponents"
    assert "43.0 at 0.1" in panel.alt
    assert panel.alt.endswith("A team that has learned nothing: −12.5.")
