"""Checkpoints: complete or absent, and checked before they are trusted.

RLlib's own part leaves out what a run needs to go on as if nothing had happened; `trainer.json` has it.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path

from ray.rllib.algorithms.algorithm import Algorithm

from marl_aajr.training.files import new_folder, write_json

_ALGORITHM, _TRAINER, _MANIFEST = "algorithm", "trainer.json", "manifest.json"


@dataclass(frozen=True)
class Progress:
    """How far a run is.

    Attributes:
        iteration: iterations done.
        env_steps: environment steps done.
        seconds: wall time spent on them, over all resumes.
        adversary_env_steps: of the environment steps, those that trained adversaries (ATLA).
    """

    iteration: int = 0
    env_steps: int = 0
    seconds: float = 0.0
    adversary_env_steps: int = 0


def save_checkpoint(algorithm: Algorithm, progress: Progress, folder: Path) -> None:
    """Write a checkpoint that appears under its name when it is complete."""
    with new_folder(folder) as fresh:
        algorithm.save_to_path(str((fresh / _ALGORITHM).absolute()))
        write_json(fresh / _TRAINER, asdict(progress))
        write_json(fresh / _MANIFEST, _checksums(fresh))


def check_checkpoint(folder: Path) -> Progress:
    """What a checkpoint holds, if every file in it is as it was written.

    Raises:
        ValueError: a file is missing or has changed.
    """
    cure = f"delete {folder} to resume from the checkpoint before it, or overwrite the run"
    try:
        expected = json.loads((folder / _MANIFEST).read_text(encoding="utf-8"))
        damaged = sorted(expected.items() ^ _checksums(folder).items())
        if damaged:
            raise ValueError(f"{damaged[0][0]} is missing or has changed")
        return Progress(**json.loads((folder / _TRAINER).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise ValueError(f"the checkpoint {folder} is damaged ({error}); {cure}") from None


def restore_checkpoint(algorithm: Algorithm, folder: Path) -> None:
    """Put a new algorithm into the state of a checkpoint that `check_checkpoint` has passed."""
    algorithm.restore_from_path(str((folder / _ALGORITHM).absolute()))


def _checksums(folder: Path) -> dict[str, str]:
    files = (path for path in folder.rglob("*") if path.is_file() and path != folder / _MANIFEST)
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files
    }
