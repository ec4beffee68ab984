"""`marl-aajr train`: one run from the command line."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from marl_aajr.cli.display import Interrupt, TrainingProgress, say, waiting
from marl_aajr.cli.options import assigned, guide, options, takes, values

if TYPE_CHECKING:
    from marl_aajr.training.config import RunConfig

HELP = guide(
    "Train a team and keep everything that is needed to repeat, resume and evaluate the run in one folder. "
    "Options given here override --config FILE. "
    "Ctrl-C finishes the iteration and says how to go on from the last checkpoint, to the same numbers; "
    "a second Ctrl-C stops at once.",
    "marl-aajr train --env simple_spread_v3 --method none",
    "marl-aajr train --env simple_spread_v3 --method aajr --epsilon 0.2",
    "marl-aajr train --env simple_spread_v3 --method adversarial_training",
    "marl-aajr train --env simple_tag_v3 --method aajr --teams adversary",
    "marl-aajr train --config run.yaml --set rollouts.epsilon=0.1",
    "marl-aajr train --config run.yaml --seed 3 --out runs/spread-3",
    "marl-aajr train --resume --out runs/spread-3",
)

NETWORK, RAY = "Networks", "Ray resources"
ROBUST = "Robustness: settings of the method (defaults of aajr; any other by --set method.NAME=VALUE)"

CONFIG = "marl_aajr.training.config.RunConfig"
AAJR = "marl_aajr.regularizers.aajr.AAJR"
METHOD = "marl_aajr.training.method.MethodConfig"

SETTINGS = (
    *options(
        CONFIG,
        "env.name method.name algorithm seed env_steps checkpoint_every",
        flags={"env.name": "--env", "method.name": "--method"},
    ),
    *options(
        AAJR,
        "coefficient epsilon steps step_size adversarial_weight output form gain_bound objective norm "
        "sample_fraction",
        under="method",
        panel=ROBUST,
        flags={"steps": "--inner-steps", "output": "--output-map"},
    ),
    *options(METHOD, "ramp teams", under="method", panel=ROBUST, metavars={"ramp": "A,B"}),
    *options(CONFIG, "policies model.hidden model.activation model.critic observation_filter", panel=NETWORK),
    *options(
        CONFIG,
        "resources.env_runners resources.envs_per_runner resources.runner resources.learners "
        "resources.gpus_per_env_runner resources.gpus_per_learner resources.address",
        panel=RAY,
        metavars={"resources.address": "HOST:PORT"},
    ),
)
"""The settings of a run that have an option, in the order of the help; `--set` reaches the others."""


@takes(*SETTINGS)
def train(
    *,
    config: Path | None = None,
    set_: list[str] | None = None,
    out: Path | None = None,
    resume: bool = False,
    overwrite: bool = False,
    max_failures: int = 0,
    **typed: Any,
) -> None:
    """Train one run.

    Args:
        config (FILE.yaml): A configuration; the config.yaml of a run is one.
        set_ (KEY=VALUE): Any other key of the configuration, such as ppo.lr=3e-4 or env.kwargs.N=5; may be
            repeated.
        out (FOLDER): The run's folder. Default: runs/<env>-<method>-s<seed>.
        resume: Continue the run in --out from its last checkpoint, to the numbers of a run that was never
            stopped.
        overwrite: Replace the run in --out, if there is one.
        max_failures (N): How often to go on from the last checkpoint after the loss of a learner or of all
            env runners, or an error in the environment.
        typed: What was given of `SETTINGS`.
    """
    from rich.console import Console

    if resume and overwrite:
        raise ValueError("expected --resume or --overwrite, got both; choose one")
    console = Console(stderr=True)
    with waiting("Loading torch and Ray", console=console):
        given = values(SETTINGS, typed) | assigned(set_ or ())
        resolved, folder = _resolve(config, out, given, resume=resume)
        from marl_aajr.training.run_directory import RunDirectory
        from marl_aajr.training.trainer import train as run  # the slow part
    how_long = f"seed {resolved.seed}, {resolved.env_steps:,} env steps"
    heading = f"{resolved.env.name}, method {resolved.method.label}, {how_long}, into {folder}"
    progress = TrainingProgress(resolved.env_steps, console=console, heading=heading)
    how: Any = {"resume": resume, "overwrite": overwrite, "max_failures": max_failures}
    with Interrupt(progress) as interrupt, progress:
        run(resolved, folder, on_iteration=progress, should_stop=interrupt, **how)
    directory = RunDirectory(folder)
    status, name = directory.status(), shlex.quote(str(folder))
    if status.state == "finished":
        say(console, f"Finished. How it does under attack:\n  marl-aajr evaluate {name}")
        return
    saved = max(directory.iterations(), default=0)
    say(
        console,
        f"Stopped after iteration {status.iteration}. To go on from the last checkpoint, iteration {saved}:\n"
        f"  marl-aajr train --resume --out {name}",
    )
    raise typer.Exit(interrupt.exit_code)


def default_folder(data: Mapping[str, Any]) -> Path:
    """`runs/<env>-<method>-s<seed>` of a configuration, with what is awkward in a file name as a dash."""
    from marl_aajr.training.method import method_label

    name = f"{data['env']['name']}-{method_label(data['method'])}-s{data['seed']}"
    return Path("runs") / re.sub(r"[^\w.-]+", "-", name)


def override(base: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration as nested mappings, with values by dotted key put over a base, which a file gives.

    With another method the base's settings of its method are dropped.
    """
    from marl_aajr.training.fields import put

    result = dict(base)
    method = result.get("method")
    if "method.name" in given and isinstance(method, Mapping) and method.get("name") != given["method.name"]:
        result["method"] = {}
    for key, value in given.items():
        put(result, key, value)
    return result


def _resolve(
    file: Path | None, out: Path | None, given: Mapping[str, Any], *, resume: bool
) -> tuple[RunConfig, Path]:
    """The configuration and the folder that the command line means.

    A run that is resumed brings its own configuration: `--resume --out RUN` is enough.
    """
    from marl_aajr.adversaries.store import how_to_resume, is_begun
    from marl_aajr.training.config import load_config, make_config
    from marl_aajr.training.run_directory import RunDirectory

    def resolve(base: RunConfig | None) -> RunConfig:
        return make_config(override(base.model_dump(mode="json") if base else {}, given))

    if resume and out is not None and is_begun(out):
        raise ValueError(
            f"expected a run of marl-aajr train, got {out}, an adversary's, whose training goes on after its "
            f"run; go on with: {how_to_resume(out)}"
        )
    if resume and file is None and out is not None:
        return resolve(RunDirectory(out).config()), out
    if file is None and "env.name" not in given:
        raise ValueError("expected --env NAME or --config FILE.yaml, got neither; see marl-aajr list envs")
    resolved = resolve(None if file is None else load_config(file))
    folder = out or default_folder(resolved.model_dump(mode="json"))
    if resume and file is None:
        resolved = resolve(RunDirectory(folder).config())
    return resolved, folder
