"""Victims of one linear layer, for two agents, `a` and `b`."""

from __future__ import annotations

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor, nn

from marl_aajr.victims import Victim


def linear_victim(weight: Tensor, *, bias: Tensor | None = None, actions: int = 2) -> Victim:
    layer = nn.Linear(weight.shape[1], weight.shape[0])
    layer.weight.data.copy_(weight)
    layer.bias.data.copy_(torch.zeros(len(weight)) if bias is None else bias)
    return Victim(
        module_of={"a": "shared", "b": "shared"},
        modules={"shared": layer},
        observation_spaces=dict.fromkeys("ab", spaces.Box(-np.inf, np.inf, (weight.shape[1],), np.float32)),
        action_spaces=dict.fromkeys("ab", spaces.Discrete(actions)),
    )
