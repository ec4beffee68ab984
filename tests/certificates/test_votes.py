"""Certificates of votes: where the boundary is known, against what is planted, and over whole episodes."""

from __future__ import annotations

from math import sqrt
from pathlib import Path
from typing import Any

import pytest
import torch
from scipy.special import ndtr, ndtri
from scipy.stats import binom
from torch import Tensor, nn

from marl_aajr.certificates import Certificate, ContradictionError, certify, votes
from marl_aajr.certificates.decisions import Decisions
from marl_aajr.certificates.sandwich import Changes
from marl_aajr.certificates.votes import VoteBounds, VotedDecisions, together
from marl_aajr.cli.app import main
from marl_aajr.core.threat import PerturbationSet
from marl_aajr.victims import ObservationFilter, Recurrent, Smoothing, smoothed
from tests.certificates.policies import network, team
from tests.certificates.test_certify import Cheat
from tests.victims.teams import victim
from tests.victims.test_smoothing import line

DIRECTION = [3.0, 4.0, 0.0, 0.0, 0.0, 0.0]
QUICK: dict[str, Any] = {"episodes": 2, "attacks": ["pgd-margin"], "smoothing": "0.1:20", "epsilons": [0.1]}


def voted(
    module: nn.Module, noise: Smoothing, inputs: Tensor, *, kind: str = "discrete", samples: int = 20_000
) -> VoteBounds:
    policy = smoothed(victim(kind, modules={"shared": module}), noise).policy("a_0")
    with torch.no_grad():
        outputs = policy(inputs)
    places = torch.stack([torch.zeros(len(inputs)), torch.zeros(len(inputs)), torch.arange(len(inputs))], -1)
    return VoteBounds(
        Decisions(policy, inputs, outputs, ["a_0"], places.long()), samples, alpha=0.001, seed=1
    )


def largest(bounds: VoteBounds, **limits: Any) -> Tensor:
    return bounds.largest(bounds.counts(), PerturbationSet(epsilon=1.0, **limits))


def test_the_radius_is_the_distance_to_the_boundary_or_a_little_less() -> None:
    """Between two actions of logits w·s and 0; at most what so many samples can say."""
    inputs = torch.tensor([[0.02], [0.1], [-0.1], [9.0]]) * torch.tensor([[1.0, 1.0, 0.0, 0.0, 0.0, 0.0]])
    distance = inputs.sum(-1).abs() * 3.5 / 5
    bounds = voted(line(DIRECTION), Smoothing(0.1, 100), inputs)
    found = largest(bounds, norm="l2")
    assert (found <= distance).all()
    torch.testing.assert_close(found[:3], distance[:3].double(), rtol=0.1, atol=0.003)
    assert found[3].item() == pytest.approx(bounds.reach(PerturbationSet(epsilon=1.0, norm="l2")))
    assert 0.3 < found[3] < 0.4  # 3.4 σ: Φ⁻¹(0.001^(1 / 20,000))
    # Around an L∞ ball of ε is an L2 ball of ε √6.
    torch.testing.assert_close(largest(bounds), found / sqrt(6))
    # One of features 0 and 1 alone, in units of 2: L2 balls are ε long, whatever their mask.
    torch.testing.assert_close(largest(bounds, mask=(True,) + (False,) * 5), found)
    torch.testing.assert_close(largest(bounds, norm="l2", scale=(2.0,) * 6), found / 2)


class Stripes(nn.Module):
    """Action 1 where |x| < 0.065, action 0 below and action 2 above."""

    def forward(self, obs: Tensor) -> Tensor:
        x = obs[..., :1]
        never = torch.full_like(x, -99.0)
        return torch.cat([-0.065 - x, 0.065 - x.abs(), x - 0.065, never, never], -1)


def test_a_choice_with_less_than_half_of_the_votes_is_certified_over_its_strongest_rival() -> None:
    """The vote for the middle stripe turns where the next one gets as many."""
    above = 1 - ndtr(0.65)
    share = 1 - 2 * above
    assert share < 0.5
    moved = torch.linspace(0, 2, 20_001, dtype=torch.float64)
    there = 1 - torch.special.ndtr(0.65 - moved)
    middle = 1 - there - torch.special.ndtr(-0.65 - moved)
    turns = 0.1 * moved[(middle <= there)][0].item()
    found = largest(voted(Stripes(), Smoothing(0.1, 1000), torch.zeros(1, 6)), norm="l2").item()
    assert found == pytest.approx(0.05 * (ndtri(share) - ndtri(above)), rel=0.15)
    assert 0 < found < turns


