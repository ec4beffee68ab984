"""Inner objectives g(δ): what the adversary maximises (arXiv 2603.04378).

    kl         KL(π(·|s) ‖ π(·|s+δ)), the first argument detached
    surrogate  −Â(s, a) · log π(a|s+δ)
    margin     max_{a' ≠ a*} z_{a'} − z_{a*},  a* greedy at s
    value      V(s) − V(s+δ), up to the constant V(s)
    callable   your own h(π inputs at s+δ, batch)

An objective is bound to a batch once (what depends on clean observations alone is computed there) and then
evaluated at as many perturbed observations as the ascent asks for.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor

from marl_aajr.core.bound_objective import BoundObjective, OutputObjective
from marl_aajr.core.checks import one_of
from marl_aajr.core.distributions import (
    MASKED_LOGIT,
    ActionDistribution,
    Categorical,
    DiagGaussian,
    single_actions,
)
from marl_aajr.core.policy import Critic, Policy, PulledBack, critic_of, selected


@dataclass(frozen=True)
class Clean:
    """A batch at its clean observations: outputs, and what objectives may need beside them.

    Attributes:
        outputs: distribution inputs π(·|s), `[B, ..., m]`; objectives detach them.
        actions: actions taken, for `surrogate`.
        advantages: Â(s, a), `[B, ...]`, for `surrogate`; RLlib standardises them, so their sign depends
            on the batch mean.
        values: the critic of these rows, for `value`.
        mask: rows that count, `[B, ...]` bool; None: all.
    """

    outputs: Tensor
    actions: Tensor | None = None
    advantages: Tensor | None = None
    values: Critic | None = None
    mask: Tensor | None = None

    def select(self, index: Tensor) -> Clean:
        """The rows `index` only."""
        return replace(self, values=critic_of(self.values, index), **selected(self, index))


Need = Literal["advantages", "critic", "epochs", "policy_loss"]
"""What a learner may offer beside observations and outputs; `epochs`: the policy as each of them began."""

EVERYTHING: frozenset[Need] = frozenset(get_args(Need))


@dataclass(frozen=True)
class Objective(ABC):
    """A differentiable g(δ) for every row of a batch.

    Attributes:
        needs: columns that `Clean` must hold beside the outputs; `"advantages"` includes the actions.
        flat_at_zero: whether the gradient vanishes at δ = 0, so that the ascent needs a random start.
    """

    needs: ClassVar[frozenset[Need]] = frozenset()
    flat_at_zero: ClassVar[bool] = False

    def check(self, distribution: ActionDistribution) -> None:
        """Raise `ValueError` where the objective is not defined for this distribution."""
        return

    def select(self, index: Tensor) -> Objective:
        """The objective of the rows `index [B']` only, for one that holds something of each row."""
        return self

    @abstractmethod
    def bind(self, policy: Policy, clean: Clean) -> BoundObjective:
        """g as a function of the perturbed observations of this batch."""


@dataclass(frozen=True)
class KL(Objective):
    """KL(π(·|s) ‖ π(·|s+δ)) in nats: the maximal action difference (Zhang 2020, arXiv 2003.08938)."""

    flat_at_zero: ClassVar[bool] = True

    def bind(self, policy: Policy, clean: Clean) -> BoundObjective:
        return OutputObjective(policy, *policy.distribution.kl_from(clean.outputs.detach()))


@dataclass(frozen=True)
class Surrogate(Objective):
    """−Â(s, a) · log π(a|s+δ): the policy-gradient loss at the perturbed observation."""

    needs: ClassVar[frozenset[Need]] = frozenset({"advantages"})

    def bind(self, policy: Policy, clean: Clean) -> BoundObjective:
        if clean.actions is None or clean.advantages is None:
            raise ValueError(
                "expected actions and advantages for the objective 'surrogate', got a batch without; "
                "use 'kl', which needs neither"
            )
        actions, advantages = clean.actions, clean.advantages.detach()
        log_prob = policy.distribution.log_prob
        return lambda obs: -advantages * log_prob(policy(obs), actions)


@dataclass(frozen=True)
class Margin(Objective):
    """max_{a' ≠ a*} z_{a'} − z_{a*} with a* greedy at s: positive once the greedy action has changed.

    For multi-categorical policies the margins of the single actions are added. Where there is one action, or
    a mask leaves one, nothing rivals it: g = 0.
    """

    def check(self, distribution: ActionDistribution) -> None:
        if isinstance(distribution, DiagGaussian):
            raise ValueError(
                "expected a categorical policy for the objective 'margin', got a Gaussian one; use 'kl'"
            )

    def bind(self, policy: Policy, clean: Clean) -> BoundObjective:
        self.check(policy.distribution)
        actions = single_actions(policy.distribution, clean.outputs.detach())
        greedy = [logits.argmax(-1, keepdim=True) for logits in actions]
        rivals = len(actions) == 1 and actions[0].shape[-1] > 1
        if rivals and not bool((actions[0] <= MASKED_LOGIT).any()):
            return _margin(policy, actions[0], greedy[0])
        return logit_difference(policy, lambda i, logits: (runner_up(logits, greedy[i]), greedy[i]))


def margin_of_one_choice(objective: Objective, policy: Policy) -> bool:
    """Whether g is max_{a' ≠ a*} z_{a'} − z_{a*} of the outputs themselves."""
    kind = policy.distribution
    return type(objective) is Margin and isinstance(kind, Categorical) and kind.n > 1


def _margin(policy: Policy, logits: Tensor, greedy: Tensor) -> OutputObjective:
    """The same for one choice of several actions of which none is masked, in half the operations."""
    actions = torch.arange(logits.shape[-1], device=logits.device)
    # Deterministic algorithms make `scatter` five times as slow as a comparison.
    gradient_of_greedy, barred = (
        torch.where(actions == greedy, each, torch.zeros_like(logits)) for each in (-1.0, -torch.inf)
    )

    def value(outputs: Tensor) -> Tensor:
        return (outputs + barred).amax(-1) - outputs.gather(-1, greedy).squeeze(-1)

    def value_and_gradient(outputs: Tensor) -> tuple[Tensor, Tensor]:
        next_best, index = (outputs + barred).max(-1, keepdim=True)
        found = (next_best - outputs.gather(-1, greedy)).squeeze(-1)
        return found, torch.where(actions == index, 1.0, gradient_of_greedy)

    return OutputObjective(policy, value, value_and_gradient)


def logit_difference(policy: Policy, pair: Callable[[int, Tensor], tuple[Tensor, Tensor]]) -> OutputObjective:
    """Σ_i z_{i, a} − z_{i, b} over the single actions i, with its gradient by the outputs.

    A masked action can neither win nor lose: where a is one, the term is 0.

    Args:
        policy: the policy.
        pair: i and logits `[B, n_i]` to the indices of a and b, `[B, 1]` each; b is masked only if all are.
    """

    def terms(outputs: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor]]:
        for i, logits in enumerate(single_actions(policy.distribution, outputs)):
            index = torch.cat(pair(i, logits.detach()), -1)
            both = logits.gather(-1, index)
            legal = both[..., :1] > MASKED_LOGIT
            yield logits, index, legal, torch.where(legal, both[..., :1] - both[..., 1:], 0.0)

    def value(outputs: Tensor) -> Tensor:
        return _side_by_side([term for *_, term in terms(outputs)]).sum(-1)

    def value_and_gradient(outputs: Tensor) -> tuple[Tensor, Tensor]:
        values, gradients = [], []
        for logits, index, legal, term in terms(outputs):
            values.append(term)
            signs = torch.where(legal, _signs(logits.dtype, logits.device), 0.0)
            gradients.append(torch.zeros_like(logits).scatter_add_(-1, index, signs))
        return _side_by_side(values).sum(-1), _side_by_side(gradients)

    return OutputObjective(policy, value, value_and_gradient)


@lru_cache
def _signs(dtype: torch.dtype, device: torch.device) -> Tensor:
    """(1, −1), kept per device, so that nothing is copied to an accelerator again."""
    return torch.tensor([1.0, -1.0], dtype=dtype, device=device)


def _side_by_side(parts: list[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts, -1)


def runner_up(logits: Tensor, best: Tensor) -> Tensor:
    """The most likely action but `best [B, 1]`, `[B, n] -> [B, 1]`."""
    return logits.scatter(-1, best, -torch.inf).argmax(-1, keepdim=True)


@dataclass(frozen=True)
class Value(Objective):
    """−V(s+δ), which is V(s) − V(s+δ) up to a constant: lead the critic to expect less.

    A heuristic for modules whose critic reads the agent's own observation: it ignores the actor, and nothing
    ties its gradient to what the policy does (the critic attack of Zhang 2020, arXiv 2003.08938).
    """

    needs: ClassVar[frozenset[Need]] = frozenset({"critic"})

    def bind(self, policy: Policy, clean: Clean) -> BoundObjective:
        critic = clean.values
        if critic is None:
            raise ValueError(
                "expected a critic of the agent's own observation for the objective 'value', got a policy "
                "without; use 'kl', which needs none"
            )
        if isinstance(critic, PulledBack):
            return OutputObjective(critic, torch.neg, lambda v: (-v, torch.full_like(v, -1.0)))
        return lambda obs: -critic(obs)


@dataclass(frozen=True)
class Custom(Objective):
    """Your own h: `function(outputs [B, ..., m], clean) -> [B, ...]` at the perturbed observations.

    It starts at δ = 0 unless told otherwise; ask for a random start where its gradient vanishes there.
    """

    function: Callable[[Tensor, Clean], Tensor]

    def bind(self, policy: Policy, clean: Clean) -> BoundObjective:
        return lambda obs: self.function(policy(obs), clean)


OBJECTIVES: dict[str, Objective] = {
    "kl": KL(),
    "surrogate": Surrogate(),
    "margin": Margin(),
    "value": Value(),
}
"""The objectives by name."""

ObjectiveLike = str | Objective | Callable[[Tensor, Clean], Tensor]
"""An objective, its name, or a function as one (`Custom`)."""


def make_objective(objective: ObjectiveLike) -> Objective:
    """An objective by name, the given one, or a function as one (`Custom`).

    Raises:
        ValueError: unknown name.
    """
    if isinstance(objective, Objective):
        return objective
    if callable(objective):
        return Custom(objective)
    one_of("objective", objective, OBJECTIVES)
    return OBJECTIVES[objective]
