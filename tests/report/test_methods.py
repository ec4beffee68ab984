"""Read evaluated runs, refuse those that a comparison could not rest on, and sort them into methods."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from marl_aajr.evaluation import Evaluation
from marl_aajr.report import EvaluatedRun, load_run
from marl_aajr.report.methods import by_method, differences, shared
from marl_aajr.training.fields import flat
from tests.report.evaluations import evaluation, evaluation_file
from tests.report.factory import config, metrics, write_run


def test_reads_a_finished_run(tmp_path: Path) -> None:
    run = load_run(write_run(tmp_path / "run", configuration=config("aajr", seed=7)))

    assert run.seed == 7
    assert run.config["method"]["name"] == "aajr"
    assert run.trained_here
    assert run.versions is not None
    assert run.versions.packages["ray"] == "2.60.0"
    assert run.metrics[0].return_mean is None
    assert run.metrics[-1].env_steps == 100_000
    assert run.metrics[-1].modules["shared"]["aajr/nonfinite"] == 0
    assert run.evaluations["default"].clean.mean == -40.0
    assert run.evaluations["default"].attacks[0].epsilon == 0.1


def test_refuses_fields_that_it_does_not_know(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", evaluations={"default": evaluation(something_new=1)})

    with pytest.raises(ValueError, match=r"something_new: .*write it again with `marl-aajr evaluate`"):
        load_run(run)


def test_refuses_what_is_no_folder(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"expected a run directory, got .*nowhere"):
        load_run(tmp_path / "nowhere")


@pytest.mark.parametrize("name", ["config.yaml", "versions.json", "status.json", "metrics.jsonl"])
def test_names_the_missing_file(tmp_path: Path, name: str) -> None:
    run = write_run(tmp_path / "run")
    (run / name).unlink()

    with pytest.raises(ValueError, match=f"has no {name}; give the folder that `marl-aajr train` wrote"):
        load_run(run)


def test_a_run_without_evaluations_is_told_how_to_get_them(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", evaluations={})

    with pytest.raises(ValueError, match=f"run `marl-aajr evaluate {run}`"):
        load_run(run)


@pytest.mark.parametrize(
    ("status", "message"),
    [
        ({"state": "running"}, "state 'running' .*wait until it has finished"),
        ({"state": "interrupted", "env_steps": 4000}, "4000 of 100000 env steps; finish it with .*--resume"),
        ({"state": "failed", "error": "out of memory"}, r"state 'failed' \(out of memory\)"),
    ],
)
def test_refuses_an_unfinished_run(tmp_path: Path, status: dict[str, Any], message: str) -> None:
    run = write_run(tmp_path / "run", status=status)

    with pytest.raises(ValueError, match=message):
        load_run(run)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("config.yaml", "env: [", "corrupt .*config.yaml"),
        ("config.yaml", "- a list", "contents: Input should be a valid dictionary"),
        ("config.yaml", "env: {name: x}\nseed: 0\nenv_steps: 1", "method: Field required"),
        (
            "config.yaml",
            "env: {name: x}\nmethod: ppo\nseed: 0\nenv_steps: 1",
            "method: Input should be a valid dictionary",
        ),
        (
            "config.yaml",
            "env: {name: x}\nmethod: {name: y}\nseed: a\nenv_steps: 1",
            "seed: Input should be a valid integer",
        ),
        ("status.json", "{", "corrupt .*status.json: not JSON"),
        ("status.json", '{"state": "gone", "iteration": 1, "env_steps": 1}', "state: Input should be"),
        ("versions.json", "[]", "versions.json: contents"),
        ("metrics.jsonl", "", "it has no line"),
        ("metrics.jsonl", '{"iteration": 1, "env_steps": 5, "seconds": 1}\n{"iterat', "line 2: not JSON"),
        ("evaluations/default.json", "not json", "again with `marl-aajr evaluate`"),
    ],
)
def test_names_the_corrupt_file(tmp_path: Path, name: str, content: str, message: str) -> None:
    run = write_run(tmp_path / "run")
    (run / name).write_text(content)

    with pytest.raises(ValueError, match=message):
        load_run(run)


def test_refuses_bytes_that_are_no_text(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    (run / "status.json").write_bytes(b"\xff\xfe")

    with pytest.raises(ValueError, match="it is not UTF-8 text"):
        load_run(run)


def test_refuses_metrics_that_go_back_in_time(tmp_path: Path) -> None:
    lines = metrics(regularised=False)
    run = write_run(tmp_path / "run", lines=[lines[0], lines[2], lines[1]])

    with pytest.raises(ValueError, match="line 3: env_steps 5000 after 7500"):
        load_run(run)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ({"episodes": 21}, "20 returns for 21 episodes"),
        ({"clean": {**evaluation()["clean"], "mean": -39.0}}, "-39.0 is not the mean of its returns, -40"),
        (
            {"clean": {**evaluation()["clean"], "low": float("nan")}},
            "results.0.clean.low: Input should be a finite number",
        ),
        (
            {"attacks": [{**evaluation()["attacks"][0], "epsilon": 0}]},
            "results.0.attacks.0.attack.epsilon: .*greater than 0",
        ),
    ],
)
def test_refuses_an_evaluation_that_contradicts_itself(
    tmp_path: Path, damage: dict[str, Any], message: str
) -> None:
    run = write_run(tmp_path / "run", evaluations={"default": evaluation() | damage})

    with pytest.raises(ValueError, match=message):
        load_run(run)


def test_messages_are_one_line(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    (run / "config.yaml").write_text("env: [\n\nmethod: }")

    with pytest.raises(ValueError, match="corrupt") as failure:
        load_run(run)
    assert "\n" not in str(failure.value)


def test_the_factory_follows_the_evaluation_contract() -> None:
    content = Evaluation.model_validate_json(evaluation_file(evaluation(-40.0)))

    assert content.clean_return == pytest.approx(sum(content.clean.returns) / content.episodes)
    assert {row.attack.name for row in content.attacks} == {"noise", "pgd"}


@pytest.fixture
def record(tmp_path: Path) -> Any:
    def make(name: str, **changes: Any) -> EvaluatedRun:
        method = changes.pop("method", "none")
        return load_run(write_run(tmp_path / name, configuration=config(method, **changes)))

    return make


def test_flatten_keeps_empty_mappings() -> None:
    assert flat({"a": {"b": 1, "c": {}}, "d": [1]}, ".") == {"a.b": 1, "a.c": {}, "d": [1]}


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


def test_labels_name_the_teams_that_a_method_is_for(record: Any) -> None:
    each = {"adversary": {"name": "aajr", "coefficient": 0.1}, "good": {"name": "none"}}
    records = [
        record("a", method="aajr"),
        record("b", method="aajr", settings={"teams": ["adversary"]}),
        record("c", method="per_team", settings={"teams": each}),
        record("d", method="per_team", settings={"teams": {**each, "good": {"name": "aajr"}}}),
    ]
    labels = [method.label for method in by_method(records)]
    mixed = [f"aajr for adversary, {other} for good" for other in ("aajr", "none")]
    assert sorted(labels) == ["aajr", "aajr for adversary", *mixed]


def test_differences_and_shared_split_the_configuration(record: Any) -> None:
    methods = by_method(
        [record("a"), record("b", method="aajr", settings={"coefficient": 1e-3, "mask": None})]
    )

    assert differences([method.config for method in methods]) == {
        "method.name": ("none", "aajr"),
        "method.coefficient": ("—", "0.001"),
    }
    same = shared([method.config for method in methods])
    assert same["ppo.gamma"] == "0.95"
    assert same["model.hidden"] == "[64, 64]"
    assert not {"seed", "method.name", "resources.learners"} & set(same)


def test_null_and_absent_are_the_same(record: Any) -> None:
    runs = [record("a"), record("b", seed=1, settings={"ramp": None})]

    assert [len(method.runs) for method in by_method(runs)] == [2]


def test_the_same_run_twice_is_refused(record: Any) -> None:
    with pytest.raises(ValueError, match=r"got .*a and .*b with the same configuration and seed 4"):
        by_method([record("a", seed=4), record("b", seed=4, resources={"env_runners": 2})])
