"""Text becomes tokens that networks read, by a tokenizer that knows all words, or says which it does not."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces
from pettingzoo.test import api_test, parallel_api_test
from pettingzoo.utils.conversions import parallel_to_aec
from pettingzoo.utils.env import ParallelEnv

from marl_aajr.core.words import Words
from marl_aajr.rollout.environments import make_batch, resolve
from marl_aajr.rollout.text_observations import tokenized

WORDS = Words.of([("red", "crimson"), ("door",), ("a",), (",",)])
TWO = spaces.Discrete(2)
TEXT = spaces.Text(60, charset="abcdefghijklmnopqrstuvwxyzR ,")


class Doors(ParallelEnv[str, Any, Any]):
    """Two agents read what is in front of them; one of them has a mask, too."""

    metadata = {"name": "doors_v0", "is_parallelizable": True}  # noqa: RUF012
    render_mode = None

    def __init__(self, says: str = "a Red door") -> None:
        self.says, self.possible_agents = says, ["left", "right"]

    def observation_space(self, agent: str) -> spaces.Space[Any]:
        if agent == "left":
            return TEXT
        return spaces.Dict({"observation": TEXT, "action_mask": spaces.Box(0, 1, (2,), np.int8)})

    def action_space(self, agent: str) -> spaces.Space[Any]:
        return TWO

    def _seen(self) -> dict[str, Any]:
        return {"left": self.says, "right": {"observation": "door", "action_mask": np.ones(2, np.int8)}}

    def reset(self, seed: int | None = None, options: Any = None) -> Any:
        self.agents, self.t = list(self.possible_agents), 0
        return self._seen(), {agent: {} for agent in self.agents}

    def step(self, actions: Any) -> Any:
        self.t += 1
        agents, over = self.agents, self.t == 3
        self.agents = [] if over else agents
        flags = dict.fromkeys(agents, False), dict.fromkeys(agents, over)
        return self._seen(), dict.fromkeys(agents, 1.0), *flags, {agent: {} for agent in agents}


class Page(gymnasium.Env[str, int]):
    observation_space, action_space = TEXT, TWO

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        return "red", {}

    def step(self, action: int) -> Any:
        return "a crimson door, red", 0.0, True, False, {}


def doors(says: str = "a Red door") -> Any:
    return tokenized(Doors(says), WORDS, length=5)


def hugging_face(**special: str) -> Any:
    """A tokenizer of whole words, made here."""
    transformers, tokenizers = (pytest.importorskip(name) for name in ("transformers", "tokenizers"))
    vocabulary = {word: token for token, word in enumerate(["[pad]", "[unk]", "door", "red", "a"])}
    model = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="[unk]"))
    model.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    model.normalizer = tokenizers.normalizers.Lowercase()
    return transformers.PreTrainedTokenizerFast(tokenizer_object=model, unk_token="[unk]", **special)


def test_both_kinds_of_environment_and_gymnasium_s_read_tokens() -> None:
    parallel_api_test(doors(), num_cycles=10)
    turns = tokenized(parallel_to_aec(Doors()), WORDS, length=5)
    api_test(turns, num_cycles=10)
    turns.reset(seed=0)
    obs, _ = doors().reset(seed=0)
    assert obs["left"].tolist() == [4, 1, 3, 0, 0]
    assert obs["right"]["observation"].tolist() == [3, 0, 0, 0, 0]
    assert obs["right"]["action_mask"].tolist() == [1, 1]
    np.testing.assert_array_equal(turns.observe("left"), obs["left"])
    page = tokenized(Page(), WORDS, length=5)
    assert page.reset()[0]["agent"].tolist() == [1, 0, 0, 0, 0]
    assert page.step({"agent": 0})[0]["agent"].tolist() == [4, 2, 3, 5, 1]


def test_a_batch_of_them_knows_their_words() -> None:
    batch = make_batch(resolve(doors), 3)
    assert batch.words == WORDS
    assert batch.reset(seed=0)["left"].tolist() == [[4, 1, 3, 0, 0]] * 3
    assert batch.observation_spaces["right"] == spaces.Box(0, 5, (5,), np.int64)
    assert make_batch(resolve("classic/tictactoe-v3"), 1).words is None


def test_tokenizers_of_hugging_face_serve() -> None:
    env = tokenized(Doors(), hugging_face(pad_token="[pad]"), length=5)
    assert env.reset()[0]["left"].tolist() == [4, 3, 2, 0, 0]
    assert env.words.vocabulary[3] == "red"
    assert env.words.others.shape == (5, 0)  # it knows no synonyms
    assert not env.channels["left"]["text"].choices


@pytest.mark.parametrize("kind", ["ours", "theirs"])
def test_words_that_a_tokenizer_does_not_know_are_named(kind: str) -> None:
    tokenizer = WORDS if kind == "ours" else hugging_face(pad_token="[pad]")
    env = tokenized(Doors("a red window opens"), tokenizer, length=5)
    with pytest.raises(ValueError, match="without window, opens; add them"):
        env.reset()
    for said in (["red", "window"], Words.of([("red",), ("window",)])):
        known = Doors()
        known.words = said
        with pytest.raises(ValueError, match=r"without (<pad>, )?window; add them"):
            tokenized(known, tokenizer, length=5)


def test_what_cannot_be_read_is_refused() -> None:
    with pytest.raises(ValueError, match="at most length=5 tokens, got 6: 'a, a, a red'"):
        doors("a, a, a red").reset()
    with pytest.raises(ValueError, match="expected Text observations"):
        tokenized(tokenized(Doors(), WORDS, length=5), WORDS, length=5)
    with pytest.raises(ValueError, match="with a padding token"):
        tokenized(Doors(), hugging_face(), length=5)
    with pytest.raises(ValueError, match="got a str; AutoTokenizer"):
        tokenized(Doors(), "gpt2", length=5)
    with pytest.raises(ValueError, match="length ≥ 1"):
        tokenized(Doors(), WORDS, length=0)
