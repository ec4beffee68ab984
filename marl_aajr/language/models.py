"""Causal language models of Hugging Face, from a configuration or a folder: nothing is downloaded."""

from __future__ import annotations

import inspect
import os
from collections.abc import Collection, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from marl_aajr.core.checks import one_of, whole

INSTALL = "pip install 'marl_aajr[language]'"

ARCHITECTURES: dict[str, dict[str, str]] = {
    "gpt2": {"hidden_size": "n_embd", "layers": "n_layer", "heads": "n_head", "context": "n_positions"},
    "llama": {
        "hidden_size": "hidden_size",
        "layers": "num_hidden_layers",
        "heads": "num_attention_heads",
        "context": "max_position_embeddings",
    },
}
"""Kinds of models by their sizes' names in Hugging Face's configurations."""
ARCHITECTURES |= dict.fromkeys(("mistral", "qwen2", "qwen3"), ARCHITECTURES["llama"])

_WEIGHTS, _OUTPUTS = 0.85, 0.2
"""First sizes of weights, in inverse roots of the width, and of what the last norm gives to the logits."""

_NO_DROPOUT = ("resid_pdrop", "embd_pdrop", "attn_pdrop", "attention_dropout")
_NO_CONTROL = ("bos_token_id", "eos_token_id", "pad_token_id")


def transformers() -> Any:
    """Hugging Face's package, which may look for nothing outside this machine.

    Raises:
        ValueError: it is not installed.
    """
    if find_spec("transformers") is None or find_spec("tokenizers") is None:
        raise ValueError(f"expected transformers and tokenizers for language models, got none; {INSTALL}")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    import transformers

    return transformers


