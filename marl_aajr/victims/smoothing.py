"""Randomised smoothing of a victim: it plays what most of n noisy copies of an observation make it do.

    votes_a = #{ j : argmax f(s + η_j) = a },   η_j ~ N(0, σ²),   j = 1 … n

Greedy play takes the action with the most votes; ties go to the higher mean probability. Sampled play draws
an action in proportion to the votes: greedy play at one noisy observation. Of several actions at once each
has its votes. Of Gaussian actions, which have no votes, mean and log σ are the medians over the noise
(Chiang 2020, arXiv 2007.03730). Noise is on the observation only: a recurrent state moves on as ever.

An attack meets the same votes, with a gradient in their place: that of the mean probability, or of the mean,
over the noise (expectation over transformation, Athalye 2018, arXiv 1707.07397). It knows the policy and σ,
and computes with n draws of noise that stay for the whole attack, so that its steps add up. It does not know
those that decide: they are drawn after it, which is the adversary that certificates are about
(`marl_aajr.certificates.votes`).

Source: Cohen 2019 (arXiv 1902.02918); for teams CertifyCMARL, Mu 2023 (arXiv 2212.11746).
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, field, fields
from functools import cached_property
from random import Random
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import one_hot

from marl_aajr.core.checks import one_of
from marl_aajr.core.distributions import DiagGaussian, single_actions
from marl_aajr.core.environment_values import TO_FLOAT
from marl_aajr.core.flat_observations import FlatBox
from marl_aajr.core.threat import PerturbationSet
from marl_aajr.victims.filters import at_network
from marl_aajr.victims.noise import Smoothing, as_smoothing
from marl_aajr.victims.recurrent import State
from marl_aajr.victims.victim import Victim
from marl_aajr.victims.victim_policy import VictimPolicy

_ROWS = 2**16
"""Noisy observations that pass the network together where no gradient is asked for."""


@dataclass(frozen=True, eq=False)
class _Noise:
    """The noise of one agent's policy: its size, in the units of the network, and its random numbers."""

    samples: int
    size: PerturbationSet
    seeds: Random

    def __call__(self, obs: Tensor, *, seed: int, samples: int) -> tuple[Tensor, Tensor | None]:
        """Noisy observations `[n, B, ..., d]`, the same noise for all rows; and which noise moves them.

        Behind a filter none passes its clipping; None: all moves.
        """
        generator = torch.Generator().manual_seed(seed)
        unit = torch.randn(samples, obs.shape[-1], generator=generator).to(obs)
        noise = (unit * self.size.semi_axes(unit)).view(samples, *[1] * (obs.ndim - 1), -1)
        noisy = obs + noise
        if self.size.low is None and self.size.high is None:
            return noisy, None
        low, high = (torch.as_tensor(end).to(obs) for end in (self.size.low, self.size.high))
        return noisy.clamp(low, high), (noisy > low) & (noisy < high)


