"""Tokenizers of whole words, and the token of a model for each word of an environment."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from marl_aajr.core.tokenizers import vocabulary_of
from marl_aajr.core.words import Words
from marl_aajr.language.models import transformers

_NAMED = 10
"""Missing words that an error names."""


def word_tokenizer(vocabulary: Sequence[str], *, padding: str | None = None) -> Any:
    """A tokenizer whose tokens are whole words: the number of a word is its place in the vocabulary."""
    library = transformers()
    from tokenizers import Tokenizer, models, pre_tokenizers

    inner = Tokenizer(models.WordLevel({word: i for i, word in enumerate(vocabulary)}))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return library.PreTrainedTokenizerFast(tokenizer_object=inner, pad_token=padding)


def token_ids(tokenizer: Any, words: Words) -> list[int]:
    """The token of each word, as it is read in the middle of a sentence.

    Args:
        tokenizer: of the model.
        words: the environment's. Where they are this tokenizer's own tokens, each is itself. A tokenizer
            without their padding or special tokens has its own padding, or token 0, in their place.

    Raises:
        ValueError: words that are not one token, by name.
    """
    if words.vocabulary == vocabulary_of(tokenizer):
        return list(range(len(words)))
    known = tokenizer.get_vocab()
    found = [_one_token(tokenizer, word, known) for word in words.vocabulary]
    instead = tokenizer.pad_token_id or 0
    for token in (words.padding, *words.special):
        found[token] = instead if found[token] is None else found[token]
    missing = [word for word, token in zip(words.vocabulary, found, strict=True) if token is None]
    if missing:
        more = f" and {len(missing) - _NAMED} others" if len(missing) > _NAMED else ""
        raise ValueError(
            f"expected a tokenizer that has each of the environment's words as one token, got one of "
            f"{len(tokenizer)} tokens without {', '.join(missing[:_NAMED])}{more}; add them "
            "(tokenizer.add_tokens and model.resize_token_embeddings), or let the environment use this "
            "tokenizer"
        )
    return [token for token in found if token is not None]


def _one_token(tokenizer: Any, word: str, known: Mapping[str, int]) -> int | None:
    # Tokens of subwords tell a word behind a space from the beginning of a text.
    for form in (f" {word}", word):
        try:
            tokens = tokenizer.encode(form, add_special_tokens=False)
        except Exception:  # a word-level tokenizer without an unknown token raises a bare one
            continue
        if len(tokens) == 1 and tokens[0] != tokenizer.unk_token_id:
            return int(tokens[0])
    return known.get(word)
