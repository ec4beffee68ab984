"""`adversary train` and `evaluate --adversary`, as a person types them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from marl_aajr.adversaries.learned import loaded
from marl_aajr.adversaries.training import train_adversary
from marl_aajr.cli.adversary import verdict
from marl_aajr.cli.app import main
from marl_aajr.training.trainer import train
from marl_aajr.victims import Victim
from tests.training.runs import tiny

pytestmark = pytest.mark.usefixtures("ray_session")


@pytest.fixture(scope="module")
def run(ray_session: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    env = {"name": "marl_aajr.envs.simple_spread_v3", "kwargs": {"N": 2, "max_cycles": 5}}
    return train(tiny(env=env, env_steps=100), tmp_path_factory.mktemp("adversary") / "victims")


def call(*words: object) -> int:
    with pytest.raises(SystemExit) as over:
        main([str(word) for word in words])
    return int(over.value.code or 0)


def test_an_adversary_is_trained_and_judged_by(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = "--kind sa-rl --epsilon 0.3 --env-steps 100 --search 1 --joint --agents agent_0"
    assert call("adversary", "train", run, *asked.split()) == 0
    folder = run / "adversaries" / "sa-rl-eps0.3-joint-agent_0"
    said = capsys.readouterr().err
    phases = ["sa-rl against", "Learning what PGD", "Training", "iteration 1", "Evaluating it on 100"]
    phases += ["On other episodes than it learned on the team's return is"]
    assert phases == sorted(phases, key=said.index)
    assert "  adversary's return " in said
    assert f"marl-aajr evaluate {run} --adversary {folder}" in said
    beside = ("--attack", "fgsm", "--epsilon", 0.3, "--agents", "agent_0", "--episodes", 5, "--json")
    assert call("evaluate", run, "--adversary", folder, *beside) == 0
    rows = json.loads(capsys.readouterr().out)["results"][0]["attacks"]
    assert [(row["attack"]["name"], row["epsilons"]) for row in rows] == [
        ("fgsm", {"agent_0": 0.3}),
        ("sa-rl", {"agent_0": 0.3}),
    ]


def test_channels_are_held_to_and_unknown_ones_named(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = ("--kind", "sa-rl", "--epsilon", 0.3, "--env-steps", 100, "--search", 1, "--no-warm-start")
    assert call("adversary", "train", run, *asked, "--channel", "messages", "--channel", "gossip") == 2
    assert "a channel of agent_0, agent_1" in capsys.readouterr().err
    assert call("adversary", "train", run, *asked, "--channel", "others", "--joint") == 2
    assert "expected no channels for a joint adversary, got others" in capsys.readouterr().err
    assert call("adversary", "train", run, *asked, "--channel", "others") == 0
    folder = run / "adversaries" / "sa-rl-eps0.3-others"
    assert loaded(folder).perturbations.channels == ("others",)


def test_an_adversary_of_other_victims_is_refused(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = train_adversary(run, kind="sa-rl", epsilon=0.1, env_steps=1, search=1, warm_start=False)
    other = Path(shutil.copytree(run, run.parent / "others"))
    victim = Victim.load(other / "victim")
    for parameter in victim.modules["agent"].parameters():
        parameter.data.mul_(2)
    shutil.rmtree(other / "victim")
    victim.save(other / "victim")
    assert call("evaluate", other, "--adversary", folder, "--json") == 2
    said = " ".join(capsys.readouterr().err.split())
    assert f"got {folder}, which was trained against the one in {run}/victim; train another:" in said
    assert said.endswith(f"marl-aajr adversary train {other} --kind sa-rl --epsilon 0.1")


def test_one_that_exists_is_not_replaced_unasked(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = ("--kind", "traitor", "--agents", "agent_1", "--env-steps", 100)
    assert call("adversary", "train", run, *asked) == 0
    assert "On other episodes than it learned on the team's return" in capsys.readouterr().err
    assert call("adversary", "train", run, *asked) == 2
    assert "expected a new folder, got" in capsys.readouterr().err
    assert call("adversary", "train", run, *asked, "--overwrite") == 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--kind", "sa-rl", "--epsilon", "0.1"), "expected VICTIM_RUN and --kind"),
        (("nowhere", "--kind", "sa-rl", "--epsilon", "0.1"), "expected a saved victim in nowhere"),
        (("nowhere", "--kind", "sarl"), "'opponent' or 'best-response', got 'sarl'; did you mean sa-rl?"),
        (
            ("nowhere", "--kind", "opponent", "--channel", "messages"),
            "expected no epsilon and no joint adversary for 'opponent', and no channels",
        ),
        (("--resume",), "expected --resume with --out FOLDER"),
        (("--resume", "--out", "nowhere"), "expected the folder of an adversary whose training was stopped"),
    ],
)
def test_what_cannot_be_trained_is_refused(
    words: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call("adversary", "train", *words) == 2
    assert message in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize(
    ("low", "high", "word"),
    [
        (0.1, 3.9, "stronger than PGD (-2.0, paired 99 % interval -3.9 to -0.1)."),
        (-1.0, 5.0, "not distinguishable from PGD (-2.0, paired 99 % interval -5.0 to +1.0)."),
    ],
)
def test_the_verdict_is_that_of_the_paired_interval(low: float, high: float, word: str) -> None:
    selection = {"clean": 20.0, "pgd": 30.0, "warm_start": 28.0, "trained": 32.0}
    ahead = {"mean": 2.0, "low": low, "high": high}
    record = {"selection": selection, "kept": "trained", "lead": ahead, "undertrained": False}
    assert verdict(record).endswith(f"is -32.0, -30.0 under PGD and -20.0 without attack: {word}")


def test_the_verdict_says_what_is_no_evidence() -> None:
    selection = {"clean": 20.0, "pgd": 30.0, "warm_start": 28.0, "trained": 27.0}
    ahead = {"mean": -2.0, "low": -3.0, "high": -1.0}
    weak = {"selection": selection, "kept": "warm_start", "lead": ahead, "undertrained": True}
    assert "is -28.0, -30.0 under PGD and -20.0 without attack: weaker than PGD" in verdict(weak)
    assert verdict(weak).endswith("undertrained, which is no evidence of robustness.")


@pytest.mark.parametrize(
    ("low", "high", "word"),
    [(1.0, 3.0, "falls"), (-3.0, -1.0, "rises"), (-1.0, 1.0, "does not clearly change:")],
)
def test_the_verdict_on_an_adversarial_agent_is_about_the_teams_return(
    low: float, high: float, word: str
) -> None:
    selection = {"trained": 70.8, "clean": -40.0, "lost": -38.0}
    ahead = {"mean": (low + high) / 2, "low": low, "high": high}
    record = {"selection": selection, "kept": "trained", "lead": ahead, "undertrained": False, "curve": []}
    assert f"the team's return {word} from 40.0 to 38.0 (" in verdict(record)
