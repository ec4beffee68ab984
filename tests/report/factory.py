"""Write run directories as training and evaluation leave them, with made-up numbers."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from marl_aajr.report import Comparison, compare, load_run
from marl_aajr.report.estimates import Block, Cell

ENV = {"name": "mpe2.simple_spread_v3", "kwargs": {}}
ATTACKS: Mapping[tuple[str, float], float] = {
    ("noise", 0.1): -1.0,
    ("noise", 0.2): -3.0,
    ("pgd", 0.1): -8.0,
    ("pgd", 0.2): -20.0,
}
"""(attack, ε) -> what it takes from the clean return."""


def config(
    method: str = "none",
    *,
    settings: Mapping[str, Any] | None = None,
    seed: int = 0,
    env_steps: int = 100_000,
    **changes: Any,
) -> dict[str, Any]:
    """A resolved configuration; `changes` replace top-level keys."""
    return {
        "env": ENV,
        "method": {"name": method, **(settings or {})},
        "seed": seed,
        "env_steps": env_steps,
        "policies": "shared",
        "model": {"hidden": [64, 64], "activation": "tanh"},
        "ppo": {"lr": 3e-4, "gamma": 0.95, "entropy_coeff": 0.01, "minibatch_size": 512},
        "observation_filter": "none",
        "resources": {"env_runners": 0, "envs_per_runner": 8, "learners": 0},
        "checkpoint_every": 10,
        **changes,
    }


def evaluation(
    clean: float = -40.0,
    *,
    attacks: Mapping[tuple[str, float], float] = ATTACKS,
    spread: float = 5.0,
    episodes: int = 20,
    seed: int = 0,
    teams: Sequence[str] = ("team",),
    **changes: Any,
) -> dict[str, Any]:
    """An evaluation whose means are exactly `clean` and `clean` + what each attack takes.

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
        "worst": [chosen(clean, attacks, epsilon) for epsilon in dict.fromkeys(e for _, e in attacks)],
        **changes,
    }


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
    "worst",
    "adversarial_agents",
    "subsets",
    "clean_selection",
)


def _actions_result(content: Mapping[str, Any]) -> dict[str, Any]:
    found = {key: content[key] for key in _OF_ACTIONS if key in content}
    agents = content["agents"]
    found["attacks"] = [_attacked(row, agents) for row in content["attacks"]]
    found["worst"] = [_worst(row, agents) for row in content["worst"]]
    found["subsets"] = [_subset(row) for row in content.get("subsets", ())]
    return found


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


def metrics(
    *,
    regularised: bool,
    seed: int = 0,
    env_steps: int = 100_000,
    iterations: int = 40,
    final: float = -40.0,
    modules: Sequence[str] = ("shared",),
    teams: Sequence[str] = ("team",),
) -> list[dict[str, Any]]:
    """Lines of a training that learns from −80 to `final`; no episode ends in the first two."""
    draw = np.random.default_rng(seed)
    lines = []
    for i in range(1, iterations + 1):
        t = i / iterations
        value = final - (80 + final) * np.exp(-4 * t) + draw.normal(scale=1.5)
        known = None if i <= 2 else float(value)
        own: dict[str, float] = {"policy_loss": -0.01, "vf_loss": 2.0, "entropy": 1.5 - t}
        if regularised:
            own |= {
                "aajr/penalty": float(30 * np.exp(-5 * t) + draw.uniform(0.02, 0.05)),
                "aajr/loss_share": float(0.2 * t + 0.02 * draw.normal()),
                "aajr/gain_mean": float(5 * np.exp(-2 * t) + 0.1 * draw.normal()),
                "aajr/gain_max": float(20 * np.exp(-2 * t) + draw.normal()),
                "aajr/objective_gain": float(0.3 * np.exp(-t)),
                "aajr/monotone_fraction": float(0.9 + 0.05 * draw.normal()),
                "aajr/no_direction_fraction": 0.0,
                "aajr/nonfinite": 0,
                "aajr/seconds": float(0.9 + 0.05 * draw.normal()),
            }
        lines.append(
            {
                "iteration": i,
                "env_steps": env_steps * i // iterations,
                "seconds": 3.0 * i,
                "return_mean": known,
                "team_returns": dict.fromkeys(teams, known),
                "episode_length": 25.0,
                "env_steps_per_second": 1500.0,
                "modules": dict.fromkeys(modules, own),
            }
        )
    return lines


