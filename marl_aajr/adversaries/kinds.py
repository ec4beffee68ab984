"""The kinds of adversaries, and how long each is trained and how widely it is searched for by default.

What length and search give at ε = 0.1 against one plain PPO team on simple_spread (three agents, trained for
2.5 million steps; 300 held-out episodes, greedy actions; clean -27.1, pgd-strong -47.7), with the CPU seconds
of the adversary's training:

    steps        search    pa-ad           sa-rl
      300,000    1                         -35.5 (21 s)
      400,000    1         -42.2 (46 s)
      500,000    3         -41.7 (48 s)
    1,000,000    1         -43.7 (90 s)    -35.5 (53 s)
    1,000,000    3         -43.8 (90 s)    -35.5 (52 s)

PA-AD gains by its length; the search gains what it costs, and is there for games that want other settings.
SA-RL stays where its warm start puts it, however long it learns: noise in 18 features moves a policy so
little that PPO learns next to nothing from it (a dozen settings tried, none better by more than 1). From
random weights it stays near the clean return.

Best responses to the pursuers of simple_tag (plain PPO, 1.2 million steps; 100 held-out episodes, 62 against
their own prey) leave them 6 with 800,000 steps (26 s) and 5 with 2,400,000; the curve is flat from about
500,000 steps on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

Kind = Literal["sa-rl", "pa-ad", "traitor", "opponent", "best-response"]
KINDS: tuple[Kind, ...] = get_args(Kind)
OBSERVERS: tuple[Kind, ...] = ("sa-rl", "pa-ad")
"""The kinds that change what others observe."""

STEPS_PER_SECOND = 8_000.0
"""Environment steps of an adversary's training on simple_spread, with the default networks on one core."""


@dataclass(frozen=True)
class KindDefaults:
    """What differs between the kinds of adversaries where nothing else is asked for.

    Attributes:
        env_steps: environment steps, the search included.
        search: settings of PPO that are tried.
        alternatives: those settings, the first ones first.
        seeds: seeds that each of them is tried with.
        ppo: what differs from the defaults of `marl_aajr.training.config.PPOSettings`.
        model: what differs from the defaults of `marl_aajr.training.config.ModelConfig`.
    """

    env_steps: int
    search: int
    alternatives: Sequence[Mapping[str, Any]]
    ppo: Mapping[str, Any] = field(default_factory=dict)
    model: Mapping[str, Any] = field(default_factory=dict)
    seeds: int = 1


_SETTINGS: Sequence[Mapping[str, Any]] = ({}, {"gamma": 0.99}, {"lr": 3e-4}, {"entropy_coeff": 0.0})
_AGENTS = KindDefaults(400_000, 1, _SETTINGS)

DEFAULTS: Mapping[Kind, KindDefaults] = {
    "sa-rl": KindDefaults(
        env_steps=300_000,
        search=3,
        alternatives=({}, {"lr": 3e-4}, {"gamma": 0.99}, {"lr": 3e-5}),
        ppo={"lr": 1e-4, "epochs": 5, "entropy_coeff": 0.0},
        model={"free_log_std": True},
    ),
    "pa-ad": KindDefaults(1_000_000, 3, ({}, {"gamma": 0.99}, {"entropy_coeff": 0.003}, {"lr": 3e-4})),
    "traitor": _AGENTS,
    "opponent": _AGENTS,
    "best-response": KindDefaults(800_000, 3, _SETTINGS, seeds=2),
}

SEARCH_SHARE = 0.1
"""Part of the environment steps that each setting is tried for, with all of its seeds together."""


def check_joint(joint: bool, channels: Sequence[str] | None) -> None:
    """Raise `ValueError` for a joint adversary on channels: its budget is shared before they are known."""
    if joint and channels is not None:
        raise ValueError(f"expected no channels for a joint adversary, got {', '.join(channels)}; drop one")
