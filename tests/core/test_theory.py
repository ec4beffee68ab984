"""The paper's statements as checks: containment, strictness, monotone ascent, the step that overshoots."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from marl_aajr.core.ascent import Trajectory, ascend
from marl_aajr.core.diagnostics import curvature, diagnose, directional_gain, secant_curvature, spectral_norm
from marl_aajr.core.distributions import ActionDistribution, Categorical, DiagGaussian
from marl_aajr.core.objectives import KL, OBJECTIVES, Clean, Objective, Surrogate, make_objective
from marl_aajr.core.policy import ModulePolicy
from marl_aajr.core.threat import PerturbationSet
from tests.core.test_diagnostics import batch, sharp
from tests.networks import DISTRIBUTIONS, generator, linear_policy, observations, tanh_policy

ACTIVATIONS = (nn.Tanh, nn.ReLU, nn.SiLU, nn.Identity)


@st.composite
def networks(draw: st.DrawFn) -> tuple[ModulePolicy, Tensor]:
    """A random network with random weights of a random size, and observations for it."""
    features, width = draw(st.integers(1, 6)), draw(st.integers(1, 12))
    distribution: ActionDistribution = draw(st.sampled_from(DISTRIBUTIONS))
    activation = draw(st.sampled_from(ACTIVATIONS))
    sizes = [features, *[width] * draw(st.integers(0, 2)), distribution.num_inputs]
    noise = generator(draw(st.integers(0, 2**32 - 1)))
    layers: list[nn.Module] = []
    for i in range(len(sizes) - 1):
        layers += [nn.Linear(sizes[i], sizes[i + 1], dtype=torch.float64), activation()]
    network = nn.Sequential(*layers[:-1])
    scale = draw(st.floats(0.05, 3))
    for parameter in network.parameters():
        parameter.data.normal_(std=scale, generator=noise)
    obs = torch.empty(5, features, dtype=torch.float64).normal_(generator=noise)
    return ModulePolicy(network, distribution), obs


@settings(max_examples=30, deadline=None, derandomize=True)
@given(
    network=networks(),
    name=st.sampled_from(sorted(OBJECTIVES)),
    epsilon=st.floats(0.01, 2),
    seed=st.integers(0, 99),
)
def test_the_global_class_is_contained_in_the_adaptive_one(
    network: tuple[ModulePolicy, Tensor], name: str, epsilon: float, seed: int
) -> None:
    """‖J u‖ ≤ ‖J‖_op at every point of every trajectory, hence F_γ ⊆ F_ad(γ)."""
    policy, obs = network
    if name == "margin" and isinstance(policy.distribution, DiagGaussian):
        name = "kl"
    clean = batch(policy, obs, critic=lambda s: -s.square().sum(-1))
    trajectory = ascend(
        policy,
        obs,
        make_objective(name),
        PerturbationSet(epsilon=epsilon),
        steps=3,
        step_size=epsilon / 2,
        generator=generator(seed),
        clean=clean,
    )
    for delta, u in zip(trajectory.deltas[:-1], trajectory.directions, strict=True):
        gain, norm = directional_gain(policy, obs + delta, u), spectral_norm(policy, obs + delta)
        assert (gain <= norm * (1 + 1e-9) + 1e-12).all()


@pytest.mark.parametrize("a", [3.0, 100.0])
def test_the_containment_is_strict(a: float) -> None:
    """f(s) = diag(a, γ) s and an adversary that reads the second output: u = ±e₂, gain γ, and ‖J‖_op = a."""
    gamma = 0.5
    policy = linear_policy(torch.diag(torch.tensor([a, gamma], dtype=torch.float64)))

    def second(outputs: Tensor, clean: Clean) -> Tensor:
        return outputs[..., 1].square()

    obs, threat = observations(6, 2), PerturbationSet(epsilon=0.2)
    trajectory = ascend(policy, obs, make_objective(second), threat, steps=3, step_size=0.1)
    torch.testing.assert_close(trajectory.directions.abs()[..., 1], torch.ones(3, 6, dtype=torch.float64))
    gains = torch.stack([directional_gain(policy, obs, u) for u in trajectory.directions])
    assert (gains <= gamma * (1 + 1e-12)).all()  # in F_ad(γ)
    assert (spectral_norm(policy, obs) >= a * (1 - 1e-12)).all()  # and far from F_γ


def smoothness_along(
    policy: ModulePolicy, objective: Objective, clean: Clean, obs: Tensor, path: Trajectory
) -> Tensor:
    """The largest |curvature| along the displacement d_t on its segment, `[K, B]`."""
    found = []
    for first, second in zip(path.deltas[:-1], path.deltas[1:], strict=True):
        d = torch.nn.functional.normalize(second - first, dim=-1)
        points = [obs + first + share * (second - first) for share in torch.linspace(0, 1, 21)]
        bent = [curvature(policy, point, objective, d, clean=clean).abs() for point in points]
        found.append(torch.stack(bent).amax(0))
    return torch.stack(found)


@pytest.mark.parametrize("distribution", DISTRIBUTIONS, ids=repr)
@pytest.mark.parametrize("objective", [KL(), Surrogate()], ids=repr)
@pytest.mark.parametrize("step_size", [0.05, 0.3, 10.0])
def test_small_steps_climb_by_what_the_theory_says(
    distribution: ActionDistribution, objective: Objective, step_size: float
) -> None:
    """g(δ_{t+1}) ≥ g(δ_t) + ‖d_t‖²/(2η) wherever η ≤ 1/L on the segment, projected displacements included."""
    policy, obs = sharp(tanh_policy(distribution)), observations(60)
    clean, threat = batch(policy, obs), PerturbationSet(epsilon=0.3)
    path = ascend(
        policy,
        obs,
        objective,
        threat,
        steps=4,
        step_size=step_size,
        step="raw",
        generator=generator(),
        clean=clean,
    )
    allowed = step_size <= 0.999 / smoothness_along(policy, objective, clean, obs, path)
    rise = path.values[1:] - path.values[:-1]
    promised = (path.deltas[1:] - path.deltas[:-1]).square().sum(-1) / (2 * step_size)
    climbed = rise >= promised - 1e-12
    assert climbed[allowed].all()
    assert ((path.deltas[1:].abs() == 0.3).any(-1) & allowed).any()
    if step_size == 10.0:
        assert not climbed.all()  # the condition is not idle: beyond it steps do fail


def overshoot(times: float) -> tuple[Tensor, float, Tensor]:
    """A step of times/L on the concave quadratic of a linear Gaussian mean whose action was bad.

    With Â < 0, g = −Â log π = −|Â| (a − w (s + δ))²/2σ² + const: |curvature| L = |Â| w²/σ² everywhere.
    """
    w, sigma = 1.5, 0.7
    weight = torch.tensor([[w], [0.0]], dtype=torch.float64)
    bias = torch.tensor([0.0, torch.tensor(sigma).log().item()], dtype=torch.float64)
    policy = linear_policy(weight, DiagGaussian(1), bias)
    obs, actions = observations(20, 1), 0.2 * observations(20, 1, seed=2)
    advantages = -torch.ones(20, dtype=torch.float64)
    clean = Clean(policy(obs).detach(), actions, advantages)
    bound = w**2 / torch.tensor(sigma).exp().log().square().item()
    threat = PerturbationSet(epsilon=1e3)
    path = ascend(policy, obs, Surrogate(), threat, steps=3, step_size=times / bound, step="raw", clean=clean)
    return path.monotone, bound, secant_curvature(path, threat)


@pytest.mark.parametrize(("times", "climbs"), [(1.0, True), (1.95, True), (2.05, False), (4.0, False)])
def test_a_step_beyond_two_over_l_overshoots(times: float, climbs: bool) -> None:
    """The failing case that must fail: every row and step falls for η > 2/L, and none for η ≤ 2/L."""
    monotone, bound, secant = overshoot(times)
    assert monotone.all() if climbs else not monotone.any()
    defined = ~secant.isnan() & (secant != 0)
    if times != 1.0:  # which lands on the maximum, where nothing moves any more
        assert defined.all()
    assert secant[defined].tolist() == pytest.approx([-bound] * int(defined.sum()), rel=1e-3)


def test_a_linear_softmax_under_kl_climbs_at_any_step() -> None:
    """ℓ is convex and f has no curvature of its own: no step overshoots, however large."""
    policy, obs = linear_policy(observations(5, 6, seed=3), Categorical(5)), observations(40)
    diagnosis = diagnose(
        policy, obs, KL(), PerturbationSet(epsilon=2.0), steps=3, step_size=50.0, generator=generator()
    )
    assert diagnosis.monotone_fraction == 1
    assert (diagnosis.curvature >= 0).all()
