"""Every method gets the same search; what it decided is kept, used, and can be repeated."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from marl_aajr.study.driver import prepare
from marl_aajr.study.folder import StudyFolder
from marl_aajr.study.progress import StudyPlan
from marl_aajr.study.tuning import budgets
from marl_aajr.training.files import write_json
from tests.study.files import TINY, do, do_here, write_study

pytestmark = pytest.mark.usefixtures("ray_session")

TUNE = {"trials": 2, "env_steps": 400, "rungs": 2, "reduction": 4, "episodes": 2, "robust_weight": 0.25}
METHODS = [
    {"name": "none", "search": {"ppo.lr": {"low": 1e-3, "high": 1e-1, "log": True}}},
]


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory) -> StudyPlan:
    """A search that was stopped after its first score, and gone on with."""
    folder = tmp_path_factory.mktemp("tuned")
    file = write_study(folder, methods=METHODS, tune=TUNE, max_concurrent=1)
    plan = prepare(file, out=folder / "out")

    def once_scored() -> bool:
        return any(event["event"] == "trial" for event in plan.folder.events())

    do(plan, should_stop=once_scored)
    assert not list(plan.folder.tuning.glob("*/decisions.json"))
    again = prepare(file, out=folder / "out")
    do_here(again)
    return again


def decisions(plan: StudyPlan) -> dict[str, Any]:
    (file,) = plan.folder.tuning.glob("*/decisions.json")
    return dict(json.loads(file.read_text()))


def test_every_trial_and_its_scores_are_recorded(tuned: StudyPlan) -> None:
    found = decisions(tuned)
    assert len(found["trials"]) == 2
    for trial in found["trials"]:
        assert 1e-3 <= trial["settings"]["ppo.lr"] <= 1e-1
        assert [score["budget"] for score in trial["scores"]] in ([1], [1, 4])
        for score in trial["scores"]:
            assert score["env_steps"] == 100 * score["budget"]
            assert score["score"] == pytest.approx(0.75 * score["clean"] + 0.25 * score["robust"])
    assert found["env_steps"] == sum(trial["scores"][-1]["env_steps"] for trial in found["trials"])


def test_the_best_of_those_that_came_furthest_is_what_the_runs_are_trained_with(tuned: StudyPlan) -> None:
    found = decisions(tuned)
    last = [trial for trial in found["trials"] if len(trial["scores"]) == 2]
    best = max(last, key=lambda trial: float(trial["scores"][-1]["score"]))
    assert found["chosen"] == best["settings"]
    (run,) = tuned.runs
    trained = tuned.folder.run(run.name).config()
    assert trained.ppo.lr == best["settings"]["ppo.lr"]
    assert trained.seed == 0


def test_the_report_shows_the_budget(tuned: StudyPlan) -> None:
    page = tuned.folder.report.read_text()
    assert "log-uniform in [0.001, 0.1]" in page
    assert "can be repeated with --replay" in page


def test_the_trials_can_be_repeated_to_the_same_scores_and_others_are_noticed(tuned: StudyPlan) -> None:
    (file,) = tuned.folder.tuning.glob("*/decisions.json")
    kept = file.read_text()
    forged = json.loads(kept)
    score = forged["trials"][-1]["scores"][0]["clean"]
    forged["trials"][-1]["scores"][0]["clean"] = 1.0
    file.write_text(json.dumps(forged))
    # The one before it is compared first, and agrees.
    with pytest.raises(ValueError, match=rf"expected trial 1 of .* 'clean': 1.0.* got .*'clean': {score}"):
        do(prepare(tuned.source.path, out=tuned.folder.path), again=True)
    file.write_text(kept)


def test_a_search_that_has_changed_is_refused(tuned: StudyPlan, tmp_path: Path) -> None:
    file = write_study(tmp_path, methods=METHODS, tune={**TUNE, "episodes": 3}, max_concurrent=1)
    with pytest.raises(ValueError, match=r"tiny\.yaml:\d+: tune.episodes: 2 → 3; .*change it back"):
        prepare(file, out=tuned.folder.path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seeds": [0]}, r"tune.seeds: expected seeds that the study does not use, got \[0\]"),
        ({"episode_seed": 0}, "tune.episode_seed: expected another seed than the evaluation's, got 0"),
        ({"attack": "pgdd"}, "tune.attack: expected an attack out of noise"),
    ],
)
def test_tuning_is_kept_apart_from_the_evaluation(change: Any, message: str, tmp_path: Path) -> None:
    file = write_study(tmp_path, methods=METHODS, tune={**TUNE, **change})
    with pytest.raises(ValueError, match=rf"tiny\.yaml:\d+: {message}"):
        prepare(file, out=tmp_path / "out")


OTHER_RUN = {**TINY["run"], "ppo": {"train_batch_size": 100, "minibatch_size": 25, "epochs": 1}}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"methods": [{"name": "none", "search": {"ppo.lr": {"low": 1e-6, "high": 1e-5}}}]},
            "search.ppo.lr.low: 0.001 → 1e-06",
        ),
        ({"run": OTHER_RUN}, "run.ppo.minibatch_size: 50 → 25"),
    ],
)
@pytest.mark.parametrize("decided", [True, False])
def test_a_search_of_other_runs_is_refused_even_before_it_has_decided(
    tuned: StudyPlan, change: Any, message: str, decided: bool, tmp_path: Path
) -> None:
    folder = tmp_path / "out"
    left_out = [] if decided else ["decisions.json"]
    shutil.copytree(tuned.folder.path, folder, ignore=shutil.ignore_patterns("runs", "tune", *left_out))
    file = write_study(tmp_path, **{"methods": METHODS, "tune": TUNE, "max_concurrent": 1, **change})
    with pytest.raises(ValueError, match=rf"tiny\.yaml:\d+: simple_spread_v3-none: {message}; .*change it"):
        prepare(file, out=folder)


def test_the_report_says_how_many_trials_failed(tuned: StudyPlan, tmp_path: Path) -> None:
    forged = decisions(tuned)
    forged["trials"][0]["scores"] = []
    folder = StudyFolder(tmp_path)
    (folder.tuning / "simple_spread_v3-none").mkdir(parents=True)
    write_json(folder.tuning / "simple_spread_v3-none" / "decisions.json", forged)
    assert budgets(tuned.study, folder)[0].how.endswith("; 1 of 2 trials failed")
    assert "failed" not in budgets(tuned.study, tuned.folder)[0].how


def test_trials_that_fail_are_told(tmp_path: Path) -> None:
    licence = tmp_path / "licence"
    licence.touch()
    gone = {"name": "tests.faulty:gone", "label": "gone", "kwargs": {"licence": str(licence)}}
    tune = {**TUNE, "trials": 1}
    file = write_study(tmp_path, environments=[gone], methods=METHODS, tune=tune, retries=0)
    plan = prepare(file, out=tmp_path / "out")
    licence.unlink()
    with pytest.raises(ValueError, match=r"expected a trial of gone-none that does not fail.*gone-none\.log"):
        do(plan)
    (told,) = [event for event in plan.folder.events() if event["event"] == "trial_failed"]
    assert told["node"] == "gone-none"
    assert "expected a licence, got none" in told["error"]
    assert "expected a licence, got none" in plan.folder.log("gone-none").read_text()
