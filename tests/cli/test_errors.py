"""What a person sees when something is wrong: one line, a cure, exit code 2, nothing written."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import typer

from marl_aajr.cli.app import BUG, MISUSE, report
from marl_aajr.core.checks import NonFiniteError
from marl_aajr.core.environment_values import EnvironmentFault


class RayTaskError(ValueError):
    """Shaped as Ray's: the message is a remote traceback, the cause is the error."""

    def __init__(self, cause: Exception) -> None:
        super().__init__("ray::train() (pid=1)\nTraceback (most recent call last):\n  ...")
        self.cause = cause


RayTaskError.__module__ = "ray.exceptions"


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ValueError("expected a, got b; do c"), "error: expected a, got b; do c"),
        (
            EnvironmentFault("simple_spread_v3, agent_0: is not finite"),
            "error: simple_spread_v3, agent_0: is not finite",
        ),
        (NonFiniteError("iteration 3: the outputs: 1 NaN"), "error: iteration 3: the outputs: 1 NaN"),
        (
            FileNotFoundError(2, "No such file or directory", "runs/x"),
            "error: No such file or directory: runs/x",
        ),
        (
            typer.TyperException("No such option: --foo"),
            "error: No such option: --foo (-h lists what there is)",
        ),
        (RayTaskError(ValueError("expected a")), "error: expected a"),
    ],
)
def test_what_a_person_can_put_right_is_one_line(
    error: Exception, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert report(error, debug=False) == MISUSE
    assert capsys.readouterr() == ("", f"{line}\n")


def test_several_problems_are_a_line_each(capsys: pytest.CaptureFixture[str]) -> None:
    assert report(ValueError("seed: a\nenv_steps: b"), debug=False) == MISUSE
    assert capsys.readouterr().err == "error: seed: a\nerror: env_steps: b\n"


def test_a_fault_of_ours_leaves_its_traceback_in_a_file(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(KeyError) as caught:
        dict[str, int]()["gone"]
    assert report(caught.value, debug=False) == BUG
    said = capsys.readouterr().err
    assert said.startswith("error: unexpected KeyError: 'gone'; traceback in ")
    assert said.count("\n") == 1
    found = re.search(r"traceback in (\S+)", said)
    assert found is not None
    log = Path(found[1])
    assert "KeyError: 'gone'" in log.read_text()
    log.unlink()


def test_debug_shows_the_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    report(ValueError("expected a"), debug=True)
    said = capsys.readouterr().err
    assert said == "ValueError: expected a\nerror: expected a\n"
