"""Several learners with a part of a minibatch each: on average they do what one does with all of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from marl_aajr.core.distributions import Categorical
from marl_aajr.core.policy import ModulePolicy
from marl_aajr.regularizers import REGULARIZERS, LossTerm, Regularizer, Sample, make_regularizer
from marl_aajr.regularizers.sample import Shard, share_of
from tests.networks import generator, parameters, tanh_policy
from tests.regularizers.samples import evaluate, example, gradients, sample_of

ON_TRAJECTORY = [
    make_regularizer(name, at="trajectory", sample_fraction=1.0)
    for name in ("random_direction", "frobenius", "spectral")
]
EVERY = [*map(example, REGULARIZERS), *ON_TRAJECTORY]
MASK = torch.tensor([True, True, True, False, True, False, False, False])


def parts(whole: Sample, learners: int, work: Callable[[Sample], Any]) -> list[Any]:
    """`work` of each learner on its part, all of them agreeing on sums as if they ran together."""
    rows = len(whole.obs) // learners
    counts: list[list[Tensor]] = []

    def run(part: int, total: Callable[[Tensor], Tensor]) -> Any:
        shard = Shard.part(part, rows, learners=learners, total=total)
        return work(replace(rows_of(whole, part, learners), shard=shard))

    for part in range(learners):
        counts.append([])

        def note(count: Tensor) -> Tensor:
            counts[-1].append(count)
            return count

        run(part, note)
    assert len({len(own) for own in counts}) == 1, "each learner must call total as often as the others"
    sums = [torch.stack(same).sum() for same in zip(*counts, strict=True)]
    answers = []
    for part in range(learners):
        left = iter(sums)
        answers.append(run(part, lambda _, left=left: next(left)))  # type: ignore[misc]
    return answers


def rows_of(whole: Sample, part: int, learners: int) -> Sample:
    rows = len(whole.obs) // learners
    own = whole.select(torch.arange(rows) + rows * part)
    return replace(own, outputs=own.policy(own.obs))  # a graph of its own


def assert_average(evaluations: Sequence[LossTerm], whole: LossTerm, policy: ModulePolicy) -> None:
    losses = torch.stack([evaluation.loss for evaluation in evaluations])
    torch.testing.assert_close(losses.mean(), whole.loss, rtol=1e-9, atol=1e-12)
    for name, value in whole.metrics.items():
        found = torch.stack([evaluation.metrics[name] for evaluation in evaluations]).double()
        best = {"max": found.amax, "min": found.amin}.get(name[-3:], found.mean)()
        torch.testing.assert_close(best, value.double(), msg=name)
    if whole.loss.requires_grad:
        expected = gradients(whole, parameters(policy))
        found_gradients = [gradients(evaluation, parameters(policy)) for evaluation in evaluations]
        for one, *others in zip(expected, *found_gradients, strict=True):
            torch.testing.assert_close(torch.stack(others).mean(0), one, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("mask", [None, MASK], ids=["every row counts", "most that count are of one"])
@pytest.mark.parametrize("regularizer", EVERY, ids=repr)
def test_the_average_of_all_learners_is_the_answer_of_one(
    regularizer: Regularizer, mask: Tensor | None
) -> None:
    policy = tanh_policy(Categorical(5))
    whole = sample_of(policy, rows=8, mask=mask)
    answers = parts(whole, 2, lambda sample: evaluate(regularizer, sample))
    assert_average(answers, evaluate(regularizer, whole), policy)
    if mask is not None and answers[0].loss.requires_grad:
        # Without the others' counts it would not be: each would take its own for everybody's.
        local = [evaluate(regularizer, rows_of(whole, part, 2)) for part in range(2)]
        with pytest.raises(AssertionError):
            assert_average(local, evaluate(regularizer, whole), policy)


@pytest.mark.parametrize("fraction", [0.5, 0.3, 0.1])
@pytest.mark.parametrize("learners", [2, 4])
@pytest.mark.parametrize("name", ["aajr", "sum"])
def test_they_regularise_the_rows_that_one_would(name: str, learners: int, fraction: float) -> None:
    """Also where some learner has none of them."""
    member = make_regularizer("aajr", sample_fraction=fraction)
    regularizer = member if name == "aajr" else member + make_regularizer("ernie", sample_fraction=fraction)
    policy = tanh_policy(Categorical(5))
    whole = sample_of(policy, rows=8, mask=MASK)
    answers = parts(whole, learners, lambda sample: evaluate(regularizer, sample))
    assert_average(answers, evaluate(regularizer, whole), policy)


def test_the_rows_drawn_are_those_of_one_learner_each_once() -> None:
    policy = tanh_policy(Categorical(5))
    whole = sample_of(policy, rows=12)
    expected = whole.subset(0.5, generator=generator()).obs
    drawn = parts(whole, 3, lambda sample: sample.subset(0.5, generator=generator()))
    places = torch.cat([sample.shard.index for sample in drawn])
    assert sorted(places.tolist()) == list(range(6))
    assert torch.equal(torch.cat([sample.obs for sample in drawn])[places.argsort()], expected)


def test_noise_belongs_to_rows() -> None:
    policy = tanh_policy(Categorical(5))
    whole = sample_of(policy, rows=12)

    def noise(sample: Sample) -> Tensor:
        draws = generator()
        sample = sample.subset(0.5, generator=draws)
        return sample.draw(lambda obs: obs + torch.empty_like(obs).normal_(generator=draws))

    drawn = parts(whole, 2, noise)
    rows = {tuple(row.tolist()) for row in noise(whole)}
    assert {tuple(row.tolist()) for part in drawn for row in part} == rows


def test_a_learner_without_a_row_that_counts_adds_nothing() -> None:
    policy = tanh_policy(Categorical(5))
    mask = torch.tensor([True] * 4 + [False] * 4)
    first, second = parts(sample_of(policy, rows=8, mask=mask), 2, lambda s: evaluate(example("aajr"), s))
    assert first.loss > 0
    assert second.loss == 0


def test_the_choice_of_rows_follows_the_generator() -> None:
    draws = generator()
    first, second = (share_of(10, 4, generator=draws).tolist() for _ in range(2))
    assert first != second
    assert share_of(10, 4, generator=generator()).tolist() == first
    assert len({*first}) == 4
