"""A critic that reads words for itself."""

from __future__ import annotations

from torch import Tensor, nn

WIDTH, HIDDEN = 16, 64
"""Of the embeddings, and of the layers behind them."""


class WordCritic(nn.Module):
    """V(w), `[B, L] -> [B]`: an MLP on embeddings of its own, side by side.

    Returns are tens of times larger than logits. A critic that shares the model's weights with the actor
    bends them to its own errors; one with its own weights costs a few per cent of what the model costs.

    Args:
        words: V, the size of the vocabulary.
        length: L.
    """

    def __init__(self, words: int, length: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Embedding(words, WIDTH),
            nn.Flatten(),
            nn.Linear(length * WIDTH, HIDDEN),
            nn.Tanh(),
            nn.Linear(HIDDEN, HIDDEN),
            nn.Tanh(),
            nn.Linear(HIDDEN, 1),
        )

    def forward(self, tokens: Tensor) -> Tensor:
        values: Tensor = self.layers(tokens).squeeze(-1)
        return values
