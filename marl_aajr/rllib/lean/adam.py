"""Adam's fused kernel without what torch does around it at every step."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor


class LeanAdam(torch.optim.Adam):
    """`Adam(fused=True)` with a `descend` beside `step`: the same numbers and state, fewer lines.

    Torch counts the steps of every parameter in a tensor of its own, groups parameters by device and type at
    every step, and announces each step to hooks and to its profiler. `descend` does none of this: all
    parameters have one counter, because they have always moved together.

    Args:
        params: The parameters, all floating-point and on one device.
    """

    def __init__(self, params: Iterable[Tensor]) -> None:
        self._known: tuple[list[Tensor], ...] | None = None
        super().__init__(list(params), fused=True)

    @torch.no_grad()
    def descend(self) -> None:
        """One step down the gradients, without hooks; torch's `step` where a parameter has no gradient."""
        (group, *others) = self.param_groups
        gradients = [parameter.grad for parameter in group["params"]]
        complete = not others and all(gradient is not None for gradient in gradients)
        if not complete or self._known is None:
            self.step()
            if complete:
                self._know(group["params"])
            return
        counters, averages, squares = self._known
        counters[0].add_(1)
        beta1, beta2 = group["betas"]
        torch._fused_adam_(
            group["params"],
            gradients,
            averages,
            squares,
            [],
            counters,
            lr=group["lr"],
            beta1=beta1,
            beta2=beta2,
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            amsgrad=False,
            maximize=False,
        )

    def step(self, closure: Any = None) -> Any:
        """Torch's step."""
        self._forget()
        return super().step(closure)

    def state_dict(self) -> dict[str, Any]:
        """The state, which torch's Adam can load."""
        self._forget()
        return super().state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Goes on from a state; of RLlib's learner, too."""
        super().load_state_dict(state_dict)
        for group in self.param_groups:
            group["fused"] = True
        self._forget()

    def _know(self, parameters: list[Tensor]) -> None:
        states = [self.state[parameter] for parameter in parameters]
        counts = {float(state["step"]) for state in states}
        if len(counts) > 1:
            return
        counter = states[0]["step"]
        for state in states:
            state["step"] = counter
        averages, squares = ([state[name] for state in states] for name in ("exp_avg", "exp_avg_sq"))
        self._known = ([counter] * len(states), averages, squares)

    def _forget(self) -> None:
        """A counter of its own for every parameter again, as torch's step counts them one by one."""
        self._known = None
        for state in self.state.values():
            if "step" in state:
                state["step"] = state["step"].clone()
