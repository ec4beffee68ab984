"""Language models as RLModules: whose weights the critic's errors move."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from ray.rllib.core.columns import Columns
from ray.rllib.core.rl_module.rl_module import RLModuleSpec

from marl_aajr.rllib.language_module import FOLDER, LanguageModule, language_model_config
from tests.language.conftest import TOKENS, WORDS
from tests.language.folders import save_model, subword_tokenizer

SPACES = gym.spaces.Box(0, len(WORDS) - 1, TOKENS.shape[1:], np.int64), gym.spaces.Discrete(3)


@pytest.mark.parametrize("critic", ["own", "shared"])
def test_a_critic_of_its_own_leaves_the_model_alone(critic: Any) -> None:
    config = language_model_config(WORDS, *SPACES, hidden_size=8, layers=1, critic=critic)
    module: Any = RLModuleSpec(LanguageModule, *SPACES, model_config=config).build()
    batch = {Columns.OBS: TOKENS}
    values = module.compute_values(batch)
    assert values.shape == (len(TOKENS),)
    embeddings = module.forward_train(batch)[Columns.EMBEDDINGS]
    torch.testing.assert_close(module.compute_values(batch, embeddings=embeddings), values)
    values.square().sum().backward()
    moved = any(p.grad is not None for p in module.actor.parameters())
    assert moved == (critic == "shared")
    assert all(p.grad is not None for p in module.value.parameters())


def test_without_its_first_weights_it_does_not_play(tmp_path: Path) -> None:
    """Where its folder is not; those of a checkpoint will do."""
    save_model(tmp_path / "here", "gpt2", subword_tokenizer(WORDS.vocabulary[1:]))
    config = language_model_config(WORDS, *SPACES, folder=str(tmp_path / "here"))
    module: Any = RLModuleSpec(LanguageModule, *SPACES, model_config=config).build()
    gone = {**config, FOLDER: str(tmp_path / "gone")}
    elsewhere: Any = RLModuleSpec(LanguageModule, *SPACES, model_config=gone).build()
    with pytest.raises(
        ValueError, match=r"expected the weights of .*gone on this machine or in a checkpoint"
    ):
        elsewhere.forward_train({Columns.OBS: TOKENS})
    elsewhere.set_state(module.get_state())
    found, expected = (each.forward_train({Columns.OBS: TOKENS}) for each in (elsewhere, module))
    assert torch.equal(found[Columns.ACTION_DIST_INPUTS], expected[Columns.ACTION_DIST_INPUTS])


def test_a_critic_of_its_own_tells_words_apart_by_their_place() -> None:
    config = language_model_config(WORDS, *SPACES, hidden_size=8, layers=1)
    module: Any = RLModuleSpec(LanguageModule, *SPACES, model_config=config).build()
    values = module.compute_values({Columns.OBS: torch.tensor([[1, 3, 2, 5], [3, 1, 2, 5], [1, 3, 2, 5]])})
    assert values[0] == values[2]
    assert (values[0] - values[1]).abs() > 1e-4
