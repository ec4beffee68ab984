from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from marl_aajr.report import EvaluatedRun, load_run
from marl_aajr.report.methods import by_method, differences, flatten, shared
from tests.report.factory import config, write_run


@pytest.fixture
def record(tmp_path: Path) -> Any:
    def make(name: str, **changes: Any) -> EvaluatedRun:
        method = changes.pop("method", "none")
        return load_run(write_run(tmp_path / name, configuration=config(method, **changes)))

    return make


def test_flatten_keeps_empty_mappings() -> None:
    assert flatten({"a": {"b": 1, "c": {}}, "d": [1]}) == {"a.b": 1, "a.c": {}, "d": [1]}


def test_runs_that_differ_in_seed_and_resources_only_are_one_method(record: Any) -> None:
    runs = [record("b", seed=1, resources={"env_runners": 4}), record("a", seed=0)]
    (method,) = by_method(runs)

    assert [run.seed for run in method.runs] == [0, 1]
    assert method.label == "none (plain PPO)"


@pytest.mark.parametrize(
    "change",
    [{"env_steps": 50_000}, {"model": {"hidden": [8]}}, {"checkpoint_every": 3}, {"policies": "independent"}],
)
def test_any_other_difference_makes_two_methods(record: Any, change: dict[str, Any]) -> None:
    assert len(by_method([record("a"), record("b", seed=1, **change)])) == 2


def test_the_plain_method_comes_first_whatever_the_order(record: Any) -> None:
    runs = [
        record("c", method="aajr", settings={"coefficient": 0.1}),
        record("b", method="aajr", settings={"coefficient": 0.03}),
        record("d", method="Zebra"),
        record("a"),
    ]
    labels = [method.label for method in by_method(runs)]

    assert labels == ["none (plain PPO)", "Zebra", "aajr, coefficient=0.03", "aajr, coefficient=0.1"]
    assert labels == [method.label for method in by_method(runs[::-1])]


def test_labels_say_only_what_sets_namesakes_apart(record: Any) -> None:
    methods = by_method(
        [
            record("a", method="aajr", settings={"coefficient": 0.1, "steps": 3}),
            record("b", method="aajr", settings={"coefficient": 0.1, "steps": 5}, model={"hidden": [8]}),
            record("c", method="aajr", settings={"coefficient": 0.1, "steps": 5}),
        ]
    )

    assert "aajr, steps=5, model.hidden=[8], model.activation" not in str([m.label for m in methods])
    assert sorted(m.label for m in methods) == [
        "aajr, steps=3, model.hidden=[64, 64], model.activation=tanh",
        "aajr, steps=5, model.hidden=[64, 64], model.activation=tanh",
        "aajr, steps=5, model.hidden=[8]",
    ]


def test_differences_and_shared_split_the_configuration(record: Any) -> None:
    methods = by_method(
        [record("a"), record("b", method="aajr", settings={"coefficient": 1e-3, "mask": None})]
    )

    assert differences(methods) == {
        "method.name": ("none", "aajr"),
        "method.coefficient": ("—", "0.001"),
    }
    same = shared(methods)
    assert same["ppo.gamma"] == "0.95"
    assert same["model.hidden"] == "[64, 64]"
    assert not {"seed", "method.name", "resources.learners"} & set(same)


def test_null_and_absent_are_the_same(record: Any) -> None:
    runs = [record("a"), record("b", seed=1, settings={"ramp": None})]

    assert [len(method.runs) for method in by_method(runs)] == [2]


def test_the_same_run_twice_is_refused(record: Any) -> None:
    with pytest.raises(ValueError, match=r"got .*a and .*b with the same configuration and seed 4"):
        by_method([record("a", seed=4), record("b", seed=4, resources={"env_runners": 2})])
