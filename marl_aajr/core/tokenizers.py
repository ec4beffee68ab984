"""The tokens of a tokenizer of Hugging Face's as words; nothing of its package is imported."""

from __future__ import annotations

from typing import Any

from marl_aajr.core.words import Words


def words_of_tokenizer(tokenizer: Any) -> Words:
    """Its tokens as words; it says nothing of meanings, so that no word may stand in another's place.

    Raises:
        ValueError: something else than a fast tokenizer, or one without padding.
    """
    if not hasattr(tokenizer, "get_vocab"):
        raise ValueError(
            f"expected Words or a tokenizer of Hugging Face's, got a {type(tokenizer).__name__}; "
            "AutoTokenizer.from_pretrained(folder) makes one"
        )
    if tokenizer.pad_token_id is None:
        raise ValueError(
            "expected a tokenizer with a padding token, got one without; tokenizer.pad_token = "
            "tokenizer.eos_token, or another"
        )
    vocabulary = vocabulary_of(tokenizer)
    absent = {*range(len(vocabulary))} - {*tokenizer.get_vocab().values()}
    special = (special_tokens(tokenizer) | absent) - {tokenizer.pad_token_id}
    return Words(
        vocabulary,
        tuple(range(len(vocabulary))),
        padding=tokenizer.pad_token_id,
        special=tuple(sorted(special)),
        tokenizer=tokenizer_json(tokenizer),
    )


def vocabulary_of(tokenizer: Any) -> tuple[str, ...]:
    """The tokens by their numbers; `<7>` where there is no token 7."""
    known = {token: word for word, token in tokenizer.get_vocab().items()}
    return tuple(known.get(token, f"<{token}>") for token in range(max(known) + 1))


def special_tokens(tokenizer: Any) -> set[int]:
    """The tokens that stand for no text: beginning, end, padding, unknown, and those of chat templates."""
    added = {token for token, kind in tokenizer.added_tokens_decoder.items() if kind.special}
    return added.union(tokenizer.all_special_ids)


def tokenizer_json(tokenizer: Any) -> str:
    """All that a fast tokenizer does, normalisation included; `ValueError` for slow ones, in Python."""
    if not getattr(tokenizer, "is_fast", False):
        raise ValueError(
            "expected a fast tokenizer, whose JSON a victim takes along, got a "
            f"{type(tokenizer).__name__}; convert it (transformers.convert_slow_tokenizer), or use its Fast "
            "class"
        )
    text: str = tokenizer.backend_tokenizer.to_str()
    return text
