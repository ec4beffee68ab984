"""Where adversaries are kept, and how one is found again.

    VICTIM_RUN/adversaries/sa-rl-eps0.1/            the run that remains: configured, checkpointed, exported
        adversary.json                              what was asked, tried and found
        warm-start/                                 what PGD taught it
        initial_policy/                             what the run began with: that, or the best of the search
        search/1/, search/2/, …                     the runs that were tried before it

While it lasts, the search stands beside the run, in `sa-rl-eps0.1.search`.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from marl_aajr.adversaries.request import AdversaryRequest
from marl_aajr.training.fields import validated
from marl_aajr.training.run_directory import RunDirectory

ADVERSARIES = "adversaries"
"""The folder of a run that its adversaries are kept in."""

RECORD = "adversary.json"
REQUEST, WARM = "request.json", "warm-start"

KEPT = {"trained": "victim", "warm_start": WARM}
"""Where the policies are that an adversary attacks with: the stronger ones on the selection episodes."""


def find_finished(home: Path, request: AdversaryRequest, *, digest: str) -> Path | None:
    """The strongest finished adversary of a run that is what is asked for, or None.

    It was trained for as long, and searched for as widely, or more; whatever its seed. What is compared is
    what each earned on its own selection episodes.

    Args:
        home: the victims' run.
        request: what is asked for, its agents named.
        digest: the victims' `marl_aajr.victims.fingerprint`.
    """
    earned: dict[Path, float] = {}
    for record in sorted((home / ADVERSARIES).glob(f"*/{RECORD}")):
        config = RunDirectory(record.parent).config()
        known = json.loads(record.read_text(encoding="utf-8"))
        if config.env.kwargs.get("digest") == digest and _is_what_was_asked(known, request):
            earned[record.parent] = known["selection"][known["kept"]]
    return max(earned, key=earned.__getitem__, default=None)


def _is_what_was_asked(known: Mapping[str, Any], request: AdversaryRequest) -> bool:
    asked = request.model_dump(mode="json")
    names = ("kind", "epsilon", "agents", "joint", "norm", "units", "actions", "warm_start", "threat")
    enough = known["env_steps"] >= request.steps and known["search"] >= request.tries
    return enough and all(known.get(name) == asked[name] for name in names)


def request_of(out: Path) -> tuple[AdversaryRequest, Path]:
    """What was asked for in a folder whose training was stopped, and against which victims.

    Raises:
        ValueError: no such folder.
    """
    try:
        asked = json.loads((search_folder(out) / REQUEST).read_text(encoding="utf-8"))
    except OSError:
        raise ValueError(
            f"expected the folder of an adversary whose training was stopped, got {out}; train one with: "
            "marl-aajr adversary train"
        ) from None
    victims = Path(asked.pop("victims"))
    return validated(AdversaryRequest, asked), victims


def default_folder(victims: Path, request: AdversaryRequest) -> Path:
    """`VICTIM_RUN/adversaries/<kind>-eps<epsilon>…`; beside the victims where they have no run."""
    home = victims.parent if (victims / "victim.json").is_file() else victims
    if request.observes:
        everybody = request.changed(agents=None)
        if request.settled(victims) == everybody.settled(victims):
            request = everybody
    return home / ADVERSARIES / request.name


def unfinished_folder(folder: Path) -> Path:
    """The folder, or the first of `…-2`, `…-3` and so on that holds no finished adversary."""
    number = 1
    while is_finished(found := folder if number == 1 else folder.with_name(f"{folder.name}-{number}")):
        number += 1
    return found


def is_finished(folder: Path) -> bool:
    """Whether an adversary is there, and ready."""
    return (folder / RECORD).is_file()


def is_begun(folder: Path) -> bool:
    """Whether there is an adversary that `request_of` can be asked of."""
    return (search_folder(folder) / REQUEST).is_file()


def how_to_resume(folder: Path) -> str:
    """The command that goes on with what is in a folder: an adversary is judged once it is trained."""
    what = "adversary train" if is_begun(folder) else "train"
    return f"marl-aajr {what} --resume --out {shlex.quote(str(folder))}"


def search_folder(folder: Path) -> Path:
    """Where the search of an adversary is while it lasts."""
    return folder.with_name(f"{folder.name}.search")
