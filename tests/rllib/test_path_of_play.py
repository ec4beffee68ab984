"""AAJR along the path of play in fast runs: what is kept of it, and that the learner follows it."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from marl_aajr import AAJR, robustify
from marl_aajr.core.bound_objective import value_and_gradient
from marl_aajr.core.distributions import Categorical
from marl_aajr.core.objectives import Clean, Margin
from marl_aajr.core.policy import ModulePolicy
from marl_aajr.rllib.internals.modules import plain_actor
from marl_aajr.rllib.sampling.fast import fast
from marl_aajr.rllib.sampling.observation_filter import CLIP
from marl_aajr.rollout.attack.rollout_attack import RolloutAttack
from tests.rllib.fast_runs import OURS, config, fragment, normalizer, runner
from tests.rllib.test_attacked_rollouts import EPSILON, part_of


@pytest.mark.parametrize("points", ["one", "all"])
def test_the_path_is_kept_as_the_adversary_took_it(points: Any) -> None:
    """Points of the path lie in the set, directions are those of the margin there, others have none."""
    attack = RolloutAttack(epsilon=EPSILON, path=points, share=0.5, steps=3)
    subject = runner(config(), OURS, rollouts=attack)
    part = part_of(fragment(subject))
    assert part.path is not None
    assert part.clean_obs is not None
    assert part.path.shape == (11, 3, 4, 2, 1 if points == "one" else 3, 18)
    assert part.path.dtype == torch.float16
    assert (part.path[:-1, :, 2:] == 0).all()
    deltas, directions = part.path[:-1, :, :2].float().flatten(0, 2).unbind(1)
    assert (deltas.abs() <= EPSILON * 1.001).all()
    assert torch.allclose(directions.norm(dim=-1), torch.tensor(1.0), atol=2e-3)
    layers = plain_actor(subject.module["agent"])
    assert layers is not None
    policy = ModulePolicy(layers, Categorical(5))
    obs = part.clean_obs[:-1, :, :2].flatten(0, 2)
    g = Margin().bind(policy, Clean(policy(obs).detach()))
    _, gradient = value_and_gradient(g, obs, deltas[:, 0])
    assert torch.nn.functional.cosine_similarity(gradient, directions[:, 0]).median() > 0.999


@pytest.mark.parametrize("points", ["one", "all"])
def test_the_path_behind_a_filter_goes_no_further_than_the_network_reads(points: Any) -> None:
    """The communication of simple_spread is 0 throughout: behind a filter it has a deviation of 0."""
    configured = config().env_runners(env_to_module_connector=normalizer)
    subject = runner(configured, OURS, rollouts=RolloutAttack(epsilon=0.2, path=points))
    part = part_of(fragment(subject))
    assert part.path is not None
    assert part.clean_obs is not None
    deltas, directions = part.path[1:-1].float().unbind(3)  # the first row is all that the filter knows
    read = part.clean_obs[1:-1].unsqueeze(3) + deltas
    assert read.abs().max() <= CLIP + 0.01
    assert (deltas[..., -4:].abs() == CLIP).any()
    assert torch.allclose(directions.norm(dim=-1), torch.tensor(1.0), atol=2e-3)
    assert (directions[read.abs() > CLIP - 0.01] == 0).all()


@pytest.mark.usefixtures("ray_session")
@pytest.mark.parametrize("points", ["one", "all"])
def test_aajr_follows_the_path_of_play(points: Any) -> None:
    """While the policy stands still, kept directions are fresh, and the penalty is that of a fresh ascent."""
    every = {"interval": 1, "sample_fraction": 1.0, "objective": "margin", "points": points, "steps": 5}
    attack = RolloutAttack(path=points, gap_interval=0)
    ways: tuple[Any, ...] = ("rollout", "fresh")
    found = []
    for directions in ways:
        still = config(copies=20, steps=25, num_epochs=1, minibatch_size=500, lr=1e-9)
        regularizer = AAJR(directions=directions, coefficient=0.1, **every)
        algorithm = fast(robustify(still, regularizer), OURS, rollouts=attack).build_algo()
        found.append(algorithm.train()["learners"]["agent"]["aajr"])
        algorithm.stop()
    kept, fresh = found
    assert kept["penalty"] == pytest.approx(fresh["penalty"], rel=0.02)
    assert kept["direction_cosine"] > 0.99
    assert kept["loss_share"] == pytest.approx(fresh["loss_share"], rel=0.02)


def test_the_learner_knows_what_the_rollouts_may_move() -> None:
    """Fresh directions M ∇g, with which it compares kept ones, have the same mask and scale."""
    limits: Any = {"mask": (True,) * 4 + (False,) * 14, "scale": (2.0,) * 18}
    configured = robustify(config(), AAJR(directions="rollout", objective="margin"))
    configured = fast(configured, OURS, rollouts=RolloutAttack(path="one", **limits))
    spaces = runner(configured.copy(copy_frozen=False), OURS, rollouts=RolloutAttack()).get_spaces()
    learner = configured.build_learner(env=None, spaces=spaces)
    own = learner._regularized["agent"].regularizer
    assert {name: getattr(own, name) for name in limits} == limits
