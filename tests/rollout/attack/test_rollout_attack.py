"""The attack that rollouts are played under: where it pushes observations, of which copies, when."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from marl_aajr.core.ascent import ascend
from marl_aajr.core.distributions import Categorical, DiagGaussian
from marl_aajr.core.end_of_ascent import end_of_ascent
from marl_aajr.core.objectives import KL, Clean, Margin
from marl_aajr.core.policy import ModulePolicy
from marl_aajr.core.threat import PerturbationSet, PerturbationSets
from marl_aajr.rollout.attack.attackable import ActingRows
from marl_aajr.rollout.attack.attacked_copies import AttackedCopies
from marl_aajr.rollout.attack.attacked_metrics import AttackedDecisions, sums_of
from marl_aajr.rollout.attack.inner_gap import inner_gap
from marl_aajr.rollout.attack.rollout_attack import RolloutAttack
from marl_aajr.rollout.attack.training_attack import TrainingAttack


def policy(inputs: int = 4, actions: int = 3, *, seed: int = 0) -> ModulePolicy:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        layers = [nn.Linear(inputs, 16), nn.Tanh(), nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, actions)]
        return ModulePolicy(nn.Sequential(*layers), Categorical(actions))


def rows(count: int = 20, inputs: int = 4) -> Tensor:
    return torch.randn(count, inputs, generator=torch.Generator().manual_seed(1))


def drawn(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_a_linear_policy_is_pushed_to_the_corner_of_its_margin() -> None:
    weight = torch.tensor([[2.0, -1.0], [0.0, 3.0]])
    linear = nn.Linear(2, 2, bias=False)
    linear.weight.data = weight
    attack = RolloutAttack(epsilon=0.1)
    obs = torch.tensor([[1.0, 0.0]])  # the greedy action is the first
    found = attack.perturb(ModulePolicy(linear, Categorical(2)), obs, epsilon=0.1, generator=drawn())
    assert torch.allclose(found.delta, 0.1 * (weight[1] - weight[0]).sign())
    assert torch.equal(found.clean_outputs, linear(obs))


@pytest.mark.parametrize(
    "attack",
    [
        RolloutAttack(epsilon=0.2, share=0.1, steps=3, low=-1.0),
        RolloutAttack(epsilon=((0, 0.0), (5, 0.2)), objective="kl", norm="l2", scale=(1.0, 2.0, 1.0, 1.0)),
        RolloutAttack(epsilon=0.2, objective=lambda outputs, clean: outputs[:, 0], step="raw", step_size=0.1),
    ],
)
def test_an_evaluation_plays_the_same_ascent(attack: RolloutAttack) -> None:
    known = TrainingAttack.of(attack, env_steps=5)
    assert known is not None
    found = known(policy(), rows(), generator=drawn())
    wanted = attack.perturb(policy(), rows(), epsilon=0.2, generator=drawn()).delta
    assert torch.allclose(found.delta, wanted, atol=1e-6)
    assert found.value.sum() > found.clean_value.sum()


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_it_ends_where_the_whole_ascent_ends(norm: Any) -> None:
    sets = PerturbationSet(epsilon=0.2, norm=norm, low=-1.0, mask=(True, True, True, False))
    step: Any = "sign" if norm == "linf" else "normalized"
    how: dict[str, Any] = {"steps": 4, "step_size": 0.1, "step": step}
    whole = ascend(policy(), rows(), Margin(), sets, **how)
    found = end_of_ascent(policy(), rows(), Margin(), sets, **how, keep_path=True)
    assert torch.allclose(found.delta, whole.deltas[-1], atol=1e-6)
    assert torch.allclose(torch.stack(found.values), whole.values[:-1], atol=1e-5)
    assert torch.equal(torch.stack(found.deltas), whole.deltas[:-1])
    assert sets.contains(found.delta, rows()).all()


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("objective", ["margin", "kl"])
def test_rows_may_have_radii_of_their_own(objective: Any, norm: Any) -> None:
    attack = RolloutAttack(objective=objective, norm=norm, low=-2.0)
    obs, radii = rows(), torch.linspace(0.01, 0.3, 20).unsqueeze(1)
    found = attack.perturb(policy(), obs, epsilon=radii, generator=drawn())
    size = attack.perturbations(1.0).size(found.delta)
    assert (size <= radii.squeeze(1) * 1.0001).all()
    assert (size > 0.5 * radii.squeeze(1)).any()
    same = attack.perturb(policy(), obs, epsilon=torch.full((20, 1), 0.1), generator=drawn())
    one = attack.perturb(policy(), obs, epsilon=0.1, generator=drawn())
    assert torch.allclose(same.delta, one.delta, atol=1e-6)


def test_sets_of_rows_project_as_each_row_would() -> None:
    one = PerturbationSet(epsilon=1.0, norm="l2", scale=(1.0, 2.0), high=0.5)
    radii, obs = torch.tensor([[0.1], [0.4]]), torch.zeros(2, 2)
    delta = torch.tensor([[3.0, 1.0], [3.0, 1.0]])
    each = [replace(one, epsilon=r).project(delta[:1], obs[:1]) for r in (0.1, 0.4)]
    assert torch.allclose(PerturbationSets.of(one, radii).project(delta, obs), torch.cat(each), atol=1e-6)


def test_of_two_mirrored_starts_the_better_one_counts() -> None:
    attack = RolloutAttack(objective="kl", step_size=0.25)
    net, obs = policy(), rows()
    found = attack.perturb(net, obs, epsilon=0.3, generator=drawn())
    near = attack.perturbations(0.003).sample(obs, generator=drawn())
    how: dict[str, Any] = {"steps": 5, "step_size": 0.075, "step": "sign"}
    sets = attack.perturbations(0.3)
    sides = [end_of_ascent(net, obs, KL(), sets, start=start, **how).delta for start in (near, -near)]
    g = KL().bind(net, Clean(net(obs).detach()))
    assert torch.allclose(g(obs + found.delta), torch.stack([g(obs + d) for d in sides]).amax(0), atol=1e-5)


def test_the_policy_is_left_as_it_was() -> None:
    net = policy()
    attack = RolloutAttack(objective="kl")
    attack.perturb(net, rows(), epsilon=0.1, generator=drawn())
    assert all(p.grad is None for p in net.parameters())


def test_what_a_strong_adversary_finds_is_at_least_as_much() -> None:
    found = inner_gap(RolloutAttack(), policy(), rows(40), epsilon=0.3, generator=drawn())
    assert found["gap_rows"] == 40
    assert found["strong_gain"] >= found["trained_gain"] > 0
    own = inner_gap(RolloutAttack(), policy(), rows(40), epsilon=torch.full((40, 1), 0.3), generator=drawn())
    assert own["strong_gain"] == pytest.approx(float(found["strong_gain"]), rel=1e-3)
    assert 0 < found["monotone"] <= 40
    assert found["smoothness"] > 0
    kl = RolloutAttack(objective="kl")
    radii = torch.full((40, 1), 0.3)
    found = inner_gap(kl, policy(), rows(40), epsilon=radii, generator=drawn())
    assert found["strong_gain"] >= found["trained_gain"] > 0


def test_rows_in_which_nobody_is_attacked_are_not_measured() -> None:
    """Agents who have ended or wait see zeros, which tell nothing of the attack on the others."""
    attack, net, obs = RolloutAttack(), policy(), rows(40)
    hit = torch.arange(40) % 4 == 0
    ended = torch.where(hit.unsqueeze(-1), obs, torch.nan)
    alone = inner_gap(attack, net, obs[hit], epsilon=0.3, generator=drawn())
    decisions = AttackedDecisions()
    decisions.note(0, ActingRows(net, ended, lambda rows: rows), net(obs).detach(), 0.3, hit)
    found = sums_of(attack, decisions, net(obs).detach().unsqueeze(0), drawn())
    assert found["rows"] == found["gap_rows"] == 10
    for name in ("trained_gain", "strong_gain", "monotone", "smoothness"):
        assert float(found[name]) == pytest.approx(float(alone[name]), rel=1e-4), name
    nobody = inner_gap(attack, net, ended, epsilon=0.3, attacked=hit & ~hit, generator=drawn())
    assert nobody == {}


def copies(attack: RolloutAttack, count: int = 8) -> AttackedCopies:
    subject = AttackedCopies(attack, count, torch.device("cpu"))
    subject.generator.manual_seed(0)
    subject.begin_episodes(torch.ones(count, dtype=torch.bool))
    return subject


def test_a_share_is_the_first_copies_and_none_is_attacked_where_epsilon_is_0() -> None:
    subject = copies(RolloutAttack(share=0.5, epsilon=((0, 0), (10, 0), (20, 0.2))))
    subject.begin(5)
    assert (subject.epsilon, subject.reach) == (0.0, 0)
    subject.begin(15)
    assert subject.epsilon == pytest.approx(0.1)
    assert (subject.reach, subject.hit()) == (4, None)


def test_a_copy_is_attacked_from_the_beginning_of_an_episode_to_its_end() -> None:
    subject = copies(RolloutAttack(share=((0, 0.25), (10, 0.75))))
    subject.begin(0)
    assert subject.reach == 2
    nobody = torch.zeros(8, dtype=torch.bool)
    subject.begin_episodes(nobody)
    subject.begin(10)
    hit = subject.hit()
    assert hit is not None
    assert hit.tolist() == [True, True, False, False, False, False]
    subject.begin_episodes(nobody.index_fill(0, torch.tensor([3, 7]), True))
    hit = subject.hit()
    assert hit is not None
    assert hit.tolist() == [True, True, False, True, False, False]
    assert subject.ended().tolist() == [False, False]
    subject.begin_episodes(~nobody)
    assert subject.ended().tolist() == [False, False, True, True, False, True, *[False] * 4]
    subject.begin(10)
    assert (subject.reach, subject.hit()) == (6, None)


@pytest.mark.parametrize("falls_to", [0.5, 0.0])
def test_a_falling_share_lets_attacked_episodes_end_first(falls_to: float) -> None:
    """Also where a sample is one step, as in RLlib's runners, and where the share falls to nothing."""
    subject = copies(RolloutAttack(share=((0, 1.0), (10, falls_to))))
    nobody, kept = torch.zeros(8, dtype=torch.bool), int(8 * falls_to)
    subject.begin(0)
    assert (subject.reach, subject.hit()) == (8, None)
    for step in (10, 11, 12):
        subject.begin_episodes(nobody)
        subject.begin(step)
        assert subject.reach == 8
        assert subject.epsilon == 0.1
        assert subject.hit() is None or subject.hit().tolist() == [True] * 8  # type: ignore[union-attr]
        assert all(subject.has(copy) for copy in range(8))
    subject.begin_episodes(nobody.index_fill(0, torch.tensor([0, 6, 7]), True))
    assert subject.ended().tolist() == [True] * 3
    subject.begin(13)
    hit = subject.hit()
    assert hit is not None
    assert hit.tolist() == [kept > 0, *[True] * 5]
    subject.begin_episodes(~nobody)
    assert subject.ended().tolist() == [kept > 0, *[True] * 5, False, False]
    subject.begin(14)
    assert (subject.reach, subject.hit()) == (kept, None)
    assert subject.epsilon == (0.1 if kept else 0.0)


