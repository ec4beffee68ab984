"""What has changed in a study since its folder was written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from marl_aajr.training.files import Key


def changed(what: str, folder: Path) -> ValueError:
    """The refusal of a study that is another than the one in a folder."""
    return ValueError(
        f"{what}; expected the study that wrote {folder}; change it back, or name another folder by --out, "
        "and another storage if there is one"
    )


def first_change(name: str, before: Any, after: Any, key: Key = ()) -> tuple[Key, str]:
    """The innermost place where two values differ, and how."""
    key = (*key, name)
    if isinstance(before, dict) and isinstance(after, dict):
        for part in dict.fromkeys([*before, *after]):
            if before.get(part) != after.get(part):
                return first_change(part, before.get(part), after.get(part), key)
    return key, f"{json.dumps(before)} → {json.dumps(after)}"
