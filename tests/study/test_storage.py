"""Finished work is kept wherever pyarrow or fsspec can write."""

from __future__ import annotations

import traceback
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from pyarrow.fs import copy_files

from marl_aajr.study.folder import Storage
from marl_aajr.study.study_config import masked


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A finished run, with a finished adversary."""
    run = tmp_path / "run"
    for folder in (run, run / "adversaries" / "one"):
        (folder / "victim").mkdir(parents=True)
        (folder / "status.json").write_text("finished")
        (folder / "victim" / "weights").write_bytes(b"\x00\x01")
    (run / "adversaries" / "one" / "adversary.json").write_text("ready")
    return run


def names(folder: Path) -> set[str]:
    """Of all files in a folder."""
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("kind", ["path", "file", "memory", "s3"])
def test_what_is_pushed_is_pulled_elsewhere_without_checkpoints(
    kind: str, run: Path, tmp_path: Path, s3: str
) -> None:
    uri = {
        "path": f"{tmp_path}/store",
        "file": f"file://{tmp_path}/store",
        "memory": f"memory:/{tmp_path}",
        "s3": s3,
    }[kind]
    files = names(run)
    (run / "checkpoints" / "000010").mkdir(parents=True)
    (run / "checkpoints" / "000010" / "state").write_text("large")
    for _ in range(2):
        Storage(uri).push(run, "runs/one")
    Storage(uri).pull("", tmp_path / "there")
    assert names(tmp_path / "there") == {f"runs/one/{name}" for name in files}
    assert (tmp_path / "there/runs/one/victim/weights").read_bytes() == b"\x00\x01"


def test_pulling_keeps_what_is_here(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "status.json").write_text("old")
    storage = Storage(str(tmp_path / "store"))
    storage.push(tmp_path / "run", "runs/one")
    (tmp_path / "run" / "status.json").write_text("new")
    storage.pull("runs/one", tmp_path / "run")
    assert (tmp_path / "run" / "status.json").read_text() == "new"


class _KilledError(Exception):
    """Stands for `kill -9`."""


def killed(patch: pytest.MonkeyPatch, *, after: int) -> None:
    """From here on copying ends in the middle of a file, after so many whole ones."""
    copied = count()

    def die(source: str, target: str, **where: Any) -> None:
        if next(copied) == after:
            Path(target).write_text("half")
            raise _KilledError
        copy_files(source, target, **where)

    patch.setattr("marl_aajr.study.folder.copy_files", die)


@pytest.mark.parametrize("after", range(5))
@pytest.mark.parametrize("way", ["push", "pull"])
def test_what_a_killed_copy_leaves_is_whole_and_has_no_state_without_what_it_speaks_of(
    way: str, after: int, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, there = Storage(str(tmp_path / "store")), tmp_path / "there"
    if way == "pull":
        store.push(run, "runs/one")
    with monkeypatch.context() as patch:
        killed(patch, after=after)
        with pytest.raises(_KilledError):
            store.push(run, "runs/one") if way == "push" else store.pull("", there)
    if way == "push":
        store.pull("", there)
    copied = names(there)
    assert len(copied) == after
    assert all((there / name).read_text() != "half" for name in copied)
    for state in (name for name in copied if name.endswith(".json")):
        assert str(Path(state).parent / "victim" / "weights") in copied


def test_two_nodes_may_push_the_same_run(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Storage(str(tmp_path / "store"))

    def meanwhile(source: str, target: str, **where: Any) -> None:
        copy_files(source, target, **where)
        monkeypatch.undo()
        store.push(run, "runs/one")

    monkeypatch.setattr("marl_aajr.study.folder.copy_files", meanwhile)
    store.push(run, "runs/one")
    assert names(tmp_path / "store") == {f"runs/one/{name}" for name in names(run)}


@pytest.mark.parametrize("kind", ["path", "s3"])
def test_nothing_under_a_name_is_nothing(kind: str, tmp_path: Path, s3: str) -> None:
    Storage({"path": str(tmp_path / "store"), "s3": s3}[kind]).pull("runs/none", tmp_path / "here")
    assert not (tmp_path / "here").exists()


def test_a_place_that_is_none_is_named() -> None:
    with pytest.raises(ValueError, match=r"storage: .*got 'nowhere://x'.*Protocol not known"):
        Storage("nowhere://x")


def test_a_bucket_that_is_not_there_is_named(s3: str) -> None:
    with pytest.raises(ValueError, match=r"storage: .*'absent'"):
        Storage(s3.replace("bucket", "absent", 1))


PLACES = {
    "s3://AKIAEXAMPLE:se%2Fcret+word@bucket/a?region=x": "s3://***@bucket/a?region=x",
    "s3://AKIAEXAMPLE:se/cret@word@bucket/a": "s3://***@bucket/a",
    "s3://bucket/a?access_key=AKIAEXAMPLE&secret_key=se/cret&scheme=http": (
        "s3://bucket/a?access_key=***&secret_key=***&scheme=http"
    ),
    "az://box/a?sas_token=se%2Fcret": "az://box/a?sas_token=***",
    "sftp://somebody:pw@host:22/a": "sftp://***@host:22/a",
    "s3://bucket/a@b?endpoint_override=host:9000": "s3://bucket/a@b?endpoint_override=host:9000",
    "/home/me/a:b": "/home/me/a:b",
}


@pytest.mark.parametrize("uri", PLACES)
def test_credentials_of_a_place_are_not_repeated(uri: str) -> None:
    assert masked(uri, uri) == PLACES[uri]
    told = masked(f"cannot use {uri} with se/cret+word of AKIAEXAMPLE", uri)
    if "AKIA" in uri:
        assert "AKIA" not in told
    if "%2Fcret+" in uri:
        assert told.endswith("with *** of ***")


def test_an_error_of_a_place_does_not_repeat_its_credentials(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    password = "hidden"
    with pytest.raises(ValueError, match=r"got 'nowhere://\*\*\*@x'") as refused:
        Storage(f"nowhere://somebody:{password}@x")
    storage = Storage(str(tmp_path / "store"))
    storage.uri = f"s3://somebody:{password}@x"

    def fail(*_: object, **__: object) -> None:
        try:
            raise OSError(f"no answer from {storage.uri}")
        except OSError as error:
            raise KeyError("not found") from error

    monkeypatch.setattr("marl_aajr.study.folder.copy_files", fail)
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="not found") as failed:
        storage.push_file(tmp_path / "file", "file")
    for error in (refused.value, failed.value):
        assert password not in "".join(traceback.format_exception(error))
