"""Bounds of networks: by hand, against a library, and never crossed by any perturbation."""

from __future__ import annotations

from typing import Any, get_args

import pytest
import torch
from bound_propagation import BoundModelFactory, HyperRectangle
from torch import Tensor, nn
from torch.nn.utils import prune

from marl_aajr.core.bounds import BOUND_METHODS, BoundedMLP, BoundMethod, Region
from marl_aajr.core.mlp import PlainMLP
from marl_aajr.core.relaxations import SHAPES, relax, steepest
from marl_aajr.core.threat import Norm, PerturbationSet
from tests.networks import generator, observations

UNIT = torch.finfo(torch.float32).eps / 2
by_method = pytest.mark.parametrize("method", BOUND_METHODS)
by_activation = pytest.mark.parametrize("activation", SHAPES, ids=lambda kind: kind.__name__)
LIMITS: dict[str, dict[str, Any]] = {
    "plain": {},
    "masked, scaled and limited": {
        "mask": (True, True, False, True),
        "scale": (0.5, 1.0, 2.0, 3.0),
        "low": -0.4,
        "high": (0.3, 0.5, 0.5, 2.0),
    },
}


def linear(layers: nn.Sequential) -> list[nn.Linear]:
    return [layer for layer in layers if isinstance(layer, nn.Linear)]


