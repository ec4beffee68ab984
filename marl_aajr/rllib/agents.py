"""Which module plays for which agent."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any


def module_of_agents(
    agents: Iterable[str], mapping: Mapping[str, str] | Callable[..., str]
) -> dict[str, str]:
    """The module of each agent, for good.

    Args:
        agents: all of them.
        mapping: RLlib's ``policy_mapping_fn``, or agent -> module.

    Raises:
        ValueError: a function that needs to know the episode, or a mapping without an agent.
    """
    if isinstance(mapping, Mapping):
        if missing := [agent for agent in agents if agent not in mapping]:
            raise ValueError(f"expected a module for each agent, got none for {', '.join(missing)}")
        return {agent: mapping[agent] for agent in agents}
    try:
        return {agent: _ask(mapping, agent) for agent in agents}
    except Exception as error:
        raise ValueError(
            "expected a policy_mapping_fn that maps each agent to one module whatever the episode, got one "
            f"that raised {type(error).__name__} ({error}) when it was called without an episode; use "
            "RLlib's env runner for agents that change modules"
        ) from error


def _ask(mapping: Callable[..., Any], agent: str) -> str:
    return str(mapping(agent, None))
