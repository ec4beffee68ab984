"""The lean learner makes the updates of RLlib's learner, to rounding."""

from __future__ import annotations

from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from ray.rllib.algorithms.ppo import PPOConfig
from ray.rllib.core.learner.learner import Learner
from ray.rllib.core.rl_module.default_model_config import DefaultModelConfig
from ray.rllib.policy.sample_batch import MultiAgentBatch, SampleBatch

from marl_aajr.core.checks import NonFiniteError
from marl_aajr.core.distributions import Categorical, DiagGaussian, MultiCategorical
from marl_aajr.core.policy import map_tree
from marl_aajr.regularizers import make_regularizer
from marl_aajr.rllib import robustify
from marl_aajr.rllib.lean.learner import LeanPPOTorchLearner
from marl_aajr.rllib.lean.minibatches import unfilled_memory
from marl_aajr.rllib.lean.ppo_loss import PPOCoefficients, PPORows, ppo_loss, ppo_parts
from tests.rllib.learners import ACTIONS, build_learner, ppo_batch, ppo_config, update, weights

DISTRIBUTIONS = [Categorical(5), MultiCategorical((3, 4)), DiagGaussian(3)]
SPACES = [ACTIONS, gym.spaces.MultiDiscrete([2, 3]), gym.spaces.Box(-1.0, 1.0, (2,), np.float32)]
MASK = np.arange(64) % 5 != 0


def samples(distribution: Any, *, rows: int = 40) -> PPORows:
    """Random rows in float64, with ratios on both sides of the clip."""
    generator = torch.Generator().manual_seed(1)
    draw = partial(torch.randn, generator=generator, dtype=torch.float64)
    inputs = draw(rows, distribution.num_inputs)
    actions = distribution.sample(inputs, generator=generator)
    return PPORows(
        inputs=inputs.requires_grad_(),
        values=draw(rows).requires_grad_(),
        actions=actions,
        log_probs=distribution.log_prob(inputs, actions).detach() + 0.3 * draw(rows),
        advantages=draw(rows),
        value_targets=draw(rows),
    )


@pytest.mark.parametrize("distribution", DISTRIBUTIONS, ids=repr)
@pytest.mark.parametrize("vf_clip", [0.7, float("inf")])
def test_gradient_of_the_loss_is_the_one_that_autograd_finds(distribution: Any, vf_clip: float) -> None:
    rows = samples(distribution)
    c = PPOCoefficients(clip=0.2, vf_clip=vf_clip, vf_loss=0.5, entropy=0.01)
    parts = ppo_parts(distribution, rows, clip=c.clip, vf_clip=c.vf_clip)
    expected = parts["policy_loss"] + c.vf_loss * parts["vf_loss"] - c.entropy * parts["entropy"]
    loss = ppo_loss(distribution, rows, c)
    leaves = [rows.inputs, rows.values]
    torch.testing.assert_close(loss, expected)
    ours, theirs = torch.autograd.grad(3.0 * loss, leaves), torch.autograd.grad(3.0 * expected, leaves)
    torch.testing.assert_close(ours, theirs)


def test_masked_actions_have_no_gradient_and_no_nan() -> None:
    inputs = torch.tensor([[0.5, -float("inf"), 0.1], [0.2, torch.finfo(torch.float32).min, 0.3]])
    rows = PPORows(
        inputs=inputs.requires_grad_(),
        values=torch.zeros(2),
        actions=torch.tensor([0, 2]),
        log_probs=torch.tensor([-0.7, -0.6]),
        advantages=torch.tensor([1.0, -1.0]),
        value_targets=torch.ones(2),
    )
    loss = ppo_loss(Categorical(3), rows, PPOCoefficients(0.2, 1.0, 0.5, 0.01))
    loss.backward()
    assert loss.isfinite()
    assert inputs.grad is not None
    assert inputs.grad.isfinite().all()
    assert not inputs.grad[:, 1].any()


def test_loss_of_no_samples_is_zero() -> None:
    none = samples(Categorical(5)).where(torch.zeros(40, dtype=torch.bool))
    loss = ppo_loss(Categorical(5), none, PPOCoefficients(0.2, 1.0, 0.5, 0.01))
    loss.backward()
    assert loss.item() == 0.0


def lean(config: PPOConfig) -> PPOConfig:
    return config.learners(learner_class=LeanPPOTorchLearner)


def both(*modules: str, space: gym.Space[Any] = ACTIONS, model: Any = None, **training: Any) -> list[Learner]:
    """RLlib's learner and ours, with the same weights."""
    made = (ppo_config(*modules, **training), lean(ppo_config(*modules, **training)))
    return [build_learner(config, action_space=space, model=model) for config in made]


