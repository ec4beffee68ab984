"""The method by which a run makes its policies robust: its name, its settings, the teams that it is for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any, TypeVar

from pydantic import ValidationError, model_validator

from marl_aajr.core.checks import check_settings, made, one_of
from marl_aajr.core.environment_values import agent_name
from marl_aajr.regularizers import REGULARIZERS, Regularizer, make_regularizer, settings_of
from marl_aajr.rollout.attack.rollout_attack import RolloutAttack
from marl_aajr.rollout.teams import check_teams
from marl_aajr.training.atla import ATLA
from marl_aajr.training.fields import Fraction, Section

NO_METHOD = "none"
"""The method that adds nothing: plain PPO."""

PER_TEAM = "per_team"
"""The name of methods that differ by team."""

METHODS: dict[str, type[Regularizer] | type[ATLA] | type[RolloutAttack]] = {
    **REGULARIZERS,
    RolloutAttack.name: RolloutAttack,
    ATLA.name: ATLA,
}
"""The methods that can make a policy robust, each with a `summary`."""


_Method = TypeVar("_Method", ATLA, RolloutAttack, Regularizer | None)
Ramp = tuple[Fraction, Fraction] | None


class MethodConfig(Section, extra="allow"):
    """The method that makes the policy robust; the method's own settings stand beside these.

    Attributes:
        name: method that makes the policy robust: a name of `list methods`.
        ramp: fractions of the run between which λ and κ (of atla and adversarial_training: ε) rise from 0,
            or `none`: their value from the start. Schedules stay as they are. A penalty at full weight on an
            untrained policy stops it from learning.
        teams: teams that the method is for, such as `[adversary]`, while the others train plainly; or, in
            place of all else, the method of each: `{adversary: aajr, good: {name: smooth_policy}}`, where
            who is not named trains plainly; None: all.
    """

    name: str = NO_METHOD
    ramp: Ramp = (0.1, 0.4)
    teams: tuple[str, ...] | dict[str, MethodConfig] | None = None

    @model_validator(mode="before")
    @classmethod
    def _resolve(cls, data: Any) -> Any:
        """Every setting of the method, checked by the method, defaults written out."""
        if isinstance(data, str):  # `method: aajr` is `method: {name: aajr}`
            data = {"name": data}
        if not isinstance(data, Mapping):
            raise ValueError(f"expected a mapping such as {{name: aajr, epsilon: 0.1}}, got {data!r}")
        given = {str(key): value for key, value in data.items()}
        teams = given.get("teams")
        if isinstance(teams, Mapping):
            return _per_team(teams, {key: value for key, value in given.items() if key != "teams"})
        name = given.get("name", NO_METHOD)
        if name == NO_METHOD:
            given.setdefault("ramp", None)
            if extra := sorted(key for key, value in given.items() if key != "name" and value is not None):
                raise ValueError(f"expected no settings for method none, got {', '.join(extra)}; remove them")
            return {"name": NO_METHOD, "ramp": None}
        if name == PER_TEAM:
            raise ValueError(
                f"expected the method of each team for method {PER_TEAM}, such as teams: "
                f"{{adversary: aajr}}, got teams {teams!r}"
            )
        one_of("a method name", name, [NO_METHOD, *METHODS, PER_TEAM])
        settings = {key: value for key, value in given.items() if key not in cls.model_fields}
        result = {key: given[key] for key in cls.model_fields if key in given} | _written_out(name, settings)
        return result | ({} if teams is None else {"teams": _names_of(teams)})

    @model_validator(mode="after")
    def _ordered(self) -> MethodConfig:
        _check_ramp(self.ramp)
        return self

    @property
    def settings(self) -> dict[str, Any]:
        """The method's own settings."""
        return dict(self.model_extra or {})

    @property
    def each(self) -> tuple[MethodConfig, ...]:
        """The methods in it: itself, or those of the teams that have one of their own."""
        return tuple(self.teams.values()) if isinstance(self.teams, Mapping) else (self,)

    @property
    def label(self) -> str:
        """Its name, and the teams that it is for where they are named: `aajr for adversary`."""
        return method_label(self.model_dump())

    def by_team(self, known: Sequence[str], *, env: str) -> dict[str, MethodConfig]:
        """The method of each of the teams of an environment.

        Raises:
            ValueError: a team that is not there, or that is named twice.
        """
        named = tuple(known if self.teams is None else self.teams)
        check_teams("method.teams", named, known, env=env)
        methods = self.teams if isinstance(self.teams, Mapping) else dict.fromkeys(named, self)
        return {team: methods.get(team, MethodConfig()) for team in known}

    def regularizer(self, *, env_steps: int) -> Regularizer | None:
        """The regularizer for a run of `env_steps`, its ramp written as schedules; None where none is."""
        regularizer: Regularizer | None = None
        if self.name in REGULARIZERS:
            regularizer = make_regularizer(self.name, **self.settings)
        elif self.name == ATLA.name:
            regularizer = ATLA(**self.settings).team_regularizer()
        return self._ramped(regularizer, env_steps)

    def atla(self, *, env_steps: int) -> ATLA | None:
        """The settings of ATLA for a run of `env_steps`, its ramp written as a schedule; else None."""
        return self._ramped(ATLA(**self.settings), env_steps) if self.name == ATLA.name else None

    def rollouts(self, *, env_steps: int) -> RolloutAttack | None:
        """The attack of adversarial training in a run of `env_steps`, its ramp written as a schedule."""
        named = self.name == RolloutAttack.name
        return self._ramped(RolloutAttack(**self.settings), env_steps) if named else None

    def _ramped(self, method: _Method, env_steps: int) -> _Method:
        return method if method is None else _ramped(method, self.ramp, env_steps)


