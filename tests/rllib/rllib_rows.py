"""The rows that RLlib's own connectors would make of the same steps, for comparisons with it.

RLlib appends to every agent's piece of an episode a phantom row, the observation after its last step, so
that one pass of the critic yields the bootstrap values too. Phantom rows are masked in the loss, but they
count in the standardisation of the advantages, with an "advantage" that runs on into whatever piece comes
next (`ray/rllib/connectors/learner/general_advantage_estimation.py`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from marl_aajr.rollout.fragments import Fragment, ModuleFragment
from marl_aajr.rollout.postprocessing import (
    TrainingRows,
    ValueFunction,
    advantages_of,
    join,
    standardize,
    values_of,
)


def stock_rows(
    fragments: Sequence[Fragment], module: str, critic: ValueFunction, *, gamma: float, lambda_: float
) -> TrainingRows:
    """RLlib's rows of one module: phantom rows in their places, advantages standardised over all of them.

    Pieces are in the order of RLlib's env runner: episodes by the step in which they end, then those that go
    on, copy by copy; within an episode, agent by agent.

    Args:
        fragments: What the runners returned.
        module: Whose rows.
        critic: See `training_rows`.
        gamma: Discount.
        lambda_: λ of GAE.
    """
    pieces = [
        _piece(fragment, part, critic, gamma=gamma, lambda_=lambda_)
        for fragment in fragments
        for part in [fragment.modules[module]]
    ]
    rows, values = join([piece[0] for piece in pieces]), torch.cat([piece[1] for piece in pieces])
    following = gamma * _shifted(values) - values + gamma * lambda_ * _shifted(rows.advantages)
    assert rows.loss_mask is not None
    advantages = torch.where(rows.loss_mask, rows.advantages, following)
    return replace(rows, advantages=standardize(advantages), value_targets=advantages + values)


def _shifted(column: Tensor) -> Tensor:
    """The next row's number; 0 after the last row."""
    return torch.cat([column[1:], column.new_zeros(1)])[: len(column)]


def _piece(
    fragment: Fragment, part: ModuleFragment, critic: ValueFunction, **discounts: float
) -> tuple[TrainingRows, Tensor]:
    """TrainingRows with the advantages of phantom rows still to come, and values."""
    values, final_values = values_of(part, critic)
    advantages, sampled = advantages_of(part, values, final_values, **discounts)
    samples = torch.ones_like(part.terminated) if sampled is None else sampled
    seen = torch.cat([part.obs.flatten(0, 2), part.final_obs])
    worth = torch.cat([values.flatten(), final_values[part.final_at.unbind(1)]])
    layout = torch.tensor(list(_layout(fragment, part, samples)), dtype=torch.int64).reshape(-1, 3)
    looks, steps, real = layout.to(seen.device).unbind(1)

    def rows(column: Tensor) -> Tensor:
        return column[: part.steps].flatten(0, 2)[steps]

    pieces = TrainingRows(
        obs=seen[looks],
        mask=None if part.mask is None else rows(part.mask),
        actions=rows(part.actions),
        log_probs=rows(part.log_probs),
        inputs=rows(part.inputs),
        advantages=rows(advantages),
        value_targets=rows(advantages),
        loss_mask=real.bool(),
    )
    return pieces, worth[looks]


def _layout(fragment: Fragment, part: ModuleFragment, samples: Tensor) -> Iterator[tuple[int, int, bool]]:
    """For every row: which observation, which step, and whether it is real.

    Observations are numbered `(t, g, e)` and then the final ones, steps `(t, g, e)`.
    """
    agents, copies = part.obs.shape[1:3]
    final = {tuple(at): k for k, at in enumerate(part.final_at.tolist())}
    first_final = part.obs.shape[0] * agents * copies

    def number(t: int, g: int, e: int) -> int:
        return (t * agents + g) * copies + e

    for e, start, stop in _chunks(fragment):
        for g in range(agents):
            times = [t for t in range(start, stop) if bool(samples[t, g, e])]
            if not times:
                continue
            yield from ((number(t, g, e), number(t, g, e), True) for t in times)
            end = next((k for t in range(times[-1], stop) if (k := final.get((t, g, e))) is not None), None)
            if end is None:
                after = next(t for t in range(times[-1] + 1, part.steps + 1) if _sees(part, t, g, e))
                look = number(after, g, e)
            else:
                look = first_final + end
            yield look, number(times[-1], g, e), False


def _chunks(fragment: Fragment) -> Iterator[tuple[int, int, int]]:
    """Copy, first step and last step + 1 of each episode's part in the fragment, in RLlib's order."""
    over = fragment.episode_over
    begun = [0] * fragment.num_envs
    for t, e in over.nonzero().tolist():
        yield e, begun[e], t + 1
        begun[e] = t + 1
    yield from ((e, start, len(over)) for e, start in enumerate(begun) if start < len(over))


def _sees(part: ModuleFragment, t: int, g: int, e: int) -> bool:
    return part.acts is None or bool(part.acts[t, g, e])
