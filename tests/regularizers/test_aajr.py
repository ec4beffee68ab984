"""AAJR: the loss it adds, its gradient, and what must not contribute to it."""

from __future__ import annotations

import pickle
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from marl_aajr.ascent import ascend
from marl_aajr.distributions import ActionDistribution, Categorical, DiagGaussian
from marl_aajr.jacobian import jvp
from marl_aajr.numerics import NonFiniteError
from marl_aajr.objectives import KL
from marl_aajr.outputs import squared_gain
from marl_aajr.policy import ModulePolicy
from marl_aajr.regularizers import AAJR, REGULARIZERS, Evaluation, Sample, make_regularizer, ppo_policy_loss
from tests.networks import (
    DISTRIBUTIONS,
    generator,
    linear_policy,
    observations,
    parameters,
    random_actions,
    tanh_policy,
)

WHOLE = AAJR(coefficient=1.0, sample_fraction=1.0, epsilon=0.3)


def sample_of(
    policy: ModulePolicy, *, rows: int = 7, features: int = 6, mask: Tensor | None = None
) -> Sample:
    obs = observations(rows, features)
    outputs = policy(obs)
    actions = random_actions(policy.distribution, outputs)
    log_probs = policy.distribution.log_prob(outputs, actions).detach()
    advantages = observations(rows, 1, seed=8)[:, 0]
    return Sample(policy, obs, outputs, mask, actions, log_probs, advantages, ppo_policy_loss(0.2))


def evaluate(regularizer: AAJR, sample: Sample, *, seed: int = 0, timestep: float = 0) -> Evaluation:
    return regularizer.evaluate(sample, timestep=timestep, generator=generator(seed))


def test_penalty_of_a_linear_policy_is_its_gain_along_the_only_direction() -> None:
    """One input feature: u = ±1, so ‖J u‖² = ‖w‖² wherever the adversary stands."""
    policy = linear_policy(torch.tensor([[1.0], [2.0], [-2.0]], dtype=torch.float64))
    evaluation = evaluate(replace(WHOLE, coefficient=0.5), sample_of(policy, features=1))
    assert evaluation.loss.item() == pytest.approx(4.5)
    assert evaluation.metrics["penalty"].item() == pytest.approx(9.0)
    assert evaluation.metrics["gain_mean"].item() == pytest.approx(3.0)
    assert evaluation.metrics["gain_max"].item() == pytest.approx(3.0)


def test_the_strictness_witness_pays_for_the_attacked_direction_only() -> None:
    """F(s) = diag(a, γ) s with an objective that reads the second output: the gain is γ, not a."""
    a, gamma = 50.0, 0.5
    policy = linear_policy(torch.diag(torch.tensor([a, gamma], dtype=torch.float64)), DiagGaussian(1))
    # KL of this Gaussian at σ = e^{γ s₂}: mask the first feature to let the adversary see s₂ alone.
    evaluation = evaluate(replace(WHOLE, mask=(False, True)), sample_of(policy, features=2))
    assert evaluation.metrics["gain_max"].item() == pytest.approx(gamma)


@pytest.mark.parametrize("distribution", DISTRIBUTIONS, ids=repr)
@pytest.mark.parametrize("output", ["logits", "fisher"])
def test_penalty_gradient_equals_finite_differences(distribution: ActionDistribution, output: Any) -> None:
    """With δ and u frozen (stop-gradient) and the metric frozen (detached)."""
    policy = tanh_policy(distribution)
    sample = sample_of(policy)
    trajectory = ascend(
        policy, sample.obs, KL(), WHOLE.perturbations(0), steps=3, step_size=0.15, generator=generator()
    )
    points = (sample.obs + trajectory.deltas[:-1]).flatten(0, 1)
    directions = trajectory.directions.flatten(0, 1)
    metric_at = policy(points).detach()

    def frozen() -> Tensor:
        _, tangent = jvp(policy, points, directions)
        return squared_gain(output, distribution, metric_at, tangent).mean()

    evaluation = evaluate(replace(WHOLE, output=output), sample)
    torch.testing.assert_close(evaluation.loss, frozen())
    gradients = torch.autograd.grad(evaluation.loss, parameters(policy), allow_unused=True)
    h = 1e-6
    for parameter, gradient in zip(parameters(policy), gradients, strict=True):
        for index in range(0, parameter.numel(), 7):
            flat = parameter.data.view(-1)
            value = flat[index].item()
            flat[index] = value + h
            ahead = frozen().item()
            flat[index] = value - h
            behind = frozen().item()
            flat[index] = value
            expected = (ahead - behind) / (2 * h)
            ours = 0.0 if gradient is None else gradient.view(-1)[index].item()
            assert ours == pytest.approx(expected, abs=1e-7, rel=1e-5)


