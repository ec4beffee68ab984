from __future__ import annotations

import json
from pathlib import Path
from typing import Any, ClassVar

import pytest

from marl_aajr.report import Comparison, EvaluatedRun, compare, load_run
from marl_aajr.report.cautions import cautions
from marl_aajr.report.estimates import Estimate
from marl_aajr.report.tables import results
from tests.report.evaluations import chosen, evaluation
from tests.report.factory import config, write_method, write_run


def load(paths: list[Path]) -> list[EvaluatedRun]:
    return [load_run(path) for path in paths]


def pair(tmp_path: Path, plain: list[float], other: list[float], **changes: Any) -> Comparison:
    paths = write_method(tmp_path, "none", clean=plain) + write_method(
        tmp_path, "aajr", clean=other, **changes
    )
    return compare(load(paths))


def with_evaluations(tmp_path: Path, *evaluations: dict[str, Any]) -> list[EvaluatedRun]:
    """One run per evaluation, which differ in their seed."""
    paths = [
        write_run(tmp_path / f"run-{seed}", configuration=config(seed=seed), evaluations={"default": content})
        for seed, content in enumerate(evaluations)
    ]
    return load(paths)


def test_several_runs_give_intervals_over_runs(tmp_path: Path) -> None:
    row = pair(tmp_path, [-39.0, -40.0, -42.0], [-50.0]).rows[0]

    assert row.clean == Estimate.over("runs", [-39.0, -40.0, -42.0], level=0.95)
    assert row.clean.unit == "runs"


def test_one_run_keeps_the_interval_over_episodes_of_its_evaluation(tmp_path: Path) -> None:
    row = pair(tmp_path, [-40.0, -41.0], [-50.0]).rows[1]
    recorded = json.loads((tmp_path / "aajr-0/evaluations/default.json").read_text())["results"][0]["clean"]

    assert (row.clean.low, row.clean.high) == (recorded["low"], recorded["high"])
    assert (row.clean.unit, len(row.clean.values)) == ("episodes", 20)


def test_the_median_run_is_the_one_whose_worst_return_is_in_the_middle(tmp_path: Path) -> None:
    """Each run under its own strongest attack: −60 by pgd, −45 by noise, −58 by pgd."""
    first, second = ({("noise", 0.1): -1.0, ("pgd", 0.1): -20.0}, {("noise", 0.1): -7.0, ("pgd", 0.1): -1.0})
    found = [evaluation(-40.0, attacks=first), evaluation(-38.0, attacks=second)]
    found.append(evaluation(-38.0, attacks=first))
    (row,) = compare(with_evaluations(tmp_path, *found)).rows
    run = row.median_run(0.1)
    assert (run.run.config["seed"], run.worst(0.1).spec.name) == (2, "pgd")
    assert (row.median_return(0.1).mean, row.median_return(0.1).unit) == (-58.0, "episodes")

    (pair,) = compare(with_evaluations(tmp_path / "pair", *found[:2])).rows
    assert pair.median_return(0.1).mean == -60.0, "of two, the lower"


def test_the_median_run_is_shown_where_there_are_several(tmp_path: Path) -> None:
    several = pair(tmp_path, [-39.0, -40.0, -42.0], [-50.0])
    line = next(line for line in results(several)[1].lines if line.header == "median run, ε = 0.2")
    assert (line.cells[0].main, line.cells[0].note) == ("−60.0", "seed 1, pgd")
    assert line.cells[1].main == "−70.0"
    alone = pair(tmp_path / "alone", [-40.0], [-50.0])
    assert not any("median" in line.header for block in results(alone) for line in block.lines)


def test_price_of_robustness_is_what_the_clean_return_loses(tmp_path: Path) -> None:
    comparison = pair(tmp_path, [-39.0, -41.0, -40.0], [-45.0, -47.0, -46.0])
    plain, robust = comparison.rows

    assert plain.price is None
    assert robust.price is not None
    assert robust.price.mean == pytest.approx(6.0)
    assert robust.price.unit == "runs"


def test_price_with_single_runs_pairs_their_episodes(tmp_path: Path) -> None:
    price = pair(tmp_path, [-40.0], [-38.0]).rows[1].price

    assert price is not None
    assert price.unit == "episodes"
    # the factory gives both runs the same deviations, which pairing removes
    assert (price.mean, price.low, price.high) == pytest.approx((-2.0, -2.0, -2.0))


def test_price_between_one_run_and_several_has_no_interval(tmp_path: Path) -> None:
    price = pair(tmp_path, [-40.0], [-38.0, -39.0]).rows[1].price

    assert price is not None
    assert (price.mean, price.low, price.high) == (-1.5, None, None)


@pytest.mark.parametrize("names", [["aajr", "ernie"], ["none", "none"]])
def test_no_price_without_exactly_one_plain_method(tmp_path: Path, names: list[str]) -> None:
    paths = [
        path
        for i, name in enumerate(names)
        for path in write_method(tmp_path / str(i), name, clean=[-40.0], env_steps=100_000 + i)
    ]

    assert [row.price for row in compare(load(paths)).rows] == [None, None]


