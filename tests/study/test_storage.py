"""Finished work is kept wherever pyarrow or fsspec can write."""

from __future__ import annotations

from pathlib import Path

import pytest

from marl_aajr.study.storage import Storage


@pytest.mark.parametrize("kind", ["path", "file", "memory"])
def test_what_is_pushed_is_pulled_elsewhere_without_checkpoints(kind: str, tmp_path: Path) -> None:
    uri = {"path": f"{tmp_path}/store", "file": f"file://{tmp_path}/store", "memory": f"memory:/{tmp_path}"}[
        kind
    ]
    run = tmp_path / "run"
    (run / "victim").mkdir(parents=True)
    (run / "checkpoints" / "000010").mkdir(parents=True)
    (run / "status.json").write_text("finished")
    (run / "victim" / "weights").write_bytes(b"\x00\x01")
    (run / "checkpoints" / "000010" / "state").write_text("large")
    Storage(uri).push(run, "runs/one")
    Storage(uri).pull("", tmp_path / "there")
    found = {str(p.relative_to(tmp_path / "there")) for p in (tmp_path / "there").rglob("*") if p.is_file()}
    assert found == {"runs/one/status.json", "runs/one/victim/weights"}
    assert (tmp_path / "there/runs/one/victim/weights").read_bytes() == b"\x00\x01"


def test_pulling_keeps_what_is_here(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "status.json").write_text("old")
    storage = Storage(str(tmp_path / "store"))
    storage.push(tmp_path / "run", "runs/one")
    (tmp_path / "run" / "status.json").write_text("new")
    storage.pull("runs/one", tmp_path / "run")
    assert (tmp_path / "run" / "status.json").read_text() == "new"


def test_nothing_under_a_name_is_nothing(tmp_path: Path) -> None:
    Storage(str(tmp_path / "store")).pull("runs/none", tmp_path / "here")
    assert not (tmp_path / "here").exists()


def test_a_place_that_is_none_is_named() -> None:
    with pytest.raises(ValueError, match=r"storage: .*got 'nowhere://x'.*Protocol not known"):
        Storage("nowhere://x")
