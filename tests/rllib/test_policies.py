"""The plug-in on every kind of policy: the penalty and its gradient against a slow computation row by row."""

from __future__ import annotations

import copy
import logging
from dataclasses import replace
from typing import Any

import pytest
import torch
import tree
from ray.rllib.algorithms.ppo import PPOConfig
from ray.rllib.core.columns import Columns
from ray.rllib.evaluation.postprocessing import Postprocessing
from ray.rllib.policy.sample_batch import MultiAgentBatch, SampleBatch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from marl_aajr import AAJR, make_regularizer, robustify
from marl_aajr.core import jacobian
from marl_aajr.regularizers import LossTerm, Sample
from marl_aajr.rllib.plugin.module_policy import module_distribution, module_policy
from marl_aajr.rllib.sampling.env import register
from tests.regularizers.samples import ANY_POLICY
from tests.rllib.learners import ppo_config, sample_and_update, update
from tests.rllib.policy_cases import (
    CASES,
    LENGTH,
    PENALTY,
    Case,
    batch_of,
    built,
    columns_of,
    copied,
    evaluated,
    lstm,
    regularized,
)


def at(obs: Any, path: tuple[Any, ...]) -> Any:
    for key in path:
        obs = obs[key]
    return obs


def put(obs: Any, path: tuple[Any, ...], value: Tensor) -> Any:
    if not path:
        return value
    parts = list(obs) if isinstance(obs, tuple) else dict(obs)
    parts[path[0]] = put(parts[path[0]], path[1:], value)
    return tuple(parts) if isinstance(obs, tuple) else parts


class Row:
    """One row (or sequence) of a batch and the module, as a function of the perturbed numbers alone."""

    def __init__(self, case: Case, module: Any, columns: dict[str, Any], b: int) -> None:
        self.case, self.module = case, module
        self.lead = 2 if module.is_stateful() else 1
        self.columns = tree.map_structure(lambda column: column[b : b + 1], columns)
        leaves = [at(self.columns[Columns.OBS], path) for path in case.paths]
        self.shapes = [leaf.shape for leaf in leaves]
        self.x = torch.cat([leaf.flatten(self.lead) for leaf in leaves], -1)
        self.valid = self.columns[Columns.LOSS_MASK]

    def outputs(self, x: Tensor) -> Tensor:
        obs = self.columns[Columns.OBS]
        start = 0
        for path, shape in zip(self.case.paths, self.shapes, strict=True):
            size = shape[self.lead :].numel()
            obs = put(obs, path, x[..., start : start + size].reshape(shape))
            start += size
        batch = copied({**self.columns, Columns.OBS: obs})
        return self.module.forward_train(batch)[Columns.ACTION_DIST_INPUTS]

    def ascent(self, x: Tensor) -> Tensor:
        """∇ of −Â log π(a|x), summed over the rows that count."""
        point = x.detach().requires_grad_(True)
        distribution = self.module.get_train_action_dist_cls().from_logits(self.outputs(point))
        g = -self.columns[Postprocessing.ADVANTAGES] * distribution.logp(self.columns[Columns.ACTIONS])
        (gradient,) = torch.autograd.grad(g[self.valid].sum(), point)
        return gradient

    def squared_gains(self, x: Tensor, u: Tensor) -> Tensor:
        """Σ ‖J u‖² over the rows that count, from the Jacobian's rows one by one; forbidden logits apart."""
        point = x.detach().requires_grad_(True)
        outputs = self.outputs(point)
        total = torch.zeros((), dtype=x.dtype)
        for y in outputs[self.valid].flatten():
            if y > -1e30:
                (row,) = torch.autograd.grad(y, point, create_graph=True)
                total = total + (row * u).sum().square()
        return total


def slow_penalty(case: Case, module: Any, columns: dict[str, Any], *, steps: int, epsilon: float) -> Tensor:
    """R of a batch, row by row and output by output, by reverse mode alone."""
    total = torch.zeros((), dtype=torch.float64)
    for b in range(len(columns[Columns.LOSS_MASK])):
        row = Row(case, module, columns, b)
        delta = torch.zeros_like(row.x)
        for _ in range(steps):
            v = row.ascent(row.x + delta)
            norm = v.norm(dim=-1, keepdim=True)
            u = torch.where(norm > 0, v / norm.clamp_min(1e-300), 0.0)
            total = total + row.squared_gains(row.x + delta, u)
            delta = (delta + epsilon / 2 * v.sign()).clamp(-epsilon, epsilon)
    return total / (steps * columns[Columns.LOSS_MASK].sum())


