"""Folders as people have them: tiny models of transformers' own classes, and tokenizers of subwords."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from marl_aajr.language.models import transformers

END = "<|end|>"


def subword_tokenizer(words: Sequence[str]) -> Any:
    """Byte-level BPE in which each word is a token at the beginning of a text, and another behind a space."""
    library = transformers()
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    settings: dict[str, Any] = {"special_tokens": [END], "initial_alphabet": alphabet, "show_progress": False}
    texts = [form for word in words for form in [word, f"{word} {word}"] * 4]
    inner.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=4000, min_frequency=2, **settings))
    return library.PreTrainedTokenizerFast(tokenizer_object=inner, eos_token=END, pad_token=END)


SMALL = {
    "hidden_size": 8,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 4,
}
"""Sizes of a model of Llama's kind."""


def save_model(folder: Path, kind: str, tokenizer: Any, *, dtype: torch.dtype = torch.float32) -> Any:
    """A model with random weights and its tokenizer, as `save_pretrained` leaves them; the model."""
    library = transformers()
    size = len(tokenizer)
    if kind == "gpt2":
        config = library.GPT2Config(vocab_size=size, n_embd=8, n_layer=1, n_head=2, n_positions=40)
    elif kind == "opt":
        config = library.OPTConfig(
            vocab_size=size,
            hidden_size=8,
            word_embed_proj_dim=8,
            ffn_dim=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            max_position_embeddings=40,
        )
    else:
        config = library.AutoConfig.for_model(
            kind,
            vocab_size=size + 3,  # padded, as those of real models are
            **SMALL,
            max_position_embeddings=40,
            attention_dropout=0.1,
        )
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = library.AutoModelForCausalLM.from_config(config).to(dtype)
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return model
