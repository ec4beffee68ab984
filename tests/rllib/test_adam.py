"""The lean Adam against torch's: the same numbers whatever is mixed."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import torch

from marl_aajr.rllib.lean.learner import LeanAdam


def networks() -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    generator = torch.Generator().manual_seed(0)
    made = [torch.randn(shape, generator=generator) for shape in ((3, 4), (3,), (2, 3))]
    return [p.clone().requires_grad_() for p in made], [p.clone().requires_grad_() for p in made]


def play(ours: LeanAdam, theirs: torch.optim.Adam, steps: str) -> None:
    """One letter a step: d(escend), s(tep), p(artial gradients)."""
    generator = torch.Generator().manual_seed(len(steps))
    for kind in steps:
        for mine, other in zip(ours.param_groups[0]["params"], theirs.param_groups[0]["params"], strict=True):
            mine.grad = torch.randn(mine.shape, generator=generator)
            other.grad = mine.grad.clone()
        if kind == "p":
            ours.param_groups[0]["params"][1].grad = theirs.param_groups[0]["params"][1].grad = None
        if kind == "s":
            ours.step()
        else:
            ours.descend()
        theirs.step()


def assert_same(ours: Any, theirs: Any) -> None:
    for mine, other in zip(ours.param_groups[0]["params"], theirs.param_groups[0]["params"], strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-6, atol=1e-7)
    for index, state in theirs.state_dict()["state"].items():
        for name, value in state.items():
            torch.testing.assert_close(ours.state_dict()["state"][index][name], value, rtol=1e-6, atol=1e-7)


def test_steps_are_those_of_torch_however_they_are_mixed() -> None:
    first, second = networks()
    ours, theirs = LeanAdam(first), torch.optim.Adam(second)
    play(ours, theirs, "dddsddpdds")
    assert_same(ours, theirs)


def test_state_goes_over_to_torch_and_back() -> None:
    first, second = networks()
    ours, theirs = LeanAdam(first), torch.optim.Adam(second)
    play(ours, theirs, "dd")
    back = LeanAdam(first)
    theirs.load_state_dict(deepcopy(ours.state_dict()))
    back.load_state_dict(deepcopy(theirs.state_dict()))
    play(back, theirs, "dpd")
    assert_same(back, theirs)
    assert {float(state["step"]) for state in back.state.values()} == {4.0, 5.0}
