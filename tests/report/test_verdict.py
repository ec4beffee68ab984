"""The verdict in words, for wins, losses and everything that cannot be told apart."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from marl_aajr.report import compare, how_chosen, load_run
from marl_aajr.report.cautions import cautions
from marl_aajr.report.verdict import how_compared, verdict
from tests.report.evaluations import evaluation
from tests.report.factory import CROSSING, HARD, MILD, THREE, config, two, write_method, write_run


def words(paths: list[Path]) -> str:
    text = verdict(compare([load_run(path) for path in paths]))
    return text.replace("\u00a0", " ")


def warnings(paths: list[Path]) -> list[str]:
    return cautions(compare([load_run(path) for path in paths]))


def test_a_clear_win_is_called_one(tmp_path: Path) -> None:
    text = words(two(tmp_path, HARD, MILD))

    assert text.startswith(
        "Under the worst attacks of ε = 0.1 and 0.2 aajr survives best: the interval of its lead over the "
        "other excludes 0 (aajr −42.5 [−43.7, −41.3] against none (plain PPO) −60.5 [−61.7, −59.3], "
        "a difference of 18.0 [16.9, 19.1] at 0.1; "
    )
    assert "not distinguishable" not in text
    assert text.endswith("3 training runs (seeds) per method, those of differences by Welch's t.")


def test_a_clear_loss_is_stated_as_plainly(tmp_path: Path) -> None:
    text = words(two(tmp_path, MILD, HARD))

    assert "none (plain PPO) survives best" in text
    assert "in this comparison aajr does not survive attacks of any size tried better than plain PPO" in text


def test_no_difference_is_not_distinguishable(tmp_path: Path) -> None:
    text = words(two(tmp_path, MILD, MILD))

    assert "attacks of ε = 0.1 and 0.2 the two methods are not distinguishable" in text
    assert "the interval of their difference includes 0" in text
    assert "survives best" not in text


def test_single_runs_are_compared_episode_by_episode(tmp_path: Path) -> None:
    """Two points apart in every one of the same episodes, whose returns spread by five."""
    comparison = compare(
        [load_run(path) for path in two(tmp_path, {("pgd", 0.1): -4.0}, MILD, clean=[-40.0])]
    )
    plain, other = (row.worst_return[0.1] for row in comparison.rows)
    text = verdict(comparison)

    assert plain.high is not None
    assert other.low is not None
    assert plain.high > other.low
    assert "aajr survives best" in text
    assert "a difference of 2.0\u00a0[2.0,\u00a02.0]" in text
    assert "whether another training seed would agree is unknown" in text
    assert "over the same 20 episodes, pair by pair" in how_compared(comparison)
    assert "another training seed may not agree" in how_compared(comparison)


def test_one_run_is_not_told_from_several(tmp_path: Path) -> None:
    paths = write_method(tmp_path, "none", clean=THREE, attacks=HARD)
    comparison = compare(
        [load_run(path) for path in paths + write_method(tmp_path, "aajr", clean=[-40.0], attacks=MILD)]
    )

    assert "are not distinguishable: their difference has no interval" in verdict(comparison)
    assert "Between one run and several there is no such interval." in how_compared(comparison)


def test_each_size_is_judged_on_its_own(tmp_path: Path) -> None:
    text = words(two(tmp_path, HARD, CROSSING))

    assert "Under the worst attacks of ε = 0.1 aajr survives best" in text
    assert "Under the worst attacks of ε = 0.2 none (plain PPO) survives best" in text
    assert "does not survive" not in text


def test_three_methods_are_ranked_and_held_against_the_plain_one(tmp_path: Path) -> None:
    paths = two(tmp_path, HARD, MILD) + write_method(tmp_path, "ernie", clean=THREE, attacks=MILD)
    text = words(paths)

    assert "has the highest mean but is not distinguishable from" in text
    assert "while the rest lie below" in text
    assert "Against none (plain PPO): aajr and ernie are better at ε = 0.1 and 0.2." in text


def test_many_methods_are_summed_up(tmp_path: Path) -> None:
    paths = write_method(tmp_path, "none", clean=THREE)
    for i in range(6):
        paths += write_method(tmp_path / str(i), "aajr", settings={"coefficient": i}, clean=THREE)
    text = words(paths)

    assert "the highest mean is not distinguishable from any other" in text
    assert "no method survives attacks of any size tried better than plain PPO" in text
    assert "The price" not in text


@pytest.mark.parametrize(
    ("clean", "says"),
    [
        ([-50.0, -50.5, -51.0], "10.0 [8.9, 11.1]: without an attack it returns less than none (plain PPO)"),
        ([-30.0, -30.5, -31.0], "−10.0 [−11.1, −8.9]: without an attack it returns more than"),
        (THREE, "0.0 [−1.1, 1.1], an interval that includes 0"),
        ([-50.0], "9.5 [no interval], and no interval can be given for it"),
    ],
)
def test_the_price_is_read_from_its_interval(tmp_path: Path, clean: list[float], says: str) -> None:
    paths = write_method(tmp_path, "none", clean=THREE) + write_method(tmp_path, "aajr", clean=clean)

    assert f"The price of robustness of aajr is {says}" in words(paths)


def test_single_runs_are_named_as_such(tmp_path: Path) -> None:
    paths = two(tmp_path, HARD, MILD, clean=[-40.0])

    assert "one run per method: the intervals are over 20 episodes" in words(paths)
    assert any("training seeds are what matters" in caution for caution in warnings(paths))


def test_a_mix_of_single_and_several_runs_is_named(tmp_path: Path) -> None:
    paths = write_method(tmp_path, "none", clean=THREE) + write_method(tmp_path, "aajr", clean=[-40.0])

    assert "Some methods have one run only" in words(paths)
    assert any(caution.startswith("aajr has a single run.") for caution in warnings(paths))


def test_one_method_alone_is_not_compared(tmp_path: Path) -> None:
    text = words(write_method(tmp_path, "none", clean=THREE, attacks=MILD))

    assert text.startswith("There is nothing to compare here. The return of none (plain PPO) is −40.5 ")
    assert "−42.5 [−43.7, −41.3] at ε = 0.1" in text


class TestHowTheWorstWasChosen:
    """The page and the terminal say what is true of the evaluations at hand."""

    def said(self, tmp_path: Path, *contents: dict[str, Any]) -> str:
        return how_chosen(
            compare(
                [
                    load_run(
                        write_run(tmp_path / str(i), configuration=config(seed=i), evaluations={"e": content})
                    )
                    for i, content in enumerate(contents)
                ]
            )
        )

    def test_elsewhere(self, tmp_path: Path) -> None:
        text = self.said(tmp_path, evaluation(selection_episodes=25))
        assert text.endswith("chosen by its return on 25 other episodes than those it is reported on.")

    def test_on_the_same_episodes(self, tmp_path: Path) -> None:
        assert "on the very episodes that it is reported on." in self.said(tmp_path, evaluation(worst=[]))

    def test_for_some_runs_only(self, tmp_path: Path) -> None:
        text = self.said(tmp_path, evaluation(), evaluation(worst=[]))
        assert "for some chosen by its return on" in text
        assert "for the rest the one with the lowest return" in text

    def test_a_single_attack_is_not_chosen(self, tmp_path: Path) -> None:
        assert (
            self.said(tmp_path, evaluation(attacks={("pgd", 0.1): -1.0}))
            == "Worst: the only attack tried, pgd."
        )
