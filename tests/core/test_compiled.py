"""The kernel is compiled once for this machine, and its absence is noticed only by the clock."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

from marl_aajr.core import compiled, mlp_kernel
from marl_aajr.core.compiled import ENVIRONMENT_VARIABLE
from marl_aajr.core.mlp import PlainMLP
from marl_aajr.core.mlp_kernel import MLPKernel
from marl_aajr.core.mlp_torch import TorchPass
from tests.core.test_mlp_kernel import needs_compiler, stack


def forget() -> None:
    mlp_kernel._library.cache_clear()
    compiled.compiled.cache_clear()


@pytest.fixture
def cold_library(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv(ENVIRONMENT_VARIABLE, raising=False)
    forget()
    yield
    forget()


@pytest.mark.usefixtures("cold_library")
class TestWithoutKernel:
    """PyTorch serves."""

    def check(self) -> None:
        layers = list(stack((4, 8, 2)))
        assert not MLPKernel.serves(layers)
        made = PlainMLP(layers).forward(x := torch.randn(3, 4))
        assert isinstance(made, TorchPass)
        torch.testing.assert_close(made.outputs, nn.Sequential(*layers)(x))
        with pytest.raises(ValueError, match="expected float32 weights on the CPU and a C\\+\\+ compiler"):
            MLPKernel(layers)

    def test_switched_off(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv(ENVIRONMENT_VARIABLE, "0")
        self.check()

    def test_no_compiler(self, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
        monkeypatch.setenv("CXX", "no-such-compiler")
        with caplog.at_level(logging.INFO):
            self.check()
        assert "no C++ compiler" in caplog.text

    def test_a_compiler_that_fails(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        compiler = tmp_path / "compiler"
        compiler.write_text("#!/bin/sh\necho 'out of ideas' >&2\nexit 1\n", encoding="utf-8")
        compiler.chmod(0o755)
        monkeypatch.setenv("CXX", str(compiler))
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
        self.check()
        assert "out of ideas" in caplog.text
        assert not list(tmp_path.rglob("*.so"))


@needs_compiler
@pytest.mark.usefixtures("cold_library")
def test_the_library_is_kept_for_the_next_process_where_it_can_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The compiler works once: the second one hands out what it made, as there is nowhere to keep it."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert MLPKernel.serves([nn.Linear(1, 1)])
    (library,) = tmp_path.rglob("*.so")
    made = library.stat().st_mtime_ns
    forget()
    assert MLPKernel.serves([nn.Linear(1, 1)])
    assert [path.stat().st_mtime_ns for path in tmp_path.rglob("*.so")] == [made]

    (occupied := tmp_path / "file").touch()
    (compiler := tmp_path / "compiler").write_text(f'#!/bin/sh\nfor made; do :; done\ncp {library} "$made"\n')
    compiler.chmod(0o755)
    monkeypatch.setenv("CXX", str(compiler))
    monkeypatch.setenv("XDG_CACHE_HOME", str(occupied))
    forget()
    assert MLPKernel.serves([nn.Linear(1, 1)])
