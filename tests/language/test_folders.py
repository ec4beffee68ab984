"""Models and tokenizers out of folders: the model's own numbers, to the last bit, or a clear refusal."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from marl_aajr.core.tokenizers import words_of_tokenizer
from marl_aajr.core.words import Words
from marl_aajr.language import LanguageNetwork, model_config, read_model, word_tokenizer
from marl_aajr.language.models import transformers
from marl_aajr.language.network import folder_arguments
from marl_aajr.language.tokens import token_ids
from tests.language.conftest import WORDS
from tests.language.folders import END, SMALL, save_model, subword_tokenizer

SPOKEN = [word for word in WORDS.vocabulary if word != "<pad>"]
KINDS = [("gpt2", torch.float32), ("llama", torch.float16), ("qwen2", torch.bfloat16), ("opt", torch.float32)]


@pytest.mark.parametrize(("kind", "dtype"), KINDS)
def test_a_model_is_read_as_it_is_rebuilt(kind: str, dtype: torch.dtype, tmp_path: Path) -> None:
    """In single precision, with the same kernel, to the last bit; and it answers what the model answers."""
    saved = save_model(tmp_path, kind, subword_tokenizer(SPOKEN), dtype=dtype)
    network = LanguageNetwork.from_folder(str(tmp_path), WORDS, outputs=3)
    assert {parameter.dtype for parameter in network.parameters()} == {torch.float32}
    rebuilt = LanguageNetwork(**network.arguments)
    rebuilt.load_state_dict(network.state_dict())
    tokens = torch.tensor([[1, 3, 2, 5], [4, 6, 1, 0]])
    assert torch.equal(rebuilt.train()(tokens), network.train()(tokens))
    theirs = torch.tensor(network.token_ids)[tokens[:1]]
    spoken = [network.token_ids[WORDS.vocabulary.index(word)] for word in WORDS.actions]
    own = saved.float().eval()(input_ids=theirs).logits[:, -1, spoken]
    torch.testing.assert_close(network(tokens[:1]), own, rtol=1e-4, atol=1e-5)


def test_a_head_on_half_precision(tmp_path: Path) -> None:
    save_model(tmp_path, "qwen2", subword_tokenizer(SPOKEN), dtype=torch.bfloat16)
    network = LanguageNetwork.from_folder(str(tmp_path), WORDS, outputs=5, head=True)
    assert network(torch.tensor([[1, 3, 2, 5]])).shape == (1, 5)


def test_weights_that_are_missing_are_not_made_up(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    save_model(tmp_path, "gpt2", subword_tokenizer(SPOKEN))
    file = tmp_path / "model.safetensors"
    kept = {name: value for name, value in load_file(file).items() if "ln_f" not in name}
    save_file(kept, file, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"a causal model and its tokenizer in .*, got no weights .*ln_f"):
        read_model(tmp_path)


def make_gap_tokenizer(library: Any) -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers

    inner = Tokenizer(models.WordLevel({"[pad]": 0, "[unk]": 1, "books": 3, "hats": 5}, unk_token="[unk]"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return library.PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="[pad]", unk_token="[unk]")


class TestTokens:
    def test_subwords_are_read_in_the_middle_of_a_sentence(self) -> None:
        tokenizer = subword_tokenizer(SPOKEN)
        (first,) = tokenizer.encode("books")
        (behind,) = tokenizer.encode(" books")
        assert first != behind
        assert token_ids(tokenizer, WORDS)[WORDS.vocabulary.index("books")] == behind

    def test_a_tokenizers_own_tokens_are_themselves(self, monkeypatch: pytest.MonkeyPatch) -> None:
        tokenizer = subword_tokenizer(SPOKEN)
        words = words_of_tokenizer(tokenizer)
        assert token_ids(tokenizer, words) == list(range(len(tokenizer)))
        asked: list[None] = []
        vocabulary: Callable[[], dict[str, int]] = tokenizer.get_vocab

        def counted() -> dict[str, int]:
            asked.append(None)
            return vocabulary()

        monkeypatch.setattr(tokenizer, "get_vocab", counted)
        token_ids(tokenizer, WORDS)
        assert len(asked) <= 2

    def test_names_of_no_token_are_no_words(self) -> None:
        words = words_of_tokenizer(make_gap_tokenizer(transformers()))
        assert words.vocabulary == ("[pad]", "[unk]", "<2>", "books", "<4>", "hats")
        assert words.special == (1, 2, 4)
        other = word_tokenizer(["<pad>", "hats", "books"], padding="<pad>")
        assert token_ids(other, words) == [0, 0, 0, 2, 0, 1]

    def test_many_missing_words_are_counted(self) -> None:
        words = Words.of([[f"w{number}"] for number in range(30)])
        with pytest.raises(ValueError, match=r"without w0, .*w9 and 20 others; add them"):
            token_ids(word_tokenizer(["<pad>", "hats"]), words)

    def test_special_tokens_are_held(self, tmp_path: Path) -> None:
        tokenizer = subword_tokenizer(SPOKEN)
        tokenizer.add_special_tokens({"bos_token": "<|begin|>", "pad_token": "<|pad|>"})
        save_model(tmp_path, "gpt2", tokenizer)
        words = words_of_tokenizer(tokenizer)
        padding, *special = folder_arguments(str(tmp_path), words, outputs=2)["held"]
        assert padding == tokenizer.pad_token_id
        assert sorted(special) == sorted(tokenizer.convert_tokens_to_ids([END, "<|begin|>"]))
        fresh = LanguageNetwork.of_words(words, outputs=2, hidden_size=8, heads=2)
        assert {padding, *special} == set(fresh.held)

    def test_the_tokenizer_that_made_the_tokens_travels(self) -> None:
        tokenizer = subword_tokenizer(SPOKEN)
        words = words_of_tokenizer(tokenizer)
        network = LanguageNetwork.of_words(words, outputs=2, hidden_size=8, heads=2)
        assert network.tokenizer == tokenizer.backend_tokenizer.to_str()

    def test_slow_tokenizers_are_refused(self) -> None:
        with pytest.raises(ValueError, match=r"expected a fast tokenizer, .* got a ByT5Tokenizer; convert"):
            words_of_tokenizer(transformers().ByT5Tokenizer())

    def test_tokens_beyond_the_embeddings(self, tmp_path: Path) -> None:
        tokenizer = subword_tokenizer(SPOKEN)
        save_model(tmp_path, "gpt2", tokenizer)
        tokenizer.add_tokens(["spoons"])
        tokenizer.save_pretrained(tmp_path)
        size = len(tokenizer)
        match = (
            rf"an embedding for each token, got {size - 1} for tokens up to {size - 1}; model.resize_token"
        )
        with pytest.raises(ValueError, match=match):
            LanguageNetwork.from_folder(str(tmp_path), Words.of([["spoons"], ["hats"]]), outputs=2)


@pytest.mark.parametrize("kind", ["gemma", "gemma2", "cohere", "granite"])
def test_models_whose_own_logits_are_others(kind: str) -> None:
    library = transformers()
    scaled = {"logits_scaling": 8.0} if kind == "granite" else {}
    settings = library.AutoConfig.for_model(
        kind,
        vocab_size=len(WORDS),
        **SMALL,
        pad_token_id=0,
        bos_token_id=None,
        eos_token_id=None,
        **scaled,
    ).to_dict()
    with pytest.raises(ValueError, match=rf"logits are linear in .*, got {kind.capitalize()}ForCausalLM"):
        LanguageNetwork(settings, WORDS.vocabulary, range(len(WORDS)), outputs=3)


def test_the_unit_follows_weights_in_another_order() -> None:
    """ρ is measured anew after each update, also where the embeddings are a copy of the model's."""
    size = len(WORDS)
    config = model_config(vocab_size=size, hidden_size=8, heads=2)
    network = LanguageNetwork(config, WORDS.vocabulary, range(size)[::-1], outputs=3)
    before = network.unit
    assert network.unit is before
    with torch.no_grad():
        network.embedding_table.mul_(2)
    torch.testing.assert_close(network.unit, 2 * before)
