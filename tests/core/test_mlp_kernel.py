"""The compiled kernel computes what the layers compute."""

from __future__ import annotations

import copy
import pickle
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from marl_aajr.core.distributions import Categorical
from marl_aajr.core.end_of_ascent import end_of_ascent
from marl_aajr.core.mlp import PlainMLP
from marl_aajr.core.mlp_kernel import KernelPass, MLPKernel
from marl_aajr.core.mlp_torch import TorchPass
from marl_aajr.core.objectives import Margin
from marl_aajr.core.policy import ModulePolicy
from marl_aajr.core.threat import PerturbationSet, PerturbationSets

WIDTHS = [(5, 7, 3), (18, 64, 64, 5), (6, 4), (33, 130, 17, 70, 1)]
ROWS = [1, 6, 95, 200]
needs_compiler = pytest.mark.skipif(
    not MLPKernel.serves([nn.Linear(1, 1)]), reason="no C++ compiler, or the kernel is switched off"
)


def stack(widths: tuple[int, ...], *, bias: bool = True) -> nn.Sequential:
    """Layers of these widths, with tanh and ReLU in turn between them."""
    layers: list[nn.Module] = []
    for i, (inputs, outputs) in enumerate(pairwise(widths)):
        layers += [nn.Linear(inputs, outputs, bias=bias), nn.Tanh() if i % 2 == 0 else nn.ReLU()]
    return nn.Sequential(*layers[:-1])


@pytest.mark.parametrize(
    ("rows", "bias", "dtype"),
    [
        *(pytest.param(rows, True, torch.float32, marks=needs_compiler) for rows in ROWS),
        pytest.param(95, False, torch.float32, marks=needs_compiler),
        (6, True, torch.float64),
        (6, False, torch.float64),
    ],
)
@pytest.mark.parametrize("widths", WIDTHS, ids=str)
def test_outputs_and_derivatives_are_those_of_the_layers(
    widths: tuple[int, ...], rows: int, bias: bool, dtype: torch.dtype
) -> None:
    network = stack(widths, bias=bias).to(dtype)
    x, delta = torch.randn(rows, widths[0], dtype=dtype), torch.randn(rows, widths[-1], dtype=dtype)
    mlp = PlainMLP(list(network))
    made = mlp.forward(x)
    assert isinstance(made, KernelPass if dtype == torch.float32 else TorchPass)
    buffers = [None if p is None else torch.full_like(p, float("nan")) for p in mlp.parameters()]
    made.gradients(delta, buffers)
    point = x.clone().requires_grad_()
    expected = network(point)
    by_x, *by_weights = torch.autograd.grad(expected, [point, *network.parameters()], delta)
    with torch.no_grad():
        torch.testing.assert_close(mlp(x), expected, atol=2e-6, rtol=1e-5)
    torch.testing.assert_close(made.outputs, expected, atol=2e-6, rtol=1e-5)
    torch.testing.assert_close(made.pull(delta), by_x, atol=4e-6, rtol=1e-5)
    found = [buffer for buffer in buffers if buffer is not None]
    for own, gradient in zip(found, by_weights, strict=True):
        torch.testing.assert_close(own, gradient, atol=1e-6 * rows, rtol=1e-5)


@needs_compiler
def test_tanh_is_right_everywhere() -> None:
    one = nn.Linear(1, 1, bias=False)
    two = nn.Linear(1, 1, bias=False)
    nn.init.ones_(one.weight)
    nn.init.ones_(two.weight)
    infinite = torch.tensor([float("inf"), -float("inf"), 0.0, -0.0])
    x = torch.cat([torch.linspace(-100, 100, 100_001), torch.linspace(-0.01, 0.01, 1001), infinite])
    found = MLPKernel([one, nn.Tanh(), two])(x.unsqueeze(1)).squeeze(1)
    torch.testing.assert_close(found.double(), x.double().tanh(), atol=3e-7, rtol=0)


