"""Adam whose parameters, gradients and moments are one buffer each.

A step of Adam on a few thousand weights is eight microseconds of arithmetic; going through a dozen parameters
one by one takes ten times as long. `FlatAdam` makes the parameters views of one tensor, so that the norm of
their gradient, its check and the step are one call each.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor


class FlatAdam(torch.optim.Adam):
    """`Adam(fused=True)` with a `descend` beside `step`: the same numbers and the same state.

    Args:
        params: Parameters of one dtype on one device. Their data moves into one buffer; they stay the objects
            that they are.

    Attributes:
        gradient: `[n]`, the buffer of all gradients, one parameter after another. `descend` reads it.
        buffers: Its views, by parameter, in their shapes.
    """

    def __init__(self, params: Iterable[Tensor]) -> None:
        parameters = list(params)
        super().__init__(parameters, fused=True)
        first, sizes = parameters[0], [parameter.numel() for parameter in parameters]
        self._weights, self.gradient, self._averages, self._squares = first.new_zeros(4, sum(sizes)).unbind()
        self._counts = torch.zeros(len(parameters), device=first.device)
        self._even = True  # whether all parameters have made the same number of steps
        self.register_step_post_hook(self._compare_counts)

        def views(buffer: Tensor) -> list[Tensor]:
            parts = zip(buffer.split(sizes), parameters, strict=True)
            return [part.view(parameter.shape) for part, parameter in parts]

        self.buffers = dict(zip(parameters, views(self.gradient), strict=True))
        columns = zip(self._counts, views(self._averages), views(self._squares), strict=True)
        self._states = [dict(zip(("step", "exp_avg", "exp_avg_sq"), state, strict=True)) for state in columns]
        self.state.update(zip(parameters, self._states, strict=True))
        self._views = views(self._weights)
        self.adopt()

    def adopt(self) -> None:
        """Takes up the weights of parameters whose data is elsewhere: `load_state_dict(assign=True)`."""
        (group,) = self.param_groups
        for parameter, view in zip(group["params"], self._views, strict=True):
            if parameter.data_ptr() != view.data_ptr():
                view.copy_(parameter.data)
                parameter.data = view

    def take(self, gradients: Sequence[Tensor | None]) -> bool:
        """Copies gradients into the buffer, in the order of the parameters; False if one is missing."""
        given = [gradient for gradient in gradients if gradient is not None]
        if len(given) < len(gradients):
            return False
        torch._foreach_copy_(list(self.buffers.values()), given)
        return True

    @torch.no_grad()
    def descend(self) -> None:
        """One step down the gradient in the buffer, without hooks."""
        self._counts.add_(1)
        (group,) = self.param_groups
        if self._even:
            weights, gradients, counts = [self._weights], [self.gradient], [self._counts[0]]
            averages, squares = [self._averages], [self._squares]
        else:
            weights, gradients = group["params"], list(self.buffers.values())
            counts = list(self._counts)
            averages, squares = (
                [state[name] for state in self._states] for name in ("exp_avg", "exp_avg_sq")
            )
        torch._fused_adam_(
            weights,
            gradients,
            averages,
            squares,
            [],
            counts,
            lr=group["lr"],
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            amsgrad=False,
            maximize=False,
        )

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Goes on from a state; of RLlib's learner, too."""
        super().load_state_dict(state_dict)
        (group,) = self.param_groups
        group["fused"] = True
        for parameter, state in zip(group["params"], self._states, strict=True):
            loaded = self.state[parameter]
            for name, buffer in state.items():
                buffer.copy_(torch.as_tensor(loaded[name])) if loaded else buffer.zero_()
            self.state[parameter] = state
        self._compare_counts()

    def _compare_counts(self, *_: Any) -> None:
        self._even = bool((self._counts == self._counts[0]).all())
