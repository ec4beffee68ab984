"""Lies in messages: what an agent hears is replaced by another word that could have been said.

A word is a one-hot choice, so that no small ε reaches another one: these attacks have no size. They change
the channels that they name (`channels`; None: `messages`) where these are choices, and nothing else.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from itertools import product
from math import prod
from typing import ClassVar, Self

import torch
from torch import Tensor

from marl_aajr.attacks.base import Access, Attack
from marl_aajr.core.bound_objective import once
from marl_aajr.core.channels import Channels, held
from marl_aajr.core.policy import Policy
from marl_aajr.core.threat import Choices
from marl_aajr.victims import Victim

MESSAGES = ("messages",)
"""The channels of words where none are named."""

_MOST = 1000
"""Combinations of words that are tried of each observation, at most."""


@dataclass(frozen=True, kw_only=True)
class MessageSubstitution(Attack):
    """Words in the place of those that were said.

    A silent sender, whose features are all 0, said none of the words, and is made to say one.
    """

    sized: ClassVar[bool] = False

    _words: tuple[tuple[int, ...], ...] = field(default=(), repr=False, compare=False)
    _levels: tuple[Tensor, Tensor] | None = field(default=None, repr=False, compare=False)

    def held_to(self, channels: Channels, width: int) -> Self | None:
        names = self.perturbations.channels or MESSAGES
        heard = {name: known for name, known in channels.items() if name in names and known.choices}
        own = held(replace(self.perturbations, channels=names), heard, width)
        if own is None or own.mask is None:
            return None
        mask = own.mask
        words = (word for known in heard.values() for word in known.groups)
        free = tuple(word for word in words if all(mask[feature] for feature in word))
        inside = Choices(mask=mask, low=own.low, high=own.high)
        return replace(self, perturbations=inside, _words=free) if free else None

    def against(self, victim: Victim, agent: str) -> Attack:
        shape = victim.observation_spaces[agent].shape or ()
        low, high = (victim.inputs(agent, torch.full((1, *shape), level))[0] for level in (0.0, 1.0))
        return replace(self, _levels=(low, high))

    def said(self, obs: Tensor) -> Tensor:
        """The number of each word that is heard, `[B, w]`; −1 for silence."""
        low, high = self._seen(obs)
        share = (obs - low) / (high - low)
        each = [share[:, list(word)] for word in self._words]
        return torch.stack([torch.where(s.amax(-1) > 0.5, s.argmax(-1), -1) for s in each], -1)

    def saying(self, words: Tensor, obs: Tensor) -> Tensor:
        """δ that makes every row hear these words, `[B, w], [B, d] -> [B, d]`."""
        low, high = self._seen(obs)
        delta = torch.zeros_like(obs)
        for place, features in enumerate(self._words):
            at = list(features)
            chosen = torch.nn.functional.one_hot(words[:, place], len(at)).bool()
            delta[:, at] = torch.where(chosen, high[at], low[at]) - obs[:, at]
        return delta

    def _seen(self, obs: Tensor) -> tuple[Tensor, Tensor]:
        """What the network sees of 0 and of 1 in each feature, `[d]`."""
        if self._levels is None or not self._words:
            raise ValueError(f"expected {self.name} to know which words there are; play it in an environment")
        low, high = self._levels
        return low.to(obs), high.to(obs)


@dataclass(frozen=True, kw_only=True)
class RandomMessages(MessageSubstitution):
    """Another word, uniformly among those that were not said."""

    name: ClassVar[str] = "message-random"
    summary: ClassVar[str] = "every word that is heard becomes another one, at random (a control)"
    access: ClassVar[Access] = "none"

    def run(self, policy: Policy, obs: Tensor, *, generator: torch.Generator) -> Tensor:
        said, drawn = self.said(obs), []
        for place, features in enumerate(self._words):
            others = len(features) - (said[:, place] >= 0).long()
            chance = torch.rand(len(obs), generator=generator, device=obs.device)
            other = torch.minimum((chance * others).long(), others - 1)
            # Numbers from that of the word itself on stand for the next ones.
            drawn.append(other + ((said[:, place] >= 0) & (other >= said[:, place])).long())
        return self.saying(torch.stack(drawn, -1), obs)


@dataclass(frozen=True, kw_only=True)
class WorstMessages(MessageSubstitution):
    """The worst of all words, by the objective: exact, because all combinations are tried.

        argmax_w g(s with the words w),      the words that were said among them

    Raises:
        ValueError: more than 1,000 combinations of words, when it is played.
    """

    name: ClassVar[str] = "message-worst"
    summary: ClassVar[str] = "what is heard becomes the worst of all words, by the objective: exact"
    access: ClassVar[Access] = "queries"

    def held_to(self, channels: Channels, width: int) -> Self | None:
        own = super().held_to(channels, width)
        if own is not None and (count := prod(map(len, own._words))) > _MOST:
            raise ValueError(
                f"expected at most {_MOST:,} combinations of words to try all of them, got {count:,}; name "
                "fewer channels, or use message-random"
            )
        return own

    @torch.no_grad()
    def run(self, policy: Policy, obs: Tensor, *, generator: torch.Generator) -> Tensor:
        self._seen(obs)
        g = self.bound(policy, obs)
        worst, value = torch.zeros_like(obs), once(g, obs)
        for words in product(*(range(len(features)) for features in self._words)):
            delta = self.saying(torch.tensor(words, device=obs.device).expand(len(obs), -1), obs)
            tried = once(g, obs + delta)
            worse = tried > value
            worst, value = torch.where(worse.unsqueeze(-1), delta, worst), torch.where(worse, tried, value)
        return worst
