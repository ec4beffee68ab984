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
from tests.report.evaluations import ATTACKS, ENV, evaluation, evaluation_file


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
