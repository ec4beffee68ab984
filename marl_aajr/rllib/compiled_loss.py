"""PPO's loss and its gradient, compiled by torch into one function of the weights and a minibatch.

Compiling takes from two seconds (from torch's cache) to a minute; each minibatch then saves a fraction of a
millisecond. It is for long runs: see :func:`worth_compiling`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from marl_aajr.distributions import ActionDistribution
from marl_aajr.rllib.ppo_loss import PPOCoefficients, PPORows, ppo_parts

_LOGGER = logging.getLogger("marl_aajr")

MINIBATCHES_WORTH_COMPILING = 60_000
"""Where half a minute of compiling is earned back, at half a millisecond each."""


def worth_compiling(*, env_steps: int, train_batch_size: int, minibatches: int) -> bool:
    """Whether a run of ``env_steps`` is long enough to compile its loss.

    Args:
        env_steps: Length of the run.
        train_batch_size: Environment steps of one update.
        minibatches: Minibatches of one update, over all epochs.
    """
    return env_steps / train_batch_size * minibatches >= MINIBATCHES_WORTH_COMPILING


class CompiledLoss:
    """The loss of one module whose actor and critic are plain layers.

    Args:
        actor: Observations to distribution inputs.
        critic: Observations to values ``[N, 1]``.
        distribution: What the inputs parametrise.
        backend: Of ``torch.compile``.

    Attributes:
        usable: False once compiling has failed; the reason is in the log.
    """

    def __init__(
        self,
        actor: nn.Sequential,
        critic: nn.Sequential,
        distribution: ActionDistribution,
        *,
        backend: str = "inductor",
    ) -> None:
        self._networks = nn.ModuleDict({"actor": actor, "critic": critic})
        self._distribution = distribution
        self._names = [name for name, _ in self._networks.named_parameters()]
        self._compiled: Callable[..., Any] = torch.compile(self._gradient, dynamic=False, backend=backend)
        self.usable = True

    def __call__(self, obs: Tensor, rows: Sequence[Tensor], coefficients: PPOCoefficients) -> Tensor | None:
        """The loss, differentiable once with respect to the parameters; None where it cannot be compiled.

        Args:
            obs: ``[N, ...]``.
            rows: Actions, log-probabilities, advantages and value targets of `PPORows`.
            coefficients: The numbers of the loss.
        """
        parameters = list(self._networks.parameters())
        c = coefficients
        # Numbers would be compiled in, and those that change would be compiled again.
        numbers = torch.tensor([c.clip, c.vf_clip, c.vf_loss, c.entropy], device=obs.device)
        try:
            with torch.no_grad():
                gradient, loss = self._compiled([p.detach() for p in parameters], obs, *rows, numbers)
        except Exception as error:
            self.usable = False
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            _LOGGER.warning("cannot compile the loss (%s); going on without", reason)
            return None
        known: Tensor = _Known.apply(loss, len(parameters), *gradient, *parameters)
        return known

    def _gradient(self, parameters: list[Tensor], *rest: Tensor) -> tuple[list[Tensor], Tensor]:
        return torch.func.grad_and_value(self._loss)(parameters, *rest)

    def _loss(self, parameters: list[Tensor], obs: Tensor, *rest: Tensor) -> Tensor:
        named = dict(zip(self._names, parameters, strict=True))
        inputs, values = (
            torch.func.functional_call(self._networks[part], _within(named, part), (obs,))
            for part in ("actor", "critic")
        )
        *rows, numbers = rest
        clip, vf_clip, vf_loss, entropy = numbers.unbind()
        parts = ppo_parts(
            self._distribution,
            PPORows(inputs, values.squeeze(-1), *rows),
            clip=clip,
            vf_clip=vf_clip,
        )
        return parts["policy_loss"] + vf_loss * parts["vf_loss"] - entropy * parts["entropy"]


def _within(named: dict[str, Tensor], part: str) -> dict[str, Tensor]:
    return {name.removeprefix(f"{part}."): p for name, p in named.items() if name.startswith(f"{part}.")}


class _Known(torch.autograd.Function):
    """A loss whose gradient is known already."""

    @staticmethod
    def forward(ctx: Any, loss: Tensor, count: int, *tensors: Tensor) -> Tensor:
        ctx.save_for_backward(*tensors[:count])
        return loss.clone()

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> Any:
        gradient = ctx.saved_tensors
        return None, None, *[None] * len(gradient), *(part * upstream[0] for part in gradient)
