"""A reader meets the old file or the new one, never half of either."""

from __future__ import annotations

from pathlib import Path

import pytest

from marl_aajr.training.files import replaced


def test_a_file_is_replaced_when_all_of_it_is_written(tmp_path: Path) -> None:
    file = tmp_path / "table"
    file.write_text("old")
    with replaced(file) as new:
        new.write_text("new")
        assert file.read_text() == "old"
    assert file.read_text() == "new"
    assert file.stat().st_mode & 0o777 == 0o644
    assert list(tmp_path.iterdir()) == [file]


def test_a_file_whose_successor_fails_stays_as_it_was(tmp_path: Path) -> None:
    file = tmp_path / "table"
    file.write_text("old")
    with pytest.raises(OSError, match="full"), replaced(file) as new:
        _write_half(new)
    assert file.read_text() == "old"
    assert list(tmp_path.iterdir()) == [file]


def _write_half(file: Path) -> None:
    file.write_text("ne")
    raise OSError("the disk is full")
