"""What is wrong with a study is named with its line, before anything starts."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
from pydantic import BaseModel

from marl_aajr.adversaries.request import AdversaryRequest
from marl_aajr.evaluation.protocol import Protocol
from marl_aajr.regularizers import AAJR, settings_of
from marl_aajr.study.driver import prepare
from marl_aajr.study.study_config import StudyConfig
from marl_aajr.training.config import RunConfig, make_config
from marl_aajr.training.fields import validated

STUDY = """\
run:
  env_steps: 400
  ppo: {train_batch_size: 100, minibatch_size: 50}
  resources: {envs_per_runner: 4}
environments:
  - name: simple_spread_v3
methods:
  - name: none
  - name: aajr
    grid:
      coefficient: [1e-4, 1e-3]
seeds: [0, 1]
evaluation:
  suite: quick
"""

METHODS = STUDY[STUDY.index("  - name: none") : STUDY.index("\nseeds")]
SEARCHED = "- {name: none, search: {ppo.lr: {low: 1, high: 2}}}"
TUNE = "tune: {trials: 2, env_steps: 100}"

BROKEN = {
    "an unknown key": ("seeds:", "sedes:", r":12: sedes: unknown key; did you mean seeds\?"),
    "an unknown key of a run": ("env_steps:", "steps:", r":2: steps: unknown key"),
    "an unknown nested key": ("minibatch_size", "minibatch", r":3: ppo.minibatch: unknown key"),
    "an unknown setting of a method": ("coefficient:", "lambda:", r":10: method: .* got lambda"),
    "no mapping": ("- name: none", "- 7", r":8: methods.0: expected a mapping of keys to values, got 7"),
    "a wrong type": ("400", "many", r":2: env_steps: expected an integer, got 'many'"),
    "a number out of range": ("1e-3]", "-1]", r":10: method: expected finite values"),
    "an unknown method": ("name: none", "name: nothing", r":8: method: expected a method name .*'nothing'"),
    "a team that is not there": (
        "- name: none",
        "- name: aajr\n    teams: [red]",
        r":9: simple_spread_v3-aajr-for-red-s0: method.teams: expected teams of .*, team, got red",
    ),
    "an unknown environment": ("simple_spread_v3", "spread", r":6: spread-none-s0: .*spread"),
    "an unknown suite": ("quick", "quik", r":14: evaluation.suite: .*quik"),
    "an empty axis": ("[0, 1]", "[]", r":12: seeds: expected at least one, got none"),
    "an empty grid": ("[1e-4, 1e-3]", "[]", r":11: methods.1.grid.coefficient: expected at least one"),
    "no methods": (METHODS, "  []", r":7: methods: expected at least one"),
    "a value twice": ("[0, 1]", "[0, 0]", r":12: seeds: expected each once, got 0 twice"),
    "a key twice": ("seeds: [0, 1]", "seeds: [0]\nseeds: [1]", r":13: seeds: given twice, first in line 12"),
    "a name twice": (
        "name: none",
        "name: aajr\n    coefficient: 1\n  - name: aajr",
        r":10: .* got simple_spread_v3-aajr-s0 twice, also from .*:8",
    ),
    "the same run twice": (
        "- name: none",
        "- name: none\n  - {name: none, label: plain}",
        r":9: expected every run once",
    ),
    "processes that take nothing": (
        "{envs_per_runner: 4}",
        "{envs_per_runner: 4, env_runners: 1, cpus_per_env_runner: 0}",
        r":4: resources: expected some CPU or GPU for every env runner",
    ),
    "no YAML": ("seeds: [0, 1]", "seeds: [0, 1", r":13: expected YAML"),
    "a search without tuning": ("- name: none", SEARCHED, r":8: methods.0.search: expected a section tune"),
    "a seed among the settings": (
        "  env_steps",
        "  seed: 7\n  env_steps",
        r":2: run: expected seed under seeds",
    ),
    "an environment among the settings": (
        "  env_steps",
        "  env: {name: nope}\n  env_steps",
        r":2: run: expected env.name under environments",
    ),
    "a method among the settings": (
        "- name: none",
        "- name: none\n    run: {method: {name: aajr}}",
        r":9: methods.0.run: expected method.name under methods",
    ),
    "seeds in the grid": ("seeds:", "grid:\n  seed: [5, 6]\nseeds:", r":13: grid: expected seed under seeds"),
    "no initial policy": (
        "env_steps",
        "initial_policy: nowhere\n  env_steps",
        r":2: initial_policy: .*nowhere",
    ),
    "no storage": ("seeds:", "storage: nowhere://x\nseeds:", r":12: storage: expected a place .*nowhere://x"),
    "a grid and a search": (
        "    grid:",
        "    search: {ppo.lr: {low: 1, high: 2}}\n    grid:",
        r":11: methods.1.grid: expected a grid or a search, got both: .* 2 times",
    ),
    "one choice": (
        "- name: none",
        "- {name: none, search: {ppo.lr: {choices: [1]}}}",
        r":8: methods.0.search.ppo.lr: expected at least two choices, got 1; set it under run",
    ),
    "a list for a method's name": (
        "name: none",
        "name: [none]",
        r":8: methods.0.name: expected a valid string",
    ),
    "a list for a name among settings": (
        "name: none",
        "name: atla\n    regularizer: {name: [aajr]}",
        r":8: method: expected regularizer out of .*got \['aajr'\]",
    ),
    "agents that are no names": (
        "name: none",
        "name: atla\n    agents: [[agent_0]]",
        r":8: method: expected agents as list\[str\] or None, got",
    ),
    "a list for a suite": (
        "quick",
        "[quick]",
        r":14: evaluation.suite: expected a valid string, got \['quick'\]$",
    ),
    "a method in short among the settings": (
        "env_steps: 400",
        "method: aajr",
        r":2: run: expected method.name under methods",
    ),
    "a key that is no name": ("ppo: {", "ppo: {1: 2, ", r":3: ppo.1: expected a name as the key"),
    "an unequal search": ("seeds: [0, 1]", TUNE, r":8: methods.0: expected the same number"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_an_error_names_the_line(case: str, tmp_path: Path) -> None:
    old, new, message = BROKEN[case]
    assert old in STUDY
    file = tmp_path / "study.yaml"
    file.write_text(STUDY.replace(old, new))
    with pytest.raises(ValueError, match=rf"study\.yaml{message}"):
        prepare(file, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def places(model: type[BaseModel]) -> Iterator[tuple[str, ...]]:
    """Every field of a tree of configurations, by the keys that lead there."""
    for name, info in model.model_fields.items():
        yield (name,)
        for part in (info.annotation, *get_args(info.annotation)):
            if isinstance(part, type) and issubclass(part, BaseModel):
                yield from ((name, *rest) for rest in places(part))


RUN: dict[str, Any] = {"env": {"name": "simple_spread_v3"}, "method": {"name": "aajr"}}
TREES: dict[type[BaseModel], dict[str, Any]] = {
    RunConfig: RUN,
    StudyConfig: {
        "name": "a",
        "environments": ["simple_spread_v3"],
        "methods": ["none"],
        "tune": {"trials": 1},
    },
    Protocol: {},
    AdversaryRequest: {"kind": "pa-ad", "epsilon": 0.1},
}
OTHERS: list[Any] = [
    *(["a"], [["a"]], [{}], {"a": 1}, {1: 2}),
    *(5, -1.5, True, None, "", "x", 10**400, [[0, "x"]], {1}),
]


@pytest.mark.parametrize("model", TREES)
def test_a_value_of_whatever_type_is_taken_or_refused_in_our_words(model: type[BaseModel]) -> None:
    for *sections, last in places(model):
        for value in OTHERS:
            data = copy.deepcopy(TREES[model])
            inner = data
            for name in sections:
                inner = inner.setdefault(name, {})
            inner[last] = value
            with contextlib.suppress(ValueError):
                validated(model, data)
                continue
            with pytest.raises(ValueError, match=r"^(?s:(?!.*(Input should|Unable to|instance\[)).+)$"):
                validated(model, data)


@pytest.mark.parametrize("setting", sorted(settings_of(AAJR()).keys() - {"name"}))
def test_a_setting_of_a_method_of_another_type_is_refused(setting: str) -> None:
    for value in OTHERS[1:5]:
        with pytest.raises(ValueError, match=r"^method: expected"):
            make_config(RUN | {"method": {"name": "aajr", setting: value}})


def test_mappings_may_be_points_of_a_grid(tmp_path: Path) -> None:
    file = tmp_path / "study.yaml"
    file.write_text(
        STUDY + "grid:\n  ppo.lr: [[[0, 1e-3], [100, 0]], 1e-3]\n  env.kwargs: [{N: 2}, {N: 3}]\n"
    )
    plan = prepare(file, out=tmp_path / "out")
    assert {run.config.env.kwargs["N"] for run in plan.runs} == {2, 3}


def test_methods_are_for_teams_and_grids_reach_into_them(tmp_path: Path) -> None:
    file = tmp_path / "study.yaml"
    entries = """
  - {name: aajr, grid: {teams: [[team], null]}}
  - {name: aajr, teams: [team], coefficient: 0.5}
  - {teams: {team: aajr}, grid: {teams.team.coefficient: [0.1, 0.2]}}
