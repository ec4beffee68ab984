"""`marl-aajr evaluate` in this process, on a run whose returns are known."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml
from torch import nn

from marl_aajr.cli.app import main
from marl_aajr.cli.evaluate import JSON
from marl_aajr.training.config import EnvConfig, RunConfig
from marl_aajr.training.run_directory import RunDirectory
from marl_aajr.training.run_record import Status
from marl_aajr.victims import Victim
from tests.evaluation.broken import Quantized
from tests.evaluation.players import sign_reader, signs, stakes, team
from tests.own_ways import NAME, OwnWays

SPEC = signs(longest=2)
SUITE = {
    "summary": "for tests",
    "episodes": 4,
    "selection_episodes": 2,
    "actions": ["greedy", "sampled"],
    "units": "raw",
    "epsilons": [1.1],
    "attacks": ["noise", "pgd-margin", "critic"],
}


def finished_run(folder: Path, module: nn.Module | None = None) -> Path:
    directory = RunDirectory(folder)
    directory.create(RunConfig(env=EnvConfig(name=SPEC.name, kwargs=dict(SPEC.kwargs))))
    directory.unlock()
    team(SPEC, module or sign_reader()).save(directory.victim)
    directory.write_status(Status("finished", iteration=3, env_steps=12))
    return directory.path


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return finished_run(tmp_path / "run")


@pytest.fixture
def suite(tmp_path: Path) -> Path:
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(SUITE))
    return path


def words(*arguments: object) -> list[str]:
    """Of a command line; a text is split as a shell would."""
    return [
        word for each in arguments for word in (shlex.split(each) if isinstance(each, str) else [str(each)])
    ]


def said(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    with pytest.raises(SystemExit) as stop:
        main(["evaluate", *words(*arguments)])
    shown = capsys.readouterr()
    assert stop.value.code in (0, None), shown.err
    return shown.out


def as_json(capsys: pytest.CaptureFixture[str], *arguments: object) -> dict[str, Any]:
    return dict(json.loads(said(capsys, *arguments, "--json")))


def test_threats_without_a_size(capsys: pytest.CaptureFixture[str], run: Path) -> None:
    """Faults need no epsilon, an attack beside them has the default sizes; settings are YAML."""
    fault = "'{attack: delay, steps: 1, share: 1.0, draws: 2}'"
    asked = f"--attack {fault} --attack noise --vary kwargs.size=1,0.5 --episodes 3"
    shown = said(capsys, run, asked)
    assert "delay, share 1, steps 1 (worst of 2)" in shown
    assert "only an oracle knows" in " ".join(shown.split())
    assert "Over 2 values of size: mean" in shown
    (rows,) = as_json(capsys, run, asked)["results"]
    assert [(row["name"], row["form"]) for row in rows["threats"]] == [
        *(("delay", "random"), ("delay", "worst")),
        *(("size", "value"), ("size", "value")),
    ]
    assert [row["attack"]["epsilon"] for row in rows["attacks"]] == [0.05, 0.1, 0.2]
    assert all(row["low"] <= row["mean"] <= row["high"] for row in rows["attacks"])
    (rows,) = as_json(capsys, run, "--attack dropout --episodes 3")["results"]
    assert (len(rows["threats"]), rows["attacks"]) == (2, [])


def test_a_suite_gives_the_worst_attack_both_kinds_of_actions_and_the_checks(
    capsys: pytest.CaptureFixture[str], run: Path, suite: Path
) -> None:
    text = said(capsys, run, "--suite", suite)
    parts = ("pgd-margin (worst)", "sampled actions", "Left out: critic", "FAILED")
    assert [part for part in parts if part not in text] == ["FAILED"]
    (kept,) = (run / "evaluations").glob("mine-seed0-episodes4-*.json")
    result = json.loads(kept.read_text())
    assert (result["suite"], result["units"], result["episodes"]) == ("mine", "raw", 4)
    greedy, sampled = result["results"]
    assert [row["attack"]["name"] for row in greedy["attacks"]] == ["noise", "pgd-margin"]
    assert {line.split()[0] for line in JSON.splitlines()} <= result.keys() | greedy.keys()
    (worst,) = greedy["worst"]
    assert (worst["attack"]["name"], worst["mean"]) == ("pgd-margin", -greedy["clean"]["mean"])
    assert (greedy["actions"], sampled["actions"]) == ("greedy", "sampled")
    assert {check["verdict"] for check in result["checks"]} == {"pass"}
    assert [skipped["attack"] for skipped in result["skipped"]] == ["critic"]


def test_options_go_before_the_suite(capsys: pytest.CaptureFixture[str], run: Path, suite: Path) -> None:
    options = "--epsilon 0.9 --episodes 3 --actions greedy --attack fgsm --agents agent_2"
    result = as_json(capsys, run, "--suite", suite, options)
    found = [(row["attack"]["name"], row["attack"]["epsilon"]) for row in result["results"][0]["attacks"]]
    assert found == [("noise", 0.9), ("pgd-margin", 0.9), ("fgsm", 0.9)]
    assert (result["episodes"], result["agents"]) == (3, ["agent_2"])


def test_without_suite_and_attack_it_is_the_quick_one(capsys: pytest.CaptureFixture[str], run: Path) -> None:
    result = as_json(capsys, run, "--episodes 2")
    assert result["suite"] == "quick"
    assert {row["attack"]["epsilon"] for row in result["results"][0]["worst"]} == {0.05, 0.1, 0.2}


def test_attacks_by_hand_can_have_their_worst_chosen_elsewhere(
    capsys: pytest.CaptureFixture[str], run: Path
) -> None:
    options = "--attack noise --attack fgsm --epsilon 1.1 --episodes 3"
    assert as_json(capsys, run, options)["results"][0]["worst"] == []
    (worst,) = as_json(capsys, run, options, "--selection-episodes 4")["results"][0]["worst"]
    assert worst["attack"]["name"] == "fgsm"


def test_a_surrogate_run(capsys: pytest.CaptureFixture[str], run: Path, tmp_path: Path) -> None:
    runs = [finished_run(tmp_path / name) for name in ("other", "a/twin", "b/twin")]
    surrogates = [f"--surrogate '{path}'" for path in runs]
    result = as_json(capsys, run, "--attack transfer --epsilon 1.1 --episodes 2", *surrogates)
    (greedy,) = result["results"]
    assert {row["mean"] for row in greedy["attacks"]} == {-greedy["clean"]["mean"]}
    assert [row["attack"]["source"] for row in greedy["attacks"]] == ["other", str(runs[1]), str(runs[2])]


def test_budget_norm_and_weakest_link(capsys: pytest.CaptureFixture[str], run: Path) -> None:
    attacks = "--attack noise --attack fgsm --epsilon 1.1 --episodes 3 --norm l2"
    spent = "--budget agents=2,steps=1,scale=agent_1:0.5 --weakest-link --selection-episodes 3"
    result = as_json(capsys, run, attacks, spent)
    budget = {"agents": 2, "steps": 1, "timing": "random", "scales": [["agent_1", 0.5]]}
    assert (result["norm"], result["budget"]) == ("l2", budget)
    (greedy,) = result["results"]
    fgsm = greedy["attacks"][1]
    assert fgsm["epsilons"] == {"agent_0": 1.1, "agent_2": 1.1}, "agent_1 is hurt by half as much: not at all"
    steps = fgsm["attacked_steps"]
    assert (steps["limit"], steps["shortest"], steps["longest"]) == (1, 1, 2)
    pairs = [row for row in greedy["subsets"] if len(row["agents"]) == 2]
    assert (len(pairs), len(greedy["subsets"])) == (2 * 3, 2 * 3 + 3)
    (name,) = (run / "evaluations").glob("*.json")
    assert json.loads(name.read_text()) == result
    text = said(capsys, run, attacks, spent)
    assert "fgsm on agent_0, agent_2" in text
    assert "1 of 1–2 steps, random" in " ".join(text.split())
    assert "ε is the l2 norm of a whole perturbation" in text


def test_a_weakest_link_is_named_where_there_is_one(
    capsys: pytest.CaptureFixture[str], run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    few = "--selection-episodes 5"
    options = f"--attack fgsm --epsilon 1.1 --episodes 2 --budget agents=1 {few}"
    assert "Attacked alone, fgsm at ε = 1.1: " in (text := said(capsys, run, options))
    assert "agent_1 is the weakest link" not in text, "it plays half as long as the others"
    spec = stakes(worth=(1.0, 5.0, 2.0))
    unequal = team(spec, sign_reader())
    monkeypatch.setattr("marl_aajr.evaluation.sources.Victim.load", lambda folder: unequal)
    text = " ".join(said(capsys, run, options).split())
    found = "agent_1 -8.0, agent_2 16.0, agent_0 24.0, against 32.0 without attack"
    assert f"{found}; agent_1 is the weakest link" in text
    assert "actions changed: of the decisions that were attacked" in text
    clean = "--attack fgsm --epsilon 0.9 --episodes 2 --weakest-link"
    text = " ".join(said(capsys, run, clean, few).split())
    assert "no clear weakest link" in text
    assert "of the decisions that were attacked" not in text, "all of them were"


def test_another_budget_is_another_evaluation(capsys: pytest.CaptureFixture[str], run: Path) -> None:
    for budget in ("", "--budget agents=1", "--budget agents=2"):
        as_json(capsys, run, "--attack fgsm --epsilon 1.1 --episodes 2 --selection-episodes 2", budget)
    assert len(list((run / "evaluations").glob("*.json"))) == 3


def test_the_worst_by_chance_has_a_question_mark(capsys: pytest.CaptureFixture[str], run: Path) -> None:
    """At ε = 0.9 nothing changes anything: whichever is called worst is so by chance."""
    few = "--selection-episodes 4 --episodes 4"
    text = said(capsys, run, "--attack noise --attack fgsm --epsilon 0.9", few)
    assert "noise (worst?)" in text
    assert "worst?: within noise of the next" in " ".join(text.split())
    assert "fgsm (worst)" in said(capsys, run, "--attack fgsm --epsilon 1.1", few)


def test_other_sides_are_named(
    capsys: pytest.CaptureFixture[str], run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sided = team(signs(longest=2, teams=True), sign_reader())
    monkeypatch.setattr("marl_aajr.evaluation.sources.Victim.load", lambda folder: sided)
    text = said(capsys, run, "--attack fgsm --epsilon 1.1 --episodes 2")
    assert "Team right, 2 episodes" in text
    assert "Other teams, by --team: left" in text


def test_a_masked_policy_is_called_so_before_any_number(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Layers that cannot be described are not saved, so the victim is put in the run's place."""
    path = finished_run(tmp_path / "masked")
    masked = team(SPEC, Quantized())
    monkeypatch.setattr("marl_aajr.evaluation.sources.Victim.load", lambda folder: masked)
    text = said(capsys, path, "--attack pgd-margin --epsilon 1.2 --episodes 4")
    assert text.startswith("FAILED: Gradient masking")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--suite quik", "a suite out of quick, standard, full, threats, words; got"),
        ("--suite none.yaml", "configuration file at none.yaml: No such file"),
        ("--agents agent_7", "agents out of agent_0, agent_1, agent_2; got 'agent_7'"),
        ("--units metres", "units: expected 'raw' or 'network', got 'metres'"),
        ("--actions random", "actions.0: expected 'greedy' or 'sampled', got 'random'"),
        ("--attack transfer", "expected a surrogate for the attack 'transfer', got none; name another run"),
        ("--attack transfer", "--surrogate RUN"),
        ("--budget agents=4", "at most 3 agents in the budget"),
        ("--budget agent=1", "did you mean agents?"),
        ("--norm l3", "norm: expected 'linf', 'l2' or 'words', got 'l3'"),
        ("--epsilon -1", "epsilons.0: expected a number greater than 0"),
        ("--set ppo.lr=1", "NAME=VALUE, env.teams=… or env.channels=… in evaluate, got ppo.lr"),
    ],
)
def test_refused_before_anything_runs(
    capsys: pytest.CaptureFixture[str], run: Path, options: str, message: str
) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["evaluate", *words(run, options)])
    assert stop.value.code == 2
    assert message in capsys.readouterr().err
    assert not (run / "evaluations").exists()


