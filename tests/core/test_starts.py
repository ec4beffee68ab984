"""Where ascents begin that cannot begin at δ = 0."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from marl_aajr.attacks import make_attack
from marl_aajr.core.ascent import ascend
from marl_aajr.core.distributions import Categorical
from marl_aajr.core.objectives import KL
from marl_aajr.core.policy import ModulePolicy
from marl_aajr.core.starts import NUDGE, near_observations
from marl_aajr.core.threat import PerturbationSet, PerturbationSets
from marl_aajr.rollout.attack.rollout_attack import RolloutAttack
from tests.networks import generator, observations, parameters, tanh_policy

CUBE = PerturbationSet(epsilon=0.1)
SETS = {
    "linf": CUBE,
    "l2": PerturbationSet(epsilon=0.1, norm="l2"),
    "bounds": PerturbationSet(epsilon=0.1, low=-0.5, scale=(1.0, 2.0, 1.0, 1.0, 1.0, 1.0)),
    "rows": PerturbationSets.of(CUBE, torch.linspace(0.05, 0.2, 7).unsqueeze(1)),
}


def beside_a_timer(time: float) -> tuple[ModulePolicy, Tensor]:
    """A policy that hardly reads the last of its features, as training makes it, which is large."""
    policy = tanh_policy(Categorical(5), dtype=torch.float32)
    with torch.no_grad():
        parameters(policy)[0][:, -1] *= 1e-6
    obs = observations(50, dtype=torch.float32)
    obs[:, -1] = time
    return policy, obs


@pytest.mark.parametrize("time", [0.0, 300.0, 2e3, 1e6])
def test_a_large_feature_hides_no_perturbation_of_the_others(time: float) -> None:
    policy, obs = beside_a_timer(time)
    attack = RolloutAttack(objective="kl", epsilon=0.1)
    found = attack.perturb(policy, obs, epsilon=0.1, generator=generator()).delta
    assert found.abs().amax(-1).min() > 0.09
    evaluated = make_attack("pgd", epsilon=0.1)(policy, obs, generator=generator())
    assert evaluated.delta.abs().amax(-1).min() > 0.09
    trajectory = ascend(policy, obs, KL(), CUBE, steps=2, step_size=0.05, generator=generator())
    assert trajectory.has_direction.all()


@pytest.mark.parametrize("name", SETS)
def test_the_start_is_in_a_hundredth_of_the_set_where_that_arrives(name: str) -> None:
    sets, obs = SETS[name], observations(dtype=torch.float32)
    obs[0] = 1e3  # a hundredth of ε is below sixteen rounding units of each feature
    start = near_observations(sets, obs, generator=generator())
    assert sets.contains(start, obs).all()
    size = sets.size(start) / torch.as_tensor(sets.epsilon).squeeze()
    assert size[0] > 10 * NUDGE
    assert (size[1:] <= NUDGE * 1.001).all()
    ordinary = near_observations(sets, observations(dtype=torch.float32), generator=generator())
    assert torch.equal(start[1:], ordinary[1:])


def test_a_perturbation_that_arrives_nowhere_leads_nowhere() -> None:
    policy, obs = tanh_policy(Categorical(5), dtype=torch.float32), torch.full((7, 6), 1e6)
    trajectory = ascend(policy, obs, KL(), CUBE, steps=2, step_size=0.05, generator=generator())
    assert not trajectory.has_direction.any()
