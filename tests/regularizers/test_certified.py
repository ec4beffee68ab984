"""SA-PPO's convex form and RADIAL: closed forms, what they bound, and what they do to a policy."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from marl_aajr.core.bounds import BoundedMLP, Region
from marl_aajr.core.distributions import ActionDistribution, Categorical, DiagGaussian
from marl_aajr.core.policy import ModulePolicy, Policy
from marl_aajr.core.threat import PerturbationSet
from marl_aajr.regularizers import Context, ConvexSmoothPolicy, LossTerm, Radial, Regularizer, ppo_policy_loss
from tests.networks import (
    DISTRIBUTIONS,
    generator,
    linear_policy,
    observations,
    parameters,
    tanh_policy,
)
from tests.regularizers.samples import evaluate, gradients, sample_of

WHOLE: dict[str, Any] = {"sample_fraction": 1.0, "epsilon": 0.3}
CONVEX = ConvexSmoothPolicy(coefficient=1.0, **WHOLE)
RADIAL = Radial(adversarial_weight=1.0, **WHOLE)
by_regularizer = pytest.mark.parametrize("regularizer", [CONVEX, RADIAL], ids=lambda value: value.name)
by_distribution = pytest.mark.parametrize("distribution", DISTRIBUTIONS, ids=repr)


def weights(rows: int, *, seed: int = 3) -> Tensor:
    return torch.randn(rows, 6, generator=generator(seed), dtype=torch.float64)


def test_the_convex_form_of_a_linear_policy() -> None:
    """¼ Σ (ε ‖w_i‖₁)² for logits, Σ (ε ‖w_i‖₁ / σ_i)² for means."""
    weight = weights(5)
    moves = 0.3 * weight.abs().sum(-1)
    found = evaluate(CONVEX, sample_of(linear_policy(weight)))
    assert found.loss.item() == pytest.approx(float(0.25 * moves.square().sum()))
    assert found.metrics["bound_width"].item() == pytest.approx(float(2 * moves.max()))
    log_std = torch.tensor([0.5, -0.5, 0.0])
    means = torch.cat([weight[:3], torch.zeros(3, 6)])
    policy = linear_policy(means, DiagGaussian(3), torch.cat([torch.zeros(3), log_std]).double())
    expected = (moves[:3] / log_std.exp()).square().sum()
    assert evaluate(CONVEX, sample_of(policy)).loss.item() == pytest.approx(float(expected))
    masked = evaluate(replace(CONVEX, mask=(True,) + (False,) * 5), sample_of(policy))
    moves = 0.3 * weight[:3, 0].abs()
    assert masked.loss.item() == pytest.approx(float((moves / log_std.exp()).square().sum()))


def test_the_convex_form_takes_the_further_end() -> None:
    """−relu(x) for x about 0.1: up by 0.1, and down by ε = 0.3."""
    layers = nn.Sequential(nn.Linear(1, 1, bias=False), nn.ReLU(), nn.Linear(1, 2, bias=False)).double()
    policy = ModulePolicy(layers, Categorical(2))
    first, last = parameters(policy)
    first.data.fill_(1.0)
    last.data.copy_(torch.tensor([[-1.0], [0.0]]))
    obs = torch.full((3, 1), 0.1).double()
    sample = replace(sample_of(policy, rows=3, features=1), obs=obs, outputs=policy(obs))
    assert evaluate(CONVEX, sample).loss.item() == pytest.approx(0.25 * 0.3**2)


def test_radial_on_a_linear_policy() -> None:
    """The differences z_j − z_a move by ε ‖w_j − w_a‖₁, all of them against the action, or all for it."""
    weight, policy = weights(5), linear_policy(weights(5))
    sample = sample_of(policy)
    assert sample.actions is not None
    differences = sample.outputs - sample.outputs.gather(-1, sample.actions.unsqueeze(-1))
    moves = 0.3 * (weight - weight[sample.actions].unsqueeze(1)).abs().sum(-1)
    loss = ppo_policy_loss(0.2)
    ends = [loss(differences + sign * moves, sample) for sign in (1, -1)]
    expected = torch.maximum(*ends) - loss(sample.outputs, sample)
    assert expected.mean() > 0.01
    torch.testing.assert_close(evaluate(RADIAL, sample).loss, expected.mean())
    half = evaluate(replace(RADIAL, adversarial_weight=0.5), sample).loss
    torch.testing.assert_close(half, 0.5 * expected.mean())


def test_radial_on_gaussians_has_the_mean_as_far_and_as_near_as_it_can_be() -> None:
    weight = torch.cat([weights(2), torch.zeros(2, 6)])
    policy = linear_policy(weight, DiagGaussian(2), torch.tensor([0.0, 0.0, 0.3, -0.2]).double())
    sample = sample_of(policy)
    mean, log_std = sample.outputs.split(2, -1)
    moves = 0.3 * weight[:2].abs().sum(-1)
    assert sample.actions is not None
    gap = sample.actions - mean
    far = mean - torch.where(gap == 0, 1.0, gap.sign()) * moves
    near = sample.actions.clamp(mean - moves, mean + moves)
    loss = ppo_policy_loss(0.2)
    ends = [loss(torch.cat([end, log_std], -1), sample) for end in (far, near)]
    expected = (torch.maximum(*ends) - loss(sample.outputs, sample)).mean()
    torch.testing.assert_close(evaluate(RADIAL, sample).loss, expected)


@by_distribution
@pytest.mark.parametrize("share", [1.0, 0.5, 0.0])
def test_no_perturbation_does_more_than_they_say(distribution: ActionDistribution, share: float) -> None:
    """Row by row: the action difference stays below the penalty, the policy loss below RADIAL's, at σ(s)."""
    policy = tanh_policy(distribution)
    whole = sample_of(policy)
    threat, loss = PerturbationSet(epsilon=0.3), ppo_policy_loss(0.2)
    for row in range(len(whole.obs)):
        sample = whole.select(torch.tensor([row]))
        difference = evaluate(replace(CONVEX, interval_share=share), sample).loss
        worse = evaluate(replace(RADIAL, interval_share=share), sample).loss + loss(sample.outputs, sample)
        many = sample.select(torch.zeros(300, dtype=torch.long))
        delta = threat.sample(many.obs, generator=generator(row))
        outputs = policy(many.obs + delta).detach()
        corners = policy(many.obs + 0.3 * delta.sign()).detach()
        for moved in (outputs, corners):
            if isinstance(distribution, DiagGaussian):
                mean, log_std = distribution.split(many.outputs)
                moved[:, 3:] = log_std
                found = ((moved[:, :3] - mean) / log_std.exp()).square().sum(-1)
            else:
                found = distribution.kl(many.outputs, moved)
            assert (found <= difference + 1e-9).all()
            assert (loss(moved, many) <= worse + 1e-9).all()


