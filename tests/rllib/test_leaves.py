"""Which leaves of a nested observation are perturbed: names, order, refusals."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import gymnasium as gym
import pytest
import torch
import yaml
from ray.rllib.core.columns import Columns

from marl_aajr import AAJR, make_regularizer
from marl_aajr.cli.options import assigned
from marl_aajr.cli.train import override
from marl_aajr.rllib.plugin.observation_layout import chosen_parts
from marl_aajr.rllib.plugin.robust_learner import REGULARIZERS_KEY
from marl_aajr.training.algorithm import build_config
from marl_aajr.training.config import make_config
from tests.rllib.policy_cases import CASES, NESTED, PENALTY, columns_of, evaluated, regularized


@pytest.mark.parametrize(
    ("leaves", "message"),
    [
        (("velocity",), "expected leaves out of body/0, camera/depth, goal, got 'velocity'$"),
        (("goal", "camera/rgb"), "got 'camera/rgb', which holds torch.uint8; convert it"),
        (("bod",), "got 'bod'$"),
    ],
)
def test_leaves_that_cannot_be_perturbed_are_refused_by_name(leaves: tuple[str, ...], message: str) -> None:
    case = replace(CASES["nested"], leaves=leaves)
    module = case.spec.build()
    of = regularized(case, PENALTY, module)
    with pytest.raises(ValueError, match=message):
        of.sample(columns_of(case, module), None)
    with pytest.raises(ValueError, match=message):
        chosen_parts(NESTED, leaves)


@pytest.mark.parametrize(
    ("name", "leaves", "message"),
    [
        ("mlp", ("obs",), "expected no leaves for an observation that is one array, got obs; use mask"),
        ("masked", ("action_mask",), "got 'action_mask', which is an action mask"),
        ("mappo", ("state",), "expected leaves out of observation, got 'state'"),
    ],
)
def test_masks_states_and_leaves_of_arrays_are_refused(
    name: str, leaves: tuple[str, ...], message: str
) -> None:
    case = replace(CASES[name], leaves=leaves)
    module = case.spec.build()
    with pytest.raises(ValueError, match=message):
        regularized(case, PENALTY, module).sample(columns_of(case, module), None)


def test_features_are_in_the_order_of_the_observation_whatever_the_order_of_the_names() -> None:
    """So that one mask means one thing: `body/0` (3), `camera/depth` (4), `goal` (2)."""
    case = CASES["nested"]
    module = case.spec.build()
    columns = columns_of(case, module)
    obs = columns[Columns.OBS]
    for leaves in (None, ("goal", "camera", "body"), ("camera/depth", "body/0", "goal")):
        of = regularized(replace(case, leaves=leaves), PENALTY, module)
        flat = of.sample(columns, None).obs
        expected = torch.cat([obs["body"][0], obs["camera"]["depth"].flatten(1), obs["goal"]], -1)
        assert torch.equal(flat, expected)


def test_a_part_that_may_be_a_mask_under_another_name_is_asked_about() -> None:
    case = CASES["nested"]
    module = case.spec.build()
    actions = gym.spaces.flatdim(module.action_space)
    allowed = gym.spaces.Box(0, 1, (actions,))
    module.observation_space = gym.spaces.Dict({**module.observation_space.spaces, "allowed": allowed})
    with pytest.raises(ValueError, match=r"'allowed' says which actions are legal.*leaves=\[\.\.\.\]"):
        regularized(case, PENALTY, module)
    regularized(replace(case, leaves=("goal",)), PENALTY, module)


def test_a_mask_and_a_choice_of_leaves_mean_the_same() -> None:
    case = CASES["nested"]
    torch.manual_seed(0)
    module = case.spec.build().double()
    columns = columns_of(case, module, dtype=torch.float64)
    chosen = evaluated(regularized(replace(case, leaves=("goal",)), PENALTY, module), columns)
    masked = replace(PENALTY, mask=(False,) * 7 + (True,) * 2)
    torch.testing.assert_close(evaluated(regularized(case, masked, module), columns).loss, chosen.loss)


@pytest.mark.parametrize("leaves", ["goal", [], [3]])
def test_leaves_are_a_list_of_names(leaves: Any) -> None:
    with pytest.raises(ValueError, match=r"expected leaves as a list of names such as \[position"):
        make_regularizer("aajr", leaves=leaves)


def test_a_sum_perturbs_one_choice_of_leaves() -> None:
    both = make_regularizer(
        "sum", members=[{"name": name, "leaves": ["goal"]} for name in ("aajr", "smooth_policy")]
    )
    assert both.perturbed_leaves == ("goal",)
    with pytest.raises(ValueError, match=r"perturb the same leaves, got .*goal.* and None"):
        AAJR(leaves=("goal",)) + make_regularizer("smooth_policy")
    assert (make_regularizer("spectral_normalization") + AAJR(leaves=("goal",))).perturbed_leaves == ("goal",)


def test_a_run_names_leaves_by_yaml_and_command_line() -> None:
    """Kept in its configuration, and refused by name before anything starts."""
    poker = {"name": "pettingzoo.classic.leduc_holdem_v4"}
    data = override({"env": poker}, assigned(["method.name=aajr", "method.leaves=[observation]"]))
    config = make_config(data)
    assert make_config(yaml.safe_load(config.to_yaml())) == config
    (regularizer,) = set(build_config(config).learner_config_dict[REGULARIZERS_KEY].values())
    assert regularizer.leaves == ("observation",)
    cards = assigned(["method.name=aajr", "method.leaves=[cards]"])
    with pytest.raises(ValueError, match=r"method aajr, module .* leaves out of observation, got 'cards'"):
        build_config(make_config(override({"env": poker}, cards)))
