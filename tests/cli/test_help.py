"""Help that teaches, at once."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from marl_aajr import __version__
from marl_aajr.cli import app, certify, compare, evaluate, study, train
from marl_aajr.cli.app import main
from marl_aajr.study.study_config import EnvironmentEntry, load_study
from tests.cli.conftest import Run

HELP = {
    "train": train.HELP,
    "evaluate": evaluate.HELP,
    "certify": certify.HELP,
    "compare": compare.HELP,
    "list": app.LIST,
}


Shown = Callable[..., str]


@pytest.fixture
def shown(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Shown:
    """What a command prints in this process, where it ends well."""

    def run(*words: str, columns: int = 100) -> str:
        monkeypatch.setenv("COLUMNS", str(columns))
        with pytest.raises(SystemExit) as ended:
            main(words)
        printed = capsys.readouterr()
        assert (ended.value.code, printed.err) == (0, "")
        return printed.out

    return run


@pytest.mark.parametrize("command", HELP)
def test_every_command_shows_examples_that_a_narrow_terminal_does_not_wrap(
    shown: Shown, command: str
) -> None:
    lines = [line.strip() for line in shown(command, "--help", columns=80).splitlines()]
    after = HELP[command].split("Examples:\n")[1]
    examples = [line.strip() for line in after.partition("\n\n")[0].splitlines()]
    assert examples
    assert all(line.startswith(f"marl-aajr {command} ") and line in lines for line in examples)


def test_without_a_command_the_help_is_all_that_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([])
    printed = capsys.readouterr()
    assert (ended.value.code, printed.err) == (2, "")
    assert "evaluate" in printed.out


def test_help_of_train_has_every_setting_with_its_default(shown: Shown) -> None:
    text = " ".join(re.sub(r"[│╭╮╰╯─]", " ", shown("train", "-h")).split())
    for setting in train.SETTINGS:
        assert f" {setting.flag} " in text
    assert "[default: 1000000; at least 1]" in text
    assert "override --config" in text
    assert "'[[env_step, value], ...]'" in text


def test_help_does_not_wait_for_torch_or_ray() -> None:
    """The whole of it takes about 0.3 s; torch alone would be 1.3 s, Ray 3 s."""
    program = (
        "import sys, marl_aajr.cli.app; print(*{'torch', 'ray', 'pydantic', 'gymnasium'} & set(sys.modules))"
    )
    loaded = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert loaded.stdout == "\n"


def test_help_of_evaluate_has_the_keys_of_its_json_a_line_each(shown: Shown) -> None:
    lines = [line.strip() for line in shown("evaluate", "--help", columns=80).splitlines()]
    assert all(line.strip() in lines for line in evaluate.JSON.splitlines())


def test_help_of_study_shows_a_file_that_is_one(shown: Shown, tmp_path: Path) -> None:
    text = shown("study", "--help", columns=80)
    assert all(line in text for line in study.EXAMPLE.splitlines())
    file = tmp_path / "mine.yaml"
    file.write_text(study.EXAMPLE)
    read, _ = load_study(file)
    assert [method.name for method in read.methods] == ["none", "aajr"]
    assert read.environments[1] == EnvironmentEntry(name="simple_tag_v3")


def test_version(cli: Run) -> None:
    assert cli("--version").stdout == f"marl-aajr {__version__}\n"


def test_without_a_command_the_help_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main([])
    text = capsys.readouterr().out
    assert all(command in text for command in HELP)


@pytest.mark.parametrize(
    ("kind", "names"),
    [
        ("envs", {"simple_spread_v3", "sisl/pursuit-v5"}),
        ("methods", {"none", "aajr"}),
        ("attacks", {"noise", "fgsm", "pgd"}),
    ],
)
def test_lists_are_for_people_and_for_programs(shown: Shown, kind: str, names: set[str]) -> None:
    entries = json.loads(shown("list", kind, "--json"))
    assert all(set(entry) == {"name", "summary"} and entry["summary"] for entry in entries)
    assert names <= {entry["name"] for entry in entries}
    assert [line.split()[0] for line in shown("list", kind).splitlines()] == [
        entry["name"] for entry in entries
    ]


@pytest.mark.parametrize(
    ("kind", "key", "says"),
    [
        ("run", "ppo.clip", "[default: 0.2; above 0]"),
        ("run", "model.activation", "[tanh|relu|silu; default: tanh]"),
        ("run", "env.name", "[required]"),
        ("study", "environments[].team", "[default: the largest]"),
        ("aajr", "coefficient", "λ ≥ 0, weight of the penalty"),
        ("pgd", "perturbations.norm", "[linf|l2; default: linf]"),
    ],
)
def test_the_keys_of_a_file_and_the_settings_of_a_method_are_listed(
    shown: Shown, kind: str, key: str, says: str
) -> None:
    (line,) = (line for line in shown("list", kind).splitlines() if line.split()[0] == key)
    assert says in line