def test_what_has_no_noise_is_not_certified_and_units_of_noise_count() -> None:
    inputs = torch.tensor([[0.1, 0.1, 0.0, 0.0, 0.0, 0.0]])
    half = Smoothing(0.1, 100, mask=(False, True, True, True, True, True))
    assert largest(voted(line(DIRECTION), half, inputs)).item() == 0
    reached = largest(voted(line(DIRECTION), half, inputs), norm="l2", mask=(False, *[True] * 5)).item()
    assert reached == pytest.approx(0.7 / 4, rel=0.1)
    wide = Smoothing(0.05, 100, scale=(2.0,) * 6)
    found, same = (largest(voted(line(DIRECTION), noise, inputs)) for noise in (wide, Smoothing(0.1, 100)))
    torch.testing.assert_close(found, same)


def test_the_bound_is_clopper_and_pearsons() -> None:
    """P(Bin(n, p̲) ≥ k) = α, and p̲ = α^(1/n) where all agree."""
    counts = torch.tensor([0, 1, 700, 1000])
    found = votes._lower_bound(counts, 1000, 0.001).tolist()
    assert found[0] == 0
    assert found[3] == pytest.approx(0.001 ** (1 / 1000))
    for count, share in zip(counts.tolist()[1:], found[1:], strict=True):
        assert binom.sf(count - 1, 1000, share) == pytest.approx(0.001)


def test_all_bounds_of_a_decision_share_its_alpha() -> None:
    """Half of it is the choice's, and each of four others has an eighth."""
    bounds = voted(line(DIRECTION), Smoothing(0.1, 9), torch.zeros(1, 6), samples=1000)
    least = votes._lower_bound(torch.tensor([450]), 1000, 0.001 / 2)
    most = 1 - votes._lower_bound(torch.tensor([1000 - 200]), 1000, 0.001 / 8)
    expected = (torch.special.ndtri(least) - torch.special.ndtri(most)) / 2
    torch.testing.assert_close(bounds._leads(torch.tensor([[[450, 200]]]), 0.001), expected.unsqueeze(0))


def test_votes_that_turn_by_chance_contradict_nothing() -> None:
    inputs = torch.tensor([[0.1, 0.1, 0.0, 0.0, 0.0, 0.0]]).repeat(2, 1)
    bounds = voted(line(DIRECTION), Smoothing(0.1, 100), inputs)
    changes = Changes(PerturbationSet(epsilon=1.0), torch.tensor([True, True]))
    changes.deltas |= {0: torch.zeros(6), 1: -2 * inputs[1]}
    certified = torch.full((2,), 0.5)
    assert bounds.confirmed(changes, certified, epsilon=0.5).changed.tolist() == [False, True]
    assert not bounds.confirmed(changes, certified, epsilon=0.6).changed.any()


def test_box_actions_are_certified_by_percentiles() -> None:
    """A mean of w·s moves by σ_π within σ_π / ‖w‖, and by ε ‖w‖ at most; each bound is a little worse."""
    layer = nn.Linear(6, 4)
    layer.weight.data = torch.zeros(4, 6)
    layer.weight.data[0] = torch.tensor(DIRECTION)
    layer.bias.data = torch.tensor([0.3, 0.2, -1.0, 0.5])
    bounds = voted(layer, Smoothing(0.1, 999), torch.randn(3, 6), kind="box")
    exact = torch.tensor(-1.0).exp().item() / 5
    found = largest(bounds, norm="l2")
    assert (found < exact * 1.1).all()
    assert (found > exact * 0.6).all()
    sides = bounds.counts()[..., 0] / bounds.samples
    torch.testing.assert_close(
        sides[:, [0, 2]], torch.full((3, 2), float(ndtr(exact * 5 / 0.5))), rtol=0, atol=0.03
    )
    moves = bounds.change(PerturbationSet(epsilon=0.05, norm="l2"))
    assert moves is not None
    assert (moves > 0.25 * 0.9).all()
    assert (moves < 0.25 * 1.6).all()
    assert bounds.change(PerturbationSet(epsilon=1.0, norm="l2")) is None
    discrete = voted(line(DIRECTION), Smoothing(0.1, 9), torch.randn(3, 6), samples=50)
    assert discrete.change(PerturbationSet(epsilon=0.05)) is None


def test_of_several_actions_the_least_counts() -> None:
    layer = nn.Linear(6, 5)
    layer.weight.data = torch.zeros(5, 6)
    layer.weight.data[0, 0] = layer.weight.data[2, 1] = 1.0
    layer.bias.data = torch.tensor([0.0, 0.0, 0.0, 0.0, -9.0])
    inputs = torch.tensor([[0.2, 0.05, 0.0, 0.0, 0.0, 0.0], [0.05, 0.2, 0.0, 0.0, 0.0, 0.0]])
    found = largest(voted(layer, Smoothing(0.1, 100), inputs, kind="multi"), norm="l2")
    torch.testing.assert_close(found, torch.full((2,), 0.05, dtype=torch.float64), rtol=0.1, atol=0)


