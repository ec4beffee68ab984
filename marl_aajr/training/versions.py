"""What a run was made with, so that it can be repeated."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from importlib import metadata
from typing import Any

PACKAGES = (
    "marl-aajr",
    "torch",
    "ray",
    "gymnasium",
    "pettingzoo",
    "mpe2",
    "numpy",
    "safetensors",
)


def versions(*, seed: int) -> dict[str, Any]:
    """Python, platform, the versions of what decides the numbers, and the seed."""
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: version for name in PACKAGES if (version := _version(name)) is not None},
        "seed": seed,
    }


def changed(before: Mapping[str, Any]) -> dict[str, str]:
    """The packages that are other ones now than in an earlier answer of `versions`."""
    now = versions(seed=before["seed"])["packages"]
    return {name: version for name, version in now.items() if before["packages"].get(name) != version}


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
