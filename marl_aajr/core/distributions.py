"""Action distributions as pure functions of the policy's outputs.

A policy network ends in "distribution inputs" `inputs [..., m]` (RLlib's `action_dist_inputs`). What
robustness code needs of them (log-probability, KL, Fisher metric, margin) is here, without distribution
objects: these functions sit in the inner loop of the adversary. Leading dimensions are free and every
function reduces the last one.

Masked actions: RLlib masks an action by adding about -3.4e38 to its logit. Such logits count as absent.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, NamedTuple

import gymnasium as gym
import torch
from torch import Tensor

from marl_aajr.core.environment_values import zero_based

MASKED_LOGIT = -1e30
"""Logits at or below this value are masked actions."""


class Divergence(NamedTuple):
    """The divergence of other distributions from a fixed one.

    Attributes:
        value: its distribution inputs `[..., m]` to the divergence `[...]`, differentiable.
        value_and_gradient: the divergence and its derivative by the inputs, `[..., m]`, in closed form: the
            adversary asks for both at every step, and autograd would double what its small tensors cost.
    """

    value: Callable[[Tensor], Tensor]
    value_and_gradient: Callable[[Tensor], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class ActionDistribution(ABC):
    """A family of distributions over actions, as functions of distribution inputs `[..., m]`."""

    @property
    @abstractmethod
    def num_inputs(self) -> int:
        """The number m of distribution inputs."""

    @abstractmethod
    def log_prob(self, inputs: Tensor, actions: Tensor) -> Tensor:
        """log π(a), in nats, `[...]`."""

    @abstractmethod
    def kl_from(self, inputs: Tensor) -> Divergence:
        """KL(π_inputs ‖ ·), in nats; what depends on `inputs` alone is computed once."""

    def kl(self, inputs: Tensor, other: Tensor) -> Tensor:
        """KL(π_inputs ‖ π_other), in nats, `[...]`."""
        return self.kl_from(inputs).value(other)

    @abstractmethod
    def entropy(self, inputs: Tensor) -> Tensor:
        """Entropy (differential for Gaussians), in nats, `[...]`."""

    @abstractmethod
    def mode(self, inputs: Tensor) -> Tensor:
        """The greedy action."""

    @abstractmethod
    def sample(self, inputs: Tensor, *, generator: torch.Generator) -> Tensor:
        """A random action, drawn with `generator` alone."""

    @abstractmethod
    def fisher(self, inputs: Tensor, tangent: Tensor) -> Tensor:
        """The Fisher metric `tᵀ F(inputs) t`, `[...]`, so that KL(y ‖ y + h t) = ½ h² tᵀFt + O(h³)."""


def log_softmax(logits: Tensor) -> Tensor:
    """Over the last of the dimensions `[..., n]`, which is the short one: torch is quicker over the first."""
    if logits.device.type != "cpu":
        return logits.log_softmax(-1)
    return logits.movedim(-1, 0).contiguous().log_softmax(0).movedim(0, -1)


def centred_tangent(logits: Tensor, tangent: Tensor) -> tuple[Tensor, Tensor]:
    """Softmax probabilities p and t − E_p[t], where a masked action has t = 0; `[..., n]` each."""
    p = torch.softmax(logits, -1)
    tangent = tangent.masked_fill(logits <= MASKED_LOGIT, 0.0)
    return p, tangent - (p * tangent).sum(-1, keepdim=True)


@dataclass(frozen=True)
class Categorical(ActionDistribution):
    """One discrete action out of `n`; the inputs are logits `[..., n]`."""

    n: int

    @property
    def num_inputs(self) -> int:
        return self.n

    def log_prob(self, inputs: Tensor, actions: Tensor) -> Tensor:
        return log_softmax(inputs).gather(-1, actions.long().unsqueeze(-1)).squeeze(-1)

    def kl_from(self, inputs: Tensor) -> Divergence:
        log_p = log_softmax(inputs)
        p = log_p.exp()
        masked = inputs <= MASKED_LOGIT

        def kl(log_q: Tensor) -> Tensor:
            return (p * (log_p - log_q).masked_fill(masked, 0.0)).sum(-1)

        def value_and_gradient(other: Tensor) -> tuple[Tensor, Tensor]:
            log_q = log_softmax(other)
            return kl(log_q), log_q.exp() - p

        return Divergence(lambda other: kl(log_softmax(other)), value_and_gradient)

    def entropy(self, inputs: Tensor) -> Tensor:
        log_p = log_softmax(inputs)
        return -(log_p.exp() * log_p.masked_fill(inputs <= MASKED_LOGIT, 0.0)).sum(-1)

    def mode(self, inputs: Tensor) -> Tensor:
        return inputs.argmax(-1)

    def sample(self, inputs: Tensor, *, generator: torch.Generator) -> Tensor:
        noise = torch.empty_like(inputs).exponential_(generator=generator)
        return (inputs - noise.log()).argmax(-1)  # the Gumbel trick

    def fisher(self, inputs: Tensor, tangent: Tensor) -> Tensor:
        # Var_p[t] as a variance, not as E[t²] − E[t]²: no cancellation in float32.
        p, centred = centred_tangent(inputs, tangent)
        return (p * centred.square()).sum(-1)


@dataclass(frozen=True)
class MultiCategorical(ActionDistribution):
    """Independent discrete actions; the inputs are the logits of each, side by side `[..., Σ nvec]`."""

    nvec: tuple[int, ...]

    @property
    def num_inputs(self) -> int:
        return sum(self.nvec)

    def split(self, inputs: Tensor) -> tuple[Tensor, ...]:
        """The logits of each action, `[..., n_i]`."""
        return inputs.split(self.nvec, -1)

    @cached_property
    def _singles(self) -> tuple[Categorical, ...]:
        return tuple(map(Categorical, self.nvec))

    def _each(self, inputs: Tensor, *others: Sequence[Tensor]) -> Iterator[Any]:
        return zip(self._singles, self.split(inputs), *others, strict=True)

    def log_prob(self, inputs: Tensor, actions: Tensor) -> Tensor:
        return _total([one.log_prob(y, a) for one, y, a in self._each(inputs, actions.unbind(-1))])

    def kl_from(self, inputs: Tensor) -> Divergence:
        divergences = [one.kl_from(y) for one, y in self._each(inputs)]

        def value(other: Tensor) -> Tensor:
            return _total([each.value(z) for each, z in zip(divergences, self.split(other), strict=True)])

        def value_and_gradient(other: Tensor) -> tuple[Tensor, Tensor]:
            pairs = zip(divergences, self.split(other), strict=True)
            values, gradients = zip(*(each.value_and_gradient(z) for each, z in pairs), strict=True)
            return _total(values), torch.cat(gradients, -1)

        return Divergence(value, value_and_gradient)

    def entropy(self, inputs: Tensor) -> Tensor:
        return _total([one.entropy(y) for one, y in self._each(inputs)])

    def mode(self, inputs: Tensor) -> Tensor:
        return torch.stack([one.mode(y) for one, y in self._each(inputs)], -1)

    def sample(self, inputs: Tensor, *, generator: torch.Generator) -> Tensor:
        return torch.stack([one.sample(y, generator=generator) for one, y in self._each(inputs)], -1)

    def fisher(self, inputs: Tensor, tangent: Tensor) -> Tensor:
        return _total([one.fisher(y, t) for one, y, t in self._each(inputs, self.split(tangent))])


@dataclass(frozen=True)
class DiagGaussian(ActionDistribution):
    """A Gaussian with diagonal covariance over `k` actions; the inputs are (mean, log σ), `[..., 2k]`."""

    k: int

    @property
    def num_inputs(self) -> int:
        return 2 * self.k

    def split(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log σ, each `[..., k]`."""
        mean, log_std = inputs.split(self.k, -1)
        return mean, log_std

    def log_prob(self, inputs: Tensor, actions: Tensor) -> Tensor:
        mean, log_std = self.split(inputs)
        z = (actions - mean) * (-log_std).exp()
        return -(0.5 * z.square() + log_std + 0.5 * math.log(2 * math.pi)).sum(-1)

    def kl_from(self, inputs: Tensor) -> Divergence:
        mean, log_std = self.split(inputs)

        def value_and_gradient(other: Tensor) -> tuple[Tensor, Tensor]:
            mean_q, log_std_q = self.split(other)
            precision = (-log_std_q).exp()
            z = (mean_q - mean) * precision
            spread = (2 * (log_std - log_std_q)).exp() + z.square()
            kl = (0.5 * (spread - 1) + log_std_q - log_std).sum(-1)
            return kl, torch.cat([z * precision, 1 - spread], -1)

        return Divergence(lambda other: value_and_gradient(other)[0], value_and_gradient)

    def entropy(self, inputs: Tensor) -> Tensor:
        _, log_std = self.split(inputs)
        return (log_std + 0.5 * math.log(2 * math.pi * math.e)).sum(-1)

    def mode(self, inputs: Tensor) -> Tensor:
        return self.split(inputs)[0]

    def sample(self, inputs: Tensor, *, generator: torch.Generator) -> Tensor:
        mean, log_std = self.split(inputs)
        return mean + log_std.exp() * torch.empty_like(mean).normal_(generator=generator)

    def fisher(self, inputs: Tensor, tangent: Tensor) -> Tensor:
        _, log_std = self.split(inputs)
        mean_t, log_std_t = self.split(tangent)
        return ((mean_t * (-log_std).exp()).square() + 2 * log_std_t.square()).sum(-1)


