"""A causal language model as the network of a policy: it reads words and answers with one of its actions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional

from marl_aajr.core.token_network import TokenNetwork
from marl_aajr.core.tokenizers import special_tokens, tokenizer_json
from marl_aajr.core.words import Words
from marl_aajr.language.checks import check_length, check_logits, check_model
from marl_aajr.language.models import (
    attention,
    model_config,
    new_model,
    positions,
    read_config,
    read_model,
    read_tokenizer,
)
from marl_aajr.language.tokens import token_ids, word_tokenizer

ARGUMENTS = ("config", "vocabulary", "token_ids", "held", "actions", "outputs", "tokenizer")
"""The arguments of the network, and its attributes."""


class LanguageNetwork(TokenNetwork):
    """Distribution inputs `[B, m]` from words `[B, L]`, in the environment's numbers.

    What the model makes of the last word that is no padding, h, becomes one logit for each action: that of
    the token that stands for it, W h, or that of a head. All arguments are values of JSON.

    Args:
        config: of Hugging Face's model, as `model_config` gives it.
        vocabulary: the words by their numbers in the environment.
        token_ids: the number of each word in the model.
        held: numbers of words that nobody perturbs; the first one is padding.
        actions: words that stand for the actions; None: a head.
        outputs: m, of a head; None: there is none.
        tokenizer: JSON of the tokenizer whose tokens the model reads; for an environment's own words, one
            that splits text at spaces.

    Attributes:
        body: the model without its head.
        head: the layer for the actions.

    Raises:
        ValueError: a model that cannot be perturbed, or a word among the actions that is none.
    """

    body: Any
    head: nn.Linear | None
    _ids: Tensor
    _spoken: Tensor

    def __init__(
        self,
        config: Mapping[str, Any],
        vocabulary: Sequence[str],
        token_ids: Sequence[int],
        *,
        held: Sequence[int] = (0,),
        actions: Sequence[str] | None = None,
        outputs: int | None = None,
        tokenizer: str = "",
    ) -> None:
        super().__init__()
        if (actions is None) == (outputs is None):
            raise ValueError(f"expected words for the actions or a head, got {actions} and {outputs} outputs")
        self.config, self.tokenizer = dict(config), tokenizer
        self.vocabulary, self.token_ids = list(vocabulary), list(token_ids)
        self.held, self.outputs = tuple(map(int, held)), outputs
        self.actions = None if actions is None else list(actions)
        # What is loaded is made on the meta device, which would lose what rotary embeddings keep.
        loading = torch.empty(0).device.type == "meta"
        with torch.random.fork_rng(devices=[], enabled=loading), torch.device("cpu"):
            self._take(new_model(self.config))

    @classmethod
    def of_words(cls, words: Words, *, outputs: int, head: bool = False, **sizes: Any) -> Self:
        """A new model for the words of an environment.

        Args:
            words: the environment's.
            outputs: number of actions.
            head: whether a head answers, although the environment has words for the actions.
            sizes: of `model_config`.
        """
        padding = words.vocabulary[words.padding]
        return cls(
            model_config(vocab_size=len(words), **sizes),
            words.vocabulary,
            range(len(words)),
            held=[words.padding, *words.special],
            **_answers(words, outputs, head),
            tokenizer=words.tokenizer or tokenizer_json(word_tokenizer(words.vocabulary, padding=padding)),
        )

    @classmethod
    def from_folder(cls, folder: str, words: Words, *, outputs: int, head: bool = False) -> Self:
        """A model with the weights of a folder; arguments as above.

        Raises:
            ValueError: no folder of a causal model, or a tokenizer that does not cover the words.
        """
        network = cls(**folder_arguments(folder, words, outputs=outputs, head=head))
        network.read_weights(folder)
        return network

    @property
    def arguments(self) -> dict[str, Any]:
        """What it is made of but its weights, as values of JSON: `LanguageNetwork(**arguments)`."""
        return {name: getattr(self, name) for name in ARGUMENTS}

    @property
    def hidden_size(self) -> int:
        """The width of what a head reads."""
        return self._width

    def read_weights(self, folder: str) -> None:
        """Play by the weights of a folder, which the configuration is of."""
        model, _ = read_model(folder)
        self._take(model)

    @property
    def embeddings(self) -> Tensor:
        table, words = self.embedding_table, len(self.token_ids)
        if not self._same_numbers:
            return table[self._ids]
        return table if len(table) == words else table[:words]

    @property
    def embedding_table(self) -> Tensor:
        table: Tensor = self.body.get_input_embeddings().weight
        return table

    def hidden(self, embedded: Tensor, tokens: Tensor) -> Tensor:
        """What the model makes of the last word, `[B, h]`, of embedded words `[B, L, e]`."""
        check_length(self.body, tokens.shape[-1])
        words = tokens != self.held[0] if self.held else torch.ones_like(tokens, dtype=torch.bool)
        attended = words.clone()
        attended[:, 0] |= ~words.any(-1)  # a row of padding alone
        last = (attended * torch.arange(tokens.shape[-1], device=tokens.device)).argmax(-1)
        states = self.body(
            inputs_embeds=embedded,
            attention_mask=attention(attended).to(embedded.dtype),
            position_ids=positions(attended),
            use_cache=False,
        ).last_hidden_state
        hidden: Tensor = states[torch.arange(len(states), device=tokens.device), last]
        return hidden

    def logits(self, hidden: Tensor) -> Tensor:
        """Distribution inputs `[B, m]` of what the model made of the words."""
        if self.actions is None:
            assert self.head is not None
            outputs: Tensor = self.head(hidden)
            return outputs
        table = self.embedding_table if self.head is None else self.head.weight
        bias = None if self.head is None else self.head.bias
        tokens = self._ids[self._spoken]
        return functional.linear(hidden, table[tokens], None if bias is None else bias[tokens])

    def from_embedding(self, embedded: Tensor, tokens: Tensor) -> Tensor:
        return self.logits(self.hidden(embedded, tokens))

    def _take(self, model: nn.Module) -> None:
        """Play by this model from now on."""
        check_model(model)
        check_logits(model)
        body: Any = model.base_model
        unembedding: Any = model.get_output_embeddings()  # type: ignore[operator]
        table = body.get_input_embeddings().weight
        if (most := max(self.token_ids)) >= len(table):
            raise ValueError(
                f"expected an embedding for each token, got {len(table)} for tokens up to {most}; "
                "model.resize_token_embeddings(len(tokenizer))"
            )
        for module in body.modules():  # the policy that acts and the one that learns are one
            if isinstance(module, nn.Dropout):
                module.p = 0.0
        self.body, self._width = body, int(unembedding.weight.shape[-1])
        if self.outputs is None:
            self.head = None if unembedding.weight is table else unembedding
        elif getattr(self, "head", None) is None:  # not that of other weights
            self.head = nn.Linear(self._width, self.outputs)
        self._same_numbers = self.token_ids == list(range(len(self.token_ids)))
        place = {word: number for number, word in enumerate(self.vocabulary)}
        if strange := [word for word in self.actions or () if word not in place]:
            raise ValueError(f"expected actions out of the vocabulary, got {', '.join(strange)}")
        spoken = [place[word] for word in self.actions or ()]
        self.register_buffer("_ids", torch.tensor(self.token_ids), persistent=False)
        self.register_buffer("_spoken", torch.tensor(spoken), persistent=False)


def _answers(words: Words, outputs: int, head: bool) -> dict[str, Any]:
    if head or not words.actions:
        return {"outputs": outputs}
    if len(words.actions) != outputs:
        raise ValueError(f"expected a word for each of {outputs} actions, got {', '.join(words.actions)}")
    return {"actions": list(words.actions)}


def folder_arguments(folder: str, words: Words, *, outputs: int, head: bool = False) -> dict[str, Any]:
    """The arguments of a `LanguageNetwork` for the model of a folder, whose weights are not looked at.

    Special tokens of its tokenizer are held, as are those of the environment's.
    """
    tokenizer = read_tokenizer(folder)
    ids, special = token_ids(tokenizer, words), special_tokens(tokenizer)
    held = [words.padding, *words.special, *(word for word, token in enumerate(ids) if token in special)]
    return {
        "config": {**read_config(folder).to_dict(), "_name_or_path": ""},
        "vocabulary": list(words.vocabulary),
        "token_ids": ids,
        "held": tuple(dict.fromkeys(held)),
        **_answers(words, outputs, head),
        "tokenizer": tokenizer_json(tokenizer),
    }
