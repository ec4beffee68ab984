"""Evaluations with made-up numbers, in the form of `evaluate`'s files."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

ENV = {"name": "mpe2.simple_spread_v3", "kwargs": {}}
ATTACKS: Mapping[tuple[str, float], float] = {
    ("noise", 0.1): -1.0,
    ("noise", 0.2): -3.0,
    ("pgd", 0.1): -8.0,
    ("pgd", 0.2): -20.0,
}
"""(attack, ε) -> what it takes from the clean return."""


def evaluation(
    clean: float = -40.0,
    *,
    attacks: Mapping[tuple[str, float], float] = ATTACKS,
    spread: float = 5.0,
    episodes: int = 20,
    seed: int = 0,
    teams: Sequence[str] = ("team",),
    nothing: float | None = None,
    **changes: Any,
) -> dict[str, Any]:
    """An evaluation whose means are exactly `clean` and `clean` + what each attack takes.

    The same team idle returns `nothing`; None: much less than it returns under any of the attacks.
    It is flat, so that a test can change a part of it; `evaluation_file` gives it the form of a file.
    """
    noise = np.random.default_rng(seed).normal(size=episodes)
    noise = spread * (noise - noise.mean())

    def outcome(mean: float) -> dict[str, Any]:
        half = 1.96 * float(noise.std()) / episodes**0.5
        return {
            "mean": mean,
            "low": mean - half,
            "high": mean + half,
            "returns": [float(x) for x in mean + noise],
            "team_returns": {team: mean * (1 - 2 * i) for i, team in enumerate(teams)},
        }

    members = [f"agent_{i}" for i, team in enumerate(teams) if team == teams[0]]
    idle = clean + 2 * min(attacks.values(), default=0.0) - 40.0 if nothing is None else nothing
    return {
        "env": ENV,
        "teams": {f"agent_{i}": team for i, team in enumerate(teams)},
        "team": teams[0],
        "agents": ["agent_0"],
        "units": "raw",
        "num_envs": 50,
        "seed": seed,
        "episodes": episodes,
        "actions": "greedy",
        "clean": outcome(clean),
        "attacks": [
            {
                "attack": attack,
                "settings": {"steps": 10},
                "epsilon": epsilon,
                **outcome(clean + loss),
                "success_rate": 0.4,
                "objective_gain": 0.3,
                "kl": 0.2,
            }
            for (attack, epsilon), loss in attacks.items()
        ],
        "adversarial_agents": [{**outcome(idle), "kind": "idle", "agents": members, "loyal_return": 0.0}],
        "worst": [chosen(clean, attacks, epsilon) for epsilon in dict.fromkeys(e for _, e in attacks)],
        **changes,
    }


def against(opponent: str, clean: float, **changes: Any) -> dict[str, Any]:
    """The rows against an opponent, for `evaluation(opponents=[...])`."""
    rows = evaluation(clean, **changes)
    kept = ("agents", "clean", "attacks", "worst", "clean_selection", "adversarial_agents")
    own = {name: rows[name] for name in rows if name in kept}
    return {**own, "opponent": opponent, "kind": "stranger"}


def chosen(clean: float, attacks: Mapping[tuple[str, float], float], epsilon: float) -> dict[str, Any]:
    """The attack of a size that took most on the selection episodes: here, the same as on the reported."""
    loss, attack = min((loss, attack) for (attack, e), loss in attacks.items() if e == epsilon)
    return {
        "attack": attack,
        "settings": {"steps": 10},
        "epsilon": epsilon,
        "selection_return": clean + loss,
    }


def evaluation_file(content: Mapping[str, Any]) -> str:
    """An evaluation in the form that `evaluate` writes."""
    others = [_actions_result({**content, **other}) for other in content.get("others", ())]
    rest = {key: value for key, value in content.items() if key not in (*_OF_ACTIONS, "others")}
    return json.dumps({**rest, "results": [_actions_result(content), *others]})


_OF_ACTIONS = (
    "actions",
    "clean",
    "attacks",
    "training_attack",
    "worst",
    "adversarial_agents",
    "subsets",
    "clean_selection",
    "opponents",
    "threats",
)


def _actions_result(content: Mapping[str, Any]) -> dict[str, Any]:
    found = {key: content[key] for key in _OF_ACTIONS if key in content}
    agents = content["agents"]
    found["attacks"] = [_attacked(row, agents) for row in content["attacks"]]
    if "training_attack" in content:
        found["training_attack"] = _attacked(content["training_attack"], agents)
    found["worst"] = [_worst(row, agents) for row in content["worst"]]
    found["subsets"] = [_subset(row) for row in content.get("subsets", ())]
    found["opponents"] = [_met(rows) for rows in content.get("opponents", ())]
    return found


def _met(rows: Mapping[str, Any]) -> dict[str, Any]:
    attacked = [_attacked(row, rows["agents"]) for row in rows["attacks"]]
    worst = [_worst(row, rows["agents"]) for row in rows["worst"]]
    return {**rows, "attacks": attacked, "worst": worst, "agents": ["other"]}


def _spec(row: Mapping[str, Any]) -> dict[str, Any]:
    """The attack of a row, as an object."""
    access = row.get("access", "gradients")
    named = {"name": row["attack"], "access": access, "norm": "linf", "source": row.get("source", "")}
    return {**named, "epsilon": row["epsilon"], "settings": row.get("settings", {})}


def _attacked(row: Mapping[str, Any], agents: Sequence[str]) -> dict[str, Any]:
    flat = ("attack", "access", "source", "epsilon", "settings", "agents")
    rest = {key: value for key, value in row.items() if key not in flat}
    return {
        **rest,
        "attack": _spec(row),
        "epsilons": dict.fromkeys(row.get("agents", agents), row["epsilon"]),
    }


def _worst(row: Mapping[str, Any], agents: Sequence[str]) -> dict[str, Any]:
    selected = row["selection_return"]
    reported = {"mean": selected, "low": None, "high": None, "selection_return": selected}
    return {"attack": _spec(row), "agents": row.get("agents", agents), **reported}


def _subset(row: Mapping[str, Any]) -> dict[str, Any]:
    returns = row.get("returns", [row.get("selection_return")])
    return {"agents": row["agents"], "attack": _spec(row), "returns": returns}
