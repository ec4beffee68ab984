"""Play a victim with and without attacks, over the same episodes, and say what it earned."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from marl_aajr.attacks import Attack
from marl_aajr.evaluation.episodes import Adversary, attack_generator, play
from marl_aajr.evaluation.protocol import (
    Request,
    check_attack,
    check_match,
    check_seed,
    choose_team,
    positive_integer,
    resolve_attacks,
)
from marl_aajr.evaluation.results import AttackOutcome, Evaluation, Outcome, bootstrap_interval
from marl_aajr.rollout.batched import BatchedEnv
from marl_aajr.rollout.environments import EnvironmentSpec, resolve
from marl_aajr.rollout.pettingzoo import PettingZooBatch
from marl_aajr.victims import Victim

NUM_ENVS = 50
"""Copies played side by side. Part of the protocol: see :func:`evaluate`."""


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


def evaluate(
    victim: Victim,
    environment: EnvironmentSpec | None = None,
    *,
    attacks: Sequence[Request] = (),
    episodes: int = 100,
    seed: int = 0,
    team: str | None = None,
    num_envs: int = NUM_ENVS,
    on_progress: Callable[[Progress], None] | None = None,
) -> Evaluation:
    """Evaluate a victim: greedy actions, frozen filters, the same episodes for every row.

    One team is attacked, all its agents at every step, in the units that their networks see (after the
    filter). The others play the same policies on what is really there. "The return" is the attacked team's:
    the sum of its agents' undiscounted rewards.

    Args:
        victim: who plays all agents.
        environment: where; None: the environment that it was trained on.
        attacks: pairs of attack (a name, or an :class:`~marl_aajr.attacks.Attack`) and epsilon.
        episodes: for the clean row and for each attack.
        seed: of the episodes and of the attacks' random numbers. Each row is the same whatever the other
            rows are.
        team: who is attacked; None: the only team, or the largest (of equals, the first).
        num_envs: E, copies played side by side. Episode i is seeded as number i // E of copy i mod E, so
            compare evaluations of the same E only.
        on_progress: told after every episode.

    Raises:
        ValueError: numbers out of range, unknown or repeated attacks, attacks that the policies do not
            admit, an environment that the victim does not fit; all before anything is played.
        EnvironmentFault: the environment broke its contract.
    """
    positive_integer("episodes", episodes)
    positive_integer("num_envs", num_envs)
    check_seed(seed)
    resolved = resolve_attacks(attacks)
    spec = environment or resolve(victim.env_name, victim.env_kwargs)
    env = PettingZooBatch(spec, min(num_envs, episodes))
    try:
        check_match(victim, env)
        team = choose_team(env.teams, team)
        members = [agent for agent in env.possible_agents if env.teams[agent] == team]
        for attack in resolved:
            check_attack(attack, victim, members)
        rows = _Rows(
            victim=victim,
            env=env,
            team=team,
            members=members,
            episodes=episodes,
            seed=seed,
            total=(len(resolved) + 1) * episodes,
            on_progress=on_progress,
        )
        return Evaluation(
            env_name=spec.name,
            env_kwargs=dict(spec.kwargs),
            teams=env.teams,
            team=team,
            seed=seed,
            episodes=episodes,
            num_envs=env.num_envs,
            clean=rows.clean(),
            attacks=tuple(rows.attacked(attack) for attack in resolved),
        )
    finally:
        env.close()


@dataclass(kw_only=True)
class _Rows:
    """The rows of one evaluation, played one after the other."""

    victim: Victim
    env: BatchedEnv
    team: str
    members: Sequence[str]
    episodes: int
    seed: int
    total: int
    on_progress: Callable[[Progress], None] | None
    done: int = 0

    def clean(self) -> Outcome:
        return self._outcome(self._play("clean", None))

    def attacked(self, attack: Attack) -> AttackOutcome:
        generator = attack_generator(self.seed)
        adversary = Adversary(attack=attack, agents=self.members, generator=generator)
        returns = self._play(f"{attack.name} {attack.perturbations.epsilon:g}", adversary)
        tally = adversary.tally
        decisions = max(tally.decisions, 1)
        return AttackOutcome(
            attack=attack,
            outcome=self._outcome(returns),
            success_rate=tally.changed / decisions,
            objective_gain=tally.gain / decisions,
            kl=tally.kl / decisions,
        )

    def _play(self, what: str, adversary: Adversary | None) -> Tensor:
        def on_episode(finished: int) -> None:
            if self.on_progress is not None:
                self.on_progress(Progress(self.done + finished, self.total, what))

        returns = play(
            self.victim,
            self.env,
            episodes=self.episodes,
            seed=self.seed,
            adversary=adversary,
            on_episode=on_episode,
        )
        self.done += self.episodes
        return returns

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


def _by_team(returns: Tensor, agents: Sequence[str], teams: Mapping[str, str]) -> dict[str, Tensor]:
    """Returns ``[episodes, agents]`` summed over the agents of each team, ``[episodes]``."""
    members: dict[str, list[int]] = {}
    for i, agent in enumerate(agents):
        members.setdefault(teams[agent], []).append(i)
    return {team: returns[:, index].sum(-1) for team, index in members.items()}
