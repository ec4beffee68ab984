"""The settings of language models in runs."""

from __future__ import annotations

from typing import Literal

from marl_aajr.training.fields import Count, Section


class LanguageConfig(Section):
    """A causal language model that reads the observations, where these are words (extra `[language]`).

    It learns to listen in `bargain_v0` within minutes with its defaults and `ppo: {lr: [[0, 3e-3],
    [300_000, 3e-4]], entropy_coeff: [[0, 0.05], [250_000, 0]], gamma: 0.9, gae_lambda: 0.5, epochs: 4}`:
    experiments/language.

    Attributes:
        architecture: kind of the model, made anew with random weights.
        hidden_size: width of embeddings and layers.
        layers: number of layers.
        heads: number of attention heads, a divisor of `hidden_size`.
        folder: folder of a model and its tokenizer (`save_pretrained`), whose weights are trained on, instead
            of the settings above. Nothing is downloaded, and a run that is resumed needs it no more. None: a
            new model.
        head: a layer for the actions, instead of the logits of the words that stand for them.
        critic: `own`: a small network on embeddings of its own; `shared`: one layer on what the model makes
            of the last word, whose errors then move the model unless `ppo.vf_loss_coeff` is small.
    """

    architecture: Literal["gpt2", "llama", "mistral", "qwen2", "qwen3"] = "gpt2"
    hidden_size: Count = 32
    layers: Count = 1
    heads: Count = 4
    folder: str | None = None
    head: bool = False
    critic: Literal["own", "shared"] = "own"
