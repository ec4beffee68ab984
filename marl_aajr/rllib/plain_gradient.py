"""PPO's loss and gradient for two small MLPs, written out.

With networks of a few thousand weights, autograd's bookkeeping takes half as long as the arithmetic. An actor
and a critic that are plain stacks of linear layers and tanh or ReLU need none of it. (``torch.compile`` of
loss and gradient was slower than this at 64x64 on a CPU, not counting half a minute of compiling.)
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from marl_aajr.distributions import ActionDistribution
from marl_aajr.mlp import Gradient, PlainMLP
from marl_aajr.rllib.ppo_loss import PPOCoefficients, PPORows, loss_and_gradient


class PlainGradient:
    """The gradient of PPO's loss by the weights of an actor and a critic that are plain MLPs.

    Args:
        actor: Observations to distribution inputs; layers behind the last linear one (a Gaussian's log σ) are
            left to autograd.
        critic: Observations to values ``[N, 1]``.
        distribution: What the inputs parametrise.
    """

    def __init__(self, actor: nn.Sequential, critic: nn.Sequential, distribution: ActionDistribution) -> None:
        body, self._tail = _parted(actor)
        self._actor, self._critic = PlainMLP(list(body)), PlainMLP(list(critic))
        self._distribution = distribution

    @torch.no_grad()
    def __call__(
        self, obs: Tensor, critic_obs: Tensor, constants: Sequence[Tensor], coefficients: PPOCoefficients
    ) -> tuple[Tensor, Gradient, PPORows]:
        """Loss, gradient, and the rows that they are of.

        Args:
            obs: ``[N, d]``, what the actor reads.
            critic_obs: ``[N, d']``, what the critic reads.
            constants: The columns of `PPORows` that are no outputs.
            coefficients: Of the loss.
        """
        outputs, actor_seen = self._actor.forward(obs)
        values, critic_seen = self._critic.forward(critic_obs)
        inputs, graph = self._through_tail(outputs)
        rows = PPORows(inputs, values.squeeze(-1), *constants)
        loss, to_inputs, to_values = loss_and_gradient(self._distribution, rows, coefficients)
        gradient = self._critic.backward(to_values.unsqueeze(-1), critic_seen)
        if graph is not None:
            parameters = list(self._tail.parameters())
            to_inputs, *rest = torch.autograd.grad(graph, [outputs, *parameters], to_inputs)
            gradient |= dict(zip(parameters, rest, strict=True))
        gradient |= self._actor.backward(to_inputs, actor_seen)
        return loss, {p: g for p, g in gradient.items() if p.requires_grad}, rows

    def _through_tail(self, outputs: Tensor) -> tuple[Tensor, Tensor | None]:
        """Distribution inputs, and the same with the graph of the layers that autograd goes through."""
        if not len(self._tail):
            return outputs, None
        with torch.enable_grad():
            graph = self._tail(outputs.requires_grad_())
        return graph.detach(), graph


def _parted(layers: nn.Sequential) -> tuple[nn.Sequential, nn.Sequential]:
    """The layers up to the last linear one, and those behind it."""
    parts = list(layers)
    last = max((i for i, layer in enumerate(parts) if isinstance(layer, nn.Linear)), default=-1)
    return nn.Sequential(*parts[: last + 1]), nn.Sequential(*parts[last + 1 :])


def plain_gradient(
    networks: tuple[nn.Sequential, nn.Sequential] | None, distribution: ActionDistribution | None
) -> PlainGradient | None:
    """The written-out gradient, where it serves: all weights trained, both networks plain MLPs."""
    if networks is None or distribution is None:
        return None
    trained = all(parameter.requires_grad for part in networks for parameter in part.parameters())
    actor, critic = networks
    served = all(PlainMLP.of(part) is not None for part in (_parted(actor)[0], critic))
    apart = {id(p) for p in actor.parameters()}.isdisjoint(id(p) for p in critic.parameters())
    return PlainGradient(*networks, distribution) if trained and served and apart else None
