"""One trial of a search: train to a rung, score, and go on if it is told to."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from marl_aajr.study.entries import TuningEntry
from marl_aajr.study.folder import is_there
from marl_aajr.study.runs import Settings, merged, nested
from marl_aajr.training.config import RunConfig, make_config
from marl_aajr.training.files import append_line, read_lines
from marl_aajr.training.run_directory import RunDirectory

_SCORES = "scores.jsonl"


@dataclass(frozen=True)
class Trial:
    """What all trials of a method share.

    Attributes:
        entry: the effort.
        data: settings of their runs, without those that are searched.
        folder: where their run directories lie.
        team: who is attacked and judged.
    """

    entry: TuningEntry
    data: Mapping[str, Any]
    folder: Path
    team: str | None

    def config(self, settings: Settings, seed: int) -> RunConfig:
        """The run of a trial: checkpoints lie where it is scored, so that going on repeats nothing."""
        entry = self.entry
        config = make_config(merged(self.data, merged(nested(settings), {"seed": seed})))
        last: int = entry.reduction ** (entry.rungs - 1)
        first = math.ceil(entry.env_steps / config.ppo.train_batch_size / last)
        steps = {"env_steps": first * last * config.ppo.train_batch_size, "checkpoint_every": first}
        return make_config(merged(config.model_dump(mode="json"), steps))

    def scores(self, name: str) -> list[dict[str, Any]]:
        """Of one trial, rung by rung."""
        return read_lines(self.folder / name / _SCORES)


def try_settings(
    trial: Trial, *, settings: Settings, name: str, rungs: int | None = None
) -> Iterator[dict[str, Any]]:
    """Scores of a trial, rung by rung; what has been scored before is not trained again.

    Args:
        trial: what it shares with the others.
        settings: the searched ones.
        name: of its folder.
        rungs: how many; None: all.

    Yields:
        `budget` (1, η, η², …), `env_steps`, `clean`, `robust` and `score`, means over the seeds.
    """
    entry = trial.entry
    known = trial.scores(name)
    yield from known[:rungs]
    for rung in range(len(known), entry.rungs if rungs is None else rungs):
        budget = entry.reduction**rung
        scores, steps = [], 0
        for seed in entry.seeds:
            config = trial.config(settings, seed)
            directory = RunDirectory(trial.folder / name / f"s{seed}")
            _train_until(directory, config, config.checkpoint_every * budget)
            scores.append(_score(directory, trial))
            steps += directory.status().env_steps
        found = {key: fmean(score[key] for score in scores) for key in ("clean", "robust", "score")}
        line = {"budget": budget, "env_steps": steps, **found}
        append_line(trial.folder / name / _SCORES, line)
        yield line


def _train_until(directory: RunDirectory, config: RunConfig, iteration: int) -> None:
    """Train to an iteration, which has a checkpoint and leaves a victim."""
    from marl_aajr.training.trainer import train

    there = is_there(directory)
    if there and directory.status().state != "running" and directory.status().iteration == iteration:
        return
    reached = 0

    def note(record: Mapping[str, Any]) -> None:
        nonlocal reached
        reached = record["iteration"]

    train(
        config,
        directory.path,
        resume=there,
        on_iteration=note,
        should_stop=lambda: reached >= iteration,
    )


def _score(directory: RunDirectory, trial: Trial) -> dict[str, float]:
    """Clean return, return under attack, and their weighted mean, on the tuning's own episodes."""
    from marl_aajr.evaluation import evaluate
    from marl_aajr.victims import Victim

    entry = trial.entry
    evaluation = evaluate(
        Victim.load(directory.victim),
        attacks=[(entry.attack, entry.epsilon)],
        episodes=entry.episodes,
        units="raw",
        seed=entry.episode_seed,
        team=trial.team,
        workers=1,
    )
    clean, robust = evaluation.clean_return, evaluation.attacks[0].mean
    weight = entry.robust_weight
    return {"clean": clean, "robust": robust, "score": (1 - weight) * clean + weight * robust}
