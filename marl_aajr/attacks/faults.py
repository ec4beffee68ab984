"""Sensor faults: what breaks without an adversary, and stays broken for an episode.

    shown(t) = fault(s(0), …, s(t); ω),      ω drawn once for each agent and episode

A fault looks at the observations of its episode and at nothing else: neither at the policy nor at what comes.
Its δ is s(t) seen through the fault, minus s(t). `bias`, `drift` and `quantize` have a size and stay in the
ε-ball around s; `delay`, `freeze`, `dropout` and `swap` have none: their set is `Unlimited`, which a mask and
bounds limit. So no fault is a candidate for the worst attack of an ε, and no order of attacks speaks of it.

An evaluation plays each episode n = `draws` times, with n draws of ω and everything else alike:

    random   (1/n) Σ_j R(episode, ω_j)         what a fault costs on average
    worst    min_j R(episode, ω_j)             an oracle, which picks the draw of each episode by its return

The worst is no adversary's strategy: it knows how the episode ends, so that it also picks bad luck. Nothing
has to be held out for it, as nothing is chosen that another episode is played with. It is at most the random
one, episode by episode.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, field, replace
from math import prod
from typing import ClassVar, Self

import torch
from torch import Tensor

from marl_aajr.attacks.base import Access, Attack
from marl_aajr.attacks.episode_memory import EpisodeMemory, RememberedRows
from marl_aajr.core.checks import proportion, whole
from marl_aajr.core.policy import Policy
from marl_aajr.victims import ObservationFilter, Victim


@dataclass(frozen=True, kw_only=True)
class Fault(Attack):
    """A fault of sensors. A subclass writes `seen` and nothing else.

    Attributes:
        draws: n, how often each episode is played with other random numbers of the fault.

    Raises:
        ValueError: a setting out of its range.
    """

    access: ClassVar[Access] = "none"

    draws: int = 8
    _rows: RememberedRows | None = field(default=None, repr=False, compare=False)
    _filter: ObservationFilter | None = field(default=None, repr=False, compare=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        whole("draws", self.draws)

    @abstractmethod
    def seen(self, obs: Tensor, rows: RememberedRows) -> Tensor:
        """What broken sensors show of `obs`, each `[B, d]`, as the network reads them."""

    @property
    def length(self) -> int:
        """The steps that an episode must have for the fault to be what its settings say."""
        return 1

    def against(self, victim: Victim, agent: str) -> Attack:
        return replace(self, _filter=victim.filters.get(agent))

    def remember(self, num_envs: int, *, seed: int) -> EpisodeMemory:
        return EpisodeMemory(num_envs, seed=seed)

    def with_memory(self, rows: RememberedRows) -> Self:
        return replace(self, _rows=rows)

    def run(self, policy: Policy, obs: Tensor, *, generator: torch.Generator) -> Tensor:
        rows = self._rows
        if rows is None:  # the first step of episodes that nobody plays
            seed = int(torch.randint(2**62, (1,), generator=generator))
            rows = EpisodeMemory(len(obs), seed=seed).at({"": torch.arange(len(obs))})
        return self.perturbations.project(self.seen(obs, rows) - obs, obs)

    def _signs(self, obs: Tensor, rows: RememberedRows) -> Tensor:
        """One of the corners of Δ for each episode: every sensor off by ε, up or down."""
        signs = rows.numbers(obs.shape[-1]).to(obs) < 0.5
        return self.perturbations.squash(torch.where(signs, 1.0, -1.0).to(obs), obs)

    def _free(self, obs: Tensor) -> Tensor:
        """The sensors that the mask leaves, `[d]` bool."""
        free = self.perturbations.free(obs)
        return torch.ones_like(obs[0], dtype=torch.bool) if free is None else free > 0

    def _broken(self, obs: Tensor, rows: RememberedRows, share: float) -> Tensor:
        """A random share of the free sensors in each row, at least one, `[B, d]` bool."""
        free = self._free(obs)
        order = rows.numbers(obs.shape[-1]).to(obs.device).masked_fill(~free, 2.0)
        count = max(1, round(share * int(free.sum())))
        return torch.zeros_like(obs, dtype=torch.bool).scatter(-1, order.argsort(-1)[:, :count], value=True)


@dataclass(frozen=True, kw_only=True)
class Bias(Fault):
    """δ = Π_Δ(ε M σ) for the whole episode, σ random in {−1, 1}^d."""

    name: ClassVar[str] = "bias"
    summary: ClassVar[str] = "fault: every sensor is off by epsilon, up or down, for an episode"

    def seen(self, obs: Tensor, rows: RememberedRows) -> Tensor:
        return obs + self._signs(obs, rows)


@dataclass(frozen=True, kw_only=True)
class _Timed(Fault):
    """A fault that needs time.

    Attributes:
        steps: T ≥ 1, decisions until it is what it will be.
    """

    steps: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        whole("steps", self.steps)

    @property
    def length(self) -> int:
        return self.steps


@dataclass(frozen=True, kw_only=True)
class Drift(_Timed):
    """δ(t) = min((t + 1) / T, 1) · ε M σ, σ as for `bias`: an offset that grows.

    Attributes:
        steps: T ≥ 1, decisions until it is of full size.
    """

    name: ClassVar[str] = "drift"
    summary: ClassVar[str] = "fault: an offset of every sensor that grows to epsilon in so many steps"

    steps: int = 20

    def seen(self, obs: Tensor, rows: RememberedRows) -> Tensor:
        grown = ((rows.step + 1) / self.steps).clamp_max(1.0).to(obs).unsqueeze(-1)
        return obs + grown * self._signs(obs, rows)


@dataclass(frozen=True, kw_only=True)
class Quantize(Fault):
    """Readings on a grid of step h = 2ε M, in L2 h = 2ε M / √d.

        shown = h (round(s / h − o) + o),      |shown − s| ≤ h / 2

    The origin o in [0, 1) is random for each sensor and episode.
    """

    name: ClassVar[str] = "quantize"
    summary: ClassVar[str] = "fault: readings are rounded to a grid of step 2 epsilon"

    def seen(self, obs: Tensor, rows: RememberedRows) -> Tensor:
        step = 2 * self.perturbations.radius(obs) * torch.ones_like(obs[:1])
        if (preconditioner := self.perturbations.preconditioner(obs)) is not None:
            step = step * preconditioner
        if self.perturbations.norm == "l2":
            step = step / int(self._free(obs).sum()) ** 0.5
        origin = rows.numbers(obs.shape[-1]).to(obs)
        rounded = step * ((obs / step - origin).round() + origin)
        return obs + self.perturbations.project(torch.where(step > 0, rounded - obs, 0.0), obs)


@dataclass(frozen=True, kw_only=True)
class _Partial(Fault):
    """A fault of some of the sensors, and of any size.

    Attributes:
        share: share of the sensors that break, in (0, 1], at least one; which ones is random.
    """

    sized: ClassVar[bool] = False

    share: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        proportion("share", self.share)
        if self.share == 0:
            raise ValueError("expected share in (0, 1], got 0: nothing would break; leave the fault out")


@dataclass(frozen=True, kw_only=True)
class Delay(_Timed, _Partial):
    """s(max(t − d, 0)) in place of s(t).

    Attributes:
        steps: d ≥ 1, in decisions of the agent.
    """

    name: ClassVar[str] = "delay"
    summary: ClassVar[str] = "fault: some sensors show what there was so many steps ago"

    steps: int = 2

    @property
    def length(self) -> int:
        return self.steps + 1

    def seen(self, obs: Tensor, rows: RememberedRows) -> Tensor:
        past = rows.kept(obs.unsqueeze(1).expand(-1, self.steps, -1))
        rows.keep(torch.cat([past[:, 1:], obs.unsqueeze(1)], 1))
        return torch.where(self._broken(obs, rows, self.share), past[:, 0], obs)


@dataclass(frozen=True, kw_only=True)
class Freeze(_Timed, _Partial):
    """s(min(t, τ)) in place of s(t), τ uniform in 0 … T − 1.

    Attributes:
        steps: T ≥ 1, decisions by which it is frozen.
    """

    name: ClassVar[str] = "freeze"
    summary: ClassVar[str] = "fault: some sensors stop at a random step, and show that reading on"

    steps: int = 10

    def seen(self, obs: Tensor, rows: RememberedRows) -> Tensor:
        onset = (rows.numbers(obs.shape[-1] + 1)[:, -1] * self.steps).long()
        running = (rows.step <= onset).to(obs.device).unsqueeze(-1)
        held = torch.where(running, obs, rows.kept(obs.unsqueeze(1))[:, 0])
        rows.keep(held.unsqueeze(1))
        return torch.where(self._broken(obs, rows, self.share), held, obs)


@dataclass(frozen=True, kw_only=True)
class Dropout(_Partial):
    """0 in the environment's units in place of s(t), for the whole episode."""

    name: ClassVar[str] = "dropout"
    summary: ClassVar[str] = "fault: some sensors show 0"

    def seen(self, obs: Tensor, rows: RememberedRows) -> Tensor:
        nothing = (
            torch.zeros_like(obs) if self._filter is None else _filtered(self._filter, torch.zeros_like(obs))
        )
        return torch.where(self._broken(obs, rows, self.share), nothing, obs)


