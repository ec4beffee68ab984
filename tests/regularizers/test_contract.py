"""What every registered regularizer keeps, whatever it penalises."""

from __future__ import annotations

import ast
import inspect
import pickle
from dataclasses import fields, replace
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor

from marl_aajr.core.checks import NonFiniteError
from marl_aajr.core.distributions import ActionDistribution, Categorical
from marl_aajr.core.settings import attributes, declared
from marl_aajr.regularizers import (
    AAJR,
    REGULARIZERS,
    Regularizer,
    SpectralNormalization,
    make_regularizer,
    settings_of,
)
from tests.networks import DISTRIBUTIONS, generator, parameters, tanh_policy
from tests.regularizers.samples import EXAMPLES, evaluate, example, gradients, sample_of

every = pytest.mark.parametrize("name", REGULARIZERS)
every_loss = pytest.mark.parametrize(
    "name", [name for name, cls in REGULARIZERS.items() if cls is not SpectralNormalization]
)
ON_TRAJECTORY = [
    make_regularizer(name, at="trajectory", sample_fraction=1.0)
    for name in ("random_direction", "frobenius", "spectral")
]


def test_it_is_a_value() -> None:
    names = {cls.__name__: cls for cls in REGULARIZERS.values()}
    for name in REGULARIZERS:
        regularizer = example(name)
        assert pickle.loads(pickle.dumps(regularizer)) == regularizer
        assert hash(regularizer) == hash(pickle.loads(pickle.dumps(regularizer)))
        assert eval(repr(regularizer), names) == regularizer


def test_yaml_can_hold_its_settings() -> None:
    for name in REGULARIZERS:
        regularizer = example(name)
        plain = yaml.safe_load(yaml.safe_dump(_lists(settings_of(regularizer))))
        assert plain["name"] == name
        assert make_regularizer(**plain) == regularizer


def _lists(value: Any) -> Any:
    """Tuples as YAML writes them."""
    if isinstance(value, dict):
        return {key: _lists(inner) for key, inner in value.items()}
    return [_lists(inner) for inner in value] if isinstance(value, list | tuple) else value


def test_it_teaches_its_settings() -> None:
    for name, cls in REGULARIZERS.items():
        assert cls.name == name
        assert cls.summary, name
        with pytest.raises(ValueError, match=rf"expected settings of '{name}' out of .*; got lambda"):
            make_regularizer(name, **{**EXAMPLES.get(name, {}), "lambda": 1})


@every
@pytest.mark.parametrize("distribution", DISTRIBUTIONS, ids=repr)
def test_it_answers_for_every_kind_of_policy(name: str, distribution: ActionDistribution) -> None:
    regularizer = example(name)
    regularizer.check(distribution)
    evaluation = evaluate(regularizer, sample_of(tanh_policy(distribution)))
    assert evaluation.loss.shape == ()
    assert evaluation.metrics["nonfinite"] == 0
    for key, value in evaluation.metrics.items():
        assert value.shape == (), key
        assert not value.requires_grad, key
        assert torch.isfinite(value), key


@every_loss
def test_it_trains_the_policy(name: str) -> None:
    policy = tanh_policy(Categorical(5))
    evaluation = evaluate(example(name), sample_of(policy))
    assert sum(g.abs().sum() for g in gradients(evaluation, parameters(policy))) > 0


@every
def test_same_generator_same_numbers(name: str) -> None:
    regularizer: Any = example(name)
    if hasattr(regularizer, "sample_fraction"):
        regularizer = replace(regularizer, sample_fraction=0.5)
    sample = sample_of(tanh_policy(Categorical(5)))
    losses = [evaluate(regularizer, sample, seed=seed).loss.item() for seed in (1, 1, 2)]
    assert losses[0] == losses[1]
    assert (losses[1] != losses[2]) == regularizer.active(0)


@every
def test_it_draws_from_its_generator_alone_and_leaves_no_gradient_behind(name: str) -> None:
    policy = tanh_policy(Categorical(5))
    sample = sample_of(policy)
    torch.manual_seed(5)
    before = torch.get_rng_state()
    evaluate(example(name), sample)
    assert torch.equal(before, torch.get_rng_state())
    assert all(parameter.grad is None for parameter in parameters(policy))
    assert not sample.obs.requires_grad