def train(learner: Learner, batch: MultiAgentBatch, *, shuffle: bool = False, updates: int = 2) -> Any:
    np.random.seed(3)  # noqa: NPY002 - RLlib shuffles with it
    for step in range(updates):
        result = learner.update(
            batch=MultiAgentBatch({m: b.copy() for m, b in batch.policy_batches.items()}, batch.count),
            timesteps={"num_env_steps_sampled_lifetime": 1000 * step},
            num_epochs=learner.config.num_epochs,
            minibatch_size=learner.config.minibatch_size,
            shuffle_batch_per_epoch=shuffle,
        )
    return result


@pytest.mark.parametrize(
    ("training", "shuffle"),
    [
        ({"use_kl_loss": False}, True),
        ({"use_kl_loss": True, "kl_coeff": 0.3, "kl_target": 1e-4}, True),
        ({"grad_clip": 0.05, "grad_clip_by": "global_norm"}, True),
        ({"grad_clip": 0.01, "grad_clip_by": "value"}, True),
        (
            {"vf_clip_param": 0.5, "entropy_coeff": [[0, 0.1], [1000, 0.0]], "lr": [[0, 1e-2], [1000, 1e-3]]},
            True,
        ),
        ({"minibatch_size": 24, "num_epochs": 3}, True),
        ({"minibatch_size": 24, "num_epochs": 3}, False),
    ],
)
def test_weights_are_those_of_rllibs_learner(training: dict[str, Any], shuffle: bool) -> None:
    stock, ours = both("a", "b", **training)
    batch = ppo_batch(stock, mask=MASK)
    for learner in (stock, ours):
        train(learner, batch, shuffle=shuffle)
    assert_same_weights(stock, ours)


@pytest.mark.parametrize("space", SPACES, ids=repr)
def test_weights_are_rllibs_for_every_kind_of_action(space: gym.Space[Any]) -> None:
    stock, ours = both(space=space, entropy_coeff=0.01, use_kl_loss=True)
    batch = ppo_batch(stock)
    for learner in (stock, ours):
        train(learner, batch)
    assert_same_weights(stock, ours)


@pytest.mark.parametrize("use_kl_loss", [False, True], ids=["gradient written out", "autograd"])
def test_the_scale_of_logits_is_reported_beside_the_entropy(use_kl_loss: bool) -> None:
    ours = both(use_kl_loss=use_kl_loss)[1]
    (module,) = ours.module.keys()
    result = train(ours, ppo_batch(ours), updates=1)[module]
    assert result["logit_scale"].peek() > 0
    assert result["entropy"].peek() > 0


@pytest.mark.parametrize("activation", ["relu", "silu"])
@pytest.mark.parametrize("free_log_std", [False, True])
def test_weights_are_rllibs_whatever_the_layers(activation: str, free_log_std: bool) -> None:
    """ReLU has its gradient written out, SiLU has not; log σ is left to autograd."""
    model = DefaultModelConfig(
        fcnet_hiddens=[16, 8], fcnet_activation=activation, free_log_std=free_log_std, vf_share_layers=False
    )
    stock, ours = both(space=SPACES[2], model=model, use_kl_loss=False)
    batch = ppo_batch(stock)
    for learner in (stock, ours):
        train(learner, batch)
    assert_same_weights(stock, ours)
    assert (ours._losses["a"]._plain is not None) == (activation == "relu")


def test_weights_are_rllibs_with_a_shared_encoder_that_has_no_layers_of_its_own() -> None:
    model = DefaultModelConfig(fcnet_hiddens=[16], vf_share_layers=True)
    stock, ours = both(model=model)
    batch = ppo_batch(stock)
    for learner in (stock, ours):
        train(learner, batch)
    assert_same_weights(stock, ours)


def sequences(learner: Learner, *, count: int = 14, length: int = 5) -> MultiAgentBatch:
    """Padded sequences of 2 to 5 steps of each module, as connectors make them."""
    rng, batches = np.random.default_rng(0), {}
    flat = ppo_batch(build_learner(ppo_config("a", "b")), rows=count * length)
    lengths = torch.from_numpy(rng.integers(2, length + 1, count))
    for name, columns in flat.policy_batches.items():
        shaped = {key: value.unflatten(0, (count, length)) for key, value in columns.items()}
        state = learner.module[name].unwrapped().get_initial_state()
        shaped["state_in"] = map_tree(lambda x: torch.rand(count, *x.shape) - 0.5, state)
        shaped |= {"loss_mask": torch.arange(length) < lengths[:, None], "seq_lens": lengths}
        batches[name] = SampleBatch(shaped, _zero_padded=True)
    return MultiAgentBatch(batches, env_steps=count * length)


