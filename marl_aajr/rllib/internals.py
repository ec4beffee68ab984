"""Every private or unannotated RLlib name that this project touches, in one place.

Checked against Ray 2.60. When Ray is upgraded, this is the file to read again.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ray.rllib.algorithms.ppo.torch.default_ppo_torch_rl_module import DefaultPPOTorchRLModule
from ray.rllib.core.columns import Columns
from ray.rllib.core.models.base import ENCODER_OUT
from ray.rllib.core.models.torch.encoder import TorchActorCriticEncoder
from ray.rllib.core.rl_module.torch import TorchRLModule
from torch import Tensor


def actor_forward(module: TorchRLModule) -> tuple[Callable[[dict[str, Any]], Tensor], bool]:
    """How to get a module's distribution inputs from a train batch, and whether it reads OBS alone.

    RLlib's default PPO module runs its critic in every ``forward_train``. The inner maximisation calls the
    policy several times per minibatch and needs the actor only, so it is called by its parts where nobody
    has overridden how they are put together.
    """
    default = DefaultPPOTorchRLModule
    untouched = (
        isinstance(module, default)
        and type(module)._forward_train is default._forward_train
        and type(getattr(module, "encoder", None)) is TorchActorCriticEncoder
        and not module.encoder.config.shared
    )
    if untouched:
        return lambda batch: module.pi(module.encoder.actor_encoder(batch)[ENCODER_OUT]), True
    return lambda batch: module.forward_train(batch)[Columns.ACTION_DIST_INPUTS], False
