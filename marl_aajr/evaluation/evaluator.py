"""The player of an evaluation's rows: one victim in one environment, row after row."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from marl_aajr.attacks import Attack
from marl_aajr.core.seeds import Purpose, derived_seed, stream
from marl_aajr.evaluation.attack_schedule import AttackSchedule, ScheduleCalibration
from marl_aajr.evaluation.budget import trials
from marl_aajr.evaluation.counted_episodes import Played
from marl_aajr.evaluation.episodes import AttackRun, StepCallback, play
from marl_aajr.evaluation.intervals import bootstrap_interval
from marl_aajr.evaluation.outcomes import (
    Actions,
    AttackedSteps,
    AttackOutcome,
    AttackSpec,
    Metric,
    Outcome,
    ReplacementOutcome,
    Units,
)
from marl_aajr.evaluation.protocol import Suite
from marl_aajr.evaluation.replacements import Replacement
from marl_aajr.evaluation.time_left import TimeLeft
from marl_aajr.rollout.batched_env import BatchedEnv
from marl_aajr.rollout.environments import EnvironmentSpec, make_batch
from marl_aajr.victims import Victim


class Progress(NamedTuple):
    """The progress of an evaluation: episodes played, of all rows, and to play.

    Attributes:
        what: the row that is being played: `"clean"`, `"pgd 0.1"`.
        left: seconds until the end, about; None before the clean rows are over.
    """

    done: int
    total: int
    what: str
    left: float | None = None


@dataclass(frozen=True)
class AttackTask:
    """One fitted attack to play on some agents: on the reported episodes, or on the selection episodes.

    `schedule` says which steps are attacked; None: every step.
    """

    actions: Actions
    attack: Attack
    agents: tuple[str, ...]
    schedule: AttackSchedule | None
    selection: bool

    @property
    def label(self) -> str:
        """Attack, size and episodes: `pgd 0.1 (selection)`."""
        episodes = " (selection)" if self.selection else ""
        return f"{self.attack.name} {self.attack.perturbations.epsilon:g}{episodes}"


@dataclass(kw_only=True)
class Evaluator:
    """Plays the rows of one evaluation, one after the other; everything random follows from the seed.

    Attributes:
        env: copies of the environment, for the reported episodes.
        agents: agents whose observations may be changed; all of one team.
        home: folder of the victim's run, which keeps the adversaries that are trained; None: nothing does.
        total: episodes to play.
        calibrations: by kind of actions, what unattacked selection episodes tell an attack schedule.
        unattacked: by kind of actions, the team's returns in them.
        rows: attack and episodes of those after the clean ones, for each kind of actions.
        cancelled: whether the team's rewards cancelled in every clean episode, though its agents had some.
    """

    victim: Victim
    spec: EnvironmentSpec
    env: BatchedEnv
    suite: Suite
    agents: Sequence[str]
    units: Units
    seed: int
    on_progress: Callable[[Progress], None] | None = None
    home: Path | None = None
    total: int = 0
    done: int = 0
    calibrations: dict[Actions, ScheduleCalibration] = field(default_factory=dict)
    unattacked: dict[Actions, tuple[float, ...]] = field(default_factory=dict)
    cancelled: bool = False
    rows: list[tuple[Attack | None, int]] = field(default_factory=list)
    time: TimeLeft = field(init=False)
    _selection_env: BatchedEnv | None = None

    def __post_init__(self) -> None:
        self.time = TimeLeft(self.env.num_envs)

    @property
    def team(self) -> str:
        """The team whose return is "the return"."""
        return self.env.teams[self.agents[0]]

    def expect(self, attacks: Sequence[Attack], *, replacements: int, beside: Attack | None = None) -> None:
        """Count the episodes to play; one attack may be played beside those that are chosen from."""
        suite, k = self.suite, self.suite.budget.worst
        reported = (*attacks, *[None] * replacements, *([beside] if beside else []))
        self.rows = [(attack, suite.episodes) for attack in reported]
        tried = [*attacks] * (1 if k is None else trials(self.agents, k))
        if suite.alone(self.agents):
            tried += [*{a.perturbations.epsilon: a for a in attacks}.values()] * len(self.agents)
        self.rows += [(attack, suite.selection_episodes) for attack in (*tried, *[None] * replacements)]
        each = suite.episodes + suite.selection_episodes * suite.calibrated(self.agents)
        self.total = len(suite.actions) * (each + sum(episodes for _, episodes in self.rows))

    def calibrate(self) -> None:
        """Watch unattacked selection episodes, where a budget or the search for agents rests on them.

        `ValueError`: more steps in the budget than an episode has.
        """
        if not self.suite.calibrated(self.agents):
            return
        for actions in self.suite.actions:
            watch = ScheduleCalibration(self.agents, strategic=self.suite.budget.timing == "strategic")
            played = self._play("clean (selection)", actions, on_step=watch, selection=True)
            self.calibrations[actions] = watch
            self.unattacked[actions] = self._own(played.returns)
            self._schedule(actions, self.agents)

    def clean(self, actions: Actions, *, on_step: StepCallback | None = None) -> Outcome:
        """The row without attack."""
        played = self._play("clean", actions, on_step=on_step)
        own = self._returns_of(self.team, played.returns)
        size = own.abs().sum(-1)
        self.cancelled = bool((size > 0).any() and (own.sum(-1).abs() <= 1e-6 * size).all())
        return Outcome(**self._outcome(played))

    def task(
        self, actions: Actions, attack: Attack, agents: tuple[str, ...], *, selection: bool
    ) -> AttackTask:
        """An attack on some agents in the steps that the budget allows."""
        return AttackTask(actions, attack, agents, self._schedule(actions, agents), selection)

    def play(self, task: AttackTask) -> AttackOutcome | tuple[float, ...]:
        """The row of an attack; on the selection episodes the returns alone, which choices rest on."""
        run = self.attack_run(task.attack, task.agents, schedule=task.schedule)
        played = self._play(task.label, task.actions, attack=run, selection=task.selection)
        if task.selection:
            return self._own(played.returns)
        statistics, size, steps = run.statistics, task.attack.perturbations.epsilon, task.schedule
        decisions = max(statistics.decisions, 1)
        return AttackOutcome(
            **self._outcome(played),
            attack=AttackSpec.of(task.attack),
            success_rate=statistics.changed / decisions,
            objective_gain=statistics.gain / decisions,
            kl=statistics.kl / decisions,
            epsilons={agent: run.scales.get(agent, 1.0) * size for agent in task.agents},
            attacked_steps=None
            if steps is None
            else AttackedSteps(
                limit=steps.steps,
                timing=steps.timing,
                shortest=steps.shortest,
                longest=steps.longest,
                mean=run.attacked_steps / self.suite.episodes,
            ),
        )

    def attack_run(
        self,
        attack: Attack,
        agents: Collection[str],
        *,
        schedule: AttackSchedule | None = None,
        purpose: Purpose = Purpose.ATTACK,
    ) -> AttackRun:
        """An attack on some agents, with random numbers for a purpose."""
        return AttackRun(
            attack=attack,
            victim=self.victim,
            agents=agents,
            units=self.units,
            generator=stream(self.seed, purpose),
            scales=self.suite.budget.scale_of,
            schedule=schedule,
        )

    def replaced(self, replacement: Replacement, actions: Actions) -> ReplacementOutcome:
        """The row of one replacement, and what the choice of the worst one rests on."""
        label = replacement.label
        played = self._play(label, actions, replacement=replacement)
        loyal = self._returns_of(self.team, played.returns, but=replacement.agents)
        left = None
        if self.suite.selection_episodes:
            chosen_on = self._play(f"{label} (selection)", actions, replacement=replacement, selection=True)
            left = self._returns_of(self.team, chosen_on.returns).sum(-1).mean().item()
        return ReplacementOutcome(
            **self._outcome(played),
            kind=replacement.kind,
            agents=replacement.agents,
            source=replacement.source,
            training=replacement.training,
            loyal_return=loyal.sum(-1).mean().item(),
            selection_return=left,
        )

    def close(self) -> None:
        """Free the copies for the selection episodes, which were made here."""
        if self._selection_env is not None:
            self._selection_env.close()

    def tell(self, what: str, finished: int = 0, seconds: float = 0.0) -> None:
        """Report progress: what is played, how many of its episodes are finished, and how long they take."""
        if self.on_progress is not None:
            self.on_progress(Progress(self.done + finished, self.total, what, self.time.seconds(seconds)))

    def finished(self, attack: Attack | None, episodes: int) -> None:
        """Count a row."""
        self.done += episodes
        self.time.finish(self.time.row(attack, episodes))

    def _schedule(self, actions: Actions, agents: Collection[str]) -> AttackSchedule | None:
        """The steps in which these agents are attacked; None: every one."""
        steps = self.suite.budget.steps
        return None if steps is None else self.calibrations[actions].schedule(agents, steps=steps)

    def _play(
        self,
        what: str,
        actions: Actions,
        *,
        attack: AttackRun | None = None,
        replacement: Replacement | None = None,
        on_step: StepCallback | None = None,
        selection: bool = False,
    ) -> Played:
        """The reported or the selection episodes."""
        episodes, env, seed = self.suite.episodes, self.env, self.seed
        if selection:
            episodes, seed = self.suite.selection_episodes, derived_seed(self.seed, Purpose.SELECTION)
            if self._selection_env is None:
                self._selection_env = make_batch(self.spec, min(self.env.num_envs, episodes), flat=True)
            env = self._selection_env
        row = attack.attack if attack else None
        seconds = self.time.row(row, episodes)
        sampled, policy = actions == "sampled", None
        if replacement is not None:
            generator = stream(self.seed, Purpose.REPLACED)
            policy = replacement.policy(env.num_envs, sampled=sampled, generator=generator)
        played = play(
            self.victim,
            env,
            episodes=episodes,
            seed=seed,
            sampled=sampled,
            attack=attack,
            replacement=policy,
            on_episode=lambda finished: self.tell(what, finished, seconds * finished / episodes),
            on_step=on_step,
        )
        self.finished(row, episodes)
        return played

    def _returns_of(self, team: str, returns: Tensor, *, but: Collection[str] = ()) -> Tensor:
        """The columns of a team's agents in returns `[episodes, agents]`."""
        agents = enumerate(self.env.possible_agents)
        return returns[:, [i for i, agent in agents if self.env.teams[agent] == team and agent not in but]]

    def _own(self, returns: Tensor) -> tuple[float, ...]:
        """The return of each episode."""
        return tuple(self._returns_of(self.team, returns).sum(-1).tolist())

    def _outcome(self, played: Played) -> dict[str, Any]:
        """The fields of an `Outcome`."""
        own = self._own(played.returns)
        low, high = bootstrap_interval(own, seed=self.seed)
        teams = dict.fromkeys(self.env.teams[agent] for agent in self.env.possible_agents)
        return {
            "returns": own,
            "mean": sum(own) / len(own),
            "low": low,
            "high": high,
            "team_returns": {t: self._returns_of(t, played.returns).sum(-1).mean().item() for t in teams},
            "metrics": {name: self._metric(values.tolist()) for name, values in played.metrics.items()},
        }

    def _metric(self, values: list[float]) -> Metric:
        low, high = bootstrap_interval(values, seed=self.seed)
        return Metric(mean=sum(values) / len(values), low=low, high=high, values=tuple(values))
