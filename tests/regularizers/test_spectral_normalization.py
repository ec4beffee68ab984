"""Spectral normalization: the bound it promises, and the layers it cannot promise it for."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.func import jacrev

from marl_aajr.core.distributions import Categorical
from marl_aajr.regularizers import SpectralNormalization, State
from tests.networks import generator, observations, tanh_policy

HALF = SpectralNormalization(layer_bound=0.5)


def network(seed: int = 0) -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 3)
        ).double()


def norms(module: nn.Module) -> list[float]:
    return [
        torch.linalg.matrix_norm(layer.weight.detach(), 2).item()
        for layer in module.modules()
        if isinstance(layer, nn.Linear)
    ]


def test_every_layer_is_brought_to_the_bound_and_smaller_ones_are_left_alone() -> None:
    module = network()
    for parameter in module[2].parameters():
        parameter.data.mul_(0.3)
    before = norms(module)
    assert before[0] > 0.5 > before[1]
    metrics = HALF.constrain(module, {}, exact=True)
    assert norms(module) == pytest.approx([0.5, before[1], min(before[2], 0.5)])
    assert metrics["layer_norm_max"].item() == pytest.approx(0.5)
    assert metrics["gain_bound"].item() == pytest.approx(0.5 * before[1] * min(before[2], 0.5))


@pytest.mark.parametrize("seed", range(3))
def test_the_gain_of_the_network_is_bounded_everywhere(seed: int) -> None:
    """F_γ by construction: ‖J(s)‖_op ≤ γ = Π ‖W‖ at any observation."""
    module = network(seed)
    bound = HALF.constrain(module, {}, exact=True)["gain_bound"].item()
    assert bound <= 0.5**3 * (1 + 1e-12)
    for obs in observations(50, seed=seed) * 3:
        assert torch.linalg.matrix_norm(jacrev(module)(obs), 2) <= bound * (1 + 1e-9)


def test_one_power_iteration_per_step_keeps_up_with_training() -> None:
    """Weights that move a little at each step, held by the estimate alone."""
    module, noise = network(), generator()
    state: State = {}
    tight = SpectralNormalization(layer_bound=0.5)
    tight.constrain(module, state, exact=True)
    for _ in range(50):
        for parameter in module.parameters():
            change = torch.empty_like(parameter).normal_(generator=noise)
            parameter.data += 0.01 * change
        assert tight.constrain(module, state) == {}
    assert max(norms(module)) < 0.52
    tight.constrain(module, state, exact=True)
    assert max(norms(module)) <= 0.5 * (1 + 1e-9)


def test_the_vectors_of_the_power_iteration_are_its_state() -> None:
    module, state = network(), HALF.initial_state()
    assert state == {}
    HALF.constrain(module, state, exact=True)
    assert set(state) == {"vector/0", "vector/2", "vector/4"}
    assert all(vector.norm().item() == pytest.approx(1) for vector in state.values())


def test_biases_and_gradients_are_not_touched() -> None:
    module = network()
    biases = [layer.bias.detach().clone() for layer in module if isinstance(layer, nn.Linear)]
    HALF.constrain(module, {}, exact=True)
    after = [layer.bias for layer in module if isinstance(layer, nn.Linear)]
    assert all(torch.equal(a, b) for a, b in zip(biases, after, strict=True))
    assert all(parameter.requires_grad and parameter.grad is None for parameter in module.parameters())


@pytest.mark.parametrize(("kernel", "stride"), [(3, 1), (3, 2), (2, 2)])
def test_a_convolution_counts_with_an_upper_bound_of_its_norm(kernel: int, stride: int) -> None:
    convolution = nn.Conv2d(2, 3, kernel, stride=stride, bias=False).double()
    bound = SpectralNormalization(layer_bound=1e9).constrain(convolution, {}, exact=True)["gain_bound"]

    def flat(image: Tensor) -> Tensor:
        return convolution(image.view(1, 2, 6, 6)).flatten()

    dense = jacrev(flat)(torch.zeros(72, dtype=torch.float64))
    exact = torch.linalg.matrix_norm(dense, 2).item()
    assert exact <= bound.item() * (1 + 1e-12)
    assert bound.item() < 4 * exact


@pytest.mark.parametrize(
    ("layer", "name"),
    [
        (nn.LSTM(4, 4), "LSTM"),
        (nn.LayerNorm(4), "LayerNorm"),
        (nn.MultiheadAttention(4, 2), "MultiheadAttention"),
    ],
)
def test_layers_without_such_a_bound_are_refused_by_name(layer: nn.Module, name: str) -> None:
    module = nn.ModuleDict({"encoder": layer, "head": nn.Linear(4, 2)})
    with pytest.raises(ValueError, match=f"got {name} at 'encoder', whose gain its weights do not bound"):
        HALF.constrain(module, {}, exact=True)
    with pytest.raises(ValueError, match=r"expected a network with linear layers .* got none"):
        HALF.constrain(nn.Tanh(), {}, exact=True)


def test_a_free_standard_deviation_is_no_layer() -> None:
    class Head(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.log_std = nn.Parameter(torch.zeros(3))

    module = nn.Sequential(nn.Linear(4, 3), Head())
    assert HALF.constrain(module, {}, exact=True)["layer_norm_max"].item() == pytest.approx(0.5)


def test_it_adds_no_loss() -> None:
    assert not HALF.active(0)
    HALF.check(tanh_policy(Categorical(3)).distribution)
    with pytest.raises(ValueError, match="expected a finite layer_bound > 0, got 0"):
        SpectralNormalization(layer_bound=0)
