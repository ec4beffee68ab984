"""AAJR's term in a loop of somebody else's: against a dense Jacobian, with adapters, and the loop itself."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from marl_aajr.core.token_network import neighbour_distance
from marl_aajr.language import model_config
from marl_aajr.language.models import new_model, transformers
from marl_aajr.regularizers import AAJR, SmoothPolicy, embedding_penalty

ROOT = Path(__file__).parents[2]
IDS = torch.tensor([[1, 3, 2, 5, 4], [2, 6, 1, 0, 0], [3, 3, 5, 6, 0]])
MASK = (IDS != 0).long()
EVERY = AAJR(coefficient=1.0, epsilon=0.5, norm="l2", step="normalized", steps=1, sample_fraction=1.0)


@pytest.fixture(scope="module")
def model() -> nn.Module:
    torch.manual_seed(0)
    made = new_model(model_config("gpt2", vocab_size=7, hidden_size=8, layers=1, context=8)).double()
    for parameter in made.parameters():
        nn.init.normal_(parameter, std=0.3)
    return made


def loss_of(model: Any) -> Any:
    """The mean loss of each row, as a training loop has it."""

    def at(embedded: Tensor, rows: Tensor) -> Tensor:
        logits = model(inputs_embeds=embedded, attention_mask=MASK[rows]).logits[:, :-1]
        labels = IDS[rows][:, 1:]
        each = nn.functional.cross_entropy(logits.transpose(1, 2), labels, reduction="none")
        return (each * (labels != 0)).sum(-1)

    return at


def test_penalty_of_a_loss_is_its_slope(model: Any) -> None:
    """From δ = 0 the adversary climbs along the gradient: ‖J u‖ is its length, over tokens that may move."""
    free = torch.ones_like(MASK, dtype=torch.bool)
    free[:, 0] = False
    term = embedding_penalty(model, IDS, MASK, regularizer=EVERY, loss=loss_of(model), perturbable=free)
    table = model.get_input_embeddings().weight
    embedded = table[IDS].detach().requires_grad_()
    (gradient,) = torch.autograd.grad(loss_of(model)(embedded, torch.arange(3)).sum(), embedded)
    moved = (MASK.bool() & free).unsqueeze(-1)
    slope = (gradient * moved * neighbour_distance(table.detach())).square().sum((1, 2))
    torch.testing.assert_close(term.loss, slope.mean())
    assert term.metrics["objective_gain"] > 0
    term.loss.backward()
    assert table.grad is not None
    assert table.grad.abs().sum() > 0


def test_outputs_are_the_next_token_unless_asked_for(model: Any) -> None:
    def last(embedded: Tensor, rows: Tensor) -> Tensor:
        found: Tensor = model(inputs_embeds=embedded, attention_mask=MASK[rows]).logits
        return found[torch.arange(len(rows)), MASK[rows].sum(-1) - 1]

    terms = [
        embedding_penalty(model, IDS, MASK, regularizer=each, outputs=outputs).loss
        for each in (EVERY, SmoothPolicy(epsilon=0.5, sample_fraction=1.0))
        for outputs in (None, last)
    ]
    torch.testing.assert_close(terms[0], terms[1])
    torch.testing.assert_close(terms[2], terms[3])
    assert terms[0] > 0


def test_padding_in_front_changes_nothing(model: Any) -> None:
    climb = AAJR(**{**vars(EVERY), "objective": "margin", "start": "zero"})
    ids = torch.tensor([[2, 6, 1]])
    padded = nn.functional.pad(ids, (2, 0))
    alone, behind = (
        embedding_penalty(model, each, (each != 0).long(), regularizer=climb).loss for each in (ids, padded)
    )
    torch.testing.assert_close(alone, behind)


def test_a_share_of_the_rows_and_of_the_minibatches(model: Any) -> None:
    asked: list[int] = []

    def at(embedded: Tensor, rows: Tensor) -> Tensor:
        asked.append(len(set(rows.tolist())))
        return loss_of(model)(embedded, rows)

    lazy = AAJR(coefficient=1.0, epsilon=0.5, sample_fraction=1 / 3, interval=2)
    for minibatch, rows in ((0, {2}), (1, set()), (2, {2}), (None, {1})):
        asked.clear()
        term = embedding_penalty(model, IDS, MASK, regularizer=lazy, loss=at, minibatch=minibatch)
        if minibatch != 0:  # when it is tried out how the model can be differentiated
            assert set(asked) == rows
        assert (term.loss > 0) == bool(rows)


def test_tokens_that_end_a_generation_are_held(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def term(held: list[int] | None) -> Tensor:
        return embedding_penalty(model, IDS, MASK, regularizer=EVERY, held=held).loss

    free = term([])
    monkeypatch.setattr(model.generation_config, "eos_token_id", [2, 3])
    torch.testing.assert_close(term(None), term([2, 3]))
    assert not torch.isclose(term(None), free)


class _Fused(torch.autograd.Function):
    """The identity, by a kernel without second derivatives."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient


