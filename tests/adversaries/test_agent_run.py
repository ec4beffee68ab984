"""Traitors are ordinary runs: in the relay, training finds the one that is known to be the best."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from marl_aajr.adversaries.agent_game import AgentThreat
from marl_aajr.adversaries.request import AdversaryRequest
from marl_aajr.adversaries.store import RECORD
from marl_aajr.adversaries.training import train_adversary
from marl_aajr.evaluation import evaluate
from marl_aajr.rollout.environments import resolve
from marl_aajr.training.algorithm import build_config
from marl_aajr.training.config import PPOSettings, RunConfig
from marl_aajr.training.run_directory import RunDirectory
from marl_aajr.training.run_record import Status
from marl_aajr.training.trainer import train
from marl_aajr.victims import Victim
from tests.adversaries.test_agent_game import RELAY, TAG, each_its_own, reader
from tests.evaluation.players import team
from tests.training.runs import numbers, tiny

SPEAKER = AdversaryRequest(kind="traitor", agents=("speaker",))


@pytest.fixture
def victims(tmp_path: Path) -> RunDirectory:
    """A finished run whose listener repeats and whose speaker is honest."""
    directory = RunDirectory(tmp_path / "victims")
    quick = {"train_batch_size": 200, "minibatch_size": 100, "epochs": 5, "lr": 0.02, "entropy_coeff": 0.0}
    directory.create(tiny(env={"name": RELAY.name}, ppo=quick, model={"hidden": [8], "critic": "joint"}))
    directory.unlock()
    team(RELAY, reader()).save(directory.victim)
    directory.write_status(Status("finished", iteration=1, env_steps=600))
    return directory


def test_training_finds_the_best_traitor(victims: RunDirectory, ray_session: None) -> None:
    run = train_adversary(victims.path, kind="traitor", agents=["speaker"], env_steps=4000)
    assert run == victims.path / "adversaries" / "traitor-speaker"
    selection = json.loads((run / RECORD).read_text())["selection"]
    assert selection == {"trained": 10.0, "lost": 10.0, "clean": -10.0}
    result = evaluate(victims.path, adversaries=[run], episodes=20)
    returns = {row.kind: row.mean for row in result.adversarial_agents}
    assert result.clean_return == 10.0
    assert returns["traitor"] == -10.0
    assert returns["traitor"] < returns["random"] < result.clean_return
    assert not result.failures


def test_training_finds_the_best_traitor_that_acts_sometimes(
    victims: RunDirectory, ray_session: None, tmp_path: Path
) -> None:
    """It lies whenever it may: a share of 2α is lost. All of a team may be such traitors."""
    run = train_adversary(victims.path, kind="traitor", agents=["speaker"], alpha=0.3, env_steps=2000)
    assert run == victims.path / "adversaries" / "traitor-alpha0.3-speaker"
    selection = json.loads((run / RECORD).read_text())["selection"]
    assert selection["trained"] == pytest.approx(-10 * (1 - 0.6), abs=0.8)
    assert selection["clean"] == -10.0
    result = evaluate(victims.path, adversaries=[run], episodes=200)
    chance, trained = result.results[0].threats
    assert (chance.form, trained.form, trained.source) == ("random", "trained", str(run))
    assert trained.agents == chance.agents == ("speaker",)
    assert trained.mean == pytest.approx(4.0, abs=0.8)
    assert chance.mean == pytest.approx(7.0, abs=0.8)
    assert not result.adversarial_agents
    assert not result.failures
    everybody = AdversaryRequest(kind="traitor", agents=("speaker", "listener"), alpha=0.3)
    assert everybody.config(victims.path).env.kwargs["alpha"] == 0.3
    learns = tiny(env={"name": RELAY.name}, disturb=f"replace=1,agents=speaker,by={run}", env_steps=200)
    assert numbers(train(learns, tmp_path / "learns"))


def test_an_environment_of_this_process_alone_needs_all_in_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        sys.modules["__main__"], "make_relay", resolve(RELAY.name).factory()[0], raising=False
    )
    replace(team(RELAY, reader()), env_name="__main__:make_relay").save(tmp_path)
    config = SPEAKER.config(tmp_path)
    build_config(config)
    remote = config.changed(resources=config.resources.changed(env_runners=1))
    with pytest.raises(ValueError, match="expected env_runners = 0 for an adversary in __main__:make_relay"):
        build_config(remote)


def test_the_victims_settings_are_taken_over(victims: RunDirectory) -> None:
    config = SPEAKER.changed(seed=4, env_steps=700).config(victims.path)
    trained = victims.config()
    assert (config.ppo, config.model.hidden) == (trained.ppo, trained.model.hidden)
    assert (config.model.critic, config.method.name, config.seed, config.env_steps) == ("own", "none", 4, 700)
    assert RunConfig.model_validate(config.model_dump(mode="json")) == config


def test_victims_without_a_run_are_betrayed_by_the_defaults(victims: RunDirectory) -> None:
    config = SPEAKER.config(victims.victim)
    assert config.ppo == PPOSettings()


def test_who_cannot_be_played_is_said_before_anything_runs(victims: RunDirectory) -> None:
    with pytest.raises(
        ValueError, match=r"^expected the agents that betray team 'team', got none; name some"
    ):
        AgentThreat.against(victims.path, kind="traitor").build(1)
    with pytest.raises(ValueError, match=r"^expected an opponent in a game of several teams"):
        AdversaryRequest(kind="opponent").config(victims.path)


def test_a_traitor_among_other_victims_is_refused(
    victims: RunDirectory, tmp_path: Path, ray_session: None
) -> None:
    """Nobody trains against a folder whose victims have been exchanged."""
    config = SPEAKER.config(victims.path)
    team(RELAY).save(victims.victim)
    with pytest.raises(ValueError, match="they have been trained anew or replaced"):
        train(config, tmp_path / "traitor")


@pytest.fixture
def chase(tmp_path: Path) -> RunDirectory:
    """A finished run of both sides of simple_tag, which have learned nothing."""
    directory = RunDirectory(tmp_path / "chase")
    slow = {"train_batch_size": 40, "minibatch_size": 40, "epochs": 1, "lr": 1e-9}
    directory.create(
        tiny(env={"name": TAG.name, "kwargs": dict(TAG.kwargs)}, ppo=slow, model={"hidden": [16]})
    )
    directory.unlock()
    random = each_its_own(TAG)
    sides = {agent: agent.partition("_")[0] for agent in random.agents}
    replace(
        random,
        module_of=sides,
        modules={side: random.modules[agent] for agent, side in sides.items()},
    ).save(directory.victim)
    directory.write_status(Status("finished", iteration=1, env_steps=600))
    return directory


def test_opponents_begin_as_those_that_the_victims_know(chase: RunDirectory, ray_session: None) -> None:
    pursuers = ["adversary_0", "adversary_1", "adversary_2"]
    run = train_adversary(chase.path, kind="opponent", env_steps=40, threat={"team": "good", "pays": "loss"})
    assert RunDirectory(run).config().env.kwargs["pays"] == "loss"
    trained = Victim.load(RunDirectory(run).victim)
    assert list(trained.agents) == pursuers
    known = Victim.load(chase.victim).modules["adversary"].state_dict().values()
    for own, known_one in zip(trained.modules["adversary"].state_dict().values(), known, strict=True):
        torch.testing.assert_close(own, known_one)


def test_traitors_and_those_with_other_modules_begin_from_nothing(chase: RunDirectory) -> None:
    traitor = AdversaryRequest(kind="traitor", agents=("adversary_1",))
    opponent = AdversaryRequest(kind="opponent", threat={"team": "good"})
    assert traitor.config(chase.path).initial_policy is None
    assert opponent.config(chase.path).initial_policy == str(chase.victim)
    each_its_own(TAG).save(chase.victim)
    assert opponent.config(chase.path).initial_policy is None
