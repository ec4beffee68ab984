"""How strong an adversary is, on episodes that it neither learns on nor is reported on."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from marl_aajr.adversaries.agent_game import AgentGame, AgentThreat
from marl_aajr.adversaries.game import VictimGame
from marl_aajr.adversaries.observation_game import GAME, ObservationGame, ObservationThreat
from marl_aajr.adversaries.warm_start import Demonstration
from marl_aajr.core.seeds import Purpose, derived_seed
from marl_aajr.rollout.batched_env import BatchedEnv
from marl_aajr.rollout.batches import make_batch
from marl_aajr.rollout.environments import resolve
from marl_aajr.training.config import RunConfig
from marl_aajr.victims import Victim

EPISODES = 100

Act = Callable[[Mapping[str, Tensor]], dict[str, Tensor]]


class Lead(NamedTuple):
    """How much more one adversary takes than another, a mean over episodes.

    Attributes:
        mean: of the differences, episode by episode.
        low: lower end of its 99 % interval.
        high: upper end.
    """

    mean: float
    low: float
    high: float


class Judge:
    """Plays the game of a run: 100 episodes, the same for everybody.

    Args:
        config: of the run.
        seed: what the episodes' own seed is derived from.
    """

    def __init__(self, config: RunConfig, *, seed: int) -> None:
        self._config = config
        self._seed = derived_seed(seed, Purpose.ADVERSARY_SELECTION)

    def score(self, adversary: Victim) -> Tensor:
        """What the adversary's greedy policies earn together in each episode, `[100]`."""
        game = make_batch(resolve(self._config.env.name, self._config.env.kwargs), EPISODES)
        return self._play(game, _greedy(adversary, game))

    def judgement(self, adversary: Victim, *, warm_start: Victim | None) -> dict[str, Any]:
        """How strong a trained adversary is, as its record says it.

        Returns:
            `selection`: mean scores by name; `kept`: the stronger of `trained` and `warm_start`; its
            `lead` over PGD, or an adversarial agent's over nobody; `undertrained`: PGD is stronger.
        """
        observes = self._config.env.name == GAME
        scores = {"trained": self.score(adversary)}
        scores |= self.references() if observes else self.losses(adversary)
        if warm_start is not None:
            scores["warm_start"] = self.score(warm_start)
        means = {name: score.mean().item() for name, score in scores.items()}
        kept = "warm_start" if means.get("warm_start", means["trained"]) > means["trained"] else "trained"
        ahead = lead(scores[kept], scores["pgd"]) if observes else lead(scores["lost"], scores["clean"])
        return {
            "selection": means,
            "kept": kept,
            "lead": ahead._asdict(),
            "undertrained": observes and ahead.high < 0,
        }

    def references(self) -> dict[str, Tensor]:
        """What the victims lose to nobody, and to PGD at the same size."""
        threat = ObservationThreat(**self._config.env.kwargs)
        game = threat.build(EPISODES)
        untouched = ObservationGame(game.env, game.adversaries, {}, sampled=threat.sampled)
        clean = self._play(untouched, _nothing(untouched))
        generator = torch.Generator().manual_seed(self._seed)
        attacked = Demonstration(
            game.env, game.adversaries, game.sets, sampled=threat.sampled, generator=generator
        )
        return {"clean": clean, "pgd": self._play(attacked, _nothing(attacked))}

    def losses(self, adversary: Victim) -> dict[str, Tensor]:
        """What the victims lose without an adversarial agent and with it, whatever that is paid for."""
        threat = replace(AgentThreat(**self._config.env.kwargs), pays="loss")
        game = threat.build(EPISODES)
        among_themselves = AgentGame(
            game.env,
            game.victim,
            team=game.team,
            agents=game.possible_agents,
            sampled=threat.actions == "sampled",
            loyal=True,
        )
        clean = self._play(among_themselves, _nothing(among_themselves))
        return {"clean": clean, "lost": self._play(game, _greedy(adversary, game))}

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


def lead(losses: Tensor, others: Tensor) -> Lead:
    """By how much the first are above the others in the same episodes."""
    gap = losses - others
    mean, reach = gap.mean().item(), 2.6 * gap.std().item() / len(gap) ** 0.5
    return Lead(mean, mean - reach, mean + reach)


def _greedy(adversary: Victim, game: BatchedEnv) -> Act:
    """The most likely actions of the adversary's policies."""

    def act(obs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        masks = game.action_mask
        return {
            player: adversary.greedy(
                player, adversary.policy(player, action_mask=masks[player])(adversary.inputs(player, seen))
            )
            for player, seen in obs.items()
        }

    return act


def _nothing(game: VictimGame) -> Act:
    """Actions where they do not count."""
    actions = game.nothing()
    return lambda obs: actions
