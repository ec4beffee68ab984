"""One run: train until the environment steps are used up, and leave a run directory.

A run can be stopped at any moment, by Ctrl-C or by `kill -9`, and resumed; the numbers that follow are those
of a run that was never stopped. `marl_aajr.training.checkpoint` says how.
After a failure that need not happen again a run takes the same way by itself (`_survive`).
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from itertools import count
from pathlib import Path
from typing import Any

from ray.exceptions import RayError

from marl_aajr.core.environment_values import EnvironmentFault
from marl_aajr.rollout.perturbed import ADVERSARY
from marl_aajr.rollout.teams import announce
from marl_aajr.training.algorithm import build_config, check_first_weights, check_machine
from marl_aajr.training.checkpoint import RunProgress, record_event, resumable
from marl_aajr.training.cluster import ray_for, wait_for_room
from marl_aajr.training.config import RunConfig, load_config, make_config
from marl_aajr.training.loop import OnIteration, ProcessesLostError, ShouldStop, Training
from marl_aajr.training.policy_mapping import warn_of_images
from marl_aajr.training.run_directory import RunDirectory
from marl_aajr.training.run_record import Versions, parse

_LOGGER = logging.getLogger("marl_aajr")


def train(
    config: RunConfig | Mapping[str, Any] | str | Path,
    out: str | Path,
    *,
    overwrite: bool = False,
    resume: bool = False,
    on_iteration: OnIteration | None = None,
    should_stop: ShouldStop | None = None,
    max_failures: int = 0,
) -> Path:
    """Train one run and write its directory.

    Args:
        config: the run: a configuration, its settings as nested mappings, or a YAML file.
        out: its directory; must not exist, or be empty, unless `overwrite` or `resume`.
        overwrite: replace the run that is there. Nothing but a run is ever replaced.
        resume: go on from the last checkpoint of the run that is there; `config` must be the same.
        on_iteration: called with each line of `metrics.jsonl`.
        should_stop: asked after each iteration. If it says yes, the victim as it is then is written, the run
            is marked `interrupted`, and what came after the last checkpoint is trained again, to the same
            numbers, when it is resumed.
        max_failures: how often the run may go on by itself from its last checkpoint, to the numbers of a run
            that did not fail, after the loss of a learner or of all env runners, or an error in an
            environment. What else can go wrong would go wrong again. (A single lost env runner is
            replaced without it.)

    Returns:
        The run directory.

    Raises:
        ValueError: a configuration that cannot be trained, a directory that is not free or cannot be
            resumed, a Ray cluster that does not answer or is too small. Nothing has been written.
        NonFiniteError: a NaN or an infinity; the run is marked `failed` and keeps its checkpoints.
        EnvironmentFault: an environment raised, or broke its contract; likewise.
        ProcessesLostError: a learner, or all env runners; likewise.
        OSError: no room on the disk; likewise.

    Example:
        >>> train({"env": "simple_spread_v3", "method": {"name": "aajr", "epsilon": 0.2}}, "runs/aajr")
    """
    directory = RunDirectory(out)
    if not isinstance(config, RunConfig):
        config = make_config(config) if isinstance(config, Mapping) else load_config(config)
    built = directory.resumed(config) if resume else config
    build_config(built)
    if built is config:
        check_first_weights(config)
    check_machine(config.resources)
    progress = RunProgress()
    try:
        if resume:
            directory.require()
            directory.lock()
            progress = resumable(directory, config)
        else:
            directory.check_free(overwrite=overwrite)
        with ray_for(config.resources):
            if resume:
                before, versions = directory.status(), parse(Versions, directory.versions_file).changed()
                what = {"after": before.state, "error": before.error, "versions": versions or None}
                record_event(directory, "resumed", progress, **what)
            else:
                directory.create(config, overwrite=overwrite)
            training = Training(config, directory, on_iteration, should_stop)
            if (teams := training.mapping.teams) and set(teams.values()) != {ADVERSARY}:
                announce(config.env.name, teams)
            warn_of_images(training.mapping)
            _survive(training, progress, max_failures=max_failures)
    finally:
        directory.unlock()
    return directory.path


def _survive(training: Training, progress: RunProgress, *, max_failures: int) -> None:
    """Train to the end, from the last checkpoint again after each failure that need not happen again."""
    directory = training.directory
    for failures in count(1):
        try:
            training.run(progress)
            return
        except (RayError, EnvironmentFault, ProcessesLostError) as error:
            if failures > max_failures:
                raise
            progress = resumable(directory, training.config)
            record_event(directory, "restarted", progress, error=directory.status().error)
            _LOGGER.warning("going on from iteration %d after %s", progress.iteration, error)
            wait_for_room(training.config.resources)