def network(activation: type[nn.Module] = nn.Tanh, *, size: float = 1.0) -> nn.Sequential:
    """Two hidden layers, with weights large enough for every part of the activation."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        layers = nn.Sequential(
            nn.Linear(4, 12), activation(), nn.Linear(12, 12), activation(), nn.Linear(12, 3)
        )
    for layer in linear(layers):
        layer.weight.data *= 2 * size
    return layers.double()


def ends(layers: nn.Sequential, obs: Tensor, epsilon: float, method: BoundMethod) -> tuple[Tensor, Tensor]:
    found = BoundedMLP.of(layers).outputs(Region.of(PerturbationSet(epsilon=epsilon), obs), method)
    return found.low.detach(), found.high.detach()


def four_neurons() -> nn.Sequential:
    """h = relu(x₁ + x₂, x₁ − x₂), z = (h₁ + h₂, h₁ − h₂); for |x| ≤ 1 both go from −2 to 2 before relu."""
    layers = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2)).double()
    for layer in linear(layers):
        layer.weight.data.copy_(torch.tensor([[1.0, 1.0], [1.0, -1.0]]))
        layer.bias.data.zero_()
    return layers


@pytest.mark.parametrize(
    ("method", "low", "high"),
    [
        ("interval", [0.0, -2.0], [4.0, 2.0]),
        # relu(y) ≤ (y + 2)/2 on both: z₁ ≤ x₁ + 2 ≤ 3 and z₂ ≤ (x₁ + x₂ + 2)/2 ≤ 2; from below relu(y) ≥ 0.
        ("crown", [0.0, -2.0], [3.0, 2.0]),
        ("crown_ibp", [0.0, -2.0], [3.0, 2.0]),
    ],
)
def test_four_neurons_by_hand(method: BoundMethod, low: list[float], high: list[float]) -> None:
    found = ends(four_neurons(), torch.zeros(1, 2).double(), 1.0, method)
    assert [end[0].tolist() for end in found] == [low, high]


@by_method
def test_the_difference_of_outputs_is_bounded_as_one(method: BoundMethod) -> None:
    """z₁ − z₂ = 2 h₂ ≥ 0, of which bounds on z₁ and z₂ alone leave −2."""
    region = Region.of(PerturbationSet(epsilon=1.0), torch.zeros(1, 2).double())
    combination = torch.tensor([[1.0, -1.0]]).double()
    assert BoundedMLP.of(four_neurons()).least(region, combination, method).item() == 0.0


@by_method
def test_a_linear_network_has_exact_bounds_in_both_norms(method: BoundMethod) -> None:
    layer, obs = nn.Linear(4, 3).double(), observations(5, 4)
    mask, scale = torch.tensor([1.0, 0.0, 1.0, 1.0]).double(), torch.tensor([1.0, 2.0, 0.5, 3.0]).double()
    moved = layer.weight * (mask * scale)
    norms: dict[Norm, Tensor] = {"linf": moved.abs().sum(-1), "l2": moved.norm(dim=-1)}
    for norm, length in norms.items():
        threat = PerturbationSet(
            epsilon=0.3, norm=norm, mask=tuple(mask.bool().tolist()), scale=tuple(scale.tolist())
        )
        found = BoundedMLP.of(layer).outputs(Region.of(threat, obs), method)
        torch.testing.assert_close(found.low, layer(obs) - 0.3 * length)
        torch.testing.assert_close(found.high, layer(obs) + 0.3 * length)


@by_method
@pytest.mark.parametrize("norm", get_args(Norm))
def test_limits_of_the_input_cut_the_set_in_both_norms(method: BoundMethod, norm: Norm) -> None:
    layer = nn.Linear(1, 1).double()
    layer.weight.data.fill_(1.0)
    layer.bias.data.zero_()
    threat = PerturbationSet(epsilon=1.0, norm=norm, low=-0.1, high=0.2)
    found = BoundedMLP.of(layer).outputs(Region.of(threat, torch.zeros(1, 1).double()), method)
    assert (found.low.item(), found.high.item()) == pytest.approx((-0.1, 0.2))


@pytest.mark.parametrize("activation", [nn.ReLU, nn.Tanh, nn.Sigmoid])
def test_an_independent_library_says_the_same(activation: type[nn.Module]) -> None:
    """It cuts its search for tangents short; in L2 it is wrong (version 0.4.7: a dual norm of −2)."""
    layers, obs = network(activation), observations(40, 4)
    theirs = BoundModelFactory(adaptive_relu=True).build(layers)
    region = HyperRectangle.from_eps(obs, 0.2)
    known: dict[BoundMethod, Any] = {
        "interval": theirs.ibp(region),
        "crown": theirs.crown(region).concretize(),
    }
    for method, expected in known.items():
        room = 1e-9 if method == "interval" or activation is nn.ReLU else 5e-3
        for ours, other in zip(ends(layers, obs, 0.2, method), (expected.lower, expected.upper), strict=True):
            torch.testing.assert_close(ours, other.detach(), rtol=room, atol=room)


@by_activation
@pytest.mark.parametrize("limits", LIMITS)
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_no_perturbation_leaves_the_bounds(activation: type[nn.Module], limits: str, norm: Any) -> None:
    """Neither random ones nor those that climb each output."""
    layers, obs = network(activation).requires_grad_(False), 0.5 * observations(20, 4)
    threat = PerturbationSet(epsilon=0.4, norm=norm, **LIMITS[limits])
    tried = [threat.sample(obs, generator=generator(seed)) for seed in range(20)]
    for output, sign in [(output, sign) for output in range(3) for sign in (-1, 1)]:
        delta = tried[output]
        for _ in range(10):
            point = (obs + delta).requires_grad_(True)
            (gradient,) = torch.autograd.grad(sign * layers(point)[:, output].sum(), point)
            step = gradient.sign() if norm == "linf" else torch.nn.functional.normalize(gradient, dim=-1)
            delta = threat.project(delta + 0.2 * step, obs)
        tried.append(delta)
    values, bounded = torch.stack([layers(obs + delta) for delta in tried]), BoundedMLP.of(layers)
    widths = []
    for method in BOUND_METHODS:
        found = bounded.outputs(Region.of(threat, obs), method)
        assert (found.low - 1e-9 <= values).all()
        assert (values <= found.high + 1e-9).all()
        widths.append(float((found.high - found.low).mean()))
    interval, crown, crown_ibp = widths
    assert crown < crown_ibp
    assert crown < interval


@by_activation
def test_lines_stay_on_their_side_and_touch(activation: type[nn.Module]) -> None:
    layer, count = activation(), 400
    middle, noise = 2 * observations(count, 1), generator(1)
    width = 10 ** torch.empty(count, 1, dtype=torch.float64).uniform_(-14, 1, generator=noise)
    low, high = middle - width, middle + width
    lines = relax(layer, low, high)
    x = (low + (high - low) * torch.linspace(0, 1, 500, dtype=torch.float64)).clamp(low, high)
    below, above = (x * slope + offset for slope, offset in (lines[:2], lines[2:]))
    assert (below - layer(x)).max() < 1e-12
    assert (layer(x) - above).max() < 1e-12
    for room in (layer(x) - below, above - layer(x)):
        assert room.amin(-1).max() < 2e-2
    slopes = ((layer(x[:, 1:]) - layer(x[:, :-1])) / (x[:, 1:] - x[:, :-1])).nan_to_num(0.0)
    wide = (width > 1e-4).squeeze(-1)
    top, found = steepest(layer, low, high).squeeze(-1)[wide], slopes.amax(-1)[wide]
    assert (found <= top + 1e-8).all()
    assert (top - found).max() < 0.1


@by_method
def test_bounds_have_the_gradient_of_finite_differences(method: BoundMethod) -> None:
    """Those of crown only where no point is searched for, as across 0 of tanh."""
    layers, obs = network(nn.Softplus if method != "interval" else nn.Tanh), observations(6, 4)
    region = Region.of(PerturbationSet(epsilon=0.2), obs)
    weight = layers[0].weight
    assert isinstance(weight, nn.Parameter)

    def total() -> Tensor:
        found = BoundedMLP.of(layers).outputs(region, method)
        return (found.low.square() + found.high).sum()

    (gradient,) = torch.autograd.grad(total(), weight)
    size, difference = 1e-5, []
    for sign in (1, -1):
        weight.data[2, 1] += sign * size
        difference.append(total().item())
        weight.data[2, 1] -= sign * size
    expected = (difference[0] - difference[1]) / (2 * size)
    assert gradient[2, 1].item() == pytest.approx(expected, rel=1e-6)


def test_rounding_covers_every_pass_in_single_precision() -> None:
    """By PyTorch and by the compiled kernel, whose tanh is its own."""
    layers, obs = network(size=3.0), observations(2000, 4)
    single = network(size=3.0).float()
    single.load_state_dict(layers.float().state_dict())
    exact, inputs = layers.double(), obs.float()
    region = Region(inputs.double(), inputs.double(), inputs.double())
    room = BoundedMLP.of(exact).rounding(region, UNIT)
    mlp = PlainMLP.of(single)
    assert mlp is not None
    with torch.no_grad():
        for outputs in (single(inputs), mlp(inputs)):
            errors = (outputs.double() - exact(inputs.double())).abs()
            assert (errors <= room).all()
            assert errors.max() > UNIT
    assert room.max() < 1e-2


def test_rounding_by_hand() -> None:
    """w tanh(v x): (1 + 2) units of v x, through the slope of tanh, 16 of its own, times w, and 3 of w h."""
    layers = nn.Sequential(nn.Linear(1, 1), nn.Tanh(), nn.Linear(1, 1)).double()
    first, last = linear(layers)
    for layer, weight in ((first, 2.0), (last, 5.0)):
        layer.weight.data.fill_(weight)
        layer.bias.data.zero_()
    x = torch.tensor([[0.7]]).double()
    value, unit = x.mul(2).tanh().item(), 1e-9
    found = BoundedMLP.of(layers).rounding(Region(x, x, x), unit).item()
    expected = 3 * 1.4 * (1 - value**2) + 16
    assert found == pytest.approx(unit * (5 * expected + 3 * 5 * value), rel=0.02)


def test_an_activation_of_single_precision_is_within_its_units() -> None:
    x = torch.linspace(-20, 20, 400_001).unsqueeze(-1)
    one = nn.Sequential(nn.Linear(1, 16), nn.Tanh(), nn.Linear(16, 1))
    for layer in linear(one):
        layer.weight.data.zero_()[0, 0] = 1.0
        layer.bias.data.zero_()
    mlp = PlainMLP.of(one)
    assert mlp is not None
    with torch.no_grad():
        assert (mlp(x).double() - x.double().tanh()).abs().max() <= 16 * UNIT
    for kind in SHAPES:
        size = kind()(x.double()).abs().clamp_min(1.0)
        assert ((kind()(x).double() - kind()(x.double())).abs() / size).max() <= 16 * UNIT


def test_a_wider_region_holds_what_rounding_makes_of_a_perturbation() -> None:
    obs = (100 * observations(500, 4)).float()
    norms: tuple[Norm, ...] = get_args(Norm)
    for norm in norms:
        threat = PerturbationSet(epsilon=0.01, norm=norm, mask=(True, False, True, True))
        region = Region.of(threat, obs.double()).widened(UNIT)
        for seed in range(5):
            shown = (obs + threat.project(observations(500, 4, seed=seed).float(), obs)).double()
            assert ((region.low <= shown) & (shown <= region.high)).all()
            if region.axes is not None:
                moved = (shown - obs.double())[:, [0, 2, 3]] / region.axes[:, [0, 2, 3]]
                assert (moved.norm(dim=-1) <= 1).all()
        assert (region.low[:, 1] == region.high[:, 1]).all()


def pruned() -> nn.Sequential:
    layers = network()
    prune.l1_unstructured(layers[0], "weight", amount=2)
    return layers


def watched() -> nn.Sequential:
    layers = network()
    layers.register_forward_hook(lambda _module, _inputs, output: 10 * output)
    return layers


@pytest.mark.parametrize(
    ("layers", "named"),
    [
        (nn.Sequential(nn.Linear(4, 4), nn.SiLU(), nn.Linear(4, 2)), r"SiLU\(\) in place 1"),
        (nn.Sequential(nn.Linear(4, 4), nn.LSTM(4, 4)), r"LSTM\(4, 4\) in place 1"),
        (nn.Sequential(nn.Linear(4, 4), nn.LeakyReLU(-0.5)), "LeakyReLU"),
        (nn.Sequential(nn.Linear(4, 4), nn.ELU(2.0)), "ELU"),
        (nn.Sequential(nn.Linear(4, 4), nn.Softplus(threshold=1.0)), "Softplus"),
        (nn.MultiheadAttention(4, 2), "MultiheadAttention"),
        (nn.Sequential(nn.Tanh()), "without"),
        (pruned(), "hooks"),
        (watched(), "hooks"),
        (torch.relu, "builtin_function"),
    ],
)
def test_what_cannot_be_bounded_is_refused_by_its_name(layers: Any, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        BoundedMLP.of(layers)
