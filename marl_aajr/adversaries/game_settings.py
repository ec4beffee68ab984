"""The settings of a game of adversaries, from which it is built anywhere, and found by name."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Self

import torch

from marl_aajr.adversaries.victim_game import VictimGame
from marl_aajr.core.checks import one_of
from marl_aajr.core.environment_values import agent_names
from marl_aajr.envs.single_copy import SingleCopy, declare
from marl_aajr.rollout.batched_env import BatchedEnv
from marl_aajr.rollout.environments import make_batch, resolve
from marl_aajr.training.run_directory import RunDirectory
from marl_aajr.victims import Victim, fingerprint
from marl_aajr.victims.portable import DESCRIPTION


@dataclass(frozen=True, kw_only=True)
class Threat(ABC):
    """The settings of a game of adversaries, which build it anywhere. All values are JSON.

    Attributes:
        env: the victims' environment by name.
        env_kwargs: and its arguments.
        victim: folder of the victims.
        digest: their `marl_aajr.victims.fingerprint`; others in the folder are refused.
        kind: what the adversaries do.
        agents: the agents that they attack, or whose place they take; None: all that may be.
        actions: whether the victims take their most likely actions or sample them.
    """

    env: str
    victim: str
    digest: str
    kind: str
    env_kwargs: Mapping[str, Any] = field(default_factory=dict)
    agents: Sequence[str] | None = None
    actions: Literal["greedy", "sampled"] = "greedy"

    def __post_init__(self) -> None:
        one_of("actions", self.actions, ("greedy", "sampled"))
        if self.agents is not None:
            object.__setattr__(self, "agents", list(agent_names(self.agents)))

    @classmethod
    def against(cls, victims: Path, **settings: Any) -> Self:
        """The threat to victims in a folder: that of their run, or of a saved victim."""
        folder = victim_folder(victims)
        victim = Victim.load(folder)
        return cls(
            env=victim.env_name,
            env_kwargs=dict(victim.env_kwargs),
            victim=str(folder.resolve()),
            digest=fingerprint(victim),
            **settings,
        )

    @abstractmethod
    def build(self, num_envs: int, *, device: torch.device | str = "cpu") -> VictimGame:
        """E copies of the game."""

    @property
    def arguments(self) -> dict[str, Any]:
        """The arguments that differ from their defaults: they build an equal value."""
        given = {f.name: (getattr(self, f.name), f.default) for f in fields(self)}
        return {name: value for name, (value, default) in given.items() if value not in (default, {})}

    @property
    def sampled(self) -> bool:
        """Whether the victims sample their actions."""
        return self.actions == "sampled"

    @cached_property
    def frozen(self) -> Victim:
        """The victims.

        Raises:
            ValueError: they are not in their folder, or others are.
        """
        victim = Victim.load(self.victim)
        if (found := fingerprint(victim)) != self.digest:
            raise ValueError(
                f"expected the victims {self.digest[:12]} in {self.victim}, got others ({found[:12]}): they "
                "have been trained anew or replaced; train the adversary again, or put the old ones back"
            )
        return victim

    def copies(self, num_envs: int, *, device: torch.device | str) -> BatchedEnv:
        """E copies of the victims' environment."""
        return make_batch(resolve(self.env, self.env_kwargs), num_envs, device=device, flat=True)


def factories(threat: type[Threat]) -> tuple[Callable[..., VictimGame], Callable[..., SingleCopy]]:
    """The functions that make a game an environment: of E copies, and of one for PettingZoo."""

    def batched_env(num_envs: int, *, device: torch.device | str = "cpu", **settings: Any) -> VictimGame:
        return threat(**settings).build(num_envs, device=device)

    def parallel_env(**settings: Any) -> SingleCopy:
        return SingleCopy(threat(**settings).build(1), name=f"{settings['kind']}_v0")

    declare(batched_env, threat)
    declare(parallel_env, threat)
    return batched_env, parallel_env


def victim_folder(victims: Path) -> Path:
    """The folder of a run's victims; of a folder that holds victims, itself."""
    return victims if (victims / DESCRIPTION).is_file() else RunDirectory(victims).victim
