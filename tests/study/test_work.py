"""Which machines do the work of a study."""

from __future__ import annotations

from pathlib import Path

import pytest

from marl_aajr.study.work import Place, work
from marl_aajr.training.nodes import software


def test_a_machine_that_joined_with_other_versions_does_nothing(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match=r"versions of the study's own process.*has torch .*, not 1\.0;"):
        work({}, nodes={}, place=Place(str(tmp_path), ""), flag=None, expected={**software(), "torch": "1.0"})


def test_a_machine_that_does_not_see_the_folder_does_nothing(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match=rf"to see the study's folder {tmp_path}/out, .*give .* a storage"):
        work({}, nodes={}, place=Place(f"{tmp_path}/out", ""), flag=None, expected=software())
    assert not any(tmp_path.iterdir())
