"""Passes beyond the learner's own leave no trace in its network, and see one function, row by row."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from marl_aajr.attacks import make_attack
from marl_aajr.core.distributions import Categorical
from marl_aajr.core.policy import ModulePolicy
from marl_aajr.regularizers import AAJR, ERNIE, OffPolicyAdversarialTraining, Regularizer
from tests.networks import generator
from tests.regularizers.samples import sample_of


class Counting(nn.Module):
    """A user's own layer: it counts its passes, keeps the last one, and adds noise in training."""

    seen: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.seen += len(x)
        self.last = x
        return x + self.noise(x)

    def noise(self, x: Tensor) -> Tensor:
        return torch.randn_like(x) if self.training else torch.zeros_like(x)


class Mean(nn.Module):
    """A batch normalisation of one's own."""

    def forward(self, x: Tensor) -> Tensor:
        return x - x.mean(0)


def old_spectral_norm() -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        return nn.utils.spectral_norm(nn.Linear(16, 16))


LAYERS: dict[str, Callable[[], nn.Module]] = {
    "batch norm": lambda: nn.BatchNorm1d(16),
    "dropout": lambda: nn.Dropout(0.5),
    "spectral norm": lambda: parametrizations.spectral_norm(nn.Linear(16, 16)),
    "spectral norm by a hook": old_spectral_norm,
    "counting": Counting,
    "layer norm": lambda: nn.LayerNorm(16),
}


def policy_with(*layers: nn.Module) -> ModulePolicy:
    network = nn.Sequential(nn.Linear(6, 16), *layers, nn.Tanh(), nn.Linear(16, 5))
    return ModulePolicy(network.train(), Categorical(5))


def traces(policy: ModulePolicy) -> dict[str, Any]:
    """Everything that a pass may change in a network, and the source of its random numbers."""
    assert isinstance(policy.module, nn.Module)
    state: dict[str, Any] = {name: value.clone() for name, value in policy.module.state_dict().items()}
    for name, module in policy.module.named_modules():
        state |= {f"{name}.{key}": getattr(module, key, None) for key in ("training", "calls", "last")}
    return state | {"random": torch.get_rng_state()}


def assert_same(before: dict[str, Any], after: dict[str, Any]) -> None:
    for name, value in before.items():
        same = torch.equal(value, after[name]) if isinstance(value, Tensor) else value == after[name]
        assert same, name


def evaluate(regularizer: Regularizer, policy: ModulePolicy, rows: int = 7) -> Tensor:
    sample = sample_of_floats(policy, rows)
    return regularizer.evaluate(sample, timestep=0, generator=generator()).loss


def sample_of_floats(policy: ModulePolicy, rows: int) -> Any:
    assert isinstance(policy.module, nn.Module)
    policy.module.double()
    return sample_of(policy, rows=rows)


WHOLE = {"sample_fraction": 1.0, "epsilon": 0.5}


@pytest.mark.parametrize("rows", [2, 7])
@pytest.mark.parametrize(
    "regularizer", [AAJR(), ERNIE(), OffPolicyAdversarialTraining()], ids=lambda r: r.name
)
@pytest.mark.parametrize("name", LAYERS)
def test_a_regularizer_leaves_no_trace(name: str, regularizer: Regularizer, rows: int) -> None:
    """Two rows of which one is regularised, too: batch normalisation has no statistics of one."""
    policy = policy_with(LAYERS[name]())
    calls: list[int] = []
    assert isinstance(policy.module, nn.Module)
    policy.module.register_forward_hook(lambda *_: calls.append(1))
    sample = sample_of_floats(policy, rows)
    before, seen = traces(policy), len(calls)
    loss = regularizer.evaluate(sample, timestep=0, generator=generator()).loss
    assert_same(before, traces(policy))
    assert len(calls) == seen
    (loss + sample.outputs.sum()).backward()  # and the learner's own graph is as it was


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("regularizer", [AAJR(**WHOLE), ERNIE(**WHOLE)], ids=lambda r: r.name)  # type: ignore[arg-type]
def test_what_is_penalised_is_the_network_that_plays(name: str, regularizer: Regularizer) -> None:
    torch.manual_seed(0)
    policy = policy_with(LAYERS[name]())
    assert isinstance(policy.module, nn.Module)
    found = evaluate(regularizer, policy)
    policy.module.eval()
    expected = evaluate(regularizer, policy)
    torch.testing.assert_close(found, expected)
    assert found > 0


def test_dropout_inside_a_recurrent_layer_is_off_as_well() -> None:
    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.memory, self.head = nn.GRU(6, 8, 2, batch_first=True, dropout=0.5), nn.Linear(8, 5)

        def forward(self, x: Tensor) -> Tensor:
            outputs: Tensor = self.head(self.memory(x.unsqueeze(1))[0].squeeze(1))
            return outputs

    policy = ModulePolicy(Recurrent(), Categorical(5))
    obs = torch.randn(4, 6)
    with policy.fixed() as difference:
        assert difference == "mode"
        assert torch.equal(policy(obs), policy(obs))
    assert not torch.equal(policy(obs), policy(obs))


@pytest.mark.parametrize("name", ["fgsm", "pgd-margin", "pgd-strong", "square"])
def test_an_attack_leaves_no_trace(name: str) -> None:
    policy = policy_with(nn.BatchNorm1d(16), nn.Dropout(0.5), Counting())
    obs = torch.randn(7, 6)
    before = traces(policy)
    found = make_attack(name, epsilon=0.5)(policy, obs, generator=generator())
    assert_same(before, traces(policy))
    assert isinstance(policy.module, nn.Module)
    torch.testing.assert_close(found.clean_outputs, policy.module.eval()(obs))


def test_what_couples_rows_is_named() -> None:
    by_batch = policy_with(nn.BatchNorm1d(16, track_running_stats=False))
    with pytest.raises(
        ValueError, match=r"one another, got BatchNorm1d at '1', which normalises by the batch"
    ):
        evaluate(AAJR(), by_batch)
    policy = policy_with(Mean())
    with pytest.raises(ValueError, match=r"got outputs of a row that change by up to .*by itself"):
        AAJR().fitted(policy, torch.randn(8, 6))
    AAJR().fitted(policy_with(nn.BatchNorm1d(16)), torch.randn(8, 6))


def test_noise_whatever_the_mode_is_refused() -> None:
    class Noisy(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return nn.functional.dropout(x, 0.5)

    policy, obs = policy_with(Noisy()), torch.randn(3, 6)
    before = torch.get_rng_state()
    with pytest.raises(ValueError, match="in evaluation mode, got Sequential, which draws random numbers"):
        AAJR().fitted(policy, obs)
    assert torch.equal(before, torch.get_rng_state())


def test_hooks_that_change_outputs_are_refused() -> None:
    policy = policy_with()
    assert isinstance(policy.module, nn.Module)
    policy.module.register_forward_hook(lambda _module, _args, outputs: 2 * outputs)
    with pytest.raises(ValueError, match="expected forward hooks that only watch the network, got some that"):
        evaluate(AAJR(), ModulePolicy(policy.module, Categorical(5)))


def test_a_lazy_layer_gets_its_weights_from_whoever_comes_first() -> None:
    network = nn.Sequential(nn.LazyLinear(16), nn.Dropout(0.1), nn.Tanh(), nn.Linear(16, 5))
    policy = ModulePolicy(network, Categorical(5))
    AAJR().fitted(policy, torch.randn(3, 6))
    assert network[0].weight.shape == (16, 6)
    assert evaluate(AAJR(), policy) > 0