def test_a_whole_step_is_as_sure_as_its_least_sure_agent_at_its_part_of_alpha() -> None:
    inputs = torch.tensor([[0.02], [0.1]]) * torch.tensor([[1.0, 1.0, 0.0, 0.0, 0.0, 0.0]])
    inside = PerturbationSet(epsilon=1.0, norm="l2")
    groups = [voted(line(DIRECTION), Smoothing(0.1, 100), x, samples=1000) for x in (inputs, inputs.flip(0))]
    each = [VotedDecisions(bounds, bounds.counts(), inside) for bounds in groups]
    found, one, two = together(each), each[0].largest(agents=2), each[1].largest(agents=2)
    assert found is not None
    torch.testing.assert_close(found, torch.minimum(one, two))
    assert (one < each[0].largest()).all()
    assert together([]) is None


def test_a_certificate_of_votes_says_what_is_sure_and_what_it_costs(tmp_path: Path, capsys: Any) -> None:
    """Of a network that bounds cannot certify."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = Recurrent(nn.Linear(18, 8), nn.LSTM(8, 8), nn.Linear(8, 5, bias=False))
    saved = team(module).save(tmp_path / "victim")
    words = ["--episodes", "2", "--attack", "pgd-margin", "--epsilon", "0.01", "--epsilon", "3"]
    with pytest.raises(SystemExit) as ended:
        main(["certify", str(saved), "--smoothing", "0.2:20", "--samples", "200", "--norm", "l2", *words])
    out, err = capsys.readouterr()
    assert ended.value.code == 0, err
    assert "whole steps" in out
    assert "20 passes for each decision" in " ".join(out.split())
    assert "All of it took" in out
    assert "30,000 in all" in " ".join(out.split())
    (file,) = tmp_path.glob("victim-certificates/*.json")
    found = Certificate.model_validate_json(file.read_text())
    small, large = found.sizes
    assert found.votes is not None
    assert found.votes.smoothing == Smoothing(0.2, 20)
    assert (found.votes.samples, found.votes.alpha) == (200, 0.001)
    assert small.interval is None
    assert small.whole_steps is not None
    assert 0 < small.whole_steps <= small.certified
    assert small.certified > large.certified
    assert small.attacked <= large.attacked
    assert found.share(0.01) == small.certified
    assert found.votes.abstained == sum(size == 0 for size in found.largest) / found.decisions
    assert max(found.largest) <= found.reach
    again = certify(
        saved,
        smoothing="0.2:20",
        samples=200,
        norm="l2",
        epsilons=[0.01, 3],
        **{key: QUICK[key] for key in ("episodes", "attacks")},
    )
    assert again == found


def test_raw_sizes_go_through_the_filter_of_a_team_that_votes() -> None:
    """Noise is in units of the environment, too, so that both are halved."""
    mean, std = torch.zeros(18, dtype=torch.float64), torch.full((18,), 2.0)
    halved = ObservationFilter(mean=mean, std=std, clip=None)
    victim = team(network(5), filters={f"agent_{i}": halved for i in range(3)})
    raw = certify(victim, units="raw", norm="l2", **QUICK)
    behind = certify(victim, units="network", norm="l2", **{**QUICK, "epsilons": [0.05]})
    assert raw.sizes[0].certified == behind.sizes[0].certified > 0
    torch.testing.assert_close(torch.tensor(raw.largest), 2 * torch.tensor(behind.largest), rtol=1e-4, atol=0)


def test_a_planted_wrong_bound_of_votes_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    honest = VoteBounds.largest
    monkeypatch.setattr(VoteBounds, "largest", lambda *given, **how: honest(*given, **how) + 0.5)
    with pytest.raises(ContradictionError, match=r"step \d+ of episode \d is certified .* it is the bound"):
        certify(team(), **{**QUICK, "epsilons": [0.3]})


def test_a_planted_wrong_attack_on_votes_is_found() -> None:
    planted = Cheat(perturbations=PerturbationSet(epsilon=0.01))
    with pytest.raises(ContradictionError, match="it is the attack"):
        certify(team(), **{**QUICK, "epsilons": [0.01], "attacks": [planted]})


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"samples": 10}, r"expected samples ≥ 11 to certify anything at alpha 0\.001, got 10"),
        ({"samples": 14, "alpha": 0.0001}, r"expected samples ≥ 15 .* got 14"),
        ({"smoothing": "0:10"}, "expected sigma > 0"),
        ({"alpha": 0.0}, "alpha"),
    ],
)
def test_what_cannot_be_certified_by_votes_is_refused(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        certify(team(), **{**QUICK, **settings})
