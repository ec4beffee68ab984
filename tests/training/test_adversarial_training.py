"""Runs under attack: as a method, beside another one, resumed, on several runners, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from marl_aajr.training.algorithm import build_config
from marl_aajr.training.config import make_config
from marl_aajr.training.run_directory import RunDirectory
from marl_aajr.training.trainer import train
from tests.training.runs import TINY, assert_same_run, numbers, tiny, train_and_copy

DRAWS: dict[str, Any] = {
    "objective": "kl",
    "share": 0.75,
    "worst_agents": 1,
    "epsilon_draw": [0.5, 1.0],
    "attacked_steps": [3, 4],
    "gap_interval": 2,
    "ramp": [0.2, 0.8],
}
"""Whatever draws random numbers or changes over a run."""


@pytest.mark.usefixtures("ray_session")
def test_the_method_is_rollouts_under_attack_and_nothing_else(tmp_path: Path) -> None:
    attack = {"epsilon": 0.2, "steps": 3, "gap_interval": 1}
    method = tiny(method={"name": "adversarial_training", **attack}, env_steps=300)
    beside = tiny(rollouts=attack, env_steps=300)
    assert method.attack == beside.attack
    assert_same_run(train(method, tmp_path / "method"), train(beside, tmp_path / "beside"))
    last = numbers(tmp_path / "method")[-1]["attack"]
    assert last["epsilon"] == pytest.approx(0.2)
    assert last["clean_return_mean"] is None
    assert last["attacked_return_mean"] == pytest.approx(numbers(tmp_path / "method")[-1]["return_mean"])
    assert last["objective_gain"] > 0
    assert 0 <= last["changed_decisions"] <= 1
    assert last["inner_gap"] == pytest.approx(last["strong_gain"] - last["inner_gain"])
    assert last["smoothness"] > 0


@pytest.mark.usefixtures("ray_session")
@pytest.mark.parametrize("runners", [0, 2])
def test_a_resumed_run_under_attack_goes_on_to_the_same_numbers(runners: int, tmp_path: Path) -> None:
    """With two env runners, too, a run is the same whenever it is trained."""
    config = tiny(
        method={"name": "aajr", "coefficient": 0.01, "directions": "epoch"},
        rollouts=DRAWS,
        observation_filter="mean_std",
        resources={"env_runners": runners},
    )
    straight, run = train_and_copy(config, tmp_path, after=5)
    train(config, run, resume=True)
    assert RunDirectory(run).status().state == "finished"
    assert_same_run(straight, run)
    returns = [line["attack"]["clean_return_mean"] for line in numbers(run) if "attack" in line]
    assert any(value is not None for value in returns)


@pytest.mark.usefixtures("ray_session")
@pytest.mark.parametrize("more", [{}, {"model": {"lstm": 8}, "observation_filter": "mean_std"}])
def test_aajr_along_the_path_of_play_asks_the_rollouts_to_keep_it(more: Any, tmp_path: Path) -> None:
    every = {"interval": 1, "sample_fraction": 1.0, "ramp": None}
    method = {"name": "aajr", "directions": "rollout", "objective": "margin", **every}
    config = tiny(method=method, rollouts={"epsilon": 0.1, "ramp": [0.4, 0.6]}, env_steps=300, **more)
    assert config.attack is not None
    assert config.attack.path == "one"
    record = numbers(train(config, tmp_path / "run"))
    assert record[-1]["attack"]["objective_gain"] > 0
    lines = [line["modules"]["agent"] for line in record]
    assert [line["aajr/penalty"] > 0 for line in lines] == [False, False, True]
    assert lines[-1]["aajr/direction_cosine"] > 0.5


@pytest.mark.usefixtures("ray_session")
@pytest.mark.parametrize("algorithm", ["ppo", "appo"])
def test_rllib_s_own_runners_play_under_the_same_attack(algorithm: str, tmp_path: Path) -> None:
    drawn = {"objective": "kl", "epsilon_draw": [0.5, 1.0], "attacked_steps": [3, 4]}
    config = tiny(
        algorithm=algorithm,
        method={"name": "aajr", "coefficient": 0.01, "ramp": None},
        rollouts={"epsilon": 0.2, "share": 0.5, "gap_interval": 3, "ramp": None, **drawn},
        observation_filter="mean_std" if algorithm == "ppo" else "none",
        policies="independent",
        env_steps=400,
        resources={"runner": "stock", "env_runners": 0 if algorithm == "ppo" else 1, "envs_per_runner": 2},
    )
    run, copy = train_and_copy(config, tmp_path, after=3)
    attacks = [line["attack"] for line in numbers(run)]
    for found in attacks:
        assert found["epsilon"] == pytest.approx(0.2)
        assert found["objective_gain"] > 0
        assert 0 <= found["changed_decisions"] <= 1
    known = [found for found in attacks if found["inner_gap"] is not None]
    assert known
    assert all(found["strong_gain"] >= found["inner_gain"] > 0 for found in known)
    assert all(found["clean_return_mean"] is not None for found in attacks[1:])
    assert all(found["attacked_return_mean"] is not None for found in attacks[1:])
    if algorithm == "ppo":
        assert_same_run(run, train(config, copy, resume=True))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rollouts": {"share": 0.01}}, "at least one of the 4 copies of an env runner, got 0.01"),
        ({"rollouts": {"agents": ["nobody"]}}, "expected agents out of agent_0, agent_1 to attack"),
        ({"rollouts": {"mask": [True]}}, "features in mask, got 1"),
        ({"rollouts": {"objective": "value"}}, "acts with a critic of the agent's own observation"),
        (
            {"rollouts": {"objective": "surrogate"}},
            "rollouts: expected an objective that needs no adv",
        ),
        ({"rollouts": {"speed": 1}}, "rollouts: expected settings of 'adversarial_training' out of share"),
        ({"rollouts": {"ramp": [0.4, 0.1]}}, r"rollouts: expected a ramp \[a, b\] with a < b"),
        ({"rollouts": {"critic": "clean"}, "model": {"lstm": 8}}, "expected critic 'seen' for a module with"),
        (
            {"rollouts": {"critic": "clean"}, "resources": {"runner": "stock"}},
            "expected rollouts.critic seen with resources.runner stock",
        ),
        (
            {
                "rollouts": {},
                "method": {"name": "aajr", "directions": "rollout", "objective": "margin"},
                "resources": {"runner": "stock"},
            },
            "expected the method's directions fresh with resources.runner stock",
        ),
        ({"rollouts": {}, "method": {"name": "atla"}}, "observations would be perturbed twice"),
        ({"rollouts": {}, "method": {"name": "adversarial_training"}}, "perturbed twice; remove one"),
        (
            {"rollouts": {}, "method": {"name": "aajr", "adversarial_weight": 0.5}},
            "leaves the policy loss as it is with rollouts under attack",
        ),
        (
            {"rollouts": {}, "env": {"name": "pettingzoo.classic.tictactoe_v3"}},
            "expected floating-point observations to perturb, got int8",
        ),
        (
            {"rollouts": {}, "env": {"name": "simple_spread_v3", "kwargs": {"continuous_actions": True}}},
            "expected a categorical policy for the objective 'margin', got a Gaussian one; use 'kl'",
        ),
    ],
)
def test_what_cannot_be_played_under_attack_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_config(tiny(**changes))


def test_the_written_configuration_reads_back() -> None:
    config = make_config({**TINY, "rollouts": DRAWS})
    assert make_config(config.model_dump(mode="json")) == config
