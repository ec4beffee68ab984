"""The method by which a run makes its policies robust: its name and its settings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from pydantic import BaseModel, ConfigDict, model_validator

from marl_aajr.core.checks import check_settings, one_of
from marl_aajr.regularizers import REGULARIZERS, Regularizer, make_regularizer, settings_of
from marl_aajr.training.atla import ATLA
from marl_aajr.training.fields import Fraction

NO_METHOD = "none"
"""The method that adds nothing: plain PPO."""

METHODS: dict[str, type[Regularizer] | type[ATLA]] = {**REGULARIZERS, ATLA.name: ATLA}
"""The methods that can make a policy robust, each with a `summary`."""


class MethodConfig(BaseModel):
    """The method that makes the policy robust; the method's own settings stand beside these two.

    Attributes:
        name: method that makes the policy robust: a name of `list methods`.
        ramp: fractions of the run between which λ and κ (of atla: ε) rise from 0, or `none`: their value
            from the start. Schedules stay as they are. A penalty at full weight on an untrained policy stops
            it from learning.
    """

    model_config = ConfigDict(extra="allow", frozen=True, ser_json_inf_nan="constants")

    name: str = NO_METHOD
    ramp: tuple[Fraction, Fraction] | None = (0.1, 0.4)

    @model_validator(mode="before")
    @classmethod
    def _resolve(cls, data: Any) -> Any:
        """Every setting of the method, checked by the method, defaults written out."""
        if isinstance(data, str):  # `method: aajr` is `method: {name: aajr}`
            data = {"name": data}
        if not isinstance(data, Mapping):
            raise ValueError(f"expected a mapping such as {{name: aajr, epsilon: 0.1}}, got {data!r}")
        given = dict(data)
        name = given.get("name", NO_METHOD)
        if name == NO_METHOD:
            given.setdefault("ramp", None)
            if extra := sorted(key for key, value in given.items() if key != "name" and value is not None):
                raise ValueError(f"expected no settings for method none, got {', '.join(extra)}; remove them")
            return {"name": NO_METHOD, "ramp": None}
        one_of("a method name", name, [NO_METHOD, *METHODS])
        settings = {key: value for key, value in given.items() if key not in cls.model_fields}
        return {key: given[key] for key in cls.model_fields if key in given} | _written_out(name, settings)

    @model_validator(mode="after")
    def _ordered(self) -> MethodConfig:
        if self.ramp is not None and self.ramp[0] >= self.ramp[1]:
            raise ValueError(f"expected a ramp [a, b] with a < b, got {list(self.ramp)}")
        return self

    @property
    def settings(self) -> dict[str, Any]:
        """The method's own settings."""
        return dict(self.model_extra or {})

    def regularizer(self, *, env_steps: int) -> Regularizer | None:
        """The regularizer for a run of `env_steps`, its ramp written as schedules; None where none is."""
        regularizer: Regularizer | None = None
        if self.name in REGULARIZERS:
            regularizer = make_regularizer(self.name, **self.settings)
        elif self.name == ATLA.name:
            regularizer = ATLA(**self.settings).team_regularizer()
        if regularizer is None or self.ramp is None:
            return regularizer
        return regularizer.ramped(*self._ramp_steps(env_steps))

    def atla(self, *, env_steps: int) -> ATLA | None:
        """The settings of ATLA for a run of `env_steps`, its ramp written as a schedule; else None."""
        if self.name != ATLA.name:
            return None
        atla = ATLA(**self.settings)
        return atla if self.ramp is None else atla.ramped(*self._ramp_steps(env_steps))

    def _ramp_steps(self, env_steps: int) -> tuple[float, float]:
        assert self.ramp is not None
        start, end = self.ramp
        return start * env_steps, end * env_steps


def _written_out(name: str, settings: dict[str, Any]) -> dict[str, Any]:
    try:
        if name == ATLA.name:
            check_settings(name, ATLA, settings)
            return asdict(ATLA(**settings))
        regularizer = make_regularizer(name, **settings)
    except TypeError as error:
        # A value of the wrong type may fail in the method's own comparison.
        raise ValueError(f"expected numbers for the numeric settings of {name}: {error}") from None
    return {key: value for key, value in settings_of(regularizer).items() if key != "name"}
