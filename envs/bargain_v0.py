"""Agents divide goods by what they say, in plain words: whoever does not listen quarrels.

There are G goods, one of each. Of what the goods are worth every agent has an order of its own, uniform over
all, which nobody else knows: `worths[0]` for the good that it loves, and so on. In each round everybody says
at once which good it claims. Who claims a good alone has it; who claims one that others claim too has
nothing, and pays `quarrel`. The first `talk_rounds` rounds are talk: nobody gets or pays anything. With c_i
what agent i has in a round, and ρ = `local_ratio`, it is paid ρ c_i + (1 − ρ) · mean_j c_j.

An agent reads at most 32 tokens. Of two agents and three goods, `ann` may read

    ann   love books like hats ignore balls   ann desires woolen caps please   bob wants printed books now

that is, its name; what it makes of each good; what it said last; what each other agent said last (padding
before anybody spoke). A claim names a good twice, by an adjective and by a noun. The environment says it: the
action is the good, and the words are drawn by the grammar, where each noun, verb, adjective and ending has
four synonyms, the k-th of which is drawn with a probability that is proportional to `rarity`^k. Which words
may replace each other is in `words`; a substitution changes no meaning, and rare words are hard to learn.

**The best deal** gives all agents different goods, of the greatest sum (`best_deal`). Two agents reach it by
listening: each says in the talk what it loves, and where both love the same, the second gives way to what it
likes; from then on both repeat themselves.

**Without listening** an agent's claim depends on its own order alone. The best that such agents can do
together (`deaf_return`) is to give up some goods so as to quarrel less.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import permutations
from typing import ClassVar

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from torch import Tensor

from marl_aajr.core.channels import in_order
from marl_aajr.core.checks import positive, proportion, whole
from marl_aajr.core.seeds import Streams
from marl_aajr.core.words import Words
from marl_aajr.rollout.teams import ONE_TEAM

from .bargain_deals import best_deal, deaf_deal, mean_best_deal
from .single_copy import blank_page, factories, pixels
from .tensor_batch import TensorBatch

NAMES = ("ann", "bob", "cid", "dot")
_OPINIONS = (
    ("love", "adore", "treasure", "cherish"),
    ("like", "enjoy", "fancy", "appreciate"),
    ("ignore", "skip", "disregard", "neglect"),
)
_VERBS = ("wants", "desires", "requests", "claims")
_ENDINGS = ("please", "now", "thanks", "today")
_ADJECTIVES = (
    ("printed", "bound", "paper", "written"),
    ("woolen", "knitted", "felt", "warm"),
    ("rubber", "round", "bouncy", "leather"),
    ("sharp", "steel", "pointed", "shiny"),
    ("baked", "sweet", "sugary", "fresh"),
)
_GOODS = (
    ("books", "novels", "volumes", "tomes"),
    ("hats", "caps", "bonnets", "berets"),
    ("balls", "orbs", "spheres", "globes"),
    ("knives", "blades", "daggers", "cutters"),
    ("cakes", "tarts", "pies", "buns"),
)
_FORMS = 4  # words of each class but the names
_LONGEST = 32
_CLASSES = (*((name,) for name in NAMES), *_OPINIONS, _VERBS, _ENDINGS, *_ADJECTIVES, *_GOODS)
_MESSAGE = 5  # name, verb, adjective, noun, ending


@dataclass(frozen=True, kw_only=True)
class Bargain:
    """The options of `bargain_v0`.

    Attributes:
        num_agents: N, at least 2.
        worths: What the G goods are worth to an agent, from the best down; at least as many as agents.
        quarrel: What it costs to claim a good that others claim, too.
        local_ratio: ρ, weight of what an agent has itself against the mean, in [0, 1].
        rarity: How often the k-th synonym is drawn, to the power of k; 1: all alike.
        talk_rounds: Rounds in which nothing is divided yet.
        max_cycles: Rounds of an episode, talk among them.

    Raises:
        ValueError: If an option is out of its range, or what is read would be longer than 32 tokens.
    """

    name: ClassVar[str] = "bargain_v0"

    num_agents: int = 2
    worths: tuple[float, ...] = (3.0, 1.0, 0.0)
    quarrel: float = 1.0
    local_ratio: float = 0.0
    rarity: float = 0.2
    talk_rounds: int = 1
    max_cycles: int = 4

    def __post_init__(self) -> None:
        object.__setattr__(self, "worths", tuple(map(float, self.worths)))
        whole("num_agents", self.num_agents, least=2)
        whole("talk_rounds", self.talk_rounds, least=0)
        whole("max_cycles", self.max_cycles, least=self.talk_rounds + 1)
        proportion("local_ratio", self.local_ratio)
        positive("quarrel", self.quarrel, zero=True)
        positive("rarity", self.rarity)
        for name, given, most in (("agents", self.num_agents, NAMES), ("goods", len(self.worths), _GOODS)):
            if given > len(most):
                raise ValueError(
                    f"expected at most {len(most)} {name}, for which there are words, got {given}"
                )
        if list(self.worths) != sorted(self.worths, reverse=True) or self.worths[-1:] < (0.0,):
            raise ValueError(f"expected worths ≥ 0 from the best down, got {list(self.worths)}")
        if len(self.worths) < self.num_agents:
            raise ValueError(
                f"expected a good for each of {self.num_agents} agents, got worths of {len(self.worths)}"
            )
        if self.length > _LONGEST:
            raise ValueError(
                f"expected at most {_LONGEST} tokens to read, got {self.length} of {self.num_agents} agents "
                f"and {len(self.worths)} goods; take fewer"
            )

    @property
    def length(self) -> int:
        """L, the tokens that an agent reads."""
        return 1 + 2 * len(self.worths) + _MESSAGE * self.num_agents

    @property
    def paid_rounds(self) -> int:
        """The rounds in which goods are divided."""
        return self.max_cycles - self.talk_rounds

    @cached_property
    def orders(self) -> Tensor:
        """What an agent may hold goods to be worth, each order once, `[T, G]` float64; all are as likely."""
        return torch.tensor(sorted(set(permutations(self.worths))), dtype=torch.float64)

    @property
    def words(self) -> Words:
        """The vocabulary, the same whatever the options; the words of actions are the goods."""
        return Words.of(_CLASSES, actions=[noun for noun, *_ in _GOODS[: len(self.worths)]])


def best_return(game: Bargain) -> float:
    """What an agent is paid in an episode on average, over the agents, if all deals are the best."""
    return game.paid_rounds * mean_best_deal(game.orders, agents=game.num_agents) / game.num_agents


def deaf_return(game: Bargain) -> float:
    """The same of agents who do not listen, and do the best that they can (`deaf_deal`)."""
    total = deaf_deal(game.orders, agents=game.num_agents, quarrel=game.quarrel)
    return game.paid_rounds * total / game.num_agents


class BargainBatch(TensorBatch):
    """E copies of `bargain_v0`. See `TensorBatch` for what batches of ours share.

    Args:
        game: The options.
        num_envs: E; see `TensorBatch`, as for `device` and `dtype`.

    Attributes:
        values: What each good is worth to each agent, `[N, G, E]`.
        opinions: The tokens that say so, `[N, 2 G, E]` int64.
        message: The tokens of what each agent said last, `[N, 5, E]` int64; padding before it spoke.
        had: What all agents have had together in this episode, `[E]`.
    """

    words: Words

    def __init__(
        self,
        game: Bargain,
        num_envs: int,
        *,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        agents, goods = NAMES[: game.num_agents], len(game.worths)
        self.words = game.words
        tokens = spaces.Box(0, len(self.words) - 1, (game.length,), np.int64)
        super().__init__(
            options=game,
            num_envs=num_envs,
            observation_spaces=dict.fromkeys(agents, tokens),
            action_spaces={agent: spaces.Discrete(goods) for agent in agents},
            teams=dict.fromkeys(agents, ONE_TEAM),
            max_cycles=game.max_cycles,
            ends_early=False,
            device=device,
            dtype=dtype,
        )
        self.game, count = game, len(agents)
        sizes = {"name": 1, "values": 2 * goods, "own_message": _MESSAGE, "messages": (count - 1) * _MESSAGE}
        channels = {n: replace(own, words=self.words) for n, own in in_order(sizes).items()}
        self.channels = dict.fromkeys(agents, channels)
        with torch.inference_mode(False):
            self.values = torch.zeros(count, goods, num_envs, device=self.device, dtype=dtype)
            self.opinions = torch.zeros(count, 2 * goods, num_envs, device=self.device, dtype=torch.int64)
            self.message = torch.zeros(count, _MESSAGE, num_envs, device=self.device, dtype=torch.int64)
            self.had = torch.zeros(num_envs, device=self.device, dtype=dtype)
            self._constants()
        self._begins = 3 * count * goods

    def _constants(self) -> None:
        def tokens(*first: str) -> Tensor:
            """The first token of the class that begins with each word; synonyms follow it."""
            return torch.tensor([self.words.vocabulary.index(word) for word in first], device=self.device)

        count, goods = len(self.possible_agents), len(self.game.worths)
        self._worths = torch.tensor(self.game.worths, device=self.device, dtype=self.dtype)
        chances = self.game.rarity ** torch.arange(_FORMS, dtype=torch.float64, device=self.device)
        self._reached = (chances.cumsum(0) / chances.sum())[:-1, None, None, None]
        self._name = tokens(*self.possible_agents)[:, None]
        self._opinion = tokens(*(words[0] for words in (*_OPINIONS, *[_OPINIONS[-1]] * goods)))
        self._noun = tokens(*(nouns[0] for nouns in _GOODS[:goods]))
        self._adjective = tokens(*(adjectives[0] for adjectives in _ADJECTIVES[:goods]))
        self._verb, self._ending = tokens(_VERBS[0], _ENDINGS[0])
        order = [[i, *(j for j in range(count) if j != i)] for i in range(count)]
        self._heard = torch.tensor(order, device=self.device)

    def text(self, copy: int = 0) -> str:
        """What each agent of one copy reads, in words."""
        return "\n".join(
            f"{agent} reads: {self.words.text(obs[copy].tolist())}" for agent, obs in self._last.items()
        )

    def draw(self, copy: int = 0) -> NDArray[np.uint8]:
        figure, axes = blank_page()
        axes.set_axis_off()
        for i, agent in enumerate(self.possible_agents):
            opinions, said = (self.words.text(part[i, :, copy]) for part in (self.opinions, self.message))
            place, color = 0.9 - i / self.game.num_agents, f"C{i}"
            axes.text(0.04, place, f"{agent}: {opinions}", transform=axes.transAxes, color=color)
            axes.text(0.04, place - 0.06, said or "nothing said yet", transform=axes.transAxes)
        return pixels(figure)

    @property
    def _variables(self) -> dict[str, Tensor]:
        return {name: getattr(self, name) for name in ("values", "opinions", "message", "had")}

    def _initial(self, streams: Streams) -> dict[str, Tensor]:
        count, goods = self.values.shape[:2]
        numbers = streams.uniform(self._begins).view(count, 3 * goods, -1)
        rank = numbers[:, :goods].argsort(1)
        first = torch.stack([self._opinion[rank], self._noun[:, None].expand_as(rank)], 2).flatten(1, 2)
        return {
            "values": self._worths[rank],
            "opinions": self._spoken(first, numbers[:, goods:]),
            "message": torch.zeros_like(self.message),
            "had": torch.zeros_like(self.had),
        }

    def _spoken(self, first: Tensor, numbers: Tensor) -> Tensor:
        """A synonym of each word, by uniform numbers, all `[N, words, E]`."""
        return first + (numbers >= self._reached).sum(0)

    def _advance(self, actions: Sequence[Tensor]) -> Tensor:
        assert self._streams is not None
        claim, game = torch.stack(list(actions)), self.game
        said = [self._verb.expand_as(claim), self._adjective[claim], self._noun[claim]]
        first = torch.stack([*said, self._ending.expand_as(claim)], 1)
        start = self._begins + (self._clock - 1) * first.shape[:2].numel()
        numbers = self._streams.uniform(first.shape[:2].numel(), start=start).view(first.shape)
        self.message[:, 0] = self._name
        self.message[:, 1:] = self._spoken(first, numbers)
        if self._clock <= game.talk_rounds:
            return torch.zeros_like(claim, dtype=self.dtype)
        alone = (claim[:, None] == claim).sum(1) == 1
        has = torch.where(alone, self.values.gather(1, claim[:, None])[:, 0], -game.quarrel)
        self.had.add_(has.sum(0))
        return has * game.local_ratio + has.mean(0) * (1 - game.local_ratio)

    def _episode_metrics(self) -> dict[str, Tensor]:
        """The share of the episode's best deal that was had."""
        return {"share_of_best_deal": self.had / (self.game.paid_rounds * best_deal(self.values))}

    def _observe(self) -> dict[str, Tensor]:
        name = self._name[..., None].expand(-1, 1, self.num_envs)
        heard = self.message[self._heard].flatten(1, 2)
        seen = torch.cat([name, self.opinions, heard], 1).transpose(1, 2).contiguous()
        return dict(zip(self.possible_agents, seen.unbind(0), strict=True))


batched_env, parallel_env = factories(Bargain, BargainBatch)
"""The two factories of the environment: E copies, and one as a PettingZoo environment."""
