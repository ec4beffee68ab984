"""The plug-in on every kind of policy: the penalty and its gradient against a slow computation row by row."""

from __future__ import annotations

import copy
import logging
from dataclasses import replace
from typing import Any

import pytest
import torch
import tree
from ray.rllib.core.columns import Columns
from ray.rllib.core.learner.learner import Learner
from ray.rllib.core.rl_module import MultiRLModuleSpec
from ray.rllib.evaluation.postprocessing import Postprocessing
from ray.rllib.policy.sample_batch import MultiAgentBatch, SampleBatch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from marl_aajr import AAJR, jacobian, make_regularizer, robustify
from marl_aajr.jacobian import BACKENDS
from marl_aajr.regularizers import REGULARIZERS, Evaluation, Regularizer, ppo_policy_loss
from marl_aajr.regularizers.adversary import Perturbing
from marl_aajr.rllib.observations import check_leaves
from marl_aajr.rllib.policy import module_distribution, module_policy
from marl_aajr.rllib.regularized import RegularizedModule
from tests.networks import generator
from tests.rllib.learners import ppo_config, update
from tests.rllib.policy_cases import CASES, NESTED, Case, columns_of, copied

PENALTY = AAJR(
    coefficient=1.0, epsilon=0.1, steps=2, objective="surrogate", start="zero", sample_fraction=1.0
)


def regularized(case: Case, regularizer: Regularizer, module: Any) -> RegularizedModule:
    if isinstance(regularizer, Perturbing):
        regularizer = replace(regularizer, leaves=case.leaves)
    return RegularizedModule(
        "a", regularizer, module, policy_loss=ppo_policy_loss(0.3), backends=BACKENDS, shard=None
    )


def evaluated(of: RegularizedModule, columns: dict[str, Any]) -> Evaluation:
    sample = of.sample(columns, None)
    fitted = of.regularizer.fitted(sample.policy, sample.obs)
    return fitted.evaluate(sample, timestep=0, generator=generator(), check=True)


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


@pytest.mark.parametrize("name", CASES)
def test_a_learner_trains_with_the_penalty_and_says_once_which_derivative_it_fell_back_to(
    name: str, caplog: pytest.LogCaptureFixture
) -> None:
    case = CASES[name]
    regularizer = replace(PENALTY, leaves=case.leaves)
    config = robustify(ppo_config("a", num_epochs=1, minibatch_size=None), regularizer)
    learner = built(config, case)
    module = learner.module["a"].unwrapped()
    columns = columns_of(case, module)
    with sdpa_kernel(SDPBackend.MATH):
        slow = slow_penalty(case, copy.deepcopy(module), columns, steps=PENALTY.steps, epsilon=0.1)
    before = copy.deepcopy(module.state_dict())
    jacobian._report_fallback.cache_clear()
    with caplog.at_level(logging.WARNING, logger="marl_aajr.jacobian"):
        results = update(learner, batch_of(columns))
    told = [record.getMessage() for record in caplog.records if record.name == "marl_aajr.jacobian"]
    assert len(told) == (case.backend != "forward")
    assert all(f"using backend={case.backend!r}" in line for line in told)
    assert float(results["a"]["aajr"]["penalty"].peek()) == pytest.approx(slow.item(), rel=2e-3)
    after = module.state_dict()
    assert all(bool(value.isfinite().all()) for value in after.values())
    assert any(not torch.equal(before[key], after[key]) for key in before)


def built(config: Any, case: Case) -> Learner:
    torch.manual_seed(0)
    specs = dict.fromkeys(sorted(config.policies), case.spec)
    learner = config.learner_class(config=config, module_spec=MultiRLModuleSpec(rl_module_specs=specs))
    learner.build()
    return learner


def batch_of(columns: dict[str, Any]) -> MultiAgentBatch:
    return MultiAgentBatch({"a": SampleBatch(columns)}, env_steps=columns[Columns.LOSS_MASK].numel())


