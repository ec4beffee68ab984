"""The scripts that a newcomer and CI start from, run for real on a small stand-in project."""

from __future__ import annotations

import importlib
import os
import shutil
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.patience import PATIENCE

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]

Installed = tuple[Path, "subprocess.CompletedProcess[str]"]

# A PEP 517 back end that needs nothing from an index: the "package" is three stand-ins for the tools.
BACKEND = """
import os, sys, time, zipfile

def lines(*words):
    return "\\n".join(words) + "\\n"

def build_editable(folder, config_settings=None, metadata_directory=None):
    open("builds.log", "a").write("built\\n")
    time.sleep(float(os.environ.get("SLOW", "0")))
    if "FAIL" in os.environ:
        sys.exit(os.environ["FAIL"])
    tool = "import os, sys; print('{0}', *sys.argv[1:]); sys.exit(int(os.environ.get('{0}_CODE', 0)))"
    info = "marl_aajr-0.1.0.dist-info"
    files = {f"{name}.py": tool.format(name) for name in ("ruff", "mypy", "pytest")}
    files[f"{info}/METADATA"] = lines(
        "Metadata-Version: 2.1",
        "Name: marl-aajr",
        "Version: 0.1.0",
        "Provides-Extra: test",
        os.environ.get("NEEDS", ""),
    )
    files[f"{info}/WHEEL"] = lines(
        "Wheel-Version: 1.0", "Generator: stand-in", "Root-Is-Purelib: true", "Tag: py3-none-any"
    )
    files[f"{info}/RECORD"] = "".join(f"{name},,\\n" for name in files)
    with zipfile.ZipFile(os.path.join(folder, "marl_aajr-0.1.0-py3-none-any.whl"), "w") as wheel:
        for name, text in files.items():
            wheel.writestr(name, text)
    return "marl_aajr-0.1.0-py3-none-any.whl"
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    return project_in(tmp_path)


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Installed:
    """A project, and what its first set-up said; each test goes on from where the one before it ended.

    Making an environment takes most of the time of these tests.
    """
    root = project_in(tmp_path_factory.mktemp("installed"))
    return root, run(root / "scripts" / "setup-venv")


def project_in(folder: Path) -> Path:
    root = folder / "a project"
    shutil.copytree(ROOT / "scripts", root / "scripts")
    shutil.copytree(ROOT / ".ci", root / ".ci")
    (root / "setup.cfg").write_text("")
    (root / "constraints.txt").write_text("")
    (root / "backend.py").write_text(BACKEND)
    (root / "pyproject.toml").write_text(
        '[build-system]\nrequires = []\nbuild-backend = "backend"\nbackend-path = ["."]\n'
    )
    return root


def environment(**extra: str) -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if k not in ("PYTHON", "MARL_AAJR_VENV")}
    return {**kept, "PYTHON": sys.executable, "PIP_NO_INDEX": "1", **extra}


def run(script: Path, *arguments: str, **extra: str) -> subprocess.CompletedProcess[str]:
    """Runs a script from a folder that is not the project's."""
    return subprocess.run(
        [str(script), *arguments],
        cwd="/",
        env=environment(**extra),
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )


def builds(project: Path) -> int:
    log = project / "builds.log"
    return len(log.read_text().splitlines()) if log.exists() else 0


def executable(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


def pin(project: Path, version: str) -> None:
    """Change what an environment is made for, so that the next set-up installs again."""
    (project / "constraints.txt").write_text(f"numpy=={version}\n")


def test_set_up_installs_once_and_again_only_when_something_changed(installed: Installed) -> None:
    project, first = installed
    setup = project / "scripts" / "setup-venv"
    assert first.returncode == 0, first.stderr
    assert first.stdout == f"{project}/.venv\n"
    assert "Installing" in first.stderr
    again = run(setup)
    assert (again.returncode, again.stdout, again.stderr, builds(project)) == (0, first.stdout, "", 1)

    assert run(setup, "test").returncode == 0
    assert builds(project) == 2
    assert run(setup, "test").stderr == run(setup).stderr == ""  # the tests' environment serves the demo too
    assert builds(project) == 2

    pin(project, "2.4.6")
    assert run(setup).returncode == 0
    assert builds(project) == 3
    assert run(setup, "test").stderr == ""  # and what the tests need was not taken away


def test_checks_all_run_and_the_exit_code_tells(installed: Installed) -> None:
    test = installed[0] / "scripts" / "test"
    good = run(test, "-k", "some name")
    assert good.returncode == 0, good.stderr
    lines = [line for line in good.stdout.splitlines() if not line.startswith("==")]
    in_parallel = "--dist loadfile --no-loadscope-reorder"
    pytest_ran = f"pytest --numprocesses 3 {in_parallel} -k some name"
    assert lines == [pytest_ran, "ruff check", "ruff format --check", "mypy"]
    fast = run(test, "--fast", "tests/core").stdout.splitlines()[1]
    assert fast == f"pytest --numprocesses 2 {in_parallel} -m not ray and not slow tests/core"
    assert run(test, pytest_CODE="3").returncode == 3
    bad = run(test, mypy_CODE="1")
    assert bad.returncode == 1
    assert "pytest" in bad.stdout
    assert bad.stdout.endswith("Also failed: mypy\n")


def test_an_installation_that_was_killed_is_repaired(installed: Installed) -> None:
    project, _ = installed
    setup, before = project / "scripts" / "setup-venv", builds(project)
    pin(project, "2.4.5")
    process = subprocess.Popen(
        [str(setup)], env=environment(SLOW="30"), stderr=subprocess.PIPE, start_new_session=True
    )
    deadline = time.monotonic() + PATIENCE
    while builds(project) == before and time.monotonic() < deadline:
        time.sleep(0.1)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    (project / ".venv" / "bin" / "python").unlink()

    repaired = run(setup)
    assert repaired.returncode == 0, repaired.stderr
    assert "cut off" in repaired.stderr
    assert run(setup).stderr == ""


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        ({"FAIL": "error: command 'g++' failed: No such file or directory"}, "needs a compiler"),
        ({"NEEDS": "Requires-Dist: a-package-that-is-not-there\n"}, "check the network"),
    ],
)
def test_a_failed_installation_is_explained_in_one_line(
    installed: Installed, fault: dict[str, str], says: str
) -> None:
    project, _ = installed
    pin(project, "2.4.4")
    failed = run(project / "scripts" / "setup-venv", **fault)
    assert failed.returncode == 2
    assert failed.stdout == ""
    last = failed.stderr.splitlines()[-1]
    assert last.startswith("error: ")
    assert says in last
    assert "Traceback" not in failed.stderr


