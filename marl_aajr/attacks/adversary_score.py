"""How strong an adversary is, on episodes that it neither learns on nor is reported on."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from marl_aajr.attacks.observation_game import GAME, ObservationGame, ObservationThreat
from marl_aajr.attacks.seeds import Purpose, derived_seed
from marl_aajr.attacks.victim_game import VictimGame
from marl_aajr.attacks.warm_start import Demonstration
from marl_aajr.rollout.batched import BatchedEnv
from marl_aajr.rollout.batches import make_batch
from marl_aajr.rollout.environments import resolve
from marl_aajr.training.config import RunConfig
from marl_aajr.victims import Victim

EPISODES = 100

Act = Callable[[Mapping[str, Tensor]], dict[str, Tensor]]


class Judge:
    """Plays the game of a run: 100 episodes, the same for everybody.

    Args:
        config: of the run.
        seed: what the episodes' own seed is derived from.
    """

    def __init__(self, config: RunConfig, *, seed: int) -> None:
        self._config = config
        self._seed = derived_seed(seed, Purpose.SELECTION)

    def score(self, adversary: Victim) -> Tensor:
        """What the adversary's greedy policies earn together in each episode, ``[100]``."""
        game = make_batch(resolve(self._config.env.name, self._config.env.kwargs), EPISODES)

        def act(obs: Mapping[str, Tensor]) -> dict[str, Tensor]:
            masks = game.action_mask
            return {
                player: adversary.greedy(
                    player,
                    adversary.policy(player, action_mask=masks[player])(adversary.inputs(player, seen)),
                )
                for player, seen in obs.items()
            }

        return self._play(game, act)

    def references(self) -> dict[str, Tensor]:
        """What the victims lose to nobody, and to PGD at the same size; nothing for adversarial agents."""
        if self._config.env.name != GAME:
            return {}
        threat = ObservationThreat(**self._config.env.kwargs)
        game = threat.build(EPISODES)
        untouched = ObservationGame(game.env, game.crew, {}, sampled=threat.sampled)
        clean = self._play(untouched, _nothing(untouched))
        generator = torch.Generator().manual_seed(self._seed)
        attacked = Demonstration(game.env, game.crew, game.sets, sampled=threat.sampled, generator=generator)
        return {"clean": clean, "pgd": self._play(attacked, _nothing(attacked))}

    @torch.no_grad()
    def _play(self, game: BatchedEnv, act: Act) -> Tensor:
        obs = game.reset(seed=self._seed)
        earned = torch.zeros(game.num_envs, dtype=torch.float64)
        over = torch.zeros(game.num_envs, dtype=torch.bool)
        while not over.all():
            step = game.step(act(obs))
            earned += torch.stack(list(step.rewards.values())).sum(0) * ~over
            obs, over = step.obs, over | step.episode_over
        return earned


def behind(scores: Tensor, others: Tensor) -> bool:
    """Whether the first earn less than the others in the same episodes, beyond doubt (99 %, paired)."""
    gap = others - scores
    return bool(gap.mean() > 2.6 * gap.std() / len(gap) ** 0.5)


def _nothing(game: VictimGame) -> Act:
    """Actions where they do not count."""
    actions = game.nothing()
    return lambda obs: actions
