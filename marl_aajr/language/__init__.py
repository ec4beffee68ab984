"""Agents that read: Hugging Face causal language models as policies, perturbed in their embeddings.

It needs the extra `marl_aajr[language]`; importing it does not. Nothing is ever downloaded: models are made
from a configuration or read from a folder.
"""

from __future__ import annotations

from marl_aajr.language.models import ARCHITECTURES, model_config, read_model
from marl_aajr.language.network import LanguageNetwork
from marl_aajr.language.tokens import word_tokenizer

__all__ = [
    "ARCHITECTURES",
    "LanguageNetwork",
    "model_config",
    "read_model",
    "word_tokenizer",
]
