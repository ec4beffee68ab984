"""Attacks on words, against every sentence there is."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor

from marl_aajr.attacks import ATTACKS, Attack, BudgetError, make_attack
from marl_aajr.attacks.substitution import Sentences, WordAttack
from marl_aajr.core.channels import Channel
from marl_aajr.core.distributions import Categorical
from marl_aajr.core.token_network import TokenPolicy
from marl_aajr.core.word_budget import WordBudget
from marl_aajr.core.words import Words
from tests.token_networks import word_bag

WORDS = Words.of([("a", "b", "c"), ("d", "e"), ("f",)])
TOKENS = torch.randint(0, 7, (40, 4), generator=torch.Generator().manual_seed(1))
CHANNELS = {"own": Channel((0, 1), words=WORDS), "messages": Channel((2, 3), words=WORDS)}
NAMES = [name for name, cls in ATTACKS.items() if cls.norms == ("words",)]


def attack(name: str, count: int, **settings: Any) -> Attack:
    found = make_attack(name, epsilon=count, **settings).held_to(CHANNELS, 4)
    assert found is not None
    return found


def read(linear: bool = False) -> tuple[TokenPolicy, Tensor]:
    network = word_bag()
    if linear:
        network.layers = torch.nn.Sequential(torch.nn.Linear(12, 2, dtype=torch.float64))
    policy = TokenPolicy(network, Categorical(2 if linear else 3), TOKENS)
    return policy, policy.embed(TOKENS).detach()


def run(found: Attack, policy: TokenPolicy, obs: Tensor) -> Any:
    return found(policy, obs, generator=torch.Generator().manual_seed(0))


def sentences(policy: TokenPolicy, shown: Tensor) -> Tensor:
    """The words that were shown: each embedding is that of one word."""
    distance = torch.cdist(shown.unflatten(-1, (4, 3)), policy.embeddings.expand(len(shown), -1, -1))
    assert distance.amin(-1).max() < 1e-9
    return distance.argmin(-1)


@torch.no_grad()
def worst_by_hand(policy: TokenPolicy, row: int, count: int, places: tuple[int, ...]) -> float:
    """The margin under the worst sentence, word by word and sentence by sentence."""
    own = TOKENS[row].tolist()
    choices = [
        [w for w in range(7) if WORDS.synonyms[w] == WORDS.synonyms[own[i]]] if i in places else [own[i]]
        for i in range(4)
    ]
    tried = [s for s in product(*choices) if sum(a != b for a, b in zip(s, own, strict=True)) <= count]
    logits = policy.network(torch.tensor(tried))
    greedy = policy.network(TOKENS[row : row + 1]).argmax()
    others = [i for i in range(logits.shape[1]) if i != greedy]
    return float((logits[:, others].amax(1) - logits[:, greedy]).max())


@pytest.mark.parametrize("count", [1, 2, 4])
@pytest.mark.parametrize("channels", [None, ("messages",)])
def test_every_sentence_is_tried_and_none_is_worse(count: int, channels: tuple[str, ...] | None) -> None:
    policy, obs = read()
    places = (2, 3) if channels else (0, 1, 2, 3)
    found = {name: run(attack(name, count, channels=channels), policy, obs) for name in NAMES}
    worst = [worst_by_hand(policy, row, count, places) for row in range(40)]
    most = torch.tensor(worst, dtype=torch.float64)
    torch.testing.assert_close(found["words-exhaustive"].value, most)
    for name, attacked in found.items():
        shown = sentences(policy, attacked.perturbed)
        changed = shown != TOKENS
        assert changed.sum(1).max() == min(count, len(places)), name
        if name == "words-random":
            able = torch.tensor(
                [[WORDS.synonyms.count(WORDS.synonyms[w]) > 1 for w in row] for row in TOKENS]
            )
            assert torch.equal(changed.sum(1), able[:, list(places)].sum(1).clamp_max(count))
        assert not changed[:, [i for i in range(4) if i not in places]].any(), name
        kinds = torch.tensor(WORDS.synonyms)
        assert torch.equal(kinds[shown], kinds[TOKENS]), name
        assert (attacked.value <= most + 1e-9).all(), name
        if name != "words-random":
            assert (attacked.value >= attacked.clean_value).all(), name
    if count == 1:
        torch.testing.assert_close(found["words-greedy"].value, most)
    assert found["words-random"].value.mean() < found["words-gradient"].value.mean() <= most.mean()


@pytest.mark.parametrize("name", NAMES)
def test_a_sentence_without_synonyms_where_it_may_be_touched_stays(name: str) -> None:
    """First words have synonyms that would gain something, in a channel that the attack is not held to."""
    policy, _ = read()
    tokens = TOKENS.clone()
    tokens[::2, 2:] = 6
    policy = TokenPolicy(policy.network, Categorical(3), tokens)
    obs = policy.embed(tokens).detach()
    shown = sentences(policy, run(attack(name, 1, channels=("messages",)), policy, obs).perturbed)
    assert torch.equal(shown[::2], tokens[::2])
    assert not torch.equal(shown, tokens)


def test_the_gradient_is_exact_in_a_linear_network() -> None:
    policy, obs = read(linear=True)
    for count in (1, 3):
        exact, slope = (run(attack(f"words-{n}", count), policy, obs) for n in ("exhaustive", "gradient"))
        torch.testing.assert_close(slope.value, exact.value)
        assert (exact.value > exact.clean_value).double().mean() > 0.8


def test_random_words_take_all_places_and_synonyms_alike() -> None:
    network = word_bag()
    tokens = torch.ones(3000, 4, dtype=torch.int64)
    policy = TokenPolicy(network, Categorical(3), tokens)
    found = run(attack("words-random", 2), policy, policy.embed(tokens).detach())
    shown = sentences(policy, found.perturbed)
    assert ((shown != 1).sum(1) == 2).all()
    for place in range(4):
        share = shown[:, place].bincount(minlength=4)[1:4] / 3000
        torch.testing.assert_close(share, torch.tensor([0.5, 0.25, 0.25]), atol=0.04, rtol=0)


class Liar(WordAttack):
    name, summary = "liar", "writes any word"

    def choose(self, sentences: Sentences, count: int, generator: torch.Generator) -> Tensor:
        return torch.where(sentences.tokens > 0, 6, sentences.tokens)


def test_what_is_no_synonym_is_refused() -> None:
    liar = Liar(perturbations=WordBudget(epsilon=4)).held_to(CHANNELS, 4)
    assert liar is not None
    with pytest.raises(ValueError, match="expected liar to write synonyms"):
        run(liar, *read())


def test_more_words_than_the_budget_are_refused() -> None:
    class Greedy(Liar):
        def choose(self, sentences: Sentences, count: int, generator: torch.Generator) -> Tensor:
            return sentences.others[..., 0]

    greedy = Greedy(perturbations=WordBudget(epsilon=1)).held_to(CHANNELS, 4)
    assert greedy is not None
    with pytest.raises(BudgetError, match="expected liar to stay in"):
        run(greedy, *read())


def test_the_budget_is_a_number_of_words() -> None:
    budget = WordBudget(epsilon=2, block=3, mask=(True, True, False, True))
    delta = torch.tensor([[0.0, 0, 1, 2, 0, 0, 0, 0, 0, 0, 0, 0], [3, 0, 0, 0, 1, 0, 0, 0, 0, 2, 2, 0]])
    assert budget.size(delta).tolist() == [2, 3]
    assert budget.contains(delta, delta).tolist() == [True, False]
    assert budget.project(delta, delta)[1].tolist() == [3, 0, 0, 0, 0, 0, 0, 0, 0, 2, 2, 0]
    masked = torch.zeros(1, 12).index_fill(1, torch.tensor(6), 1.0)
    assert not budget.contains(masked, masked)
    assert not budget.project(masked, masked).any()


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"epsilon": 0.5}, "a whole number of words ≥ 1 for epsilon, got 0.5"),
        ({"epsilon": 0}, "a whole number of words"),
        ({"epsilon": 1, "norm": "l2"}, "the norm words for a number of words, got l2"),
        ({"epsilon": 1, "low": 0.0}, "no low of a number of words"),
    ],
)
def test_other_sizes_are_refused(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        make_attack("words-greedy", **settings)
    with pytest.raises(ValueError, match="out of linf, l2"):
        make_attack("pgd", epsilon=0.1, norm="words")


def test_who_reads_no_words_is_not_attacked_by_them() -> None:
    found = make_attack("words-greedy", epsilon=1)
    with pytest.raises(
        ValueError, match="agents that read words for 'words-greedy', got observations of 4 num"
    ):
        found.held_to({"position": Channel((0, 1, 2, 3))}, 4)
    with pytest.raises(ValueError, match="words that have synonyms for 'words-greedy', got none"):
        found.held_to({"text": Channel((0, 1, 2, 3), words=Words.of([("a",), ("b",)]))}, 4)
    assert (
        make_attack("words-greedy", epsilon=1, channels=("noise",)).held_to(
            {"noise": Channel((0, 1)), "text": Channel((2, 3), words=WORDS)}, 4
        )
        is None
    )
    with pytest.raises(ValueError, match="a policy that reads words, and to know their synonyms"):
        run(found, *read())
    with pytest.raises(
        ValueError, match="at most most=20 sentences for 'words-exhaustive', got 32 with 2 of 4"
    ):
        attack("words-exhaustive", 2, most=20)
