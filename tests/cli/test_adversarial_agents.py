"""`marl-aajr evaluate` with agents that do not play as the victim does."""

from __future__ import annotations

from pathlib import Path

import pytest

from marl_aajr.adversaries.agent_game import GAME
from marl_aajr.cli.app import main
from marl_aajr.evaluation import Evaluation
from marl_aajr.report.reproduce import arguments
from marl_aajr.training.config import EnvConfig, RunConfig
from marl_aajr.training.run_directory import RunDirectory
from marl_aajr.training.run_record import Status
from marl_aajr.victims import Victim, fingerprint
from tests.cli.test_evaluate import SPEC, as_json, finished_run, said
from tests.evaluation.players import sign_reader, signs, team

FEW = ("--attack", "noise", "--epsilon", "0.1", "--episodes", "6")


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return finished_run(tmp_path / "run")


@pytest.fixture
def traitor(tmp_path: Path, run: Path) -> Path:
    """A finished run of a traitor that always names the wrong sign, as if it had been trained."""
    folder = run / "victim"
    threat = {
        "env": SPEC.name,
        "env_kwargs": dict(SPEC.kwargs),
        "victim": str(folder),
        "digest": fingerprint(Victim.load(folder)),
        "kind": "traitor",
        "agents": ["agent_0"],
    }
    directory = RunDirectory(tmp_path / "liar")
    directory.create(RunConfig(env=EnvConfig(name=GAME, kwargs=threat), env_steps=3000))
    directory.unlock()
    wrong = sign_reader(-1)
    everybody = team(SPEC, wrong)
    Victim(
        module_of={"agent_0": "adversary"},
        modules={"adversary": wrong},
        observation_spaces={"agent_0": everybody.observation_spaces["agent_0"]},
        action_spaces={"agent_0": everybody.action_spaces["agent_0"]},
    ).save(directory.victim)
    directory.write_status(Status("finished", iteration=1, env_steps=3000))
    return directory.path


def test_a_trained_traitor_is_reported_beside_its_controls(
    capsys: pytest.CaptureFixture[str], run: Path, traitor: Path
) -> None:
    result = as_json(capsys, run, *FEW, "--adversary", traitor)
    rows = {row["kind"]: row for row in result["results"][0]["adversarial_agents"]}
    assert list(rows) == ["traitor", "random", "idle"]
    assert {tuple(row["agents"]) for row in rows.values()} == {("agent_0",)}
    assert rows["traitor"]["source"] == "liar"
    training = rows["traitor"]["training"]
    assert (training["pays"], training["env_steps"], training["foreign"]) == ("loss", 3000, False)
    assert rows["traitor"]["mean"] < rows["random"]["mean"] < result["results"][0]["clean"]["mean"]
    assert "pass" in {check["verdict"] for check in result["checks"] if "traitor agent_0" in check["name"]}


def test_the_terminal_says_what_the_worst_agent_is_the_worst_of(
    capsys: pytest.CaptureFixture[str], run: Path
) -> None:
    text = said(capsys, run, *FEW, "--selection-episodes", 4, "--replace", "random")
    assert "(worst)" in text.partition("random agent_0")[2]
    assert "worst of its size or kind: chosen on other episodes than these" in " ".join(text.split())


def test_one_that_was_trained_against_others_says_so(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, traitor: Path
) -> None:
    other = finished_run(tmp_path / "other", sign_reader(2))
    result = as_json(capsys, other, *FEW, "--adversary", traitor)
    assert result["results"][0]["adversarial_agents"][0]["training"]["foreign"]
    notes = {check["name"]: check for check in result["checks"] if check["verdict"] == "warn"}
    assert notes["adversary liar"]["text"].startswith("It was trained against other victims than these: ")


def test_one_that_was_trained_in_another_environment_says_so(
    capsys: pytest.CaptureFixture[str], run: Path, traitor: Path
) -> None:
    elsewhere = ("--set", "env.kwargs.longest=3", "--env", SPEC.name)
    result = as_json(capsys, run / "victim", *FEW, *elsewhere, "--adversary", traitor)
    notes = {check["name"]: check["text"] for check in result["checks"] if check["verdict"] == "warn"}
    assert notes["adversary liar"] == (
        f"It was trained in {SPEC.name} with {dict(SPEC.kwargs)}, not in {SPEC.name} with {{'longest': 3}}: "
        "one that is trained here may do more harm."
    )


def test_controls_are_in_the_table(capsys: pytest.CaptureFixture[str], run: Path) -> None:
    shown = said(capsys, run, *FEW, "--replace", "idle:agent_2", "--replace", "random")
    for label in ("idle agent_2", "random agent_0", "random agent_1", "random agent_2"):
        assert label in shown


def test_opponents_and_partners_are_named_shown_and_repeated(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Team right (agents 1 and 2) meets a team that reads the signs twice as loud, or lends it a member."""
    monkeypatch.chdir(tmp_path)
    for name, factor in (("mine", 1), ("loud", 2), ("liar", -4)):
        team(signs(teams=True), sign_reader(factor)).save(tmp_path / name)
    asked = ("--opponent", "loud:left", "--opponent", "idle", "--partner", "liar:agent_1")
    shown = said(capsys, "mine", *FEW, "--selection-episodes", 4, *asked)
    for label in (
        "partner agent_1 of",
        "loud:left",
        "own side (does not count)",
        "mean of opponents",
        "*: the worst",
    ):
        assert label in shown
    found = as_json(capsys, "mine", *FEW, "--selection-episodes", 4, *asked)
    evaluation = Evaluation.model_validate(found)
    names = [row.opponent for row in evaluation.results[0].opponents]
    assert names == ["loud:left", "idle"]
    (words,) = arguments(evaluation, {"runs/loud": "again/loud"})
    assert "--opponent again/loud:left --opponent idle --partner liar:agent_1" in " ".join(words)
    assert "--replace random:agent_1 --replace idle:agent_1" in " ".join(words)


def test_another_run_is_no_adversary(capsys: pytest.CaptureFixture[str], run: Path) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["evaluate", str(run), *FEW, "--adversary", str(run)])
    assert stop.value.code not in (0, None)
    assert "the run of an adversary that acts" in " ".join(capsys.readouterr().err.split())
