"""PPO's loss with its gradient written out, as one node of autograd's graph.

The loss of a minibatch is some thirty small operations between the networks' outputs and one number. Autograd
records each, and walks back through each. All of them together have a closed-form gradient with respect to
the distribution inputs and the values, which costs a third of that (`ppo_loss`; the networks' own graph stays
autograd's). Plain MLPs need no graph at all (`marl_aajr.rllib.lean.plain_gradient`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from marl_aajr.core.distributions import ActionDistribution, Categorical, DiagGaussian, MultiCategorical
from marl_aajr.rllib.lean.ppo_kernel import loss_of_choice, served


@dataclass(frozen=True)
class PPOCoefficients:
    """The numbers of PPO's loss.

    Attributes:
        clip: Bound of the probability ratio's distance from 1.
        vf_clip: Bound of the squared value error; infinite: none.
        vf_loss: Weight of the value loss; 0 where there is no critic.
        entropy: Weight of the entropy bonus.
    """

    clip: float
    vf_clip: float
    vf_loss: float
    entropy: float


@dataclass(frozen=True)
class PPORows:
    """The columns of N samples that the loss reads.

    Attributes:
        inputs: `[N, m]`, of the policy that is trained; differentiable.
        values: `[N]`, of the critic that is trained; differentiable.
        actions: `[N, ...]`.
        log_probs: `[N]`, of the policy that acted.
        advantages: `[N]`.
        value_targets: `[N]`.
    """

    inputs: Tensor
    values: Tensor
    actions: Tensor
    log_probs: Tensor
    advantages: Tensor
    value_targets: Tensor

    def where(self, mask: Tensor) -> PPORows:
        """The samples among rows that only look like some, `mask [N]` (or `[B, T]`) bool."""
        return PPORows(*(getattr(self, field.name)[mask] for field in fields(self)))


def ppo_loss(distribution: ActionDistribution, rows: PPORows, coefficients: PPOCoefficients) -> Tensor:
    """RLlib's PPO loss, but for its KL term.

    `mean(−min(ρ A, clip(ρ, 1 − c, 1 + c) A) + c_v min((V − R)², c_vf) − c_e H)` with
    `ρ = exp(log π(a) − log π_old(a))` (Schulman et al. 2017, arXiv:1707.06347, eq. 7 and 9).

    Args:
        distribution: The distribution whose parameters the inputs are.
        rows: The samples; of none, the loss is 0.
        coefficients: The numbers above.

    Returns:
        A scalar. Its gradient can be taken, but not differentiated again.
    """
    if not len(rows.values):
        return (rows.inputs.sum() + rows.values.sum()) * 0.0
    loss: Tensor = _Loss.apply(rows.inputs, rows.values, distribution, rows, coefficients)
    return loss


def ppo_parts(
    distribution: ActionDistribution, rows: PPORows, *, clip: float | Tensor, vf_clip: float | Tensor
) -> dict[str, Tensor]:
    """The parts of the loss, as autograd sees them.

    Returns:
        `policy_loss`, `vf_loss`, `vf_loss_unclipped` and `entropy`.
    """
    ratio = (distribution.log_prob(rows.inputs, rows.actions) - rows.log_probs).exp()
    bound = rows.advantages + clip * rows.advantages.abs()
    squared = (rows.values - rows.value_targets).square()
    return {
        "policy_loss": -torch.min(ratio * rows.advantages, bound).mean(),
        "vf_loss": squared.clamp(max=vf_clip).mean(),
        "vf_loss_unclipped": squared.mean(),
        "entropy": distribution.entropy(rows.inputs).mean(),
    }


def loss_and_gradient(
    distribution: ActionDistribution, rows: PPORows, coefficients: PPOCoefficients
) -> tuple[Tensor, Tensor, Tensor]:
    """`ppo_loss`, and its gradient with respect to the inputs `[N, m]` and the values `[N]`.

    No graph is recorded; call it where none would be.
    """
    c, share = coefficients, 1.0 / len(rows.values)
    if served(distribution, rows.inputs):
        columns = (rows.values, rows.actions, rows.log_probs, rows.advantages, rows.value_targets)
        return loss_of_choice(rows.inputs, columns, (c.clip, c.vf_clip, c.vf_loss, c.entropy))
    parts = _parts(distribution, rows.inputs, rows.actions)
    log_prob = _total([part.log_prob for part in parts])
    free = (log_prob - rows.log_probs).exp_().mul_(rows.advantages)
    # clip(ρ) A where it is the smaller one: (1 + c) A for A > 0, (1 − c) A for A < 0.
    bound = torch.add(rows.advantages, rows.advantages.abs(), alpha=c.clip)
    error = rows.values - rows.value_targets
    squared = error.square()
    terms = torch.min(free, bound).neg_()
    terms.add_(squared.clamp(max=c.vf_clip), alpha=c.vf_loss)
    terms.sub_(_total([part.entropy for part in parts]), alpha=c.entropy)
    to_log_prob = torch.where(free > bound, 0.0, free).mul_(-share)  # which keeps NaN
    gradient = [part.gradient(to_log_prob, -c.entropy * share) for part in parts]
    to_values = error.mul_(2.0 * c.vf_loss * share)
    if math.isfinite(c.vf_clip):
        to_values = to_values.masked_fill_(squared > c.vf_clip, 0.0)
    return terms.mean(), gradient[0] if len(gradient) == 1 else torch.cat(gradient, -1), to_values


class _Loss(torch.autograd.Function):
    @staticmethod
    def forward(  # noqa: PLR0917 - autograd takes no keywords
        ctx: Any,
        inputs: Tensor,
        values: Tensor,
        distribution: ActionDistribution,
        rows: PPORows,
        coefficients: PPOCoefficients,
    ) -> Tensor:
        known = replace(rows, inputs=inputs, values=values)
        loss, to_inputs, to_values = loss_and_gradient(distribution, known, coefficients)
        ctx.save_for_backward(to_inputs, to_values)
        return loss

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> Any:
        to_inputs, to_values = ctx.saved_tensors
        return to_inputs * upstream[0], to_values * upstream[0], None, None, None


def _total(terms: Sequence[Tensor]) -> Tensor:
    return terms[0] if len(terms) == 1 else torch.stack(list(terms)).sum(0)


def _parts(
    distribution: ActionDistribution, inputs: Tensor, actions: Tensor
) -> list[_Choice] | list[_Normal]:
    """The independent parts of a distribution; the last dimension of `inputs` is theirs in turn."""
    if isinstance(distribution, Categorical):
        return [_Choice(inputs, actions)]
    if isinstance(distribution, MultiCategorical):
        pairs = zip(distribution.split(inputs), actions.unbind(-1), strict=True)
        return [_Choice(logits, chosen) for logits, chosen in pairs]
    assert isinstance(distribution, DiagGaussian)
    return [_Normal(*distribution.split(inputs), actions)]


class _Choice:
    """One discrete action: `log p(a)`, `H = −Σ p log p` and their gradients by the logits."""

    def __init__(self, logits: Tensor, actions: Tensor) -> None:
        self._actions = actions.long().unsqueeze(0)
        # Few actions, many rows: along the rows, vector instructions have something to do.
        log_p = torch.log_softmax(logits.t().contiguous(), 0)
        self._p = log_p.exp()
        # An action that is masked with −∞ has p log p = 0, not NaN.
        self._p_log_p = (self._p * log_p).nan_to_num_(nan=0.0)
        self.log_prob = log_p.gather(0, self._actions)[0]
        self.entropy = self._p_log_p.sum(0).neg_()

    def gradient(self, to_log_prob: Tensor, to_entropy: float) -> Tensor:
        """`Σ_rows g_row ∇log p(a) + h ∇H`: `g (1_a − p) − h p (log p + H)`, `[N, n]`."""
        gradient = self._p_log_p.addcmul(self._p, self.entropy).mul_(-to_entropy)
        gradient.addcmul_(self._p, to_log_prob, value=-1.0)
        return gradient.scatter_add_(0, self._actions, to_log_prob.unsqueeze(0)).t()


class _Normal:
    """Independent normal actions, in terms of mean and log σ."""

    def __init__(self, mean: Tensor, log_std: Tensor, actions: Tensor) -> None:
        self._precision = (-log_std).exp()
        self._z = (actions - mean).mul_(self._precision)
        constant = 0.5 * math.log(2.0 * math.pi)
        self.log_prob = (0.5 * self._z.square() + log_std).add_(constant).sum(-1).neg_()
        self.entropy = log_std.add(constant + 0.5).sum(-1)

    def gradient(self, to_log_prob: Tensor, to_entropy: float) -> Tensor:
        """`∇log p(a)` is z / σ for the mean and z² − 1 for log σ; `∇H` is 1 for log σ; `[N, 2k]`."""
        row = to_log_prob.unsqueeze(-1)
        to_mean = self._z * self._precision * row
        to_log_std = (self._z.square() - 1.0).mul_(row).add_(to_entropy)
        return torch.cat([to_mean, to_log_std], -1)
