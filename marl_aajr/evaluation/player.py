"""One victim at one table: plays row after row, and counts."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from marl_aajr.attacks import Attack
from marl_aajr.core.seeds import Purpose, derived_seed, stream
from marl_aajr.evaluation.attack_run import AttackRun
from marl_aajr.evaluation.attack_schedule import AttackSchedule, ScheduleCalibration
from marl_aajr.evaluation.budget import Budget
from marl_aajr.evaluation.episodes import StepCallback, play
from marl_aajr.evaluation.outcomes import (
    Actions,
    AttackedSteps,
    AttackOutcome,
    AttackSpec,
    Outcome,
    ReplacementOutcome,
    Units,
)
from marl_aajr.evaluation.protocol import Suite
from marl_aajr.evaluation.replacements import Replacement, ReplacementPolicy
from marl_aajr.evaluation.statistics import bootstrap_interval
from marl_aajr.rollout.batched_env import BatchedEnv
from marl_aajr.rollout.environments import EnvironmentSpec, make_batch
from marl_aajr.victims import Victim


class Progress(NamedTuple):
    """How far an evaluation is.

    Attributes:
        done: episodes played, of all rows.
        total: episodes to play.
        what: what is being played: `"clean"`, `"pgd 0.1"`.
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
        agents: whose observations may be changed; all of one team.
        units: of ε.
        seed: everything random follows from it.
        scales: by agent, its ε as a multiple of the row's; absent: 1.
        on_progress: told after every episode.
        total: episodes to play.
        done: episodes played.
        home: folder of the victim's run, which keeps the adversaries that are trained; None: nothing does.
        other_env: copies for the selection episodes, once there are any.
        calibrations: by kind of actions, what unattacked selection episodes tell an attack schedule.
        unattacked: by kind of actions, the team's returns in them.
        cancelled: whether the team's rewards cancelled in every clean episode, though its agents had some.
    """

    victim: Victim
    spec: EnvironmentSpec
    env: BatchedEnv
    agents: Sequence[str]
    units: Units
    seed: int
    on_progress: Callable[[Progress], None] | None
    scales: Mapping[str, float] = field(default_factory=dict)
    home: Path | None = None
    total: int = 0
    done: int = 0
    other_env: BatchedEnv | None = None
    calibrations: dict[Actions, ScheduleCalibration] = field(default_factory=dict)
    unattacked: dict[Actions, tuple[float, ...]] = field(default_factory=dict)
    cancelled: bool = False

    @property
    def team(self) -> str:
        """Whose return is "the return"."""
        return self.env.teams[self.agents[0]]

    def expect(self, suite: Suite, attacks: Sequence[Attack], *, replacements: int) -> None:
        """Count what there is to play."""
        tried = len(attacks) if suite.budget.worst is None else len(attacks) * suite.trials(self.agents)
        if suite.alone(self.agents):
            tried += len({attack.perturbations.epsilon for attack in attacks}) * len(self.agents)
        if suite.calibrated(self.agents):
            tried += 1
        each = (len(attacks) + replacements + 1) * suite.episodes
        self.total = len(suite.actions) * (each + (tried + replacements) * suite.selection_episodes)

    def calibrate(self, suite: Suite) -> None:
        """Watch unattacked selection episodes, where a budget or the search for agents rests on them.

        Raises:
            ValueError: more steps than an episode has.
        """
        if not suite.calibrated(self.agents):
            return
        for kind in suite.actions:
            calibration = ScheduleCalibration(self.agents, strategic=suite.budget.timing == "strategic")
            env = self._other(suite.selection_episodes)
            returns = self._play(
                "clean (selection)",
                suite.selection_episodes,
                sampled=kind == "sampled",
                on_step=calibration,
                env=env,
            )
            self.calibrations[kind] = calibration
            self.unattacked[kind] = tuple(self._own(returns).tolist())
            self.schedule(kind, self.agents, suite.budget)

    def schedule(self, kind: Actions, agents: Collection[str], budget: Budget) -> AttackSchedule | None:
        """In which steps these agents are attacked; None: in every one."""
        return None if budget.steps is None else self.calibrations[kind].schedule(agents, steps=budget.steps)

    def clean(self, *, episodes: int, sampled: bool, on_step: StepCallback | None = None) -> Outcome:
        """The row without attack."""
        returns = self._play("clean", episodes, sampled=sampled, on_step=on_step)
        self.cancelled = cancel(returns[:, self._members()])
        return Outcome(**self._outcome(returns))

    def attacked(
        self,
        attack: Attack,
        *,
        agents: Sequence[str],
        schedule: AttackSchedule | None,
        episodes: int,
        sampled: bool,
    ) -> AttackOutcome:
        """The row of one attack on some agents, in every step or by a schedule."""
        run = self._run(attack, agents, schedule)
        returns = self._play(_label(attack), episodes, sampled=sampled, attack=run)
        statistics = run.statistics
        decisions = max(statistics.decisions, 1)
        return AttackOutcome(
            **self._outcome(returns),
            attack=AttackSpec.of(attack),
            success_rate=statistics.changed / decisions,
            objective_gain=statistics.gain / decisions,
            kl=statistics.kl / decisions,
            epsilons={a: self.scales.get(a, 1.0) * attack.perturbations.epsilon for a in agents},
            attacked_steps=_attacked_steps(run, episodes),
        )

    def selected_on(
        self,
        attack: Attack,
        *,
        agents: Sequence[str],
        schedule: AttackSchedule | None,
        episodes: int,
        sampled: bool,
    ) -> tuple[float, ...]:
        """Returns under an attack on episodes that are not reported."""
        returns = self._play(
            f"{_label(attack)} (selection)",
            episodes,
            sampled=sampled,
            attack=self._run(attack, agents, schedule),
            env=self._other(episodes),
        )
        return tuple(self._own(returns).tolist())

    def replaced(
        self, replacement: Replacement, *, episodes: int, selection_episodes: int, sampled: bool
    ) -> ReplacementOutcome:
        """The row of one replacement, and what the choice of the worst one rests on."""
        returns = self._play(
            replacement.label, episodes, sampled=sampled, replacement=self._policy(replacement, sampled)
        )
        loyal = self._members(but=replacement.agents)
        tried = None
        if selection_episodes:
            chosen_on = self._play(
                f"{replacement.label} (selection)",
                selection_episodes,
                sampled=sampled,
                replacement=self._policy(replacement, sampled),
                env=self._other(selection_episodes),
            )
            tried = self._own(chosen_on).mean().item()
        return ReplacementOutcome(
            **self._outcome(returns),
            kind=replacement.kind,
            agents=replacement.agents,
            source=replacement.source,
            training=replacement.training,
            loyal_return=returns[:, loyal].sum(-1).mean().item(),
            selection_return=tried,
        )

    def close(self) -> None:
        """Free what was made here: the copies for the selection episodes."""
        if self.other_env is not None:
            self.other_env.close()

    def _other(self, episodes: int) -> BatchedEnv:
        if self.other_env is None:
            self.other_env = make_batch(self.spec, min(self.env.num_envs, episodes))
        return self.other_env

    def _policy(self, replacement: Replacement, sampled: bool) -> ReplacementPolicy:
        return replacement.policy(sampled=sampled, generator=stream(self.seed, Purpose.REPLACED))

    def _members(self, *, but: Collection[str] = ()) -> list[int]:
        """Places of the team's agents among all."""
        everybody = enumerate(self.env.possible_agents)
        return [i for i, agent in everybody if self.env.teams[agent] == self.team and agent not in but]

    def _run(self, attack: Attack, agents: Sequence[str], schedule: AttackSchedule | None) -> AttackRun:
        return AttackRun(
            attack=attack,
            victim=self.victim,
            agents=agents,
            units=self.units,
            generator=stream(self.seed, Purpose.ATTACK),
            scales=self.scales,
            schedule=schedule,
        )

    def _play(
        self,
        what: str,
        episodes: int,
        *,
        sampled: bool,
        attack: AttackRun | None = None,
        replacement: ReplacementPolicy | None = None,
        on_step: StepCallback | None = None,
        env: BatchedEnv | None = None,
    ) -> Tensor:
        """Returns `[episodes, agents]`; another table than the reported one has other episodes."""
        returns = play(
            self.victim,
            env or self.env,
            episodes=episodes,
            seed=self.seed if env is None else derived_seed(self.seed, Purpose.SELECTION),
            sampled=sampled,
            attack=attack,
            replacement=replacement,
            on_episode=lambda finished: self.tell(what, finished),
            on_step=on_step,
        )
        self.done += episodes
        return returns

    def tell(self, what: str, finished: int) -> None:
        if self.on_progress is not None:
            self.on_progress(Progress(self.done + finished, self.total, what))

    def _own(self, returns: Tensor) -> Tensor:
        return by_team(returns, self.env.possible_agents, self.env.teams)[self.team]

    def _outcome(self, returns: Tensor) -> dict[str, Any]:
        """The fields of an `Outcome`."""
        teams = by_team(returns, self.env.possible_agents, self.env.teams)
        own = tuple(teams[self.team].tolist())
        low, high = bootstrap_interval(own, seed=self.seed)
        return {
            "returns": own,
            "mean": sum(own) / len(own),
            "low": low,
            "high": high,
            "team_returns": {name: total.mean().item() for name, total in teams.items()},
        }


def cancel(returns: Tensor) -> bool:
    """Whether returns `[episodes, agents]` add up to nothing in every episode, and are not nothing."""
    size = returns.abs().sum(-1)
    return bool((size > 0).any() and (returns.sum(-1).abs() <= 1e-6 * size).all())


def by_team(returns: Tensor, agents: Sequence[str], teams: Mapping[str, str]) -> dict[str, Tensor]:
    """Returns `[episodes, agents]` summed over the agents of each team, `[episodes]`."""
    members: dict[str, list[int]] = {}
    for i, agent in enumerate(agents):
        members.setdefault(teams[agent], []).append(i)
    return {team: returns[:, index].sum(-1) for team, index in members.items()}


def _attacked_steps(run: AttackRun, episodes: int) -> AttackedSteps | None:
    if run.schedule is None:
        return None
    return AttackedSteps(
        limit=run.schedule.steps,
        timing=run.schedule.timing,
        shortest=run.schedule.shortest,
        longest=run.schedule.longest,
        mean=run.statistics.attacked_steps / episodes,
    )


def _label(attack: Attack) -> str:
    return f"{attack.name} {attack.perturbations.epsilon:g}"