"""
    file.write_text(STUDY.replace(METHODS, entries).replace("[0, 1]", "[0]"))
    made = {run.name: run.config.method for run in prepare(file, out=tmp_path / "out").runs}
    assert {name.removeprefix("simple_spread_v3-"): method.label for name, method in made.items()} == {
        "aajr-teams=team-s0": "aajr for team",
        "aajr-teams=None-s0": "aajr",
        "aajr-for-team-s0": "aajr for team",
        "aajr-for-team-coefficient=0.1-s0": "aajr for team",
        "aajr-for-team-coefficient=0.2-s0": "aajr for team",
    }
    assert made["simple_spread_v3-aajr-for-team-coefficient=0.2-s0"].each[0].settings["coefficient"] == 0.2


def test_all_problems_are_named_at_once(tmp_path: Path) -> None:
    file = tmp_path / "study.yaml"
    file.write_text(STUDY.replace("400", "many").replace("50", "few"))
    with pytest.raises(ValueError, match="env_steps") as caught:
        prepare(file)
    assert len(str(caught.value).splitlines()) == 2


def test_what_the_command_line_replaces_is_blamed_on_it(tmp_path: Path) -> None:
    file = tmp_path / "study.yaml"
    file.write_text(STUDY)
    with pytest.raises(ValueError, match=r"^--set seeds: seeds: expected at least one"):
        prepare(file, overrides={"seeds": ([], "--set seeds")})


def test_a_pattern_must_match_a_run(tmp_path: Path) -> None:
    file = tmp_path / "study.yaml"
    file.write_text(STUDY)
    with pytest.raises(ValueError, match="--only, got 'none'; the runs are simple_spread_v3-none-s0"):
        prepare(file, out=tmp_path / "out", only="none")


def test_a_missing_logger_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    file = tmp_path / "study.yaml"
    file.write_text(STUDY + "log:\n  - wandb\n")
    with pytest.raises(ValueError, match=r"study\.yaml:16: log\.0: expected the package wandb"):
        prepare(file)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            "seeds:",
            "adversaries:\n  - {kind: traitor, agents: [agent_7]}\nseeds:",
            r":13: adversaries.0.agents: expected agents of simple_spread_v3, agent_0, .* got agent_7",
        ),
        (
            "seeds:",
            "adversaries:\n  - {kind: pa-ad, epsilon: 0.1, agents: [agent_1]}\nseeds:",
            r":13: adversaries.0.agents: expected all who are lied to .*, agent_0, .* got agent_1; leave",
        ),
        ("seeds:", "adversaries: [{kind: traitor}]\nseeds:", ":12: adversaries.0: expected agents"),
        (
            "seeds:",
            "adversaries: [{kind: best-response}]\nseeds:",
            ":12: adversaries.0: expected games of several teams .* best-response, got simple_spread_v3",
        ),
        ("seeds:", "adversaries: [{kind: sa-rl}]\nseeds:", ":12: adversaries.0: expected an epsilon"),
        (
            "simple_spread_v3",
            "simple_spread_v3\n    team: red",
            r":7: .*team: expected one of team, got 'red'",
        ),
    ],
)
def test_agents_and_teams_must_play(old: str, new: str, message: str, tmp_path: Path) -> None:
    file = tmp_path / "study.yaml"
    file.write_text(STUDY.replace(old, new))
    with pytest.raises(ValueError, match=rf"study\.yaml{message}"):
        prepare(file)
