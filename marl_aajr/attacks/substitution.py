"""Attacks on words: some words of what an agent reads are replaced by others that mean the same.

    w ↦ w′,   w′_i = w_i but in m places at most, where it is a synonym of w_i;   δ = embed(w′) − embed(w)

The synonyms are those of the environment's channels (`marl_aajr.core.words.Words`), and channels say whose
words an attack may touch. m is the size of the attack. The most of the objective that there is in a decision
is what `words-exhaustive` finds: it tries every sentence. Attacks on embeddings (`pgd` on a policy that reads
words) move words to where no word is: what they do bounds from above what words in the same ball can do.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import combinations, product
from math import comb
from typing import ClassVar, Self

import torch
from torch import Tensor

from marl_aajr.attacks.base import Access, Attack
from marl_aajr.core.bound_objective import BoundObjective, once, value_and_gradient
from marl_aajr.core.channels import Channels
from marl_aajr.core.checks import whole
from marl_aajr.core.policy import Policy
from marl_aajr.core.threat import SetNorm
from marl_aajr.core.token_network import TokenNetwork
from marl_aajr.core.word_budget import WordBudget
from marl_aajr.core.words import Words
from marl_aajr.victims import Victim


@dataclass(frozen=True, eq=False)
class Sentences:
    """A batch of sentences, and what may be written in their place.

    Attributes:
        tokens: w, `[B, L]`.
        others: the synonyms of each word, in no order, and the word itself behind them, `[B, L, R]`.
        legal: which of `others` are synonyms, in a place that may be touched, `[B, L, R]` bool.
        policy: reads them.
        obs: embed(w), `[B, L·e]`.
        g: what the adversary maximises.
    """

    tokens: Tensor
    others: Tensor
    legal: Tensor
    policy: Policy
    obs: Tensor
    g: BoundObjective

    @cached_property
    def rows(self) -> Tensor:
        """The place of each sentence in the batch, `[B]`."""
        return torch.arange(len(self.tokens), device=self.tokens.device)

    def delta(self, tokens: Tensor) -> Tensor:
        """embed(w′) − embed(w), `[B, L·e]`."""
        return self.policy.embed(tokens) - self.policy.embed(self.tokens)

    def value(self, tokens: Tensor) -> Tensor:
        """g at w′, `[B]`."""
        return once(self.g, self.obs + self.delta(tokens))

    def written(self, tokens: Tensor, place: Tensor, choice: Tensor) -> Tensor:
        """w′ with one of the others in one place of each sentence, both `[B]`."""
        changed = tokens.clone()
        changed[self.rows, place] = self.others[self.rows, place, choice]
        return changed


@dataclass(frozen=True, kw_only=True)
class WordAttack(Attack):
    """An attack on words. A subclass writes `choose` and nothing else."""

    norms: ClassVar[tuple[SetNorm, ...]] = ("words",)

    _words: Words | None = field(default=None, repr=False, compare=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.perturbations, WordBudget):
            raise ValueError(f"expected a WordBudget for {self.name!r}, got {self.perturbations}")

    @abstractmethod
    def choose(self, sentences: Sentences, count: int, generator: torch.Generator) -> Tensor:
        """w′, `[B, L]`, with at most `count` other words in each sentence."""

    def held_to(self, channels: Channels, width: int) -> Self | None:
        spoken = {name: channel for name, channel in channels.items() if channel.words is not None}
        if not spoken:
            raise ValueError(
                f"expected agents that read words for {self.name!r}, got observations of {width} numbers"
            )
        inside = super().held_to(channels, width)
        features = {feature for channel in spoken.values() for feature in channel.features}
        if inside is None or not any(map(inside._touches, features)):
            return None
        words = next(iter(spoken.values())).words
        assert words is not None
        if not (words.synonyms and words.others.shape[1]):
            raise ValueError(
                f"expected words that have synonyms for {self.name!r}, got none; give Words(...)"
            )
        return replace(inside, _words=words)

    def against(self, victim: Victim, agent: str) -> Attack:
        network = victim.modules[victim.module_of[agent]]
        if not isinstance(network, TokenNetwork):
            raise ValueError(
                f"expected a policy that reads words (TokenNetwork) for {self.name!r}, got a "
                f"{type(network).__name__} for {agent!r}"
            )
        if self._words is not None and len(network.embeddings) != len(self._words):
            raise ValueError(
                f"expected a policy of the environment's {len(self._words)} words, got one of "
                f"{len(network.embeddings)} for {agent!r}"
            )
        return self

    def run(self, policy: Policy, obs: Tensor, *, generator: torch.Generator) -> Tensor:
        if policy.tokens is None or self._words is None:
            raise ValueError(
                f"expected a policy that reads words, and to know their synonyms, for {self.name!r}; play it "
                "in an environment with words, or hold it to their channels: attack.held_to(channels, width)"
            )
        tokens = policy.tokens
        others, legal = (table.to(obs.device)[tokens] for table in (self._words.others, self._words.legal))
        touched = torch.tensor([self._touches(i) for i in range(tokens.shape[-1])], device=obs.device)
        sentences = Sentences(tokens, others, legal & touched[:, None], policy, obs, self.bound(policy, obs))
        with torch.no_grad():
            chosen = self.choose(sentences, int(self.perturbations.epsilon), generator)
        kept = chosen == tokens
        if not (kept | ((others == chosen[..., None]) & sentences.legal).any(-1)).all():
            raise ValueError(f"expected {self.name} to write synonyms, got other words; choose out of others")
        return sentences.delta(chosen)

    def _touches(self, place: int) -> bool:
        mask = self.perturbations.mask
        return mask is None or bool(mask[place])


@dataclass(frozen=True, kw_only=True)
class RandomWords(WordAttack):
    """Random synonyms in m random places, or in all places where there are fewer."""

    name: ClassVar[str] = "words-random"
    summary: ClassVar[str] = "random synonyms in the place of m words (a control, not an adversary)"
    access: ClassVar[Access] = "none"

    def choose(self, sentences: Sentences, count: int, generator: torch.Generator) -> Tensor:
        tokens, legal = sentences.tokens, sentences.legal
        drawn = torch.rand(legal.shape, generator=generator).to(legal.device).masked_fill(~legal, -1.0)
        choice = sentences.others.gather(-1, drawn.argmax(-1, keepdim=True)).squeeze(-1)
        order = torch.rand(tokens.shape, generator=generator).to(legal.device)
        places = order.masked_fill(~legal.any(-1), -1.0).topk(min(count, tokens.shape[-1]), -1).indices
        hit = torch.zeros_like(tokens, dtype=torch.bool).scatter(-1, places, value=True)
        return torch.where(hit & legal.any(-1), choice, tokens)


@dataclass(frozen=True, kw_only=True)
class GradientWords(WordAttack):
    """HotFlip: one word after the other, the one that raises the objective the most to first order.

        (i, v) = argmax (E_v − E_{w_i})ᵀ ∇_i g,      v a synonym of w_i

    The gradient is that of the sentence so far; the best sentence on the way counts.

    Source: Ebrahimi 2018 (arXiv 1712.06751), without its beam.
    """

    name: ClassVar[str] = "words-gradient"
    summary: ClassVar[str] = "HotFlip: m words by the gradient at their embeddings"
    access: ClassVar[Access] = "gradients"

    def choose(self, sentences: Sentences, count: int, generator: torch.Generator) -> Tensor:
        s, table = sentences, sentences.policy.embeddings
        current = best = s.tokens
        value, changeable = s.value(best), s.legal.flatten(1).any(-1)
        for _ in range(min(count, s.tokens.shape[-1])):
            slope = value_and_gradient(s.g, s.obs, s.delta(current))[1].unflatten(-1, (-1, table.shape[-1]))
            gain = ((table[s.others] - table[current].unsqueeze(-2)) * slope.unsqueeze(-2)).sum(-1)
            found = gain.masked_fill(~s.legal, -torch.inf).flatten(1).argmax(-1)
            changed = s.written(current, found // gain.shape[-1], found % gain.shape[-1])
            current = torch.where(changeable[:, None], changed, current)
            tried = s.value(current)
            better = tried > value
            best, value = torch.where(better[:, None], current, best), torch.where(better, tried, value)
        return best


@dataclass(frozen=True, kw_only=True)
class GreedyWords(WordAttack):
    """One word after the other, the best of all that may be written, as long as that gains anything."""

    name: ClassVar[str] = "words-greedy"
    summary: ClassVar[str] = "m words one after the other, each the best of all synonyms in all places"
    access: ClassVar[Access] = "queries"

    def choose(self, sentences: Sentences, count: int, generator: torch.Generator) -> Tensor:
        s = sentences
        current = s.tokens
        value = s.value(current)
        for _ in range(min(count, current.shape[-1])):
            begun = current
            for place, choice in s.legal.any(0).nonzero().tolist():
                at = torch.full_like(s.rows, place)
                changed = s.written(begun, at, torch.full_like(at, choice))
                tried = s.value(changed)
                better = tried > value
                current = torch.where(better[:, None], changed, current)
                value = torch.where(better, tried, value)
        return current


@dataclass(frozen=True, kw_only=True)
class ExhaustiveWords(WordAttack):
    """The worst of all sentences with at most m other words, by the objective.

    In each decision no attack on words gains more of the objective. The return can fall further under another
    attack: none of them looks beyond the decision.

    Attributes:
        most: sentences to try at most.

    Raises:
        ValueError: there are more.
    """

    name: ClassVar[str] = "words-exhaustive"
    summary: ClassVar[str] = "every sentence with at most m other words: exact in each decision's objective"
    access: ClassVar[Access] = "queries"

    most: int = 1000

    def __post_init__(self) -> None:
        super().__post_init__()
        whole("most", self.most)

    def held_to(self, channels: Channels, width: int) -> Self | None:
        inside = super().held_to(channels, width)
        if inside is None or inside._words is None:
            return inside
        places, each = sum(map(inside._touches, range(width))), inside._words.others.shape[1]
        m = min(int(self.perturbations.epsilon), places)
        if (count := sum(comb(places, k) * each**k for k in range(1, m + 1))) > self.most:
            raise ValueError(
                f"expected at most most={self.most} sentences for {self.name!r}, got {count} with {m} of "
                f"{places} words; take fewer words, hold it to channels, or raise most"
            )
        return inside

    def choose(self, sentences: Sentences, count: int, generator: torch.Generator) -> Tensor:
        s = sentences
        best, value = s.tokens, s.value(s.tokens)
        for places, choices in self._all(s, count):
            changed = s.tokens.clone()
            changed[:, places] = s.others[:, places, choices]
            tried = s.value(changed)
            better = tried > value
            best, value = torch.where(better[:, None], changed, best), torch.where(better, tried, value)
        return best

    @staticmethod
    def _all(s: Sentences, count: int) -> Iterator[tuple[list[int], list[int]]]:
        """Places and choices of every sentence."""
        places = s.legal.any(0).any(-1).nonzero().flatten().tolist()
        for k in range(1, min(count, len(places)) + 1):
            for some in combinations(places, k):
                for choices in product(range(s.legal.shape[-1]), repeat=k):
                    yield list(some), list(choices)
