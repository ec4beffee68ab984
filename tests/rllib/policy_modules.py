"""Modules as users write them: recurrent, attending, convolutional, with nested observations."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from ray.rllib.core.columns import Columns
from ray.rllib.core.rl_module.apis import ValueFunctionAPI
from ray.rllib.core.rl_module.torch import TorchRLModule
from torch import Tensor, nn

from marl_aajr.core.distributions import from_space


class Custom(TorchRLModule, ValueFunctionAPI):
    """What a user writes: a network of features, an actor's and a critic's head."""

    def setup(self) -> None:
        self.build_features()
        self.head = nn.Linear(8, from_space(self.action_space).num_inputs)
        self.value = nn.Linear(8, 1)

    def build_features(self) -> None:
        raise NotImplementedError

    def features(self, batch: dict[str, Any]) -> tuple[Tensor, dict[str, Any]]:
        raise NotImplementedError

    def _forward(self, batch: dict[str, Any], **_: Any) -> dict[str, Any]:
        features, more = self.features(batch)
        return {Columns.ACTION_DIST_INPUTS: self.head(features), Columns.EMBEDDINGS: features, **more}

    def compute_values(self, batch: dict[str, Any], embeddings: Any = None) -> Tensor:
        features = self.features(batch)[0] if embeddings is None else embeddings
        values: Tensor = self.value(features).squeeze(-1)
        return values


class PlainModule(Custom):
    """One layer, and a critic that stays with the module wherever it acts."""

    def build_features(self) -> None:
        self.layer = nn.Linear(self.observation_space.shape[0], 8)

    def features(self, batch: dict[str, Any]) -> tuple[Tensor, dict[str, Any]]:
        return self.layer(batch[Columns.OBS]).tanh(), {}


class GRUModule(Custom):
    """A recurrent module of one's own."""

    def build_features(self) -> None:
        self.gru = nn.GRU(self.observation_space.shape[0], 8, batch_first=True)

    def get_initial_state(self) -> Any:
        return {"h": np.zeros(8, np.float32)}

    def features(self, batch: dict[str, Any]) -> tuple[Tensor, dict[str, Any]]:
        before = batch[Columns.STATE_IN]["h"].unsqueeze(0)
        features, after = self.gru(batch[Columns.OBS], before)
        return features, {Columns.STATE_OUT: {"h": after.squeeze(0)}}


class AttentionModule(Custom):
    """Fused attention over the entities that an agent sees, `[B, entities, d]`."""

    def build_features(self) -> None:
        self.project = nn.Linear(self.observation_space.shape[1], 24)

    def features(self, batch: dict[str, Any]) -> tuple[Tensor, dict[str, Any]]:
        q, k, v = self.project(batch[Columns.OBS]).unsqueeze(1).chunk(3, -1)
        attended = nn.functional.scaled_dot_product_attention(q, k, v)
        return attended.squeeze(1).mean(1), {}


class TrainingModeModule(Custom):
    """Layers that are another function in training, and count what passes them."""

    def build_features(self) -> None:
        size = self.observation_space.shape[0]
        self.layers = nn.Sequential(nn.BatchNorm1d(size), nn.Linear(size, 8), nn.Tanh(), nn.Dropout(0.2))
        self.passes = 0

    def features(self, batch: dict[str, Any]) -> tuple[Tensor, dict[str, Any]]:
        self.passes += 1
        return self.layers(batch[Columns.OBS]), {}


class ConvolutionModule(Custom):
    """A convolution of one's own, on images with channels last."""

    def build_features(self) -> None:
        self.convolution = nn.Conv2d(self.observation_space.shape[2], 2, 3, stride=2)
        self.project = nn.LazyLinear(8)
        self.project(torch.zeros(1, 18))

    def features(self, batch: dict[str, Any]) -> tuple[Tensor, dict[str, Any]]:
        image = batch[Columns.OBS].permute(0, 3, 1, 2)
        return self.project(torch.tanh(self.convolution(image)).flatten(1)).tanh(), {}


class NestedModule(Custom):
    """Reads `{"camera": {"depth", "rgb"}, "goal", "body": (position, contact)}`, integers and all."""

    def build_features(self) -> None:
        self.camera, self.colour = nn.Linear(4, 8), nn.Linear(4, 8)
        self.goal, self.position, self.contact = nn.Linear(2, 8), nn.Linear(3, 8), nn.Embedding(3, 8)

    def features(self, batch: dict[str, Any]) -> tuple[Tensor, dict[str, Any]]:
        obs = batch[Columns.OBS]
        position, contact = obs["body"]
        parts = (
            self.camera(obs["camera"]["depth"].flatten(1)),
            self.colour(obs["camera"]["rgb"].flatten(1).to(position.dtype) / 255),
            self.goal(obs["goal"]),
            self.position(position),
            self.contact(contact.long()),
        )
        return torch.stack(parts).sum(0).tanh(), {}
