from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import yaml

from marl_aajr.core.checks import value_at
from marl_aajr.regularizers import AAJR, REGULARIZERS, make_regularizer
from marl_aajr.training.config import RunConfig, load_config, make_config
from marl_aajr.training.fields import differences

ENV = {"env": {"name": "simple_spread_v3"}}


def problems(data: dict[str, Any]) -> list[str]:
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - the lines are the test's subject
        make_config(data)
    return str(caught.value).splitlines()


@pytest.mark.parametrize(
    "data",
    [
        {},
        {"method": {"name": "aajr"}},
        {"method": {"name": "aajr", "coefficient": [[0, 0], [1e5, 0.1]], "ramp": None, "low": -math.inf}},
        {"ppo": {"lr": [[0, 1e-3], [100000, 1e-5]], "vf_clip": 10}, "model": {"hidden": []}},
        {
            "env": {"name": "x", "kwargs": {"N": 5, "local_ratio": 0.1, "name": "ß"}},
            "resources": {"address": "a:1"},
        },
    ],
)
def test_yaml_gives_back_the_same_configuration(data: dict[str, Any], tmp_path: Path) -> None:
    config = make_config(ENV | data)
    file = tmp_path / "config.yaml"
    file.write_text(config.to_yaml())
    assert load_config(file) == config


def test_an_environment_and_a_method_may_be_given_by_their_names() -> None:
    short = make_config({"env": "simple_spread_v3", "method": "aajr"})
    assert short == make_config(ENV | {"method": {"name": "aajr"}})


def test_yaml_has_every_default_written_out() -> None:
    written = yaml.safe_load(make_config(ENV | {"method": {"name": "aajr"}}).to_yaml())
    assert written["ppo"]["gamma"] == 0.95
    assert written["method"]["steps"] == AAJR().steps
    assert written["method"]["ramp"] == [0.1, 0.4]


