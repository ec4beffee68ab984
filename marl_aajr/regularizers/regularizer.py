"""Regularizers: frozen values that turn one minibatch into a loss term and metrics.

Settings live in the value (picklable, comparable, with a `repr`); what changes during training (a dual
variable, the vectors of a power iteration) is a state that the learner holds, saves and hands in. A
regularizer reads the policy through `Sample` alone, so the same object works under RLlib, in a plain
PyTorch loop and in a test. `a + b` is the `Sum` of two.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import reduce
from operator import add
from typing import ClassVar, Self, TypeVar

import torch
from torch import Tensor, nn

from marl_aajr.core.channels import Channels
from marl_aajr.core.checks import nonfinite, refuse_search_spaces
from marl_aajr.core.distributions import ActionDistribution
from marl_aajr.core.jacobian import BACKENDS, Backend
from marl_aajr.core.objectives import EVERYTHING, Need
from marl_aajr.core.policy import Policy, check_hooks, check_rows
from marl_aajr.core.settings import inherit_attributes
from marl_aajr.regularizers.sample import Context, LossTerm, Sample, State

_T = TypeVar("_T")


class Regularizer(ABC):
    """A penalty on a policy, by the name under which YAML files and the command line know it.

    Settings that a subclass inherits are described once, by the class that declares them, and are added to
    the docstring of the subclass.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    needs_layers: ClassVar[bool] = False
    """Whether it is for policies that are a stack of layers (`Policy.layers`) only."""

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        inherit_attributes(cls)

    def __post_init__(self) -> None:
        refuse_search_spaces(type(self).__name__, vars(self))

    @property
    def perturbed_leaves(self) -> tuple[str, ...] | None:
        """The parts of a nested observation that it perturbs, by name, from a setting `leaves`; None: all."""
        return getattr(self, "leaves", None)

    @abstractmethod
    def active(self, timestep: float) -> bool:
        """Whether it does anything at this environment step; if not, the learner skips it entirely."""

    def held_to(self, members: Mapping[str, Channels], width: int) -> Regularizer | None:
        """The same on the channels that it names, of d = `width` features; None: the agents observe none.

        `members` are the channels of each agent of one network; `ValueError`: some agents' are others.
        """
        return self

    @property
    def every(self) -> int:
        """m: one minibatch of m is regularised, with m times the weight (lazy regularization)."""
        return 1

    def due(self, timestep: float, minibatch: int | None) -> bool:
        """Whether this minibatch is regularised, at this environment step; arguments as in `Context`."""
        return self.active(timestep) and (minibatch is None or minibatch % self.every == 0)

    def check(self, distribution: ActionDistribution, *, offers: Collection[Need] = EVERYTHING) -> None:
        """Raise `ValueError` where the settings do not fit a policy of this kind, or the learner.

        Args:
            distribution: what the policy's outputs parametrise.
            offers: what the learner can give beside observations and outputs.
        """
        return

    def fitted(self, policy: Policy, obs: Tensor, *, backends: Sequence[Backend] = BACKENDS) -> Self:
        """The same regularizer with what it left open (`backend="auto"`) settled for this policy.

        Args:
            policy: the policy to be trained.
            obs: a few observations, `[B, ..., d]`.
            backends: the Jacobian backends that may be used here, in order of preference.

        Raises:
            ValueError: the policy cannot be differentiated as the settings demand, or not row by row.
        """
        check_rows(policy, obs)
        return self

    def ramped(self, start: float, end: float) -> Self:
        """The same regularizer with its weights rising from 0 at environment step `start` to `end`."""
        return self

    def initial_state(self) -> dict[str, Tensor]:
        """The state before the first update; saved in checkpoints, one per module."""
        return {}

    def evaluate(
        self,
        sample: Sample,
        *,
        timestep: float,
        generator: torch.Generator,
        state: State | None = None,
        minibatch: int | None = None,
        measure: bool = True,
        check: bool = False,
    ) -> LossTerm:
        """The loss term and metrics of one minibatch; arguments as in `Context`, None: the first state.

        A loop that evaluates each minibatch leaves `minibatch` out. One that counts them asks `due` first and
        gets a term of m times the weight.
        """
        state = self.initial_state() if state is None else state
        context = Context(
            timestep=timestep,
            generator=generator,
            state=state,
            minibatch=minibatch,
            measure=measure,
            check=check,
        )
        with sample.policy.fixed() as difference:
            sample = self.rows(sample, context)
            if difference == "mode":
                sample = replace(sample, outputs=sample.policy.once(sample.obs))
            elif difference == "hooks":
                check_hooks(sample.policy, sample.obs, sample.outputs)
            context.check_finite("the observations", sample.obs)
            context.check_finite("the policy's outputs", sample.outputs)
            term = self.loss_term(sample, context)
        loss = term.loss if context.minibatch is None else self.every * term.loss
        return LossTerm(loss, {"nonfinite": nonfinite(loss.detach()), **term.metrics})

    def rows(self, sample: Sample, context: Context) -> Sample:
        """The rows of a minibatch that are regularised."""
        return sample

    @abstractmethod
    def loss_term(self, sample: Sample, context: Context) -> LossTerm:
        """The term to add to the loss for these rows; `evaluate` counts numbers in it that are not finite."""

    def after_update(self, state: State, metrics: Mapping[str, float]) -> None:
        """Move the state once after an update, given the metrics averaged over minibatches and learners."""
        return

    @property
    def constrains(self) -> bool:
        """Whether `constrain` does anything."""
        return type(self).constrain is not Regularizer.constrain

    def constrain(self, module: nn.Module, state: State, *, exact: bool = False) -> Mapping[str, Tensor]:
        """Bring the weights back into the permitted set, in place; metrics as in `LossTerm`.

        Args:
            module: the actor's network, and nothing else.
            state: as in `Context`.
            exact: spare no effort. The learner asks for it after the last step of an update, and for a
                cheap approximation after each of the others.
        """
        return {}

    def __add__(self, other: Regularizer) -> Sum:
        return Sum(members=(self, other))