def test_a_python_that_is_too_old_is_named_with_the_cure(project: Path, tmp_path: Path) -> None:
    old = executable(tmp_path / "python3", "#!/bin/sh\necho 3.9.2 yes\n")
    refused = run(project / "scripts" / "setup-venv", PYTHON=str(old))
    assert refused.returncode == 2
    assert refused.stderr.startswith("error: no usable Python 3.11, 3.12 or 3.13")
    assert "is 3.9.2" in refused.stderr
    assert "PYTHON=/path/to" in refused.stderr
    assert not (project / ".venv").exists()


def test_a_python_without_venv_is_named_with_the_package_to_install(project: Path, tmp_path: Path) -> None:
    bare = executable(tmp_path / "python3", "#!/bin/sh\necho 3.12.1 no\n")
    refused = run(project / "scripts" / "setup-venv", PYTHON=str(bare))
    assert refused.returncode == 2
    assert "apt-get install python3.12-venv" in refused.stderr


def test_a_full_disk_is_named_before_anything_is_installed(project: Path, tmp_path: Path) -> None:
    executable(tmp_path / "bin" / "df", "#!/bin/sh\nprintf 'Filesystem\\n/dev/x 9 9 2097152 9%% /\\n'\n")
    refused = run(project / "scripts" / "setup-venv", PATH=f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    assert refused.returncode == 2
    assert "expected 4 GiB free" in refused.stderr
    assert "got 2 GiB" in refused.stderr
    assert not (project / ".venv").exists()


def test_a_folder_that_is_no_environment_is_left_alone(project: Path, tmp_path: Path) -> None:
    thesis = tmp_path / "mine" / "thesis.tex"
    thesis.parent.mkdir()
    thesis.write_text("mine")
    refused = run(project / "scripts" / "setup-venv", MARL_AAJR_VENV=str(thesis.parent))
    assert refused.returncode == 2
    assert "neither a virtual environment nor empty" in refused.stderr
    assert thesis.read_text() == "mine"


SET_UP = """#!/bin/sh
echo "Making a virtual environment in $MARL_AAJR_VENV" >&2
mkdir -p "$MARL_AAJR_VENV/bin" && cp "$0-python" "$MARL_AAJR_VENV/bin/python" && echo "$MARL_AAJR_VENV"
"""
"""A stand-in for `scripts/setup-venv`, and for the Python that it makes an environment of."""

PYTHON = """#!/bin/sh
shift
echo "$@"
[ "$1" != pytest ] || exit 5
"""


def test_ci_uses_a_fresh_environment_and_passes_the_verdict_on(project: Path, tmp_path: Path) -> None:
    executable(project / "scripts" / "setup-venv", SET_UP)
    executable(project / "scripts" / "setup-venv-python", PYTHON)
    for browser in ("chromium", "chromedriver"):  # which it would install
        executable(tmp_path / "bin" / browser, "#!/bin/sh\n")
    path = f"{tmp_path / 'bin'}:{os.environ['PATH']}"
    verdict = run(project / ".ci" / "run", PATH=path)
    assert verdict.returncode == 5
    assert verdict.stdout.splitlines()[1].startswith("pytest ")
    (made,) = (line for line in verdict.stderr.splitlines() if line.startswith("Making "))
    assert not Path(made.split(" in ")[1]).exists()
    assert not (project / ".venv").exists()


def test_the_check_of_other_packages_says_what_it_installs_and_knows_its_names() -> None:
    script = ROOT / "scripts" / "check_environments"
    shown = run(script, "--help")
    assert shown.returncode == 0, shown.stderr
    assert "gymnasium-robotics mujoco<=3.5" in shown.stdout
    refused = run(script, "nowhere")
    assert refused.returncode == 2
    assert "expected names out of mamujoco, " in refused.stderr


def test_the_check_of_other_packages_writes_the_table_of_the_reference(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    check = importlib.import_module("check_environments")
    before = check.REFERENCE.read_text(encoding="utf-8")
    (copy := tmp_path / "environments.md").write_text(before, encoding="utf-8")
    rows = [
        {"title": one.title, "version": "9.9", "needed": "time", "error": "no"}
        for one in check.ENVIRONMENTS.values()
    ]
    check.write(rows, copy)
    after = copy.read_text(encoding="utf-8")
    assert after.count("| 9.9 | time | no |") == len(rows) == 12
    kept = [line for line in before.splitlines() if " | " not in line or "| needed |" in line]
    assert [line for line in after.splitlines() if line in kept] == kept
