"""The victims that an adversary was trained against, and no others."""

from __future__ import annotations

from pathlib import Path

from marl_aajr.training.run_directory import RunDirectory
from marl_aajr.victims import Victim, fingerprint, load_victim
from marl_aajr.victims.store import DESCRIPTION


def victim_folder(victims: Path) -> Path:
    """Where the victims of a run are; a folder that holds victims is its own."""
    return victims if (victims / DESCRIPTION).is_file() else RunDirectory(victims).victim


def load_frozen(folder: Path | str, digest: str) -> Victim:
    """The victims in a folder.

    Args:
        folder: of a saved victim.
        digest: its `marl_aajr.victims.fingerprint`.

    Raises:
        ValueError: no victim there, a damaged one, or another.
    """
    victim = load_victim(folder)
    found = fingerprint(victim)
    if found != digest:
        raise ValueError(
            f"expected the victims {digest[:12]} in {folder}, got others ({found[:12]}): they have been "
            "trained anew or replaced; train the adversary again, or put the old ones back"
        )
    return victim
