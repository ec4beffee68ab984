"""A game of two sides in which adversaries act: the PR-MDP, with both sides learning.

    ã = ā with probability α, else a,      a ~ π(· | s),   ā ~ ν(· | s)

One step of the environment is two steps of the batch, as with adversaries that perturb
(`marl_aajr.rollout.perturbed`): first each adversary chooses ā at its agent's true observation, then each
agent chooses a at the same one, and ã is done. Each side learns from what it chose; that something else was
done is part of the environment to it. Whether an agent is replaced is drawn for each by itself in every step.

Source: Tessler 2019 (arXiv 1901.09184).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from marl_aajr.rollout.batched_env import BatchedEnv, BatchedStep
from marl_aajr.rollout.disturbances import Disturbance
from marl_aajr.rollout.disturbed import Chance
from marl_aajr.rollout.environments import make_batch
from marl_aajr.rollout.perturbed import PerturbedBatch, PerturbedGame, adversary_of


class ReplacedBatch(PerturbedBatch):
    """E copies of an environment together with adversaries who act in the place of its agents.

    `perturb` says α, as the radius of its set; None: nobody is replaced.

    Args:
        env: The environment.
        agents: The agents who may be replaced; None: all.
    """

    def __init__(self, env: BatchedEnv, *, agents: Sequence[str] | None = None) -> None:
        super().__init__(env, agents=agents, kind="replace")
        self._chance = Chance(env.action_spaces, env.num_envs, device=env.device)
        self._chosen: dict[str, Tensor] = {}

    def reset(self, *, seed: int) -> dict[str, Tensor]:
        self._chance.reset(seed=seed)
        return super().reset(seed=seed)

    @property
    def action_mask(self) -> dict[str, Tensor | None]:
        masks, legal = super().action_mask, self.env.action_mask
        for agent in self.attacked:
            mask = legal[agent]
            if mask is not None and self._seen is not None:
                mask = torch.ones_like(mask)
            masks[adversary_of(agent)] = mask
        return masks

    def get_state(self) -> Mapping[str, Any]:
        own = {"chance": self._chance.get_state(), "chosen": self._chosen}
        return {**super().get_state(), "replaced": own}

    def set_state(self, state: Mapping[str, Any]) -> None:
        super().set_state(state)
        self._chance.set_state(state["replaced"]["chance"])
        self._chosen = state["replaced"]["chosen"]

    def _perturb(self, actions: Mapping[str, Tensor]) -> BatchedStep:
        names = {agent: adversary_of(agent) for agent in self.attacked}
        self._chosen = {agent: actions[name] for agent, name in names.items() if name in actions}
        return super()._perturb(actions)

    def _play(self, actions: Mapping[str, Tensor]) -> BatchedStep:
        done = dict(actions)
        if self.perturb is not None:
            rule = Disturbance(kind="replace", size=self.perturb.perturbations.epsilon)
            for agent in self._chosen.keys() & actions.keys():
                space, (chance, _) = self.action_spaces[agent], self._chance.numbers(agent)
                done[agent] = rule.applied(space, actions[agent], self._chosen[agent], chance)
        step = super()._play(done)
        self._chance.advance(step.episode_over)
        return step


@dataclass(frozen=True)
class ReplacedGame(PerturbedGame):
    """Builds copies of an environment with adversaries who act, as `PerturbedGame` does."""

    def __call__(self, num_envs: int, device: torch.device) -> ReplacedBatch:
        return ReplacedBatch(make_batch(self.spec, num_envs, device=device), agents=self.agents)
