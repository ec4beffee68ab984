"""Play under other words: the attack on agents that read, whose observations must be words again.

    w ↦ w′,  w′_i a synonym of w_i in m places at most,  by HotFlip on the acting policy
    (`marl_aajr.attacks.substitution.GradientWords`)

What an agent reads, acts on and learns from is w′. An attack on embeddings cannot be played so: no words have
the embeddings that it finds.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from marl_aajr.attacks.substitution import GradientWords, GreedyWords
from marl_aajr.core.channels import Channels, held_together
from marl_aajr.core.end_of_ascent import Ascended
from marl_aajr.core.environment_values import TO_FLOAT
from marl_aajr.core.policy import Policy
from marl_aajr.rollout.attack.rollout_attack import RolloutAttack


@dataclass(frozen=True, kw_only=True)
class OnWords(RolloutAttack):
    """A `RolloutAttack` by other words that knows their synonyms.

    Attributes:
        by: HotFlip; the number of words is that of each call.
    """

    by: GradientWords

    def perturb(
        self,
        policy: Policy,
        obs: Tensor,
        *,
        epsilon: float | Tensor,
        generator: torch.Generator,
        keep_path: bool = False,
    ) -> Ascended:
        with policy.fixed():
            delta = self.by.at(float(epsilon)).run(policy, obs, generator=generator)
            with torch.no_grad():
                outputs = policy(obs)
        return Ascended(delta, outputs, deltas=(), gradients=(), values=())

    def strong(
        self, policy: Policy, obs: Tensor, *, epsilon: float | Tensor, generator: torch.Generator
    ) -> Tensor:
        """δ of the greedy attack with the same number of words, `[B, L·e]`."""
        return GreedyWords(**vars(self.by.at(float(epsilon)))).run(policy, obs, generator=generator)


def attack_on(attack: RolloutAttack, observed: Mapping[str, Channels], width: int) -> RolloutAttack:
    """The attack on agents whose decisions are one batch.

    Args:
        attack: The attack.
        observed: The channels of each agent.
        width: d, the number of its features.

    Raises:
        ValueError: The agents have other channels, or their words no synonyms.
    """
    held = held_together(attack, observed, width)
    assert held is not None
    if held.norm != "words":
        return held
    words = GradientWords(perturbations=held.perturbations(1.0), objective=held.adversary)
    first, *others = (words.held_to(channels, width) for channels in observed.values())
    if first is None:
        raise ValueError("expected words of the observation under attack, got a mask without any")
    if any(other is None or other._words != first._words for other in others):
        raise ValueError(
            "expected one vocabulary for agents who have one network, got several; give them networks of "
            "their own (policies: independent)"
        )
    return OnWords(**vars(held), by=first)


def check_observations(attack: RolloutAttack, dtype: Any, *, reads_words: bool) -> None:
    """Raise `ValueError` where observations of this dtype are not what the attack perturbs."""
    if reads_words and attack.norm != "words":
        raise ValueError(
            f"expected norm words for agents that read words, got {attack.norm}: what they see must be words "
            "again; set norm to words, and epsilon to a number of words"
        )
    if attack.norm == "words" and not reads_words:
        raise ValueError(
            f"expected agents that read words for norm words, got observations of {dtype} without "
            "model.language; set it, or norm to linf or l2"
        )
    if not reads_words and not np.issubdtype(dtype, np.floating):
        raise ValueError(
            f"expected floating-point observations to perturb, got {dtype}; make them floats ({TO_FLOAT}), "
            "or name the agents whose are: agents=[...]"
        )
