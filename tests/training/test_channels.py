"""Regularizers, rollouts under attack and learned adversaries that are held to channels, in runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from marl_aajr.adversaries.observation_game import ObservationThreat
from marl_aajr.evaluation import evaluate
from marl_aajr.regularizers import REGULARIZERS, Sum
from marl_aajr.regularizers.adversarial import ObservationRegularizer
from marl_aajr.rllib.sampling.observation_filter import CLIP
from marl_aajr.rollout.attack.rollout_attack import RolloutAttack
from marl_aajr.rollout.environments import resolve
from marl_aajr.training.algorithm import build_config
from marl_aajr.training.atla_phases import phases_of
from marl_aajr.training.config import RunConfig
from marl_aajr.training.policy_mapping import policy_mapping_of
from marl_aajr.training.team_methods import TeamMethods, team_methods
from marl_aajr.training.trainer import train
from marl_aajr.victims import Victim, fingerprint
from tests.evaluation.players import network
from tests.rllib.fast_runs import config, fragment, normalizer, runner
from tests.training.runs import numbers, tiny

LISTEN: dict[str, Any] = {"name": "marl_aajr.envs.simple_speaker_listener_v4", "kwargs": {"max_cycles": 5}}
WORDS = (False,) * 8 + (True,) * 3
"""The listener's mask: what it hears."""


def listening(**changes: Any) -> RunConfig:
    return tiny(**{"env": LISTEN, "env_steps": 200, **changes})


def found(method: dict[str, Any], **changes: Any) -> TeamMethods:
    configured = listening(method={"ramp": None, **method}, **changes)
    build_config(configured)
    return team_methods(configured, policy_mapping_of(configured))


@pytest.mark.parametrize(
    "name", [name for name, cls in REGULARIZERS.items() if issubclass(cls, ObservationRegularizer)]
)
def test_every_regularizer_that_perturbs_is_held_to_what_its_agents_hear(name: str) -> None:
    """The speaker hears nothing: its module has none."""
    (module, regularizer), *others = found({"name": name, "channels": ["messages"]}).regularizers.items()
    assert (module, others) == ("listener", [])
    assert (regularizer.mask, regularizer.channels) == (WORDS, None)  # type: ignore[attr-defined]


def test_members_of_a_sum_are_held_each_to_its_own() -> None:
    members = [{"name": "aajr", "channels": ["messages"]}, {"name": "smooth_policy", "channels": ["goal"]}]
    both = [{"name": "frobenius"}, members[0]]
    apart = found({"name": "sum", "members": members}).regularizers
    assert {m: (each.name, each.mask) for m, each in apart.items()} == {  # type: ignore[attr-defined]
        "listener": ("aajr", WORDS),
        "speaker": ("smooth_policy", (True, True, True)),
    }
    mixed = found({"name": "sum", "members": both}).regularizers
    assert mixed["speaker"].name == "frobenius"
    assert isinstance(mixed["listener"], Sum)


@pytest.mark.parametrize("filtered", [False, True])
def test_fast_rollouts_move_what_is_heard_and_nothing_else(filtered: bool) -> None:
    configured = config("speaker", "listener", copies=4, steps=10)
    if filtered:
        configured.env_runners(env_to_module_connector=normalizer)
    attack = RolloutAttack(epsilon=0.2, channels=("messages",), gap_interval=1)
    subject = runner(configured, resolve(LISTEN["name"], LISTEN["kwargs"]), rollouts=attack)
    fragment(subject)  # before it has seen something, a filter has no units
    parts = fragment(subject).modules
    heard = parts["listener"]
    assert heard.clean_obs is not None
    change = (heard.obs - heard.clean_obs).abs()[1:]  # the first row was seen through the filter of then
    assert change[..., :8].max() == 0
    assert change[..., 8:].amax(-1).median() > (0.2 * 0.9 if not filtered else 0.0)
    assert change.max() <= (2 * CLIP if filtered else 0.2 + 1e-5)
    spoken = parts["speaker"]
    assert spoken.clean_obs is None or torch.equal(spoken.obs, spoken.clean_obs)


