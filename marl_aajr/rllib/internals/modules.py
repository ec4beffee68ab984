"""The networks inside RLlib's default modules, in training and in play, as layers that share parameters."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from ray.rllib.algorithms.dqn.dqn_learner import QF_PREDS
from ray.rllib.algorithms.ppo.torch.default_ppo_torch_rl_module import DefaultPPOTorchRLModule
from ray.rllib.algorithms.sac.torch.default_sac_torch_rl_module import DefaultSACTorchRLModule
from ray.rllib.core.columns import Columns
from ray.rllib.core.distribution.torch.torch_distribution import TorchSquashedGaussian
from ray.rllib.core.models.base import ENCODER_OUT
from ray.rllib.core.models.torch.encoder import (
    TorchActorCriticEncoder,
    TorchCNNEncoder,
    TorchGRUEncoder,
    TorchLSTMEncoder,
    TorchMLPEncoder,
    TorchStatefulActorCriticEncoder,
)
from ray.rllib.core.models.torch.heads import TorchFreeLogStdMLPHead, TorchMLPHead
from ray.rllib.core.rl_module.apis.q_net_api import QNetAPI
from ray.rllib.core.rl_module.torch import TorchRLModule
from ray.rllib.utils.numpy import MAX_LOG_NN_OUTPUT, MIN_LOG_NN_OUTPUT
from torch import Tensor, nn

from marl_aajr.core.mlp import hooked
from marl_aajr.victims.layers import ChannelsFirst, ChannelsLast, ClipLogStd, FreeLogStd
from marl_aajr.victims.recurrent import Recurrent


def actor_forward(module: TorchRLModule) -> tuple[Callable[[dict[str, Any]], Tensor], bool]:
    """A function from a train batch to a module's distribution inputs, and whether it reads OBS alone.

    RLlib's default PPO module runs its critic in every `forward_train`, and its SAC module five more
    networks. The inner maximisation calls the policy several times per minibatch and needs the actor only,
    so it is called by its parts where nobody has overridden how they are put together. A module whose
    `forward_train` is short already may say `reads_obs_only = True`.

    Q-values are the logits of the policy that is greedy in them, as in SA-DQN (Zhang 2020, arXiv 2003.08938).

    Raises:
        ValueError: by the function, where `forward_train` gives no distribution inputs.
    """
    if isinstance(module, DefaultSACTorchRLModule):
        return lambda batch: _clip_log_std(module, module.forward_inference(batch)), True
    if isinstance(module, QNetAPI):
        return lambda batch: module.compute_q_values(batch)[QF_PREDS], not module.is_stateful()
    if _keeps(module, "forward_train", "_forward_train") and not module.encoder.config.shared:
        return lambda batch: module.pi(module.encoder.actor_encoder(batch)[ENCODER_OUT]), True
    reads_obs_only = bool(getattr(module, "reads_obs_only", False))
    return lambda batch: _distribution_inputs(module, module.forward_train(batch)), reads_obs_only


def _distribution_inputs(module: TorchRLModule, out: dict[str, Any]) -> Tensor:
    if Columns.ACTION_DIST_INPUTS not in out:
        raise ValueError(
            f"expected {type(module).__name__}.forward_train to give {Columns.ACTION_DIST_INPUTS}, or a "
            f"module with RLlib's QNetAPI, got {', '.join(out)}; give a regularizer to the other modules only"
        )
    inputs: Tensor = out[Columns.ACTION_DIST_INPUTS]
    return inputs


def _keeps(
    module: TorchRLModule, *methods: str, encoders: tuple[type, ...] = (TorchActorCriticEncoder,)
) -> bool:
    """Whether a module is RLlib's default one for PPO, with its encoder, and these methods as they were."""
    default = DefaultPPOTorchRLModule
    return (
        isinstance(module, default)
        and all(getattr(type(module), name) is getattr(default, name) for name in methods)
        and type(getattr(module, "encoder", None)) in encoders
        and not hooked(module)
    )


def _clip_log_std(module: DefaultSACTorchRLModule, out: dict[str, Any]) -> Tensor:
    """The inputs as RLlib's squashed Gaussian reads them: log σ clipped."""
    inputs = out[Columns.ACTION_DIST_INPUTS]
    if not issubclass(module.get_train_action_dist_cls(), TorchSquashedGaussian):
        return inputs
    mean, log_std = inputs.chunk(2, -1)
    return torch.cat([mean, log_std.clamp(MIN_LOG_NN_OUTPUT, MAX_LOG_NN_OUTPUT)], -1)


def actor_network(module: TorchRLModule) -> nn.Module:
    """The actor's network alone, for constraints on its weights.

    Raises:
        ValueError: the actor shares layers with the critic, or is not known here.
    """
    encoder = getattr(getattr(module, "encoder", None), "actor_encoder", None)
    if isinstance(module, DefaultPPOTorchRLModule) and encoder is not None:
        return nn.ModuleList([encoder, module.pi])
    if isinstance(module, DefaultSACTorchRLModule):
        return nn.ModuleList([module.pi_encoder, module.pi])
    if isinstance(actor := getattr(module, "actor", None), nn.Module):
        return actor
    raise ValueError(
        f"expected a module with an actor of its own, got {type(module).__name__}; set "
        "vf_share_layers=False, keep the actor's network in an attribute 'actor', or choose a regularizer "
        "that works through the loss"
    )


