"""``adversary train`` and ``evaluate --adversary``, as a person types them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from marl_aajr.attacks.adversary_run import train_adversary
from marl_aajr.cli.adversary import verdict
from marl_aajr.cli.app import main
from marl_aajr.training.trainer import train
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
    asked = (
        "--kind",
        "sa-rl",
        "--epsilon",
        0.3,
        "--env-steps",
        4000,
        "--search",
        1,
        "--joint",
        "--agents",
        "agent_0",
    )
    assert call("adversary", "train", run, *asked) == 0
    folder = run / "adversaries" / "sa-rl-eps0.3-joint-agent_0"
    said = capsys.readouterr().err
    assert "On other episodes than it learned on the team's return is" in said
    assert f"marl-aajr evaluate {run} --adversary {folder}" in said
    beside = ("--attack", "fgsm", "--epsilon", 0.3, "--agents", "agent_0", "--episodes", 5, "--json")
    assert call("evaluate", run, "--adversary", folder, *beside) == 0
    rows = json.loads(capsys.readouterr().out)["attacks"]
    assert [(row["attack"], row["epsilon"], row["agents"]) for row in rows] == [
        ("fgsm", 0.3, ["agent_0"]),
        ("sa-rl", 0.3, ["agent_0"]),
    ]


def test_an_adversary_of_other_victims_is_refused(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = train_adversary(run, kind="sa-rl", epsilon=0.1, env_steps=1, search=1, warm_start=False)
    env = {"name": "marl_aajr.envs.simple_spread_v3", "kwargs": {"N": 2, "max_cycles": 5}}
    other = train(tiny(env=env, env_steps=100, seed=9), run.parent / "others")
    assert call("evaluate", other, "--adversary", folder, "--json") == 2
    assert "was trained against, got others" in " ".join(capsys.readouterr().err.split())


def test_one_that_exists_is_not_replaced_unasked(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = ("--kind", "traitor", "--agents", "agent_1", "--env-steps", 100)
    assert call("adversary", "train", run, *asked) == 0
    assert "On other episodes than it learned on it earns" in capsys.readouterr().err
    assert call("adversary", "train", run, *asked) == 2
    assert "expected a new folder, got" in capsys.readouterr().err
    assert call("adversary", "train", run, *asked, "--overwrite") == 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--kind", "sa-rl", "--epsilon", "0.1"), "expected VICTIM_RUN and --kind"),
        (("nowhere", "--kind", "sa-rl", "--epsilon", "0.1"), "expected a saved victim in nowhere"),
        (("nowhere", "--kind", "sarl"), "expected kind out of sa-rl, pa-ad, traitor, opponent; got 'sarl'"),
        (("--resume",), "expected --resume with --out FOLDER"),
        (("--resume", "--out", "nowhere"), "expected the folder of an adversary whose training was stopped"),
    ],
)
def test_what_cannot_be_trained_is_refused(
    words: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call("adversary", "train", *words) == 2
    assert message in " ".join(capsys.readouterr().err.split())


def test_the_verdict_says_whether_it_is_evidence() -> None:
    selection = {"clean": 20.0, "pgd": 30.0, "warm_start": 28.0, "trained": 27.0}
    weak = {"selection": selection, "kept": "warm_start", "undertrained": True}
    assert "is -28.0, -30.0 under PGD and -20.0 without attack: undertrained" in verdict(weak)
    strong = {"selection": selection | {"trained": 31.0}, "kept": "trained", "undertrained": False}
    assert verdict(strong).endswith(": stronger than PGD here.")
    close = {"selection": selection | {"trained": 29.0}, "kept": "trained", "undertrained": False}
    assert verdict(close).endswith(": not clearly weaker than PGD.")
