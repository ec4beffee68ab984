"""A method for one side, a method for each side, and what is refused of both."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from marl_aajr.rllib.plugin.robust_learner import rollouts_of
from marl_aajr.training.algorithm import build_config
from marl_aajr.training.config import RunConfig, make_config
from marl_aajr.training.policy_mapping import policy_mapping_of
from marl_aajr.training.run_directory import RunDirectory
from marl_aajr.training.team_methods import TeamMethods, team_methods
from marl_aajr.training.trainer import train
from tests.training.runs import TINY, numbers, tiny

PURSUERS = ("adversary_0", "adversary_1")
TAG = {"name": "marl_aajr.envs.simple_tag_v3", "kwargs": {"num_adversaries": 2, "max_cycles": 10}}
AAJR = {"name": "aajr", "coefficient": 0.01, "ramp": None, "interval": 1}


def tag(**changes: Any) -> RunConfig:
    return tiny(**{"env": TAG, "env_steps": 100, **changes})


def found(**changes: Any) -> TeamMethods:
    config = tag(**changes)
    build_config(config)
    return team_methods(config, policy_mapping_of(config))


@pytest.mark.parametrize(
    ("method", "regularized"),
    [
        ({"name": "aajr"}, {"adversary": "aajr", "agent": "aajr"}),
        ({"name": "aajr", "teams": ["adversary"]}, {"adversary": "aajr"}),
        ({"name": "aajr", "teams": "good"}, {"agent": "aajr"}),
        ({"teams": {"adversary": "aajr", "good": "none"}}, {"adversary": "aajr"}),
        ({"teams": {"good": {"name": "smooth_policy", "epsilon": 0.2}}}, {"agent": "smooth_policy"}),
        (
            {"teams": {"good": "frobenius", "adversary": "aajr"}},
            {"agent": "frobenius", "adversary": "aajr"},
        ),
        (
            {"name": "atla", "regularizer": {"name": "aajr"}, "teams": ["good"]},
            {"agent": "aajr"},
        ),
    ],
)
def test_modules_have_the_method_of_their_team(method: dict[str, Any], regularized: dict[str, str]) -> None:
    methods = found(method=method)
    assert {module: each.name for module, each in methods.regularizers.items()} == regularized


@pytest.mark.parametrize(
    ("changes", "attacked"),
    [
        ({"rollouts": {}}, None),
        ({"rollouts": {}, "method": {"name": "aajr", "teams": ["adversary", "good"]}}, None),
        ({"rollouts": {}, "method": {"name": "aajr", "teams": ["adversary"]}}, PURSUERS),
        ({"rollouts": {"teams": ["good"]}, "method": {"name": "aajr", "teams": ["adversary"]}}, ("agent_0",)),
        ({"rollouts": {"teams": "good"}}, ("agent_0",)),
        ({"method": {"name": "adversarial_training", "teams": ["adversary"]}}, PURSUERS),
        ({"method": {"teams": {"good": "adversarial_training", "adversary": "aajr"}}}, ("agent_0",)),
        (
            {"rollouts": {"agents": ["adversary_1"]}, "method": {"name": "aajr", "teams": ["adversary"]}},
            ("adversary_1",),
        ),
    ],
)
def test_only_agents_of_the_named_teams_are_attacked(changes: Any, attacked: Any) -> None:
    methods = found(**changes)
    assert methods.attack is not None
    assert methods.attack.agents == attacked
    assert methods.atla is None


def test_atla_has_adversaries_for_the_named_teams_alone() -> None:
    atla = found(method={"name": "atla", "teams": ["adversary"]}).atla
    assert atla is not None
    assert atla.agents == PURSUERS


def test_a_loss_off_policy_may_stand_beside_the_attack_of_the_other_side() -> None:
    off_policy = {"name": "off_policy_adversarial_training", "teams": ["good"]}
    built = build_config(tag(method=off_policy, rollouts={"teams": ["adversary"]}))
    ids = {agent: agent for agent in ("agent_0", *PURSUERS)}
    attacks = [rollouts_of(built, module, ids) for module in ("agent", "adversary")]  # as the learner asks
    assert [None if attack is None else attack.agents for attack in attacks] == [None, PURSUERS]
    with pytest.raises(ValueError, match=r"method off_policy_adversarial_training, module 'agent': expected"):
        found(method=off_policy, rollouts={})


def test_a_loss_off_policy_may_stand_beside_the_attack_on_what_others_hear() -> None:
    """The prey of this game hear nothing."""
    built = build_config(
        tag(
            env={"name": "marl_aajr.envs.simple_world_comm_v3", "kwargs": {"max_cycles": 10}},
            method={"teams": {"good": "off_policy_adversarial_training", "adversary": "none"}},
            rollouts={"teams": ["adversary", "good"], "channels": ["messages"]},
        )
    )
    names = ("leadadversary_0", "adversary_0", "adversary_1", "adversary_2", "agent_0", "agent_1")
    ids = {agent: agent for agent in names}
    assert rollouts_of(built, "agent", ids) is None
    assert rollouts_of(built, "adversary", ids) is not None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"method": {"name": "aajr", "teams": ["red"]}},
            r"method.teams: expected teams of .*simple_tag_v3, adversary, good, got red$",
        ),
        (
            {"method": {"name": "aajr", "teams": ["good", "good"]}},
            r"method.teams: expected each team once, got good again; .* has adversary, good; remove one",
        ),
        ({"method": {"teams": {"agent": "aajr"}}}, r"method.teams: expected .* adversary, good, got agent$"),
        ({"rollouts": {"teams": ["red"]}}, r"rollouts.teams: expected .* adversary, good, got red$"),
        ({"method": {"name": "aajr", "teams": []}}, r"expected teams such as \[adversary\], .* got \[\]"),
        ({"method": {"name": "aajr", "teams": 3}}, r"expected teams such as \[adversary\], .* got 3"),
        ({"method": {"name": "none", "teams": ["good"]}}, "no settings for method none, got teams"),
        ({"method": {"name": "per_team"}}, "expected the method of each team for method per_team"),
        ({"method": {"teams": {"good": "none"}}}, "expected a method for at least one of the teams"),
        ({"method": {"teams": {"good": {"name": "aajr", "steps": 0}}}}, r"method: teams.good: .*steps"),
        ({"method": {"teams": {"good": "aajjr"}}}, r"method: teams.good: expected a method name out of"),
        (
            {"method": {"teams": {"good": {"name": "aajr", "teams": ["good"]}}}},
            "expected no teams within the method of team 'good'",
        ),
        (
            {"method": {"name": "aajr", "teams": {"good": "aajr"}}},
            "expected nothing beside teams that says the method of each, got name",
        ),
        (
            {"method": {"teams": {"good": "adversarial_training", "adversary": "atla"}}},
            "expected one adversary in the rollouts of a run, got those of adversarial_training for good,",
        ),
        ({"rollouts": {}, "method": {"teams": {"good": "atla"}}}, "got atla: observations would be perturb"),
        (
            {"method": {"name": "adversarial_training", "agents": ["agent_0"], "teams": ["adversary"]}},
            "expected agents of adversary to attack, .* got 'agent_0' of good; leave agents out",
        ),
        (
            {
                "rollouts": {"teams": ["good"]},
                "method": {"name": "aajr", "directions": "rollout", "teams": ["adversary"]},
            },
            "module 'adversary': expected rollouts under attack that keep the path, .* got 'none'",
        ),
    ],
)
def test_what_teams_cannot_be_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_config(tag(**changes))


@pytest.mark.parametrize(
    "changes", [{"method": {"name": "aajr", "teams": ["good"]}}, {"rollouts": {"teams": ["good"]}}]
)
def test_teams_that_share_a_module_are_trained_alike(changes: dict[str, Any]) -> None:
    config = tag(**changes)
    mapping = policy_mapping_of(config)
    shared = replace(mapping, module_of=dict.fromkeys(mapping.module_of, "shared"))
    with pytest.raises(ValueError, match=r"module 'shared', which plays for agents of adversary, good, got"):
        team_methods(config, shared)
    assert team_methods(tag(method=AAJR, rollouts={}), shared).regularizers.keys() == {"shared"}


def test_the_written_configuration_reads_back() -> None:
    for method in ({"name": "aajr", "teams": ["good"]}, {"teams": {0: "aajr", "good": "none"}}):
        config = make_config({**TINY, "method": method, "rollouts": {"teams": ["good"]}})
        assert make_config(config.model_dump(mode="json")) == config
        assert config.changed(seed=5).method == config.method
    assert config.method.label == "aajr for 0, none for good"


def test_all_teams_named_is_the_run_without_names() -> None:
    methods = [
        found(method=method, rollouts={"steps": 1})
        for method in (
            AAJR,
            {**AAJR, "teams": ["good", "adversary"]},
            {"teams": {"adversary": AAJR, "good": AAJR}},
        )
    ]
    assert methods[0].regularizers == methods[1].regularizers == methods[2].regularizers
    assert methods[0].attack == methods[1].attack == methods[2].attack


@pytest.mark.usefixtures("ray_session")
def test_one_side_learns_by_its_method_and_the_other_plainly(tmp_path: Path) -> None:
    rollouts = {"teams": ["adversary"], "critic": "clean", "steps": 1, "ramp": None, "share": 0.5}
    along = {**AAJR, "directions": "rollout", "objective": "margin", "teams": ["adversary"]}
    run = train(tag(method=along, rollouts=rollouts, env_steps=200), tmp_path / "run")
    assert RunDirectory(run).config().method.label == "aajr for adversary"
    first, last = numbers(run)
    assert last["module_teams"] == {"adversary": "adversary", "agent": "good"}
    assert last["modules"]["adversary"]["aajr/direction_cosine"] > 0.5
    for kind in ("attacked", "clean"):
        of_teams, of_all = last["attack"][f"{kind}_team_returns"], last["attack"][f"{kind}_return_mean"]
        assert of_teams.keys() == {"adversary", "good"}
        assert sum(of_teams.values()) == pytest.approx(of_all)
    # In the first iteration a run without a method has sampled the same.
    plain = numbers(train(tag(rollouts=rollouts), tmp_path / "plain"))[0]["modules"]
    assert first["modules"]["agent"] == plain["agent"]
    assert first["modules"]["adversary"]["total_loss"] != plain["adversary"]["total_loss"]
