"""Auto-PGD against a second reading of the paper, one row at a time and in plain numbers."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from marl_aajr.attacks import make_attack
from marl_aajr.attacks.auto_pgd import auto_ascend, checkpoints
from marl_aajr.core.distributions import Categorical
from marl_aajr.core.threat import PerturbationSet
from tests.networks import generator, linear_policy, observations, tanh_policy

Function = Callable[[Tensor], Tensor]


def by_the_book(
    g: Function, start: Tensor, *, epsilon: float, steps: int
) -> tuple[Tensor, float, list[float]]:
    """Algorithm 1 of arXiv 2003.01690 for one row in the L∞ ball: best point, its value, step sizes."""

    def look(x: Tensor) -> tuple[float, Tensor]:
        x = x.clone().requires_grad_(True)
        value = g(x[None])[0]
        return float(value.detach()), torch.autograd.grad(value, x)[0]

    def clip(x: Tensor) -> Tensor:
        return x.clamp(-epsilon, epsilon)

    w = [math.ceil(p * steps - 1e-9) for p in (0.22, 0.41, 0.57, 0.70, 0.80, 0.87, 0.93, 0.99)]
    old, x = start, start
    f, slope = look(x)
    f_max, x_max, slope_max = f, x, slope
    eta, etas = 2 * epsilon, [2 * epsilon]
    eta_then, f_max_then, rises, since = eta, f_max, 0, 0
    for k in range(steps):
        z = clip(x + eta * slope.sign())
        alpha = 0.75 if k else 1.0
        old, x = x, clip(x + alpha * (z - x) + (1 - alpha) * (x - old))
        f_before = f
        f, slope = look(x)
        rises, since = rises + (f > f_before), since + 1
        if f > f_max:
            f_max, x_max, slope_max = f, x, slope
        if k + 1 in w:
            condition_1 = rises < 0.75 * since
            condition_2 = eta == eta_then and f_max == f_max_then
            eta_then, f_max_then = eta, f_max
            if condition_1 or condition_2:
                eta /= 2
                f, x, slope = f_max, x_max, slope_max
            rises = since = 0
        etas.append(eta)
    return x_max, f_max, etas


def bumps(obs: Tensor) -> Tensor:
    """Many hills: a ridge that long steps jump over, with its top inside the ball."""
    scale = torch.tensor([9.0, 23.0, 5.0], dtype=obs.dtype)
    return (torch.sin(scale * obs) - (obs * scale / 3).square()).sum(-1)


def test_checkpoints_are_the_papers() -> None:
    assert checkpoints(100) == [22, 41, 57, 70, 80, 87, 93, 99]
    assert checkpoints(10) == [3, 5, 6, 7, 8, 9, 10]


@pytest.mark.parametrize("steps", [1, 7, 20, 100])
def test_row_by_row_it_is_the_papers_algorithm(steps: int) -> None:
    starts = observations(40, 3) / 3
    obs = torch.zeros_like(starts)
    ball = PerturbationSet(epsilon=0.9)
    best, value = auto_ascend(bumps, obs, ball, steps=steps, start=starts)
    halved = 0
    for i, start in enumerate(ball.project(starts, obs)):
        x, f, etas = by_the_book(bumps, start, epsilon=0.9, steps=steps)
        torch.testing.assert_close(best[i], x)
        assert value[i].item() == pytest.approx(f)
        halved += etas[-1] < etas[0]
    assert halved > 30 or steps == 1, "the interesting part must have been reached"


class Script:
    """An objective that says its lines: the k-th value with the k-th slope, wherever it is asked."""

    def __init__(self, values: list[float]) -> None:
        self.lines = iter((value, 1.0 if k % 3 else -0.5) for k, value in enumerate(values))

    def __call__(self, obs: Tensor) -> Tensor:
        value, slope = next(self.lines)
        return value + slope * (obs - obs.detach()).sum(-1)


@pytest.mark.parametrize(
    "early",
    [
        pytest.param([0, 10, -5, -4, -3, -2, -1, 0, 1, 2], id="rising, but the best is long past"),
        pytest.param([0, 1, 2, 3, 4, 5, 6, 7, 8, 9], id="all is well"),
        pytest.param([0, 9, 8, 7, 6, 5, 4, 3, 2, 1], id="falling"),
    ],
)
def test_each_condition_halves_as_in_the_paper(early: list[float]) -> None:
    """Checkpoints of 20 steps are at 5 and 9; from step 10 on every point is the best, so it shows itself."""
    lines = [*map(float, early), *(20.0 + k for k in range(11))]
    start = torch.full((1, 1), 0.1, dtype=torch.float64)
    best, value = auto_ascend(
        Script(lines), torch.zeros_like(start), PerturbationSet(epsilon=1.0), steps=20, start=start
    )
    x, f, etas = by_the_book(Script(lines), start[0], epsilon=1.0, steps=20)
    torch.testing.assert_close(best[0], x)
    assert value.item() == f == 30.0
    assert (etas[10] < etas[0]) == (early[-1] != 9.0)


def test_it_finds_the_top_that_long_steps_jump_over() -> None:
    """A narrow hill at 0.3 in a ball of radius 1: steps of ε/4 cannot stand on it, halved ones can."""

    def hill(obs: Tensor) -> Tensor:
        return -(obs - 0.3).abs().sum(-1)

    start = torch.zeros(1, 2, dtype=torch.float64)
    _, value = auto_ascend(hill, start, PerturbationSet(epsilon=1.0), steps=60, start=start)
    assert value.item() > -0.02


@pytest.mark.parametrize(("norm", "scale"), [("linf", (1.0, 2.0, 0.5)), ("l2", (1.0, 1.0, 1.0))])
def test_a_linear_margin_is_maximised_exactly(norm: str, scale: tuple[float, ...]) -> None:
    weight = torch.tensor([[1.0, -2.0, 0.5], [0.3, 0.4, -1.0]], dtype=torch.float64)
    attack = make_attack("pgd-strong-margin", epsilon=0.1, norm=norm, scale=scale, restarts=1)
    attacked = attack(linear_policy(weight), observations(9, 3), generator=generator())
    steep = (weight[0] - weight[1]) * torch.tensor(scale)
    dual = torch.linalg.vector_norm(steep, ord=1.0 if norm == "linf" else 2.0)
    torch.testing.assert_close(attacked.value - attacked.clean_value, (0.1 * dual).expand(9))


def test_it_beats_fixed_steps_on_average() -> None:
    policy, obs = tanh_policy(Categorical(5)), observations(300)
    fixed = make_attack("pgd", epsilon=1.0, objective="kl", restarts=2, steps=20, step_size=0.1)
    adaptive = make_attack("pgd-strong", epsilon=1.0, restarts=2)
    values = [attack(policy, obs, generator=generator()).value.mean() for attack in (fixed, adaptive)]
    assert values[1] > values[0]


def test_a_step_of_your_own_is_refused() -> None:
    with pytest.raises(ValueError, match=r"no step_size and step for pgd-strong, which adapts them.*use pgd"):
        make_attack("pgd-strong", epsilon=0.1, step_size=0.25)
