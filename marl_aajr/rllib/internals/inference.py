"""What an RLlib module does when it plays: its layers, or its forward pass with gradients."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ray.rllib.algorithms.ppo.torch.default_ppo_torch_rl_module import DefaultPPOTorchRLModule
from ray.rllib.core.models.torch.encoder import (
    TorchActorCriticEncoder,
    TorchCNNEncoder,
    TorchGRUEncoder,
    TorchLSTMEncoder,
    TorchMLPEncoder,
    TorchStatefulActorCriticEncoder,
)
from ray.rllib.core.rl_module.torch import TorchRLModule
from torch import nn

from marl_aajr.core.mlp import hooked
from marl_aajr.rllib.internals.modules import head_layers
from marl_aajr.victims.layers import ChannelsFirst, ChannelsLast
from marl_aajr.victims.recurrent import Recurrent


def forward_inference(module: TorchRLModule) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """`module.forward_inference`, with gradients where the module does not forbid them itself.

    RLlib's own `_forward_inference` is `_forward` without gradients, which an attack needs.
    """
    if type(module)._forward_inference is TorchRLModule._forward_inference:
        return module._forward
    return module.forward_inference


def inference_layers(module: TorchRLModule) -> nn.Sequential | None:
    """The layers by which RLlib's default PPO module plays, sharing its parameters.

    Feed-forward, convolutional and recurrent ones of the default catalog, with encoders of their own or
    shared with the critic. None for any other module, and where somebody has changed how RLlib puts the
    parts together.
    """
    methods = ("_forward", "_forward_inference", "forward_inference")
    default = DefaultPPOTorchRLModule
    if not isinstance(module, default) or hooked(module):
        return None
    if any(getattr(type(module), name) is not getattr(default, name) for name in methods):
        return None
    if type(module.encoder) not in (TorchActorCriticEncoder, TorchStatefulActorCriticEncoder):
        return None
    encoder = getattr(module.encoder, "actor_encoder", None) or getattr(module.encoder, "encoder", None)
    body, head = _body(encoder), head_layers(module.pi)
    if body is None or head is None:
        return None
    kind = Recurrent if module.is_stateful() else nn.Sequential
    return kind(*body, *head)


def _body(encoder: Any) -> list[nn.Module] | None:
    if type(encoder) is TorchMLPEncoder:
        return list(encoder.net.mlp)
    if type(encoder) is TorchCNNEncoder:
        cnn, *flatten = encoder.net
        return [ChannelsFirst(), *cnn.cnn, ChannelsLast(), *flatten]
    if type(encoder) in (TorchLSTMEncoder, TorchGRUEncoder):
        before = [] if encoder.tokenizer is None else _body(encoder.tokenizer)
        core = encoder.lstm if type(encoder) is TorchLSTMEncoder else encoder.gru
        return None if before is None else [*before, core]
    return None
