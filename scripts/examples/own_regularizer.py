"""Write a regularizer of your own: one minibatch in, a loss term and metrics out.

python scripts/examples/own_regularizer.py
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import ClassVar

from ray.rllib.algorithms.ppo import PPOConfig

from marl_aajr import Regularizer, register, robustify
from marl_aajr.core.distributions import ActionDistribution
from marl_aajr.regularizers import Context, LossTerm, Sample


@dataclass(frozen=True, kw_only=True)
class SmallLogits(Regularizer):
    """Penalise large distribution inputs: λ · mean ‖f(s)‖².

    Attributes:
        coefficient: λ ≥ 0, weight of the penalty.
    """

    name: ClassVar[str] = "small_logits"
    summary: ClassVar[str] = "squared norm of the distribution inputs"

    coefficient: float = 1e-2

    def active(self, timestep: float) -> bool:
        return self.coefficient > 0

    def check(self, distribution: ActionDistribution, *, offers: Collection[str] = ()) -> None:
        """Every policy has distribution inputs."""

    def loss_term(self, sample: Sample, context: Context) -> LossTerm:
        penalty = sample.mean(sample.outputs.square().sum(-1))
        return LossTerm(self.coefficient * penalty, {"penalty": penalty.detach()})


config = (
    PPOConfig()
    .environment(register("simple_spread_v3"))
    .env_runners(num_env_runners=0)
    .multi_agent(policies={"team"}, policy_mapping_fn=lambda agent, *_, **__: "team")
    .training(train_batch_size_per_learner=1000, minibatch_size=500, num_epochs=2)
)
algorithm = robustify(config, SmallLogits(coefficient=0.1)).build_algo()
print(algorithm.train()["learners"]["team"]["small_logits"])
algorithm.stop()