def _total(terms: Sequence[Tensor]) -> Tensor:
    return torch.stack(list(terms)).sum(0)


def single_actions(distribution: ActionDistribution, inputs: Tensor) -> tuple[Tensor, ...]:
    """The logits of each discrete action, `[..., n_i]`."""
    return distribution.split(inputs) if isinstance(distribution, MultiCategorical) else (inputs,)


def logit_scale(distribution: ActionDistribution, inputs: Tensor) -> Tensor | None:
    """Root mean square of the legal logits about their mean in each action; None for a Gaussian.

    What a penalty on ‖J u‖ lowers most cheaply: a factor on all logits changes no greedy decision.
    """
    if isinstance(distribution, DiagGaussian):
        return None
    squares, count = inputs.new_zeros(()), inputs.new_zeros(())
    for logits in single_actions(distribution, inputs):
        legal = logits > MASKED_LOGIT
        known = logits.where(legal, 0.0)
        number = legal.sum(-1, keepdim=True)
        centred = (known - known.sum(-1, keepdim=True) / number.clamp_min(1)).where(legal, 0.0)
        squares, count = squares + centred.square().sum(), count + number.sum()
    return (squares / count.clamp_min(1)).sqrt()


def from_space(space: gym.Space) -> ActionDistribution:
    """The distribution that RLlib's default modules use for an action space.

    Raises:
        ValueError: for spaces other than Discrete, one-dimensional MultiDiscrete, MultiBinary and Box.
    """
    space = zero_based(space)
    if isinstance(space, gym.spaces.Discrete):
        return Categorical(int(space.n))
    if isinstance(space, gym.spaces.MultiDiscrete) and space.nvec.ndim == 1:
        return MultiCategorical(tuple(int(n) for n in space.nvec))
    if isinstance(space, gym.spaces.Box) and len(space.shape) == 1:
        return DiagGaussian(int(space.shape[0]))
    raise ValueError(
        f"expected a Discrete, MultiDiscrete, MultiBinary or one-dimensional Box action space, got {space}; "
        "change it: gymnasium.wrappers.TransformAction, or for PettingZoo supersuit.action_lambda_v1"
    )


def env_action_map(
    space: gym.Space[Any], *, normalize: bool, clip: bool, device: torch.device
) -> Callable[[Tensor], Tensor]:
    """RLlib's `unsquash_action` or `clip_action`, for actions `[B, ...]` of one space's distribution."""
    if not isinstance(space, gym.spaces.Box) or not (space.is_bounded() if normalize else clip):
        return lambda actions: actions
    low, high = (torch.as_tensor(bound, device=device) for bound in (space.low, space.high))
    if normalize:
        # RLlib's expression, in its order of operations: the last bit depends on it.
        return lambda actions: (low + (actions + 1.0) * (high - low) / 2.0).clamp(low, high)
    return partial(torch.clamp, min=low, max=high)
