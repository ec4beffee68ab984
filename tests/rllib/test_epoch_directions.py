"""AAJR along directions of the policy as each epoch began: in our learner and in RLlib's."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from ray.rllib.core.columns import Columns
from ray.rllib.core.learner.learner import Learner
from torch import Tensor

from marl_aajr import AAJR, robustify
from marl_aajr.core import ascent as core
from marl_aajr.regularizers import adversarial
from marl_aajr.rllib.lean.learner import LeanPPOTorchLearner
from marl_aajr.rllib.plugin.robust_learner import RobustLearnerMixin
from tests.rllib.learners import build_learner, ppo_batch, ppo_config, update, weights

STEADY: dict[str, Any] = {"coefficient": 0.1, "interval": 1, "sample_fraction": 0.5}


def learner_of(regularizer: AAJR, *, lean: bool, **training: Any) -> Learner:
    config = ppo_config("a", minibatch_size=16, num_epochs=3, **training)
    if lean:
        config.learners(learner_class=LeanPPOTorchLearner)
    return build_learner(robustify(config, regularizer))


def outputs(learner: Learner, weights: dict[str, Tensor], obs: Tensor) -> Tensor:
    """What the module with these weights says of observations."""
    module = learner.module["a"].unwrapped()
    now = {name: value.clone() for name, value in module.state_dict().items()}
    module.load_state_dict(weights)
    with torch.no_grad():
        found: Tensor = module.forward_train({Columns.OBS: obs})[Columns.ACTION_DIST_INPUTS]
    module.load_state_dict(now)
    return found


@pytest.mark.parametrize("rows", [64, 60])
@pytest.mark.parametrize("lean", [True, False])
def test_the_adversary_climbs_the_policy_that_the_epoch_began_with(
    lean: bool, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An epoch that begins within a minibatch begins with the next."""
    weights: list[dict[str, Tensor]] = []
    climbed: list[tuple[Tensor, Tensor]] = []
    before, ascend = RobustLearnerMixin.before_step, core.ascend

    def before_step(self: Any, batch: Any) -> None:
        before(self, batch)
        weights.append({n: v.clone() for n, v in self.module["a"].unwrapped().state_dict().items()})

    def noted(policy: Any, obs: Tensor, *args: Any, **kwargs: Any) -> Any:
        with torch.no_grad():
            climbed.append((obs, policy(obs)))
        return ascend(policy, obs, *args, **kwargs)

    monkeypatch.setattr(RobustLearnerMixin, "before_step", before_step)
    monkeypatch.setattr(adversarial, "ascend", noted)
    learner = learner_of(AAJR(directions="epoch", **STEADY), lean=lean)
    for _ in range(2):
        update(learner, ppo_batch(learner, rows=rows))
    per_update, began = len(weights) // 2, -1
    assert len(climbed) == len(weights)
    first = 0
    for i, (obs, said) in enumerate(climbed):
        epoch = i // per_update * 100 + i % per_update * 16 // rows
        if epoch != began:
            began, first = epoch, i
        assert torch.allclose(said, outputs(learner, weights[first], obs), atol=1e-6)
        assert i == first or not torch.allclose(said, outputs(learner, weights[i], obs), atol=1e-6)


@pytest.mark.parametrize("lean", [True, False])
def test_while_the_policy_stands_still_they_are_fresh(lean: bool) -> None:
    kinds: list[Any] = ["epoch", "fresh"]
    found = []
    for directions in kinds:
        learner = learner_of(AAJR(directions=directions, **STEADY), lean=lean, lr=1e-9)
        found.append(update(learner, ppo_batch(learner))["a"]["aajr"])
    for name in ("penalty", "gain_mean", "objective_gain"):
        assert float(found[0][name].peek()) == pytest.approx(float(found[1][name].peek()), rel=1e-4)
    assert float(found[0]["direction_cosine"].peek()) == pytest.approx(1.0, abs=1e-4)


def test_later_in_an_epoch_they_are_stale() -> None:
    learner = learner_of(AAJR(directions="epoch", **STEADY), lean=True, lr=0.1)
    found = update(learner, ppo_batch(learner))["a"]["aajr"]
    assert float(found["direction_cosine_min"].peek()) < 0.999
    parameters = learner.module["a"].unwrapped().parameters()
    copy = list(learner._regularized["a"].epoch.module.parameters())
    assert all(not p.requires_grad and p.grad is None for p in copy)
    assert any(not torch.equal(p, q) for p, q in zip(parameters, copy, strict=True))


@pytest.mark.parametrize("lean", [True, False])
def test_a_restored_learner_goes_on_to_the_same_bits(lean: bool) -> None:
    """Each update begins with an epoch, so that nothing of the last one's need be kept."""
    regularizer = AAJR(directions="epoch", **STEADY)
    straight, stopped, again = (learner_of(regularizer, lean=lean) for _ in range(3))
    batches = [ppo_batch(straight, seed=seed) for seed in (0, 1)]
    for batch in batches:
        update(straight, batch)
    update(stopped, batches[0])
    again.set_state(stopped.get_state())
    update(again, batches[1])
    expected, found = weights(straight), weights(again)
    assert all(torch.equal(found[name], value) for name, value in expected.items())
