"""The noise that a victim votes under, as a value and as text (`marl_aajr.victims.smoothing`)."""

from __future__ import annotations

from dataclasses import dataclass
from math import isfinite
from typing import Annotated, Any

from pydantic import BeforeValidator

from marl_aajr.core.checks import whole
from marl_aajr.core.threat import PerturbationSet


@dataclass(frozen=True)
class Smoothing:
    """The noise under which a victim votes.

    Attributes:
        sigma: σ > 0, standard deviation of the noise, in the units of the environment (times `scale`).
        samples: n ≥ 1, votes for each decision, each of which is a pass through the network.
        mask: per feature of an observation, whether it has noise; None: all have. Perturbations of the others
            are not covered by a certificate.
        scale: per feature, the size > 0 of one unit of σ; None: 1.

    Example:
        >>> Smoothing(0.1, 100) == as_smoothing("0.1:100")
    """

    sigma: float
    samples: int
    mask: tuple[bool, ...] | None = None
    scale: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        if isinstance(self.sigma, bool) or not (isfinite(self.sigma) and self.sigma > 0):
            raise ValueError(f"expected sigma > 0 of the noise, got {self.sigma!r}; smooth, or do not")
        whole("samples", self.samples)
        for name, kind in (("mask", bool), ("scale", float)):
            if (value := getattr(self, name)) is not None:
                object.__setattr__(self, name, tuple(map(kind, value)))
        self.noise()

    def __str__(self) -> str:
        limits = ((name, getattr(self, name)) for name in ("mask", "scale"))
        more = [f"{name}={'+'.join(map(_digits, values))}" for name, values in limits if values]
        return ",".join([f"{_digits(self.sigma)}:{self.samples}", *more])

    def noise(self) -> PerturbationSet:
        """The set whose half axes are the standard deviations of the noise."""
        return PerturbationSet(epsilon=self.sigma, norm="l2", mask=self.mask, scale=self.scale)


def _digits(value: float) -> str:
    return f"{value:.15g}".replace("e+", "e")


def as_smoothing(value: Any) -> Any:
    """A smoothing from its text, `0.1:100` or `0.1:100,mask=1+1+0,scale=1+2+1`; everything else as it is.

    Raises:
        ValueError: another text.
    """
    if not isinstance(value, str):
        return value
    noise, *limits = value.split(",")
    sigma, _, samples = noise.partition(":")
    try:
        more: Any = {k: map(float, v.split("+")) for k, v in (limit.split("=") for limit in limits)}
        return Smoothing(float(sigma), int(samples), **more)
    except (TypeError, ValueError) as error:
        if str(error).startswith("expected"):
            raise
        raise ValueError(
            f"expected smoothing as SIGMA:SAMPLES, such as 0.1:100, got {value!r}; limits stand behind it: "
            "0.1:100,mask=1+1+0,scale=1+2+1"
        ) from None


ReadSmoothing = Annotated[Smoothing, BeforeValidator(as_smoothing)]
"""A field of a pydantic model: a smoothing or its text."""
