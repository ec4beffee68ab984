"""Two real learners against one: the same gradients, metrics and state from the same rows."""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import tree
from ray.rllib.algorithms.algorithm import Algorithm
from ray.rllib.algorithms.ppo import PPOConfig
from ray.rllib.connectors.connector_v2 import ConnectorV2
from ray.rllib.core.columns import Columns
from ray.rllib.core.learner.learner import Learner
from ray.rllib.core.rl_module.default_model_config import DefaultModelConfig
from ray.rllib.evaluation.postprocessing import Postprocessing
from ray.rllib.policy.sample_batch import MultiAgentBatch, SampleBatch
from ray.rllib.utils.minibatch_utils import ShardEpisodesIterator

from marl_aajr import AAJR, robustify
from marl_aajr.core.checks import NonFiniteError
from marl_aajr.regularizers import Regularizer, make_regularizer
from marl_aajr.rllib.lean.learner import LeanPPOTorchLearner
from tests.rllib.learners import build_learner, ppo_batch, ppo_config, update
from tests.rllib.test_algorithms import on_spread

SETTINGS: dict[str, dict[str, Any]] = {
    "aajr": {"coefficient": 0.1, "form": "constraint", "gain_bound": 0.01, "adversarial_weight": 0.5},
    "spectral_normalization": {"layer_bound": 0.5},
    "sum": {
        "members": [
            {"name": "aajr", "coefficient": 0.1, "interval": 1},
            {"name": "smooth_policy", "coefficient": 0.1, "interval": 1},
        ]
    },
}
ACTIVE = AAJR(coefficient=0.1, epsilon=0.2, sample_fraction=1.0)
UNEVEN = np.arange(64) % 5 != 0
UNEVEN[40:60] = False
"""Which of 64 rows count: 25 of the first learner's, 10 of the second's."""


def example(name: str) -> Regularizer:
    """With a share of the rows and noise, wherever the regularizer knows either."""
    once = {} if name in {"spectral_normalization", "sum"} else {"interval": 1}
    return make_regularizer(name, **SETTINGS.get(name, {}), **once)


def learner_of(
    regularizer: Regularizer,
    *,
    learners: int = 0,
    index: int = 0,
    lean: bool = False,
    lstm: bool = False,
    kl: bool = False,
) -> Learner:
    config = ppo_config("a", use_kl_loss=kl, minibatch_size=None, num_epochs=1, lr=1e-4)
    config.learners(num_learners=learners)
    if lean:
        config.learners(learner_class=LeanPPOTorchLearner)
    model = DefaultModelConfig(use_lstm=True, lstm_cell_size=8, max_seq_len=4) if lstm else None
    return build_learner(robustify(config, regularizer), index=index, model=model)


