"""Closed forms, and the order in which attacks must come: noise, one step, many steps, more starts."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch

from marl_aajr.attacks import FGSM, PGD, MarginPGD, UniformNoise, make_attack
from marl_aajr.core.ascent import ascend
from marl_aajr.core.distributions import ActionDistribution, Categorical, DiagGaussian, MultiCategorical
from marl_aajr.core.objectives import KL
from marl_aajr.core.threat import PerturbationSet
from marl_aajr.regularizers import AAJR
from marl_aajr.victims import VictimPolicy
from tests.adversaries.opponents import NAMES, ready
from tests.networks import generator, linear_policy, observations, tanh_policy

BALL = PerturbationSet(epsilon=0.1)


class TestClosedForms:
    """A linear policy's worst case is known, and one step finds it."""

    weight = torch.tensor([[1.0, -2.0, 0.5], [0.3, 0.4, -1.0]], dtype=torch.float64)
    obs = observations(9, 3)

    @pytest.mark.parametrize(("norm", "dual"), [("linf", 1.0), ("l2", 2.0)])
    @pytest.mark.parametrize("name", ["fgsm", "pgd-margin"])
    def test_margin_rises_by_epsilon_times_the_dual_norm(self, norm: str, dual: float, name: str) -> None:
        """Two actions: g(δ) = (w_b − w_a)·(s + δ), so max g = g(0) + ε ‖w_b − w_a‖_*."""
        attacked = make_attack(name, epsilon=0.1, norm=norm)(
            linear_policy(self.weight), self.obs, generator=generator()
        )
        difference = torch.linalg.vector_norm(self.weight[0] - self.weight[1], ord=dual)
        torch.testing.assert_close(attacked.value - attacked.clean_value, (0.1 * difference).expand(9))

    @pytest.mark.parametrize(("norm", "dual"), [("linf", 1.0), ("l2", 2.0)])
    def test_kl_of_a_gaussian_mean(self, norm: str, dual: float) -> None:
        """One action, σ constant: KL = ½ (w·δ)² / σ², so max KL = ½ (ε ‖w‖_*)² / σ²."""
        log_std = torch.tensor([0.0, 0.7], dtype=torch.float64)  # (mean, log σ)
        weight = torch.stack([self.weight[0], torch.zeros(3, dtype=torch.float64)])
        policy = linear_policy(weight, DiagGaussian(1), bias=log_std)
        attack = make_attack("pgd", epsilon=0.1, norm=norm, step_size=0.25)
        attacked = attack(policy, self.obs, generator=generator())
        worst = 0.1 * torch.linalg.vector_norm(self.weight[0], ord=dual)
        expected = 0.5 * (worst * torch.exp(-log_std[1])).square()
        torch.testing.assert_close(attacked.value, expected.expand(9), rtol=1e-4, atol=0)

    def test_a_feature_that_may_not_be_touched_does_not_count(self) -> None:
        attacked = make_attack("fgsm", epsilon=0.1, mask=(True, False, True))(
            linear_policy(self.weight), self.obs, generator=generator()
        )
        free = (self.weight[0] - self.weight[1])[[0, 2]].abs().sum()
        torch.testing.assert_close(attacked.value - attacked.clean_value, (0.1 * free).expand(9))


def values(name: str, distribution: ActionDistribution, seed: int, **settings: Any) -> torch.Tensor:
    attack = make_attack(name, epsilon=0.1, **settings)
    policy = tanh_policy(distribution, seed=seed)
    return attack(policy, observations(200, seed=seed), generator=generator(seed)).value


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    ("distribution", "objective"),
    [
        (Categorical(5), "margin"),
        (Categorical(5), "kl"),
        (MultiCategorical((2, 3)), "margin"),
        (DiagGaussian(3), "kl"),
    ],
    ids=str,
)
def test_noise_one_step_many_steps_row_by_row(
    distribution: ActionDistribution, objective: str, seed: int
) -> None:
    noise = values("noise", distribution, seed, objective=objective)
    one = values("fgsm", distribution, seed, objective=objective)
    many = values("pgd", distribution, seed, objective=objective, restarts=3)
    strong = values("pgd-strong", distribution, seed, objective=objective)
    slack = 0.03 * strong.abs() + 1e-6  # the nudged start costs ten steps of ε / 10 up to 1 % of the way
    assert (one >= noise - slack).float().mean() > 0.95
    assert noise.mean() < one.mean()
    assert (many >= one - slack).all()
    assert (strong >= many - slack).float().mean() > 0.98
    assert strong.mean() > many.mean()


def test_pgd_with_one_full_step_is_fgsm() -> None:
    for distribution in (Categorical(5), DiagGaussian(3)):
        policy, obs = tanh_policy(distribution), observations(50)
        single = PGD(perturbations=BALL, objective="auto", steps=1, step_size=1.0, restarts=1)
        one = FGSM(perturbations=BALL)
        assert torch.equal(
            single(policy, obs, generator=generator()).delta, one(policy, obs, generator=generator()).delta
        )