class RolloutsConfig(Section, extra="allow"):
    """The attack that rollouts are played under, beside any method; its settings stand beside this one.

    They are those of the method `adversarial_training`, which is this and nothing else.

    Attributes:
        ramp: fractions of the run between which ε rises from 0, or `none`: its value from the start.
        teams: teams whose agents are attacked; None: those that the method is for, with method none all.
    """

    ramp: Ramp = (0.1, 0.4)
    teams: tuple[str, ...] | None = None

    @model_validator(mode="before")
    @classmethod
    def _resolve(cls, data: Any) -> Any:
        """Every setting of the attack, checked, defaults written out."""
        if not isinstance(data, Mapping):
            raise ValueError(f"expected a mapping such as {{share: 1, epsilon: 0.1}}, got {data!r}")
        given = {str(key): value for key, value in data.items()}
        own = {name: given.pop(name) for name in cls.model_fields if name in given}
        if own.get("teams") is not None:
            own["teams"] = _names_of(own["teams"])
        return own | _written_out(RolloutAttack.name, given)

    @model_validator(mode="after")
    def _ordered(self) -> RolloutsConfig:
        _check_ramp(self.ramp)
        return self

    def attack(self, *, env_steps: int) -> RolloutAttack:
        """The attack in a run of `env_steps`, its ramp written as a schedule."""
        return _ramped(RolloutAttack(**(self.model_extra or {})), self.ramp, env_steps)


_Ramped = TypeVar("_Ramped", ATLA, RolloutAttack, Regularizer)


def _ramped(method: _Ramped, ramp: Ramp, env_steps: int) -> _Ramped:
    return method if ramp is None else method.ramped(ramp[0] * env_steps, ramp[1] * env_steps)


def _check_ramp(ramp: Ramp) -> None:
    if ramp is not None and ramp[0] >= ramp[1]:
        raise ValueError(f"expected a ramp [a, b] with a < b, got {list(ramp)}")


def _written_out(name: str, settings: dict[str, Any]) -> dict[str, Any]:
    if (cls := {ATLA.name: ATLA, RolloutAttack.name: RolloutAttack}.get(name)) is not None:
        check_settings(name, cls, settings)
        return asdict(made(cls, settings))
    regularizer = make_regularizer(name, **settings)
    return {key: value for key, value in settings_of(regularizer).items() if key != "name"}


def method_label(method: Mapping[str, Any]) -> str:
    """The label of a method's settings as a file has them; see `MethodConfig.label`."""
    name, teams = str(method["name"]), method.get("teams")
    if isinstance(teams, Mapping):
        return ", ".join(f"{each['name']} for {team}" for team, each in teams.items())
    return f"{name} for {' and '.join(teams)}" if teams else name


def _per_team(teams: Mapping[Any, Any], beside: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a method that says what the method of each team is."""
    if extra := sorted(k for k, v in beside.items() if v is not None and (k, v) != ("name", PER_TEAM)):
        raise ValueError(
            f"expected nothing beside teams that says the method of each, got {', '.join(extra)}; move it to "
            "the teams that it is for, or list these: teams: [adversary]"
        )
    methods: dict[str, MethodConfig] = {}
    for team, given in teams.items():
        try:
            methods[agent_name(team)] = method = MethodConfig.model_validate(given)
        except ValidationError as error:
            problem = error.errors()[0]
            key = ".".join(map(str, ("teams", team, *problem["loc"])))
            raise ValueError(f"{key}: {problem['msg'].removeprefix('Value error, ')}") from None
        if method.teams is not None:
            raise ValueError(f"expected no teams within the method of team {team!r}, got {method.teams!r}")
    if all(method.name == NO_METHOD for method in methods.values()):
        raise ValueError("expected a method for at least one of the teams, got none; set method none")
    return {"name": PER_TEAM, "ramp": None, "teams": methods}


def _names_of(teams: Any) -> tuple[str, ...]:
    """The names of teams as a list or a single one."""
    listed = [teams] if isinstance(teams, str) else teams
    if not isinstance(listed, Sequence) or not listed:
        raise ValueError(f"expected teams such as [adversary], or none for all, got {teams!r}")
    return tuple(map(agent_name, listed))
