"""Rows for recurrent modules: decisions in sequence, cut to a length, padded, with the state before them.

The runner keeps the states at every L-th step only. A sequence therefore begins at a multiple of L, with the
state that was kept there, or behind the end of an episode, with the initial one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from marl_aajr.core.policy import Tree, map_tree
from marl_aajr.rollout.fragments import Fragment, ModuleFragment
from marl_aajr.rollout.postprocessing import TrainingRows, advantages_of, join, samples_of, standardize

RecurrentValueFunction = Callable[[Tensor, Tensor | None, Tree], Tensor]
"""Observations `[B, L, ...]`, legal actions or None, and states `[B, ...]` to values `[B, L]`."""


def sequence_rows(
    fragments: Sequence[Fragment],
    module: str,
    critic: RecurrentValueFunction,
    initial_state: Tree,
    *,
    length: int,
    gamma: float,
    lambda_: float,
) -> TrainingRows:
    """The sequences of one module in some fragments; see `marl_aajr.rollout.postprocessing.training_rows`.

    Args:
        fragments: The runners' fragments.
        module: The module of the rows.
        critic: The values of the module that is trained.
        initial_state: Of one agent at the beginning of an episode.
        length: L, the module's longest sequence.
        gamma: Discount.
        lambda_: λ of GAE.
    """
    parts = ((fragment.modules[module], fragment.episode_over) for fragment in fragments)
    rows = join(
        [_sequences(*part, critic, initial_state, length, gamma=gamma, lambda_=lambda_) for part in parts]
    )
    advantages = torch.zeros_like(rows.advantages)
    advantages[rows.loss_mask] = standardize(rows.advantages[rows.loss_mask])
    return replace(rows, advantages=advantages)


def _sequences(
    part: ModuleFragment,
    episode_over: Tensor,
    critic: RecurrentValueFunction,
    initial_state: Tree,
    length: int,
    **discounts: float,
) -> TrainingRows:
    assert part.states is not None
    device, plan = part.obs.device, _plan(part, episode_over, length)
    steps = _padded([one.steps for one in plan], length, device)
    looks = _padded([one.looks for one in plan], length + 1, device)
    places = torch.tensor([one.state for one in plan], dtype=torch.int64, device=device).view(-1, 3)
    fresh = torch.tensor([one.fresh for one in plan], dtype=torch.bool, device=device)

    def before(kept: Tensor, initial: Tensor) -> Tensor:
        states = kept[places.unbind(1)]
        states[fresh] = initial.to(states)
        return states

    states = map_tree(before, part.states, initial_state)
    seen = torch.cat([part.obs.flatten(0, 2), part.final_obs])
    legal = None
    if part.mask is not None:
        unmasked = part.mask.new_ones((len(part.final_obs), *part.mask.shape[3:]))
        legal = torch.cat([part.mask.flatten(0, 2), unmasked])
    with torch.no_grad():
        valued = critic(_take(seen, looks), None if legal is None else _take(legal, looks), states)
    worth = valued.new_zeros(len(seen))
    worth[looks[looks >= 0]] = valued[looks >= 0]
    split = part.obs.shape[:3].numel()
    final_values = torch.zeros_like(part.rewards)
    final_values[part.final_at.unbind(1)] = worth[split:]
    values = worth[:split].view(part.obs.shape[:3])
    advantages, _ = advantages_of(part, values, final_values, **discounts)

    def rows(column: Tensor) -> Tensor:
        return _take(column[: part.steps].flatten(0, 2), steps)

    return TrainingRows.of(part, rows, values, advantages, loss_mask=steps >= 0, states=states)


@dataclass
class _Sequence:
    """Flat numbers of steps `(t, g, e)` and of observations to value, and where its state is kept."""

    steps: list[int]
    looks: list[int]
    state: tuple[int, int, int]
    fresh: bool


def _plan(part: ModuleFragment, episode_over: Tensor, length: int) -> list[_Sequence]:
    over = episode_over.tolist()
    ends = part.terminated | part.truncated
    samples = (torch.ones_like(ends) if part.acts is None else samples_of(part.acts, ends)).tolist()
    ended = ends.tolist()
    first_final = part.obs.shape[:3].numel()
    finals = {tuple(at): first_final + k for k, at in enumerate(part.final_at.tolist())}
    agents, copies = part.obs.shape[1:3]
    plan: list[_Sequence] = []
    for g in range(agents):
        for e in range(copies):
            now: _Sequence | None = None
            last: _Sequence | None = None  # has the latest decision, of which nothing has come yet
            fresh = False
            for t in range(part.steps):
                number = (t * agents + g) * copies + e
                if t % length == 0:
                    now, fresh = None, False
                if samples[t][g][e]:
                    if now is None:
                        now = _Sequence([], [], (t // length, g, e), fresh)
                        plan.append(now)
                    now.steps.append(number)
                    now.looks.append(number)
                    last = now
                elif last is not None and _sees(part, t, g, e):
                    last.looks.append(number)
                    last = None
                if ended[t][g][e]:
                    if last is not None:
                        last.looks.append(finals[t, g, e])
                    last = None
                if over[t][e]:
                    now, fresh = None, True
            if last is not None and _sees(part, part.steps, g, e):
                last.looks.append((part.steps * agents + g) * copies + e)
    return plan


def _sees(part: ModuleFragment, t: int, g: int, e: int) -> bool:
    return part.acts is None or bool(part.acts[t, g, e])


def _padded(rows: list[list[int]], width: int, device: torch.device) -> Tensor:
    padded = [row + [-1] * (width - len(row)) for row in rows]
    return torch.tensor(padded, dtype=torch.int64, device=device).view(-1, width)


def _take(column: Tensor, index: Tensor) -> Tensor:
    """Rows of a column; zeros for index −1."""
    taken = column[index.clamp(min=0)]
    taken[index < 0] = 0
    return taken
