"""A network of a few words without any library, for tests: a bag of embeddings that knows their order."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from marl_aajr.core.token_network import TokenNetwork


class WordBag(TokenNetwork):
    """`[B, L]` words, of which word 0 is padding, to m outputs: tanh layers over weighted embeddings."""

    def __init__(self, words: int = 7, length: int = 4, width: int = 3, outputs: int = 3) -> None:
        super().__init__()
        self.held = (0,)
        self.table = nn.Embedding(words, width)
        self.layers = nn.Sequential(nn.Linear(length * width, 8), nn.Tanh(), nn.Linear(8, outputs))

    @property
    def embeddings(self) -> Tensor:
        return self.table.weight

    def from_embedding(self, embedded: Tensor, tokens: Tensor) -> Tensor:
        outputs: Tensor = self.layers(embedded.flatten(1))
        return outputs


def word_bag(seed: int = 0, **sizes: int) -> WordBag:
    """The same weights for the same seed, in double precision."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return WordBag(**sizes).double()
