"""A rollout buffer: the columns of one module while they are filled, step by step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from marl_aajr.core.policy import Tree, map_tree, where_rows
from marl_aajr.rollout.batched_env import BatchedStep
from marl_aajr.rollout.fragments import ModuleFragment

_PER_STEP = ("actions", "log_probs", "inputs")
_OUTCOME = {"rewards": torch.float32, "terminated": torch.bool, "truncated": torch.bool}


def stacked(by_agent: Mapping[str, Tensor | None], agents: tuple[str, ...]) -> Tensor:
    """The agents' tensors `[E, ...]` as `[G, E, ...]`; float64 becomes float32, as modules want it."""
    tensors = [by_agent[agent] for agent in agents]
    first = tensors[0]
    assert first is not None
    # Environments whose agents end together hand out one tensor for all of them.
    same = all(tensor is first for tensor in tensors)
    result = first.expand(len(agents), *first.shape) if same else torch.stack(tensors)  # type: ignore[arg-type]
    return result.float() if result.dtype == torch.float64 else result


class Decision(NamedTuple):
    """The decision of one module in one step, for N = G · E rows, agent by agent.

    Attributes:
        actions: `[N, ...]` as the module chose them; these are trained on.
        env_actions: `[N, ...]` as the environment takes them.
        log_probs: `[N]` float32.
        inputs: `[N, m]` float32, distribution inputs.
        state: Recurrent state `[N, ...]` before this step, where the policies want it kept.
    """

    actions: Tensor
    env_actions: Tensor
    log_probs: Tensor
    inputs: Tensor
    state: Tree | None = None


