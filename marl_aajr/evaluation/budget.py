"""The budget of an attack: the agents, the steps and the sizes ε that it may use.

    agents=2                          the worst two of the team, found on the selection episodes
    agents=agent_0+agent_2            these two
    steps=5                           five steps of each episode, at random times
    steps=5,timing=strategic          five steps, those where the agents care most what they do
    scale=agent_0:0.5+agent_1:2       ε of agent_0 is half of the row's, that of agent_1 twice

Without a key there is no limit: all agents of the team, every step, the same ε for everybody.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from math import comb, isfinite
from typing import Annotated, Any, Literal, get_args

from pydantic import BeforeValidator

from marl_aajr.core.checks import one_of, whole
from marl_aajr.core.environment_values import agent_names, named

Timing = Literal["random", "strategic"]

FEW_SUBSETS = 20
"""Up to so many subsets, all are tried; beyond, agents are added one after the other."""

_KEYS = ("agents", "steps", "timing", "scale")
_FORM = "KEY=VALUE,... such as agents=1 or steps=5,timing=strategic"


@dataclass(frozen=True, kw_only=True)
class Budget:
    """The budget of an attack. A value: compare it, print it (`str` is what `parse_budget` reads).

    Attributes:
        agents: k, for the worst k of the team, found and not guessed; names, for these; None: all of them.
        steps: m, at most so many steps of an episode; None: every step. A step counts once however many
            agents are attacked in it, and steps where no attacked agent has to act do not count.
        timing: when: `"random"`, or `"strategic"`, where the agents care most what they do (Lin 2017).
        scales: an agent's ε as a multiple of the row's, > 0, for the agents that differ; pass a mapping.

    Raises:
        ValueError: numbers out of range, names given twice, or a timing without steps.

    Example:
        >>> Budget(agents=1, steps=5, timing="strategic")
    """

    agents: int | tuple[str, ...] | None = None
    steps: int | None = None
    timing: Timing = "random"
    scales: Mapping[str, float] | tuple[tuple[str, float], ...] = ()

    def __post_init__(self) -> None:
        if isinstance(self.agents, Sequence) and not isinstance(self.agents, str):
            names = agent_names(self.agents)
            object.__setattr__(self, "agents", names)
            if not names or not all(names):
                raise ValueError(f"expected names of agents in the budget, got {list(names)}")
            if len(set(names)) < len(names):
                raise ValueError(f"expected each agent once in the budget, got {', '.join(names)}")
        elif self.agents is not None:
            whole("number of agents in the budget", self.agents)
        if self.steps is not None:
            whole("number of steps in the budget", self.steps)
        one_of("timing", self.timing, get_args(Timing))
        if self.steps is None and self.timing != "random":
            raise ValueError(f"expected steps with timing={self.timing}, got none; say how many: steps=5")
        scales = named(dict(self.scales))
        object.__setattr__(self, "scales", tuple(scales.items()))
        for agent, scale in scales.items():
            if not (isinstance(scale, int | float) and isfinite(scale) and scale > 0):
                raise ValueError(
                    f"expected a finite scale > 0 of epsilon for {agent!r}, got {scale!r}; to leave an agent "
                    "out, name the others in agents"
                )

    def __str__(self) -> str:
        parts = []
        if self.agents is not None:
            parts.append(f"agents={self.agents if self.named is None else '+'.join(self.named)}")
        if self.steps is not None:
            parts.append(f"steps={self.steps},timing={self.timing}")
        if self.scales:
            parts.append("scale=" + "+".join(f"{agent}:{scale:g}" for agent, scale in self.scale_of.items()))
        return ",".join(parts)

    @property
    def scale_of(self) -> dict[str, float]:
        """By agent: its ε as a multiple of the row's; absent: 1."""
        return dict(self.scales)

    @property
    def named(self) -> tuple[str, ...] | None:
        """The agents that are named; None where they are counted, or all."""
        return self.agents if isinstance(self.agents, tuple) else None

    @property
    def worst(self) -> int | None:
        """k, where the worst k agents are to be found; else None."""
        return self.agents if isinstance(self.agents, int) else None

    def check(self, members: Sequence[str]) -> None:
        """Raise `ValueError` unless these agents can be attacked within it."""
        if self.worst is not None and self.worst > len(members):
            raise ValueError(
                f"expected at most {len(members)} agents in the budget ({', '.join(members)} can be "
                f"attacked), got agents={self.worst}"
            )
        for agent in self.scale_of:
            one_of("an agent in scale", agent, members)


