"""Certificates of whole episodes: what is proven, what attacks find, and what is refused."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from marl_aajr.attacks import Attacked, MarginPGD, UniformNoise
from marl_aajr.certificates import Certificate, ContradictionError, certify, sandwich
from marl_aajr.certificates.decisions import clean_decisions
from marl_aajr.cli.app import main
from marl_aajr.core.bounds import BoundedMLP
from marl_aajr.core.threat import PerturbationSet
from marl_aajr.evaluation.episodes import play
from marl_aajr.report import proven
from marl_aajr.rollout.environments import make_batch, resolve
from marl_aajr.victims import ObservationFilter, Recurrent, Smoothing, Victim
from tests.certificates.policies import network, team
from tests.evaluation.toys import Moves

QUICK: dict[str, Any] = {"episodes": 2, "attacks": ["pgd-margin"]}


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return team().save(tmp_path_factory.mktemp("team") / "victim")


def test_a_certificate_says_what_is_proven_and_what_is_found(saved: Path) -> None:
    told: list[str] = []
    found = certify(
        saved, epsilons=[0.1, 0.01, 3.0], episodes=2, on_progress=lambda *now: told.append(now[0])
    )
    small, middle, large = found.sizes
    assert [size.epsilon for size in found.sizes] == [0.01, 0.1, 3.0]
    assert (found.decisions, found.agents) == (2 * 25 * 3, ("agent_0", "agent_1", "agent_2"))
    assert [attack.name for attack in found.attacks] == ["pgd-margin", "pgd-targeted", "pgd-strong-margin"]
    for size in found.sizes:
        assert size.interval is not None
        assert size.interval <= size.certified
        assert size.certified + size.attacked <= 1 + 1e-9
        assert found.share(size.epsilon) == size.certified
    assert small.certified > 0.5
    assert small.certified > middle.certified > large.certified == 0
    assert small.interval
    assert large.attacked > 0.9
    assert list(found.largest) == sorted(found.largest)
    assert "playing" in told
    (file,) = saved.with_name("victim-certificates").glob("*.json")
    assert Certificate.model_validate_json(file.read_text()) == found
    certify(saved, epsilons=[0.1, 0.01, 3.0], episodes=2)
    assert len([*file.parent.iterdir()]) == 1


def test_the_decisions_are_those_of_unattacked_play() -> None:
    """Agents, episodes and steps each have a place, and outputs are those that the agents acted on."""
    victim = team()
    env = make_batch(resolve("simple_spread_v3"), 2, flat=True)
    (found,) = clean_decisions(victim, env, ["agent_0", "agent_2"], episodes=3, seed=5)
    assert found.names == ["agent_0", "agent_2"]
    assert len(found) == 3 * 25 * 2
    assert {tuple(place) for place in found.places.tolist()} == {
        (a, e, t) for a in range(2) for e in range(3) for t in range(25)
    }
    seen: list[Tensor] = []
    play(victim, env, episodes=3, seed=5, on_step=lambda batches, _: seen.append(batches[0].inputs))
    env.close()
    where = (found.places == torch.tensor([0, 0, 7])).all(-1)
    assert torch.equal(found.inputs[where], seen[7][:1])
    assert found.named(int(where.nonzero()[0])) == "the decision of 'agent_0' in step 7 of episode 0"


def test_raw_sizes_go_through_the_filter_and_box_actions_have_means() -> None:
    """A filter that halves everything makes raw ε half as large for the network."""
    mean, std = torch.zeros(18, dtype=torch.float64), torch.full((18,), 2.0)
    halved = ObservationFilter(mean=mean, std=std, clip=None)
    filters = {f"agent_{i}": halved for i in range(3)}
    victim = team(network(10), filters=filters, env_kwargs={"continuous_actions": True})
    raw = certify(victim, epsilons=[0.1], units="raw", episodes=2)
    behind = certify(victim, epsilons=[0.05], units="network", episodes=2)
    assert raw.continuous
    assert [attack.name for attack in raw.attacks] == ["pgd", "pgd-strong"]
    assert raw.sizes[0].mean_change == pytest.approx(behind.sizes[0].mean_change, rel=1e-3)
    assert raw.sizes[0].certified == behind.sizes[0].certified > 0
    with pytest.raises(ValueError, match="expected units"):
        certify(victim, epsilons=[0.1])


def test_legal_actions_are_followed_from_the_environment() -> None:
    """Turn by turn, with other actions legal every time, where a wrong one is an error."""
    victim = Victim.from_policies(network(4, features=3), Moves())
    found = certify(victim, "tests.evaluation.toys:Moves", epsilons=[1e-4, 0.3], episodes=4)
    assert found.agents == ("first",)
    assert found.sizes[0].certified > 0.8
    assert found.sizes[1].certified + found.sizes[1].attacked <= 1 + 1e-9


def test_what_the_adversary_may_not_touch_makes_certificates_larger() -> None:
    whole = certify(team(), epsilons=[0.1], **QUICK)
    part = certify(team(), epsilons=[0.1], mask=[True] * 4 + [False] * 14, **QUICK)
    assert part.sizes[0].certified > whole.sizes[0].certified
    assert part.sizes[0].attacked < whole.sizes[0].attacked
    assert part.perturbations == {"mask": (True,) * 4 + (False,) * 14}


def test_channels_are_the_mask_of_each_agent_that_observes_them() -> None:
    """`what` is features 0 to 3 of agent_0 and agent_1; agent_2 has none, and is left out."""
    said = {"env.channels": {"agent_[01]": {"what": "0:4"}, "agent_2": {"rest": ":"}}}
    found = certify(team(), resolve("simple_spread_v3", said), epsilons=[0.1], channels=["what"], **QUICK)
    two: dict[str, Any] = {"agents": ["agent_0", "agent_1"]}
    same = certify(team(), epsilons=[0.1], mask=[True] * 4 + [False] * 14, **two, **QUICK)
    assert found.agents == same.agents == ("agent_0", "agent_1")
    assert (found.sizes, found.largest) == (same.sizes, same.largest)
    assert found.perturbations == {"channels": ("what",)}
    assert Certificate.model_validate_json(found.model_dump_json()) == found
    apart = {"env.channels": {"agent_0": {"what": [0]}, "agent_*": {"what": [1]}}}
    with pytest.raises(ValueError, match="expected what to be the same features of 'agent_0' and 'agent_1'"):
        certify(team(), resolve("simple_spread_v3", apart), epsilons=[0.1], channels=["what"], **QUICK)


@pytest.mark.parametrize(
    "settings",
    [
        {
            "smoothing": Smoothing(0.1, 20, mask=(True,) * 6 + (False,) * 12),
            "mask": [True] * 4 + [False] * 14,
            "samples": 100,
        },
        {"agents": ["agent_1"], "norm": "l2", "scale": [2.0] * 18, "low": -3.0, "high": [9.0] * 18},
        {"channels": ["velocity"]},
    ],
    ids=["smoothing", "limits", "channels"],
)
def test_the_options_that_repeat_a_certificate_do(saved: Path, tmp_path: Path, settings: Any) -> None:
    """Typed as the page of a comparison prints them."""
    env = {"env": "marl_aajr.envs.simple_spread_v3"}
    asked = {"epsilons": [0.1, 0.02], **env, **QUICK, **settings}
    found = certify(saved, out=tmp_path / "first.json", **asked)
    words = ["certify", str(saved), "--env", env["env"], "--out", str(tmp_path / "again.json")]
    with pytest.raises(SystemExit) as ended:
        main([*words, *proven.arguments(found)])
    assert ended.value.code == 0
    assert (tmp_path / "again.json").read_text() == (tmp_path / "first.json").read_text()


def test_a_planted_wrong_bound_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    honest = BoundedMLP.least

    def too_high(self: BoundedMLP, *arguments: Any) -> Tensor:
        return honest(self, *arguments) + 0.3

    monkeypatch.setattr(BoundedMLP, "least", too_high)
    with pytest.raises(ContradictionError, match=r"step \d+ of episode \d is certified .* it is the bound"):
        certify(team(), epsilons=[0.1], **QUICK)


@dataclass(frozen=True, kw_only=True)
class Cheat(MarginPGD):
    """Goes ten times as far as it may."""

    def __call__(self, *given: Any, **settings: Any) -> Attacked:
        return MarginPGD(perturbations=self.at(10 * self.perturbations.epsilon).perturbations)(
            *given, **settings
        )


@dataclass(frozen=True, kw_only=True)
class Boast(MarginPGD):
    """Says that it changed everything."""

    def __call__(self, *given: Any, **settings: Any) -> Attacked:
        attacked = super().__call__(*given, **settings)
        attacked.success.fill_(True)
        return attacked


@dataclass(frozen=True, kw_only=True)
class Shy(MarginPGD):
    """Finds nothing in large sets."""

    def __call__(self, *given: Any, **settings: Any) -> Attacked:
        attacked = super().__call__(*given, **settings)
        attacked.success.logical_and_(torch.tensor(self.perturbations.epsilon < 0.5))
        return attacked


def test_what_is_changed_within_a_set_is_changed_within_a_larger_one() -> None:
    shy = Shy(perturbations=PerturbationSet(epsilon=0.1))
    small, large = certify(team(), epsilons=[0.1, 1.0], episodes=1, attacks=[shy]).sizes
    assert 0 < small.attacked == large.attacked


@pytest.mark.parametrize("kind", [Cheat, Boast])
def test_a_planted_wrong_attack_is_found(kind: type[MarginPGD]) -> None:
    planted = kind(perturbations=PerturbationSet(epsilon=0.01))
    with pytest.raises(ContradictionError, match=r"pgd-margin changed it at ε = 0\.01: .* it is the attack"):
        certify(team(), epsilons=[0.01], episodes=2, attacks=[planted])


def test_an_attack_that_changes_what_a_larger_certificate_covers_is_found() -> None:
    """Bounds of one size prove something of every smaller one."""
    victim = team()
    env = make_batch(resolve("simple_spread_v3"), 1, flat=True)
    (some,) = clean_decisions(victim, env, ["agent_0"], episodes=1, seed=0)
    env.close()
    strong, weak = (kind(perturbations=PerturbationSet(epsilon=1.0)) for kind in (MarginPGD, UniformNoise))
    changes, noise = sandwich.attack(some, [strong, weak], seed=0), sandwich.attack(some, [weak], seed=0)
    assert changes.changed.sum() > noise.changed.sum()
    assert {each.name for each in changes.by.values()} == {"pgd-margin"}
    sandwich.check(some, changes, torch.full((25,), 0.5), epsilon=1.0)
    with pytest.raises(ContradictionError):
        sandwich.check(some, changes, torch.full((25,), 1.5), epsilon=1.0)


@pytest.mark.parametrize(
    ("policy", "settings", "words"),
    [
        (Recurrent(nn.Linear(18, 8), nn.LSTM(8, 8), nn.Linear(8, 5)), {}, r"LSTM\(8, 8\) in place 1"),
        (nn.Sequential(nn.Linear(18, 8), nn.GELU(), nn.Linear(8, 5)), {}, r"GELU"),
        (None, {"epsilons": [1e-9]}, "beyond the rounding"),
        (None, {"epsilons": []}, "at least one"),
        (None, {"attacks": ["pa-ad"]}, "that need no training against single decisions, got 'pa-ad'"),
        (None, {"attacks": ["delay"]}, r"in a ball of ε in linf .*, got 'delay' \(fault: some sensors"),
        (None, {"attacks": ["drift"]}, r"take pgd or square, and evaluate the policy under 'drift'"),
        (None, {"attacks": ["message-worst"]}, "expected attacks in a ball"),
        (None, {"attacks": ["words-greedy"]}, "expected attacks in a ball"),
        (None, {"attacks": [("pgd", 0.5)]}, "expected 'pgd' without a set of its own"),
        (None, {"attacks": [{"attack": "pgd", "channels": ["others"]}]}, "say it of the certificate: .*--ch"),
        (None, {"attacks": [{"attack": "pgd", "norm": "l2"}]}, "without a set of its own"),
        (None, {"channels": ["others", "noise"]}, r"expected a channel of agent_0, .* got 'noise'"),
        (None, {"channels": []}, "at least one"),
        (None, {"alpha": 0.01}, "expected smoothing with alpha, which certify votes, got none"),
        (None, {"low": 1.0, "high": [-1.0] * 18}, "expected low ≤ high, got 1.0 and"),
        (None, {"out": "."}, r"expected a file that can be written, got \."),
        (None, {"attacks": ["critic"]}, "expected a victim with a critic"),
        (None, {"mask": [True, False]}, "expected 18 features in mask, got 2"),
        (None, {"agents": ["agent_9"]}, "agent_9"),
    ],
)
def test_what_cannot_be_certified_is_refused(policy: Any, settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        certify(team(policy), **{"epsilons": [0.1], **QUICK, **settings})


def test_the_command_line_prints_both_sides_and_teaches(
    saved: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    def run(*words: object) -> tuple[object, str, str]:
        with pytest.raises(SystemExit) as ended:
            main(["certify", *map(str, words)])
        return ended.value.code, *capsys.readouterr()

    file = tmp_path / "found.json"
    code, out, err = run(saved, "--epsilon", 0.02, "--episodes", 2, "--out", file)
    assert code == 0, err
    for words in ("150 greedy decisions of 2 unattacked episodes", "certified", "nobody knows", "attacked"):
        assert words in out
    assert "the largest ε of 150 decisions" in err
    found = Certificate.model_validate_json(file.read_text())
    assert f"{found.sizes[0].certified:.1%}" in out
    assert f"ε ≥ {found.largest[75]:.3g}." in out
    code, out, _ = run(saved, "--epsilon", 0.02, "--episodes", 2, "--json")
    assert Certificate.model_validate_json(out) == found
    code, _, err = run(saved, "--epsilon", 1e-9)
    assert code == 2
    assert err.splitlines()[-1].startswith("error: expected an epsilon beyond")