def test_the_worst_attack_is_found_for_each_method_and_size(tmp_path: Path) -> None:
    attacks = {("noise", 0.1): -9.0, ("pgd", 0.1): -8.0, ("noise", 0.2): -9.0, ("pgd", 0.2): -30.0}
    (row,) = compare(load(write_method(tmp_path, "none", clean=[-40.0], attacks=attacks))).rows

    assert {epsilon: condition.attack for epsilon, condition in row.worst_attack.items()} == {
        0.1: "noise",
        0.2: "pgd",
    }
    assert row.worst_return[0.2].mean == -70.0


def test_attacks_keep_their_order_and_sizes_rise(tmp_path: Path) -> None:
    attacks = {("pgd", 0.2): -1.0, ("noise", 0.1): -1.0, ("pgd", 0.1): -1.0, ("pgd", 0.05): -1.0}
    comparison = compare(load(write_method(tmp_path, "none", clean=[-40.0], attacks=attacks)))

    assert [(c.attack, c.epsilon) for c in comparison.conditions] == [
        ("pgd", 0.05),
        ("pgd", 0.1),
        ("pgd", 0.2),
        ("noise", 0.1),
    ]
    assert comparison.epsilons == (0.05, 0.1, 0.2)


def test_attacks_of_one_name_are_told_apart_by_their_settings(tmp_path: Path) -> None:
    content = evaluation(attacks={("pgd", 0.1): -8.0})
    (attack,) = content["attacks"]
    content["attacks"].append({**attack, "settings": {"steps": 50}})
    comparison = compare(with_evaluations(tmp_path, content))

    assert comparison.attacks == ("pgd: norm=linf, steps=10", "pgd: norm=linf, steps=50")


def test_what_only_some_runs_faced_is_left_out_grouped_and_without_settings(tmp_path: Path) -> None:
    more = {("pgd", 0.2): -1.0, ("fgsm", 0.1): -1.0, ("fgsm", 0.2): -1.0, ("noise", 0.1): -1.0}
    fewer = evaluation(attacks={("pgd", 0.1): -8.0})
    comparison = compare(with_evaluations(tmp_path, evaluation(attacks={("pgd", 0.1): -8.0, **more}), fewer))

    assert [(c.attack, c.epsilon) for c in comparison.conditions] == [("pgd", 0.1)]
    lacking = f"not evaluated on {tmp_path / 'run-1'}"
    assert [(o.count, o.text.replace("\u00a0", " ")) for o in comparison.left_out] == [
        (1, f"pgd at ε = 0.2: {lacking}"),
        (2, f"fgsm at ε = 0.1 and 0.2: {lacking}"),
        (1, f"noise at ε = 0.1: {lacking}"),
    ]


def test_attacks_that_are_left_out_for_their_settings_say_so(tmp_path: Path) -> None:
    content = evaluation(attacks={("pgd", 0.1): -8.0, ("noise", 0.1): -1.0})
    other = {
        **content,
        "attacks": [{**content["attacks"][0], "settings": {"steps": 50}}, content["attacks"][1]],
    }
    texts = [omission.text for omission in compare(with_evaluations(tmp_path, content, other)).left_out]

    assert len(texts) == 2
    assert all(text.startswith("pgd with settings of its own at ε") and "steps" not in text for text in texts)


@pytest.mark.parametrize(
    ("change", "shown", "cure"),
    [
        ({"env": {"name": "mpe2.simple_tag_v3", "kwargs": {}}}, "mpe2.simple_tag_v3", "compare_each"),
        ({"env": {"name": "mpe2.simple_spread_v3", "kwargs": {"N": 5}}}, '{"N": 5}', "compare_each"),
        ({"seed": 1}, "seed 1", "run `marl-aajr evaluate` on each"),
        ({"episodes": 30}, "30 episodes", "run `marl-aajr evaluate` on each"),
        ({"actions": "sampled"}, "sampled actions", "run `marl-aajr evaluate` on each"),
    ],
)
def test_refuses_runs_that_were_evaluated_differently(
    tmp_path: Path, change: dict[str, Any], shown: str, cure: str
) -> None:
    runs = with_evaluations(tmp_path, evaluation(), evaluation(**change))

    with pytest.raises(ValueError, match="expected runs evaluated on the same environment") as failure:
        compare(runs)
    assert shown in str(failure.value)
    assert "run-0" in str(failure.value)
    assert cure in str(failure.value)


def test_refuses_runs_without_a_common_attack(tmp_path: Path) -> None:
    runs = with_evaluations(
        tmp_path, evaluation(attacks={("pgd", 0.1): -8.0}), evaluation(attacks={("pgd", 0.2): -8.0})
    )

    with pytest.raises(
        ValueError, match=r"same attacks, got .*run-0: pgd at ε = 0.1 .*--attack and --epsilon"
    ):
        compare(runs)


def test_refuses_nothing() -> None:
    with pytest.raises(ValueError, match="expected at least one run, got none"):
        compare([])


