"""The commands that train the adversaries of a page again."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePath
from typing import Any

from marl_aajr.adversaries.store import ADVERSARIES, RECORD
from marl_aajr.evaluation.outcomes import AttackOutcome
from marl_aajr.evaluation.result import Evaluation


def adversaries_of(evaluation: Evaluation) -> tuple[str, ...]:
    """Names or paths of the trained adversaries that played, each once."""
    attacked = (row.attack.source for row in evaluation.attacks if was_trained_before(row))
    replaced = (row.source for row in evaluation.adversarial_agents if row.source)
    return tuple(dict.fromkeys([*attacked, *replaced]))


def was_trained_before(row: AttackOutcome) -> bool:
    """Whether an attack is an adversary that was there already, not one that the evaluation trained."""
    return row.attack.access == "learned" and row.attack.source != ""


def kept_with(run: Path, target: str) -> dict[str, str]:
    """Folder of each adversary that a run keeps -> where it is trained again, beside the run's new folder."""
    folders = sorted(record.parent for record in (run / ADVERSARIES).glob(f"*/{RECORD}"))
    return {str(folder): str(PurePath(target) / ADVERSARIES / folder.name) for folder in folders}


def training(folder: Path, victims: str, target: str) -> str:
    """The command that trains an adversary again.

    Args:
        folder: of the adversary.
        victims: the run that it is trained against.
        target: where it goes.
    """
    asked = json.loads((folder / RECORD).read_text("utf-8"))
    return shlex.join(["marl-aajr", "adversary", "train", victims, *_options(asked), "--out", target])


def _options(asked: Mapping[str, Any]) -> Iterator[str]:
    yield from ("--kind", str(asked["kind"]))
    for name in ("epsilon", "env_steps", "search", "seed"):
        if asked.get(name) is not None:
            yield from (f"--{name.replace('_', '-')}", f"{asked[name]:.12g}")
    if asked.get("epsilon") is not None:
        yield from ("--norm", asked["norm"], "--units", asked["units"])
        yield "--warm-start" if asked["warm_start"] else "--no-warm-start"
    for agent in asked.get("agents") or ():
        yield from ("--agents", agent)
    if asked.get("joint"):
        yield "--joint"