class SmoothedPolicy(VictimPolicy):
    """A policy that votes; its random numbers stay as they are until they are `redrawn`."""

    def __init__(self, base: VictimPolicy, noise: _Noise, *, seed: int | None = None) -> None:
        # All that a policy knows of its network is prepared once; constructing another would do it again.
        vars(self).update(vars(base))
        self._base, self._noise, self._drawn, self.passes = base, noise, seed, noise.samples

    def step(self, obs: Tensor) -> tuple[Tensor, State | None]:
        return self(obs), self._base.next_state(obs)

    def __call__(self, obs: Tensor) -> Tensor:
        return self.votes(self.noisy_outputs(obs))

    def once(self, obs: Tensor) -> Tensor:
        return self(obs)

    def next_state(self, obs: Tensor) -> State | None:
        return self._base.next_state(obs)

    def vjp(self, obs: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        samples = self._noise.samples
        noisy, moves = self._noise(obs.detach(), seed=self._seed, samples=samples)
        outputs, pull = self._base.repeat(samples).vjp(noisy.flatten(0, 1))
        with torch.enable_grad():
            each = outputs.unflatten(0, (samples, -1)).requires_grad_(True)
            votes = self.votes(each)

        def back(cotangent: Tensor) -> Tensor:
            (own,) = torch.autograd.grad(votes, each, cotangent)
            gradient = pull(own.flatten(0, 1)).unflatten(0, (samples, -1))
            return (gradient if moves is None else gradient * moves).sum(0)

        return votes.detach(), back

    @property
    def noise(self) -> PerturbationSet:
        """The set whose half axes are the standard deviations of the noise, in the units of the network."""
        return self._noise.size

    def changed(self, change: Callable[..., Tensor], *others: dict[str, Any]) -> Self:
        return type(self)(self._base.changed(change, *others), self._noise, seed=self._seed)

    def redrawn(self) -> Self:
        return type(self)(self._base, self._noise)

    @property
    def _seed(self) -> int:
        """Drawn as it is needed, so that a policy that nobody asks moves no random numbers."""
        if self._drawn is None:
            self._drawn = self._noise.seeds.getrandbits(62)
        return self._drawn

    def noisy_outputs(self, obs: Tensor, *, samples: int | None = None, seed: int | None = None) -> Tensor:
        """Outputs of the policy beneath at n noisy observations, `[B, ..., d] -> [n, B, ..., m]`."""
        samples = self._noise.samples if samples is None else samples
        noisy, _ = self._noise(obs, seed=self._seed if seed is None else seed, samples=samples)
        together = samples if torch.is_grad_enabled() else max(1, _ROWS // obs.shape[:-1].numel())
        parts = [
            self._base.repeat(len(part))(part.flatten(0, 1)).unflatten(0, (len(part), -1))
            for part in noisy.split(together)
        ]
        return torch.cat(parts)

    def votes(self, outputs: Tensor) -> Tensor:
        """What outputs `[n, B, ..., m]` make of the policy, as distribution inputs `[B, ..., m]`.

        The log of (votes + mean probability) / (n + 1), with the gradient of the log of the mean probability;
        of a Gaussian the median, with the gradient of the mean.
        """
        distribution, samples = self.distribution, len(outputs)
        if isinstance(distribution, DiagGaussian):
            ordered, mean = outputs.detach().sort(0).values, outputs.mean(0)
            median = (ordered[(samples - 1) // 2] + ordered[samples // 2]) / 2
            return median + (mean - mean.detach())
        least, found = torch.finfo(outputs.dtype).tiny, []
        for logits in single_actions(distribution, outputs):
            mean = logits.softmax(-1).mean(0)
            votes = one_hot(logits.argmax(-1), logits.shape[-1]).sum(0)
            share = ((votes + mean.detach()) / (samples + 1)).clamp_min(least).log()
            soft = mean.clamp_min(least).log()
            found.append(share + (soft - soft.detach()))
        return self._masked(torch.cat(found, -1))


@dataclass(frozen=True, kw_only=True, eq=False)
class SmoothedVictim(Victim):
    """A victim of which some agents vote; see the module. `reseed` begins its random numbers anew.

    Attributes:
        smoothing: the noise.
        voters: agents that vote; all others play as they do without.

    Raises:
        ValueError: agents that are not there, integer observations, or a victim that plays greedily only,
            whose outputs are no probabilities.
    """

    smoothing: Smoothing
    voters: tuple[str, ...]
    _seeds: Random = field(init=False, repr=False, default_factory=lambda: Random(0))

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.greedy_only:
            raise ValueError(
                "expected a victim with action probabilities to smooth, got one that is greedy only (Q "
                "values, or a Gaussian that is squashed later): attacks on its votes would have no gradient"
            )
        for agent in self.voters:
            one_of("agents to smooth", agent, self.module_of)
            space = self.observation_spaces[agent]
            free = space.free if isinstance(space, FlatBox) else (np.issubdtype(space.dtype, np.floating),)
            if not any(free):
                raise ValueError(
                    f"expected float observations to smooth, got {space} for {agent!r}; train on {TO_FLOAT}"
                )
            nothing = torch.zeros(1, int(np.prod(space.shape or ())))
            self._noises[agent].size.project(nothing, nothing)

    @property
    def draws(self) -> bool:
        return True

    def reseed(self, seed: int) -> None:
        super().reseed(seed)
        self._seeds.seed(seed)

    def alike(self, agents: Collection[str]) -> list[list[str]]:
        groups = super().alike(agents)
        parts = [[[a for a in g if (a in self.voters) == vote] for vote in (True, False)] for g in groups]
        return [part for both in parts for part in both if part]

    def policy(self, agent: str, **columns: Any) -> VictimPolicy:
        base = super().policy(agent, **columns)
        return SmoothedPolicy(base, self._noises[agent]) if agent in self.voters else base

    @cached_property
    def _noises(self) -> dict[str, _Noise]:
        """The noise of each voter."""
        found = {}
        for agent in self.voters:
            space, observed = self.observation_spaces[agent], self.filters.get(agent)
            size = at_network(self.smoothing.noise(), space, observed, units="raw")
            found[agent] = _Noise(self.smoothing.samples, size, self._seeds)
        return found


def smoothed(
    victim: Victim, smoothing: Smoothing | str, *, agents: Collection[str] | None = None
) -> SmoothedVictim:
    """A victim that votes; see the module.

    Args:
        victim: plays without noise.
        smoothing: the noise, or its text, `"0.1:100"`.
        agents: those that vote; None: all.

    Raises:
        ValueError: see `SmoothedVictim`; or a victim that votes already.

    Example:
        >>> evaluate(smoothed(Victim.load("runs/ppo/victim"), "0.1:100"), attacks=["pgd"], epsilons=[0.1])
    """
    if isinstance(victim, SmoothedVictim):
        raise ValueError(f"expected a victim without smoothing, got one with {victim.smoothing}; smooth once")
    known = {each.name: getattr(victim, each.name) for each in fields(Victim)}
    voters = victim.agents if agents is None else tuple(agents)
    return SmoothedVictim(**known, smoothing=as_smoothing(smoothing), voters=voters)
