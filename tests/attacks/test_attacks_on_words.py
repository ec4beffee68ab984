"""Every attack with a size, on embedded words: each word has the radius, and padding does not move."""

from __future__ import annotations

import pytest
import torch

from marl_aajr.attacks import PGD, StrongPGD, make_attack
from marl_aajr.core.distributions import Categorical
from marl_aajr.core.threat import Norm, PerturbationSet
from marl_aajr.core.token_network import TokenPolicy
from tests.token_networks import word_bag

TOKENS = torch.randint(0, 7, (40, 4), generator=torch.Generator().manual_seed(1))


def read() -> tuple[TokenPolicy, torch.Tensor]:
    policy = TokenPolicy(word_bag(), Categorical(3), TOKENS)
    return policy, policy.embed(TOKENS).detach()


@pytest.mark.parametrize("name", ["noise", "noise-worst", "pgd", "pgd-strong", "square"])
@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_each_word_has_the_radius(name: str, norm: Norm) -> None:
    policy, obs = read()
    found = make_attack(name, epsilon=0.4, norm=norm)(policy, obs, generator=torch.Generator().manual_seed(0))
    words = found.delta.unflatten(-1, (4, 3))
    lengths = torch.linalg.vector_norm(words, dim=-1) if norm == "l2" else words.abs().amax(-1)
    assert lengths.amax() == pytest.approx(0.4, rel=0.02)
    assert (lengths > 0.2).double().mean() > 0.5  # not one word for all
    torch.testing.assert_close(policy(found.perturbed), found.outputs)


def test_gradients_find_more_than_noise_and_less_than_one_radius_allows_in_linf() -> None:
    policy, obs = read()
    gains = {
        norm: PGD(perturbations=PerturbationSet(epsilon=0.4, norm=norm), steps=10)(
            policy, obs, generator=torch.Generator().manual_seed(0)
        ).value.mean()
        for norm in ("l2", "linf")
    }
    noise = make_attack("noise", epsilon=0.4, norm="l2")(
        policy, obs, generator=torch.Generator().manual_seed(0)
    )
    assert noise.value.mean() < gains["l2"] < gains["linf"]


def test_one_step_is_steepest_in_each_word() -> None:
    """From δ = 0, in a linear network, one step of ε is the exact maximum: ε ‖∇ of each word‖, summed."""
    policy, obs = read()
    network = policy.network
    torch.manual_seed(0)
    layer = torch.nn.Linear(12, 3, dtype=torch.float64)
    network.layers = torch.nn.Sequential(layer)
    found = StrongPGD(
        perturbations=PerturbationSet(epsilon=0.1, norm="l2"), objective="margin", steps=20, restarts=1
    )(policy, obs, generator=torch.Generator().manual_seed(0))
    outputs = policy(obs)
    best = outputs.argmax(-1)
    bound = []
    for rival in range(3):
        slope = ((layer.weight[rival] - layer.weight[best]) * network.unit).unflatten(-1, (4, 3))
        reach = torch.linalg.vector_norm(slope, dim=-1).where(TOKENS != 0, 0.0).sum(-1)
        margin = outputs[:, rival] - outputs.gather(1, best[:, None])[:, 0] + 0.1 * reach
        bound.append(margin.where(best != rival, -torch.inf))
    most = torch.stack(bound).amax(0)
    assert (found.value <= most + 1e-9).all()
    assert (found.value > most - 1e-4).double().mean() > 0.8  # elsewhere it climbs towards another action