def test_m_of_every_t_steps_of_an_episode_are_attacked() -> None:
    subject = copies(RolloutAttack(attacked_steps=[2, 5]), 50)  # type: ignore[arg-type]
    subject.begin(0)
    seen = []
    for _ in range(10):
        seen.append(subject.hit())
        subject.begin_episodes(torch.zeros(50, dtype=torch.bool))
    hits = torch.stack(seen)  # type: ignore[arg-type]
    assert (hits[:5].sum(0) == 2).all()
    assert (hits[5:].sum(0) == 2).all()
    assert len({tuple(column) for column in hits[:5].T.tolist()}) > 5


def test_radii_are_drawn_for_each_episode_from_their_range() -> None:
    subject = copies(RolloutAttack(epsilon=0.2, epsilon_draw=(0.5, 1.0)), 100)
    subject.begin(0)
    first = subject.radius(1)
    assert isinstance(first, Tensor)
    assert first.shape == (100, 1)
    assert 0.1 <= float(first.min()) < 0.11
    assert 0.19 < float(first.max()) <= 0.2
    over = torch.arange(100) < 50
    subject.begin_episodes(over)
    second = subject.radius(2)
    assert isinstance(second, Tensor)
    assert torch.equal(second[:100], second[100:])
    assert torch.equal(second[:100].squeeze(1) == first.squeeze(1), ~over)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"share": 1.5}, r"expected a share in \[0, 1\], got 1.5"),
        ({"epsilon": -1}, "expected finite values ≥ 0 for epsilon"),
        ({"steps": 0}, "expected an integer steps ≥ 1, got 0"),
        ({"step_size": 0}, "expected a finite step_size > 0"),
        (
            {"step_size": "auto"},
            "expected a number as step_size of rollouts under attack, got 'auto': steps of",
        ),
        ({"step": "leap"}, "expected step out of auto, sign, normalized, raw; got 'leap'"),
        ({"objective": "surrogate"}, "needs no advantages"),
        ({"objective": "return"}, "expected objective out of"),
        ({"epsilon_draw": (0.5, 0.2)}, "expected epsilon_draw"),
        ({"epsilon_draw": [0.5]}, r"expected epsilon_draw \[a, b\].* got \[0.5\]"),
        ({"attacked_steps": [1, 2, 3]}, r"expected attacked_steps \[m, T\], got \[1, 2, 3\]"),
        ({"attacked_steps": (6, 5)}, r"expected an integer T in attacked_steps \[6, T\] ≥ 6, got 5"),
        ({"critic": "blind"}, "expected critic out of clean, seen; got 'blind'"),
        ({"norm": "l7"}, "expected norm out of"),
        ({"mask": (False, False)}, "leaves the adversary a feature"),
        ({"norm": "words", "epsilon": 1, "steps": 7}, "expected no steps with norm words, got 7: HotFlip"),
        ({"norm": "words", "epsilon": 1, "step_size": 0.1}, "expected no step_size with norm words, got 0.1"),
        ({"norm": "words", "epsilon": 1, "step": "sign"}, "expected no step with norm words, got sign"),
    ],
)
def test_settings_out_of_range_are_refused(settings: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RolloutAttack(**settings)


def test_a_share_that_gives_no_copy_is_refused() -> None:
    with pytest.raises(ValueError, match=r"at least one of the 4 copies of an env runner, got 0.1; raise it"):
        RolloutAttack(share=0.1).check_copies(4)
    RolloutAttack(share=0.0).check_copies(4)


def test_an_objective_must_fit_what_acts() -> None:
    with pytest.raises(ValueError, match="expected a categorical policy for the objective 'margin'"):
        RolloutAttack().check(DiagGaussian(2), offers=())
    with pytest.raises(ValueError, match="acts with a critic of the agent's own observation"):
        RolloutAttack(objective="value").check(Categorical(2), offers=())
    RolloutAttack(objective="value").check(Categorical(2), offers={"critic"})