@pytest.mark.parametrize("what", ["outputs", "kernel"])
def test_another_kernel_or_output_map_is_tried_out_anew(what: str, model: Any) -> None:
    """The first may be differentiated twice; the second may not."""
    embedding_penalty(model, IDS, MASK, regularizer=EVERY)

    def fused(embedded: Tensor, rows: Tensor) -> Tensor:
        logits = model(inputs_embeds=embedded, attention_mask=MASK[rows]).logits
        found: Tensor = _Fused.apply(logits[:, -1])
        return found

    if what == "kernel":
        model.set_attn_implementation("sdpa")
    try:
        outputs = fused if what == "outputs" else None
        term = embedding_penalty(model, IDS, MASK, regularizer=EVERY, outputs=outputs)
    finally:
        model.set_attn_implementation("eager")
    assert term.loss > 0


def test_adapters_alone_are_trained(model: Any) -> None:
    peft = pytest.importorskip("peft")
    settings = peft.LoraConfig(r=2, target_modules=["c_attn"], task_type="CAUSAL_LM", fan_in_fan_out=True)
    torch.manual_seed(0)
    adapted = peft.get_peft_model(new_model(model_config("gpt2", vocab_size=7, hidden_size=8)), settings)
    term = embedding_penalty(adapted, IDS, MASK, regularizer=EVERY)
    term.loss.backward()
    trained = {
        name for name, p in adapted.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0
    }
    assert trained
    assert all("lora_" in name for name in trained)


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"input_ids": torch.ones(1, 9, dtype=torch.int64)}, "at most 8 tokens, the context of GPT2LMHead"),
        ({"regularizer": AAJR(epsilon=300.0)}, r"units of the mean distance .* got 300; at 1 a word reaches"),
        (
            {"regularizer": SmoothPolicy(), "loss": lambda x, _: x.sum((1, 2))},
            "a Jacobian penalty such as AAJR",
        ),
        ({"outputs": lambda x, _: x, "loss": lambda x, _: x}, "expected outputs or a loss, got both"),
        ({"model": nn.Linear(2, 2)}, "takes inputs_embeds, got Linear"),
    ],
)
def test_refusals(model: nn.Module, settings: dict[str, Any], match: str) -> None:
    given: dict[str, Any] = {"model": model, "input_ids": IDS, "regularizer": EVERY, **settings}
    with pytest.raises(ValueError, match=match):
        embedding_penalty(given.pop("model"), given.pop("input_ids"), **given)


def test_a_model_that_scales_its_embeddings_is_refused() -> None:
    """Gemma reads √e times the rows of its table, which an adversary would move unscaled."""
    library = transformers()
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "head_dim": 4}
    heads = dict.fromkeys(("num_attention_heads", "num_key_value_heads"), 2)
    settings = library.AutoConfig.for_model("gemma", vocab_size=7, **sizes, **heads)
    gemma = library.AutoModelForCausalLM.from_config(settings)
    with pytest.raises(ValueError, match="rows of the model's table, got GemmaTextScaledWordEmbedding"):
        embedding_penalty(gemma, IDS, MASK, regularizer=EVERY)


def test_the_example_lowers_the_gain() -> None:
    """The loop of ten lines with adapters, plain and with AAJR."""
    example = runpy.run_path(str(ROOT / "scripts" / "examples" / "finetune.py"))
    plain, robust = (example["train"](coefficient) for coefficient in (0.0, 0.02))
    assert robust["gain"] < 0.7 * plain["gain"]
    assert robust["loss"] < plain["loss"] + 0.2
