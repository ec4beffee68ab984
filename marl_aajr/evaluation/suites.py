"""Suites: named protocols of evaluation, defined in one readable file (`suites.yaml`)."""

from __future__ import annotations

from functools import cache
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, field_validator

from marl_aajr.attacks import Attack, make_attack
from marl_aajr.core.threat import Norm
from marl_aajr.core.values import one_of
from marl_aajr.evaluation.budget import Budget, as_budget

Actions = Literal["greedy", "sampled"]
Units = Literal["raw", "network"]
Control = Literal["random", "idle"]
"""What plays in an agent's place without having learned anything."""

BudgetOrText = Annotated[
    Budget, BeforeValidator(lambda value: as_budget(value) if isinstance(value, str) else value)
]
"""A budget, or its text, which `parse_budget` reads."""

_FILE = "suites.yaml"


class SuiteAttack(BaseModel):
    """One attack of a suite: a name and settings."""

    model_config = ConfigDict(frozen=True)

    attack: str
    settings: dict[str, Any] = {}

    def at(self, epsilon: float, *, norm: Norm = "linf") -> Attack:
        """The attack with a radius, and with a norm unless its settings have one.

        Raises:
            ValueError: unknown name or setting.
        """
        return make_attack(self.attack, epsilon=epsilon, **{"norm": norm, **self.settings})


class Suite(BaseModel):
    """A protocol; `suites.yaml` says what the fields mean.

    Raises:
        ValueError: a field that is missing, unknown or out of range, or an unknown attack or setting.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    summary: str
    episodes: int = Field(ge=1)
    selection_episodes: int = Field(ge=0)
    actions: tuple[Actions, ...] = Field(min_length=1)
    units: Units
    norm: Norm = "linf"
    budget: BudgetOrText = Budget()
    weakest_link: bool = False
    controls: tuple[Control, ...] = ()
    epsilons: tuple[Annotated[float, Field(gt=0, allow_inf_nan=False)], ...] = Field(min_length=1)
    attacks: tuple[SuiteAttack, ...] = Field(min_length=1)

    @field_validator("attacks", mode="before")
    @classmethod
    def _names_are_attacks(cls, value: Any) -> Any:
        return [_entry(item) for item in value] if isinstance(value, list) else value

    @field_validator("attacks")
    @classmethod
    def _attacks_exist(cls, value: tuple[SuiteAttack, ...]) -> tuple[SuiteAttack, ...]:
        for entry in value:
            entry.at(1.0)
        if len({repr(entry) for entry in value}) < len(value):
            raise ValueError("expected each attack once; give repeated ones other settings")
        return value

    @field_validator("epsilons", "actions", "controls")
    @classmethod
    def _no_repetition(cls, value: tuple[Any, ...]) -> tuple[Any, ...]:
        if len(set(value)) < len(value):
            raise ValueError(f"expected each once, got {list(value)}")
        return value


def load_suite(suite: str | Path | Suite) -> Suite:
    """A suite by name, or from a YAML file of one suite's fields.

    Raises:
        ValueError: no such suite or file, or one that is not valid; the message names the field.
    """
    if isinstance(suite, Suite):
        return suite
    if Path(suite).suffix in (".yaml", ".yml"):
        return _from_file(Path(suite))
    one_of("a suite", str(suite), builtin_suites())
    return builtin_suites()[str(suite)]


@cache
def builtin_suites() -> dict[str, Suite]:
    """The suites of `suites.yaml`, by name."""
    text = resources.files("marl_aajr.evaluation").joinpath(_FILE).read_text("utf-8")
    return {name: _validated(name, fields, _FILE) for name, fields in yaml.safe_load(text).items()}


def _from_file(path: Path) -> Suite:
    try:
        fields = yaml.safe_load(path.read_text("utf-8"))
    except FileNotFoundError:
        raise ValueError(f"expected a suite's file, got {path}, which does not exist") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"expected YAML in {path}, got {' '.join(str(error).split())}") from None
    if not isinstance(fields, dict):
        raise ValueError(f"expected the fields of one suite in {path}, got {type(fields).__name__}")
    return _validated(path.stem, fields, str(path))


def _validated(name: str, fields: Any, where: str) -> Suite:
    try:
        return Suite.model_validate({**fields, "name": name})
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"])
        message = first["msg"].removeprefix("Value error, ")
        raise ValueError(f"suite {name!r} in {where}, {field}: {message}") from None


def _entry(item: Any) -> Any:
    if isinstance(item, str):
        return {"attack": item}
    if isinstance(item, dict) and "attack" in item:
        return {"attack": item["attack"], "settings": {k: v for k, v in item.items() if k != "attack"}}
    return item
