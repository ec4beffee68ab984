"""The pool that every team of a study meets: who is in it, what it takes, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from statistics import fmean
from typing import Any

import pyarrow.parquet
import pytest
from torch import nn

from marl_aajr.cli.study import _foresee
from marl_aajr.rollout.environments import resolve
from marl_aajr.study.driver import prepare
from marl_aajr.study.progress import StudyPlan, forecast
from marl_aajr.study.study_pool import pool_doubts
from marl_aajr.victims import Victim
from tests.study.files import do_here, write_study

GAME = {"name": "tests.matrix_game:MatrixGame", "label": "game"}
SPREAD = {"name": "marl_aajr.envs.simple_spread_v3", "label": "spread", "kwargs": {"N": 2, "max_cycles": 5}}
TAG = {"name": "marl_aajr.envs.simple_tag_v3", "label": "tag", "kwargs": {"num_obstacles": 0}}
METHODS = [{"name": "none"}, {"name": "aajr", "grid": {"coefficient": [1e-3, 1e-2]}}]
FRESH = {"method": "none", "seeds": [100, 101]}
TRAINED = {"method": "none", "seeds": [100], "adversary": {"kind": "opponent", "env_steps": 100}}
POOL: list[Any] = ["random", FRESH, TRAINED]


def pooled(folder: Path, *opponents: Any, **study: Any) -> StudyPlan:
    """A study on simple_tag with a pool, prepared."""
    entry = {"suite": "suite.yaml", "opponents": list(opponents)}
    changes = {"environments": [TAG], "methods": METHODS, "evaluation": entry, **study}
    return prepare(write_study(folder, **changes), out=folder / "out")


def test_the_pool_is_trained_once_and_met_by_every_team(tmp_path: Path) -> None:
    spread = "marl_aajr.envs.simple_spread_v3"
    plan = pooled(tmp_path, *POOL, environments=[TAG, spread], seeds=[0, 1])
    nodes = plan.nodes
    pool = ["tag-none-s100", "tag-none-s101", "tag-none-s100/opponent"]
    assert [name for name, node in nodes.items() if node.run not in plan.runs] == pool
    assert nodes["tag-none-s100/opponent"].needs == ("tag-none-s100",)
    evaluations = [node for node in nodes.values() if node.kind == "evaluate"]
    assert len(evaluations) == 2 * 3 * 2
    for node in evaluations:
        names = [member.name for member in node.opponents]
        competes = node.run.variant.environment.title == "tag"
        assert names == (["random", "none-s100", "none-s101", "none-s100/opponent"] if competes else [])
        assert (set(pool) <= set(node.needs)) == competes
    only = prepare(plan.source.path, out=plan.folder.path, only="tag-none-s0").nodes
    assert set(pool) < set(only)
    assert nodes["tag-none-s100"].run.config == plan.runs[0].config.changed(seed=100)


@pytest.mark.parametrize(
    ("method", "names"),
    [
        ("aajr*", ["aajr-coefficient=0.001-s7", "aajr-coefficient=0.01-s7"]),
        ("*", ["none-s7", "aajr-coefficient=0.001-s7", "aajr-coefficient=0.01-s7"]),
        ("frobenius", ["frobenius-s7"]),
    ],
)
def test_a_method_of_the_study_or_beside_it_is_meant_by_a_name_or_a_pattern(
    method: str, names: list[str], tmp_path: Path
) -> None:
    plan = pooled(tmp_path, {"method": method, "seeds": [7]})
    (first, *_) = (node for node in plan.nodes.values() if node.kind == "evaluate")
    assert [member.name for member in first.opponents] == names


def test_members_have_a_price(tmp_path: Path) -> None:
    plan, alone = pooled(tmp_path, *POOL), pooled(tmp_path)
    with_pool, without = (forecast(each.nodes, each.folder).seconds for each in (plan, alone))
    assert with_pool["tag-none-s0/evaluation"] == pytest.approx(5 * without["tag-none-s0/evaluation"])
    assert min(with_pool[name] for name in ("tag-none-s100", "tag-none-s100/opponent")) > 0


@pytest.mark.usefixtures("ray_session")
def test_what_a_pool_does_not_make_fair_is_said_beforehand(tmp_path: Path) -> None:
    grid = {"grid": {"ppo.gamma": [0.9, 0.95], "ppo.lr": [1e-3]}}
    *_, said = _foresee(pooled(tmp_path, FRESH, **grid))
    assert str(said) == (
        "The pool is trained with the first values of the study's grid alone (ppo.gamma 0.9): teams trained "
        "with these have met opponents more like it."
    )
    assert not list(pool_doubts(pooled(tmp_path, "random", **grid).study))
    assert not list(pool_doubts(pooled(tmp_path, FRESH).study))
    searched = {"name": "none", "search": {"ppo.lr": {"low": 1e-4, "high": 1e-2}}}
    tuned = {"methods": [searched], "tune": {"trials": 2, "env_steps": 200}}
    (said,) = pool_doubts(pooled(tmp_path, FRESH, **tuned).study)
    assert said.startswith("Settings are tuned by play of each team against its own side")
    assert not list(pool_doubts(pooled(tmp_path, **tuned).study))


def stranger(folder: Path, name: str = "simple_tag_v3", *, only: str = "", **kwargs: Any) -> str:
    """Saved policies that know nothing, of the agents whose names begin so."""
    spec = resolve(f"marl_aajr.envs.{name}", kwargs)
    game = spec.make()
    agents = [agent for agent in game.possible_agents if agent.startswith(only)]
    seen = {agent: game.observation_spaces[agent] for agent in agents}
    victim = Victim(
        module_of={agent: agent for agent in agents},
        modules={agent: nn.Linear(space.shape[0], 5) for agent, space in seen.items()},
        observation_spaces=seen,
        action_spaces={agent: game.action_spaces[agent] for agent in agents},
        env_name=spec.name,
        env_kwargs=kwargs,
    )
    victim.save(folder / "stranger")
    return str(folder / "stranger")


def test_policies_of_other_arguments_may_play_where_their_spaces_fit(tmp_path: Path) -> None:
    """A folder is as seen from the file of the study."""
    stranger(tmp_path, num_obstacles=0, max_cycles=7)
    plan = pooled(tmp_path, "stranger")
    (member,) = plan.nodes["tag-none-s0/evaluation"].opponents
    assert (member.name, plan.folder.opponent(member)) == ("stranger", tmp_path / "stranger")


@pytest.mark.parametrize(
    ("saved", "message"),
    [
        (
            {"name": "simple_spread_v3"},
            "expected an opponent in tag, got .*stranger, which plays .*spread_v3$",
        ),
        ({"num_obstacles": 1}, "expected an opponent in tag for the observations .* of 'agent_0'"),
        (
            {"num_obstacles": 0, "only": "adversary"},
            "expected an opponent in tag that plays agent_0, got one",
        ),
    ],
    ids=["another environment", "other spaces", "the same team"],
)
def test_policies_that_cannot_oppose_are_refused(saved: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=rf"tiny\.yaml:\d+: evaluation\.opponents\.0: {message}"):
        pooled(tmp_path, stranger(tmp_path, **saved))


REFUSED: dict[str, tuple[list[Any], str]] = {
    "a seed of the study": (
        [{**FRESH, "seeds": [0]}],
        r"0\.seeds: .* does not use, got \[0\]: .* trained in",
    ),
    "no seeds": ([{"method": "none"}], "0: expected seeds beside a method"),
    "an unknown method": ([{**FRESH, "method": "nonsense"}], r"0\.method: .*\(none, aajr-.*\) .*'nonsense'"),
    "one twice": ([FRESH, {**FRESH, "seeds": [101]}], "1: expected each opponent once, got none-s101 twice"),
    "a control twice": (["idle", "idle"], "1: expected each opponent once, got idle twice"),
    "nothing": ([{"seeds": [1]}], "0: expected one of method, victim and control, got none"),
    "a traitor": (
        [{**FRESH, "adversary": {"kind": "traitor", "agents": ["agent_0"]}}],
        "0: expected an adversary of kind opponent",
    ),
    "an adversary of nobody": (
        [{"control": "random", "adversary": {"kind": "opponent"}}],
        "0: expected an adversary of kind opponent",
    ),
    "a folder with nothing in it": (["nowhere"], "0: expected the folder of a run, .*nowhere"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_an_opponent_that_cannot_be_one_is_refused_by_its_line(case: str, tmp_path: Path) -> None:
    opponents, message = REFUSED[case]
    with pytest.raises(ValueError, match=rf"tiny\.yaml:\d+: evaluation\.opponents\.{message}"):
        pooled(tmp_path, *opponents)
    assert not (tmp_path / "out").exists()


def test_a_game_of_one_team_has_nobody_to_oppose(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"evaluation\.opponents: expected an environment of several teams"):
        pooled(tmp_path, "random", environments=["marl_aajr.envs.simple_spread_v3"])


def test_every_game_of_several_teams_has_somebody_to_meet(tmp_path: Path) -> None:
    stranger(tmp_path, num_obstacles=0)
    push = {"name": "mpe2.simple_push_v3", "label": "push"}
    with pytest.raises(
        ValueError, match=r"evaluation\.opponents: expected opponents that play push, got none"
    ):
        pooled(tmp_path, "stranger", environments=[TAG, push])


def test_a_pool_of_two_environments_is_refused(tmp_path: Path) -> None:
    grid = {"env.kwargs": [{"num_obstacles": 0}, {"num_obstacles": 1}]}
    with pytest.raises(ValueError, match=r"expected all runs on tag in one environment, .* two environments"):
        pooled(tmp_path, FRESH, grid=grid)


def test_what_the_study_trained_is_no_stranger(tmp_path: Path) -> None:
    stranger(tmp_path, num_obstacles=0)
    out = tmp_path / "out"
    out.mkdir()
    (tmp_path / "stranger").rename(out / "runs")
    with pytest.raises(ValueError, match=r"expected opponents from outside this study, got .*runs, which it"):
        pooled(tmp_path, str(out / "runs"))


def test_another_length_of_an_opponent_that_is_there_is_refused(tmp_path: Path) -> None:
    plan = pooled(tmp_path, TRAINED)
    with plan.folder.begun(plan.study):
        plan.folder.trained(plan.nodes["tag-none-s100/opponent"]).path.mkdir(parents=True)
    pooled(tmp_path, TRAINED)
    longer = {**TRAINED, "adversary": {"kind": "opponent", "env_steps": 200}}
    with pytest.raises(ValueError, match=r"tiny\.yaml:\d+: evaluation\.opponents: .*expected the study that"):
        pooled(tmp_path, longer)


def test_a_member_that_has_left_the_study_is_missed(tmp_path: Path) -> None:
    plan = pooled(tmp_path, FRESH)
    with plan.folder.begun(plan.study):
        run = plan.folder.run("tag-none-s101")
        run.create(plan.nodes["tag-none-s101"].run.config)
        run.unlock()
    pooled(tmp_path, FRESH)
    with pytest.raises(ValueError, match="the run tag-none-s101 is no longer part of it"):
        pooled(tmp_path, {**FRESH, "seeds": [100]})


def test_the_seeds_of_a_method_play_with_each_other(tmp_path: Path) -> None:
    study = {"environments": [SPREAD, GAME], "seeds": [0, 1, 2]}
    entry = {"suite": "suite.yaml", "partners": "seeds"}
    nodes = pooled(tmp_path, **study, evaluation=entry).nodes
    evaluation = nodes["spread-aajr-coefficient=0.01-s1/evaluation"]
    partners = [f"spread-aajr-coefficient=0.01-s{seed}" for seed in (0, 2)]
    assert [run.name for run in evaluation.partners] == partners
    assert set(partners) < set(evaluation.needs)
    assert nodes["game-none-s0/evaluation"].partners == ()
    with pytest.raises(ValueError, match=r"evaluation\.partners: expected several seeds"):
        pooled(tmp_path, environments=[SPREAD], evaluation=entry)
    with pytest.raises(ValueError, match=r"evaluation\.partners: .* team has several agents, got none"):
        pooled(tmp_path, environments=[GAME], seeds=[0, 1], evaluation=entry)


@pytest.mark.usefixtures("ray_session")
def test_a_study_with_a_pool_and_partners(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is stopped once the first of the pool is there, and goes on."""
    monkeypatch.setattr("marl_aajr.study.report.pool_doubts", lambda study: ["Doubted."])
    trained = {**TRAINED, "seeds": [100]}
    entry = {
        "suite": "suite.yaml",
        "opponents": ["random", {"method": "none", "seeds": [100]}, trained],
        "partners": "seeds",
    }
    study = {"environments": [GAME, SPREAD], "methods": METHODS[:1], "seeds": [0, 1]}
    plan = pooled(tmp_path, **study, evaluation=entry, max_concurrent=1)
    *_, foreseen = _foresee(plan)
    assert "5 runs, 1 of them for the pool of opponents, 10 steps of work, 10 of them" in str(foreseen)
    pool = ["game-none-s100", "game-none-s100/opponent"]
    do_here(plan, should_stop=lambda: plan.folder.done(plan.nodes[pool[0]]))
    again = prepare(plan.source.path, out=plan.folder.path)
    left = [name for name, node in again.nodes.items() if not plan.folder.done(node)]
    assert pool[0] not in left
    assert do_here(again).count("finished") == 10
    finished = [event["node"] for event in plan.folder.events() if event["event"] == "finished"]
    assert sorted(finished) == sorted(plan.nodes)
    assert max(forecast(again.nodes, plan.folder).seconds.values()) == 0

    table = pyarrow.parquet.read_table(plan.folder.results).to_pylist()
    names = ["random", "none-s100", "none-s100/opponent"]
    for seed in (0, 1):
        rows = [row for row in table if row["run"] == f"game-none-s{seed}"]
        matrix = {(row["opponent"], row["attack"]): row["return"] for row in rows}
        for attack in ("none", "idle"):
            assert {name for name, played in matrix if played == attack} == {"own", *names}
        note = json.loads(plan.folder.note_file(plan.nodes[f"game-none-s{seed}"].run).read_text())
        assert note["clean_return"] == pytest.approx(fmean(matrix[name, "none"] for name in names))
        with_partner = [row for row in table if row["run"] == f"spread-none-s{seed}"]
        partners = [row for row in with_partner if row["attack"] == "partner"]
        assert [row["settings"] for row in partners] == [f"s{1 - seed}"] * 2
        assert {row["opponent"] for row in with_partner} == {"own"}
    page = plan.folder.report.read_text()
    assert "<li>Doubted.</li>" in page
    assert page.count("<summary>Seeds with each other</summary>") == 1