SETTINGS: dict[str, dict[str, Any]] = {
    "sum": {"members": [{"name": "aajr", "coefficient": 1.0}, {"name": "frobenius"}]},
}


@pytest.mark.parametrize("name", [name for name in REGULARIZERS if name != "spectral_normalization"])
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


@pytest.mark.parametrize(
    ("leaves", "message"),
    [
        (("velocity",), "expected leaves out of body/0, camera/depth, goal, got 'velocity'$"),
        (("goal", "camera/rgb"), "got 'camera/rgb', which holds torch.uint8; convert it"),
        (("bod",), "got 'bod'$"),
    ],
)
def test_leaves_that_cannot_be_perturbed_are_refused_by_name(leaves: tuple[str, ...], message: str) -> None:
    case = replace(CASES["nested"], leaves=leaves)
    module = case.spec.build()
    of = regularized(case, PENALTY, module)
    with pytest.raises(ValueError, match=message):
        of.sample(columns_of(case, module), None)
    with pytest.raises(ValueError, match=message):
        check_leaves(NESTED, leaves)


@pytest.mark.parametrize(
    ("name", "leaves", "message"),
    [
        ("mlp", ("obs",), "expected no leaves for an observation that is one array, got obs; use mask"),
        ("masked", ("action_mask",), "got 'action_mask', which is an action mask"),
        ("mappo", ("state",), "expected leaves out of observation, got 'state'"),
    ],
)
def test_masks_states_and_leaves_of_arrays_are_refused(
    name: str, leaves: tuple[str, ...], message: str
) -> None:
    case = replace(CASES[name], leaves=leaves)
    module = case.spec.build()
    with pytest.raises(ValueError, match=message):
        regularized(case, PENALTY, module).sample(columns_of(case, module), None)


def test_features_are_in_the_order_of_the_observation_whatever_the_order_of_the_names() -> None:
    """So that one mask means one thing: ``body/0`` (3), ``camera/depth`` (4), ``goal`` (2)."""
    case = CASES["nested"]
    module = case.spec.build()
    columns = columns_of(case, module)
    obs = columns[Columns.OBS]
    for leaves in (None, ("goal", "camera", "body"), ("camera/depth", "body/0", "goal")):
        of = regularized(replace(case, leaves=leaves), PENALTY, module)
        flat = of.sample(columns, None).obs
        expected = torch.cat([obs["body"][0], obs["camera"]["depth"].flatten(1), obs["goal"]], -1)
        assert torch.equal(flat, expected)


def test_a_mask_and_a_choice_of_leaves_mean_the_same() -> None:
    case = CASES["nested"]
    torch.manual_seed(0)
    module = case.spec.build().double()
    columns = columns_of(case, module, dtype=torch.float64)
    chosen = evaluated(regularized(replace(case, leaves=("goal",)), PENALTY, module), columns)
    masked = replace(PENALTY, mask=(False,) * 7 + (True,) * 2)
    torch.testing.assert_close(evaluated(regularized(case, masked, module), columns).loss, chosen.loss)


@pytest.mark.parametrize("leaves", ["goal", [], [3]])
def test_leaves_are_a_list_of_names(leaves: Any) -> None:
    with pytest.raises(ValueError, match=r"expected leaves as a list of names such as \[position"):
        make_regularizer("aajr", leaves=leaves)


def test_a_sum_perturbs_one_choice_of_leaves() -> None:
    both = make_regularizer(
        "sum", members=[{"name": name, "leaves": ["goal"]} for name in ("aajr", "smooth_policy")]
    )
    assert both.perturbed_leaves == ("goal",)
    with pytest.raises(ValueError, match=r"perturb the same leaves, got .*goal.* and None"):
        AAJR(leaves=("goal",)) + make_regularizer("smooth_policy")
    assert (make_regularizer("spectral_normalization") + AAJR(leaves=("goal",))).perturbed_leaves == ("goal",)


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
