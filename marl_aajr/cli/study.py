"""`marl-aajr study`: a grid of runs from one file to its report."""

from __future__ import annotations

import contextlib
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from marl_aajr.cli.display import Interrupt, StudyProgress, clock, say, table_of, waiting
from marl_aajr.cli.options import assigned, guide, options, sample, takes, values

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from marl_aajr.study.progress import GridProgress, StudyPlan

FAILED = 1
"""Exit code of a study of which something failed."""

EXAMPLE = """\
environments: [marl_aajr.envs.simple_spread_v3, simple_tag_v3]
methods:
  - none
  - name: aajr
    grid: {coefficient: [1e-4, 1e-3]}
seeds: [0, 1, 2]
run: {env_steps: 500_000, ppo: {lr: 1e-3}}
adversaries:
  - {kind: pa-ad, epsilon: 0.1}
evaluation: {suite: standard}
"""
"""A study, shown by the help."""

HELP = guide(
    "Run a study: every environment with every method, setting and seed of one file, then attack every run, "
    "then compare them on one page. What is finished is never done again: the same command "
    "resumes a study that was stopped, by Ctrl-C, by kill -9 or by an error. "
    "Options given here override the file. A file needs environments and methods; "
    "marl-aajr list study has all its keys.",
    "marl-aajr study experiments/pilot.yaml --dry-run",
    "marl-aajr study experiments/pilot.yaml",
    "marl-aajr study experiments/pilot.yaml --only '*-s0'",
    "marl-aajr study experiments/pilot.yaml --address auto --log-json",
) + sample("A file:", EXAMPLE)

SETTINGS = options(
    "marl_aajr.study.study_config.StudyConfig", "max_concurrent address", metavars={"address": "HOST:PORT"}
)


@takes(*SETTINGS)
def study(
    file: Path,
    *,
    out: Path | None = None,
    dry_run: bool = False,
    only: str | None = None,
    resume: bool = False,
    replay: bool = False,
    set_: list[str] | None = None,
    log_json: bool = False,
    **typed: Any,
) -> None:
    """Run a study, or say what it would do.

    Args:
        file (FILE.yaml): The study.
        out (FOLDER): The study's folder. Default: studies/<name>.
        dry_run: Check it, print its runs, what they take and how long; start none.
        only (PATTERN): Do only runs whose names match, such as '*-s0', and their needs.
        resume: Refuse to begin: only go on with a study that is there already.
        replay: First repeat the tuning's trials as decided, and compare their scores.
        set_ (KEY=VALUE): Replace a key of the file, such as run.env_steps=1e5; may be repeated.
        log_json: Print one JSON object per event on stdout, and no table.
        typed: What was given of `SETTINGS`.
    """
    from rich.console import Console

    console = Console(stderr=True)
    overrides = {key: (value, f"--set {key}") for key, value in assigned(set_ or []).items()}
    given = values(SETTINGS, typed)
    overrides |= {option.key: (given[option.key], option.flag) for option in SETTINGS if option.key in given}
    # Whatever a library prints must not get between the lines of JSON.
    with contextlib.redirect_stdout(sys.stderr):
        with waiting("Reading the study, loading torch and RLlib", console=console):
            from marl_aajr.study.driver import prepare

            plan = prepare(file, out=out, only=only, overrides=overrides)
            command = _command(file, out=out, only=only, set=set_ or [], **typed)
        if resume and not plan.folder.study_file.is_file():
            raise ValueError(f"expected a study to resume in {plan.folder.path}, got none; drop --resume")
        if dry_run:
            foreseen = _foresee(plan)
        else:
            grid, code = _run(plan, console, as_json=log_json, replay=replay)
    if dry_run:
        Console().print(*foreseen, sep="\n", highlight=False, markup=False)
        return
    _conclude(plan, grid, console, command=command, code=code)


