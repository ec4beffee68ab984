"""An evaluation of a team that votes under noise."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from marl_aajr.evaluation import Evaluation, evaluate
from marl_aajr.report.common_protocol import CommonProtocol
from marl_aajr.report.reproduce import arguments
from marl_aajr.victims import SmoothedVictim, Smoothing
from tests.evaluation.players import sign_reader, signs, team
from tests.evaluation.test_evaluate import decisions

SPEC = signs(teams=True)


def played(saved: Path, **protocol: Any) -> Evaluation:
    attacks = [("pgd-margin", 0.8), ("pgd-margin", 1.3)]
    return evaluate(saved, attacks=attacks, episodes=10, num_envs=5, team="right", **protocol)


def test_a_team_that_votes_is_attacked_through_its_votes(tmp_path: Path) -> None:
    """In Signs with x = ±1 the votes turn where |δ| > 1, as without noise, or nearly."""
    saved = team(SPEC, sign_reader()).save(tmp_path / "team")
    found = played(saved, smoothing="0.05:51")
    below, above = found.attacks
    assert found.smoothing == Smoothing(0.05, 51)
    assert below.returns == found.clean.returns
    assert list(above.returns) == [-x for x in found.clean.returns]
    assert (below.success_rate, above.success_rate) == (0.0, 1.0)

    plain = played(saved)
    assert plain.smoothing is None
    assert plain.clean.returns == found.clean.returns
    assert sum(plain.clean.returns) < sum(
        decisions(SPEC, episodes=10, seed=0, num_envs=5)
    )  # one of two teams
    assert CommonProtocol.of(plain) < CommonProtocol.of(found)
    assert "smoothing 0.05:51" in str(CommonProtocol.of(found))
    (told,) = arguments(found, {})[:1]
    assert told[told.index("--smoothing") + 1] == "0.05:51"

    # A σ beyond the signal: votes are wrong by chance, and the same by the same seed.
    noisy = played(saved, smoothing="3:3")
    assert noisy.clean.returns != found.clean.returns
    assert played(saved, smoothing="3:3") == noisy
    files = [Evaluation.model_validate_json(p.read_text()) for p in tmp_path.glob("team-evaluations/*.json")]
    assert {str(each.smoothing) for each in files} == {"None", "0.05:51", "3:3"}


def test_only_the_team_votes(monkeypatch: pytest.MonkeyPatch) -> None:
    voters = []

    def seen(self: SmoothedVictim, seed: int) -> None:
        voters.append(self.voters)

    monkeypatch.setattr(SmoothedVictim, "reseed", seen)
    victim = replace(team(SPEC, sign_reader()), env_name=SPEC.name)
    evaluate(
        victim,
        SPEC,
        episodes=2,
        team="right",
        agents=["agent_2"],
        smoothing="0.1:3",
        attacks=["noise"],
        epsilons=[0.1],
    )
    assert set(voters) == {("agent_1", "agent_2")}