@needs_compiler
@pytest.mark.parametrize("activation", [nn.Tanh, nn.ReLU])
@pytest.mark.parametrize("where", ["weight", "input"])
def test_nan_is_passed_on(where: str, activation: type[nn.Module]) -> None:
    layers = [nn.Linear(3, 20), activation(), nn.Linear(20, 2)]
    x = torch.randn(9, 3)
    if where == "input":
        x[4, 1] = float("nan")
    else:
        nn.init.constant_(layers[0].bias, float("nan"))  # type: ignore[arg-type]
    made = MLPKernel(layers).forward(x)
    assert bool(made.outputs[4].isnan().all())
    assert bool(made.outputs[3].isnan().any()) == (where == "weight")
    buffers: list[Tensor | None] = [torch.zeros_like(p) for layer in layers for p in layer.parameters()]
    made.gradients(torch.ones(9, 2), buffers)
    assert all(buffer is None or bool(buffer.isnan().any()) for buffer in buffers[2:3])


@needs_compiler
def test_a_row_does_not_depend_on_those_beside_it() -> None:
    kernel = MLPKernel(list(stack((18, 64, 64, 5))))
    x = torch.randn(300, 18)
    together = kernel.forward(x)
    for start, stop in ((0, 1), (7, 12), (93, 230)):
        own = kernel.forward(x[start:stop])
        assert torch.equal(own.outputs, together.outputs[start:stop])
        delta = torch.randn(300, 5)
        assert torch.equal(own.pull(delta[start:stop]), together.pull(delta)[start:stop])


@needs_compiler
def test_weights_are_read_anew_unless_they_are_known_to_be_the_same() -> None:
    mlp = PlainMLP(list(stack((4, 8, 2))))
    x = torch.randn(3, 4)
    before = mlp.forward(x).outputs
    with torch.no_grad():
        mlp.layers[0].weight.mul_(2)  # type: ignore[operator]
    assert torch.equal(mlp.forward(x, changed=False).outputs, before)
    torch.testing.assert_close(mlp.forward(x).outputs, nn.Sequential(*mlp.layers)(x))


@needs_compiler
def test_rows_in_any_layout_and_none() -> None:
    network = stack((4, 8, 2))
    kernel = MLPKernel(list(network))
    x = torch.randn(4, 11).t()
    torch.testing.assert_close(kernel(x), network(x))
    delta = torch.ones(1, 1).expand(11, 2)
    torch.testing.assert_close(kernel.forward(x).pull(delta), kernel.forward(x).pull(delta.contiguous()))
    assert kernel(x[:0]).shape == (0, 2)
    assert kernel.forward(x[:0]).pull(delta[:0]).shape == (0, 4)


@needs_compiler
def test_copies_have_weights_of_their_own() -> None:
    kernel = MLPKernel(list(stack((4, 8, 2))))
    x = torch.randn(3, 4)
    for other in (copy.deepcopy(kernel), pickle.loads(pickle.dumps(kernel))):
        assert torch.equal(other(x), kernel(x))
        assert other._linear[0].weight.data_ptr() != kernel._linear[0].weight.data_ptr()


class StepByStep(ModulePolicy):
    """A policy whose ascents go step by step, through the kernel's passes."""

    def kernel(self, obs: Tensor) -> None:
        return None


@pytest.mark.parametrize("widths", [(3, 2), (18, 64, 64, 5), (40, 24, 20, 33, 2), (5, 48, 17)])
@pytest.mark.parametrize(("rows", "own_radii"), [(1, False), (7, True), (96, False), (250, True)])
def test_an_ascent_in_one_call_is_that_of_its_steps(
    widths: tuple[int, ...], rows: int, *, own_radii: bool
) -> None:
    layers, x = stack(widths), 2 * torch.randn(rows, widths[0])
    epsilon = 0.3 * torch.rand(rows, 1) if own_radii else 0.1
    one = PerturbationSet(epsilon=0.1)
    sets = PerturbationSets.of(one, epsilon) if isinstance(epsilon, Tensor) else one
    how: dict[str, Any] = {"steps": 4, "step_size": 0.4 * epsilon, "step": "sign", "keep_path": True}
    at_once, step_by_step = (
        end_of_ascent(kind(layers, Categorical(widths[-1])), x, Margin(), sets, **how)
        for kind in (ModulePolicy, StepByStep)
    )
    for name, wanted in vars(step_by_step).items():
        parts = zip(getattr(at_once, name), wanted, strict=True)
        assert all(torch.equal(found, other) for found, other in parts), name


