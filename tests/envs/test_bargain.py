"""The game of bargaining: its rules, its words, and what listening is worth, against brute force."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest
import torch
from marl_aajr.envs.bargain_deals import _answer, best_deal, deaf_total
from marl_aajr.envs.bargain_v0 import (
    Bargain,
    BargainBatch,
    batched_env,
    best_return,
    deaf_return,
    parallel_env,
)
from torch import Tensor

from marl_aajr.core.words import Words
from marl_aajr.rollout.batched_env import BatchedStep


def act(env: BargainBatch, claims: Tensor) -> BatchedStep:
    return env.step(dict(zip(env.possible_agents, claims, strict=True)))


def payoff(values: Tensor, claims: tuple[int, ...], quarrel: float) -> float:
    """What all agents have, counted one by one."""
    paid = 0.0
    for agent, good in enumerate(claims):
        paid += float(values[agent, good]) if claims.count(good) == 1 else -quarrel
    return paid


def test_a_round_by_hand() -> None:
    env = batched_env(2, num_agents=3, local_ratio=0.25, quarrel=2.0, talk_rounds=1)
    env.reset(seed=0)
    claims = torch.tensor([[0, 1], [0, 2], [1, 0]])
    assert all(not reward.any() for reward in act(env, claims).rewards.values())  # talk
    has = torch.tensor(
        [[-2.0, -2.0, env.values[2, 1, 0]], [env.values[i, claims[i, 1], 1] for i in range(3)]]
    )
    rewards = act(env, claims).rewards
    for i, agent in enumerate(env.possible_agents):
        torch.testing.assert_close(rewards[agent], 0.25 * has[:, i] + 0.75 * has.mean(1))


def test_agents_read_their_own_opinions_and_what_everybody_said() -> None:
    env = batched_env(400, num_agents=3, rarity=1.0)
    obs = env.reset(seed=0)
    text = [env.words.text(tokens) for tokens in obs["bob"].tolist()]
    assert all(said.split()[0] == "bob" and len(said.split()) == 7 for said in text)
    claims = torch.randint(3, (3, 400), generator=torch.Generator().manual_seed(0))
    obs = act(env, claims).obs
    kinds = env.words.synonyms
    loved = kinds[env.words.vocabulary.index("love")]
    first = [kinds[env.words.vocabulary.index(word)] for word in env.words.actions]
    for copy in range(400):
        seen = {agent: rows[copy].tolist() for agent, rows in obs.items()}
        opinions = seen["bob"][1:7]
        place = [kinds[w] for w in opinions[::2]].index(loved)
        assert float(env.values[1, place, copy]) == 3.0
        assert [kinds[w] for w in opinions[1::2]] == first
        # Its own claim comes first, then the others' in their order, each with its name and noun.
        heard = [seen["bob"][start : start + 5] for start in (7, 12, 17)]
        assert env.words.text(message[0] for message in heard) == "bob ann cid"
        assert [kinds[message[3]] for message in heard] == [first[claims[i, copy]] for i in (1, 0, 2)]
        assert seen["ann"][12:17] == heard[0]  # everybody hears the same words
    for tokens, (name, channel) in product(obs.values(), env.channels["ann"].items()):
        spread = tokens[:, list(channel.features)].unique(dim=0)
        assert len(spread) == 1 if name == "name" else len(spread) > 100
    assert sum(len(channel.features) for channel in env.channels["ann"].values()) == tokens.shape[1]


@pytest.mark.parametrize("rarity", [1.0, 0.2])
def test_synonyms_are_drawn_by_their_rarity(rarity: float) -> None:
    env = batched_env(4000, rarity=rarity)
    env.reset(seed=1)
    obs = act(env, torch.zeros(2, 4000, dtype=torch.int64)).obs["ann"]
    expected = torch.tensor([rarity**k for k in range(4)])
    books = env.words.vocabulary.index("books")
    drawn = obs[:, [2, 10, 15]].sub(books).flatten().bincount(minlength=4) / (3 * 4000)
    torch.testing.assert_close(drawn, expected / expected.sum(), atol=0.015, rtol=0)


def test_words_are_drawn_anew_for_every_agent_and_claim() -> None:
    env = batched_env(2000, rarity=1.0, num_agents=3)
    opinions = env.reset(seed=1)["ann"][:, 2]
    claims = torch.zeros(3, 2000, dtype=torch.int64)
    rounds = [act(env, claims).obs["ann"] for _ in range(2)]
    books = env.words.vocabulary.index("books")
    nouns = torch.stack([opinions, *(obs[:, 10 + 5 * i] for obs in rounds for i in range(3))]) - books
    same = (nouns[:, None] == nouns).double().mean(-1)
    torch.testing.assert_close(same, 0.25 + 0.75 * torch.eye(7).double(), atol=0.05, rtol=0)


@pytest.mark.parametrize("agents", [2, 3])
def test_the_best_deal_is_that_of_brute_force(agents: int) -> None:
    generator = torch.Generator().manual_seed(0)
    values = torch.rand(agents, 4, 30, generator=generator)
    found = best_deal(values)
    for copy in range(30):
        each = product(range(4), repeat=agents)
        assert float(found[copy]) == pytest.approx(max(payoff(values[..., copy], c, 1.0) for c in each))


@pytest.mark.parametrize(("worths", "quarrel"), [((3.0, 1.0, 0.0), 1.0), ((3.0, 2.0, 1.0), 0.0)])
def test_returns_are_those_of_brute_force(worths: tuple[float, ...], quarrel: float) -> None:
    """A rule has a claim for each of six orders: 729 rules of each agent, and all pairs of them."""
    game = Bargain(worths=worths, quarrel=quarrel)
    orders = game.orders
    pairs = [torch.stack([a, b]) for a, b in product(orders, orders)]
    best = [max(payoff(pair, claims, quarrel) for claims in product(range(3), repeat=2)) for pair in pairs]
    assert best_return(game) == pytest.approx(3 * sum(best) / len(best) / 2)
    # What a pair of rules has, from the rewards of every pair of claims: u[t, g, s, h].
    u = torch.tensor(
        [
            [
                [[payoff(torch.stack([a, b]), (g, h), quarrel) for h in range(3)] for b in orders]
                for g in range(3)
            ]
            for a in orders
        ]
    )
    rules = torch.nn.functional.one_hot(torch.tensor(list(product(range(3), repeat=6))), 3).float()
    total = torch.einsum("atg,tgsh,bsh->ab", rules, u, rules) / len(pairs)
    assert deaf_return(game) == pytest.approx(3 * float(total.max()) / 2)
    place = divmod(int(total.argmax()), len(rules))
    claims = torch.stack([rules[i].argmax(1) for i in place])
    assert deaf_total(orders, claims, quarrel=quarrel) == pytest.approx(float(total.max()))


def test_the_answer_to_deaf_agents_is_the_best_of_all_rules() -> None:
    orders, generator = Bargain().orders, torch.Generator().manual_seed(0)
    for _ in range(10):
        claims = torch.randint(3, (3, 6), generator=generator)
        answered = torch.cat([_answer(orders, claims, 0, quarrel=2.0)[None], claims[1:]])
        every = (torch.cat([torch.tensor([rule]), claims[1:]]) for rule in product(range(3), repeat=6))
        most = max(deaf_total(orders, each, quarrel=2.0) for each in every)
        assert deaf_total(orders, answered, quarrel=2.0) == pytest.approx(most)


def listen(env: BargainBatch, tokens: Tensor, second: bool) -> Tensor:
    """Claims what it loves, and again what it claimed, but the second gives way to what it likes."""
    kinds = torch.tensor(env.words.synonyms)[tokens]
    opinion = [kinds[:, 1:7:2] == env.words.synonyms[env.words.vocabulary.index(w)] for w in ("love", "like")]
    loves, likes = (found.int().argmax(1) for found in opinion)
    own, other, spoke = kinds[:, 10], kinds[:, 15], tokens[:, 10] > 0
    again = (own[:, None] == kinds[:, 2:7:2]).int().argmax(1)
    claim = torch.where(spoke, again, loves)
    return torch.where(spoke & (own == other) & second, likes, claim)


def test_listeners_reach_the_best_deal_and_deaf_agents_do_not() -> None:
    env = batched_env(3000)
    obs, earned, shares = env.reset(seed=0), 0.0, []
    for _ in range(4):
        step = act(env, torch.stack([listen(env, obs["ann"], False), listen(env, obs["bob"], True)]))
        obs, earned = step.obs, earned + float(step.rewards["ann"].mean())
        shares += [step.metrics["share_of_best_deal"]] if step.metrics else []
    assert earned == pytest.approx(best_return(env.game), rel=0.02)
    assert earned > 1.4 * deaf_return(env.game)
    assert torch.equal(shares[0], torch.ones(3000))


def test_render_tells_what_is_read() -> None:
    env = parallel_env(render_mode="ansi")
    env.reset(seed=0)
    env.step({"ann": 0, "bob": 1})
    first, second = str(env.render()).splitlines()
    assert first.startswith("ann reads: ann ")
    assert second.startswith("bob reads: bob ")
    assert sorted(first.split()[9:14]) == sorted(second.split()[14:])
    with pytest.raises(ValueError, match="'rgb_array' or 'ansi' or None"):
        parallel_env(render_mode="human")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"num_agents": 1}, "num_agents ≥ 2"),
        ({"num_agents": 5}, "at most 4 agents, for which there are words, got 5"),
        ({"num_agents": 3, "worths": (3, 1)}, "a good for each of 3 agents, got worths of 2"),
        ({"num_agents": 4, "worths": (3, 1, 0, 0, 0), "talk_rounds": 0}, None),
        ({"worths": (1, 3, 0)}, "from the best down"),
        ({"worths": (1, 0, -1)}, "worths ≥ 0"),
        ({"quarrel": -1}, "quarrel ≥ 0"),
        ({"rarity": 0}, "rarity > 0"),
        ({"max_cycles": 1}, "max_cycles ≥ 2"),
    ],
)
def test_bad_options_are_named(options: dict[str, Any], words: str | None) -> None:
    if words is None:
        assert batched_env(1, **options).options.length == 31
        return
    with pytest.raises(ValueError, match=words):
        parallel_env(**options)


def test_words_are_each_there_once_and_missing_ones_are_named() -> None:
    words = Bargain().words
    assert len(words) == len(set(words.vocabulary)) == 65
    assert words.actions == ("books", "hats", "balls")
    with pytest.raises(ValueError, match="one of 64 without tomes; add them"):
        words.check_covered([word for word in words.vocabulary if word != "tomes"])
    with pytest.raises(ValueError, match="each word once, got hat"):
        Words.of([("hat", "cap"), ("hat",)])
    with pytest.raises(ValueError, match="without hat"):
        Words.of([("cap",)], actions=["hat"])
    books, ann = (words.vocabulary.index(word) for word in ("books", "ann"))
    assert words.others[books].tolist() == [books + 1, books + 2, books + 3]
    assert words.others[books + 2].tolist() == [books, books + 1, books + 3]
    assert words.legal[books].all()
    assert words.others[ann].tolist() == [ann] * 3
    assert not words.legal[[0, ann]].any()
