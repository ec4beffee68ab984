"""Adversaries of a run: which are used again, what their folders are called, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from marl_aajr.adversaries.request import AdversaryRequest
from marl_aajr.adversaries.store import RECORD, find_finished, unfinished_folder
from marl_aajr.adversaries.training import train_adversary
from marl_aajr.training.run_directory import RunDirectory
from marl_aajr.victims import Victim, fingerprint
from tests.adversaries.test_observation_game import SPREAD
from tests.evaluation.players import team

REQUEST = AdversaryRequest(kind="pa-ad", epsilon=0.2, env_steps=16_000, search=2)


@pytest.fixture
def victims(tmp_path: Path) -> Path:
    return team(SPREAD).save(tmp_path / "victim")


@pytest.fixture
def home(victims: Path) -> Path:
    """With three adversaries that differ in what they earn."""
    for name, earned in (("a", 1.0), ("b", 3.0), ("c", 2.0)):
        directory = RunDirectory(victims.parent / "adversaries" / name)
        directory.create(REQUEST.config(victims))
        directory.unlock()
        found = {"selection": {"trained": earned, "warm_start": 0.0}, "kept": "trained"}
        (directory.path / RECORD).write_text(
            json.dumps({**REQUEST.settled(victims).model_dump(mode="json"), **found})
        )
    return victims.parent


def find(home: Path, **changes: Any) -> str | None:
    victims = home / "victim"
    request = REQUEST.changed(**changes).settled(victims)
    found = find_finished(home, request, digest=fingerprint(Victim.load(victims)))
    return None if found is None else found.name


@pytest.mark.parametrize("enough", [{}, {"env_steps": 1}, {"search": 1}, {"seed": 5}], ids=str)
def test_the_strongest_is_used_again(home: Path, enough: dict[str, Any]) -> None:
    assert find(home, **enough) == "b"


@pytest.mark.parametrize(
    "changes",
    [
        {"env_steps": None},
        {"env_steps": 16_001},
        {"search": None},
        {"warm_start": False},
        {"epsilon": 0.1},
        {"threat": {"low": -3.0}},
    ],
    ids=str,
)
def test_one_of_less_or_other_training_is_not(home: Path, changes: dict[str, Any]) -> None:
    assert find(home, **changes) is None


def test_a_finished_one_keeps_its_folder(home: Path) -> None:
    folder = home / "adversaries" / "a"
    assert unfinished_folder(folder) == folder.with_name("a-2")
    assert unfinished_folder(home / "new") == home / "new"


def test_other_threats_have_other_folders() -> None:
    names = {REQUEST.changed(threat={"mask": mask}).name for mask in ([True], [False])}
    assert len(names | {REQUEST.name}) == 3
    assert REQUEST.changed(threat={"channels": ["others"]}).name == f"{REQUEST.name}-others"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"kind": "pgd"},
            "kind: expected 'sa-rl', 'pa-ad', 'traitor', 'opponent' or 'best-response', got 'pgd'",
        ),
        ({"kind": "sa-rl"}, "expected an epsilon for the adversary 'sa-rl'"),
        ({"kind": "traitor", "epsilon": 0.1}, "expected no epsilon and no joint adversary for 'traitor'"),
        ({"kind": "pa-ad", "epsilon": 0.1, "search": 9}, "expected a search of at most 4"),
        ({"kind": "pa-ad", "epsilon": 0.1, "agents": ["x"]}, "got 'x'"),
        ({"kind": "sa-rl", "epsilon": 0.1, "env_steps": 200}, "expected env_steps ≥ 16,000 .* got 200; give"),
    ],
)
def test_adversaries_that_cannot_be_asked_for(settings: dict[str, Any], message: str, tmp_path: Path) -> None:
    team(SPREAD).save(tmp_path / "victim")
    with pytest.raises(ValueError, match=message):
        train_adversary(tmp_path / "victim", **settings)
    assert not (tmp_path / "adversaries").exists()


@pytest.mark.parametrize(
    "asked", [{"kind": "pa-ad", "epsilon": 0.1}, {"kind": "traitor", "agents": ["agent_0"]}]
)
def test_few_environment_steps_are_kept(asked: dict[str, Any], tmp_path: Path) -> None:
    team(SPREAD).save(tmp_path / "victim")
    config = AdversaryRequest(**asked, env_steps=200, search=1).config(tmp_path / "victim")
    assert (config.env_steps, config.ppo.train_batch_size, config.ppo.minibatch_size) == (200, 200, 200)
    assert config.resources.copies <= 200