def test_an_ascent_passes_nan_on() -> None:
    layers, x = stack((4, 16, 3)), torch.randn(5, 4)
    x[1, 2] = torch.nan
    how: dict[str, Any] = {"steps": 2, "step_size": 0.05, "step": "sign"}
    found = end_of_ascent(
        ModulePolicy(layers, Categorical(3)), x, Margin(), PerturbationSet(epsilon=0.1), **how
    )
    lost = torch.tensor([False, True, False, False, False])
    for part in (found.clean_outputs, found.delta, torch.stack(found.values, 1)):
        assert torch.equal(part.isnan().all(1), lost)
        assert not part[~lost].isnan().any()


class TestWhatTheKernelCannotRead:
    """It would read whatever stands at the address."""

    @pytest.fixture
    def layers(self) -> list[nn.Module]:
        layers = list(stack((4, 4, 2)))
        PlainMLP(layers).forward(torch.zeros(1, 4))
        return layers

    @needs_compiler
    @pytest.mark.parametrize(
        "wrong", [torch.ones(3, 1), torch.ones(2, 2), torch.ones(3, 2).double()], ids=str
    )
    def test_gradients_by_other_outputs_are_refused(self, layers: list[nn.Module], wrong: Tensor) -> None:
        made, x = MLPKernel(layers).forward(torch.ones(3, 4)), torch.ones(3, 4)
        buffers: list[Tensor | None] = [torch.zeros_like(p) for layer in layers for p in layer.parameters()]
        for use in (
            lambda: made.pull(wrong),
            lambda: made.gradients(wrong, buffers),
            lambda: MLPKernel(layers).push(x, x).gradients(made.outputs, buffers, wrong, by_inputs=False),
        ):
            with pytest.raises(ValueError, match="expected 3 x 2 numbers in single precision on the CPU"):
                use()
        with pytest.raises(ValueError, match="expected 3 x 4 numbers"):
            MLPKernel(layers).push(x, torch.ones(3, 5))

    def test_other_inputs_are_pytorchs_error(self, layers: list[nn.Module]) -> None:
        with torch.no_grad(), pytest.raises(RuntimeError, match="cannot be multiplied"):
            PlainMLP(layers)(torch.ones(3, 5))

    def test_weights_may_become_others(self, layers: list[nn.Module]) -> None:
        mlp, x = PlainMLP(layers), torch.randn(3, 4)
        first, last = layers[0], layers[2]
        assert isinstance(first, nn.Linear)
        assert isinstance(last, nn.Linear)
        mlp.forward(x)
        first.weight = nn.Parameter(torch.randn(4, 4).t())  # in columns
        self.check(mlp, x)
        first.weight, first.bias = nn.Parameter(torch.randn(9, 4)), nn.Parameter(torch.randn(9))
        last.weight = nn.Parameter(torch.randn(2, 9))
        self.check(mlp, x)
        nn.Sequential(*layers).double()
        self.check(mlp, x.double())

    def check(self, mlp: PlainMLP, x: Tensor) -> None:
        network = nn.Sequential(*mlp.layers)
        parameters = list(network.parameters())
        with torch.no_grad():
            torch.testing.assert_close(mlp(x), network(x))
        found = torch.autograd.grad(mlp(x).square().sum(), parameters)
        torch.testing.assert_close(found, torch.autograd.grad(network(x).square().sum(), parameters))

    @torch.no_grad()
    def test_transforms_see_every_layer(self, layers: list[nn.Module]) -> None:
        mlp, x = PlainMLP(layers), torch.randn(3, 4)
        network = nn.Sequential(*layers)
        expected = torch.func.jvp(network, (x,), (torch.ones_like(x),))
        torch.testing.assert_close(torch.func.jvp(mlp, (x,), (torch.ones_like(x),)), expected)
        torch.testing.assert_close(torch.vmap(mlp)(x), expected[0])
        with forward_ad.dual_level():
            along = forward_ad.unpack_dual(mlp(forward_ad.make_dual(x, torch.ones_like(x)))).tangent
        torch.testing.assert_close(along, expected[1])