def sequences(learner: Learner, *, rows: int = 16, steps: int = 4) -> MultiAgentBatch:
    """Zero-padded sequences as RLlib's connectors make them, the later half of them short."""
    flat = ppo_batch(learner_of(ACTIVE), rows=rows * steps).policy_batches["a"]
    lengths = torch.tensor([steps] * (rows // 2) + [steps // 2] * (rows // 2))
    columns = {name: column.unflatten(0, (rows, steps)) for name, column in flat.items()}
    columns[Columns.LOSS_MASK] = torch.arange(steps) < lengths.unsqueeze(-1)
    state = learner.module["a"].unwrapped().get_initial_state()
    columns[Columns.STATE_IN] = {name: torch.zeros(rows, *value.shape) for name, value in state.items()}
    columns[Columns.SEQ_LENS] = lengths
    return MultiAgentBatch({"a": SampleBatch(columns, _zero_padded=True)}, env_steps=rows * steps)


def trained(learner: Learner, batch: MultiAgentBatch) -> tuple[list[Any], dict[str, Any], dict[str, float]]:
    """Gradients of two updates, the state and the metrics that they leave."""
    gradients = []
    for _ in range(2):
        results = update(learner, batch)
        gradients.append(last_gradients(learner, "a"))
    state = {name: value.clone() for name, value in learner.get_state()["marl_aajr"]["modules"]["a"].items()}
    regularizer = learner.config.learner_config_dict["marl_aajr_regularizers"]
    metrics = {key: float(stats.peek()) for key, stats in results["a"][regularizer.name].items()}
    metrics.pop("seconds")
    metrics.pop("loss_share", None)  # the share of each learner's own loss
    return gradients, state, metrics


def last_gradients(learner: Learner, module_id: str) -> dict[str, torch.Tensor]:
    module = learner.module[module_id].unwrapped()
    return {name: p.grad.clone() for name, p in module.named_parameters()}


def halves(batch: MultiAgentBatch) -> list[MultiAgentBatch]:
    rows = batch.policy_batches["a"]
    padded, half = rows.zero_padded, len(rows[Columns.OBS]) // 2

    def part(where: slice) -> MultiAgentBatch:
        columns = tree.map_structure(lambda column: column[where], dict(rows))
        return MultiAgentBatch({"a": SampleBatch(columns, _zero_padded=padded)}, env_steps=half)

    return [part(slice(half)), part(slice(half, None))]


@pytest.fixture(scope="module")
def pair(ray_session: None) -> Iterator[Algorithm]:
    """PPO with two learner processes, which are also lent to whatever two learners may do.

    Of one agent: each process has its own order of the agents in an episode.
    """
    config = on_spread(PPOConfig().env_runners(num_env_runners=0).learners(num_learners=2), N=1)
    config.training(train_batch_size_per_learner=20, num_epochs=1, minibatch_size=None, use_kl_loss=False)
    algorithm = robustify(config, ACTIVE).build_algo()
    yield algorithm
    algorithm.stop()


def both(pair: Algorithm, work: Any) -> list[Any]:
    """`work(index)` in the processes of the two learners, at once."""
    from marl_aajr.rllib.internals.learners import learner_index

    results = pair.learner_group.foreach_learner(
        lambda learner: work(learner_index(learner)), timeout_seconds=60.0
    )
    assert len(list(results)) == 2, "a learner waits for the other"
    return [result.get() for result in results]


@pytest.mark.parametrize(
    ("name", "mask"),
    [("aajr", None), *((name, UNEVEN) for name in ("aajr", "sum", "radial", "spectral_normalization"))],
)
def test_two_learners_have_the_gradients_and_the_state_of_one(
    pair: Algorithm, name: str, mask: np.ndarray | None
) -> None:
    """One regularizer of each kind: with a state, of several, of bounds, and of weights without a loss."""
    regularizer = example(name)
    one = learner_of(regularizer)
    batch = ppo_batch(one, mask=mask)
    expected = trained(one, batch)
    parts = halves(batch)
    found = both(pair, lambda i: trained(learner_of(regularizer, learners=2, index=i), parts[i]))
    for learner in found:
        torch.testing.assert_close(learner, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("directions", ["fresh", "epoch"])
def test_the_lean_learner_of_fast_runs_too(pair: Algorithm, directions: Any) -> None:
    regularizer = replace(example("aajr"), directions=directions)  # type: ignore[type-var]
    one = learner_of(regularizer, lean=True)
    batch = ppo_batch(one, mask=UNEVEN)
    expected = trained(one, batch)
    parts = halves(batch)
    found = both(pair, lambda i: trained(learner_of(regularizer, learners=2, index=i, lean=True), parts[i]))
    for learner in found:
        torch.testing.assert_close(learner, expected, rtol=0, atol=1e-5)


def test_recurrent_modules_too(pair: Algorithm) -> None:
    """Rows are sequences; those of the second learner are half padding."""
    one = learner_of(example("aajr"), lstm=True)
    batch = sequences(one)
    expected = trained(one, batch)
    parts = halves(batch)
    found = both(
        pair, lambda i: trained(learner_of(example("aajr"), learners=2, index=i, lstm=True), parts[i])
    )
    for learner in found:
        torch.testing.assert_close(learner, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", ["robust", "lean"])
def test_rows_of_a_module_for_one_learner_only_are_refused_by_all(pair: Algorithm, kind: str) -> None:
    """Whoever has some would wait for ever for the gradient of whoever has none."""

    def refusal(index: int) -> str:
        config = ppo_config("a", "b", minibatch_size=32).learners(num_learners=2)
        if kind == "robust":
            robustify(config, ACTIVE)
        else:
            config.learners(learner_class=LeanPPOTorchLearner)
        learner = build_learner(config, index=index)
        batch = ppo_batch(learner)
        if index == 1:
            del batch.policy_batches["b"]
        with pytest.raises(ValueError, match="expected rows") as caught:
            update(learner, batch)
        return str(caught.value)

    for message in both(pair, refusal):
        assert message.startswith(
            "expected rows of module 'b' for each of the 2 learners, got some for 1 of them only"
        )


def test_a_nan_that_one_learner_meets_stops_all_and_is_named(pair: Algorithm) -> None:
    def failure(index: int) -> str:
        learner = learner_of(ACTIVE, learners=2, index=index)
        batch = ppo_batch(learner)
        if index == 1:
            batch.policy_batches["a"][Columns.OBS][3, 2] = float("nan")
        with pytest.raises(NonFiniteError) as caught:
            update(learner, batch)
        return str(caught.value)

    for message in both(pair, failure):
        assert "regularizer 'aajr' of module 'a', environment step 0: the observations: 1 NaN " in message


def test_their_kl_coefficients_are_those_of_one(pair: Algorithm) -> None:
    """Though the KL of the first's rows alone would halve it, and that of the second's raise it."""

    def trained_with_kl(batch: MultiAgentBatch, **place: Any) -> float:
        learner = learner_of(ACTIVE, kl=True, **place)
        update(learner, batch)
        return learner.get_state()["marl_aajr_adapted"]["curr_kl_coeffs_per_module"]["a"]

    batch = ppo_batch(learner_of(ACTIVE))
    batch.policy_batches["a"][Columns.ACTION_DIST_INPUTS][32:] *= 20.0
    parts = halves(batch)
    one = trained_with_kl(batch)
    found = both(pair, lambda i: trained_with_kl(parts[i], learners=2, index=i))
    assert found == [one, one]
    assert one != trained_with_kl(parts[0])


class PerShard(ConnectorV2):
    """Standardises the advantages of each half of the rows as a learner with that half alone would.

    RLlib counts the masked rows too that it puts behind each episode. Their advantages mean nothing: they
    reach into the next episode, or to 0 after the last.
    """

    def __call__(self, *, rl_module: Any, batch: dict[str, Any], **_: Any) -> dict[str, Any]:
        columns = batch["team"]
        with torch.no_grad():
            values = rl_module["team"].compute_values(columns)
        parts = []
        for targets, baseline in zip(
            columns[Postprocessing.VALUE_TARGETS].chunk(2), values.chunk(2), strict=True
        ):
            targets[-1] = 0.0
            advantages = (targets - baseline).numpy()
            parts.append((advantages - advantages.mean()) / advantages.std())
        columns[Postprocessing.ADVANTAGES] = torch.from_numpy(np.concatenate(parts))
        return batch


def test_end_to_end_they_differ_by_the_standardisation_of_advantages_alone(pair: Algorithm) -> None:
    """From the same episodes: RLlib standardises each learner's advantages by themselves."""
    assert pair.env_runner is not None
    episodes = pair.env_runner.sample(num_episodes=4)
    shards = list(ShardEpisodesIterator(episodes, 2))
    assert [len(shard) for shard in shards] == [2, 2]
    start = pair.learner_group.get_weights()

    def one(*, per_shard: bool) -> dict[str, torch.Tensor]:
        config = pair.config.copy(copy_frozen=False).learners(num_learners=0)
        spec = config.get_multi_rl_module_spec(spaces=pair.env_runner.get_spaces())
        learner = config.learner_class(config=config, module_spec=spec)
        learner.build()
        learner.module.set_state(start)
        if per_shard:
            learner._learner_connector.append(PerShard())
        learner.update(episodes=deepcopy([*shards[0], *shards[1]]), timesteps={}, num_epochs=1)
        return last_gradients(learner, "team")

    pair.learner_group.update(episodes=episodes, timesteps={}, num_epochs=1)
    results = pair.learner_group.foreach_learner(lambda learner: last_gradients(learner, "team"))
    expected, otherwise = one(per_shard=True), one(per_shard=False)
    for two in (result.get() for result in results):
        torch.testing.assert_close(two, expected, rtol=0, atol=1e-5)
        with pytest.raises(AssertionError):
            torch.testing.assert_close(two, otherwise, rtol=0, atol=1e-4)
