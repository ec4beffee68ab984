"""Disturbed actions in an evaluation: by chance, by another policy, by the gradient of a critic."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from marl_aajr.adversaries.robust_sarsa import RobustSarsa
from marl_aajr.evaluation import Evaluation, disturbed_rows, evaluate
from marl_aajr.evaluation.disturbed_rows import DescendedValue, disturbance_checks
from marl_aajr.rollout.environments import make_batch, resolve
from tests.evaluation.players import sign_reader, stakes, sure, team

SPREAD = resolve("marl_aajr.envs.simple_spread_v3", {"max_cycles": 8})
BOXES = resolve("marl_aajr.envs.simple_spread_v3", {"max_cycles": 6, "continuous_actions": True})


def test_what_changes_nothing_returns_what_is_returned_undisturbed(tmp_path: Path) -> None:
    """α = 0 to the bit; the team itself as its adversary to rounding, whatever α."""
    victim = sure(SPREAD)
    victim.save(tmp_path / "same")
    by = f"by={tmp_path / 'same'}"
    asked = ["replace=0", f"replace=1,{by}", f"replace=0.4,{by}"]
    settings: dict[str, Any] = {"episodes": 7, "num_envs": 4}
    result = evaluate(victim, SPREAD, disturb=asked, **settings)
    rows = {row.label: row for row in result.results[0].threats}
    assert list(rows) == [
        "replace, alpha 0 (random)",
        "replace, alpha 1 (random)",
        "replace, alpha 1 (trained)",
        "replace, alpha 0.4 (random)",
        "replace, alpha 0.4 (trained)",
    ]
    assert rows["replace, alpha 0 (random)"].returns == result.clean.returns
    for alpha in ("1", "0.4"):
        assert rows[f"replace, alpha {alpha} (trained)"].returns == pytest.approx(result.clean.returns)
        chance = rows[f"replace, alpha {alpha} (random)"]
        assert chance.mean != pytest.approx(result.clean.mean)
        assert (chance.agents, chance.source) == (result.agents, "")
    assert rows["replace, alpha 1 (trained)"].source == str(tmp_path / "same")
    assert Evaluation.model_validate_json(result.model_dump_json()) == result


@pytest.mark.parametrize("normalized", [False, True])
def test_a_gradient_descends_to_the_corner_where_a_linear_critic_is_least(normalized: bool) -> None:
    """Whatever units the policy's actions have, u is one of the environment's."""
    victim = replace(team(BOXES), normalize_actions=normalized)
    slope = torch.tensor([1.0, -2.0, 0.5, 0.0, -3.0])
    seen: list[torch.Tensor] = []

    class Linear(torch.nn.Module):
        def forward(self, obs: torch.Tensor, actions: torch.Tensor) -> torch.Tensor:
            seen.append(actions.detach())
            return actions @ slope

    worst = DescendedValue(victim, ("agent_0",), {"shared": Linear()}, 0.4)  # type: ignore[dict-item]
    own = torch.full((3, 5), 0.25)
    u = worst(make_batch(BOXES, 3), {"agent_0": torch.zeros(3, 18)}, {"agent_0": own})["agent_0"]
    assert torch.equal(u, -slope.sign().expand(3, 5))
    start, step = (-0.5, 0.4) if normalized else (0.25, 0.2)
    torch.testing.assert_close(seen[0], torch.full((3, 5), start))
    torch.testing.assert_close(seen[-1], start - step * slope.sign().expand(3, 5))


def test_a_gradient_is_played_beside_noise_and_a_check_says_where_it_is_weaker(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    short = partial(RobustSarsa, experience=80, updates=2)
    monkeypatch.setattr(disturbed_rows, "RobustSarsa", short)
    result = evaluate(team(BOXES), BOXES, disturb=["gradient=0.5", "mix=0"], episodes=8, num_envs=4)
    noise, gradient, mixed = result.results[0].threats
    assert (noise.label, gradient.label) == ("noise, size 0.5 (random)", "gradient, size 0.5 (worst)")
    assert noise.returns != gradient.returns
    assert mixed.returns == result.clean.returns
    (check,) = result.checks
    assert check.name == "returns (greedy): gradient, size 0.5 (worst)"
    for loss, verdict in ((-1.0, "pass"), (1.0, "fail")):
        left = {"returns": tuple(value + loss for value in noise.returns), "mean": noise.mean + loss}
        rows = (noise, gradient.model_copy(update=left))
        (found,) = disturbance_checks(result.results[0].model_copy(update={"threats": rows}))
        assert found.verdict == verdict
        assert found.text.startswith("Undertrained" if verdict == "fail" else "It hurts")


def test_others_play_as_they_do() -> None:
    """Of two agents with a worth of their own only the disturbed one loses."""
    spec = stakes(worth=(1.0, 10.0), steps=6)
    settings: dict[str, Any] = {"episodes": 9, "num_envs": 4}
    (row,) = (
        evaluate(team(spec, sign_reader()), spec, disturb=["replace=1,agents=agent_0"], **settings)
        .results[0]
        .threats
    )
    assert all(54 <= value <= 66 for value in row.returns)
    assert row.mean < 66
    assert row.agents == ("agent_0",)