@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize("kl", [False, True])
def test_sequences_give_the_weights_and_metrics_of_rllibs_learner(shuffle: bool, kl: bool) -> None:
    """Minibatches of 32 steps are some nine of the 14 sequences, so that epochs end in the midst of them."""
    model = DefaultModelConfig(
        fcnet_hiddens=[8], use_lstm=True, lstm_cell_size=8, max_seq_len=5, vf_share_layers=False
    )
    stock, ours = both("a", "b", model=model, use_kl_loss=kl, num_epochs=3)
    batch = sequences(stock)
    theirs, mine = (train(learner, batch, shuffle=shuffle) for learner in (stock, ours))
    assert_same_weights(stock, ours)
    for module in ("a", "b"):
        del theirs[module]["vf_explained_var"]  # RLlib's is of the padding, too
    assert_same_metrics(theirs, mine)


def assert_same_weights(stock: Learner, ours: Learner) -> None:
    for (name, theirs), mine in zip(weights(stock).items(), weights(ours).values(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-6, atol=3e-6, msg=name)


def changed(before: dict[str, torch.Tensor], learner: Learner) -> set[str]:
    """The modules whose weights are others than before."""
    now = weights(learner)
    return {name.split("/")[0] for name, value in before.items() if not torch.equal(value, now[name])}


def test_metrics_are_those_of_rllibs_learner() -> None:
    stock, ours = both("a", "b", use_kl_loss=True, grad_clip=0.05, grad_clip_by="global_norm")
    batch = ppo_batch(stock)
    theirs, mine = (train(learner, batch) for learner in (stock, ours))
    assert_same_metrics(theirs, mine)


def assert_same_metrics(theirs: Any, mine: Any) -> None:
    for module in ("a", "b", "__all_modules__"):
        known = {key: value for key, value in theirs[module].items() if "throughput" not in key}
        missing = set(known) - set(mine[module]) - {"diff_num_grad_updates_vs_sampler_policy"}
        assert not missing
        for key, value in known.items():
            if np.isscalar(peek(value)) and "throughput" not in key:
                expected = pytest.approx(peek(value), rel=1e-4, abs=1e-6, nan_ok=True)
                assert peek(mine[module][key]) == expected, key


def peek(value: Any) -> Any:
    return value.peek() if hasattr(value, "peek") else value


def test_regularized_learner_is_the_stock_one_regularized() -> None:
    aajr = make_regularizer("aajr", coefficient=0.1, epsilon=0.1)
    stock, ours = (build_learner(robustify(c, aajr)) for c in (ppo_config(), lean(ppo_config())))
    batch = ppo_batch(stock)
    for learner in (stock, ours):
        train(learner, batch)
    assert_same_weights(stock, ours)
    plain = build_learner(lean(ppo_config()))
    train(plain, batch)
    assert any(
        not torch.equal(a, b) for a, b in zip(weights(plain).values(), weights(ours).values(), strict=True)
    )


def test_gradients_that_are_not_finite_stop_the_update() -> None:
    learner = build_learner(lean(ppo_config()))
    batch = ppo_batch(learner)
    batch["a"]["advantages"][5] = float("inf")
    with pytest.raises(NonFiniteError, match="module 'a'"):
        train(learner, batch)


def test_optimizer_goes_on_from_the_state_of_rllibs_and_from_its_own() -> None:
    stock, ours = both(use_kl_loss=False)  # whose coefficient is in no learner's state
    batch = ppo_batch(stock)
    train(stock, batch)
    ours.set_state(stock.get_state())
    resumed = build_learner(lean(ppo_config(use_kl_loss=False)))
    resumed.set_state(ours.get_state())
    for learner in (stock, ours, resumed):
        train(learner, batch, updates=1)
    assert_same_weights(stock, ours)
    assert_same_weights(ours, resumed)


def test_frozen_modules_stay_as_they_are() -> None:
    learner = build_learner(lean(ppo_config("a", "b").multi_agent(policies_to_train=["b"])))
    before = weights(learner)
    train(learner, ppo_batch(learner))
    assert changed(before, learner) == {"b"}


@pytest.mark.parametrize("kl", [False, True])
def test_module_without_rows_does_not_move(kl: bool) -> None:
    learner = build_learner(lean(ppo_config("a", "b", use_kl_loss=kl)))
    batch = ppo_batch(learner)
    train(learner, batch)
    before = weights(learner)
    train(learner, MultiAgentBatch({"a": batch["a"]}, env_steps=64))
    assert changed(before, learner) == {"a"}


def test_nothing_to_train_is_no_error() -> None:
    learner = build_learner(lean(ppo_config("a").multi_agent(policies_to_train=[])))
    update(learner, ppo_batch(learner))


def test_memory_is_filled_again_behind_an_update() -> None:
    settings: Any = torch.utils.deterministic
    before = settings.fill_uninitialized_memory
    with unfilled_memory():
        assert not settings.fill_uninitialized_memory
    assert settings.fill_uninitialized_memory == before
