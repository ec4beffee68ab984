"""Networks that read words: units, words that are held, one radius for each word."""

from __future__ import annotations

import copy
import math

import pytest
import torch

from marl_aajr.core.distributions import Categorical
from marl_aajr.core.threat import PerturbationSet, PerturbationSets
from marl_aajr.core.token_network import NEIGHBOURS, TokenPolicy, neighbour_distance
from tests.token_networks import word_bag

TOKENS = torch.tensor([[1, 2, 0, 3], [4, 0, 5, 6], [0, 1, 1, 2]])
BALL = PerturbationSet(epsilon=0.5, norm="l2", block=3)


def policy(free: torch.Tensor | None = None) -> TokenPolicy:
    return TokenPolicy(word_bag(), Categorical(3), TOKENS, free=free)


class TestUnits:
    def test_distance_of_points_on_a_line(self) -> None:
        places = torch.tensor([0.0, 1.0, 3.0, 7.0, 7.0])  # the last two are one word
        assert neighbour_distance(places[:, None]) == pytest.approx((1 + 1 + 2 + 4 + 4) / 5)

    def test_large_vocabularies_are_sampled(self) -> None:
        table = torch.arange(3.0 * NEIGHBOURS)[:, None]
        assert neighbour_distance(table) == 1.0

    def test_equal_embeddings_are_refused(self) -> None:
        with pytest.raises(ValueError, match="at least two words, got 4 that are all the same"):
            neighbour_distance(torch.ones(4, 2))

    def test_a_unit_step_is_as_long_as_the_way_to_a_neighbour(self) -> None:
        read = policy()
        obs = read.embed(TOKENS).unflatten(-1, (4, 3))
        torch.testing.assert_close(obs * read.network.unit, read.network.embeddings[TOKENS])
        distances = torch.cdist(read.embeddings, read.embeddings).fill_diagonal_(math.inf)
        assert float(distances.amin(-1).mean()) == pytest.approx(1.0)

    def test_the_unit_follows_the_weights(self) -> None:
        network = word_bag()
        before = network.unit
        with torch.no_grad():
            network.table.weight.mul_(2)
        torch.testing.assert_close(network.unit, 2 * before)
        network.table.weight.grad = torch.randn_like(network.table.weight)
        # It leaves the version of its tensors as it was.
        torch.optim.Adam([network.table.weight], lr=0.5, fused=True).step()
        torch.testing.assert_close(network.unit, neighbour_distance(network.embeddings.detach()))
        torch.testing.assert_close(copy.deepcopy(network).unit, network.unit)


class TestHeldWords:
    def test_clean_observations_give_what_the_words_give(self) -> None:
        read = policy()
        torch.testing.assert_close(read(read.embed(TOKENS)), read.network(TOKENS))

    def test_padding_does_not_move(self) -> None:
        read = policy()
        obs = read.embed(TOKENS)
        moved = (obs.unflatten(-1, (4, 3)) + (TOKENS == 0).unsqueeze(-1)).flatten(1)
        assert not torch.equal(moved, obs)
        torch.testing.assert_close(read(moved), read(obs))

    def test_only_words_of_others_move(self) -> None:
        free = torch.zeros_like(TOKENS, dtype=torch.bool)
        free[:, 3] = True
        read = policy(free=free)
        obs = read.embed(TOKENS).detach().requires_grad_()
        (gradient,) = torch.autograd.grad(read(obs).square().sum(), obs)
        assert gradient[:, :9].eq(0).all()
        assert gradient[:, 9:].ne(0).all()

    def test_rows_keep_their_words(self) -> None:
        read, obs = policy(), policy().embed(TOKENS)
        index = torch.tensor([2, 0])
        assert torch.equal(read.select(index).tokens, TOKENS[index])
        torch.testing.assert_close(read.select(index)(obs[index]), read(obs)[index])
        torch.testing.assert_close(read.repeat(2)(torch.cat([obs, obs])), read(obs).repeat(2, 1))

    def test_embeddings_are_learned_through_observations(self) -> None:
        network = word_bag()
        read = TokenPolicy(network, Categorical(3), TOKENS)
        read(read.embed(TOKENS) + 0.1).sum().backward()
        gradient = network.table.weight.grad
        assert gradient is not None
        assert gradient.abs().sum(-1).ne(0).all()  # those of padding, which is held, as well


class TestOneRadiusForEachWord:
    def test_projection_is_word_by_word(self) -> None:
        obs = torch.zeros(5, 12, dtype=torch.float64)
        delta = torch.randn(5, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        alone = PerturbationSet(epsilon=0.5, norm="l2")
        words = delta.unflatten(-1, (4, 3)).flatten(0, 1)
        expected = alone.project(words, torch.zeros_like(words)).view(5, 12)
        torch.testing.assert_close(BALL.project(delta, obs), expected)
        assert BALL.contains(expected, obs).all()
        assert not BALL.contains(expected * 1.01, obs).any()
        assert not alone.contains(expected, obs).any()
        each = PerturbationSets.of(BALL, torch.full((5, 1), 0.5, dtype=torch.float64))
        torch.testing.assert_close(each.project(delta, obs), expected)

    def test_limits_hold_in_every_word(self) -> None:
        ball = PerturbationSet(epsilon=0.5, norm="l2", block=3, low=-0.1, scale=(1.0, 2.0, 1.0, 0.5))
        obs = torch.zeros(20, 12)
        delta = ball.project(torch.randn(20, 12, generator=torch.Generator().manual_seed(0)), obs)
        lengths = torch.linalg.vector_norm(delta.unflatten(-1, (4, 3)), dim=-1)
        assert delta.amin() == pytest.approx(-0.1)
        torch.testing.assert_close(
            lengths.amax(0), 0.5 * torch.tensor([1.0, 2.0, 1.0, 0.5]), atol=0.05, rtol=0
        )
        assert (lengths <= 0.5 * torch.tensor([1.0, 2.0, 1.0, 0.5]) + 1e-5).all()

    def test_a_mask_of_words(self) -> None:
        ball = PerturbationSet(epsilon=0.5, norm="l2", block=3, mask=(False, True, True, False))
        obs = torch.zeros(4000, 12)
        drawn = ball.sample(obs, generator=torch.Generator().manual_seed(0)).unflatten(-1, (4, 3))
        lengths = torch.linalg.vector_norm(drawn, dim=-1)
        assert lengths[:, [0, 3]].eq(0).all()
        # Uniform in a ball of three dimensions: the mean length is 3/4 of the radius.
        torch.testing.assert_close(lengths[:, 1:3].mean(0), torch.full((2,), 0.375), atol=0.01, rtol=0)
        assert lengths.amax() <= 0.5 * (1 + 1e-5)
