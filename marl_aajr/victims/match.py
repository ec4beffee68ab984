"""Whether a victim and an environment belong together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from gymnasium import spaces

from marl_aajr.victims.victim import Victim


class HasAgents(Protocol):
    """Agents and their spaces: a `BatchedEnv`, a `Game`."""

    @property
    def possible_agents(self) -> Sequence[str]: ...

    @property
    def observation_spaces(self) -> Mapping[str, spaces.Space[Any]]: ...

    @property
    def action_spaces(self) -> Mapping[str, spaces.Space[Any]]: ...


def check_victim(victim: Any, *, what: str = "a victim") -> None:
    """Raise `ValueError` unless it is a `Victim`: a network alone does not say who plays what with it."""
    if not isinstance(victim, Victim):
        raise ValueError(
            f"expected {what}, got a {type(victim).__name__}; make one with Victim.from_policies(network, "
            "env) or Victim.load(folder)"
        )


def check_match(
    victim: Victim, env: HasAgents, *, agents: Sequence[str] | None = None, what: str = "a victim"
) -> None:
    """Raise `ValueError` unless the victim can play these agents of the environment; None: all."""
    check_victim(victim, what=what)
    agents = env.possible_agents if agents is None else agents
    for agent in agents:
        if agent not in victim.module_of:
            raise ValueError(
                f"expected {what} that plays {', '.join(agents)}, got one for "
                f"{', '.join(victim.agents)}; evaluate it on the environment that it was trained on"
            )
        for kind, has, needs in (
            ("observations", victim.observation_spaces[agent], env.observation_spaces[agent]),
            ("actions", victim.action_spaces[agent], env.action_spaces[agent]),
        ):
            if not _fits(has, needs):
                raise ValueError(
                    f"expected {what} for the {kind} {needs} of {agent!r}, got one for {has}; evaluate it "
                    "with the environment arguments that it was trained with"
                )


def _fits(has: spaces.Space[Any], needs: spaces.Space[Any]) -> bool:
    # Bounds of observations may differ with the arguments; nothing depends on them.
    if isinstance(has, spaces.Box) and isinstance(needs, spaces.Box):
        same_bounds = np.array_equal(has.low, needs.low) and np.array_equal(has.high, needs.high)
        return has.shape == needs.shape and has.dtype == needs.dtype and same_bounds
    return has == needs