@by_regularizer
@by_distribution
@pytest.mark.parametrize("share", [1.0, 0.3])
def test_their_gradients_are_those_of_finite_differences(
    regularizer: ConvexSmoothPolicy | Radial, distribution: ActionDistribution, share: float
) -> None:
    """Through softplus, of which nothing is searched for (`marl_aajr.core.relaxations`)."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layers = nn.Sequential(nn.Linear(6, 8), nn.Softplus(), nn.Linear(8, distribution.num_inputs))
    policy, chosen = ModulePolicy(layers.double(), distribution), replace(regularizer, interval_share=share)
    log_std = distribution.num_inputs // 2 if isinstance(distribution, DiagGaussian) else None

    if log_std is not None:
        parameters(policy)[2].data[log_std:] = 0  # σ is a constant of the convex form

    def loss() -> LossTerm:
        return evaluate(chosen, replace(first, outputs=policy(first.obs)))

    first = sample_of(policy)
    found = gradients(loss(), parameters(policy))
    assert found[0].abs().sum() > 0
    for number, place in ((0, (2, 1)), (2, (1, 3)), (3, (0,))):
        weight, size, values = parameters(policy)[number], 1e-6, []
        for sign in (1, -1):
            weight.data[place] += sign * size
            values.append(loss().loss.item())
            weight.data[place] -= sign * size
        expected = (values[0] - values[1]) / (2 * size)
        assert found[number][place].item() == pytest.approx(expected, rel=1e-4, abs=1e-7)
    if log_std is not None and regularizer is CONVEX:  # it cannot be met by more noise
        assert found[3][log_std:].abs().sum() == 0


@by_regularizer
def test_masked_actions_count_as_if_they_were_not_there(regularizer: Regularizer) -> None:
    weight = weights(5)
    forbidden = torch.tensor([0.0] * 3 + [torch.finfo(torch.float64).min] * 2, dtype=torch.float64)
    masked = linear_policy(weight)
    sample, obs = sample_of(linear_policy(weight[:3])), observations()
    seen = replace(sample, policy=masked, outputs=masked(obs) + forbidden)
    torch.testing.assert_close(evaluate(regularizer, seen).loss, evaluate(regularizer, sample).loss)


def test_crown_is_tighter_and_the_share_mixes_the_bounds() -> None:
    policy = tanh_policy(Categorical(5))
    sample = sample_of(policy)
    widths = [
        evaluate(replace(CONVEX, interval_share=share), sample).metrics["bound_width"].item()
        for share in (0.0, 0.5, 1.0)
    ]
    assert widths[0] < widths[1] < widths[2]
    context = Context(timestep=0, generator=generator(), state={})
    narrow, both, wide = (
        replace(CONVEX, interval_share=share).ends(sample, context) for share in (0.0, 0.5, 1.0)
    )
    torch.testing.assert_close(both.low, (narrow.low + wide.low) / 2)
    torch.testing.assert_close(both.high, (narrow.high + wide.high) / 2)
    by_schedule = replace(CONVEX, interval_share=((0.0, 0.0), (10.0, 1.0)))
    assert evaluate(by_schedule, sample, timestep=10).metrics["bound_width"].item() == widths[2]
    assert evaluate(by_schedule, sample, timestep=0).metrics["bound_width"].item() == widths[0]


@by_regularizer
def test_epsilon_may_rise(regularizer: ConvexSmoothPolicy | Radial) -> None:
    sample = sample_of(tanh_policy(Categorical(5)))
    rising = replace(regularizer, epsilon=((0.0, 0.01), (10.0, 0.3)))
    early, late = (evaluate(rising, sample, timestep=t).loss for t in (0, 10))
    assert early < late
    torch.testing.assert_close(late, evaluate(regularizer, sample).loss)


@by_regularizer
def test_policies_that_learn_with_them_have_tighter_bounds(regularizer: ConvexSmoothPolicy | Radial) -> None:
    """To tell whether two features have one sign, with and without the term: twice as often for certain."""
    obs = observations(64)
    right = (obs[:, 0] * obs[:, 1] > 0).long()
    shares = []
    terms = (None, regularizer if regularizer is CONVEX else replace(RADIAL, adversarial_weight=0.5))
    for term in terms:
        policy = tanh_policy(Categorical(2))
        optimizer = torch.optim.Adam(parameters(policy), lr=0.02)
        for _ in range(100):
            outputs = policy(obs)
            loss = nn.functional.cross_entropy(outputs, right)
            if term is not None:
                old = policy.distribution.log_prob(outputs, right).detach()
                sample = replace(
                    sample_of(policy, rows=64),
                    obs=obs,
                    outputs=outputs,
                    actions=right,
                    log_probs=old,
                    advantages=torch.ones(64).double(),
                )
                loss = loss + evaluate(replace(term, epsilon=0.2), sample).loss
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        assert (policy(obs).argmax(-1) == right).double().mean() > 0.8
        signs = torch.eye(2).double()[right] * 2 - 1
        network = BoundedMLP.of(policy.module)
        region = Region.of(PerturbationSet(epsilon=0.2), obs)
        least = network.least(region, signs.unsqueeze(1), "interval")
        shares.append(float((least > 0).double().mean()))
    assert shares[1] > 2 * shares[0] > 0


class Scaled(ModulePolicy):
    """Does more with its layers than they say."""

    def __call__(self, obs: Tensor) -> Tensor:
        return 2 * super().__call__(obs)


class Opaque(Policy):
    def __call__(self, obs: Tensor) -> Tensor:
        return obs[..., :5]


class Doubled(nn.Linear):
    def forward(self, obs: Tensor) -> Tensor:
        return 2 * super().forward(obs)


class Stack(nn.Sequential):
    def forward(self, obs: Tensor) -> Tensor:
        return 2 * super().forward(obs)


@by_regularizer
@pytest.mark.parametrize(
    ("policy", "words"),
    [
        (Opaque(Categorical(5)), "expected a policy that is a stack of layers .* got Opaque"),
        (ModulePolicy(nn.Sequential(nn.Linear(6, 5), nn.SiLU()), Categorical(5)), "SiLU"),
        (ModulePolicy(Doubled(6, 5), Categorical(5)), "Doubled"),
        (Scaled(nn.Linear(6, 5), Categorical(5)), "outputs are others than those of its layers"),
        (ModulePolicy(Stack(nn.Linear(6, 5)), Categorical(5)), "Stack"),
    ],
    ids=lambda value: getattr(value, "__class__").__name__,  # noqa: B009
)
def test_policies_without_bounds_are_refused_by_name(
    regularizer: Regularizer, policy: Policy, words: str
) -> None:
    with pytest.raises(ValueError, match=words):
        regularizer.fitted(policy, observations(dtype=torch.float32))


def test_settings_out_of_range_are_refused() -> None:
    with pytest.raises(ValueError, match=r"expected interval_share in \[0, 1\]"):
        Radial(interval_share=1.5)
    with pytest.raises(ValueError, match=r"expected adversarial_weight in \[0, 1\]"):
        Radial(adversarial_weight=2.0)
    with pytest.raises(ValueError, match="policy loss"):
        RADIAL.check(Categorical(3), offers=frozenset())
    assert RADIAL.every == 1
