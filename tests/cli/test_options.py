"""Options that stand for settings, and what they do to a configuration."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

import pytest
from rich.text import Text

from marl_aajr.cli import adversary, evaluate, study
from marl_aajr.cli.options import Option, assigned, number_or_text, options, plain, values
from marl_aajr.cli.train import SETTINGS, default_folder, override
from marl_aajr.core.objectives import OBJECTIVES
from marl_aajr.core.output_maps import OUTPUT_MAPS
from marl_aajr.regularizers.aajr import FORMS
from marl_aajr.training.config import make_config


def lookup(data: dict[str, Any], key: str) -> Any:
    for name in key.split("."):
        data = data[name]
    return data


def shown_default(option: Option) -> Any:
    """The default in an option's help as a value; None where words describe it or there is none."""
    if option.setting.default is None or not option.setting.shown_default:
        return None
    return option.read(option.setting.shown_default)


def test_shown_default_is_the_configurations() -> None:
    plainly, with_aajr = (
        make_config({"env": {"name": "simple_spread_v3"}, "method": {"name": name}}).model_dump(mode="json")
        for name in ("none", "aajr")
    )
    for option in SETTINGS:
        value = lookup(plainly if option.key == "method.name" else with_aajr, option.key)
        shown = option.setting.shown_default
        assert shown_default(option) == (None if option.flag == "--env" else value), option.flag
        assert f"default: {shown}" in option.help or not shown, option.flag


def test_the_help_is_what_the_settings_class_says() -> None:
    for option in (*SETTINGS, *adversary.SETTINGS, *evaluate.SETTINGS, *study.SETTINGS):
        shown = Text.from_markup(option.help).plain
        assert shown.startswith(plain(option.setting.summary).removesuffix(".")), option.flag


def test_what_may_be_left_out_says_what_holds_then() -> None:
    assert [option.flag for option in SETTINGS if not option.setting.text] == []
    required = [option.flag for option in SETTINGS if not option.setting.shown_default]
    assert sorted(required) == ["--env", "--gain-bound"]


@pytest.mark.parametrize(
    ("flag", "names"), [("--objective", OBJECTIVES), ("--output-map", OUTPUT_MAPS), ("--form", FORMS)]
)
def test_help_names_every_choice(flag: str, names: Iterable[str]) -> None:
    (option,) = (option for option in SETTINGS if option.flag == flag)
    assert [name for name in names if not re.search(rf"\b{name}\b", option.help)] == []


def test_an_option_goes_with_its_setting() -> None:
    with pytest.raises(KeyError, match="nothing"):
        options("marl_aajr.training.config.RunConfig", "ppo.nothing")


def test_flags_are_unique_and_name_python_parameters() -> None:
    assert (
        len({option.flag for option in SETTINGS}) == len({option.key for option in SETTINGS}) == len(SETTINGS)
    )
    assert all(option.name.isidentifier() for option in SETTINGS)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("3", 3),
        ("1e6", 1e6),
        ("5e-4", 5e-4),
        ("0.1", 0.1),
        ("true", True),
        ("kl", "kl"),
        ("[[0, 0], [100, 0.1]]", [[0, 0], [100, 0.1]]),
        ("[broken", "[broken"),
    ],
)
def test_values_read_as_in_a_file(text: str, value: Any) -> None:
    assert number_or_text(text) == value


@pytest.mark.parametrize(
    ("flag", "text", "value"),
    [
        ("--hidden", "64,32", [64, 32]),
        ("--hidden", "64", [64]),
        ("--ramp", "0.1,0.4", [0.1, 0.4]),
        ("--ramp", "none", None),
        ("--observation-filter", "none", "none"),
    ],
)
def test_lists_need_no_brackets(flag: str, text: str, value: Any) -> None:
    (option,) = (option for option in SETTINGS if option.flag == flag)
    assert option.read(text) == value


def overridden(base: dict[str, Any], typed: dict[str, str], *assignments: str) -> dict[str, Any]:
    """A configuration with options, by parameter name, and `--set` over it."""
    return override(base, values(SETTINGS, typed) | assigned(assignments))


def test_options_override_the_file_and_leave_the_rest() -> None:
    base = {"env": {"name": "a", "kwargs": {"N": 2}}, "seed": 1, "ppo": {"lr": 1e-3, "clip": 0.2}}
    result = overridden(base, {"seed": "7", "env": "b"}, "ppo.lr=3e-4", "env.kwargs.N=5")
    assert result == {"env": {"name": "b", "kwargs": {"N": 5}}, "seed": 7, "ppo": {"lr": 3e-4, "clip": 0.2}}
    assert base == {"env": {"name": "a", "kwargs": {"N": 2}}, "seed": 1, "ppo": {"lr": 1e-3, "clip": 0.2}}


def test_another_method_drops_the_settings_of_the_files_method() -> None:
    base = {"method": {"name": "aajr", "epsilon": 0.3}}
    assert overridden(base, {"method": "none"}) == {"method": {"name": "none"}}
    assert overridden(base, {"method": "aajr", "inner_steps": "5"}) == {
        "method": {"name": "aajr", "epsilon": 0.3, "steps": 5}
    }


def test_a_setting_may_stand_where_the_file_has_no_mapping() -> None:
    assert overridden({"env": "oops"}, {"env": "a"}) == {"env": {"name": "a"}}


@pytest.mark.parametrize("assignment", ["ppo.lr", "=3", "ppo..lr=3", ""])
def test_a_malformed_assignment_shows_a_right_one(assignment: str) -> None:
    with pytest.raises(ValueError, match=r"KEY=VALUE such as ppo\.lr=3e-4"):
        assigned([assignment])


@pytest.mark.parametrize(
    ("env", "folder"),
    [
        ("simple_spread_v3", "runs/simple_spread_v3-aajr-s3"),
        ("sisl/pursuit-v5", "runs/sisl-pursuit-v5-aajr-s3"),
        ("my_package.my_env:make", "runs/my_package.my_env-make-aajr-s3"),
    ],
)
def test_default_folder_is_named_after_the_run(env: str, folder: str) -> None:
    data = {"env": {"name": env}, "method": {"name": "aajr"}, "seed": 3}
    assert str(default_folder(data)) == folder
