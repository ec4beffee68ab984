"""The plug-in on real PPO learners: what it adds, what it leaves alone, what it refuses."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from ray import tune
from ray.rllib.core.columns import Columns
from ray.rllib.core.learner.learner import Learner

from marl_aajr import AAJR, robustify
from marl_aajr.core.ascent import ascend
from marl_aajr.core.checks import NonFiniteError
from marl_aajr.core.objectives import KL
from marl_aajr.core.threat import PerturbationSet
from marl_aajr.regularizers import REGULARIZERS, LossTerm, Regularizer, Sample, make_regularizer
from marl_aajr.rllib.plugin.robust_learner import RobustLearnerMixin
from tests.rllib.learners import build_learner, ppo_batch, ppo_config, update, weights
from tests.rllib.policy_modules import TrainingModeModule

ACTIVE = AAJR(coefficient=0.1, adversarial_weight=0.5, epsilon=0.2)
METRICS = {
    "penalty",
    "loss_share",
    "gain_mean",
    "gain_max",
    "objective_gain",
    "monotone_fraction",
    "no_direction_fraction",
    "nonfinite",
    "seconds",
    "ratio_max",
    "ratio_min",
}


def trained(
    regularizer: Regularizer | dict[str, Regularizer] | None,
    *modules: str,
    device: str = "cpu",
    **kwargs: Any,
) -> tuple[Learner, Any]:
    config = ppo_config(*(modules or ("a", "b"))).learners(num_gpus_per_learner=int(device == "cuda"))
    if regularizer is not None:
        config = robustify(config, regularizer)
    learner = build_learner(config, **kwargs)
    return learner, update(learner, ppo_batch(learner))


def same(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor], module_id: str = "") -> bool:
    names = [name for name in left if name.startswith(module_id)]
    assert names
    return all(torch.equal(left[name], right[name]) for name in names)


def test_lambda_and_kappa_zero_are_the_unmodified_learner_bit_for_bit() -> None:
    plain, _ = trained(None)
    zero, results = trained(replace(ACTIVE, coefficient=0, adversarial_weight=0))
    assert same(weights(plain), weights(zero))
    assert "aajr" not in results["a"]
    measured, results = trained(AAJR(coefficient=0, epsilon=0.2, measured=True))
    assert same(weights(plain), weights(measured))
    assert results["a"]["aajr"]["gain_mean"].peek() > 0
    # The same comparison fails where the penalty is on.
    assert not same(weights(plain), weights(trained(ACTIVE)[0]))


@pytest.mark.parametrize("objective", ["kl", "value"])
def test_a_network_in_training_mode_is_the_learners_alone(objective: str) -> None:
    """A term too small to be felt: statistics, dropout and counters must be those of the plain learner."""
    whole = AAJR(coefficient=1e-30, epsilon=0.5, objective=objective, sample_fraction=1.0)
    found = []
    for regularizer in (None, whole):
        config = ppo_config() if regularizer is None else robustify(ppo_config(), regularizer)
        learner = build_learner(config, module=TrainingModeModule)
        results = update(learner, ppo_batch(learner))
        module = learner.module["a"].unwrapped()
        found.append((module.state_dict(), module.passes, torch.get_rng_state()))
    (plain, passes, random), (ours, our_passes, our_random) = found
    assert plain.keys() == ours.keys()
    assert [name for name in plain if not torch.equal(plain[name], ours[name])] == []
    assert (passes, random.tolist()) == (our_passes, our_random.tolist())
    assert results["a"]["aajr"]["penalty"].peek() > 0


def test_only_the_named_module_is_regularised() -> None:
    plain, _ = trained(None)
    one, results = trained({"a": ACTIVE})
    assert not same(weights(plain), weights(one), "a/")
    assert same(weights(plain), weights(one), "b/")
    assert "aajr" in results["a"]
    assert "aajr" not in results["b"]


def test_a_search_space_needs_tune() -> None:
    for spaces in (tune.grid_search([ACTIVE]), {"a": tune.choice([ACTIVE])}):
        config = robustify(ppo_config("a"), spaces)
        with pytest.raises(ValueError, match=r"for module 'a', got the search space .*by ray\.tune\.Tuner"):
            build_learner(config)


def test_modules_keep_settings_of_their_own() -> None:
    both, _ = trained({"a": ACTIVE, "b": replace(ACTIVE, coefficient=0.0)})
    alone, _ = trained({"a": ACTIVE})
    assert same(weights(both), weights(alone), "a/")
    assert not same(weights(both), weights(alone), "b/")


def test_metrics_are_logged_per_module() -> None:
    _, results = trained(ACTIVE)
    for module_id in ("a", "b"):
        metrics = {key: float(stats.peek()) for key, stats in results[module_id]["aajr"].items()}
        assert set(metrics) == METRICS
        assert all(math.isfinite(value) for value in metrics.values())
        assert 0 < metrics["gain_mean"] <= metrics["gain_max"]
        assert metrics["objective_gain"] > 0
        assert 0 <= metrics["monotone_fraction"] <= 1
        assert 0 < metrics["loss_share"] < 1
        assert metrics["nonfinite"] == 0
        assert metrics["seconds"] > 0


def test_the_added_loss_is_the_regularizers(monkeypatch: pytest.MonkeyPatch) -> None:
    learner = build_learner(robustify(ppo_config("a"), replace(ACTIVE, sample_fraction=1.0)))
    seen: list[tuple[float, float, float]] = []
    evaluate = AAJR.evaluate

    def spy(self: AAJR, sample: Sample, **kwargs: Any) -> LossTerm:
        state = kwargs["generator"].get_state()
        evaluation = evaluate(self, sample, **kwargs)
        kwargs["generator"].set_state(state)
        trajectory = ascend(
            sample.policy,
            sample.obs,
            KL(),
            PerturbationSet(epsilon=0.2),
            steps=3,
            step_size=0.1,
            generator=kwargs["generator"],
        )
        assert sample.policy_loss is not None
        adversarial = sample.policy_loss(sample.policy(sample.obs + trajectory.deltas[-1]), sample).mean()
        clean = sample.policy_loss(sample.outputs, sample).mean()
        expected = 0.1 * evaluation.metrics["penalty"] + 0.5 * (adversarial - clean)
        seen.append((evaluation.loss.item(), expected.item(), clean.item()))
        return evaluation

    monkeypatch.setattr(AAJR, "evaluate", spy)
    results = update(learner, ppo_batch(learner))
    for added, expected, _ in seen:
        assert added == pytest.approx(expected, rel=1e-5)
    # ℓ(s) is RLlib's own policy loss.
    assert seen[-1][2] == pytest.approx(float(results["a"]["policy_loss"].peek()), abs=1e-6)


SMALLEST: dict[str, dict[str, Any]] = {
    "frobenius": {"coefficient": 0.1},
    "sum": {"members": [{"name": "aajr", "coefficient": 0.1}, {"name": "smooth_policy", "coefficient": 0.1}]},
    "spectral_normalization": {"layer_bound": 0.5},
}


NEEDS_CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=NEEDS_CUDA)])
@pytest.mark.parametrize("name", REGULARIZERS)
def test_every_regularizer_trains_in_the_learner(name: str, device: str) -> None:
    plain, _ = trained(None, "a", device=device)
    learner, results = trained(make_regularizer(name, **SMALLEST.get(name, {})), "a", device=device)
    assert {weight.device.type for weight in weights(learner).values()} == {device}
    assert all(bool(weight.isfinite().all()) for weight in weights(learner).values())
    assert not same(weights(plain), weights(learner))
    metrics = {key: float(stats.peek()) for key, stats in results["a"][name].items()}
    assert all(math.isfinite(value) for value in metrics.values())
    assert metrics["seconds"] > 0


@NEEDS_CUDA
@pytest.mark.parametrize("name", REGULARIZERS)
def test_nothing_waits_for_the_accelerator_in_the_learner(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the second minibatch on: constants are copied to the device with the first."""
    minibatches = 0
    regularize = RobustLearnerMixin._regularize

    def watched(self: RobustLearnerMixin, *args: Any) -> torch.Tensor:
        nonlocal minibatches
        minibatches += 1
        torch.cuda.set_sync_debug_mode("error" if minibatches > 1 else "default")
        try:
            return regularize(self, *args)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    monkeypatch.setattr(RobustLearnerMixin, "_regularize", watched)
    regularizer = make_regularizer(name, **SMALLEST.get(name, {}))
    trained(regularizer, "a", device="cuda")
    assert minibatches == (4 if regularizer.active(0) else 0)


