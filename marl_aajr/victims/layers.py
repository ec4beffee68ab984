"""Networks as data: a stack of layers described by names and constructor arguments, never by a pickle.

A description can be read by people, checked before anything runs, and rebuilt on another machine. What is
not in `LAYERS` is refused by name rather than guessed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from marl_aajr.core.mlp import opened
from marl_aajr.language.network import ARGUMENTS, LanguageNetwork
from marl_aajr.victims.recurrent import CORES, Recurrent


class FreeLogStd(nn.Module):
    """Appends a learned log σ that does not depend on the observation: `[..., k] -> [..., 2k]`.

    Args:
        k: number of actions.
        clip: bound of |log σ|; None: none. RLlib's heads use 20.
    """

    def __init__(self, k: int, clip: float | None = None) -> None:
        super().__init__()
        self.k = k
        self.clip = clip
        self.log_std = nn.Parameter(torch.zeros(k))

    def forward(self, mean: Tensor) -> Tensor:
        log_std = self.log_std if self.clip is None else self.log_std.clamp(-self.clip, self.clip)
        return torch.cat([mean, log_std.expand_as(mean)], -1)


class ClipLogStd(nn.Module):
    """Clips the log σ half of (mean, log σ) to ±`clip`, as RLlib's Gaussian heads do."""

    def __init__(self, clip: float) -> None:
        super().__init__()
        self.clip = clip

    def forward(self, inputs: Tensor) -> Tensor:
        mean, log_std = inputs.chunk(2, -1)
        return torch.cat([mean, log_std.clamp(-self.clip, self.clip)], -1)


class ChannelsFirst(nn.Module):
    """`[B, H, W, C] -> [B, C, H, W]`: images come with channels last, convolutions want them first."""

    def forward(self, image: Tensor) -> Tensor:
        return image.permute(0, 3, 1, 2)


class ChannelsLast(nn.Module):
    """`[B, C, H, W] -> [B, H, W, C]`."""

    def forward(self, image: Tensor) -> Tensor:
        return image.permute(0, 2, 3, 1)


_CHANNELS = ("in_channels", "out_channels", "kernel_size")
_WINDOW = ("stride", "padding", "dilation", "groups", "padding_mode")
_CORE = ("input_size", "hidden_size", "num_layers", "bias", "batch_first")

LAYERS: dict[type[nn.Module], tuple[str, ...]] = {
    nn.Linear: ("in_features", "out_features"),
    nn.Conv2d: (*_CHANNELS, *_WINDOW),
    nn.ZeroPad2d: ("padding",),
    nn.LSTM: _CORE,
    nn.GRU: _CORE,
    nn.LayerNorm: ("normalized_shape", "eps", "elementwise_affine"),
    nn.Flatten: ("start_dim", "end_dim"),
    nn.Identity: (),
    nn.Tanh: (),
    nn.Sigmoid: (),
    nn.SiLU: (),
    nn.ReLU: (),
    nn.ELU: ("alpha",),
    nn.LeakyReLU: ("negative_slope",),
    nn.GELU: ("approximate",),
    nn.Softplus: ("beta", "threshold"),
    FreeLogStd: ("k", "clip"),
    ClipLogStd: ("clip",),
    ChannelsFirst: (),
    ChannelsLast: (),
    LanguageNetwork: ARGUMENTS,
}
"""The layers that a victim may have, with the attributes that are their constructor arguments."""

_WITH_BIAS = (nn.Linear, nn.Conv2d)
_BY_NAME = {layer.__name__: layer for layer in LAYERS}


def flatten(module: nn.Module) -> nn.Sequential:
    """One flat `Sequential` of the same layers; nested Sequentials are opened."""
    return nn.Sequential(*opened(module, Recurrent))


def describe(module: nn.Sequential) -> list[dict[str, Any]]:
    """The layers of a flat Sequential as JSON values.

    Raises:
        ValueError: a layer that `LAYERS` does not have.
    """
    return [_describe(layer) for layer in module]


def build(description: Sequence[dict[str, Any]]) -> nn.Sequential:
    """The network of a description, with weights still to be loaded; recurrent where a layer is.

    Raises:
        ValueError: an unknown layer, or arguments that it does not take.
    """
    layers = [_build(layer) for layer in description]
    kind = Recurrent if any(isinstance(layer, CORES) for layer in layers) else nn.Sequential
    return kind(*layers)


def _describe(layer: nn.Module) -> dict[str, Any]:
    kind = type(layer)
    if kind not in LAYERS:
        raise ValueError(
            f"expected layers out of {', '.join(_BY_NAME)}, got {kind.__module__}.{kind.__name__}; "
            "express the network with these, or add the layer to marl_aajr.victims.LAYERS"
        )
    description = {"layer": kind.__name__, **{name: getattr(layer, name) for name in LAYERS[kind]}}
    # Widths may come from a space, as numbers of numpy, which JSON does not take.
    description = {k: v.item() if isinstance(v, np.generic) else v for k, v in description.items()}
    if isinstance(layer, _WITH_BIAS):
        description["bias"] = layer.bias is not None
    return description


def _build(description: dict[str, Any]) -> nn.Module:
    arguments = {key: tuple(v) if isinstance(v, list) else v for key, v in description.items()}
    name = arguments.pop("layer", None)
    if name not in _BY_NAME:
        known = ", ".join(_BY_NAME)
        raise ValueError(f"expected layers out of {known}, got {name!r}; a newer version may know it")
    try:
        return _BY_NAME[name](**arguments)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"expected arguments of layer {name}, got {arguments} ({error})") from None
