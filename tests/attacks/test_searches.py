"""Attacks without gradients, targeted margins and the critic: what each one alone must be able to do."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn

from marl_aajr.attacks import SquareAttack, TargetedPGD, WorstNoise, make_attack
from marl_aajr.attacks.gradient import TargetedMargin
from marl_aajr.core.bound_objective import value_and_gradient
from marl_aajr.core.distributions import ActionDistribution, Categorical, DiagGaussian, MultiCategorical
from marl_aajr.core.objectives import Clean, Margin
from marl_aajr.core.policy import ModulePolicy
from marl_aajr.core.threat import PerturbationSet
from marl_aajr.victims import VictimPolicy
from tests.networks import generator, linear_policy, observations, tanh_policy

BALL = PerturbationSet(epsilon=0.1)


class Blind(nn.Module):
    """A linear policy that refuses to be differentiated."""

    def forward(self, obs: Tensor) -> Tensor:
        assert not torch.is_grad_enabled(), "a gradient was asked for"
        return torch.stack([obs.sum(-1), -obs.sum(-1)], -1)


class TestWithoutGradients:
    @pytest.mark.parametrize("name", ["square", "noise-worst"])
    def test_no_graph_is_ever_built(self, name: str) -> None:
        policy = ModulePolicy(Blind(), Categorical(2))
        attacked = make_attack(name, epsilon=0.1)(policy, observations(20, 4), generator=generator())
        assert (attacked.value > attacked.clean_value).all()

    @pytest.mark.parametrize("norm", ["linf", "l2"])
    def test_square_search_finds_the_corner_of_a_linear_policy(self, norm: str) -> None:
        policy, obs = ModulePolicy(Blind(), Categorical(2)), observations(50, 12).abs()
        attack = make_attack("square", epsilon=0.1, norm=norm, queries=400)
        attacked = attack(policy, obs, generator=generator())
        worst = 2 * 0.1 * (12 if norm == "linf" else 12**0.5)
        gain = (attacked.value - attacked.clean_value) / worst
        assert gain.mean() > (0.99 if norm == "linf" else 0.85)
        assert gain.max() <= 1 + 1e-9

    def test_more_queries_are_never_weaker_on_average(self) -> None:
        policy, obs = tanh_policy(Categorical(5), features=12), observations(100, 12)
        values = [
            make_attack("square", epsilon=0.3, queries=n)(policy, obs, generator=generator()).value.mean()
            for n in (1, 10, 50, 200)
        ]
        assert values == sorted(values)

    def test_the_share_of_changed_features_shrinks_as_in_the_original(self) -> None:
        attack = SquareAttack(perturbations=BALL, queries=10_000)
        shares = [
            attack._features(query, 1000) for query in (10, 11, 51, 201, 501, 1001, 2001, 4001, 6001, 8001)
        ]
        assert shares == [800, 400, 200, 100, 50, 25, 12, 6, 3, 2]

    def test_features_that_may_not_be_touched_are_left_and_no_query_is_spent_on_them(self) -> None:
        policy, obs = ModulePolicy(Blind(), Categorical(2)), observations(50, 12).abs()
        mask = (True,) * 3 + (False,) * 9
        attacked = make_attack("square", epsilon=0.1, mask=mask, queries=40)(
            policy, obs, generator=generator()
        )
        assert (attacked.delta[:, 3:] == 0).all()
        assert (attacked.value - attacked.clean_value).mean() > 0.98 * 2 * 0.1 * 3

    def test_the_worst_of_more_noises_is_never_weaker(self) -> None:
        policy, obs = tanh_policy(Categorical(5)), observations(100)
        values = [
            WorstNoise(perturbations=BALL, samples=n)(policy, obs, generator=generator()).value
            for n in (1, 3, 10, 30)
        ]
        for fewer, more in pairwise(values):
            assert (more >= fewer).all()

    def test_gaussian_noise_has_its_width_and_is_cut_off(self) -> None:
        policy, obs = tanh_policy(Categorical(5)), observations(4000)
        deltas = {
            sigma: make_attack("noise-gaussian", epsilon=0.1, sigma=sigma)(
                policy, obs, generator=generator()
            ).delta
            for sigma in (0.2, 5.0)
        }
        assert deltas[0.2].std().item() == pytest.approx(0.02, rel=0.02)
        assert (deltas[5.0].abs() == 0.1).float().mean() > 0.8


class TestTargets:
    def test_the_target_is_the_rival_of_its_rank(self) -> None:
        logits = torch.tensor([[1.0, 4.0, 2.0, 3.0]]).repeat(3, 1)
        policy = ModulePolicy(lambda obs: obs, Categorical(4))
        g = TargetedMargin(torch.arange(3)).bind(policy, Clean(logits))
        assert g(logits).tolist() == [3.0 - 4.0, 2.0 - 4.0, 1.0 - 4.0]

    def test_every_action_of_a_multi_discrete_policy_has_its_own(self) -> None:
        logits = torch.tensor([[1.0, 0.0, 0.0, 5.0, 3.0]]).repeat(2, 1)
        policy = ModulePolicy(lambda obs: obs, MultiCategorical((2, 3)))
        g = TargetedMargin(torch.arange(2)).bind(policy, Clean(logits))
        assert g(logits).tolist() == [-1.0 - 2.0, -1.0 - 5.0], "the first action has one rival only"

    def test_it_reaches_an_action_that_the_nearest_rival_hides(self) -> None:
        """Towards b the way is short and ends before the flip; towards c it is long and flips."""

        class Hidden(nn.Module):
            def forward(self, obs: Tensor) -> Tensor:
                x = obs[..., 0]
                near = -0.1 - (x - 0.1).square()
                far = -1.0 - 4 * x
                return torch.stack([torch.zeros_like(x), near, far], -1)

        policy = ModulePolicy(Hidden(), Categorical(3))
        obs = torch.zeros(1, 1, dtype=torch.float64)
        set_ = PerturbationSet(epsilon=0.5)
        plain = make_attack("pgd-margin", epsilon=0.5)(policy, obs, generator=generator())
        targeted = TargetedPGD(perturbations=set_)(policy, obs, generator=generator())
        assert not plain.success.item()
        assert targeted.success.item()
        assert targeted.value.item() == pytest.approx(1.0)

    @pytest.mark.parametrize("distribution", [Categorical(5), MultiCategorical((2, 3))], ids=str)
    def test_more_targets_are_never_weaker(self, distribution: Categorical) -> None:
        policy, obs = tanh_policy(distribution), observations(100)
        values = [
            make_attack("pgd-targeted", epsilon=1.0, targets=n)(policy, obs, generator=generator()).value
            for n in (1, 2, 9)
        ]
        for fewer, more in pairwise(values):
            assert (more >= fewer - 1e-12).all()

    def test_refusals(self) -> None:
        with pytest.raises(ValueError, match="an integer targets ≥ 1, got 0"):
            make_attack("pgd-targeted", epsilon=0.1, targets=0)
        with pytest.raises(
            ValueError, match=r"objective 'margin' and restarts 1 for pgd-targeted.*set targets"
        ):
            make_attack("pgd-targeted", epsilon=0.1, restarts=3)
        with pytest.raises(ValueError, match="expected a categorical policy"):
            make_attack("pgd-targeted", epsilon=0.1)(
                tanh_policy(DiagGaussian(2)), observations(), generator=generator()
            )


class TestCritic:
    def test_it_goes_where_the_critic_expects_least(self) -> None:
        """V = w·s is lowest at −ε sign(w), whatever the actor does there."""
        weight = torch.tensor([[1.0, -2.0, 0.5]])
        critic = nn.Linear(3, 1)
        critic.weight.data.copy_(weight)
        policy = VictimPolicy(nn.Linear(3, 4), Categorical(4), shape=(3,), critic=critic)
        attacked = make_attack("critic", epsilon=0.1)(
            policy, observations(5, 3, dtype=torch.float32), generator=generator()
        )
        torch.testing.assert_close(attacked.delta, (-0.1 * weight.sign()).expand(5, 3))

    def test_a_policy_without_a_critic_is_refused(self) -> None:
        with pytest.raises(ValueError, match="expected a critic of the agent's own observation"):
            make_attack("critic", epsilon=0.1)(
                linear_policy(torch.eye(3)), observations(5, 3, dtype=torch.float32), generator=generator()
            )


class TestSlopes:
    """What is written out is what autograd finds."""

    @pytest.mark.parametrize(
        "objective", [Margin(), TargetedMargin(torch.arange(20) % 2)], ids=["nearest", "targeted"]
    )
    @pytest.mark.parametrize("distribution", [Categorical(5), MultiCategorical((2, 3))], ids=str)
    def test_margins(self, objective: Margin, distribution: ActionDistribution) -> None:
        policy, obs = tanh_policy(distribution), observations(20)
        g = objective.bind(policy, Clean(policy(obs)))
        delta = 0.1 * observations(20, seed=1)
        value, gradient = value_and_gradient(g, obs, delta)
        point = delta.clone().requires_grad_(True)
        expected = g(obs + point)
        torch.testing.assert_close(value, expected.detach())
        torch.testing.assert_close(gradient, torch.autograd.grad(expected.sum(), point)[0])

    def test_masked_actions_have_none(self) -> None:
        network = tanh_policy(Categorical(5), dtype=torch.float32).module
        assert isinstance(network, nn.Module)
        legal = torch.rand(30, 5, generator=generator()) < 0.5
        legal[:, 0] = True
        policy = VictimPolicy(network, Categorical(5), shape=(6,), action_mask=legal)
        obs = observations(30, dtype=torch.float32)
        outputs, pull = policy.vjp(obs)
        point = obs.clone().requires_grad_(True)
        expected = policy(point)
        cotangent = torch.randn(30, 5, generator=generator(2))
        torch.testing.assert_close(outputs, expected.detach())
        torch.testing.assert_close(pull(cotangent), torch.autograd.grad(expected, point, cotangent)[0])