def test_a_saved_victim_with_another_environment(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    how = f"--env {SPEC.name} --set env.kwargs.longest=1 --attack fgsm --epsilon 1.1 --episodes 3"
    shown = said(capsys, run / "victim", how, "--out", tmp_path / "result.json")
    kept = json.loads((tmp_path / "result.json").read_text())
    assert kept["env"]["kwargs"] == {"longest": 1}
    assert f"Kept in {tmp_path / 'result.json'}" in shown


def test_attacks_may_be_held_to_channels(capsys: pytest.CaptureFixture[str], run: Path) -> None:
    named = "--attack noise --epsilon 0.1 --episodes 4 --channel rest --channel sign"
    told = """--set "env.channels={sign: 0, rest: '1:'}" """
    result = as_json(capsys, run, named, told)
    assert result["channels"] == ["rest", "sign"]
    assert result["results"][0]["attacks"][0]["attack"]["settings"]["channels"] == ["rest", "sign"]
    assert "noise on rest, sign" in said(capsys, run, named, told)
    with pytest.raises(SystemExit):
        main(["evaluate", *words(run, named)])
    assert "which does not; say it: env.channels" in " ".join(capsys.readouterr().err.split())


def test_a_run_may_be_told_its_sides(
    capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture, run: Path, suite: Path
) -> None:
    with caplog.at_level("INFO", "marl_aajr"):
        result = as_json(capsys, run, "--suite", suite, """--set "env.teams={agent_0: us, '*': them}" """)
    assert set(result["teams"].values()) == {"us", "them"}
    assert f"{SPEC.name}: 2 teams, us (agent_0) against them (" in caplog.text
    assert result["env"]["kwargs"]["env.teams"] == {"agent_0": "us", "*": "them"}


@pytest.mark.parametrize(
    ("options", "agents", "replaced"),
    [
        ("--agents 1", ["1"], []),
        ("--budget agents=0+1", ["0", "1"], []),
        ("--replace random:1", ["0", "1"], [["1"]]),
        ("--replace idle", ["0", "1"], [["0"], ["1"]]),
    ],
)
def test_agents_that_are_integers_are_named_in_every_option(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    options: str,
    agents: list[str],
    replaced: list[list[str]],
) -> None:
    victim = Victim.from_policies(nn.Linear(4, 3), OwnWays()).save(tmp_path / "victim")
    found = as_json(capsys, victim, f"--env {NAME} --attack fgsm --epsilon 0.1 --episodes 2", options)
    assert found["agents"] == agents
    assert [row["agents"] for row in found["results"][0]["adversarial_agents"]] == replaced