def test_fgsm_is_epsilon_times_the_sign_of_the_margins_gradient() -> None:
    policy, obs = tanh_policy(Categorical(5)), observations(50)
    best = policy(obs).argmax(-1)
    probed = obs.clone().requires_grad_(True)
    logits = policy(probed)
    rivals = logits.scatter(-1, best[:, None], -torch.inf).amax(-1)
    (gradient,) = torch.autograd.grad((rivals - logits.gather(-1, best[:, None])[:, 0]).sum(), probed)
    attacked = FGSM(perturbations=BALL)(policy, obs, generator=generator())
    moved = attacked.value > attacked.clean_value
    assert moved.float().mean() > 0.9
    assert torch.equal(attacked.delta[moved], 0.1 * gradient.sign()[moved])


def test_more_restarts_are_never_weaker() -> None:
    """Rows only ever improve: the first trajectories are the same, and the best is kept."""
    runs = [values("pgd", Categorical(5), 0, restarts=k) for k in (1, 2, 3, 6)]
    for fewer, more in pairwise(runs):
        assert (more >= fewer).all()


def test_the_mirrored_start_finds_the_other_side_of_the_valley() -> None:
    """One feature: up makes the policy surer of its action, down changes its mind."""
    weight = torch.tensor([[4.0], [-4.0]], dtype=torch.float64)
    policy = linear_policy(weight)
    obs = torch.full((200, 1), 0.2, dtype=torch.float64)
    ball = PerturbationSet(epsilon=0.3)
    single = PGD(perturbations=ball, restarts=1)(policy, obs, generator=generator())
    both = PGD(perturbations=ball, restarts=2)(policy, obs, generator=generator())
    assert 0.3 < single.success.float().mean() < 0.7
    assert both.success.all()


def test_the_best_iterate_is_kept_not_the_last() -> None:
    """Steps of twice the radius overshoot and come back; the value never falls below the start's."""
    policy, obs = tanh_policy(Categorical(5), features=2), observations(300, 2)
    attack = MarginPGD(perturbations=PerturbationSet(epsilon=3.0), step_size=2.0, steps=7)
    attacked = attack(policy, obs, generator=generator())
    assert (attacked.value >= attacked.clean_value).all()


@pytest.mark.parametrize("seed", range(3))
def test_the_default_is_at_least_as_strong_as_the_attack_in_training(seed: int) -> None:
    trained = AAJR(epsilon=0.1)
    assert isinstance(trained.step_size, float)
    policy, obs = tanh_policy(Categorical(5), seed=seed), observations(300, seed=seed)
    inner = ascend(
        policy,
        obs,
        KL(),
        trained.perturbations(0),
        steps=trained.steps,
        step_size=trained.step_size * 0.1,
        generator=generator(seed),
    )
    attacked = make_attack("pgd", epsilon=0.1)(policy, obs, generator=generator(seed))
    assert attacked.value.mean() > inner.values[-1].mean()


def test_a_huge_epsilon_changes_every_action() -> None:
    weight = observations(5, 6, seed=3)
    policy, obs = linear_policy(weight), observations(200)
    rates = [
        make_attack("pgd-strong", epsilon=epsilon)(policy, obs, generator=generator()).success.float().mean()
        for epsilon in (0.01, 0.1, 1.0, 100.0)
    ]
    assert rates == sorted(rates)
    assert rates[-1] == 1.0


@pytest.mark.parametrize("name", NAMES)
def test_forbidden_actions_are_neither_used_nor_attacked(name: str) -> None:
    network = tanh_policy(Categorical(5), dtype=torch.float32).module
    assert isinstance(network, torch.nn.Module)
    obs = observations(200, dtype=torch.float32)
    legal = torch.rand(200, 5, generator=generator()) < 0.4
    legal[:, 0] = True
    critic = torch.nn.Linear(6, 1)
    policy = VictimPolicy(network, Categorical(5), shape=(6,), action_mask=legal, critic=critic)
    attack = ready(name, Categorical(5), epsilon=1.0, dtype=torch.float32)
    attacked = attack(policy, obs, generator=generator())
    actions = attacked.outputs.argmax(-1)
    assert legal.gather(-1, actions[:, None]).all()
    alone = legal.sum(-1) == 1
    assert alone.any()
    assert not attacked.success[alone].any()
    if attack.access != "none" and attack.objective != "value":
        assert attacked.success[~alone].float().mean() > 0.5


def test_noise_fills_the_set() -> None:
    attacked = UniformNoise(perturbations=BALL)(
        tanh_policy(Categorical(5)), observations(2000), generator=generator()
    )
    assert attacked.delta.abs().max().item() == pytest.approx(0.1, rel=1e-2)
    assert attacked.delta.mean().item() == pytest.approx(0.0, abs=2e-3)
    assert attacked.delta.std().item() == pytest.approx(0.1 / 3**0.5, rel=2e-2)