def write_run(
    folder: Path,
    *,
    configuration: Mapping[str, Any] | None = None,
    evaluations: Mapping[str, Mapping[str, Any]] | None = None,
    lines: Sequence[Mapping[str, Any]] | None = None,
    status: Mapping[str, Any] | None = None,
    packages: Mapping[str, str] | None = None,
) -> Path:
    """Write RUN and return its path; everything that is not given is a sound default."""
    conf = config() if configuration is None else configuration
    if lines is None:
        lines = metrics(
            regularised=conf["method"]["name"] != "none",
            seed=conf["seed"],
            env_steps=conf["env_steps"],
        )
    (folder / "evaluations").mkdir(parents=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(dict(conf), sort_keys=False))
    _json(
        folder / "versions.json",
        {
            "python": "3.11.9",
            "platform": "Linux-6.1-x86_64",
            "packages": packages or {"torch": "2.13.0", "ray": "2.60.0", "mpe2": "1.1.1"},
            "seed": conf["seed"],
        },
    )
    done = {"state": "finished", "iteration": len(lines), "env_steps": conf["env_steps"]}
    _json(folder / "status.json", {**done, "error": None, **(status or {})})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    if evaluations is None:
        evaluations = {"default": evaluation()}
    for name, content in evaluations.items():
        (folder / "evaluations" / f"{name}.json").write_text(evaluation_file(content))
    return folder


def write_method(
    root: Path,
    method: str,
    *,
    clean: Sequence[float],
    attacks: Mapping[tuple[str, float], float] = ATTACKS,
    settings: Mapping[str, Any] | None = None,
    teams: Sequence[str] = ("team",),
    modules: Sequence[str] = ("shared",),
    **changes: Any,
) -> list[Path]:
    """One run per clean return, with seeds 0, 1, …; `changes` go to the configuration."""
    paths = []
    for seed, value in enumerate(clean):
        conf = config(method, settings=settings, seed=seed, **changes)
        paths.append(
            write_run(
                root / f"{method}-{seed}",
                configuration=conf,
                evaluations={"default": evaluation(value, attacks=attacks, teams=teams)},
                lines=metrics(
                    regularised=method != "none",
                    seed=seed,
                    env_steps=conf["env_steps"],
                    final=value,
                    modules=modules,
                    teams=teams,
                ),
            )
        )
    return paths


def _json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content))


def compared(tmp_path: Path, **methods: list[dict[str, Any]]) -> Comparison:
    """Per method one run for each evaluation."""
    return compare(
        [
            load_run(
                write_run(
                    tmp_path / f"{method}-{seed}",
                    configuration=config(method, seed=seed),
                    evaluations={"e": content},
                )
            )
            for method, contents in methods.items()
            for seed, content in enumerate(contents)
        ]
    )


def cells(blocks: tuple[Block, ...], title: str, header: str) -> list[Cell]:
    """The cells of one line of a table."""
    (block,) = [block for block in blocks if block.title == title]
    (line,) = [line for line in block.lines if line.header == header]
    return list(line.cells)


TAG = {"name": "mpe2.simple_tag_v3", "kwargs": {}}


def runs_of(
    root: Path, method: str, clean: list[float], *, env: dict[str, Any] = ENV, loss: float = -8.0
) -> list[Path]:
    """One run per clean return, trained and evaluated on the environment."""
    return [
        write_run(
            root / f"{env['name']}-{method}-{seed}",
            configuration=config(method, seed=seed, env=env),
            evaluations={"e": evaluation(value, attacks={("pgd", 0.1): loss}, env=env)},
        )
        for seed, value in enumerate(clean)
    ]


def grid(root: Path) -> list[Path]:
    """Two methods on two environments, three seeds each; aajr loses 2 to the attack, the plain method 8."""
    found = []
    for env, shift in ((ENV, 0.0), (TAG, 100.0)):
        clean = [shift - 40.0, shift - 41.0, shift - 39.0]
        found += runs_of(root, "none", clean, env=env) + runs_of(root, "aajr", clean, env=env, loss=-2.0)
    return found


MILD = {("pgd", 0.1): -2.0, ("pgd", 0.2): -4.0}
HARD = {("pgd", 0.1): -20.0, ("pgd", 0.2): -40.0}
CROSSING = {("pgd", 0.1): -2.0, ("pgd", 0.2): -60.0}
THREE = [-40.0, -40.5, -41.0]


def two(
    root: Path, plain: dict[Any, float], other: dict[Any, float], *, clean: list[float] = THREE
) -> list[Path]:
    """Runs of the plain method and of aajr, with what each attack takes from them."""
    return write_method(root, "none", clean=clean, attacks=plain) + write_method(
        root, "aajr", clean=clean, attacks=other
    )
