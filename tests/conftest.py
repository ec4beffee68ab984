"""Ray, once for all tests that ask for it, and the marks by which `scripts/test --fast` chooses."""

from __future__ import annotations

import gc
import inspect
import os
import shlex
import subprocess
import sys
from collections.abc import Generator, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace

import numpy as np
import pytest
import torch

STARTS_RAY = ("cli", "cluster", "rllib", "study", "training")
"""Folders whose tests start Ray, here or in processes of their own."""

LONG = (
    "cluster/test_nodes.py",
    "cluster/test_submit.py",
    "cluster/test_slurm.py",
    "test_readme.py",
    "cli/test_end_to_end.py",
    "study/test_study.py",
    "test_examples.py",
    "training/test_trainer.py",
    "training/test_resume.py",
    "training/test_asynchronous.py",
    "test_scripts.py",
    "study/test_tuning.py",
    "study/test_loggers.py",
    "rllib/test_algorithms.py",
    "training/test_cluster.py",
    "training/test_faults.py",
    "training/test_adversarial_training.py",
    "evaluation/test_workers.py",
)
"""The files that take longest: begun late, one of them would run alone in the end.

Those with clusters of their own come first, where there is no other Ray that they would stop and start again.
"""

QUOTED_PYTHON = (
    None if shlex.quote(sys.executable) == sys.executable else {"py_executable": shlex.quote(sys.executable)}
)
"""The runtime environment that Ray needs where the path of this Python has a space."""

STARTUP = Path(__file__).parent / "startup"
"""What every Python that a test starts imports first."""


gc.disable()  # Until everything is imported, there is nothing to collect.
# Ray's workers, and other processes, import as much: see the module there.
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(STARTUP), os.environ.get("PYTHONPATH")]))
os.environ |= {
    # Most of the Rays that are started here, and their nodes, would start workers that nobody asks for.
    "RAY_enable_worker_prestart": "0",
    "RAY_prestart_worker_first_driver": "0",
    # Those that are asked for are forked where Ray, which reads these while it is loaded, is loaded already.
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    # Nobody looks at what its agents would measure every few seconds.
    "RAY_memory_monitor_refresh_ms": "0",
    "REPORTER_UPDATE_INTERVAL_MS": "600000",
}


def pytest_configure(config: pytest.Config) -> None:
    """A folder for the processes of this session, the same for all processes of it."""
    if not hasattr(config, "workerinput"):
        folder = TemporaryDirectory(prefix="warm")
        os.environ["WARM_START"] = folder.name
        config.add_cleanup(folder.cleanup)


def pytest_collection_finish(session: pytest.Session) -> None:
    """Collect from here on, and never look again at what is imported; have Ray's workers forked."""
    gc.enable()
    gc.freeze()
    look_no_further_than_the_caller()
    if any(item.get_closest_marker("ray") for item in session.items):
        start_warm_start(os.getppid() if hasattr(session.config, "workerinput") else os.getpid())


def look_no_further_than_the_caller() -> None:
    """Spare RLlib's connectors, which look for who makes them, the sources of everybody further up.

    Under pytest that are many: 0.2 s for each connector, of which a learner has seven.
    """
    if module := sys.modules.get("ray.rllib.connectors.connector_v2"):
        cheap = SimpleNamespace(stack=partial(inspect.stack, 0), getargvalues=inspect.getargvalues)
        vars(module)["inspect"] = cheap


def start_warm_start(owner: int) -> None:
    """Start the process that forks Ray's workers, where none has done it."""
    folder = os.environ["WARM_START"]
    with suppress(FileExistsError):
        Path(folder, "started").touch(exist_ok=False)
        words = [sys.executable, str(STARTUP / "warm_start.py"), folder, str(owner)]
        nothing = subprocess.DEVNULL  # Who reads the output of the tests is not to wait for this process.
        subprocess.Popen(words, stdin=nothing, stdout=nothing, stderr=nothing, start_new_session=True)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark as `ray` what starts it, and put the longest files first."""
    for item in items:
        fixtures = getattr(item, "fixturenames", ())
        if in_tests(item.path).parts[0] in STARTS_RAY or "ray_session" in fixtures:
            item.add_marker(pytest.mark.ray)
    rank = {name: place for place, name in enumerate(LONG)}
    items.sort(key=lambda item: rank.get(in_tests(item.path).as_posix(), len(LONG)))


def in_tests(path: Path) -> Path:
    """The path from this folder."""
    return path.relative_to(Path(__file__).parent)


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Read no folder of which everything starts Ray where what does is left out."""
    left_out = "not ray" in config.getoption("markexpr") and collection_path.parent == Path(__file__).parent
    return True if left_out and collection_path.name in STARTS_RAY else None


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    """Fixtures of a module, too, have random numbers that do not depend on what ran before."""
    seed_global_generators()


@pytest.fixture(autouse=True)
def _seeded() -> None:
    """Nor do those of a test depend on whether it is the first of its module."""
    seed_global_generators()


def seed_global_generators() -> None:
    """Python's own is left alone: Ray draws ports from it, and several processes start Rays."""
    np.random.seed(0)  # noqa: NPY002 - RLlib draws from it
    torch.manual_seed(0)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    call: pytest.CallInfo[None],
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """After a timeout, show the end of Ray's own log, which says which process could not start, and why."""
    report = yield
    if (
        call.excinfo
        and "Timeout" in str(call.excinfo.value)
        and (log := Path("/tmp/ray/session_latest/logs/raylet.err")).exists()
    ):
        report.sections.append((str(log), "\n".join(log.read_text(errors="replace").splitlines()[-20:])))
    return report


@pytest.fixture(scope="session")
def ray_session() -> Iterator[None]:
    """A local Ray with two CPUs; starting one takes seconds."""
    start_ray()
    yield
    import ray

    ray.shutdown()


@pytest.fixture
def two_threads() -> Iterator[None]:
    """What a library user may have set torch to."""
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Empty figures, for tests of what a report says: drawing takes most of the time of a page."""
    draw_nothing(monkeypatch)


def draw_nothing(patch: pytest.MonkeyPatch) -> None:
    """As long as the patch is there."""
    empty = '<svg viewBox="0 0 1 1"></svg>'
    patch.setattr("matplotlib.figure.Figure.savefig", lambda self, file, **_: file.write(empty))


def start_ray() -> None:
    """What the fixture starts; again after a test that had to stop it."""
    with pytest.MonkeyPatch.context() as patch:
        # Nobody reads what the one would pass on, and the other has nothing to scale.
        for process in ("start_log_monitor", "start_monitor"):
            patch.setattr(f"ray._private.node.Node.{process}", lambda node: None)
        _start_ray()


def _start_ray() -> None:
    os.environ["WANDB_MODE"] = "offline"
    import ray
    from ray.tune.utils.util import UtilMonitor

    # It sleeps between two looks at the load, which every algorithm that stops would wait for.
    UtilMonitor.join = lambda monitor: None
    ray.init(
        address="local",
        num_cpus=2,
        include_dashboard=False,
        log_to_driver=False,
        logging_level="ERROR",
        runtime_env=QUOTED_PYTHON,
    )
