"""Observations that are text, as tokens that networks read.

    def make(**kwargs):
        return tokenized(my_env(**kwargs), tokenizer, length=32)

plays as any other environment: each Text part of an observation becomes `[length]` integers.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from pettingzoo.utils.env import AECEnv
from pettingzoo.utils.wrappers import BaseParallelWrapper, BaseWrapper

from marl_aajr.core.channels import Channel
from marl_aajr.core.checks import whole
from marl_aajr.core.flat_observations import own_part
from marl_aajr.core.tokenizers import words_of_tokenizer
from marl_aajr.core.words import Words
from marl_aajr.rollout.adapters import to_pettingzoo
from marl_aajr.rollout.teams import outermost


def tokenized(env: Any, tokenizer: Any, *, length: int) -> Any:
    """A PettingZoo environment whose agents read tokens in the place of text, padded behind.

    Args:
        env: A ParallelEnv, an AECEnv, or an environment of Gymnasium. Where it has an attribute `words`, the
            words that it uses, they are looked for in the tokenizer's vocabulary at once, others when they
            come.
        tokenizer: `marl_aajr.core.words.Words`, or a fast tokenizer of Hugging Face's, which then travels in
            the checkpoints and victims of language models.
        length: L, tokens of an observation at most.

    Returns:
        The environment with Box observations `[L]` of integers, and an attribute `words`.

    Raises:
        ValueError: No agent reads text, a slow tokenizer, no padding token, or words of the environment that
            the tokenizer does not know, all by name. Playing raises it for a text that is longer.
    """
    whole("length", length)
    if isinstance(env, gymnasium.Env):
        env = to_pettingzoo(env)
    reader = _Reader(env, tokenizer, length)
    if isinstance(env, AECEnv):
        return _TokenizedTurns(env, reader)
    return _TokenizedParallel(env, reader)


class _Reader:
    """Makes tokens of the text in observations.

    Attributes:
        words: The tokenizer's vocabulary.
    """

    def __init__(self, env: Any, tokenizer: Any, length: int) -> None:
        self.length = length
        self.words, self._encode = _vocabulary(tokenizer)
        self.spaces = {agent: env.observation_space(agent) for agent in env.possible_agents}
        if not any(map(_has_text, self.spaces.values())):
            raise ValueError(
                f"expected Text observations, got {next(iter(self.spaces.values()))}; play it as it is"
            )
        said = outermost(env, "words")
        if isinstance(said, Words):
            said = [word for token, word in enumerate(said.vocabulary) if token != said.padding]
        if isinstance(said, Collection):
            for word in said:
                self._encode(word)

    @property
    def channels(self) -> dict[Any, dict[str, Channel]]:
        """All that an agent reads, as one channel; none where it sees more than one text."""
        text = {"text": Channel(tuple(range(self.length)), words=self.words)}
        return {agent: text for agent, space in self.spaces.items() if _is_text(own_part(space)[0])}

    def space(self, space: spaces.Space[Any]) -> spaces.Space[Any]:
        if isinstance(space, spaces.Dict):
            return spaces.Dict({key: self.space(part) for key, part in space.items()})
        if _is_text(space):
            return spaces.Box(0, len(self.words) - 1, (self.length,), np.int64)
        return space

    def read(self, space: spaces.Space[Any], obs: Any) -> Any:
        if isinstance(space, spaces.Dict):
            return {key: self.read(part, obs[key]) for key, part in space.items()}
        if not _is_text(space):
            return obs
        if len(tokens := self._encode(obs)) > self.length:
            raise ValueError(
                f"expected at most length={self.length} tokens, got {len(tokens)}: {obs!r}; give a greater "
                "length"
            )
        return np.array([*tokens, *[self.words.padding] * (self.length - len(tokens))], np.int64)

    def each(self, seen: Mapping[Any, Any]) -> dict[Any, Any]:
        return {agent: self.read(self.spaces[agent], obs) for agent, obs in seen.items()}


class _Tokenized:
    """What the environments of both kinds have in common; a wrapper stands behind it."""

    def __init__(self, env: Any, reader: _Reader) -> None:
        super().__init__(env)  # type: ignore[call-arg]
        self._reader, self.words, self.channels = reader, reader.words, reader.channels
        self.observation_spaces = {agent: reader.space(space) for agent, space in reader.spaces.items()}

    def observation_space(self, agent: Any) -> spaces.Space[Any]:
        return self.observation_spaces[agent]


class _TokenizedParallel(_Tokenized, BaseParallelWrapper[Any, Any, Any]):
    def reset(self, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        seen, infos = self.env.reset(seed=seed, options=options)
        return self._reader.each(seen), infos

    def step(self, actions: dict[Any, Any]) -> Any:
        seen, *rest = self.env.step(actions)
        return self._reader.each(seen), *rest


class _TokenizedTurns(_Tokenized, BaseWrapper[Any, Any, Any]):
    def observe(self, agent: Any) -> Any:
        return self._reader.read(self._reader.spaces[agent], self.env.observe(agent))


def _is_text(space: Any) -> bool:
    return isinstance(space, spaces.Text)


def _has_text(space: spaces.Space[Any]) -> bool:
    return _is_text(space) or (isinstance(space, spaces.Dict) and any(map(_has_text, space.values())))


def _vocabulary(tokenizer: Any) -> tuple[Words, Callable[[str], Sequence[int]]]:
    """The words that a tokenizer knows, by token, and what it makes of a text."""
    if isinstance(tokenizer, Words):
        return tokenizer, tokenizer.encode
    words = words_of_tokenizer(tokenizer)

    def encode(text: str) -> Sequence[int]:
        tokens: list[int] = tokenizer.encode(text, add_special_tokens=False)
        if (unknown := tokenizer.unk_token_id) is not None and unknown in tokens:
            missing = [w for w in text.split() if unknown in tokenizer.encode(w, add_special_tokens=False)]
            words.check_covered({*words.vocabulary} - {*missing}, missing or [text])
        return tokens

    return words, encode