def test_files_with_one_protocol_are_read_together(tmp_path: Path) -> None:
    files = {
        "a": evaluation(attacks={("pgd", 0.1): -8.0}),
        "b": evaluation(attacks={("pgd", 0.2): -20.0}),
    }
    (row,) = compare([load_run(write_run(tmp_path / "run", evaluations=files))]).rows

    assert sorted(row.worst_attack) == [0.1, 0.2]


def test_of_several_protocols_the_one_with_most_episodes_counts(tmp_path: Path) -> None:
    files = {"long": evaluation(-41.0, episodes=50), "short": evaluation(-40.0, episodes=20)}
    comparison = compare([load_run(write_run(tmp_path / "run", evaluations=files))])

    assert comparison.rows[0].clean.mean == -41.0
    assert any("20 episodes" in omission.text for omission in comparison.left_out)


@pytest.mark.parametrize(
    ("other", "what"),
    [
        (evaluation(-41.0), "the clean return"),
        (evaluation(attacks={("pgd", 0.1): -9.0}), "pgd at ε = 0.1"),
    ],
)
def test_files_that_contradict_each_other_are_refused(
    tmp_path: Path, other: dict[str, Any], what: str
) -> None:
    run = load_run(write_run(tmp_path / "run", evaluations={"a": evaluation(), "b": other}))

    with pytest.raises(ValueError, match=f"disagree on {what}.*delete the outdated file"):
        compare([run])


class TestTheWorstAttack:
    """Each run has its own, chosen on episodes that are not reported; runs are put together afterwards."""

    attacks: ClassVar[dict[tuple[str, float], float]] = {("noise", 0.1): -9.0, ("pgd", 0.1): -8.0}

    def test_it_is_the_one_chosen_elsewhere_not_the_lowest_reported(self, tmp_path: Path) -> None:
        choice = chosen(-40.0, {("pgd", 0.1): -30.0}, 0.1)
        comparison = compare(with_evaluations(tmp_path, evaluation(attacks=self.attacks, worst=[choice])))
        (row,) = comparison.rows
        assert comparison.chosen_elsewhere
        assert row.worst_attack[0.1].attack == "pgd"
        assert row.worst_return[0.1].mean == -48.0

    def test_each_run_counts_with_its_own(self, tmp_path: Path) -> None:
        """Run 0 falls to −49 by noise, run 1 to −70 by pgd: their mean is neither attack's mean."""
        other = {("noise", 0.1): -9.0, ("pgd", 0.1): -30.0}
        runs = with_evaluations(tmp_path, evaluation(attacks=self.attacks), evaluation(attacks=other))
        (row,) = compare(runs).rows
        assert row.worst_return[0.1].mean == pytest.approx((-49.0 - 70.0) / 2)
        assert {estimate.mean for estimate in row.robust.values()} == {-49.0, -59.0}

    def test_without_a_choice_it_is_the_lowest_reported_and_said_so(self, tmp_path: Path) -> None:
        comparison = compare(with_evaluations(tmp_path, evaluation(attacks=self.attacks, worst=[])))
        assert not comparison.chosen_elsewhere
        assert comparison.rows[0].worst_return[0.1].mean == -49.0
        assert any("on the very episodes that it is reported on" in line for line in cautions(comparison))

    def test_evaluations_in_other_units_norms_or_copies_are_another_protocol(self, tmp_path: Path) -> None:
        whole = evaluation()
        changes: list[dict[str, Any]] = [{"units": "network"}, {"norm": "l2"}, {"num_envs": 7}]
        for i, change in enumerate(changes):
            with pytest.raises(ValueError, match="expected runs evaluated on the same environment"):
                compare(with_evaluations(tmp_path / str(i), whole, {**whole, **change}))

    def test_attacks_on_other_agents_are_other_attacks(self, tmp_path: Path) -> None:
        whole = {**evaluation(team="team", agents=["a", "b"]), "teams": {"a": "team", "b": "team"}}
        with pytest.raises(ValueError, match=r"expected runs under the same attacks.*a only"):
            compare(with_evaluations(tmp_path, whole, {**whole, "agents": ["a"]}))


class TestOtherActions:
    def with_sampled(self, clean: float) -> dict[str, Any]:
        sampled = {**evaluation(clean - 5.0), "actions": "sampled"}
        return evaluation(clean, others=[sampled])

    def test_they_are_shown_beside_the_first_kind(self, tmp_path: Path) -> None:
        runs = with_evaluations(tmp_path, self.with_sampled(-40.0), self.with_sampled(-42.0))
        comparison = compare(runs)
        (row,) = comparison.rows
        assert row.clean.mean == -41.0
        assert row.others["sampled"].clean.mean == -46.0
        assert row.others["sampled"].worst_return[0.2].mean == -66.0
        titles = [block.title for block in results(comparison)]
        assert "With sampled actions: clean, and worst attack" in titles

    def test_only_where_every_run_has_them(self, tmp_path: Path) -> None:
        runs = with_evaluations(tmp_path, self.with_sampled(-40.0), evaluation(-42.0))
        assert compare(runs).rows[0].others == {}