def test_spectral_normalization_bounds_the_actor_alone() -> None:
    learner, _ = trained(make_regularizer("spectral_normalization", layer_bound=0.5), "a")
    module = learner.module["a"].unwrapped()
    bounds = [
        torch.linalg.matrix_norm(weight, 2).item()
        for part in (module.encoder.actor_encoder, module.pi)
        for weight in part.parameters()
        if weight.ndim == 2
    ]
    assert max(bounds) <= 0.5 * (1 + 1e-4)
    assert torch.linalg.matrix_norm(module.encoder.critic_encoder.net.mlp[0].weight, 2) > 0.5


def test_phantom_rows_never_count() -> None:
    """GAE adds a row per chunk under LOSS_MASK=False: what it holds must not move a weight."""

    def weights_with(fill: float) -> dict[str, torch.Tensor]:
        learner = build_learner(robustify(ppo_config("a"), ACTIVE))
        mask = np.ones(64, bool)
        mask[::9] = False
        batch = ppo_batch(learner, mask=mask)
        batch.policy_batches["a"][Columns.OBS][~torch.from_numpy(mask)] = fill
        update(learner, batch)
        return weights(learner)

    actor = {name: w for name, w in weights_with(0.0).items() if "critic" not in name and "vf" not in name}
    other = weights_with(3.0)
    for name, weight in actor.items():
        torch.testing.assert_close(weight, other[name], atol=1e-7, rtol=1e-6)


def test_nan_in_the_policy_stops_with_its_origin() -> None:
    learner = build_learner(robustify(ppo_config("a"), ACTIVE))
    batch = ppo_batch(learner)
    with torch.no_grad():
        learner.module["a"].unwrapped().pi.net.mlp[0].bias[0] = float("nan")
    with pytest.raises(NonFiniteError, match=r"regularizer 'aajr' of module 'a'.*the policy's outputs: "):
        update(learner, batch)