def model_config(
    architecture: str = "gpt2",
    *,
    vocab_size: int,
    hidden_size: int = 32,
    layers: int = 1,
    heads: int = 4,
    context: int = 32,
) -> dict[str, Any]:
    """The configuration of a new model without dropout, as JSON values.

    Args:
        architecture: one of `ARCHITECTURES`.
        vocab_size: V.
        hidden_size: e, the width of embeddings and layers; the feed-forward layers have 4 e.
        layers: number of layers.
        heads: number of attention heads, a divisor of e.
        context: the longest sequence.

    Raises:
        ValueError: an unknown architecture, or sizes that do not fit.
    """
    one_of("architecture", architecture, ARCHITECTURES)
    sizes = {"hidden_size": hidden_size, "layers": layers, "heads": heads, "context": context}
    for name, value in {"vocab_size": vocab_size, **sizes}.items():
        whole(name, value)
    if hidden_size % heads:
        raise ValueError(f"expected hidden_size as a multiple of heads, got {hidden_size} for {heads} heads")
    own: dict[str, Any] = {"initializer_range": _WEIGHTS * hidden_size**-0.5}
    own |= {ARCHITECTURES[architecture][name]: value for name, value in sizes.items()}
    if architecture == "gpt2":  # the same function as its gelu_new, in one kernel instead of eight
        own["activation_function"] = "gelu_pytorch_tanh"
    else:
        own |= {"intermediate_size": 4 * hidden_size, "num_key_value_heads": heads}
        own |= {"head_dim": hidden_size // heads}
    known = {"vocab_size": vocab_size, **own, **dict.fromkeys(_NO_CONTROL)}
    settings = transformers().AutoConfig.for_model(architecture, **known).to_dict()
    settings |= {name: 0.0 for name in _NO_DROPOUT if name in settings}
    return {"model_type": architecture, **settings}


def new_model(config: Mapping[str, Any]) -> nn.Module:
    """A model with random weights, from torch's global generator; attention that has all its derivatives.

    Its logits are small: a policy begins by trying everything (Andrychowicz et al. 2021, arXiv:2006.05990).
    """
    library = transformers()
    settings = {name: value for name, value in config.items() if name != "transformers_version"}
    made = library.AutoConfig.for_model(**settings)
    model: nn.Module = library.AutoModelForCausalLM.from_config(made, attn_implementation="eager")
    body: Any = model.base_model
    scales = [part.weight for part in body.children() if getattr(part, "weight", None) is not None]
    nn.init.constant_(scales[-1], _OUTPUTS)  # of the last norm: whatever else has weights stands before it
    return model


def read_model(folder: Path | str) -> tuple[nn.Module, Any]:
    """A causal model and its tokenizer from a folder that `save_pretrained` wrote, safetensors only.

    Raises:
        ValueError: no such folder (a name of the hub is none), or none of a causal model.
    """
    path = Path(folder)
    if not (path / "config.json").is_file():
        raise ValueError(
            f"expected the folder of a model with a config.json, got {str(folder)!r}; nothing is downloaded: "
            "fetch it yourself (save_pretrained), and name the folder"
        )
    library = transformers()
    try:
        local = {"local_files_only": True, "trust_remote_code": False}
        model = library.AutoModelForCausalLM.from_pretrained(path, use_safetensors=True, **local)
        return model, library.AutoTokenizer.from_pretrained(path, **local)
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ValueError(f"expected a causal model and its tokenizer in {path}, got {reason}") from error


def word_tokenizer(vocabulary: Sequence[str], *, padding: str | None = None) -> Any:
    """A tokenizer whose tokens are whole words: the number of a word is its place in the vocabulary."""
    library = transformers()
    from tokenizers import Tokenizer, models, pre_tokenizers

    inner = Tokenizer(models.WordLevel({word: i for i, word in enumerate(vocabulary)}))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return library.PreTrainedTokenizerFast(tokenizer_object=inner, pad_token=padding)


def token_ids(tokenizer: Any, words: Sequence[str], *, held: Collection[str] = ()) -> list[int]:
    """The token of each word.

    Args:
        tokenizer: of the model.
        words: the environment's.
        held: those of them that stand for no word, such as padding; a tokenizer without them has its own
            padding, or token 0, in their place.

    Raises:
        ValueError: words that are not one token, by name.
    """
    found = {word: _one_token(tokenizer, word) for word in words}
    instead = tokenizer.pad_token_id or 0
    found |= {word: instead for word in held if found.get(word) is None}
    if missing := [word for word, token in found.items() if token is None]:
        raise ValueError(
            f"expected a tokenizer that has each of the environment's words as one token, got one of "
            f"{len(tokenizer)} tokens without {', '.join(missing)}; add them (tokenizer.add_tokens and "
            "model.resize_token_embeddings)"
        )
    return [token for token in found.values() if token is not None]


def _one_token(tokenizer: Any, word: str) -> int | None:
    known = tokenizer.get_vocab()
    if word in known:
        return int(known[word])
    for form in (f" {word}", word):  # in the middle of a sentence first
        try:
            tokens = tokenizer.encode(form, add_special_tokens=False)
        except Exception:  # a word-level tokenizer without an unknown token raises a bare one
            continue
        if len(tokens) == 1 and tokens[0] != tokenizer.unk_token_id:
            return int(tokens[0])
    return None


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


def check_length(model: nn.Module, length: int) -> None:
    """Raise `ValueError` where sequences are longer than what a model can read."""
    settings: Any = model.config
    context = getattr(settings, "max_position_embeddings", None)
    if context is not None and length > context:
        raise ValueError(
            f"expected at most {context} tokens, the context of {type(model).__name__}, got {length}; cut "
            "them, or take a model with a longer context"
        )


def positions(attention_mask: Tensor) -> Tensor:
    """Positions from the first word on, `[B, L]`; what stands before it is padding."""
    seen = attention_mask.long().cumsum(-1) > 0
    return (seen.long().cumsum(-1) - 1).clamp_min(0)


def attention(attended: Tensor) -> Tensor:
    """What is added to attention scores, `[B, 1, L, L]`: each word sees those before it, and itself always.

    What sees nothing at all, as padding in front does, would be NaN in some precisions.
    """
    length = attended.shape[-1]
    here = torch.ones(length, length, dtype=torch.bool, device=attended.device)
    seen = here.tril() & attended[:, None, :] | torch.eye(length, dtype=torch.bool, device=attended.device)
    return torch.zeros_like(seen, dtype=torch.float32).masked_fill(~seen, torch.finfo().min).unsqueeze(1)
