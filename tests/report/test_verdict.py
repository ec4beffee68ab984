from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from marl_aajr.report import compare, load_run
from marl_aajr.report.cautions import cautions
from marl_aajr.report.verdict import headline, how_compared, verdict
from tests.report.factory import config, metrics, write_method, write_run

MILD = {("pgd", 0.1): -2.0, ("pgd", 0.2): -4.0}
HARD = {("pgd", 0.1): -20.0, ("pgd", 0.2): -40.0}
CROSSING = {("pgd", 0.1): -2.0, ("pgd", 0.2): -60.0}
THREE = [-40.0, -40.5, -41.0]


def words(paths: list[Path]) -> str:
    text = verdict(compare([load_run(path) for path in paths]), decimals=1)
    return text.replace("\u00a0", " ")


def warnings(paths: list[Path]) -> list[str]:
    return cautions(compare([load_run(path) for path in paths]))


def two(
    root: Path, plain: dict[Any, float], other: dict[Any, float], *, clean: list[float] = THREE
) -> list[Path]:
    return write_method(root, "none", clean=clean, attacks=plain) + write_method(
        root, "aajr", clean=clean, attacks=other
    )


def test_a_clear_win_is_called_one(tmp_path: Path) -> None:
    text = words(two(tmp_path, HARD, MILD))

    assert text.startswith(
        "Under the worst of the attacks tried, at ε = 0.1 and 0.2 aajr survives best: the interval of its "
        "lead over the other excludes 0 (aajr −42.5 [−43.7, −41.3] against none (plain PPO) −60.5 "
        "[−61.7, −59.3], a difference of 18.0 [16.9, 19.1] at 0.1; "
    )
    assert "not distinguishable" not in text
    assert text.endswith("3 training runs (seeds) per method, those of differences by Welch's t.")


def test_a_clear_loss_is_stated_as_plainly(tmp_path: Path) -> None:
    text = words(two(tmp_path, MILD, HARD))

    assert "none (plain PPO) survives best" in text
    assert "in this comparison aajr does not survive better than none (plain PPO) at any ε tried" in text


def test_no_difference_is_not_distinguishable(tmp_path: Path) -> None:
    text = words(two(tmp_path, MILD, MILD))

    assert "at ε = 0.1 and 0.2 the two methods are not distinguishable" in text
    assert "the interval of their difference includes 0" in text
    assert "survives best" not in text


def test_single_runs_are_compared_episode_by_episode(tmp_path: Path) -> None:
    """Two points apart in every one of the same episodes, whose returns spread by five."""
    comparison = compare(
        [load_run(path) for path in two(tmp_path, {("pgd", 0.1): -4.0}, MILD, clean=[-40.0])]
    )
    plain, other = (row.worst_return[0.1] for row in comparison.rows)
    text = verdict(comparison, decimals=1)

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

    assert "are not distinguishable: their difference has no interval" in verdict(comparison, decimals=1)
    assert headline(comparison).endswith("the two methods are not distinguishable.")
    assert "Between one run and several there is no such interval." in how_compared(comparison)


def test_each_size_is_judged_on_its_own(tmp_path: Path) -> None:
    text = words(two(tmp_path, HARD, CROSSING))

    assert "at ε = 0.1 aajr survives best" in text
    assert "At ε = 0.2 none (plain PPO) survives best" in text
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
    assert "no other method survives better than none (plain PPO)" in text
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

    assert text.startswith("Only none (plain PPO) was evaluated, so nothing is compared here.")
    assert "−42.5 [−43.7, −41.3] at ε = 0.1" in text


def test_a_sound_comparison_needs_no_caution(tmp_path: Path) -> None:
    assert warnings(two(tmp_path, HARD, MILD)) == []


def test_different_budgets_come_first(tmp_path: Path) -> None:
    paths = write_method(tmp_path, "none", clean=[-40.0])
    paths += write_method(tmp_path, "aajr", clean=[-40.0], env_steps=2_000_000)

    assert warnings(paths)[0].replace("\u202f", " ") == (
        "The methods were trained for different numbers of environment steps (100 000: none (plain PPO); "
        "2 000 000: aajr): the comparison is not like for like."
    )


def test_differences_beyond_the_method_are_flagged(tmp_path: Path) -> None:
    paths = write_method(tmp_path, "none", clean=THREE)
    paths += write_method(tmp_path, "aajr", clean=THREE, policies="independent")

    assert warnings(paths) == [
        "The methods differ in more than the method: policies. A difference in return cannot be put down to "
        "the method alone."
    ]


@pytest.mark.parametrize(
    ("names", "says"),
    [
        (("aajr", "ernie"), "No run without a regulariser (method none): no price"),
        (("none", "none"), "2 methods without a regulariser"),
    ],
)
def test_a_price_that_cannot_be_given_is_explained(tmp_path: Path, names: tuple[str, str], says: str) -> None:
    paths = write_method(tmp_path / "0", names[0], clean=THREE)
    paths += write_method(tmp_path / "1", names[1], clean=THREE, time_limits_terminate=True)

    assert any(says in caution for caution in warnings(paths))


def test_two_runs_are_too_few(tmp_path: Path) -> None:
    assert any("12.7 standard errors" in c for c in warnings(two(tmp_path, HARD, MILD, clean=THREE[:2])))


def test_other_versions_environments_and_broken_numbers_are_flagged(tmp_path: Path) -> None:
    paths = write_method(tmp_path, "none", clean=THREE[:1])
    lines = metrics(regularised=True)
    lines[3]["modules"]["shared"]["aajr/nonfinite"] = 2
    lines[4]["modules"]["shared"]["aajr/penalty"] = float("nan")
    paths.append(
        write_run(
            tmp_path / "odd",
            configuration=config("aajr", env={"name": "mpe2.simple_tag_v3", "kwargs": {}}),
            lines=lines,
            packages={"torch": "2.6.0", "ray": "2.60.0", "mpe2": "1.1.1"},
        )
    )
    found = " ".join(warnings(paths))

    assert "different versions of torch (see Versions)" in found
    assert "Trained on another environment than the one evaluated on" in found
    assert "odd (mpe2.simple_tag_v3)." in found
    assert "odd logged values that are not finite in 2 iterations" in found
