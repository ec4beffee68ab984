"""The commands of the page are held to the command line itself: parsed by it, word for word."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

from marl_aajr.cli.app import app
from marl_aajr.cli.options import number_or_text
from marl_aajr.report import compare, compare_each, load_run
from marl_aajr.report.cautions import cautions
from marl_aajr.report.reproduce import commands
from tests.report.evaluations import ENV, evaluation, evaluation_file
from tests.report.factory import config, write_run

TEAM = {"agent_0": "team", "agent_1": "team"}
TAG = {"adversary_0": "adversary", "agent_0": "good"}
PGD = {("pgd", 0.1): -8.0}


def parsed(text: str) -> list[tuple[str, dict[str, Any]]]:
    """Every command of a shell text with its options as the command line understands them; loops once."""
    found = []
    for line in text.splitlines():
        words = shlex.split(line, comments=True)
        if words[:1] != ["marl-aajr"]:
            continue
        command: Any = get_command(app)
        for depth in range(1, 2 + (words[1] == "adversary")):
            command = command.commands[words[depth]]
        options = command.make_context(words[1], words[depth + 1 :]).params
        found.append((words[1], {key: _given(value) for key, value in options.items()}))
    return found


def _given(value: Any) -> Any:
    """Repeated options as lists, None where there are none; numbers as the settings read them."""
    if isinstance(value, tuple | list):
        return [_given(each) for each in value] or None
    return number_or_text(value) if isinstance(value, str) else value


def evaluations(tmp_path: Path, *contents: dict[str, Any]) -> list[dict[str, Any]]:
    """Options of the evaluations that are printed for one run with these files."""
    files = {f"file{i}": content for i, content in enumerate(contents)}
    run = load_run(write_run(tmp_path / "run", evaluations=files))
    return [options for name, options in parsed(commands([compare([run])])) if name == "evaluate"]


def test_all_that_was_asked_for_is_asked_for_again(tmp_path: Path) -> None:
    content = evaluation(
        attacks={("pgd", 0.1): -8.0, ("noise", 0.1): -1.0},
        seed=7,
        selection_episodes=11,
        units="raw",
        norm="l2",
        teams=("adversary", "good"),
        adversarial_agents=[],
        others=[{**evaluation(-45.0, attacks={("pgd", 0.1): -8.0}), "actions": "sampled"}],
    ) | {"teams": TAG, "team": "adversary", "agents": ["adversary_0"]}
    (options,) = evaluations(tmp_path, content)
    expected = {
        "suite": None,
        "attack": ["pgd", "noise"],
        "epsilon": [0.1],
        "units": "raw",
        "norm": "l2",
        "episodes": 20,
        "selection_episodes": 11,
        "actions": ["greedy", "sampled"],
        "seed": 7,
        "team": "adversary",
        "agents": None,
        "budget": None,
        "replace": None,
    }
    assert {key: options[key] for key in expected} == expected


def test_threats_without_a_size_are_asked_for_again(tmp_path: Path) -> None:
    """With their settings, in one of the commands; those of the suite are in its file."""
    content = evaluation(attacks={("pgd", 0.1): -8.0, ("noise", 0.2): -1.0})

    def threat(name: str, kind: str, form: str, **settings: Any) -> dict[str, Any]:
        return {
            **content["clean"],
            "kind": kind,
            "name": name,
            "form": form,
            "settings": settings,
            "draws": 3,
        }

    threats = [
        threat("delay", "fault", "random", steps=2, share=0.5),
        threat("delay", "fault", "worst", steps=2, share=0.5),
        threat("bias", "fault", "worst", epsilon=0.3),
        threat("replace", "actions", "random", alpha=0.1) | {"agents": ["agent_0"]},
        threat("mix", "actions", "trained", alpha=0.5) | {"agents": ["agent_1"], "source": "runs/traitor"},
        *(threat("mass", "dynamics", "value", mass=value) for value in (0.5, 2)),
    ]
    first, second = evaluations(tmp_path, content | {"threats": threats})
    faults = [
        {"attack": "delay", "steps": 2, "share": 0.5, "draws": 3},
        {"attack": "bias", "epsilon": 0.3, "draws": 3},
    ]
    assert (first["attack"], second["attack"]) == (["pgd", *faults], ["noise"])
    assert first["disturb"] == ["replace=0.1", "mix=0.5,agents=agent_1,by=runs/traitor"]
    assert first["vary"] == second["vary"] == ["kwargs.mass=0.5,2"]


@pytest.mark.parametrize(
    ("changes", "budget", "agents"),
    [
        ({"agents": ["agent_1"]}, None, ["agent_1"]),
        ({"budget": "agents=1,steps=5,timing=strategic"}, "agents=1,steps=5,timing=strategic", None),
        ({"agents": ["agent_1"], "budget": "agents=agent_1"}, "agents=agent_1", None),
        ({"agents": ["agent_1"], "budget": "steps=5,timing=random"}, "steps=5,timing=random", ["agent_1"]),
    ],
)
def test_budgets_and_agents(
    tmp_path: Path, changes: dict[str, Any], budget: str | None, agents: list[str] | None
) -> None:
    content = evaluation(attacks=PGD) | {"teams": TEAM, "team": "team", "agents": list(TEAM)} | changes
    (options,) = evaluations(tmp_path, content)
    assert (options["budget"], options["agents"]) == (budget, agents)


def test_the_weakest_link_is_asked_for_where_no_budget_asks(tmp_path: Path) -> None:
    subset = {
        "agents": ["agent_0"],
        "attack": "pgd",
        "epsilon": 0.1,
        "selection_return": -4.0,
    }
    content = evaluation(attacks=PGD, subsets=[subset], weakest_link=True)
    assert evaluations(tmp_path / "a", content)[0]["weakest_link"] is True
    assert not evaluations(tmp_path / "b", content | {"budget": "agents=1", "weakest_link": False})[0][
        "weakest_link"
    ]


def test_a_suite_with_sizes_of_its_own_and_an_attack_beside_it(tmp_path: Path) -> None:
    content = evaluation(attacks={("noise", 0.3): -1.0, ("pgd", 0.3): -2.0, ("square", 0.3): -2.0})
    (options,) = evaluations(tmp_path, content | {"suite": "quick"})
    assert (options["suite"], options["attack"], options["epsilon"]) == ("quick", ["square"], [0.3])


def test_attacks_of_different_sizes_take_a_command_each(tmp_path: Path) -> None:
    found = evaluations(tmp_path, evaluation(attacks={("pgd", 0.1): -8.0, ("noise", 0.125): -2.0}))
    assert [(o["attack"], o["epsilon"]) for o in found] == [(["pgd"], [0.1]), (["noise"], [0.125])]


def test_replaced_agents_and_surrogates_are_named_with_their_new_runs(tmp_path: Path) -> None:
    outcome = {**evaluation()["clean"], "loyal_return": -20.0}
    replaced = [
        {**outcome, "kind": "random", "agents": ["agent_0", "agent_1"], "source": ""},
        {**outcome, "kind": "traitor", "agents": ["agent_0"], "source": "elsewhere/traitor"},
    ]
    content = evaluation(attacks={("transfer", 0.1): -8.0}, adversarial_agents=replaced)
    content["attacks"][0] |= {"access": "surrogate", "source": "other"}
    paths = [
        write_run(tmp_path / name, configuration=config(seed=i), evaluations={"e": content})
        for i, name in enumerate(("run", "other"))
    ]
    text = commands([compare([load_run(path) for path in paths])])
    (options,) = [found for name, found in parsed(text) if name == "evaluate"]
    assert options["replace"] == ["random:agent_0,agent_1"]
    assert options["adversary"] == [Path("elsewhere/traitor")]
    assert options["surrogate"] == [Path("again/other")]


def test_runs_that_were_evaluated_alike_share_a_loop_and_others_do_not(tmp_path: Path) -> None:
    tag = evaluation(attacks=PGD, env={"name": "mpe2.simple_tag_v3", "kwargs": {}})
    spread = evaluation(attacks=PGD, env=ENV)
    contents = {"a": spread, "b": spread, "c": tag}
    paths = [
        write_run(
            tmp_path / name, configuration=config(seed=i, env=content["env"]), evaluations={"e": content}
        )
        for i, (name, content) in enumerate(contents.items())
    ]
    text = commands(compare_each([load_run(path) for path in paths]))
    loops = [line for line in text.splitlines() if line.startswith("for run")]
    assert loops == ["for run in again/a again/b again/c; do"]
    paths.append(
        write_run(
            tmp_path / "d",
            configuration=config(seed=3, env=tag["env"]),
            evaluations={"e": tag | {"selection_episodes": 5}},
        )
    )
    text = commands(compare_each([load_run(path) for path in paths]))
    assert "for run in again/d; do" in text


def test_training_and_comparing_are_commands_too(tmp_path: Path) -> None:
    path = write_run(tmp_path / "with space")
    found = parsed(commands([compare([load_run(path)])]))
    assert [name for name, _ in found] == ["train", "evaluate", "compare"]
    train, compared = found[0][1], found[2][1]
    assert (train["config"], train["out"]) == (path / "config.yaml", Path("again/with space"))
    assert compared["runs"] == [Path("again/with space")]


def test_adversaries_are_trained_against_their_new_runs_and_named_there(tmp_path: Path) -> None:
    lied = evaluation(attacks={("pgd", 0.1): -8.0, ("sa-rl", 0.2): -9.0}, suite="quick")
    path = write_run(tmp_path / "run", evaluations={})
    folder = path / "adversaries" / "sa-rl-eps0.2"
    folder.mkdir(parents=True)
    asked = {
        "kind": "sa-rl",
        "epsilon": 0.2,
        "agents": ["agent_1"],
        "joint": True,
        "norm": "l2",
        "units": "raw",
    }
    asked |= {"env_steps": 500_000, "search": 3, "warm_start": False, "seed": 4, "policy": "victim"}
    (folder / "adversary.json").write_text(json.dumps(asked))
    lied["attacks"][1] |= {"access": "learned", "source": str(folder)}
    (path / "evaluations" / "e.json").write_text(evaluation_file(lied))
    found = dict(parsed(commands([compare([load_run(path)])])))
    target = Path("again/run/adversaries/sa-rl-eps0.2")
    trained = found["adversary"]
    assert (trained["victim_run"], trained["out"]) == (Path("again/run"), target)
    kept = {key: value for key, value in trained.items() if key in asked}
    assert kept == {key: value for key, value in asked.items() if key != "policy"}
    evaluated = found["evaluate"]
    assert (evaluated["suite"], evaluated["attack"], evaluated["epsilon"]) == ("quick", None, [0.1])
    assert evaluated["adversary"] == [target]


def test_a_policy_from_elsewhere_is_evaluated_where_it_is(tmp_path: Path) -> None:
    checkpoint = tmp_path / "checkpoint"
    (tmp_path / "checkpoint-evaluations").mkdir()
    checkpoint.mkdir()
    content = evaluation(attacks=PGD, env={"name": "mpe2.simple_spread_v3", "kwargs": {"N": 5}})
    (tmp_path / "checkpoint-evaluations" / "e.json").write_text(evaluation_file(content))
    text = commands([compare([load_run(checkpoint)])])
    assert f"for run in {checkpoint}; do" in text
    found = dict(parsed(text))
    assert set(found) == {"evaluate", "compare"}
    assert found["evaluate"]["env"] == "mpe2.simple_spread_v3"
    assert found["evaluate"]["set_"] == ["env.kwargs.N=5"]


def test_teams_that_were_said_at_the_evaluation_only_are_said_again(tmp_path: Path) -> None:
    env = {**ENV, "kwargs": {"env.teams": {"agent_*": "us"}}}
    said = _given(['env.teams={"agent_*": "us"}'])
    for name, configuration, given in (("new", config(), said), ("known", config(env=env), None)):
        files = {"e": evaluation(attacks=PGD, env=env)}
        run = write_run(tmp_path / name, configuration=configuration, evaluations=files)
        comparison = compare([load_run(run)])
        assert dict(parsed(commands([comparison])))["evaluate"]["set_"] == given
        assert not any("another environment" in caution for caution in cautions(comparison))


def test_channels_words_and_attacks_on_other_channels_are_asked_for_again(tmp_path: Path) -> None:
    content = evaluation(attacks=PGD, channels=["others", "landmarks"])
    content["attacks"][0]["settings"] = {"steps": 10, "channels": ["others", "landmarks"]}
    row = {key: content["clean"][key] for key in ("mean", "low", "high", "returns")}
    content["threats"] = [
        {**row, "kind": "message", "name": "message-worst", "form": "worst", "agents": ["agent_0"]},
        {
            **row,
            "kind": "channel",
            "name": "pgd",
            "form": "worst",
            "settings": {"epsilon": 0.2, "channels": ["position"]},
            "agents": ["agent_0"],
        },
    ]
    (options,) = evaluations(tmp_path, content)
    assert options["channel"] == ["others", "landmarks"]
    assert options["attack"] == [
        "pgd",
        {"attack": "message-worst"},
        {"attack": "pgd", "epsilon": 0.2, "channels": ["position"]},
    ]
