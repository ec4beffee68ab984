"""Spectral normalization: a policy whose gain is bounded by construction.

    W ← W · min(1, c / ‖W‖_op)   for every linear layer, after every optimizer step

With L layers and activations of slope at most 1 (tanh, ReLU) between them, ‖J(s)‖_op ≤ c^L everywhere: the
policy is in F_γ with γ = c^L, at every observation and not only at the sampled ones.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod, sqrt
from typing import ClassVar

import torch
from torch import Tensor, nn

from marl_aajr.core.checks import positive
from marl_aajr.regularizers.regularizer import Regularizer
from marl_aajr.regularizers.sample import Context, LossTerm, Sample, State

_Convolution = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


@dataclass(frozen=True, kw_only=True)
class SpectralNormalization(Regularizer):
    """Keep the operator norm of every layer of the actor at `layer_bound` or below.

    It adds no loss: it works through `constrain`. Between the exact projections at the end of each
    update one power iteration per optimizer step estimates the norms, from the vectors of the last step.
    A convolution counts with an upper bound of its norm: that of its kernel as a matrix, times the root of
    the number of output pixels that one input pixel can reach.

    Attributes:
        layer_bound: c > 0.

    Raises:
        ValueError: a layer whose gain its weights do not bound (recurrent, attention, normalisation).

    Source: Miyato 2018 (arXiv 1802.05957), which divides by the norm always; as a projection, which leaves a
    smaller norm alone, Gouk 2018 (arXiv 1804.04368).
    """

    name: ClassVar[str] = "spectral_normalization"
    summary: ClassVar[str] = "every layer's operator norm bounded by projection (Miyato 2018, Gouk 2018)"

    layer_bound: float = 2.0

    def __post_init__(self) -> None:
        super().__post_init__()
        positive("layer_bound", self.layer_bound)

    def active(self, timestep: float) -> bool:
        return False

    def loss_term(self, sample: Sample, context: Context) -> LossTerm:
        return LossTerm(sample.outputs.new_zeros(()), {})

    @torch.no_grad()
    def constrain(self, module: nn.Module, state: State, *, exact: bool = False) -> Mapping[str, Tensor]:
        norms: list[Tensor] = []
        for name, weight, factor in _layers(module):
            key = f"vector/{name}"
            matrix = weight.flatten(1)
            if exact or key not in state:
                left, values, _ = torch.linalg.svd(matrix, full_matrices=False)
                norm, state[key] = values[0], left[:, 0].clone()
            else:
                norm, state[key] = _power_iteration(matrix, state[key].to(matrix))
            shrink = (self.layer_bound / (factor * norm)).clamp_max(1)
            weight.mul_(shrink)
            norms.append(factor * norm * shrink)
        if not norms:
            raise ValueError("expected a network with linear layers for spectral_normalization, got none")
        if not exact:
            return {}
        stacked = torch.stack(norms)
        return {"layer_norm_max": stacked.amax(), "gain_bound": stacked.prod()}


def _power_iteration(matrix: Tensor, left: Tensor) -> tuple[Tensor, Tensor]:
    """An estimate of ‖W‖_op from below, and the left vector to go on from."""
    tiny = torch.finfo(matrix.dtype).tiny
    right = matrix.T @ left
    right = right / torch.linalg.vector_norm(right).clamp_min(tiny)
    left = matrix @ right
    norm = torch.linalg.vector_norm(left)
    return norm, left / norm.clamp_min(tiny)


def _layers(module: nn.Module) -> Iterator[tuple[str, Tensor, float]]:
    """Name, weight and norm factor of every layer; biases and a free log σ do not see the observation."""
    for name, layer in module.named_modules():
        if isinstance(layer, nn.Linear):
            yield name, layer.weight, 1.0
        elif isinstance(layer, _Convolution):
            pairs = zip(layer.kernel_size, layer.stride, strict=True)
            yield name, layer.weight, sqrt(prod(-(-kernel // stride) for kernel, stride in pairs))
        elif _unbounded(layer):
            raise ValueError(
                "expected linear and convolutional layers for spectral_normalization, got "
                f"{type(layer).__name__} at {name!r}, whose gain its weights do not bound; use spectral"
            )


def _unbounded(layer: nn.Module) -> bool:
    """Whether a layer has weights of its own that act on the observation in a way not known here."""
    normalises = isinstance(layer, nn.LayerNorm | nn.GroupNorm | nn.modules.batchnorm._BatchNorm)
    return normalises or any(parameter.ndim > 1 for parameter in layer.parameters(recurse=False))
