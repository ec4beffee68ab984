"""The gradient of PPO's loss by the weights of plain MLPs: written out, without autograd."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from marl_aajr.core.distributions import ActionDistribution
from marl_aajr.core.mlp import PlainMLP
from marl_aajr.rllib.lean.ppo_loss import PPOCoefficients, PPORows, loss_and_gradient
from marl_aajr.rllib.lean.side_by_side import SideBySide


class PlainGradient:
    """The gradient of PPO's loss by the weights of an actor and a critic that are plain MLPs.

    Args:
        actor: Observations to distribution inputs.
        tail: Layers behind the actor's (a Gaussian's log σ), which are left to autograd.
        critic: Observations to values `[N, 1]`.
        distribution: The distribution whose parameters the inputs are.
        gradients: A buffer for each parameter of both.

    Attributes:
        parameters: Of both.
    """

    def __init__(
        self,
        actor: PlainMLP,
        tail: nn.Sequential,
        critic: PlainMLP,
        distribution: ActionDistribution,
        gradients: Mapping[Tensor, Tensor],
    ) -> None:
        layers = (*actor.layers, *tail, *critic.layers)
        self.parameters = {parameter for layer in layers for parameter in layer.parameters()}
        self._actor, self._critic = actor, critic
        own = [network.parameters() for network in (actor, critic)]
        self._buffers = [[p if p is None else gradients[p] for p in each] for each in own]
        self._tail, self._tail_parameters, self._distribution = tail, list(tail.parameters()), distribution
        self._tail_gradients = [gradients[parameter] for parameter in self._tail_parameters]
        self._weights = sum(map(torch.numel, self.parameters)) // 2  # of one network
        self._side_by_side = SideBySide(next(iter(self.parameters)).device)

    @torch.no_grad()
    def __call__(
        self, obs: Tensor, critic_obs: Tensor, constants: Sequence[Tensor], coefficients: PPOCoefficients
    ) -> tuple[Tensor, PPORows]:
        """Loss, and the rows that it is of; its gradient is in the buffers then.

        Args:
            obs: `[N, d]`, what the actor reads.
            critic_obs: `[N, d']`, what the critic reads.
            constants: The columns of `PPORows` that are no outputs.
            coefficients: Those of the loss.
        """
        work = len(obs) * self._weights
        acted, judged = self._side_by_side(
            lambda: self._actor.forward(obs), lambda: self._critic.forward(critic_obs), work
        )
        inputs, graph = self._through_tail(outputs := acted.outputs)
        rows = PPORows(inputs, judged.outputs.squeeze(-1), *constants)
        loss, to_inputs, to_values = loss_and_gradient(self._distribution, rows, coefficients)
        if graph is not None:
            to_inputs, *rest = torch.autograd.grad(graph, [outputs, *self._tail_parameters], to_inputs)
            for buffer, gradient in zip(self._tail_gradients, rest, strict=True):
                buffer.copy_(gradient)
        self._side_by_side(
            lambda: acted.gradients(to_inputs, self._buffers[0]),
            lambda: judged.gradients(to_values.unsqueeze(-1), self._buffers[1]),
            work,
        )
        return loss, rows

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
    networks: tuple[nn.Sequential, nn.Sequential] | None,
    distribution: ActionDistribution | None,
    gradients: Mapping[Tensor, Tensor],
) -> PlainGradient | None:
    """The written-out gradient, where it serves: all weights trained, both networks plain MLPs."""
    if networks is None or distribution is None:
        return None
    body, tail = _parted(networks[0])
    actor, critic = PlainMLP.of(body), PlainMLP.of(networks[1])
    parameters = [p for part in networks for p in part.parameters()]
    apart = len(set(parameters)) == len(parameters)
    trained = all(p.requires_grad and p in gradients for p in parameters)
    if actor is None or critic is None or not trained or not apart:
        return None
    return PlainGradient(actor, tail, critic, distribution, gradients)