@pytest.mark.parametrize("name", CASES)
def test_penalty_and_gradient_are_those_of_a_slow_computation(name: str) -> None:
    case = CASES[name]
    torch.manual_seed(0)
    module = case.spec.build().double()
    columns = columns_of(case, module, dtype=torch.float64)
    fast = evaluated(regularized(case, PENALTY, module), columns)
    with sdpa_kernel(SDPBackend.MATH):  # the fused kernels have no second derivative
        slow = slow_penalty(case, module, columns, steps=PENALTY.steps, epsilon=0.1)
    assert slow > 0
    # A central difference is exact to O(h²).
    rtol = 1e-6 if case.backend == "central" else 1e-9
    torch.testing.assert_close(fast.loss, slow, rtol=rtol, atol=1e-3 * rtol)
    parameters = [p for p in module.parameters() if p.requires_grad]
    ours, theirs = (
        torch.autograd.grad(loss, parameters, allow_unused=True, materialize_grads=True)
        for loss in (fast.loss, slow)
    )
    assert any(bool((gradient != 0).any()) for gradient in theirs)
    torch.testing.assert_close(ours, theirs, rtol=rtol, atol=1e-3 * rtol)


TRAINED = (
    *("mlp", "box", "lstm", "gru", "attention", "convolution"),
    *("nested-leaf", "masked", "masked-rllib", "mappo-masked"),
)
"""Of each way through the learner one: by backend, memory, nested observations, masks and critics."""


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device to compare with the CPU")
def test_a_cuda_device_finds_the_same_penalty() -> None:
    """Perhaps by another backend: cuDNN's recurrent layers have no second derivative."""
    for case in CASES.values():
        module = case.spec.build().double()
        columns = columns_of(case, module, dtype=torch.float64)
        here = evaluated(regularized(case, PENALTY, module), columns).loss
        columns = tree.map_structure(lambda column: column.cuda(), columns)
        there = evaluated(regularized(case, PENALTY, module.cuda()), columns).loss
        torch.testing.assert_close(there.cpu(), here, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("name", TRAINED)
def test_a_learner_trains_with_the_penalty_and_says_once_which_derivative_it_fell_back_to(
    name: str, caplog: pytest.LogCaptureFixture
) -> None:
    case = CASES[name]
    regularizer = replace(PENALTY, leaves=case.leaves)
    config = robustify(ppo_config("a", num_epochs=1, minibatch_size=None), regularizer)
    learner = built(config, case)
    module = learner.module["a"].unwrapped()
    columns = columns_of(case, module)
    # The test above says that this is the right one.
    of = regularized(case, PENALTY, copy.deepcopy(module))
    expected = evaluated(of, columns).metrics["penalty"].item()
    before = copy.deepcopy(module.state_dict())
    jacobian._report_fallback.cache_clear()
    caplog.clear()
    with caplog.at_level(logging.WARNING, logger="marl_aajr.core.jacobian"):
        results = update(learner, batch_of(columns))
    told = [record.getMessage() for record in caplog.records if record.name == "marl_aajr.core.jacobian"]
    assert len(told) == (case.backend != "forward")
    assert all(f"using backend={case.backend!r}" in line for line in told)
    assert float(results["a"]["aajr"]["penalty"].peek()) == pytest.approx(expected, rel=2e-3)
    after = module.state_dict()
    assert all(bool(value.isfinite().all()) for value in after.values())
    assert any(not torch.equal(before[key], after[key]) for key in before)


SETTINGS: dict[str, dict[str, Any]] = {
    "sum": {"members": [{"name": "aajr", "coefficient": 1.0}, {"name": "frobenius"}]},
}


@pytest.mark.parametrize("name", ANY_POLICY)
def test_what_is_padded_behind_sequences_counts_in_no_regularizer(name: str) -> None:
    """A recurrent policy's padded outputs follow from the observations before them: they must not count."""
    case = CASES["gru"]
    torch.manual_seed(0)
    module = case.spec.build().double()
    of = regularized(case, make_regularizer(name, **SETTINGS.get(name, {})), module)
    columns = columns_of(case, module, dtype=torch.float64)
    padding = ~columns[Columns.LOSS_MASK]
    answers = []
    for fill in (0.0, 3.0):
        other = copied(columns)
        for column in (Columns.OBS, Postprocessing.ADVANTAGES, Columns.ACTION_LOGP):
            other[column] = other[column].clone()
            other[column][padding] = fill
        loss = evaluated(of, other).loss
        gradients = torch.autograd.grad(loss, list(module.parameters()), materialize_grads=True)
        answers.append((loss.detach(), gradients))
    assert answers[0][0] != 0
    torch.testing.assert_close(answers[0], answers[1], rtol=1e-9, atol=1e-12)


STACKS = [
    "mlp",
    "mlp-shared",
    "multi-discrete",
    "box",
    "box-free-sigma",
    "masked",
    "flat-image",
    "mappo",
    "mappo-masked",
]


@pytest.mark.parametrize("name", CASES)
def test_bounds_need_a_stack_of_layers_with_or_without_a_mask(name: str) -> None:
    case, radial = CASES[name], make_regularizer("radial", sample_fraction=1.0)
    torch.manual_seed(0)
    module = case.spec.build().double()
    of, columns = regularized(case, radial, module), columns_of(case, module, dtype=torch.float64)
    if name in STACKS:
        assert evaluated(of, columns).loss > 0
    else:
        with pytest.raises(ValueError, match=f"stack of layers .* got {type(module).__name__}"):
            evaluated(of, columns)


def test_rows_of_a_policy_follow_their_fixed_columns() -> None:
    """Of a part of the rows, and of copies of them, the policy computes what it does of all."""
    for case in CASES.values():
        module = case.spec.build().double()
        columns = columns_of(case, module, dtype=torch.float64)
        policy, obs = module_policy(module, columns, module_distribution(module), leaves=case.leaves)
        index = torch.tensor([2, 0])
        whole = policy(obs)
        torch.testing.assert_close(policy.select(index)(obs[index]), whole[index])
        torch.testing.assert_close(policy.repeat(2)(torch.cat([obs, obs])), torch.cat([whole, whole]))
        torch.testing.assert_close(whole, columns[Columns.ACTION_DIST_INPUTS])


def test_agents_may_have_budgets_of_their_own() -> None:
    """Different settings per agent: radius, norm, form and coefficient of each module are its own."""
    own = {
        "a": replace(PENALTY, epsilon=0.2),
        "b": replace(PENALTY, epsilon=0.05, norm="l2", step="normalized", coefficient=0.1),
    }
    case = CASES["mlp"]
    learner = built(robustify(ppo_config("a", "b", "c", num_epochs=1, minibatch_size=None), own), case)
    columns = columns_of(case, learner.module["a"].unwrapped())
    expected = {}
    for name, regularizer in own.items():
        module = copy.deepcopy(learner.module[name].unwrapped())
        expected[name] = evaluated(regularized(case, regularizer, module), columns).metrics["penalty"].item()
    rows = {name: SampleBatch(columns) for name in "abc"}
    results = update(learner, MultiAgentBatch(rows, env_steps=len(columns[Columns.LOSS_MASK])))
    found = {name: float(results[name]["aajr"]["penalty"].peek()) for name in own}
    assert found == pytest.approx(expected)
    assert found["a"] != pytest.approx(found["b"], rel=0.01)
    assert "aajr" not in results["c"]


def test_rllibs_own_lstm_trains_in_rllibs_own_pipeline(monkeypatch: pytest.MonkeyPatch) -> None:
    """Episodes of 6 steps in sequences of 4: what its connectors hand over is what the cases above are."""
    config = (
        PPOConfig()
        .environment(register("marl_aajr.envs.simple_spread_v3", kwargs={"N": 2, "max_cycles": 6}))
        .env_runners(num_env_runners=0)
        .multi_agent(policies={"team"}, policy_mapping_fn=lambda agent, *_, **__: "team")
        .rl_module(model_config=lstm())
        .training(train_batch_size=30, minibatch_size=30, num_epochs=1)
        .debugging(seed=0, log_level="ERROR")
    )
    samples: list[Sample] = []
    evaluate = AAJR.evaluate

    def spy(self: AAJR, sample: Sample, **kwargs: Any) -> LossTerm:
        samples.append(sample)
        return evaluate(self, sample, **kwargs)

    monkeypatch.setattr(AAJR, "evaluate", spy)
    _, results = sample_and_update(robustify(config, AAJR(coefficient=0.1, epsilon=0.2)))
    assert results["team"]["aajr"]["penalty"].peek() > 0
    assert results["team"]["aajr"]["nonfinite"].peek() == 0
    for sample in samples:
        assert sample.mask is not None
        assert sample.obs.shape == (*sample.mask.shape, 12)
        assert sample.mask.shape[1] == LENGTH
        assert 0 < sample.mask.sum() < sample.mask.numel()
