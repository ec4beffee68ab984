"""One entry of a study's pool: opponents that every team meets, and that no team has trained with."""

from __future__ import annotations

from typing import Annotated, Any, get_args

from pydantic import AfterValidator, Field, model_validator

from marl_aajr.adversaries.request import AdversaryRequest
from marl_aajr.evaluation.outcomes import Control
from marl_aajr.training.fields import Section, Whole, once


class OpponentEntry(Section):
    """Members of the pool; exactly one of `method`, `victim` and `control` is given.

    It is read from a mapping, or from `random`, `idle` or a folder alone.

    Attributes:
        method: runs to train for the pool: of a method of the study by its label or name, of all that match a
            pattern such as `*`, or of any other method by its name.
        seeds: seeds of those runs, which the study's own runs do not have.
        adversary: an opponent to train against the judged team of each of those runs, which plays instead.
        victim: folder of a finished run, an opponent or a saved victim, as seen from the study's file.
        control: an opponent that needs no training.
    """

    method: str | None = Field(default=None, min_length=1)
    seeds: Annotated[tuple[Whole, ...], AfterValidator(once)] = ()
    adversary: AdversaryRequest | None = None
    victim: str | None = Field(default=None, min_length=1)
    control: Control | None = None

    @model_validator(mode="before")
    @classmethod
    def _alone(cls, value: Any) -> Any:
        if isinstance(value, str):
            return {"control" if value in get_args(Control) else "victim": value}
        return value

    @model_validator(mode="after")
    def _one_kind(self) -> OpponentEntry:
        given = [name for name in ("method", "victim", "control") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(
                f"expected one of method, victim and control, got {', '.join(given) or 'none'}; give one"
            )
        if (self.method is None) != (not self.seeds):
            raise ValueError("expected seeds beside a method, and only there; {method: none, seeds: [100]}")
        if self.adversary is not None and (self.method is None or self.adversary.kind != "opponent"):
            raise ValueError(
                "expected an adversary of kind opponent, beside the method of the runs that it is trained "
                f"against, got kind {self.adversary.kind} beside {given[0]}"
            )
        return self
