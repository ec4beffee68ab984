"""AAJR in a fine-tuning loop of somebody else's: one function between the loss and its backward pass.

    term = embedding_penalty(model, input_ids, attention_mask, regularizer=AAJR(epsilon=0.5, norm="l2"))
    (loss + term.loss).backward()

It works with causal models of Hugging Face that do not scale their embeddings, adapters of `peft` included,
and in any loop (TRL, verl).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable
from dataclasses import replace
from functools import partial
from typing import Any, Self
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from marl_aajr.core.checks import maximum
from marl_aajr.core.distributions import Categorical
from marl_aajr.core.objectives import Clean
from marl_aajr.core.policy import Policy
from marl_aajr.core.token_network import check_radius, neighbour_distance
from marl_aajr.language.checks import check_embeddings, check_length, check_model
from marl_aajr.language.models import positions
from marl_aajr.regularizers.adversarial import Perturbing
from marl_aajr.regularizers.jacobian_penalty import JacobianPenalty
from marl_aajr.regularizers.sample import LossTerm, Sample, State, share_of

AtEmbeddings = Callable[[Tensor, Tensor], Tensor]
"""A function of embedded tokens `[b, L, e]` and their places among the rows of the batch, `[b]`."""

_fitted: WeakKeyDictionary[nn.Module, dict[Hashable, Perturbing]] = WeakKeyDictionary()
"""Regularizers as they were settled for a model, an output map and a kernel, which are tried out once."""


class _Answers(Policy):
    """What a model answers at the embeddings of some tokens, whose rows each know their tokens."""

    network: nn.Module

    def __init__(self, model: nn.Module, at: AtEmbeddings, columns: dict[str, Tensor], outputs: int) -> None:
        super().__init__(Categorical(outputs))
        self.network, self._at, self._columns = model, at, columns
        self.tokens = columns["tokens"]
        table: Tensor = model.get_input_embeddings().weight  # type: ignore[operator]
        self._table, self._unit, self.block = table, neighbour_distance(table.detach()), table.shape[-1]

    def __call__(self, obs: Tensor) -> Tensor:
        moved = obs.unflatten(-1, (-1, self._table.shape[-1])) * self._unit
        clean, free = self._table[self._columns["tokens"]], self._columns["free"].unsqueeze(-1)
        outputs = self._at(torch.where(free, moved, clean), self._columns["rows"])
        return outputs if outputs.ndim > 1 else outputs.unsqueeze(-1)

    @property
    def embeddings(self) -> Tensor:
        return self._table / self._unit

    def parameters(self) -> list[Tensor]:
        return [parameter for parameter in self.network.parameters() if parameter.requires_grad]

    def changed(self, change: Callable[[Tensor], Tensor]) -> Self:
        columns = {name: change(column) for name, column in self._columns.items()}
        return type(self)(self.network, self._at, columns, self.distribution.num_inputs)


def embedding_penalty(
    model: nn.Module,
    input_ids: Tensor,
    attention_mask: Tensor | None = None,
    *,
    regularizer: Perturbing,
    outputs: AtEmbeddings | None = None,
    loss: AtEmbeddings | None = None,
    perturbable: Tensor | None = None,
    held: Collection[int] | None = None,
    generator: torch.Generator | None = None,
    timestep: float = 0.0,
    state: State | None = None,
    minibatch: int | None = None,
) -> LossTerm:
    """AAJR's term, or that of a rival, of one batch of token sequences, and its metrics.

    The adversary moves embeddings. ε is the radius of each token, in units of the mean distance between
    neighbouring embeddings (`norm="l2"`: at 1 a token reaches its neighbours). The outputs whose Jacobian
    counts are the logits of the token that follows the last one, unless you say otherwise.

    Args:
        model: a causal model of Hugging Face; the term is differentiable by its trained parameters.
        input_ids: tokens, `[B, L]`.
        attention_mask: 1 for tokens, 0 for padding, `[B, L]`; None: all are tokens.
        regularizer: `AAJR(...)`, or any other with a perturbation set. Its `sample_fraction` is of rows.
        outputs: the output map, as a function of embeddings `[b, L, e]` and the rows `[b]` of the batch that
            they belong to: `[b, m]`.
        loss: in its place, the loss of each row, `[b]`: the adversary raises it, and its slope is penalised.
        perturbable: tokens that may be moved, `[B, L]` bool, such as those of others; None: all.
        held: tokens that are never moved; None: those of beginning, end and padding in the configurations of
            the model and of its generation. A model does not know the others: `tokenizer.all_special_ids`.
        generator: source of randomness; None: a new one from seed 0, with the same draws each time.
        timestep: for schedules.
        state: of a regularizer with a dual variable, from `regularizer.initial_state()`.
        minibatch: how many came before, where one of several is regularised (`interval`); None: all are.

    Raises:
        ValueError: a model without `inputs_embeds`, or that scales its embeddings; sequences longer than its
            context, ε in other units.
    """
    check_model(model)
    check_length(model, input_ids.shape[-1])
    if outputs is not None and loss is not None:
        raise ValueError("expected outputs or a loss, got both; the loss is what is penalised then")
    if not regularizer.due(timestep, minibatch):
        return LossTerm(torch.zeros((), device=input_ids.device), {})
    mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
    generator = generator or torch.Generator(input_ids.device).manual_seed(0)
    share = min(1.0, (1 if minibatch is None else regularizer.every) * regularizer.sample_fraction)
    rows = share_of(len(input_ids), max(1, round(share * len(input_ids))), generator=generator)
    rows = rows.to(input_ids.device)
    columns = {
        "tokens": input_ids[rows],
        "free": _free(model, input_ids, mask, perturbable, held)[rows],
        "rows": rows,
    }
    at = loss or outputs or _next_token(model, mask)
    embedded = model.get_input_embeddings()(columns["tokens"])  # type: ignore[operator]
    check_embeddings(model, columns["tokens"], embedded)
    clean = at(embedded, rows)
    clean = clean if clean.ndim > 1 else clean.unsqueeze(-1)
    policy = _Answers(model, at, columns, clean.shape[-1])
    check_radius(policy.embeddings, maximum(regularizer.epsilon))
    obs = policy.embed(columns["tokens"])
    climbing = regularizer if loss is None else _climbing(regularizer)
    settled = _settled(model, climbing, policy, obs, of=_code(loss or outputs))
    sample = Sample(policy, obs, clean, policy_loss=None if loss is None else lambda y, _: y[..., 0])
    return settled.evaluate(sample, timestep=timestep, generator=generator, state=state, minibatch=minibatch)


def _settled(
    model: nn.Module, regularizer: Perturbing, policy: Policy, obs: Tensor, *, of: Hashable
) -> Perturbing:
    known = _fitted.setdefault(model, {})
    key = regularizer, of, getattr(model.config, "_attn_implementation", None)
    if key not in known:
        settled = regularizer.fitted(policy, obs)
        known[key] = replace(settled, sample_fraction=1.0, interval=regularizer.every)
    return known[key]


def _code(at: AtEmbeddings | None) -> Hashable:
    """What stays of a function that a loop makes anew for each batch."""
    while isinstance(at, partial):
        at = at.func
    return getattr(at, "__code__", type(at).__qualname__)


def _climbing(regularizer: Perturbing) -> Perturbing:
    if not isinstance(regularizer, JacobianPenalty):
        raise ValueError(
            f"expected a Jacobian penalty such as AAJR for a loss, got {regularizer.name}; give outputs"
        )
    return replace(regularizer, objective=_the_loss)


def _the_loss(outputs: Tensor, clean: Clean) -> Tensor:
    """The objective of an adversary who raises the only output."""
    return outputs[..., 0]


def _next_token(model: nn.Module, mask: Tensor) -> AtEmbeddings:
    """The logits of the token after the last one."""
    last = (mask * torch.arange(mask.shape[-1], device=mask.device)).argmax(-1)

    def logits(embedded: Tensor, rows: Tensor) -> Tensor:
        answered: Any = model(
            inputs_embeds=embedded,
            attention_mask=mask[rows],
            position_ids=positions(mask[rows]),
            use_cache=False,
        )
        found: Tensor = answered.logits[torch.arange(len(rows), device=rows.device), last[rows]]
        return found

    return logits


def _free(
    model: nn.Module,
    input_ids: Tensor,
    mask: Tensor,
    perturbable: Tensor | None,
    held: Collection[int] | None,
) -> Tensor:
    """The tokens that an adversary may move, `[B, L]` bool."""
    if held is None:
        settings = model.config, getattr(model, "generation_config", None)
        kinds = ("bos", "eos", "pad")
        known = (getattr(each, f"{kind}_token_id", None) for each in settings for kind in kinds)
        held = [
            token
            for each in known
            for token in (each if isinstance(each, list) else [each])
            if token is not None
        ]
    never = torch.tensor(list(held), dtype=input_ids.dtype, device=input_ids.device)
    free = (mask != 0) & ~torch.isin(input_ids, never)
    return free if perturbable is None else free & perturbable.bool()