def _run(
    plan: StudyPlan, console: Console, *, as_json: bool, replay: bool
) -> tuple[GridProgress, int | None]:
    """Do the study until its end or a request to stop; the exit code if it was stopped."""
    from marl_aajr.study.driver import on_cluster, progress_of, run_study

    progress = StudyProgress(console, as_json=as_json)
    with Interrupt(progress) as interrupt, on_cluster(plan) as nodes:
        grid = progress_of(plan, nodes, progress.event)
        with progress.show(grid):
            run_study(plan, grid, should_stop=interrupt, again=replay)
    return grid, interrupt.exit_code if interrupt() else None


def _conclude(
    plan: StudyPlan, grid: GridProgress, console: Console, *, command: str, code: int | None
) -> None:
    failed = [progress for progress in grid.nodes.values() if progress.state == "failed"]
    for progress in failed:
        say(console, f"{progress.node.name} failed: {progress.error}\n  log: {progress.log}")
    for what, path in (("Report", plan.folder.report), ("Table", plan.folder.results)):
        if path.is_file():
            say(console, f"{what}: {path}")
    if _STORAGE in command:
        command += "\nwith the storage's URI in STORAGE: it has credentials, which are not shown."
    if code is not None:
        say(console, f"Stopped: {grid.count('finished')} of {len(grid.nodes)} done. To go on:\n  {command}")
        raise typer.Exit(code)
    if failed:
        say(console, f"{len(failed)} failed. When the cause is gone, try them again:\n  {command}")
        raise typer.Exit(FAILED)


def _foresee(plan: StudyPlan) -> list[Table | str]:
    """What a dry run prints."""
    from marl_aajr.study.driver import expected, on_cluster
    from marl_aajr.study.study_pool import pool_doubts

    with on_cluster(plan) as nodes:
        estimated, seconds = expected(plan, nodes)
    shown: list[Table | str] = [plan_table(plan, estimated.seconds)]
    if (entry := plan.study.tune) is not None:
        shown.append(
            f"Before these, {entry.trials} trials of up to {entry.env_steps:,} env steps for every method "
            "and environment whose search is not finished."
        )
    trained = [node.run for node in plan.nodes.values() if node.kind == "train"]
    fresh = sum(run not in plan.runs for run in trained)
    pool = f", {fresh} of them for the pool of opponents" if fresh else ""
    shown.append(
        f"{len(trained)} runs{pool}, {len(plan.nodes)} steps of work, {estimated.left} of them still to do: "
        f"about {clock(seconds)} on {sum(node['CPU'] for node in nodes):g} CPUs, {estimated.basis}."
    )
    return [*shown, *pool_doubts(plan.study)]


def plan_table(plan: StudyPlan, seconds: Mapping[str, float]) -> Table:
    """What would be done, with resources and expected time."""
    table = table_of("work", numbers=("env steps", "CPUs", "GPUs", "about"))
    for name, node in plan.nodes.items():
        cpus, gpus = (sum(each.get(kind, 0.0) for each in node.bundles) for kind in ("CPU", "GPU"))
        steps, gpu = f"{node.env_steps:,}" if node.env_steps else "", f"{gpus:g}" if gpus else ""
        about = "done" if plan.folder.done(node) else clock(seconds[name])
        table.add_row(name, steps, f"{cpus:g}", gpu, about)
    return table


_STORAGE = '"storage=$STORAGE"'
"""For the storage in a command where its URI has credentials."""


def _command(file: Path, **options: Any) -> str:
    """The line to type to go on; `options` by name, those that were not given left out."""
    from marl_aajr.study.study_config import masked

    words = ["marl-aajr", "study", str(file)]
    for name, value in options.items():
        for each in value if isinstance(value, list) else [value]:
            words += [] if each is None else [f"--{name.replace('_', '-')}", str(each)]
    secret = [word.startswith("storage=") and masked(word, word) != word for word in words]
    return " ".join(
        _STORAGE if hidden else shlex.quote(word) for word, hidden in zip(words, secret, strict=True)
    )