class StepInputs(NamedTuple):
    """The current observations of the agents of a module: `[G, E, ...]`.

    Attributes:
        obs: Observations.
        acts: bool, who must act.
        mask: Legal actions, or None.
        all_act: Whether everybody must act.
        none_acts: Whether nobody must.
        clean: Where an adversary may have changed them, observations as they would be without it.
        path: Points of its path, where they are kept (`marl_aajr.rollout.attack.kept_path`).
    """

    obs: Tensor
    acts: Tensor
    mask: Tensor | None
    all_act: bool
    none_acts: bool = False
    clean: Tensor | None = None
    path: Tensor | None = None

    def rows(self) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Observations, legal actions and who acts as `[G · E, ...]`; None for all."""
        mask = None if self.mask is None else self.mask.flatten(0, 1)
        return self.obs.flatten(0, 1), mask, None if self.all_act else self.acts.flatten()


Row = dict[str, Any]
"""One row `[G, E, ...]` of each column, by name, with the recurrent `state` before it."""


def pending_decisions(part: ModuleFragment, state: Tree | None) -> Row | None:
    """The decisions whose outcome was still open when a fragment ended; None where there are none.

    Args:
        part: The fragment.
        state: Recurrent state before each agent's latest decision, `[G, E, ...]`.

    Returns:
        The decisions of the agents in `acts`; `rewards` is what they were told since, if anything.
    """
    if part.acts is None:
        return None
    count = torch.arange(1, part.steps + 1, device=part.acts.device)[:, None, None]
    decided = (part.acts[:-1] * count).amax(0)
    ended = ((part.terminated | part.truncated) * count).amax(0)
    acts = (decided > ended) & ~part.acts[-1]
    if not bool(acts.any()):
        return None
    at = (decided - 1).clamp(min=0)

    def row(column: Tensor | None) -> Tensor | None:
        if column is None:
            return None
        return column.take_along_dim(at.view(1, *at.shape, *[1] * (column.ndim - 3)), 0)[0]

    rewards = part.rewards.masked_fill(count <= at, 0.0).sum(0)
    columns = {name: row(getattr(part, name)) for name in ("obs", "mask", *_PER_STEP)}
    clean = part.obs if part.clean_obs is None else part.clean_obs
    columns |= {"clean_obs": row(clean), "path": row(part.path)}
    return {**columns, "acts": acts, "rewards": rewards, "state": state}


class RolloutBuffer:
    """Allocated when the first step shows their shapes, then written row by row.

    Args:
        agents: The G agents.
        steps: T, the rows.
        opened: Decisions that the last fragment left open (`pending_decisions`); they become the first row.
            Where other modules have some and this one has not, the first row stays empty.
        sequence: L, if the module is recurrent: states before steps 0, L, 2 L, ... are kept.

    Attributes:
        before: Recurrent state before each agent's latest decision, `[G, E, ...]`; None without states.
    """

    def __init__(
        self, agents: tuple[str, ...], steps: int, opened: Row | None, sequence: int | None = None
    ) -> None:
        self._agents = agents
        self._steps = steps
        self._opened = opened or {}
        self._sequence = sequence
        self.before: Tree | None = self._opened.get("state")
        self._columns: dict[str, Tensor] = {}
        self._finals: dict[int, Mapping[str, Tensor]] = {}
        self._states: list[Tree] = []
        self._all_act = True

    def write(self, t: int, head: StepInputs, decision: Decision) -> None:
        """Writes the observations and decisions of step `t`."""
        shape = head.acts.shape
        if not self._columns:
            self._allocate(t, head, decision)
        self._see(t, head)
        for name in _PER_STEP:
            column = self._columns[name]
            column[t] = getattr(decision, name).view(column.shape[1:])
        if self._sequence is not None:
            self._remember(t, head, map_tree(lambda x: x.view(*shape, *x.shape[1:]), decision.state))

    def outcome(self, t: int, step: BatchedStep) -> None:
        """Writes the outcome of step `t`."""
        parts = (step.rewards, step.terminations, step.truncations)
        for name, part in zip(_OUTCOME, parts, strict=True):
            self._columns[name][t] = stacked(part, self._agents)
        # Asking now whether somebody has ended would make a device wait at every step.
        self._finals[t] = step.final_obs

    def last(self) -> list[tuple[Tensor, Tensor]]:
        """Of each step in which episodes ended the last observations `[K, ...]` and (t, g, e) `[K, 3]`."""
        ended = (self._columns["terminated"] | self._columns["truncated"]).nonzero()
        self._final_at = ended
        # Asked of a device once, whatever the number of steps.
        ends, counts = ended[:, 0].unique_consecutive(return_counts=True)
        return [
            (stacked(self._finals[t], self._agents)[at[:, 1], at[:, 2]], at)
            for t, at in zip(ends.tolist(), ended.split(counts.tolist()), strict=True)
        ]

    def finish(self, head: StepInputs, last: Sequence[Tensor]) -> ModuleFragment:
        """The fragment.

        Args:
            head: The observations after its last step.
            last: The observations of `last`, as the module sees them.
        """
        self._see(self._steps, head)
        columns = self._columns
        return ModuleFragment(
            agents=self._agents,
            mask=columns.get("mask"),
            clean_obs=columns.get("clean_obs"),
            path=columns.get("path"),
            acts=None if self._all_act else columns["acts"],
            final_at=self._final_at,
            final_obs=torch.cat([columns["obs"].new_empty((0, *columns["obs"].shape[3:])), *last]),
            states=map_tree(lambda *leaves: torch.stack(leaves), *self._states) if self._states else None,
            **{name: columns[name] for name in ("obs", *_OUTCOME, *_PER_STEP)},
        )

    def _see(self, t: int, head: StepInputs) -> None:
        self._columns["obs"][t] = head.obs
        self._columns["acts"][t] = head.acts
        self._all_act &= head.all_act
        if head.mask is not None:
            self._columns["mask"][t] = head.mask
        for name, value in (("clean_obs", head.clean), ("path", head.path)):
            if value is not None:
                self._columns[name][t] = value

    def _remember(self, t: int, head: StepInputs, state: Tree) -> None:
        assert self._sequence is not None
        if not self._states:
            # Row 0 may be decisions that were open: then it is the state before them.
            first = state
            if opened := self._opened:
                first = map_tree(partial(where_rows, opened["acts"]), opened["state"], state)
            self._states.append(first)
        if t and t % self._sequence == 0:
            self._states.append(state)
        if not (head.all_act or self.before is None):
            state = map_tree(partial(where_rows, head.acts), state, self.before)
        self.before = state

    def _allocate(self, lead: int, head: StepInputs, decision: Decision) -> None:
        steps, shape, new = self._steps, head.acts.shape, self._columns
        shown = {"obs": head.obs, "acts": head.acts, "mask": head.mask}
        shown |= {"clean_obs": head.clean, "path": head.path}
        for name, value in shown.items():
            if value is not None:
                new[name] = value.new_empty((steps + 1, *value.shape))
        for name in _PER_STEP:
            value = getattr(decision, name)
            new[name] = value.new_empty((steps, *shape, *value.shape[1:]))
        for name, dtype in _OUTCOME.items():
            new[name] = head.obs.new_empty((steps, *shape), dtype=dtype)
        if lead:
            self._all_act = False
            for name, column in new.items():
                value = self._opened.get(name)
                column[0] = 0 if value is None else value