@pytest.mark.usefixtures("ray_session")
@pytest.mark.parametrize("own", [True, False], ids=["fast", "stock"])
def test_a_run_under_lies_is_evaluated_under_the_same_lies(own: bool, tmp_path: Path) -> None:
    configured = listening(
        method={"name": "aajr", "coefficient": 0.01, "channels": ["landmarks"], "ramp": None},
        rollouts={"epsilon": 0.3, "channels": ["messages"], "ramp": None, "gap_interval": 1},
        resources={"runner": "fast" if own else "stock", "envs_per_runner": 4},
        observation_filter="mean_std",
    )
    run = train(configured, tmp_path / "run")
    attacks = [line["attack"] for line in numbers(run)]
    assert all(each["objective_gain"] > 0 for each in attacks[1:])
    how: dict[str, Any] = {"episodes": 4, "units": "raw", "attacks": [("noise", 0.3)]}
    result = evaluate(run, channels=["messages"], **how)
    known = result.results[0].training_attack
    assert known is not None
    assert (known.attack.label, known.agents) == ("training_attack on messages", ("listener_0",))
    other = evaluate(run, **how)
    assert "expected the channels of training" in other.skipped[0].reason


def test_adversaries_of_both_sides_are_those_of_who_hears() -> None:
    configured = listening(method={"name": "atla", "channels": ["messages"], "ramp": None})
    build_config(configured)
    mapping = policy_mapping_of(configured)
    phases = phases_of(team_methods(configured, mapping).atla, mapping)
    assert phases is not None
    assert list(phases.adversaries.module_of) == ["adversary_of_listener_0"]


@pytest.mark.usefixtures("ray_session")
def test_atla_perturbs_what_is_heard(tmp_path: Path) -> None:
    train(listening(method={"name": "atla", "channels": ["messages"], "ramp": None}), tmp_path / "run")


def test_a_learned_adversary_lies_to_who_hears(tmp_path: Path) -> None:
    env = resolve(LISTEN["name"], LISTEN["kwargs"])
    policies = {"speaker_0": network(3, 3), "listener_0": network(5, 11)}
    how: dict[str, Any] = {"env_name": env.name, "env_kwargs": dict(env.kwargs)}
    victim = Victim.from_policies(policies, env.make().env, **how)
    settings: dict[str, Any] = {
        "kind": "sa-rl",
        "epsilon": 0.1,
        "env": env.name,
        "env_kwargs": dict(env.kwargs),
        "victim": str(victim.save(tmp_path / "victim")),
        "digest": fingerprint(victim),
        "channels": ["messages"],
    }
    game = ObservationThreat(**settings).build(2)
    assert {agent: own.mask for agent, own in game.sets.items()} == {"listener_0": WORDS}
    with pytest.raises(ValueError, match="no channels for a joint adversary, got messages"):
        ObservationThreat(**settings, joint=True)
    with pytest.raises(ValueError, match="no channels for a joint adversary, got goal"):
        evaluate(victim, attacks=[({"attack": "sa-rl", "joint": True, "channels": ["goal"]}, 0.1)])


@pytest.mark.parametrize(
    "changes",
    [
        {"method": {"name": "aajr", "channels": ["massages"]}},
        {"method": {"name": "adversarial_training", "channels": ["massages"]}},
        {"method": {"name": "atla", "channels": ["massages"]}},
        {"rollouts": {"epsilon": 0.1, "channels": ["massages"]}},
    ],
)
def test_unknown_channels_are_refused_with_those_that_are_there(changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"landmarks, messages; got 'massages' \(did you mean messages"):
        build_config(listening(**changes))


def test_aajr_along_the_path_of_play_is_held_to_the_same_channels() -> None:
    """By the features that they are: a run knows which."""
    along = {"name": "aajr", "directions": "rollout", "objective": "margin"}
    heard = {"channels": ["messages"]}
    for method in (along | heard, along):
        build_config(listening(method=method, rollouts=heard))
    with pytest.raises(ValueError, match=r"'listener': expected the mask of the rollouts, \(F.* got \("):
        build_config(listening(method=along | {"channels": ["landmarks"]}, rollouts=heard))


def test_one_network_for_agents_with_other_channels_is_refused() -> None:
    said = {"agent_0": {"mine": [0]}, "agent_1": {"mine": [1]}}
    env = {"name": "marl_aajr.envs.simple_spread_v3", "kwargs": {"N": 2}, "channels": said}
    for changes in ({"method": {"name": "aajr", "channels": ["mine"]}}, {"rollouts": {"channels": ["mine"]}}):
        with pytest.raises(ValueError, match="mine to be the same features of 'agent_0' and 'agent_1'"):
            build_config(tiny(env=env, **changes))
        build_config(tiny(env=env, policies="independent", **changes))
