"""Which runs a study has, and what waits for what."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from marl_aajr.study.driver import prepare
from marl_aajr.study.execution import GraphSearch, ProgressCallback
from marl_aajr.study.folder import StudyFolder
from marl_aajr.study.graph import Node, stranded
from marl_aajr.study.progress import GridProgress, NodeProgress, StudyPlan
from tests.study.files import write_study

METHODS = [
    {"name": "none"},
    {"name": "aajr", "epsilon": 0.2, "grid": {"coefficient": [1e-4, 1e-3], "adversarial_weight": [0, 0.5]}},
]
TRAITOR = {"kind": "traitor", "agents": ["agent_0"], "env_steps": 100}
PLAIN, NEXT = "simple_spread_v3-none-s0", "simple_spread_v3-none-s1"


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> StudyPlan:
    folder = tmp_path_factory.mktemp("study")
    file = write_study(
        folder, methods=METHODS, seeds=[0, 1], grid={"ppo.lr": [0.001, 0.01]}, adversaries=[TRAITOR]
    )
    return prepare(file, out=folder / "out")


def test_every_combination_is_one_run(plan: StudyPlan) -> None:
    assert len(plan.runs) == (1 + 2 * 2) * 2 * 2
    names = [run.name for run in plan.runs]
    assert names[0] == "simple_spread_v3-none-lr=0.001-s0"
    assert names[-1] == "simple_spread_v3-aajr-coefficient=0.001-adversarial_weight=0.5-lr=0.01-s1"
    last = plan.runs[-1].config
    assert (last.seed, last.ppo.lr, last.env_steps) == (1, 0.01, 400)
    assert last.method.settings["coefficient"] == 1e-3
    assert last.method.settings["adversarial_weight"] == 0.5
    assert {run.config.method.settings.get("epsilon") for run in plan.runs[4:]} == {0.2}


def test_victims_come_before_their_adversaries_and_these_before_the_evaluation(plan: StudyPlan) -> None:
    kinds = [node.kind for node in plan.nodes.values()]
    assert kinds == ["train"] * 20 + ["adversary"] * 20 + ["evaluate"] * 20
    run = plan.runs[4]
    traitor, evaluation = f"{run.name}/traitor-agent_0", f"{run.name}/evaluation"
    assert plan.nodes[traitor].needs == (run.name,)
    assert plan.nodes[evaluation].needs == (run.name, traitor, "simple_spread_v3-none-lr=0.001-s1")


def test_only_training_takes_what_the_run_asks_for(tmp_path: Path) -> None:
    """And that on a cluster: this machine may have no GPU."""
    resources = {"env_runners": 1, "cpus_per_env_runner": 2, "gpus_per_learner": 1, "envs_per_runner": 4}
    file = write_study(tmp_path, run={"env_steps": 400, "resources": resources}, adversaries=[TRAITOR])
    nodes = prepare(file, out=tmp_path / "out").nodes.values()
    assert {node.kind: node.bundles for node in nodes} == {
        "train": [{"CPU": 1, "GPU": 1}, {"CPU": 2}],
        "adversary": [{"CPU": 1}],
        "evaluate": [{"CPU": 1}],
    }


def test_only_what_matches_is_done_and_what_it_needs(plan: StudyPlan) -> None:
    name = plan.runs[4].name
    nodes = prepare(plan.source.path, out=plan.folder.path, only=name).nodes
    surrogate = "simple_spread_v3-none-lr=0.001-s1"
    assert list(nodes) == [surrogate, name, f"{name}/traitor-agent_0", f"{name}/evaluation"]


def test_what_needs_a_failure_is_stranded(plan: StudyPlan) -> None:
    name = "simple_spread_v3-none-lr=0.001-s1"
    lost = stranded(plan.nodes, [name])
    evaluated_with_it = {
        node.name for node in plan.nodes.values() if node.surrogate and node.surrogate.name == name
    }
    assert lost == evaluated_with_it | {f"{name}/traitor-agent_0", f"{name}/evaluation"}


class _Played:
    """The search, asked as Tune asks it."""

    def __init__(self, nodes: dict[str, Node], *, stop: bool = False) -> None:
        self.grid = GridProgress(
            {name: NodeProgress(node) for name, node in nodes.items()}, lambda event: None
        )
        self.search = GraphSearch(nodes, self.grid, lambda: stop)

    def ask(self, trial: str) -> Any:
        found = self.search.suggest(trial)
        return found["node"] if isinstance(found, dict) else found


def test_a_node_is_proposed_when_all_it_needs_has_succeeded(plan: StudyPlan) -> None:
    wanted = plan.runs[4].name
    nodes = dict(prepare(plan.source.path, out=plan.folder.path, only=wanted).nodes)
    surrogate, run, traitor, evaluation = nodes
    played = _Played(nodes)
    assert [played.ask("a"), played.ask("b"), played.ask("c")] == [surrogate, run, None]
    played.search.on_trial_complete("b", {"outcome": "finished"})
    assert [played.ask("c"), played.ask("d")] == [traitor, None]
    played.search.on_trial_complete("c", {"outcome": "finished"})
    assert played.ask("d") is None
    played.search.on_trial_complete("a", {"outcome": "finished"})
    assert [played.ask("d"), played.ask("e")] == [evaluation, "FINISHED"]


@pytest.mark.parametrize("how", [{"error": True}, {"result": {"outcome": "failed"}}])
def test_a_failure_ends_what_needs_it_and_nothing_else(plan: StudyPlan, how: dict[str, Any]) -> None:
    wanted = plan.runs[4].name
    nodes = dict(prepare(plan.source.path, out=plan.folder.path, only=wanted).nodes)
    _surrogate, _run, traitor, evaluation = nodes
    played = _Played(nodes)
    played.ask("a"), played.ask("b")
    played.search.on_trial_complete("a", **how)
    assert played.grid.nodes[evaluation].state == "impossible"
    played.search.on_trial_complete("b", {"outcome": "finished"})
    assert [played.ask("c"), played.ask("d")] == [traitor, "FINISHED"]


@pytest.mark.parametrize(
    ("told", "error"),
    [("Traceback\n\nValueError: no\n", "ValueError: no"), ("\n", "unknown error"), (None, "unknown error")],
)
def test_an_error_is_told_in_a_line_even_where_tune_could_not_write_it_down(
    plan: StudyPlan, told: str | None, error: str, tmp_path: Path
) -> None:
    folder, file, name = StudyFolder(tmp_path), tmp_path / "error.txt", plan.runs[0].name
    folder.logs.mkdir()
    if told is not None:
        file.write_text(told)
    grid = GridProgress({name: NodeProgress(plan.nodes[name])}, lambda event: None)
    watch = ProgressCallback(grid, folder, None, lambda: False)
    watch.on_trial_error(1, [], SimpleNamespace(error_file=str(file), config={"node": name}))
    assert (grid.nodes[name].state, grid.nodes[name].error) == ("failed", error)
    assert Path(grid.nodes[name].log).is_file()


def test_nothing_is_proposed_once_the_study_is_to_stop(plan: StudyPlan) -> None:
    assert _Played(dict(plan.nodes), stop=True).ask("a") == "FINISHED"