@dataclass(frozen=True, kw_only=True)
class Sum(Regularizer):
    """The sum of its members; `a + b` makes one.

    Attributes:
        members: the regularizers, at least two; sums among them are taken apart.

    Raises:
        ValueError: fewer than two members, or something else among them.

    Example:
        >>> AAJR(coefficient=3e-3) + SmoothPolicy(coefficient=0.1)
    """

    name: ClassVar[str] = "sum"
    summary: ClassVar[str] = "several regularizers at once; members: a list of {name: ..., settings}"

    members: tuple[Regularizer, ...]

    def __post_init__(self) -> None:
        super().__post_init__()
        flat: list[Regularizer] = []
        for member in self.members:
            if not isinstance(member, Regularizer):
                raise ValueError(f"expected regularizers as members of a sum, got {member!r}")
            flat += member.members if isinstance(member, Sum) else [member]
        if len(flat) < 2:
            raise ValueError(f"expected at least two members in a sum, got {len(flat)}")
        leaves = {member.perturbed_leaves for member in flat if hasattr(member, "leaves")}
        if len(leaves) > 1:
            raise ValueError(
                "expected members of a sum to perturb the same leaves, got "
                f"{' and '.join(sorted(map(str, leaves)))}; name all of them, and use mask"
            )
        object.__setattr__(self, "members", tuple(flat))

    @property
    def perturbed_leaves(self) -> tuple[str, ...] | None:
        return next((member.perturbed_leaves for member in self.members if hasattr(member, "leaves")), None)

    @property
    def labelled(self) -> tuple[tuple[str, Regularizer], ...]:
        """Each member with a name of its own: `aajr`, `smooth_policy`, a second `aajr_2`."""
        names = [member.name for member in self.members]
        numbers = [names[: i + 1].count(name) for i, name in enumerate(names)]
        labels = [f"{name}_{n}" if n > 1 else name for name, n in zip(names, numbers, strict=True)]
        return tuple(zip(labels, self.members, strict=True))

    def active(self, timestep: float) -> bool:
        return any(member.active(timestep) for member in self.members)

    def due(self, timestep: float, minibatch: int | None) -> bool:
        return any(member.due(timestep, minibatch) for member in self.members)

    def check(self, distribution: ActionDistribution, *, offers: Collection[Need] = EVERYTHING) -> None:
        for member in self.members:
            member.check(distribution, offers=offers)

    def fitted(self, policy: Policy, obs: Tensor, *, backends: Sequence[Backend] = BACKENDS) -> Self:
        fitted = (member.fitted(policy, obs, backends=backends) for member in self.members)
        return replace(self, members=tuple(fitted))

    def ramped(self, start: float, end: float) -> Self:
        return replace(self, members=tuple(member.ramped(start, end) for member in self.members))

    def held_to(self, members: Mapping[str, Channels], width: int) -> Regularizer | None:
        found = (member.held_to(members, width) for member in self.members)
        kept = tuple(each for each in found if each is not None)
        return replace(self, members=kept) if len(kept) > 1 else next(iter(kept), None)

    def initial_state(self) -> dict[str, Tensor]:
        found: dict[str, Tensor] = {}
        for label, member in self.labelled:
            found |= _labelled(member.initial_state(), label)
        return found

    def loss_term(self, sample: Sample, context: Context) -> LossTerm:
        terms: list[LossTerm] = []
        metrics: dict[str, Tensor] = {}
        for label, member in self.labelled:
            if member.due(context.timestep, context.minibatch):
                with _own_state(context.state, label) as own:
                    terms.append(member.evaluate(sample, **(vars(context) | {"state": own})))
                metrics |= _labelled(terms[-1].metrics, label)
        count = reduce(add, (term.metrics["nonfinite"] for term in terms))
        return LossTerm(reduce(add, (term.loss for term in terms)), metrics | {"nonfinite": count})

    def after_update(self, state: State, metrics: Mapping[str, float]) -> None:
        for label, member in self.labelled:
            # A member that a schedule has kept out of this update has no metrics.
            if own_metrics := _own(metrics, label):
                with _own_state(state, label) as own:
                    member.after_update(own, own_metrics)

    @property
    def constrains(self) -> bool:
        return any(member.constrains for member in self.members)

    def constrain(self, module: nn.Module, state: State, *, exact: bool = False) -> Mapping[str, Tensor]:
        metrics: dict[str, Tensor] = {}
        for label, member in self.labelled:
            with _own_state(state, label) as own:
                metrics |= _labelled(member.constrain(module, own, exact=exact), label)
        return metrics


def _own(entries: Mapping[str, _T], label: str) -> dict[str, _T]:
    """A member's entries, under the keys that it knows."""
    prefix = f"{label}/"
    return {key.removeprefix(prefix): value for key, value in entries.items() if key.startswith(prefix)}


def _labelled(entries: Mapping[str, _T], label: str) -> dict[str, _T]:
    return {f"{label}/{key}": value for key, value in entries.items()}


@contextmanager
def _own_state(state: State, label: str) -> Iterator[State]:
    """A member's part of the state; what it changes there is kept."""
    own = _own(state, label)
    yield own
    state.update(_labelled(own, label))
