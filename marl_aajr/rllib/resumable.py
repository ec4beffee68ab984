"""Learners whose checkpoints hold all that an update depends on.

RLlib's leave out what adapts outside the networks and the optimizers: PPO's and APPO's KL coefficients, SAC's
temperature, what a schedule of the entropy bonus has come to. The first update after a restore would run with
the values of step 0. Learning rates are in the optimizers' state.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from ray.rllib.core.learner.torch.torch_learner import TorchLearner

from marl_aajr.rllib.internals import OpenTorchLearner, adapt, adapted, keep_thread_errors

ADAPTED_KEY = "marl_aajr_adapted"


class ResumableLearnerMixin(OpenTorchLearner):
    """Adds them to the learner's state; training is the learner's own, bit for bit.

    Of several learners RLlib saves the first, and lets each adapt a KL coefficient of its own: restored, all
    have the first one's. What goes wrong in a learner's own thread is raised by :meth:`update`.
    """

    def build(self) -> None:
        super().build()
        self._thread_errors = keep_thread_errors(self)

    def update(self, *args: Any, **kwargs: Any) -> Any:
        result = super().update(*args, **kwargs)
        if self._thread_errors:
            raise self._thread_errors[0]
        return result

    def get_state(self, components: Any = None, *, not_components: Any = None, **kwargs: Any) -> Any:
        state = super().get_state(components, not_components=not_components, **kwargs)
        # Weights are synchronised by the same call, which must stay small.
        if self.saves(ADAPTED_KEY, components, not_components):
            state[ADAPTED_KEY] = adapted(self)
        return state

    def set_state(self, state: Any) -> None:
        super().set_state(state)
        adapt(self, state.get(ADAPTED_KEY, {}))


@cache
def resumable_learner_class(base: type[TorchLearner]) -> type[TorchLearner]:
    """``base`` with :class:`ResumableLearnerMixin` in front; the same class for the same base."""
    if issubclass(base, ResumableLearnerMixin):
        return base
    return type(f"Resumable{base.__name__}", (ResumableLearnerMixin, base), {"__doc__": base.__doc__})