@dataclass(frozen=True, kw_only=True)
class Swap(Fault):
    """s_j for s_i and s_i for s_j, in the environment's units, of a random pair for the whole episode."""

    name: ClassVar[str] = "swap"
    summary: ClassVar[str] = "fault: two sensors have changed places"
    sized: ClassVar[bool] = False

    def against(self, victim: Victim, agent: str) -> Attack:
        mask, shape = self.perturbations.mask, victim.observation_spaces[agent].shape or ()
        if (prod(shape) if mask is None else sum(mask)) < 2:
            raise ValueError(
                f"expected several sensors of {agent!r} for the fault {self.name!r}, got one; leave it out"
            )
        return super().against(victim, agent)

    def seen(self, obs: Tensor, rows: RememberedRows) -> Tensor:
        numbers, observed = rows.numbers(obs.shape[-1]).to(obs.device), self._filter
        pair = numbers.masked_fill(~self._free(obs), 2.0).argsort(-1)[:, :2]
        raw = obs if observed is None else obs.double() * observed.scale.flatten() + observed.mean.flatten()
        swapped = raw.scatter(-1, pair, raw.gather(-1, pair.flip(-1)))
        shown = swapped if observed is None else _filtered(observed, swapped).to(obs.dtype)
        return torch.where(torch.zeros_like(obs, dtype=torch.bool).scatter(-1, pair, value=True), shown, obs)


def _filtered(observed: ObservationFilter, raw: Tensor) -> Tensor:
    """What the network reads of raw observations, `[B, d]`."""
    shape = observed.mean.shape
    return observed(raw.unflatten(-1, shape)).flatten(-len(shape))


FAULTS: tuple[type[Fault], ...] = (Bias, Drift, Quantize, Delay, Freeze, Dropout, Swap)
"""The faults, those with a size first."""
