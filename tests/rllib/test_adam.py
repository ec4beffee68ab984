"""The flat Adam against torch's: the same numbers whatever is mixed."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import torch
from torch import nn

from marl_aajr.rllib.lean.adam import FlatAdam


def networks() -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    generator = torch.Generator().manual_seed(0)
    made = [torch.randn(shape, generator=generator) for shape in ((3, 4), (3,), (2, 3))]
    return [p.clone().requires_grad_() for p in made], [p.clone().requires_grad_() for p in made]


def play(ours: FlatAdam, theirs: torch.optim.Adam, steps: str) -> None:
    """One letter a step: d(escend), s(tep), p(artial gradients)."""
    generator = torch.Generator().manual_seed(len(steps))
    mine, others = ours.param_groups[0]["params"], theirs.param_groups[0]["params"]
    for kind in steps:
        gradients = [torch.randn(parameter.shape, generator=generator) for parameter in others]
        for parameter, gradient in zip(others, gradients, strict=True):
            parameter.grad = gradient.clone()
        if kind == "d":
            assert ours.take(gradients)
            ours.descend()
        else:
            for parameter, gradient in zip(mine, gradients, strict=True):
                parameter.grad = gradient
            if kind == "p":
                mine[1].grad = others[1].grad = None
            ours.step()
        theirs.step()


def assert_same(ours: Any, theirs: Any) -> None:
    for mine, other in zip(ours.param_groups[0]["params"], theirs.param_groups[0]["params"], strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-6, atol=1e-7)
    for index, state in theirs.state_dict()["state"].items():
        for name, value in state.items():
            torch.testing.assert_close(ours.state_dict()["state"][index][name], value, rtol=1e-6, atol=1e-7)


def test_steps_are_those_of_torch_however_they_are_mixed() -> None:
    first, second = networks()
    ours, theirs = FlatAdam(first), torch.optim.Adam(second)
    play(ours, theirs, "dddsddpdds")
    assert_same(ours, theirs)


def test_gradients_are_taken_all_together_or_not_at_all() -> None:
    ours = FlatAdam(networks()[0])
    ours.gradient.fill_(7.0)
    assert not ours.take([torch.ones(3, 4), None, torch.ones(2, 3)])
    assert bool((ours.gradient == 7.0).all())


def test_state_goes_over_to_torch_and_back() -> None:
    first, second = networks()
    ours, theirs = FlatAdam(first), torch.optim.Adam(second)
    play(ours, theirs, "dd")
    back = FlatAdam(first)
    theirs.load_state_dict(deepcopy(ours.state_dict()))
    back.load_state_dict(deepcopy(theirs.state_dict()))
    play(back, theirs, "dpd")
    assert_same(back, theirs)
    assert {float(state["step"]) for state in back.state.values()} == {4.0, 5.0}


def test_a_state_of_no_steps_begins_anew() -> None:
    first, second = networks()
    ours = FlatAdam(first)
    play(ours, torch.optim.Adam(networks()[1]), "dd")
    ours.load_state_dict(torch.optim.Adam(second).state_dict())
    assert not any(value.any() for state in ours.state.values() for value in state.values())


def test_weights_that_were_assigned_are_taken_up() -> None:
    network, other = nn.Linear(3, 2), nn.Linear(3, 2)
    ours = FlatAdam(network.parameters())
    network.load_state_dict(other.state_dict(), assign=True)
    ours.param_groups[0]["params"][:] = list(network.parameters())
    ours.adopt()
    ours.gradient.fill_(1.0)
    ours.descend()
    assert bool((network.weight < other.weight).all())
