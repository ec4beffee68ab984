"""Output maps against their definitions."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.func import jacrev

from marl_aajr.core.distributions import (
    ActionDistribution,
    Categorical,
    DiagGaussian,
    MultiCategorical,
    single_actions,
)
from marl_aajr.core.jacobian import BACKENDS, Backend, jvp
from marl_aajr.core.output_maps import (
    MARGIN_FLOOR,
    METRICS,
    OUTPUT_MAPS,
    Metric,
    OutputMap,
    check_output_map,
    squared_distance,
    squared_gain,
)
from tests.networks import DISTRIBUTIONS, linear_policy, observations, parameters, tanh_policy

DISCRETE = [distribution for distribution in DISTRIBUTIONS if not isinstance(distribution, DiagGaussian)]
MASKED = torch.finfo(torch.float64).min

each_discrete = pytest.mark.parametrize("distribution", DISCRETE, ids=repr)
each_metric = pytest.mark.parametrize("metric", METRICS)


def log_margins(logits: Tensor) -> Tensor:
    """φ of `margin` times √w, which is held: of logits `[n]`."""
    m = logits.max() - logits.sort().values[:-1]
    return (m.detach() / MARGIN_FLOOR).clamp(max=1) ** 2 * m.log()


DEFINED = [
    (output, distribution)
    for distribution in DISTRIBUTIONS
    for output in OUTPUT_MAPS
    if output not in (("probs", "margin") if isinstance(distribution, DiagGaussian) else ("mean",))
]


@pytest.mark.parametrize(("output", "distribution"), DEFINED, ids=str)
def test_output_maps_equal_the_norm_of_their_own_jacobian(
    output: OutputMap, distribution: ActionDistribution
) -> None:
    """‖J_φ u‖² with J_φ of the composed map by jacrev; Fisher by its matrix, the Hessian of KL."""
    check_output_map(output, distribution)
    policy, obs, u = tanh_policy(distribution), observations(), observations(seed=1)
    outputs, tangent = jvp(policy, obs, u)
    ours = squared_gain(output, distribution, outputs, tangent)

    def phi(x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = policy.module(x)
        if output == "probs" and isinstance(distribution, MultiCategorical):
            return torch.cat([part.softmax(-1) for part in distribution.split(y)], -1)
        if output == "probs":
            return y.softmax(-1)
        if output == "margin":
            return torch.cat([log_margins(part) for part in single_actions(distribution, y)])
        return y[: distribution.k] if output == "mean" and isinstance(distribution, DiagGaussian) else y

    for i in range(len(obs)):
        if output == "fisher":
            y0 = policy(obs[i]).detach()
            hessian = torch.func.hessian(lambda y, y0=y0: distribution.kl(y0, y))(y0)
            expected = tangent[i] @ hessian @ tangent[i]
        else:
            expected = (jacrev(phi)(obs[i]) @ u[i]).square().sum()
        torch.testing.assert_close(ours[i], expected)


def test_a_detached_metric_sends_no_gradient_through_the_probabilities() -> None:
    """With the metric detached, the derivative with respect to a bias, which moves p but not J u, is zero."""
    obs, u = observations(4, 3), observations(4, 3, seed=1)
    for metric, silent in (("detached", True), ("full", False)):
        policy = linear_policy(observations(5, 3, seed=2), bias=observations(1, 5, seed=3)[0])
        outputs, tangent = jvp(policy, obs, u)
        chosen: Any = metric
        squared_gain("fisher", Categorical(5), outputs, tangent, metric=chosen).sum().backward()
        assert isinstance(policy.module, torch.nn.Linear)
        gradient = policy.module.bias.grad
        assert (gradient is None or bool((gradient == 0).all())) == silent


@pytest.mark.parametrize(("output", "distribution"), DEFINED, ids=str)
def test_the_chord_becomes_the_tangent(output: OutputMap, distribution: ActionDistribution) -> None:
    """‖φ(y + h t) − φ(y)‖² / h² → ‖J_φ t‖²."""
    y, t = (observations(5, distribution.num_inputs, seed=seed) for seed in (0, 1))
    chord = squared_distance(output, distribution, y, y + 1e-6 * t) / 1e-12
    torch.testing.assert_close(chord, squared_gain(output, distribution, y, t), atol=0, rtol=1e-4)


def test_the_distance_of_probabilities_is_their_own() -> None:
    y, z = torch.tensor([[0.0, 0.0, 1.0, 1.0]]), torch.tensor([[100.0, 0.0, 1.0, 1.0]])
    assert squared_distance("probs", MultiCategorical((2, 2)), y, z).item() == pytest.approx(0.5)
    assert squared_distance("logits", MultiCategorical((2, 2)), y, z).item() == 1e4


def test_masked_logits_have_no_gain() -> None:
    outputs = torch.tensor([[1.0, 2.0, torch.finfo(torch.float32).min]])
    tangent = torch.tensor([[1.0, 2.0, 100.0]])
    assert squared_gain("logits", Categorical(3), outputs, tangent).item() == 5.0
    other = torch.tensor([[2.0, 4.0, 0.0]])
    assert squared_distance("logits", Categorical(3), outputs, other).item() == 5.0


@pytest.mark.parametrize(
    ("output", "distribution", "message"),
    [
        ("probs", DiagGaussian(2), "for a Gaussian policy, got 'probs'"),
        (
            "margin",
            DiagGaussian(2),
            "'logits', 'mean' or 'fisher' for a Gaussian policy, got 'margin'",
        ),
        ("mean", Categorical(2), "for a discrete policy, got 'mean'"),
        ("values", Categorical(2), "out of logits, mean, probs, fisher, margin; got 'values'"),
    ],
)
def test_undefined_output_maps_are_refused(
    output: str, distribution: ActionDistribution, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        check_output_map(output, distribution)


def test_the_gain_of_margins_by_hand() -> None:
    """z = (3, 2, 1), ż = (1, 3, −1): margins (1, 2) and their changes (−2, 2)."""
    y, t = torch.tensor([[3.0, 2.0, 1.0], [1.0, 3.0, -1.0]], dtype=torch.float64)
    assert squared_gain("margin", Categorical(3), y, t).item() == pytest.approx((-2 / 1) ** 2 + (2 / 2) ** 2)
    near = y + torch.tensor([0.0, 1.0 - MARGIN_FLOOR / 2, 0.0])  # w = 1/16
    expected = (-2 / (MARGIN_FLOOR / 2)) ** 2 / 16 + (2 / 2) ** 2
    assert squared_gain("margin", Categorical(3), near, t).item() == pytest.approx(expected)


def test_one_legal_action_has_no_margin() -> None:
    alone = torch.tensor([MASKED, 2.0, MASKED], dtype=torch.float64)
    assert squared_gain("margin", Categorical(3), alone, torch.ones_like(alone)).item() == 0.0
    assert squared_gain("margin", Categorical(1), alone[1:2], torch.ones(1)).item() == 0.0


@each_metric
def test_a_tie_has_neither_an_infinite_gain_nor_an_infinite_gradient(metric: Metric) -> None:
    y, t = torch.tensor([1.0, 1.0, 1.0, -1e38, -3.4e38], requires_grad=True), torch.randn(5)
    gain = squared_gain("margin", Categorical(5), y, t, metric=metric)
    (gradient,) = torch.autograd.grad(gain, y)
    assert gain.item() == 0.0
    assert gradient.isfinite().all()


@each_metric
def test_masked_actions_have_no_margin(metric: Metric) -> None:
    """Value and gradients are those without the action, whatever its tangent."""
    y, t = observations(4, 3), observations(4, 3, seed=1)
    spare = torch.full((4, 1), MASKED, dtype=torch.float64)
    found = []
    for width, logits, tangent in (
        (3, y, t),
        (4, torch.cat([spare, y], -1), torch.cat([1e9 + 0 * spare, t], -1)),
    ):
        variables = [logits.clone().requires_grad_(), tangent.clone().requires_grad_()]
        gain = squared_gain("margin", Categorical(width), *variables, metric=metric)
        found.append([gain, *(g[:, -3:] for g in torch.autograd.grad(gain.sum(), variables))])
    torch.testing.assert_close(found[1], found[0])


@each_metric
@each_discrete
@pytest.mark.parametrize("backend", BACKENDS)
def test_the_gradient_of_the_relative_gain_is_that_of_finite_differences(
    backend: Backend, distribution: ActionDistribution, metric: Metric
) -> None:
    """In full everywhere; detached, with the weights w held at what they are."""
    policy, obs, u = tanh_policy(distribution), observations(40), observations(40, seed=1)
    clean = policy(obs).detach()
    below = torch.cat([z.max(-1, keepdim=True).values - z for z in single_actions(distribution, clean)], -1)
    assert ((below > 0) & (below < MARGIN_FLOOR)).any()
    assert (below > MARGIN_FLOOR).any()

    def loss() -> Tensor:
        return squared_gain(
            "margin", distribution, *jvp(policy, obs, u, backend=backend), metric=metric
        ).sum()

    gain = squared_gain("margin", distribution, *jvp(policy, obs, u, backend=backend), metric=metric)

    def reference() -> Tensor:
        outputs, tangent = jvp(policy, obs, u, backend="mlp")
        both = (single_actions(distribution, x) for x in (outputs, tangent, clean))
        total = torch.zeros((), dtype=torch.float64)
        for z, t, held in zip(*both, strict=True):
            order = held.argsort(-1, descending=True)
            margin, change, at = (x[:, :1] - x[:, 1:] for x in (v.gather(-1, order) for v in (z, t, held)))
            weight = ((margin if metric == "full" else at) / MARGIN_FLOOR).clamp(max=1) ** 4
            total = total + (weight * (change / margin).square()).sum()
        return total

    found = torch.autograd.grad(gain.sum(), parameters(policy))
    for parameter, gradient in zip(parameters(policy), found, strict=True):
        flat, index, h = parameter.data.view(-1), parameter.numel() // 2, 1e-6
        value = flat[index].item()
        ends = []
        for end in (value + h, value - h):
            flat[index] = end
            ends.append(reference().item())
        flat[index] = value
        expected = (ends[0] - ends[1]) / (2 * h)
        assert gradient.reshape(-1)[index].item() == pytest.approx(expected, rel=1e-4, abs=1e-4)


@each_discrete
@pytest.mark.parametrize("factor", [1e-3, 0.5, 1.0, 20.0])
def test_scaling_all_logits_neither_satisfies_the_penalty_nor_is_asked_for(
    distribution: ActionDistribution, factor: float
) -> None:
    """The value where no margin is below the floor; and the gradient along the last layer, anywhere."""
    policy, obs, u = tanh_policy(distribution), observations(), observations(seed=1)
    pair = jvp(policy, obs, u)
    one, other = (squared_gain("margin", distribution, *(c * x for x in pair)) for c in (1e6, 1e6 * factor))
    torch.testing.assert_close(other, one)
    last = parameters(policy)[-2:]
    for parameter in last:
        parameter.data.mul_(factor)
    along = {}
    for output in ("logits", "margin"):
        loss = squared_gain(output, distribution, *jvp(policy, obs, u)).sum()
        gradients = torch.autograd.grad(loss, last, allow_unused=True)
        parts = [(g * p).sum() for g, p in zip(gradients, last, strict=True) if g is not None]
        along[output] = (torch.stack(parts).sum() / loss).item()
    assert along["logits"] == pytest.approx(2.0)  # of degree 2
    assert along["margin"] == pytest.approx(0.0, abs=1e-9)


@pytest.mark.parametrize("nvec", [(4,), (2, 3)], ids=str)
def test_no_greedy_decision_changes_within_the_inverse_of_the_gain(nvec: tuple[int, ...]) -> None:
    """Of a linear policy, whose first order is all there is; and with two actions the bound is met."""
    distribution = MultiCategorical(nvec)
    policy = linear_policy(observations(sum(nvec), 6, seed=2), distribution)
    obs, u = observations(500), observations(500, seed=1)
    outputs, tangent = jvp(policy, obs, u)
    margins = torch.cat([z.topk(2).values.diff() for z in single_actions(distribution, outputs)], -1).abs()
    large = (margins >= MARGIN_FLOOR).all(-1)
    radius = squared_gain("margin", distribution, outputs, tangent).rsqrt().unsqueeze(-1)
    for share in (-0.999, 0.999):
        same = distribution.mode(policy(obs + share * radius * u)) == distribution.mode(outputs)
        assert same[large].all()
    pair = linear_policy(observations(2, 6, seed=2))
    outputs, tangent = jvp(pair, obs, u)
    radius = squared_gain("margin", Categorical(2), outputs, tangent).rsqrt().unsqueeze(-1)
    large = (outputs.diff().abs() >= MARGIN_FLOOR).squeeze(-1)
    ahead, behind = (outputs.argmax(-1) != pair(obs + c * radius * u).argmax(-1) for c in (1.001, -1.001))
    assert (ahead != behind)[large].all()
