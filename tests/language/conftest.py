"""Models of a few hundred weights, made once."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from marl_aajr.core.words import Words
from marl_aajr.language import LanguageNetwork

WORDS = Words.of(
    [["give", "hand"], ["books", "novels"], ["hats"], ["please"]], actions=["books", "hats", "please"]
)
SIZES: dict[str, dict[str, Any]] = {
    "gpt2": {},
    "llama": {},
    "qwen2": {},
    "head": {"architecture": "llama", "head": True},
}


def language_network(name: str, seed: int = 0) -> LanguageNetwork:
    """A tiny network of the kind, with the same weights for the same seed, in double precision."""
    settings = {"architecture": name, **SIZES[name]}
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        made = LanguageNetwork.of_words(
            WORDS, outputs=3, hidden_size=8, layers=1, heads=2, context=8, **settings
        )
        for parameter in made.parameters():  # weights of trained size, where outputs depend on the words
            torch.nn.init.normal_(parameter, std=0.3)
    return made.double()


@pytest.fixture(scope="session", params=SIZES)
def network(request: pytest.FixtureRequest) -> LanguageNetwork:
    return language_network(request.param)


TOKENS = torch.tensor([[1, 3, 0, 5], [0, 2, 4, 6], [5, 5, 1, 0], [0, 0, 0, 0]])
"""Words with padding before, among and behind them, and padding alone."""
