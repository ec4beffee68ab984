"""Fine-tune a causal language model with AAJR in a loop of your own: LoRA adapters, ten lines of training.

The model is a tiny one from a configuration; `AutoModelForCausalLM.from_pretrained(folder)` takes its place.
"""

from __future__ import annotations

import torch
from peft import LoraConfig, get_peft_model

from marl_aajr.language import model_config
from marl_aajr.language.models import new_model
from marl_aajr.regularizers import AAJR, embedding_penalty

WORDS = 12


def train(coefficient: float, *, steps: int = 60) -> dict[str, float]:
    """Loss and gain ‖J u‖ at the end; the model learns to repeat the last word of a sequence."""
    torch.manual_seed(0)
    config = model_config("gpt2", vocab_size=WORDS, hidden_size=16, layers=1, context=8)
    model = new_model({**config, "initializer_range": 0.3})  # as large as weights that have learned something
    adapters = LoraConfig(r=4, target_modules=["c_attn", "c_fc", "c_proj"], fan_in_fan_out=True)
    model = get_peft_model(model, adapters)
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-2)
    generator = torch.Generator().manual_seed(0)
    aajr = AAJR(
        coefficient=coefficient,
        epsilon=0.5,
        norm="l2",
        step="normalized",
        sample_fraction=0.25,
        measured=True,
    )
    for _ in range(steps):
        input_ids = torch.randint(1, WORDS, (16, 6), generator=generator)
        logits = model(input_ids=input_ids).logits[:, -1]
        loss = torch.nn.functional.cross_entropy(logits, input_ids[:, -1])
        term = embedding_penalty(model, input_ids, regularizer=aajr, generator=generator)
        optimizer.zero_grad()
        (loss + term.loss).backward()
        optimizer.step()
    return {"loss": loss.item(), "gain": term.metrics["gain_mean"].item()}


if __name__ == "__main__":
    for coefficient in (0.0, 0.02):
        result = train(coefficient)
        print(f"coefficient {coefficient}: loss {result['loss']:.2f}, ‖J u‖ {result['gain']:.2f}")