def parse_budget(text: str) -> Budget:
    """A budget from its text; see the module.

    Raises:
        ValueError: another form, an unknown or repeated key, or a value out of range.
    """
    found: dict[str, str] = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        key, equals, value = (word.strip() for word in part.partition("="))
        if not (equals and value):
            raise ValueError(f"expected a budget {_FORM}, got {part!r}")
        one_of("a key of the budget", key, _KEYS)
        if key in found:
            raise ValueError(f"expected {key} once in the budget, got {text!r}; join names with +")
        found[key] = value
    if not found:
        raise ValueError(f"expected a budget {_FORM}, got {text!r}")
    steps = found.get("steps")
    if steps is not None and not _integer(steps):
        raise ValueError(f"expected an integer for steps in the budget, got {steps!r}")
    if "timing" in found and steps is None:
        raise ValueError(f"expected steps with timing={found['timing']}, got none; say how many: steps=5")
    return Budget(
        agents=_agents(found["agents"]) if "agents" in found else None,
        steps=None if steps is None else int(steps),
        timing=found.get("timing", "random"),  # type: ignore[arg-type]  # the class checks it
        scales=_scales(found["scale"]) if "scale" in found else (),
    )


def as_budget(budget: Any) -> Any:
    """A budget from its text, of which the empty one limits nothing; everything else as it is."""
    if not isinstance(budget, str):
        return budget
    return parse_budget(budget) if budget else Budget()


ReadBudget = Annotated[Budget, BeforeValidator(as_budget)]
"""A field of a pydantic model: a budget or its text."""


def rounds(agents: Sequence[str], k: int) -> int:
    """The number of rounds of `candidates` that choosing k of n agents takes."""
    return 1 if comb(len(agents), k) <= FEW_SUBSETS else k


def candidates(agents: Sequence[str], k: int, chosen: tuple[str, ...]) -> list[tuple[str, ...]]:
    """The subsets to try next in the search for the worst k of n agents.

    Up to `FEW_SUBSETS` subsets all are tried at once. Beyond, the search is greedy: the agents `chosen` so
    far, none in the first round, and each of the others, k times. Greedy finds no pair that does harm only
    together, so what it finds is at most as bad as the worst.
    """
    if rounds(agents, k) == 1:
        return list(combinations(agents, k))
    return [tuple(a for a in agents if a in chosen or a == new) for new in agents if new not in chosen]


def trials(agents: Sequence[str], k: int) -> int:
    """The number of subsets that the search tries in all."""
    n = len(agents)
    return comb(n, k) if rounds(agents, k) == 1 else sum(n - i for i in range(k))


def _integer(text: str) -> bool:
    return text.lstrip("-").isdigit()


def named_agents(agents: Collection[str] | None, budget: Budget) -> Collection[str] | None:
    """The agents under attack, if they were named in the budget or beside it; `ValueError`: in both."""
    if agents is not None and budget.named is not None:
        raise ValueError(
            f"expected agents named once, got {', '.join(agents)} and agents={'+'.join(budget.named)} in the "
            "budget; drop one"
        )
    return budget.named if agents is None else agents


def _agents(text: str) -> int | tuple[str, ...]:
    return int(text) if _integer(text) else tuple(name.strip() for name in text.split("+"))


def _scales(text: str) -> tuple[tuple[str, float], ...]:
    found: dict[str, float] = {}
    for part in text.split("+"):
        agent, colon, number = (word.strip() for word in part.rpartition(":"))
        try:
            scale = float(number)
        except ValueError:
            colon = ""
        if not (colon and agent) or agent in found:
            raise ValueError(
                f"expected AGENT:FACTOR+AGENT:FACTOR for scale in the budget, each agent once, got {text!r}"
            )
        found[agent] = scale
    return tuple(found.items())
