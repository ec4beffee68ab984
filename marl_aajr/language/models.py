"""Causal language models of Hugging Face, from a configuration or a folder: nothing is downloaded."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
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

_LOCAL = {"local_files_only": True, "trust_remote_code": False}
_AS_REBUILT = {"attn_implementation": "eager", "dtype": torch.float32}
"""Kernels differ by rounding: a model that is read, and one made of its configuration, have the same."""

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
    """A model with random float32 weights, from torch's global generator, and eager attention.

    Eager attention has second derivatives in reverse mode: `auto` takes `double`. The tangent of a softmax
    has no gradient in PyTorch 2.13, so that `forward` gives J u but cannot be trained through. Fused kernels
    have neither (`central`).

    Its logits are small: a policy begins by trying everything (Andrychowicz et al. 2021, arXiv:2006.05990).
    """
    library = transformers()
    settings = {name: value for name, value in config.items() if name != "transformers_version"}
    made = library.AutoConfig.for_model(**settings)
    model: nn.Module = library.AutoModelForCausalLM.from_config(made, **_AS_REBUILT)
    body: Any = model.base_model
    weights = [part.weight for part in body.children() if getattr(part, "weight", None) is not None]
    if norms := [weight for weight in weights if weight.ndim == 1]:
        nn.init.constant_(norms[-1], _OUTPUTS)
    return model


def read_config(folder: Path | str) -> Any:
    """The configuration of a folder's model as it is used here: float32 weights, no dropout.

    Raises:
        ValueError: no such folder (a name of the hub is none), or none of a model.
    """
    with _readable(folder):
        config = transformers().AutoConfig.from_pretrained(folder, **_LOCAL)
    config.dtype = torch.float32
    for name, value in config.to_dict().items():
        if "drop" in name and isinstance(value, float):
            setattr(config, name, 0.0)
    return config


def read_tokenizer(folder: Path | str) -> Any:
    """The tokenizer of a folder; `ValueError` as above."""
    with _readable(folder):
        return transformers().AutoTokenizer.from_pretrained(folder, **_LOCAL)


def read_model(folder: Path | str) -> tuple[nn.Module, Any]:
    """A causal model and its tokenizer from a folder that `save_pretrained` wrote, safetensors only.

    The model has float32 weights, eager attention and no dropout, as `new_model` makes it of its
    configuration: a run, its checkpoints and its victim compute the same to the last bit.

    Raises:
        ValueError: no such folder (a name of the hub is none), or none of a causal model with all weights.
    """
    config = read_config(folder)
    with _readable(folder):
        read, found = transformers().AutoModelForCausalLM.from_pretrained(
            folder, config=config, use_safetensors=True, output_loading_info=True, **_LOCAL, **_AS_REBUILT
        )
        if missing := sorted(found["missing_keys"]):
            raise ValueError(f"no weights {', '.join(missing[:3])}")
    return read, read_tokenizer(folder)


def has_weights(folder: Path | str) -> bool:
    """Whether a folder is here, and has more than what a model is made of."""
    return any((Path(folder) / f"model.safetensors{kind}").is_file() for kind in ("", ".index.json"))


def keep_settings(folder: Path | str, out: Path) -> None:
    """Save the configuration and the tokenizer of a folder's model, without its weights."""
    read_tokenizer(folder).save_pretrained(out)
    shutil.copy(Path(folder) / "config.json", out)


@contextmanager
def _readable(folder: Path | str) -> Iterator[None]:
    """Whatever goes wrong while a folder is read, as one line."""
    if not (Path(folder) / "config.json").is_file():
        raise ValueError(
            f"expected the folder of a model with a config.json, got {str(folder)!r}; nothing is downloaded: "
            "fetch it yourself (save_pretrained), and name the folder"
        )
    from safetensors import SafetensorError

    try:
        yield
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ValueError(f"expected a causal model and its tokenizer in {folder}, got {reason}") from error


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
