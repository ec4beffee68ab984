"""AAJR's Jacobian rivals against dense Jacobians."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.func import jacrev

from marl_aajr.core.distributions import ActionDistribution, Categorical, DiagGaussian
from marl_aajr.core.output_maps import OutputMap, cotangent, squared_gain
from marl_aajr.core.policy import ModulePolicy
from marl_aajr.regularizers import AAJR, Frobenius, RandomDirection, Sample, Spectral
from marl_aajr.regularizers.jacobian_norms import JacobianNorm
from tests.core.test_output_maps import DEFINED
from tests.networks import DISTRIBUTIONS, linear_policy, observations, parameters, tanh_policy
from tests.regularizers.samples import evaluate, gradients, sample_of

WHOLE: dict[str, Any] = {"coefficient": 1.0, "sample_fraction": 1.0}
MASK = (True, True, False, True, False, True)


def many_rows(policy: ModulePolicy, rows: int = 20_000) -> Sample:
    """One observation over and over: the mean over the rows is an average over the noise."""
    obs = observations(1).expand(rows, -1)
    return Sample(policy, obs, policy(obs).detach())


def squared_norm(distribution: ActionDistribution, output: OutputMap, *, mask: Any = None) -> float:
    """‖J_φ‖_F² at that observation: the sum of ‖J_φ e_i‖² over the features."""
    policy, obs = tanh_policy(distribution), observations(1)[0]
    jacobian = jacrev(policy.module)(obs)
    columns = jacobian.T if mask is None else jacobian.T[list(mask)]
    outputs = policy(obs).expand(len(columns), -1)
    return squared_gain(output, distribution, outputs, columns).sum().item()


@pytest.mark.parametrize(("output", "distribution"), DEFINED, ids=str)
def test_the_cotangents_make_up_the_metric(output: OutputMap, distribution: ActionDistribution) -> None:
    """Σ_i (tᵀ A e_i)² = tᵀ A Aᵀ t = ‖J_φ-metric of t‖²."""
    outputs, t = (observations(1, distribution.num_inputs, seed=seed)[0] for seed in (0, 1))
    basis = torch.eye(distribution.num_inputs, dtype=torch.float64)
    columns = cotangent(output, distribution, outputs.expand_as(basis), basis)
    torch.testing.assert_close((columns @ t).square().sum(), squared_gain(output, distribution, outputs, t))


def test_a_masked_logit_has_no_cotangent() -> None:
    outputs = torch.tensor([1.0, 2.0, torch.finfo(torch.float32).min])
    for output in ("logits", "probs", "fisher", "margin"):
        assert cotangent(output, Categorical(3), outputs, torch.ones(3))[2] == 0


@pytest.mark.parametrize(("output", "distribution"), DEFINED, ids=str)
@pytest.mark.parametrize("projection", ["input", "output"])
def test_both_projections_estimate_the_frobenius_norm(
    output: OutputMap, distribution: ActionDistribution, projection: Any
) -> None:
    regularizer = Frobenius(output=output, projection=projection, **WHOLE)
    estimate = evaluate(regularizer, many_rows(tanh_policy(distribution))).loss.item()
    assert estimate == pytest.approx(squared_norm(distribution, output), rel=0.05)


@pytest.mark.parametrize("settings", [{"projection": "input"}, {"projection": "output"}])
def test_features_out_of_reach_do_not_count(settings: dict[str, Any]) -> None:
    sample = many_rows(tanh_policy(Categorical(5)))
    estimate = evaluate(Frobenius(mask=MASK, **settings, **WHOLE), sample).loss.item()
    assert estimate == pytest.approx(squared_norm(Categorical(5), "logits", mask=MASK), rel=0.05)


@pytest.mark.parametrize("projection", ["input", "output"])
def test_more_projections_scatter_less(projection: Any) -> None:
    sample = sample_of(tanh_policy(Categorical(5)))

    def spread(projections: int) -> float:
        regularizer = Frobenius(projection=projection, projections=projections, **WHOLE)
        losses = [evaluate(regularizer, sample, seed=seed).loss.item() for seed in range(20)]
        return float(torch.tensor(losses).std())

    assert spread(20) < 0.5 * spread(1)


def test_a_random_direction_sees_the_mean_over_all_directions() -> None:
    """E‖J z‖² = ‖J‖_F² / d on the unit sphere of the d features within reach."""
    sample = many_rows(tanh_policy(Categorical(5)))
    estimate = evaluate(RandomDirection(**WHOLE), sample).loss.item()
    assert estimate == pytest.approx(squared_norm(Categorical(5), "logits") / 6, rel=0.05)
    masked = evaluate(RandomDirection(mask=MASK, **WHOLE), sample).loss.item()
    assert masked == pytest.approx(squared_norm(Categorical(5), "logits", mask=MASK) / 4, rel=0.05)


@pytest.mark.parametrize("distribution", DISTRIBUTIONS, ids=repr)
@pytest.mark.parametrize("mask", [None, MASK])
def test_power_iteration_finds_the_operator_norm_from_below(
    distribution: ActionDistribution, mask: Any
) -> None:
    policy = tanh_policy(distribution)
    sample = sample_of(policy)
    dense = torch.stack([jacrev(policy.module)(row) for row in sample.obs])
    reach = dense if mask is None else dense[..., list(mask)]
    exact = torch.linalg.matrix_norm(reach, 2).square().mean().item()
    penalties = [
        evaluate(Spectral(iterations=n, mask=mask, **WHOLE), sample).loss.item() for n in (1, 3, 200)
    ]
    assert penalties[0] < penalties[1] <= exact * (1 + 1e-9)
    assert penalties[2] == pytest.approx(exact, rel=1e-6)


@pytest.mark.parametrize(
    "regularizer",
    [
        RandomDirection(**WHOLE),
        Frobenius(projection="input", projections=2, **WHOLE),
        Frobenius(projection="output", projections=2, **WHOLE),
        Spectral(iterations=300, **WHOLE),
    ],
    ids=lambda regularizer: f"{regularizer.name} {getattr(regularizer, 'projection', '')}",
)
@pytest.mark.parametrize("distribution", [Categorical(5), DiagGaussian(3)], ids=repr)
def test_gradients_equal_finite_differences(regularizer: JacobianNorm, distribution: Any) -> None:
    """Same seed, same noise; at convergence the held vectors of the power iteration are stationary."""
    policy = tanh_policy(distribution)

    def loss() -> Tensor:
        return evaluate(regularizer, sample_of(policy)).loss

    found = gradients(evaluate(regularizer, sample_of(policy)), parameters(policy))
    h = 1e-6
    for parameter, gradient in zip(parameters(policy), found, strict=True):
        flat, index = parameter.data.view(-1), parameter.numel() // 2
        value = flat[index].item()
        flat[index] = value + h
        ahead = loss().item()
        flat[index] = value - h
        behind = loss().item()
        flat[index] = value
        expected = (ahead - behind) / (2 * h)
        assert gradient.reshape(-1)[index].item() == pytest.approx(expected, abs=1e-7, rel=1e-5)


@pytest.mark.parametrize("rival", [RandomDirection(), Frobenius(), Spectral()], ids=lambda rival: rival.name)
def test_on_the_trajectory_they_see_the_points_of_aajr(rival: JacobianNorm) -> None:
    def points(regularizer: Any) -> Tensor:
        """The batch of K · B points, the largest that the network sees."""
        seen: list[Tensor] = []

        class Recording(ModulePolicy):
            def __call__(self, obs: Tensor) -> Tensor:
                seen.append(obs.detach())
                return super().__call__(obs)

        inner = tanh_policy(Categorical(5))
        sample = replace(sample_of(inner), policy=Recording(inner.module, inner.distribution))
        evaluate(replace(regularizer, sample_fraction=1.0, points="all", backend=backend), sample)
        return max(seen, key=len)

    backend = "auto" if isinstance(rival, Frobenius) else "double"
    theirs, ours = points(replace(rival, at="trajectory")), points(AAJR())
    assert len(ours) == 21
    torch.testing.assert_close(theirs, ours)
    assert len(points(rival)) == 7


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"at": "corner"}, "expected at out of clean, trajectory; got 'corner'"),
        ({"projection": "both"}, "expected projection out of input, output; got 'both'"),
        ({"projections": 0}, "expected an integer projections ≥ 1, got 0"),
        ({"backend": "double"}, "expected no backend with projection='output'.*got 'double'"),
    ],
)
def test_bad_settings_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Frobenius(**settings)
    with pytest.raises(ValueError, match="expected an integer iterations ≥ 1, got True"):
        Spectral(iterations=True)


def test_the_metric_gain_is_the_root_of_what_is_penalised() -> None:
    policy = linear_policy(torch.tensor([[3.0], [4.0]], dtype=torch.float64))
    metrics = evaluate(RandomDirection(**WHOLE), sample_of(policy, features=1)).metrics
    assert metrics["gain_mean"].item() == metrics["gain_max"].item() == pytest.approx(5.0)