@pytest.mark.parametrize("kappa", [0.25, 1.0])
def test_adversarial_weight_mixes_the_policy_loss(kappa: float) -> None:
    """ℓ(s) + added = (1 − κ) ℓ(s) + κ ℓ(s + δ_K)."""
    policy = tanh_policy(Categorical(5))
    sample = sample_of(policy)
    regularizer = replace(WHOLE, coefficient=0.0, adversarial_weight=kappa)
    evaluation = evaluate(regularizer, sample)
    trajectory = ascend(
        policy,
        sample.obs,
        KL(),
        regularizer.perturbations(0),
        steps=3,
        step_size=0.15,
        generator=generator(),
    )
    loss = ppo_policy_loss(0.2)
    clean = loss(sample.outputs, sample).mean()
    adversarial = loss(policy(sample.obs + trajectory.deltas[-1]), sample).mean()
    torch.testing.assert_close(clean + evaluation.loss, (1 - kappa) * clean + kappa * adversarial)


def test_ppo_policy_loss_is_the_clipped_surrogate() -> None:
    """Hand-computed: ratios 1.5 and 0.5 at clip 0.2, both signs of the advantage."""
    policy = linear_policy(torch.zeros(2, 1, dtype=torch.float64))
    outputs = torch.zeros(4, 2, dtype=torch.float64)
    ratios = torch.tensor([1.5, 1.5, 0.5, 0.5], dtype=torch.float64)
    sample = Sample(
        policy,
        torch.zeros(4, 1),
        outputs,
        actions=torch.zeros(4, dtype=torch.long),
        log_probs=torch.tensor(0.5).log() - ratios.log(),
        advantages=torch.tensor([1.0, -1.0, 1.0, -1.0], dtype=torch.float64),
    )
    expected = torch.tensor([-1.2, 1.5, -0.5, 0.8], dtype=torch.float64)
    torch.testing.assert_close(ppo_policy_loss(0.2)(outputs, sample), expected)


def test_padded_rows_never_count() -> None:
    """Rows under the mask may hold anything without changing loss or gradient."""

    def result(fill: float) -> tuple[Tensor, tuple[Tensor, ...], dict[str, Tensor]]:
        policy = tanh_policy(Categorical(5))
        mask = torch.tensor([True] * 5 + [False] * 2)
        sample = sample_of(policy, mask=mask)
        obs = sample.obs.clone()
        obs[5:] = fill
        sample = replace(sample, obs=obs, outputs=policy(obs))
        evaluation = evaluate(replace(WHOLE, adversarial_weight=0.5), sample)
        gradients = torch.autograd.grad(evaluation.loss, parameters(policy))
        return evaluation.loss.detach(), gradients, dict(evaluation.metrics)

    (loss, gradients, metrics), (other_loss, other_gradients, other_metrics) = result(0.0), result(7.0)
    torch.testing.assert_close(loss, other_loss)
    torch.testing.assert_close(gradients, other_gradients)
    for key, value in metrics.items():
        torch.testing.assert_close(value, other_metrics[key], msg=key)


def test_rows_without_direction_contribute_zero_and_stay_in_the_mean() -> None:
    def network(x: Tensor) -> Tensor:
        alive = (x[:, :1] > 0).to(x)
        return torch.cat([alive * x[:, 1:2], -alive * x[:, 1:2]], -1)

    policy = ModulePolicy(network, Categorical(2))
    obs = torch.tensor([[1.0, 0.3], [-1.0, 0.3]], dtype=torch.float64)
    evaluation = evaluate(WHOLE, Sample(policy, obs, policy(obs)))
    assert evaluation.metrics["penalty"].item() == pytest.approx(1.0)  # (2 + 0) / 2
    assert evaluation.metrics["no_direction_fraction"].item() == pytest.approx(0.5)


def test_sample_fraction_regularises_that_share_of_the_rows() -> None:
    seen: list[int] = []

    class Counting(ModulePolicy):
        def __call__(self, obs: Tensor) -> Tensor:
            seen.append(len(obs))
            return super().__call__(obs)

    inner = tanh_policy(Categorical(5))
    policy = Counting(inner.module, inner.distribution)
    sample = replace(sample_of(inner, rows=40), policy=policy)
    evaluate(replace(WHOLE, sample_fraction=0.25, steps=2), sample)
    assert set(seen) == {10, 20}  # ten rows; the two points of the trajectory in one batch


