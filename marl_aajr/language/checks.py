"""Which models can be perturbed in their embeddings, and whether the policy answers what they answer."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor, nn

from marl_aajr.language.models import attention, positions

_LOUD = 100.0
"""Logits as large as this show a soft cap, which ends at about 30."""


def check_model(model: nn.Module) -> None:
    """Raise `ValueError` unless a model takes embeddings in the place of tokens."""
    outer: Any = model
    base = outer.get_base_model() if hasattr(outer, "get_base_model") else model  # of peft's adapters
    takes = inspect.signature(base.forward).parameters
    if "inputs_embeds" not in takes or getattr(model, "get_input_embeddings", None) is None:
        raise ValueError(
            f"expected a causal language model that takes inputs_embeds, got {type(model).__name__}, whose "
            f"forward takes {', '.join(takes)}; use a decoder of transformers"
        )


def check_embeddings(model: nn.Module, tokens: Tensor, embedded: Tensor) -> None:
    """Raise `ValueError` unless what a model makes of tokens are rows of its table: what an adversary moves.

    Some models scale them (Gemma), and adapters of the embeddings change them.

    Args:
        model: the model.
        tokens: some tokens, `[B, L]`; the first sentence is looked at.
        embedded: what the model's embedding layer makes of them, `[B, L, e]`.
    """
    layer: Any = model.get_input_embeddings()  # type: ignore[operator]
    if not torch.equal(embedded[:1].detach(), layer.weight[tokens[:1]].detach()):
        raise ValueError(
            f"expected embeddings that are rows of the model's table, got {type(layer).__name__}, which "
            "scales or changes them; use GPT-2, Llama, Mistral or Qwen, and adapters of other layers"
        )


def check_length(model: nn.Module, length: int) -> None:
    """Raise `ValueError` where sequences are longer than what a model can read."""
    settings: Any = model.config
    context = getattr(settings, "max_position_embeddings", None)
    if context is not None and length > context:
        raise ValueError(
            f"expected at most {context} tokens, the context of {type(model).__name__}, got {length}; cut "
            "them, or take a model with a longer context"
        )


def check_logits(model: nn.Module) -> None:
    """Raise `ValueError` unless a model's own logits are W h, h what its body makes of its embeddings.

    Some models scale their embeddings (Gemma) or their logits (Cohere, Granite), or cap these (Gemma 2).
    """
    name, training = type(model).__name__, model.training
    model.eval()
    try:
        own, ours = _loud_logits(model)
    except Exception as error:  # whatever a model does that takes no embeddings, masks or positions
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ValueError(
            f"expected a causal model that takes inputs_embeds, attention_mask and position_ids, got {name} "
            f"({reason}); use GPT-2, Llama, Mistral or Qwen"
        ) from error
    finally:
        model.train(training)
    if not torch.allclose(ours, own, rtol=0, atol=1e-3 * _LOUD):
        raise ValueError(
            f"expected a model whose logits are linear in what it makes of its embeddings, got {name}, which "
            "scales the ones or the others, or caps logits; use GPT-2, Llama, Mistral or Qwen"
        )


@torch.no_grad()
def _loud_logits(model: Any) -> tuple[Tensor, Tensor]:
    """A model's own logits of two tokens, and those that a policy reads off it, `[1, 2, V]` each.

    What the output layer gives is made `_LOUD` in both. The policy reads the tokens behind padding.
    """
    embed, unembed = model.get_input_embeddings(), model.get_output_embeddings()
    raw: list[Tensor] = []

    def amplify(_: nn.Module, __: Any, logits: Tensor) -> Tensor:
        raw.append(_LOUD / logits.abs().amax().clamp_min(1e-12))
        return logits * raw[0]

    count = min(2, getattr(model.config, "max_position_embeddings", None) or 2)
    tokens = torch.arange(count + 1, device=embed.weight.device)[None] % len(embed.weight)
    hook = unembed.register_forward_hook(amplify)
    try:
        own: Tensor = model(input_ids=tokens[:, 1:], use_cache=False).logits
    finally:
        hook.remove()
    attended = torch.arange(count + 1, device=tokens.device)[None] > 0
    states = model.base_model(
        inputs_embeds=embed.weight[tokens],
        attention_mask=attention(attended).to(embed.weight.dtype),
        position_ids=positions(attended),
        use_cache=False,
    ).last_hidden_state
    return own, unembed(states[:, 1:]) * raw[0]