@pytest.mark.parametrize("regularizer", [*map(example, REGULARIZERS), *ON_TRAJECTORY], ids=repr)
def test_padded_rows_never_count(regularizer: Regularizer) -> None:
    """Rows under the mask may hold anything without changing loss, gradient or metrics."""

    def result(fill: float) -> tuple[Tensor, tuple[Tensor, ...], dict[str, Tensor]]:
        policy = tanh_policy(Categorical(5))
        sample = sample_of(policy, mask=torch.tensor([True] * 5 + [False] * 2))
        obs = sample.obs.clone()
        obs[5:] = fill
        evaluation = evaluate(regularizer, replace(sample, obs=obs, outputs=policy(obs)))
        found = gradients(evaluation, parameters(policy)) if evaluation.loss.requires_grad else ()
        return evaluation.loss.detach(), found, dict(evaluation.metrics)

    (loss, gradient, metrics), (other_loss, other_gradient, other_metrics) = result(0.0), result(7.0)
    torch.testing.assert_close(loss, other_loss)
    torch.testing.assert_close(gradient, other_gradient)
    for key, value in metrics.items():
        torch.testing.assert_close(value, other_metrics[key], msg=key)


@every_loss
def test_a_weight_of_zero_switches_it_off(name: str) -> None:
    regularizer = example(name)
    assert regularizer.active(0)
    assert [regularizer.ramped(10, 20).active(t) for t in (0, 10, 11)] == [False, False, True]


@every_loss
def test_a_non_finite_output_is_counted_and_then_named(name: str) -> None:
    policy = tanh_policy(Categorical(5))
    sample = sample_of(policy)
    parameters(policy)[0].data[0, 0] = float("nan")
    assert evaluate(example(name), sample).metrics["nonfinite"].item() > 0
    with pytest.raises(NonFiniteError, match=r"of .* numbers"):
        example(name).evaluate(sample, timestep=0, generator=generator(), check=True)


@every
def test_the_state_is_made_of_tensors_that_a_minibatch_may_read(name: str) -> None:
    regularizer = example(name)
    state = regularizer.initial_state()
    before = {key: value.clone() for key, value in state.items()}
    evaluate(regularizer, sample_of(tanh_policy(Categorical(5))), state=state)
    assert all(torch.equal(before[key], state[key]) for key in before)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device to see what waits for it")
@every
def test_nothing_waits_for_the_accelerator(name: str) -> None:
    policy = tanh_policy(Categorical(5))
    sample = sample_of(policy, rows=64)
    assert isinstance(policy.module, torch.nn.Module)
    policy.module.cuda()
    moved: dict[str, Any] = {
        field.name: value.cuda()
        for field in fields(sample)
        if isinstance(value := getattr(sample, field.name), Tensor)
    }
    sample = replace(sample, **{**moved, "outputs": policy(moved["obs"])})
    noise = torch.Generator("cuda").manual_seed(0)
    # A share of the rows where it takes one: to choose them must not wait either.
    regularizer = make_regularizer(name, **EXAMPLES.get(name, {}))
    state = regularizer.initial_state()
    regularizer.evaluate(sample, timestep=0, generator=noise, state=state)  # constants are copied once
    torch.cuda.set_sync_debug_mode("error")
    try:
        regularizer.evaluate(sample, timestep=0, generator=noise, state=state)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_an_unknown_name_is_refused_with_the_known_ones() -> None:
    with pytest.raises(
        ValueError, match=r"expected regularizer out of aajr, random_direction, .*got 'jacobi'"
    ):
        make_regularizer("jacobi")


def test_the_defaults_are_shared() -> None:
    """What is compared differs in the penalty alone."""
    reference = AAJR()
    for name in REGULARIZERS:
        if name in EXAMPLES or name == SpectralNormalization.name:
            continue
        regularizer = make_regularizer(name)
        for setting in ("epsilon", "norm", "steps", "step_size", "step", "sample_fraction"):
            if hasattr(regularizer, setting):
                assert getattr(regularizer, setting) == getattr(reference, setting), (name, setting)


def test_it_says_all_of_its_settings_in_the_words_of_the_classes_that_share_them() -> None:
    for cls in REGULARIZERS.values():
        described = attributes(inspect.getdoc(cls) or "")
        assert set(described) == {field.name for field in fields(cls)}, cls  # type: ignore[arg-type]
        said = declared(f"{cls.__module__}.{cls.__name__}")
        assert {key: setting.text for key, setting in said.items()} == described, cls


def test_aajr_says_all_of_its_settings_where_it_is_written_in_the_words_of_its_bases() -> None:
    """Editors show the docstring as it stands in the file; the rivals get what is shared on import."""
    (written,) = (
        ast.get_docstring(node)
        for node in ast.parse(inspect.getsource(inspect.getmodule(AAJR))).body  # type: ignore[arg-type]
        if isinstance(node, ast.ClassDef) and node.name == "AAJR"
    )
    described = attributes(written or "")
    assert set(described) == {field.name for field in fields(AAJR)}
    for base in AAJR.__mro__[1:]:
        for name, text in attributes(inspect.cleandoc(base.__doc__ or "")).items():
            assert described[name] == text, (base.__name__, name)
