"""One victim at one table: plays row after row, and counts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from marl_aajr.attacks import Attack
from marl_aajr.evaluation.adversary import Adversary
from marl_aajr.evaluation.episodes import (
    ATTACK,
    FIT,
    REPLACED,
    SELECTION,
    derived_seed,
    play,
    stream,
)
from marl_aajr.evaluation.protocol import Plan
from marl_aajr.evaluation.replacements import Replacement
from marl_aajr.evaluation.results import AgentOutcome, AttackOutcome, Outcome, bootstrap_interval
from marl_aajr.evaluation.suites import Units
from marl_aajr.evaluation.table import StandIn
from marl_aajr.evaluation.view import Spy
from marl_aajr.rollout.batched import BatchedEnv
from marl_aajr.rollout.batches import make_batch
from marl_aajr.rollout.environments import EnvironmentSpec
from marl_aajr.victims import Victim


class Progress(NamedTuple):
    """How far an evaluation is.

    Attributes:
        done: episodes played, of all rows.
        total: episodes to play.
        what: what is being played: ``"clean"``, ``"pgd 0.1"``.
    """

    done: int
    total: int
    what: str


@dataclass(kw_only=True)
class Player:
    """Plays the rows of one evaluation, one after the other.

    Attributes:
        victim: plays all agents.
        spec: the environment.
        env: its copies, for the reported episodes.
        agents: whose observations are changed; all of one team.
        units: of ε.
        seed: everything random follows from it.
        on_progress: told after every episode.
        total: episodes to play.
        done: episodes played.
        other_env: copies for the selection episodes, once there are any.
    """

    victim: Victim
    spec: EnvironmentSpec
    env: BatchedEnv
    agents: Sequence[str]
    units: Units
    seed: int
    on_progress: Callable[[Progress], None] | None
    total: int = 0
    done: int = 0
    other_env: BatchedEnv | None = None

    @property
    def team(self) -> str:
        """Whose return is "the return"."""
        return self.env.teams[self.agents[0]]

    def expect(self, plan: Plan, *, rows: int) -> None:
        """Count what there is to play: ``rows`` attacks and replacements, and the clean row, by actions."""
        each = (rows + 1) * plan.episodes + rows * plan.selection_episodes
        self.total = len(plan.actions) * each

    def fitted(self, attacks: Sequence[Attack]) -> tuple[Attack, ...]:
        """The attacks, those that must learn first fitted: once for all sizes, on episodes of their own."""
        learned: dict[Attack, Attack] = {}
        found = []
        for attack in attacks:
            if attack.ready:
                found.append(attack)
                continue
            key = attack.at(1.0)
            if key not in learned:
                self.tell(f"fitting {attack.name}", 0)
                seed = derived_seed(self.seed, FIT)
                learned[key] = attack.fit(self.victim, self.env, agents=self.agents, seed=seed)
            found.append(learned[key].at(attack.perturbations.epsilon))
        return tuple(found)

    def clean(self, *, episodes: int, sampled: bool, spy: Spy | None = None) -> Outcome:
        """The row without attack."""
        return self._outcome(self._play("clean", episodes, sampled=sampled, spy=spy))

    def attacked(self, attack: Attack, *, episodes: int, sampled: bool) -> AttackOutcome:
        """The row of one attack."""
        adversary = self._adversary(attack)
        returns = self._play(_label(attack), episodes, sampled=sampled, adversary=adversary)
        tally = adversary.tally
        decisions = max(tally.decisions, 1)
        return AttackOutcome(
            attack=attack,
            outcome=self._outcome(returns),
            success_rate=tally.changed / decisions,
            objective_gain=tally.gain / decisions,
            kl=tally.kl / decisions,
        )

    def selected_on(self, attack: Attack, *, episodes: int, sampled: bool) -> float:
        """Mean return under an attack on episodes that are not reported."""
        returns = self._play(
            f"{_label(attack)} (selection)",
            episodes,
            sampled=sampled,
            adversary=self._adversary(attack),
            env=self._other(episodes),
        )
        return self._own(returns).mean().item()

    def replaced(
        self, replacement: Replacement, *, episodes: int, selection_episodes: int, sampled: bool
    ) -> AgentOutcome:
        """The row of one replacement, and what the choice of the worst one rests on."""
        returns = self._play(
            replacement.label, episodes, sampled=sampled, stand_in=self._stand_in(replacement, sampled)
        )
        loyal = [
            i
            for i, agent in enumerate(self.env.possible_agents)
            if self.env.teams[agent] == self.team and agent not in replacement.agents
        ]
        tried = None
        if selection_episodes:
            chosen_on = self._play(
                f"{replacement.label} (selection)",
                selection_episodes,
                sampled=sampled,
                stand_in=self._stand_in(replacement, sampled),
                env=self._other(selection_episodes),
            )
            tried = self._own(chosen_on).mean().item()
        return AgentOutcome(
            replacement=replacement,
            outcome=self._outcome(returns),
            loyal_return=returns[:, loyal].sum(-1).mean().item(),
            selected_on=tried,
        )

    def close(self) -> None:
        """Free what was made here: the copies for the selection episodes."""
        if self.other_env is not None:
            self.other_env.close()

    def _other(self, episodes: int) -> BatchedEnv:
        if self.other_env is None:
            self.other_env = make_batch(self.spec, min(self.env.num_envs, episodes))
        return self.other_env

    def _stand_in(self, replacement: Replacement, sampled: bool) -> StandIn:
        return replacement.stand_in(sampled=sampled, generator=stream(self.seed, REPLACED))

    def _adversary(self, attack: Attack) -> Adversary:
        return Adversary(
            attack=attack,
            victim=self.victim,
            agents=self.agents,
            units=self.units,
            generator=stream(self.seed, ATTACK),
        )

    def _play(
        self,
        what: str,
        episodes: int,
        *,
        sampled: bool,
        adversary: Adversary | None = None,
        stand_in: StandIn | None = None,
        spy: Spy | None = None,
        env: BatchedEnv | None = None,
    ) -> Tensor:
        """Returns ``[episodes, agents]``; another table than the reported one has other episodes."""
        returns = play(
            self.victim,
            env or self.env,
            episodes=episodes,
            seed=self.seed if env is None else derived_seed(self.seed, SELECTION),
            sampled=sampled,
            adversary=adversary,
            stand_in=stand_in,
            on_episode=lambda finished: self.tell(what, finished),
            spy=spy,
        )
        self.done += episodes
        return returns

    def tell(self, what: str, finished: int) -> None:
        if self.on_progress is not None:
            self.on_progress(Progress(self.done + finished, self.total, what))

    def _own(self, returns: Tensor) -> Tensor:
        return _by_team(returns, self.env.possible_agents, self.env.teams)[self.team]

    def _outcome(self, returns: Tensor) -> Outcome:
        teams = _by_team(returns, self.env.possible_agents, self.env.teams)
        own = tuple(teams[self.team].tolist())
        low, high = bootstrap_interval(own, seed=self.seed)
        return Outcome(
            returns=own,
            mean=sum(own) / len(own),
            low=low,
            high=high,
            team_returns={name: total.mean().item() for name, total in teams.items()},
        )


def _label(attack: Attack) -> str:
    return f"{attack.name} {attack.perturbations.epsilon:g}"


def _by_team(returns: Tensor, agents: Sequence[str], teams: Mapping[str, str]) -> dict[str, Tensor]:
    """Returns ``[episodes, agents]`` summed over the agents of each team, ``[episodes]``."""
    members: dict[str, list[int]] = {}
    for i, agent in enumerate(agents):
        members.setdefault(teams[agent], []).append(i)
    return {team: returns[:, index].sum(-1) for team, index in members.items()}
