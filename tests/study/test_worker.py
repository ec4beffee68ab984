"""Which machines do the work of a study."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from marl_aajr.adversaries.request import AdversaryRequest
from marl_aajr.study.folder import StudyFolder
from marl_aajr.study.search import Trial, try_once
from marl_aajr.study.study_config import EnvironmentEntry, TuningEntry
from marl_aajr.study.worker import StudyLocation, against_the_team, do_node
from marl_aajr.training.run_record import software


def test_a_machine_that_joined_with_other_versions_does_nothing(tmp_path: Path) -> None:
    place, expected = StudyLocation(str(tmp_path), "this"), {**software(), "torch": "1.0"}
    with pytest.raises(RuntimeError, match=r"versions of the study's own process.*has torch .*, not 1\.0;"):
        do_node({}, nodes={}, location=place, flag=None, expected=expected)


@pytest.mark.parametrize("there", [True, False])
def test_a_machine_that_does_not_see_the_folder_does_nothing(there: bool, tmp_path: Path) -> None:
    """Or sees another one under the same path."""
    folder = StudyFolder(tmp_path / "out")
    if there:
        folder.path.mkdir()
        folder.identity_file.write_text("another\n")
    place = StudyLocation(str(folder.path), "this")
    with pytest.raises(RuntimeError, match=rf"to see the study's folder {folder.path}, .*give .* a storage"):
        do_node({}, nodes={}, location=place, flag=None, expected=software())
    assert not folder.runs.exists()


def test_a_machine_that_joined_with_other_versions_tries_no_settings(tmp_path: Path) -> None:
    place, expected = StudyLocation(str(tmp_path), "this"), {**software(), "torch": "1.0"}
    trial = Trial(TuningEntry(trials=1, env_steps=100), {}, tmp_path / "trials", None)
    with pytest.raises(RuntimeError, match=r"has torch .*, not 1\.0;"):
        try_once({}, trial=trial, location=place, expected=expected)
    assert not trial.folder.exists()


@pytest.mark.parametrize("kind", ["opponent", "best-response"])
def test_opponents_play_against_the_team_that_is_evaluated(kind: Any) -> None:
    environment = EnvironmentEntry(name="simple_tag_v3", team="good")
    request = against_the_team(AdversaryRequest(kind=kind), environment)
    assert (request.threat, request.agents) == ({"team": "good"}, None)