def test_same_generator_same_numbers() -> None:
    policy = tanh_policy(Categorical(5))
    regularizer = replace(WHOLE, sample_fraction=0.5)
    losses = [evaluate(regularizer, sample_of(policy), seed=seed).loss.item() for seed in (1, 1, 2)]
    assert losses[0] == losses[1] != losses[2]


def test_schedules_decide_when_it_is_active() -> None:
    regularizer = AAJR(coefficient=[[0, 0.0], [100, 0.0], [200, 1.0]])  # type: ignore[arg-type]
    assert [regularizer.active(t) for t in (0, 100, 101)] == [False, False, True]
    assert not AAJR(coefficient=0, adversarial_weight=0).active(0)
    assert AAJR(coefficient=0, adversarial_weight=0.5).active(0)
    policy = tanh_policy(Categorical(5))
    half, full = (
        evaluate(replace(regularizer, sample_fraction=1.0), sample_of(policy), timestep=t) for t in (150, 200)
    )
    torch.testing.assert_close(2 * half.loss, full.loss)


def test_it_is_a_value() -> None:
    regularizer = AAJR(coefficient=[[0, 0.0], [5, 1.0]], mask=[True, False])  # type: ignore[arg-type]
    assert pickle.loads(pickle.dumps(regularizer)) == regularizer
    assert hash(regularizer) == hash(replace(regularizer))
    assert eval(repr(regularizer)) == regularizer


def test_a_non_finite_output_is_counted_and_then_named() -> None:
    policy = tanh_policy(Categorical(5))
    sample = sample_of(policy)
    parameters(policy)[0].data[0, 0] = float("nan")
    assert evaluate(WHOLE, sample).metrics["nonfinite"].item() > 0
    with pytest.raises(NonFiniteError, match="the inner objective at step 0: 7 NaN"):
        WHOLE.evaluate(sample, timestep=0, generator=generator(), check=True)


@pytest.mark.parametrize("name", REGULARIZERS)
def test_every_registered_regularizer_teaches_its_settings(name: str) -> None:
    assert make_regularizer(name).name == name
    assert REGULARIZERS[name].summary
    with pytest.raises(ValueError, match=r"expected settings of .* out of coefficient, .*; got lambda"):
        make_regularizer(name, **{"lambda": 1})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"coefficient": -1}, "expected finite values ≥ 0 for coefficient"),
        ({"epsilon": 0}, "expected a finite epsilon > 0, got 0"),
        ({"adversarial_weight": 1.5}, r"expected an adversarial_weight in \[0, 1\], got 1.5"),
        ({"steps": 0}, "expected an integer steps ≥ 1, got 0"),
        ({"steps": 2.5}, "expected an integer steps ≥ 1, got 2.5"),
        ({"step_size": 0}, "expected a step_size > 0"),
        ({"step": "huge"}, "expected step out of sign, normalized, raw; got 'huge'"),
        ({"sample_fraction": 0}, r"expected a sample_fraction in \(0, 1\]"),
        ({"objective": "loss"}, "expected objective out of kl, surrogate, margin"),
        ({"output": "value"}, "expected output out of logits"),
        ({"backend": "magic"}, "expected backend out of auto, forward, double, central"),
        ({"metric": "none"}, "expected metric out of detached, full"),
        ({"norm": "l1"}, "expected norm out of linf, l2"),
    ],
)
def test_bad_settings_are_refused_at_construction(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_regularizer("aajr", **settings)


def test_settings_that_do_not_fit_the_policy_are_refused() -> None:
    with pytest.raises(ValueError, match="for a Gaussian policy, got 'probs'"):
        AAJR(output="probs").check(DiagGaussian(2))
    with pytest.raises(ValueError, match="got a Gaussian one"):
        AAJR(objective="margin").check(DiagGaussian(2))


def test_an_adversarial_loss_needs_a_policy_loss() -> None:
    policy = tanh_policy(Categorical(5))
    sample = replace(sample_of(policy), policy_loss=None)
    with pytest.raises(ValueError, match="set adversarial_weight=0"):
        evaluate(replace(WHOLE, adversarial_weight=0.5), sample)
