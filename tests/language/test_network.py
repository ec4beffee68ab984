"""Causal language models as networks of policies: against a dense Jacobian, and what they refuse."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from torch import nn

from marl_aajr.attacks import make_attack
from marl_aajr.core.diagnostics import dense_jacobian, directional_gain
from marl_aajr.core.distributions import Categorical
from marl_aajr.core.jacobian import resolve_backend
from marl_aajr.core.token_network import TokenPolicy
from marl_aajr.core.words import Words
from marl_aajr.language import ARCHITECTURES, LanguageNetwork, model_config, read_model, word_tokenizer
from marl_aajr.language.checks import check_model
from marl_aajr.language.models import attention, new_model, transformers
from marl_aajr.regularizers import AAJR, REGULARIZERS
from marl_aajr.regularizers.adversarial import Perturbing
from marl_aajr.regularizers.certified import Bounding
from marl_aajr.regularizers.regularizer import Regularizer
from marl_aajr.regularizers.sample import Context, Sample, ppo_policy_loss
from marl_aajr.victims import Victim, fingerprint
from tests.language.conftest import SIZES, TOKENS, WORDS, language_network

ROWS = TOKENS[:3]


def read(network: LanguageNetwork, tokens: torch.Tensor = ROWS) -> tuple[TokenPolicy, torch.Tensor]:
    policy = TokenPolicy(network, Categorical(3), tokens)
    return policy, policy.embed(tokens)


class TestOutputs:
    def test_embeddings_of_words_give_what_the_words_give(self, network: LanguageNetwork) -> None:
        policy, obs = read(network, TOKENS)
        assert obs.shape == (4, 32)
        assert policy.block == 8
        torch.testing.assert_close(policy(obs), network(TOKENS))
        assert network(TOKENS).isfinite().all()
        assert sum(p.numel() for p in network.parameters()) < 2000

    @pytest.mark.parametrize("name", ["gpt2", "llama"])
    def test_logits_are_those_of_the_models_own_head(self, name: str) -> None:
        """Left padding as in generation: positions begin at the first word, and the last word answers."""
        network = language_network(name)
        model = new_model(network.config).double()
        model.base_model.load_state_dict(network.body.state_dict())  # type: ignore[union-attr]
        if name == "llama":
            model.lm_head.weight = network.head.weight  # type: ignore[union-attr]
        tokens = torch.tensor([[0, 0, 4, 1], [3, 5, 2, 6]])
        alone = model(tokens[:1, 2:]).logits[0, -1]
        full = model(tokens[1:]).logits[0, -1]
        spoken = [WORDS.vocabulary.index(word) for word in WORDS.actions]
        torch.testing.assert_close(network(tokens), torch.stack([alone, full])[:, spoken])

    def test_whatever_is_padding_sees_at_least_itself(self) -> None:
        """Where a row of scores is −∞ as a whole, as in half precision, its softmax is NaN."""
        seen = attention(TOKENS != 0).squeeze(1) == 0
        assert seen.diagonal(dim1=-2, dim2=-1).all()
        assert not seen.triu(1).any()
        assert torch.equal(seen[0, 3], torch.tensor([True, True, False, True]))

    def test_rows_do_not_depend_on_one_another(self, network: LanguageNetwork) -> None:
        torch.testing.assert_close(network(TOKENS)[1:2], network(TOKENS[1:2]))


class TestJacobian:
    def test_products_agree_with_the_dense_jacobian(self, network: LanguageNetwork) -> None:
        policy, obs = read(network)
        direction = torch.randn(obs.shape, generator=torch.Generator().manual_seed(0), dtype=obs.dtype)
        jacobian = dense_jacobian(policy, obs)
        expected = torch.linalg.vector_norm((jacobian @ direction.unsqueeze(-1)).squeeze(-1), dim=-1)
        # Norms and softmax of all but GPT-2 are computed in single precision, whatever the model's.
        exact = 1e-6 if network.config["model_type"] == "gpt2" else 1e-4
        for backend, rtol in {"forward": exact, "double": exact, "central": 100 * exact}.items():
            gain = directional_gain(policy, obs, direction, backend=backend)  # type: ignore[arg-type]
            torch.testing.assert_close(gain, expected, rtol=rtol, atol=1e-8)
        held = (ROWS == 0).repeat_interleave(8, 1)
        assert jacobian.movedim(1, -1)[held].eq(0).all()

    def test_penalty_is_that_of_the_dense_jacobian(self, network: LanguageNetwork) -> None:
        """AAJR along its own path, and the gradient of its penalty by a weight, by finite differences."""
        penalty = AAJR(coefficient=1.0, epsilon=0.5, norm="l2", step="normalized", steps=2, points="all")
        penalty = AAJR(**{**vars(penalty), "sample_fraction": 1.0})
        policy, obs = read(network)
        sample = Sample(policy, obs, policy(obs))

        def term() -> torch.Tensor:
            generator = torch.Generator().manual_seed(0)
            return penalty.fitted(policy, obs).evaluate(sample, timestep=0, generator=generator).loss

        context = Context(timestep=0, generator=torch.Generator().manual_seed(0), state={})
        path = penalty.attack(sample, context)
        squared = [
            (dense_jacobian(policy, obs + delta) @ u.unsqueeze(-1)).square().sum((-2, -1))
            for delta, u in zip(path.deltas[:-1], path.directions, strict=True)
        ]
        torch.testing.assert_close(term(), torch.stack(squared).mean())

    def test_fused_attention_falls_back_with_one_line(self, caplog: pytest.LogCaptureFixture) -> None:
        network = language_network("llama")
        network.body.set_attn_implementation("sdpa")
        policy, obs = read(network)
        with caplog.at_level(logging.WARNING, logger="marl_aajr.core.jacobian"):
            assert resolve_backend(policy, obs, "auto") == "central"
            resolve_backend(policy, obs, "auto")
        assert [r for r in caplog.records if "central" in r.getMessage()] == caplog.records[:1]


ASKS_ANY_POLICY = [
    name
    for name, kind in sorted(REGULARIZERS.items())
    if issubclass(kind, Perturbing) and not issubclass(kind, Bounding)
]


@pytest.mark.parametrize("name", ASKS_ANY_POLICY)
def test_every_regularizer_works_on_embeddings(name: str) -> None:
    kind: Any = REGULARIZERS[name]
    network = language_network("gpt2")
    policy, obs = read(network)
    regularizer: Regularizer = kind(epsilon=0.5, sample_fraction=1.0)
    sample = Sample(
        policy,
        obs,
        policy(obs),
        actions=torch.tensor([0, 1, 2]),
        log_probs=torch.full((3,), -1.0).double(),
        advantages=torch.tensor([1.0, -1.0, 0.5]).double(),
        policy_loss=ppo_policy_loss(0.2),
    )
    term = regularizer.fitted(policy, obs).evaluate(
        sample, timestep=0, generator=torch.Generator().manual_seed(0)
    )
    term.loss.backward()
    assert term.metrics["nonfinite"] == 0
    gradients = [p.grad for p in network.parameters() if p.grad is not None]
    assert any(g.abs().max() > 0 for g in gradients)


def test_attacks_move_words_and_never_padding() -> None:
    policy, obs = read(language_network("gpt2"))
    attack = make_attack("pgd-strong", epsilon=1.0, norm="l2")
    found = attack(policy, obs.detach(), generator=torch.Generator().manual_seed(0))
    assert (found.value > found.clean_value).all()
    held = (ROWS == 0).repeat_interleave(8, 1)
    at_random = found.perturbed.where(~held, torch.randn(3, 32).double())
    torch.testing.assert_close(policy(at_random), found.outputs)


@pytest.mark.parametrize("name", sorted(SIZES))
def test_a_saved_victim_says_the_same(name: str, tmp_path: Path) -> None:
    """Of every architecture, what a model keeps beside its weights (rotary embeddings) included."""
    space = gym.spaces.Box(0, len(WORDS) - 1, (4,), np.int64)
    network = language_network(name).float()
    victim = Victim(
        module_of={"a": "m"},
        modules={"m": network},
        observation_spaces={"a": space},
        action_spaces={"a": gym.spaces.Discrete(3)},
    )
    read = Victim.load(victim.save(tmp_path / "victim"))
    assert torch.equal(read.modules["m"](TOKENS), network(TOKENS))
    assert torch.equal(read.inputs("a", TOKENS), victim.inputs("a", TOKENS))
    assert fingerprint(read) == fingerprint(victim)


class TestFolders:
    @pytest.fixture(scope="class")
    @classmethod
    def folder(cls, tmp_path_factory: pytest.TempPathFactory) -> Path:
        """A model of another vocabulary, in which the environment's words have other numbers."""
        path = tmp_path_factory.mktemp("model")
        vocabulary = ["<pad>", *reversed(WORDS.vocabulary[1:]), "and", "or"]
        torch.manual_seed(0)
        made: Any = new_model(model_config("llama", vocab_size=9, hidden_size=8, layers=1, context=6))
        made.save_pretrained(path)
        word_tokenizer(vocabulary, padding="<pad>").save_pretrained(path)
        return path

    def test_words_have_the_models_own_numbers(self, folder: Path) -> None:
        network = LanguageNetwork.from_folder(str(folder), WORDS, outputs=3)
        model, tokenizer = read_model(folder)
        words = ["please", "give", "novels"]
        mine = torch.tensor([[WORDS.vocabulary.index(word) for word in words]])
        theirs = tokenizer(" ".join(words), return_tensors="pt")["input_ids"]
        assert not torch.equal(mine, theirs)
        spoken = tokenizer.convert_tokens_to_ids(list(WORDS.actions))
        torch.testing.assert_close(network(mine), model(theirs).logits[:, -1, spoken])

    def test_words_that_it_lacks_are_named(self, folder: Path) -> None:
        words = Words.of([["give"], ["spoons", "forks"]])
        with pytest.raises(ValueError, match=r"one of 9 tokens without spoons, forks; add them"):
            LanguageNetwork.from_folder(str(folder), words, outputs=3)

    def test_sequences_beyond_the_context(self, folder: Path) -> None:
        network = LanguageNetwork.from_folder(str(folder), WORDS, outputs=3)
        with pytest.raises(ValueError, match=r"at most 6 tokens, the context of LlamaModel, got 7"):
            network(torch.ones(1, 7))

    def test_a_name_of_the_hub_is_no_folder(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        with pytest.raises(
            ValueError, match=r"folder of a model with a config.json, got 'openai/gpt2'; nothing"
        ):
            LanguageNetwork.from_folder("openai/gpt2", WORDS, outputs=3)
        assert not list(tmp_path.iterdir())


class TestRefusals:
    def test_a_model_without_inputs_embeds(self) -> None:
        class Own(nn.Module):
            def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
                return input_ids

        with pytest.raises(ValueError, match=r"takes inputs_embeds, got Own, whose forward takes input_ids"):
            check_model(Own())

    def test_actions_are_a_head_or_words(self) -> None:
        with pytest.raises(
            ValueError, match="expected a word for each of 4 actions, got books, hats, please"
        ):
            LanguageNetwork.of_words(WORDS, outputs=4)
        config = model_config(vocab_size=7, hidden_size=8)
        with pytest.raises(ValueError, match="expected actions out of the vocabulary, got spoons"):
            LanguageNetwork(config, WORDS.vocabulary, range(7), actions=["spoons"])

    @pytest.mark.parametrize(
        ("settings", "match"),
        [
            ({"architecture": "bert"}, "architecture"),
            ({"hidden_size": 9, "heads": 2}, "multiple of heads, got 9 for 2 heads"),
            ({"layers": 0}, "layers"),
        ],
    )
    def test_sizes(self, settings: dict[str, Any], match: str) -> None:
        with pytest.raises(ValueError, match=match):
            model_config(**{"vocab_size": 7, **settings})

    def test_without_the_extra(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("marl_aajr.language.models.find_spec", lambda _: None)
        with pytest.raises(ValueError, match=r"pip install 'marl_aajr\[language\]'"):
            transformers()


def test_new_gpt2_models_compute_its_own_activation() -> None:
    """By one kernel: the same function, with all derivatives."""
    network = language_network("gpt2")
    assert network.config["activation_function"] == "gelu_pytorch_tanh"
    config = {**network.config, "activation_function": "gelu_new"}
    theirs = LanguageNetwork(**{**network.arguments, "config": config}).double()
    theirs.load_state_dict(network.state_dict())
    torch.testing.assert_close(network(TOKENS), theirs(TOKENS))


@pytest.mark.parametrize("name", sorted(ARCHITECTURES))
@pytest.mark.parametrize("width", [8, 64])
def test_new_models_begin_by_trying_everything(name: str, width: int) -> None:
    """Weights of the size that suits the width, and logits that hardly prefer an action."""
    torch.manual_seed(0)
    network = LanguageNetwork.of_words(WORDS, outputs=3, architecture=name, hidden_size=width)
    weights = network.body.get_input_embeddings().weight.detach()
    assert weights.std().item() == pytest.approx(0.85 * width**-0.5, rel=0.3)
    outputs = network(TOKENS)
    assert Categorical(3).entropy(outputs).amin() > 0.9 * torch.tensor(3.0).log()
    assert (outputs[0] - outputs[1]).abs().amax() > 1e-3
