"""Settings as their source declares them are those of the classes that run."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from marl_aajr.adversaries.kinds import DEFAULTS
from marl_aajr.adversaries.request import AdversaryRequest
from marl_aajr.attacks import ATTACKS
from marl_aajr.core.settings import REQUIRED, attributes, declared, find_setting
from marl_aajr.evaluation.protocol import Protocol, Suite
from marl_aajr.regularizers import REGULARIZERS
from marl_aajr.study.study_config import (
    EnvironmentEntry,
    EvaluationEntry,
    MethodEntry,
    StudyConfig,
    TuningEntry,
)
from marl_aajr.training.atla import ATLA
from marl_aajr.training.config import EnvConfig, ModelConfig, PPOSettings, RunConfig
from marl_aajr.training.method import MethodConfig
from marl_aajr.training.resources import Resources

DATACLASSES: list[Any] = [*REGULARIZERS.values(), *ATTACKS.values(), ATLA]
MODELS: list[type[BaseModel]] = [
    RunConfig,
    EnvConfig,
    ModelConfig,
    PPOSettings,
    Resources,
    MethodConfig,
    StudyConfig,
    EnvironmentEntry,
    MethodEntry,
    EvaluationEntry,
    AdversaryRequest,
    TuningEntry,
    Protocol,
    Suite,
]


def path_of(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"


def test_of_a_dataclass_names_and_defaults_are_the_fields() -> None:
    for cls in DATACLASSES:
        fields = {field.name: field for field in dataclasses.fields(cls) if field.name[0] != "_"}
        found = declared(path_of(cls))
        assert list(found) == list(fields), cls
        for name, setting in found.items():
            required = fields[name].default is dataclasses.MISSING
            made = fields[name].default_factory is not dataclasses.MISSING
            if not made:
                assert setting.default == (REQUIRED if required else fields[name].default), (cls, name)


def test_of_a_model_names_and_defaults_are_the_fields() -> None:
    for cls in MODELS:
        found = declared(path_of(cls))
        assert list(found) == list(cls.model_fields), cls
        for name, field in cls.model_fields.items():
            if field.default_factory is None and not dataclasses.is_dataclass(field.default):
                default = REQUIRED if field.default is PydanticUndefined else field.default
                assert found[name].default == default, (cls, name)


def test_every_setting_is_described() -> None:
    for cls in (*DATACLASSES, *MODELS):
        assert [name for name, setting in declared(path_of(cls)).items() if not setting.text] == [], cls


def test_ranges_and_choices_are_those_of_the_annotation() -> None:
    gamma = find_setting(path_of(RunConfig), "ppo.gamma")
    assert (gamma.kind, gamma.bounds) == ("float", "at least 0 and at most 1")
    hidden = find_setting(path_of(RunConfig), "model.hidden")
    assert (hidden.kind, hidden.many, hidden.bounds) == ("int", True, "at least 1")
    step_size = declared(path_of(REGULARIZERS["aajr"]))["step_size"]
    assert (step_size.kind, step_size.choices) == ("float", ("auto",))
    form = declared(path_of(REGULARIZERS["aajr"]))["form"]
    assert form.choices == ("squared", "hinge", "constraint")


def test_a_summary_is_the_first_sentence_without_what_none_means() -> None:
    address = find_setting(path_of(RunConfig), "resources.address")
    assert address.summary == "A running Ray cluster, `host:port` or `auto`."
    assert address.shown_default == "RAY_ADDRESS, else a local one"
    assert declared(path_of(REGULARIZERS["aajr"]))["coefficient"].summary.startswith("λ ≥ 0")


def test_entries_end_where_the_section_ends() -> None:
    docstring = """A class.

Attributes:
    one: the first,
        on two lines.
    two: the second.

Raises:
    ValueError: never.
"""
    assert attributes(docstring) == {"one": "the first, on two lines.", "two": "the second."}
    assert attributes("Nothing.") == {}


def test_another_class_is_refused() -> None:
    with pytest.raises(ValueError, match=r"expected a class in marl_aajr, got pathlib\.Path"):
        declared("pathlib.Path")


def test_an_adversarys_defaults_in_words_are_its_own() -> None:
    found = declared(path_of(AdversaryRequest))
    steps, tries = (found[name].shown_default for name in ("env_steps", "search"))
    assert [kind for kind, own in DEFAULTS.items() if f"{own.env_steps:,}" not in steps] == []
    assert [kind for kind, own in DEFAULTS.items() if f"{own.search}" not in tries] == []
