"""The first sentence: who is named the best, and who may not be."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from marl_aajr.report import Comparison, compare, compare_each, headline, load_run
from marl_aajr.report.headline import headline_of_all
from marl_aajr.report.ranking import nothing_learned, ranked, unranked
from marl_aajr.report.scores import summarise
from marl_aajr.report.tables import results
from tests.report.evaluations import evaluation
from tests.report.factory import (
    CROSSING,
    HARD,
    MILD,
    TAG,
    THREE,
    cells,
    compared,
    config,
    grid,
    runs_of,
    two,
    write_method,
    write_run,
)


def said(paths: list[Path]) -> str:
    return headline(compare(paths)).replace("\u00a0", " ")


def seeds(*clean: float, **changes: Any) -> list[dict[str, Any]]:
    return [evaluation(value, **changes) for value in clean]


class TestHeadline:
    def test_a_clear_win_and_what_it_costs(self, tmp_path: Path) -> None:
        paths = write_method(tmp_path, "none", clean=THREE, attacks=HARD)
        paths += write_method(tmp_path, "aajr", clean=[x - 5 for x in THREE], attacks=MILD)
        assert said(paths) == (
            "aajr survives attacks of every size tried best; without an attack it returns 5.0 less than "
            "plain PPO."
        )

    def test_one_that_is_ahead_once_and_never_behind_is_the_best(self, tmp_path: Path) -> None:
        alike_at_first = {("pgd", 0.1): -20.0, ("pgd", 0.2): -4.0}
        assert said(two(tmp_path, HARD, alike_at_first)) == (
            "aajr survives attacks best: ahead of all others at ε = 0.2, behind at no size; without an "
            "attack it cannot be told apart from plain PPO."
        )

    def test_one_that_is_never_behind_may_be_ahead_of_all_at_no_size(self, tmp_path: Path) -> None:
        alike_at_last = {("pgd", 0.1): -20.0, ("pgd", 0.2): -4.0}
        paths = two(tmp_path, alike_at_last, MILD)
        paths += write_method(tmp_path, "ernie", clean=THREE, attacks=CROSSING)
        assert said(paths).startswith(
            "aajr survives attacks best: behind at no size, ahead of all at none; without an attack"
        )

    def test_two_may_be_the_best(self, tmp_path: Path) -> None:
        paths = two(tmp_path, HARD, MILD) + write_method(tmp_path, "ernie", clean=THREE, attacks=MILD)
        assert said(paths) == (
            "aajr and ernie survive attacks best, and cannot be told apart; without an attack they cannot be "
            "told apart from plain PPO."
        )

    def test_one_that_leads_nobody_is_not_named_the_best(self, tmp_path: Path) -> None:
        """Its three runs lie too far apart to tell it from anybody."""
        paths = two(tmp_path, HARD, {("pgd", 0.1): -20.0, ("pgd", 0.2): -4.0})
        paths += write_method(tmp_path, "ernie", clean=[-20.0, -40.5, -61.0], attacks=MILD)
        assert said(paths) == (
            "aajr survives attacks of ε = 0.2 best, but cannot be told apart from ernie; at ε = 0.1 no "
            "methods can be told apart; without an attack it cannot be told apart from plain PPO."
        )

    def test_where_it_depends_on_the_size_one_that_leads_nobody_is_not_named_alone(
        self, tmp_path: Path
    ) -> None:
        wide = {("pgd", 0.1): -4.0, ("pgd", 0.2): -50.0}
        paths = two(tmp_path, HARD, CROSSING)
        paths += write_method(tmp_path, "ernie", clean=[0.0, -41.0, -82.0], attacks=wide)
        assert said(paths) == (
            "Under attacks of ε = 0.1 aajr and ernie survive best, under attacks of ε = 0.2 plain PPO and "
            "ernie survive best."
        )

    @pytest.mark.parametrize(
        ("less", "says"),
        [
            ((5, 5), "without an attack they return 5.0 less than plain PPO."),
            ((5, 8), "without an attack they return 5.0 to 8.0 less than plain PPO."),
            ((-5, -8), "without an attack they return 5.0 to 8.0 more than plain PPO."),
            ((5, 0), "not all of them return as much as plain PPO without an attack."),
        ],
    )
    def test_what_several_cost(self, tmp_path: Path, less: tuple[float, float], says: str) -> None:
        paths = write_method(tmp_path, "none", clean=THREE, attacks={("pgd", 0.1): -30.0})
        for name, x in zip(("aajr", "ernie"), less, strict=True):
            paths += write_method(
                tmp_path, name, clean=[y - x for y in THREE], attacks={("pgd", 0.1): x - 10.0}
            )
        assert said(paths).endswith(says)

    def test_where_it_depends_on_the_size_each_is_named(self, tmp_path: Path) -> None:
        assert said(two(tmp_path, HARD, CROSSING)) == (
            "Under attacks of ε = 0.1 aajr survives best, under attacks of ε = 0.2 plain PPO survives best."
        )

    @pytest.mark.parametrize("other", [MILD, HARD])
    def test_nothing_won_is_said_as_plainly(self, tmp_path: Path, other: dict[Any, float]) -> None:
        text = said(two(tmp_path, MILD, other))
        won = "plain PPO survives attacks of every size tried best."
        none = "aajr does not survive attacks of any size tried better than plain PPO."
        assert text == (won if other is HARD else none)

    def test_without_a_plain_method_equals_cannot_be_told_apart(self, tmp_path: Path) -> None:
        paths = write_method(tmp_path, "aajr", clean=THREE) + write_method(tmp_path, "ernie", clean=THREE)
        assert said(paths) == "The two methods cannot be told apart under any attack tried."

    def test_an_attack_that_leaves_nobody_anything_has_no_winner(self, tmp_path: Path) -> None:
        plain, other = (seeds(-40.0, -41.0, -39.0, attacks=a, nothing=-70.0) for a in (HARD, CROSSING))
        text = headline(compared(tmp_path, none=plain, aajr=other)).replace("\u00a0", " ")
        assert text.startswith(
            "aajr survives attacks best: ahead of all others at ε = 0.1, behind at no size;"
        )
        assert text.endswith("under attacks of ε = 0.2 no method does better than doing nothing.")

    def test_the_best_is_doubted_where_its_evaluation_failed(self, tmp_path: Path) -> None:
        failed = [{"name": "gradients", "verdict": "fail", "text": "Masked."}]
        runs = {
            "none": seeds(-40.0, -41.0, attacks=HARD, checks=failed),
            "aajr": seeds(-40.0, -41.0, attacks=MILD),
        }
        assert "failed" not in headline(compared(tmp_path / "0", **runs))
        runs["aajr"][0]["checks"] = failed
        text = headline(compared(tmp_path / "1", **runs))
        assert text.endswith("; but the evaluation of aajr failed its own checks.")

    def test_one_method_alone_is_held_against_doing_nothing(self, tmp_path: Path) -> None:
        text = headline(compared(tmp_path, none=seeds(-40.0, attacks=MILD, nothing=-72.0)))
        assert text == (
            "none (plain PPO) returns −40.0 without an attack and −44.0 under the worst attack of ε = 0.2; "
            "doing nothing returns −72.0; nothing was compared with it."
        )

    def test_of_several_environments_each_is_told(self, tmp_path: Path) -> None:
        paths = runs_of(tmp_path, "none", THREE) + runs_of(tmp_path, "aajr", THREE, loss=-2.0)
        paths += runs_of(tmp_path, "none", THREE, env=TAG) + runs_of(tmp_path, "aajr", THREE, env=TAG)
        comparisons = compare_each(paths)
        scores = summarise(comparisons, {})
        assert headline_of_all(comparisons, scores).replace("\u00a0", " ") == (
            "On simple_spread_v3 aajr survives attacks best; without an attack it cannot be told apart from "
            "plain PPO; on simple_tag_v3 aajr does not survive attacks of ε = 0.1 better than plain PPO."
        )

    def test_of_many_environments_outcomes_are_counted(self, tmp_path: Path) -> None:
        paths = grid(tmp_path)
        for i in range(4):
            env = {"name": f"game_{i}", "kwargs": {}}
            paths += runs_of(tmp_path, "none", THREE, env=env) + runs_of(tmp_path, "aajr", THREE, env=env)
        comparisons = compare_each(paths)
        assert headline_of_all(comparisons, {}) == (
            "On 4 of 6 environments no method stands out; on simple_spread_v3 and simple_tag_v3 aajr "
            "survives attacks best."
        )
        scores = summarise(comparisons, {})
        assert headline_of_all(comparisons, scores).startswith("Over all environments")


class TestLearnedNothing:
    """Its return under attack is the highest of all, because it has nothing to lose."""

    def idle(self, tmp_path: Path, *idle: bool) -> Comparison:
        learned = seeds(-40.0, -41.0, -39.0, attacks=HARD, nothing=-72.0)
        lazy = [
            evaluation(-43.0, attacks=dict.fromkeys(HARD, 0.0), nothing=-43.0 if nothing else -72.0)
            for nothing in idle
        ]
        return compared(tmp_path, none=learned, aajr=lazy, ernie=seeds(-40.0, attacks=MILD) * 3)

    def test_it_is_named_and_not_ranked(self, tmp_path: Path) -> None:
        found = self.idle(tmp_path, True, True, True)
        assert nothing_learned([found]) == [
            "aajr learned nothing (return −43.0, doing nothing −43.0) and is not ranked."
        ]
        assert "aajr" not in headline(found)
        assert [row.method.label for row in ranked(found)] == ["none (plain PPO)", "ernie"]
        assert unranked(found) == {1}
        worst = cells(results(found), "Under attack", "ε = 0.2")
        assert [cell.mark for cell in worst] == ["", "", "best"]

    def test_single_runs_are_not_dropped(self, tmp_path: Path) -> None:
        found = self.idle(tmp_path, True, False, False)
        assert nothing_learned([found]) == [
            "1 of 3 runs of aajr learned nothing (return −43.0, doing nothing −43.0); the method's mean "
            "includes it."
        ]
        assert len(ranked(found)) == 3
        (line,) = nothing_learned([self.idle(tmp_path / "most", True, True, False)])
        assert line.endswith(", and the method is not ranked.")

    def test_the_better_of_both_controls_is_the_floor(self, tmp_path: Path) -> None:
        content = evaluation(-40.0, nothing=-40.0)
        idle = content["adversarial_agents"][0]
        worse = {**idle, "kind": "random", "mean": -90.0, "returns": [x - 50 for x in idle["returns"]]}
        content["adversarial_agents"].append(worse)
        assert len(nothing_learned([compared(tmp_path, none=[content])])) == 1

    def test_returns_are_compared_on_the_same_episodes(self, tmp_path: Path) -> None:
        """Two points above, in every one of episodes that spread by twenty."""
        above = seeds(-40.0, spread=20.0, nothing=-42.0)
        assert nothing_learned([compared(tmp_path / "0", none=above)]) == []
        shuffled = seeds(-40.0, spread=20.0, nothing=-42.0)
        shuffled[0]["adversarial_agents"][0]["returns"].reverse()
        assert len(nothing_learned([compared(tmp_path / "1", none=shuffled)])) == 1

    def test_where_nobody_learned_that_is_the_verdict(self, tmp_path: Path) -> None:
        lazy = seeds(-50.0, -50.0, nothing=-50.0)
        found = compared(tmp_path, none=lazy, aajr=lazy)
        assert headline(found).startswith("No method has learned anything")
        alone = headline(compared(tmp_path / "alone", none=lazy))
        assert alone == "none (plain PPO) has not learned anything: a team that does nothing returns as much."

    def test_a_control_of_one_agent_is_none_of_the_team(self, tmp_path: Path) -> None:
        content = evaluation(-40.0, teams=("team", "team"), nothing=-40.0)
        content["adversarial_agents"][0]["agents"] = ["agent_0"]
        assert nothing_learned([compared(tmp_path, none=[content])]) == []


def test_a_team_that_only_beats_its_own_side_is_not_named(tmp_path: Path) -> None:
    sides: dict[str, Any] = {"teams": ("adversary", "good")}
    found = compared(
        tmp_path,
        none=seeds(*THREE, attacks=HARD, **sides),
        aajr=seeds(*THREE, attacks=MILD, **sides),
    )
    assert headline(found) == (
        "No winner can be named, because each team was judged against its own side only."
    )
    marks = {cell.mark for block in results(found) for line in block.lines for cell in line.cells}
    assert marks == {""}
    run = write_run(tmp_path / "run", configuration=config(), evaluations={"e": evaluation(**sides)})
    assert "nothing was compared with it" in headline(compare([load_run(run)]))
