"""The attacks of a protocol as they are asked for: names with settings, or values, and their sizes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import AfterValidator, Field, InstanceOf, model_validator

from marl_aajr.attacks import Attack, attack_class, make_attack
from marl_aajr.core.threat import SetNorm
from marl_aajr.training.fields import Positive, Section, validated


class AttackEntry(Section):
    """One attack of a protocol: a name with settings, or a value.

    It is read from a name, from `{attack: NAME, setting: value}`, from an `Attack`, or from a pair of one of
    these and a size.

    Attributes:
        attack: a name of `marl-aajr list attacks`, or an `Attack`, whose size is replaced.
        settings: settings of the attack of a name.
        epsilon: its size; None: every size of the protocol.
    """

    attack: str | InstanceOf[Attack]
    settings: dict[str, Any] = Field(default_factory=dict)
    epsilon: Positive | None = None

    @model_validator(mode="before")
    @classmethod
    def _read(cls, value: Any) -> Any:
        return _attack_fields(value)

    @model_validator(mode="after")
    def _exists(self) -> AttackEntry:
        if isinstance(self.attack, str):
            attack_class(self.attack)
            self.at(1.0)
        if self.epsilon is not None and not self.sized:
            raise ValueError(f"expected no epsilon for {self.name}, which has no size, got {self.epsilon:g}")
        return self

    @property
    def name(self) -> str:
        """The name of the attack."""
        return self.attack if isinstance(self.attack, str) else self.attack.name

    @property
    def sized(self) -> bool:
        """Whether the attack has an ε."""
        return (attack_class(self.attack) if isinstance(self.attack, str) else self.attack).sized

    def at(self, epsilon: float, *, norm: SetNorm = "linf") -> Attack:
        """The attack with a size, if it has any; that of a name with a norm unless its settings have one.

        An attack that is not defined in this norm has its own.
        """
        if isinstance(self.attack, Attack):
            return self.attack.at(epsilon)
        if not self.sized:
            return make_attack(self.attack, **self.settings)
        known = attack_class(self.attack).norms
        given = {"norm": norm if norm in known else known[0], **self.settings}
        return make_attack(self.attack, epsilon=epsilon, **given)


def _attack_fields(value: Any) -> Any:
    """The fields of an `AttackEntry` in what may be given for one."""
    if isinstance(value, str | Attack):
        return {"attack": value}
    if isinstance(value, tuple | list) and len(value) == 2:
        inner = _attack_fields(value[0])
        return {**inner, "epsilon": value[1]} if isinstance(inner, Mapping) else value
    if isinstance(value, Mapping) and "attack" in value and "settings" not in value:
        own = {key: each for key, each in value.items() if key in ("attack", "epsilon")}
        return {**own, "settings": {key: value[key] for key in value if key not in own}}
    return value


def _different(entries: tuple[AttackEntry, ...]) -> tuple[AttackEntry, ...]:
    for place, entry in enumerate(entries):
        if entry in entries[:place]:
            size = "" if entry.epsilon is None else f" at {entry.epsilon:g}"
            raise ValueError(
                f"expected each attack once, got {entry.name}{size} twice; give it other settings"
            )
    return entries


Attacks = Annotated[tuple[AttackEntry, ...], AfterValidator(_different)]


class _Asked(Section):
    attacks: Attacks


def sizes_are_needed(attacks: Any) -> bool:
    """Whether one of the attacks, as a protocol takes them, has an ε that does not stand with it.

    Raises:
        ValueError: an unknown attack, or settings that it has not.
    """
    entries = validated(_Asked, {"attacks": attacks}).attacks
    return any(entry.sized and entry.epsilon is None for entry in entries)
