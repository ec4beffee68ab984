"""Disturbances of actions: what becomes of an agent's action a on its way to the environment.

    replace=0.1      ā with probability α, else a                   PR-MDP
    mix=0.1          (1 − α) a + α ā, of Box actions                NR-MDP
    noise=0.1        a + ξ u, u uniform in [−1, 1]^k, of Box actions, clipped to their bounds
    gradient=0.1     the worst a + ξ u by a critic Q(s, a), in evaluations

ā is an adversary's action: uniform over the legal ones, or that of a trained one: `replace=0.1,by=RUN`. ξ is
a share of half the range of each component, or a number where it has no bounds. Chance is drawn for each
agent by itself in every step. `agents=agent_0+agent_1` disturbs these only.

Source: Tessler 2019 (arXiv 1901.09184): probabilistic and noisy action robust MDPs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from gymnasium import spaces
from torch import Tensor

from marl_aajr.core.checks import one_of, positive, proportion

DisturbanceKind = Literal["replace", "mix", "noise", "gradient"]
KINDS: tuple[DisturbanceKind, ...] = get_args(DisturbanceKind)
_FORM = "KIND=SIZE, such as replace=0.1 or noise=0.2,agents=agent_0+agent_1"


@dataclass(frozen=True, kw_only=True)
class Disturbance:
    """A disturbance of actions. A value: compare it, print it (`str` is what `parse_disturbance` reads).

    Attributes:
        kind: `replace`, `mix`, `noise` or `gradient`.
        size: α in [0, 1] of the first two, else ξ > 0.
        agents: whose actions; None: all who may be.
        by: folder of the adversary; empty: random actions.

    Raises:
        ValueError: an unknown kind, a size out of range, or an adversary of a kind that has none.
    """

    kind: DisturbanceKind
    size: float
    agents: tuple[str, ...] | None = None
    by: str = ""

    def __post_init__(self) -> None:
        one_of("a disturbance of actions", self.kind, KINDS)
        if self.has_adversary:
            proportion(f"α of {self.kind}", self.size)
        else:
            positive(f"size of {self.kind}", self.size)
        if self.by and not self.has_adversary:
            raise ValueError(f"expected no adversary for {self.kind}, which has none, got by={self.by}")

    def __str__(self) -> str:
        parts = [f"{self.kind}={self.size:.15g}"]
        parts += [] if self.agents is None else [f"agents={'+'.join(self.agents)}"]
        return ",".join([*parts, *([f"by={self.by}"] if self.by else [])])

    @property
    def has_adversary(self) -> bool:
        """Whether an adversary acts."""
        return self.kind in ("replace", "mix")

    def check(self, agent: str, space: spaces.Space[Any]) -> None:
        """Raise `ValueError` where the disturbance is not defined for an agent's actions."""
        box = isinstance(space, spaces.Box)
        if self.kind != "replace" and not box:
            raise ValueError(f"expected Box actions for {self.kind}, got {space} for {agent!r}; use replace")
        if self.has_adversary and not self.by and box and not space.is_bounded():
            raise ValueError(
                f"expected bounded actions to draw at random for {self.kind}, got {space} for {agent!r}; "
                "bound them in the environment, or name an adversary (by=RUN)"
            )

    def applied(self, space: spaces.Space[Any], own: Tensor, other: Tensor, chance: Tensor) -> Tensor:
        """The disturbed actions `[E, ...]`.

        Args:
            space: of the actions.
            own: the agent's, `[E, ...]`.
            other: ā, or u in [−1, 1], `[E, ...]`.
            chance: uniform in [0, 1), `[E]`.
        """
        if self.kind == "replace":
            replaced = (chance < self.size).view(-1, *(1,) * (own.ndim - 1))
            return torch.where(replaced, other.to(own.dtype), own)
        if self.kind == "mix":
            return (1 - self.size) * own + self.size * other.to(own.dtype)
        assert isinstance(space, spaces.Box)
        low, high = (torch.from_numpy(bound).to(own) for bound in (space.low, space.high))
        moved = own + self.size * half_range(space, own) * other.to(own.dtype)
        return torch.minimum(torch.maximum(moved, torch.minimum(low, own)), torch.maximum(high, own))


def half_range(space: spaces.Box, like: Tensor) -> Tensor:
    """Half the range of each component, 1 where it has none."""
    half = torch.from_numpy((space.high - space.low) / 2).to(like)
    return torch.where(half.isfinite(), half, 1.0)


def parse_disturbance(text: str) -> Disturbance:
    """A disturbance from its text; see the module.

    Raises:
        ValueError: another form, an unknown kind or key, or a size out of range.
    """
    found: dict[str, str] = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        key, equals, value = (word.strip() for word in part.partition("="))
        if not (equals and value) or key in found:
            raise ValueError(f"expected a disturbance {_FORM}, got {text!r}")
        found[key] = value
    if not found:
        raise ValueError(f"expected a disturbance {_FORM}, got {text!r}")
    kind = next(iter(found))
    one_of("a disturbance of actions", kind, KINDS)
    size = found.pop(kind)
    for key in found:
        one_of("a key of a disturbance", key, ("agents", "by"))
    try:
        number = float(size)
    except ValueError:
        raise ValueError(f"expected a number for {kind}, got {size!r}") from None
    agents = tuple(found["agents"].split("+")) if "agents" in found else None
    return Disturbance(kind=kind, size=number, agents=agents, by=found.get("by", ""))  # type: ignore[arg-type]


def read_disturbance(text: str) -> str:
    """The text, if it can be parsed."""
    return str(parse_disturbance(text))


def read_disturbances(texts: Sequence[str]) -> Sequence[str]:
    """The texts, if each can be parsed and is there once."""
    found = [parse_disturbance(text) for text in texts]
    for each in found:
        if found.count(each) > 1:
            raise ValueError(f"expected each disturbance once, got {each} twice; remove one")
    return texts