def test_numbers_are_read_as_people_write_them(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text("env: {name: x}\nenv_steps: 1e6\nppo: {lr: 5e-4, gamma: 1}\n")
    config = load_config(file)
    assert (config.env_steps, config.ppo.lr, config.ppo.gamma) == (1_000_000, 5e-4, 1.0)
    assert make_config(ENV | {"env_steps": "2e3", "ppo": {"clip": "0.1"}}).ppo.clip == 0.1


@pytest.mark.parametrize(
    ("data", "line"),
    [
        ({}, "env: missing; add it"),
        (
            ENV | {"env_stebs": 1},
            "env_stebs: unknown key; did you mean env_steps? known: env, method, rollouts,",
        ),
        (ENV | {"ppo": {"lamda": 1}}, "ppo.lamda: unknown key; did you mean gae_lambda? known: lr,"),
        (ENV | {"ppo": {"clip": "wide"}}, "ppo.clip: expected a number, got 'wide'"),
        (ENV | {"ppo": {"clip": 0}}, "ppo.clip: expected a number greater than 0, got 0"),
        (ENV | {"ppo": {"clip": math.nan}}, "ppo.clip: expected a number"),
        (ENV | {"ppo": {"gamma": 1.5}}, "ppo.gamma: expected a number less than or equal to 1, got 1.5"),
        (ENV | {"ppo": {"lr": -1}}, "ppo.lr: expected finite values ≥ 0, got -1"),
        (ENV | {"ppo": {"lr": [[5, 1]]}}, "ppo.lr: expected increasing timesteps from 0 in the schedule"),
        (ENV | {"seed": 1.5}, "seed: expected an integer, got 1.5"),
        (ENV | {"seed": True}, "seed: expected an integer, got True"),
        (
            ENV | {"model": {"hidden": [64, 0]}},
            "model.hidden.1: expected a number greater than or equal to 1",
        ),
        (ENV | {"policies": "alike"}, "policies: expected 'shared' or 'independent', got 'alike'"),
        (ENV | {"method": {"name": "ajar"}}, "method: expected a method name out of none, aajr"),
        (
            ENV | {"method": {"name": "aajr", "eps": 1}},
            "method: expected",
        ),
        (ENV | {"method": {"name": "aajr", "epsilon": -1}}, "method: expected"),
        (ENV | {"method": {"name": "aajr", "step_size": "a"}}, "method: expected"),
        (ENV | {"method": {"name": "aajr", "ramp": [0.4, 0.1]}}, "method: expected a ramp [a, b] with a < b"),
        (ENV | {"method": {"name": "none", "epsilon": 0.1}}, "method: expected no settings for method none"),
        (ENV | {"method": ["aajr"]}, "method: expected a mapping such as"),
        (ENV | {"ppo": {"minibatch_size": 5000}}, "configuration: expected ppo.minibatch_size ≤"),
        (
            ENV | {"resources": {"envs_per_runner": 9000}},
            "configuration: expected at most ppo.train_batch_size",
        ),
        (
            ENV | {"resources": {"learners": 3}},
            "configuration: expected ppo.train_batch_size to be a multiple",
        ),
    ],
)
def test_each_problem_is_one_line_that_names_the_field(data: dict[str, Any], line: str) -> None:
    (only,) = problems(data)
    assert only.startswith(line)


def test_all_problems_are_told_at_once() -> None:
    lines = problems(ENV | {"seed": -1, "ppo": {"clip": 0, "epochs": 0}})
    assert [line.partition(":")[0] for line in lines] == ["seed", "ppo.clip", "ppo.epochs"]


@pytest.mark.parametrize("text", ["- a list", "env: {name: x", "env: {name: [}"])
def test_a_file_that_is_no_mapping_is_refused_in_one_line(text: str, tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(text)
    with pytest.raises(ValueError, match=r"config\.yaml") as caught:
        load_config(file)
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_refused() -> None:
    with pytest.raises(ValueError, match="expected a configuration file at /no/such"):
        load_config("/no/such.yaml")


def test_the_ramp_raises_coefficient_and_adversarial_weight() -> None:
    method = {"name": "aajr", "coefficient": 2, "adversarial_weight": 0.5, "ramp": [0.1, 0.4]}
    regularizer = make_config(ENV | {"method": method}).method.regularizer(env_steps=1000)
    assert isinstance(regularizer, AAJR)
    for schedule, full in ((regularizer.coefficient, 2.0), (regularizer.adversarial_weight, 0.5)):
        at = [value_at(schedule, step) for step in (0, 100, 250, 400, 1000)]
        assert at == [0, 0, full / 2, full, full]


def test_without_a_ramp_and_for_schedules_the_values_are_as_given() -> None:
    at_once = make_config(ENV | {"method": {"name": "aajr", "coefficient": 2, "ramp": None}})
    assert at_once.method.regularizer(env_steps=1000) == AAJR(coefficient=2)
    schedule = ((0.0, 0.0), (10.0, 3.0))
    own = make_config(ENV | {"method": {"name": "aajr", "coefficient": schedule}})
    assert own.method.regularizer(env_steps=1000) == AAJR(coefficient=schedule)


def test_method_none_has_no_regularizer() -> None:
    assert make_config(ENV).method.regularizer(env_steps=1000) is None


def test_differences_name_the_nested_key() -> None:
    one, other = make_config(ENV), make_config(ENV | {"ppo": {"clip": 0.3}, "seed": 1})
    assert differences(one, other) == ["seed: 0 → 1", "ppo.clip: 0.2 → 0.3"]
    assert differences(one, one) == []


def test_a_configuration_cannot_be_changed() -> None:
    config: RunConfig = make_config(ENV)
    with pytest.raises(ValueError, match="frozen"):
        config.ppo.clip = 0.3


REQUIRED: dict[str, dict[str, Any]] = {
    "sum": {"members": [{"name": "aajr"}, {"name": "smooth_policy", "coefficient": 0.1}]}
}


@pytest.mark.parametrize("name", REGULARIZERS)
def test_every_method_survives_the_file_and_rises_with_the_ramp(name: str, tmp_path: Path) -> None:
    method = {"name": name, "ramp": [0.1, 0.4], **REQUIRED.get(name, {})}
    config = make_config({"env": {"name": "simple_spread_v3"}, "method": method})
    (tmp_path / "config.yaml").write_text(config.to_yaml())
    assert load_config(tmp_path / "config.yaml") == config
    regularizer = config.method.regularizer(env_steps=1000)
    assert regularizer is not None
    assert regularizer == make_regularizer(name, **config.method.settings).ramped(100, 400)


def test_a_dual_variable_is_left_to_itself() -> None:
    method = {"name": "aajr", "form": "constraint", "gain_bound": 1.0, "coefficient": 0.01}
    config = make_config({"env": {"name": "simple_spread_v3"}, "method": method})
    assert getattr(config.method.regularizer(env_steps=1000), "coefficient", None) == 0.01