def head_layers(head: Any) -> list[nn.Module] | None:
    """The layers of RLlib's own policy heads, sharing their parameters; None for any other."""
    if type(head) not in (TorchMLPHead, TorchFreeLogStdMLPHead):
        return None
    bound = float(head.log_std_clip_param) if head.clip_log_std else None
    if isinstance(head, TorchFreeLogStdMLPHead):
        free = FreeLogStd(len(head.log_std), bound)
        free.log_std = head.log_std
        return [*head.net.mlp, free]
    return [*head.net.mlp, *([] if bound is None else [ClipLogStd(bound)])]


def plain_actor(module: TorchRLModule) -> nn.Sequential | None:
    """The layers between observations and distribution inputs, where nobody has changed how RLlib uses them.

    RLlib's way from `forward_exploration` to the first layer takes longer than a small network.
    """
    return _layers(module, "_forward", "_forward_exploration", "_forward_inference")


def trained_actor(module: TorchRLModule) -> nn.Sequential | None:
    """The layers between observations and distribution inputs in `forward_train`; None as above."""
    return _layers(module, "forward_train", "_forward_train")


def _layers(module: TorchRLModule, *methods: str) -> nn.Sequential | None:
    if module.is_stateful() or not _keeps(module, *methods):
        return None
    body, head = _body(_actor_encoder(module)), head_layers(module.pi)
    return None if body is None or head is None else nn.Sequential(*body, *head)


def plain_networks(module: TorchRLModule) -> tuple[nn.Sequential, nn.Sequential] | None:
    """The actor and the critic of RLlib's default PPO module as plain layers, sharing its parameters.

    None where somebody has changed how RLlib puts them together, or where they are not MLPs of their own.
    """
    actor = _layers(module, "forward_train", "_forward_train", "compute_values")
    if actor is None:
        return None
    body = _body(getattr(module.encoder, "critic_encoder", None))
    if body is None or type(module.vf) is not TorchMLPHead:
        return None
    return actor, nn.Sequential(*body, *module.vf.net.mlp)


def _actor_encoder(module: DefaultPPOTorchRLModule) -> Any:
    """The actor's encoder, its own or the one that it shares with the critic."""
    return getattr(module.encoder, "actor_encoder", None) or getattr(module.encoder, "encoder", None)


def _body(encoder: Any) -> nn.Sequential | None:
    """The layers of RLlib's own MLP encoder; None for any other."""
    return encoder.net.mlp if type(encoder) is TorchMLPEncoder else None


def forward_inference(module: TorchRLModule, batch: dict[str, Any]) -> dict[str, Any]:
    """`module.forward_inference`, with gradients where the module does not forbid them itself.

    RLlib's own `_forward_inference` is `_forward` without gradients, which an attack needs; those of
    subclasses call it by `super()`.
    """
    own = TorchRLModule._forward_inference
    TorchRLModule._forward_inference = _with_gradients
    try:
        return module.forward_inference(batch)
    finally:
        TorchRLModule._forward_inference = own


def _with_gradients(module: TorchRLModule, batch: dict[str, Any], **settings: Any) -> dict[str, Any]:
    return module._forward(batch, **settings)


def inference_layers(module: TorchRLModule) -> nn.Sequential | None:
    """The layers by which RLlib's default PPO module plays, sharing its parameters.

    Feed-forward, convolutional and recurrent ones of the default catalog, with encoders of their own or
    shared with the critic. None for any other module, and where somebody has changed how RLlib puts the
    parts together.
    """
    encoders = (TorchActorCriticEncoder, TorchStatefulActorCriticEncoder)
    if not _keeps(module, "_forward", "_forward_inference", "forward_inference", encoders=encoders):
        return None
    body, head = _encoder_layers(_actor_encoder(module)), head_layers(module.pi)
    if body is None or head is None:
        return None
    kind = Recurrent if module.is_stateful() else nn.Sequential
    return kind(*body, *head)


def _encoder_layers(encoder: Any) -> list[nn.Module] | None:
    if type(encoder) is TorchMLPEncoder:
        return list(encoder.net.mlp)
    if type(encoder) is TorchCNNEncoder:
        cnn, *flatten = encoder.net
        return [ChannelsFirst(), *cnn.cnn, ChannelsLast(), *flatten]
    if type(encoder) in (TorchLSTMEncoder, TorchGRUEncoder):
        before = [] if encoder.tokenizer is None else _encoder_layers(encoder.tokenizer)
        core = encoder.lstm if type(encoder) is TorchLSTMEncoder else encoder.gru
        return None if before is None else [*before, core]
    return None
