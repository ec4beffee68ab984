"""What RLlib only logs, raised."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from ray.exceptions import RayError, RayTaskError
from ray.rllib.algorithms.algorithm import Algorithm

from marl_aajr.core.numerics import NonFiniteError

_LOGGER = logging.getLogger("marl_aajr")


class _NonFiniteGradient(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        if record.getMessage().startswith("Gradients "):
            raise NonFiniteError("a gradient of the loss is NaN or infinite")
        return True


class _ActorError(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        error = sys.exc_info()[1]
        if isinstance(error, RayTaskError):
            raise error.cause from None
        if isinstance(error, RayError):
            _LOGGER.warning("lost a process of the run: %s", str(error).splitlines()[0])
        return False


_ALARMS: dict[str, logging.Filter] = {
    "ray.rllib.core.learner.torch.torch_learner": _NonFiniteGradient(),
    "ray.rllib.utils.actor_manager": _ActorError(),
}


@contextmanager
def errors_raise() -> Iterator[None]:
    """Within this block, what RLlib only logs is raised in this process.

    `TorchLearner.apply_gradients` warns about a gradient that is not finite and goes on with NaN → 0 and
    Inf → 3.4e38; the metrics, which keep the last minibatch only, may never show it.

    `FaultTolerantActorManager` treats an error *in* an env runner, such as a broken environment, like the
    loss of the runner: it logs it, restarts, and would do so for ever. Lost runners are still restarted.
    """
    levels = {name: logging.getLogger(name).level for name in _ALARMS}
    _sound_alarms()
    try:
        yield
    finally:
        for name, alarm in _ALARMS.items():
            logging.getLogger(name).removeFilter(alarm)
            logging.getLogger(name).setLevel(levels[name])


def remote_errors_raise(algorithm: Algorithm) -> None:
    """`errors_raise` in the processes of remote learners, for their lifetime."""
    if algorithm.config.num_learners > 0:
        algorithm.learner_group.foreach_learner(lambda _: _sound_alarms())


def _sound_alarms() -> None:
    for name, alarm in _ALARMS.items():
        logging.getLogger(name).setLevel(logging.WARNING)
        logging.getLogger(name).addFilter(alarm)
