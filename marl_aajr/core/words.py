"""Words as numbers: the vocabulary of an environment, and which of its words mean the same."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Words:
    """The words of which observations consist: token w stands for `vocabulary[w]`.

    Attributes:
        vocabulary: V words, each once.
        synonyms: the class of each word, `[V]`; words of one class mean the same.
        padding: the token that stands for no word.
        actions: by discrete action, the word that stands for it; empty: the environment does not say.
        special: further tokens that stand for no word, such as the beginning of a text; nobody perturbs them.
        tokenizer: JSON of the tokenizer that reads them, if it is one of Hugging Face's.

    Raises:
        ValueError: a word twice, or as many classes as there are no words.
    """

    vocabulary: tuple[str, ...]
    synonyms: tuple[int, ...]
    padding: int = 0
    actions: tuple[str, ...] = ()
    special: tuple[int, ...] = ()
    tokenizer: str = field(default="", repr=False)

    def __post_init__(self) -> None:
        if repeated := [word for word, times in Counter(self.vocabulary).items() if times > 1]:
            raise ValueError(f"expected each word once, got {', '.join(repeated)} several times")
        if len(self.synonyms) != len(self.vocabulary):
            raise ValueError(
                f"expected a class of synonyms for each of {len(self.vocabulary)} words, got "
                f"{len(self.synonyms)}"
            )
        for name, token in (("padding", self.padding), *(("special", token) for token in self.special)):
            if not 0 <= token < len(self.vocabulary):
                raise ValueError(f"expected {name} in [0, {len(self.vocabulary)}), got {token}")
        self.check_covered(self.vocabulary, self.actions)

    def __len__(self) -> int:
        return len(self.vocabulary)

    @classmethod
    def of(cls, classes: Iterable[Collection[str]], *, actions: Collection[str] = ()) -> Words:
        """The vocabulary of classes of synonyms, behind the padding `"<pad>"`."""
        classes = (("<pad>",), *classes)
        numbered = [(word, number) for number, synonyms in enumerate(classes) for word in synonyms]
        vocabulary, numbers = zip(*numbered, strict=True)
        return cls(vocabulary, numbers, actions=tuple(actions))

    @cached_property
    def others(self) -> Tensor:
        """The synonyms of each word, padded behind with the word itself, `[V, R]`."""
        return self._substitutes[0]

    @cached_property
    def legal(self) -> Tensor:
        """Whether one of `others` is a synonym, and not the word itself, `[V, R]` bool."""
        return self._substitutes[1]

    @cached_property
    def _substitutes(self) -> tuple[Tensor, Tensor]:
        import torch  # processes that step environments go without

        classes: dict[int, list[int]] = {}
        for token, kind in enumerate(self.synonyms):
            classes.setdefault(kind, []).append(token)
        most = max(map(len, classes.values())) - 1
        own = torch.arange(len(self))
        others = own[:, None].repeat(1, most)
        for token, kind in enumerate(self.synonyms):
            found = [other for other in classes[kind] if other != token]
            others[token, : len(found)] = torch.tensor(found, dtype=torch.int64)
        return others, others != own[:, None]

    def text(self, tokens: Iterable[float]) -> str:
        """The words of some tokens, without padding."""
        return " ".join(self.vocabulary[int(w)] for w in tokens if int(w) != self.padding)

    def encode(self, text: str) -> list[int]:
        """The tokens of a text: its words in lower case, and its marks one by one.

        Raises:
            ValueError: words that are not there, all by name.
        """
        found = re.findall(r"\w+|[^\w\s]", text.lower())
        self.check_covered(self.vocabulary, dict.fromkeys(found))
        return [self._token[word] for word in found]

    @cached_property
    def _token(self) -> dict[str, int]:
        return {word: token for token, word in enumerate(self.vocabulary)}

    def check_covered(self, known: Collection[str], words: Collection[str] | None = None) -> None:
        """Raise `ValueError` unless a vocabulary has all of these words (None: those of this one)."""
        words = [w for w in self.vocabulary if w != self.vocabulary[self.padding]] if words is None else words
        if missing := [word for word in words if word not in known]:
            raise ValueError(
                f"expected a vocabulary with all words of the environment, got one of {len(known)} without "
                f"{', '.join(missing)}; add them"
            )
