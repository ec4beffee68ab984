"""Every example runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.forked import Forked, joining

EXAMPLES = sorted((Path(__file__).parent.parent / "scripts" / "examples").glob("*.py"))

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("program", EXAMPLES, ids=lambda path: path.stem)
def test_each_example_runs(program: Path, ray_session: None, tmp_path: Path) -> None:
    done = Forked([program], cwd=tmp_path, **joining()).finish()
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.strip()
