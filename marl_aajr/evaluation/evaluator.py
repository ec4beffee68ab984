"""The player of an evaluation's rows: one victim in one environment, row after row."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from marl_aajr.attacks import Attack
from marl_aajr.core.seeds import Purpose, derived_seed, stream
from marl_aajr.evaluation.attack_schedule import AttackSchedule, ScheduleCalibration
from marl_aajr.evaluation.budget import trials
from marl_aajr.evaluation.counted_episodes import Played
from marl_aajr.evaluation.episodes import AttackRun, StepCallback, play
from marl_aajr.evaluation.outcomes import (
    OWN,
    Actions,
    AttackedSteps,
    AttackOutcome,
    AttackSpec,
    Outcome,
    ReplacementOutcome,
    Units,
)
from marl_aajr.evaluation.protocol import Suite
from marl_aajr.evaluation.replacements import Replacement
from marl_aajr.evaluation.team_returns import TeamReturns
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

    Attributes:
        side: `OWN`, or the opponent's name.
        schedule: the steps that are attacked; None: every step.
    """

    side: str
    actions: Actions
    attack: Attack
    agents: tuple[str, ...]
    schedule: AttackSchedule | None
    selection: bool


def _told(what: str, side: str, selection: bool) -> str:
    """A row with its opponent and episodes: `pgd 0.1 against ppo-1 (selection)`."""
    against = "" if side == OWN else f" against {side}"
    return f"{what}{against}{' (selection)' if selection else ''}"


@dataclass(kw_only=True)
class Evaluator:
    """Plays the rows of one evaluation, one after the other; everything random follows from the seed.

    Attributes:
        env: copies of the environment, for the reported episodes.
        agents: agents whose observations may be changed; all of one team.
        opponents: by name, players of other teams; against each of them, and against the victim's own side
            (`OWN`), the same is played.
        home: folder of the victim's run, which keeps the adversaries that are trained; None: nothing does.
        total: episodes to play.
        calibrations: by side and kind of actions, what unattacked selection episodes tell an attack schedule.
        unattacked: by side and kind of actions, the team's returns in them.
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
    opponents: Mapping[str, Replacement] = field(default_factory=dict)
    on_progress: Callable[[Progress], None] | None = None
    home: Path | None = None
    total: int = 0
    done: int = 0
    calibrations: dict[tuple[str, Actions], ScheduleCalibration] = field(default_factory=dict)
    unattacked: dict[tuple[str, Actions], tuple[float, ...]] = field(default_factory=dict)
    cancelled: bool = False
    rows: list[tuple[Attack | None, int]] = field(default_factory=list)
    time: TimeLeft = field(init=False)
    _selection_env: BatchedEnv | None = None

    def __post_init__(self) -> None:
        self.time = TimeLeft(self.env.num_envs)
        teams = {agent: self.env.teams[agent] for agent in self.env.possible_agents}
        self._returns = TeamReturns(teams, self.team, self.seed)

    @property
    def team(self) -> str:
        """The team whose return is "the return"."""
        return self.env.teams[self.agents[0]]

    @property
    def sides(self) -> tuple[str, ...]:
        """`OWN`, and the names of the opponents."""
        return OWN, *self.opponents

    def expect(self, attacks: Sequence[Attack], *, replacements: int, beside: Attack | None = None) -> None:
        """Count the episodes to play; one attack may be played beside those that are chosen from."""
        suite, k = self.suite, self.suite.budget.worst
        rows: list[tuple[Attack | None, int]] = [(attack, suite.episodes) for attack in attacks]
        tried = [*attacks] * (1 if k is None else trials(self.agents, k))
        if suite.alone(self.agents):
            tried += [*{a.perturbations.epsilon: a for a in attacks}.values()] * len(self.agents)
        rows += [(attack, suite.selection_episodes) for attack in tried]
        replaced = [(None, episodes) for episodes in (suite.episodes, suite.selection_episodes)]
        others = [(None, suite.episodes), *rows] * len(self.opponents)
        self.rows = [*rows, *replaced * replacements, *others]
        self.rows += [(beside, suite.episodes)] if beside is not None else []
        watched = suite.selection_episodes * (suite.calibrated(self.agents) + len(self.opponents))
        each = suite.episodes + watched
        self.total = len(suite.actions) * (each + sum(episodes for _, episodes in self.rows))

    def calibrate(self, *, attacked: bool) -> None:
        """Watch unattacked selection episodes, where a choice rests on them.

        With attacks: of the steps or the agents that a budget allows; with opponents: of the worst one.

        Raises:
            ValueError: more steps in the budget than an episode has.
        """
        own = attacked and self.suite.calibrated(self.agents)
        others = self.opponents if self.suite.selection_episodes else ()
        for side in [*([OWN] if own else []), *others]:
            for actions in self.suite.actions:
                watch = ScheduleCalibration(self.agents, strategic=self.suite.budget.timing == "strategic")
                played = self._play("clean", actions, side=side, on_step=watch, selection=True)
                self.calibrations[side, actions] = watch
                self.unattacked[side, actions] = self._returns.each(played.returns)
                self._schedule(side, actions, self.agents)

    def clean(self, side: str, actions: Actions, *, on_step: StepCallback | None = None) -> Outcome:
        """The row without attack."""
        played = self._play("clean", actions, side=side, on_step=on_step)
        if side == OWN:
            own = self._returns.members(played.returns)
            size = own.abs().sum(-1)
            self.cancelled = bool((size > 0).any() and (own.sum(-1).abs() <= 1e-6 * size).all())
        return Outcome(**self._returns.outcome(played))

    def task(
        self, side: str, actions: Actions, attack: Attack, agents: tuple[str, ...], *, selection: bool
    ) -> AttackTask:
        """An attack on some agents in the steps that the budget allows."""
        return AttackTask(side, actions, attack, agents, self._schedule(side, actions, agents), selection)

    def play(self, task: AttackTask) -> AttackOutcome | tuple[float, ...]:
        """The row of an attack; on the selection episodes the returns alone, which choices rest on."""
        run = self.attack_run(task.attack, task.agents, schedule=task.schedule)
        what = f"{task.attack.name} {task.attack.perturbations.epsilon:g}"
        played = self._play(what, task.actions, side=task.side, attack=run, selection=task.selection)
        if task.selection:
            return self._returns.each(played.returns)
        statistics, size, steps = run.statistics, task.attack.perturbations.epsilon, task.schedule
        decisions = max(statistics.decisions, 1)
        return AttackOutcome(
            **self._returns.outcome(played),
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
        played = self._play(replacement.label, actions, replacement=replacement)
        loyal = self._returns.members(played.returns, but=replacement.agents)
        left = None
        if self.suite.selection_episodes:
            chosen_on = self._play(replacement.label, actions, replacement=replacement, selection=True)
            left = self._returns.members(chosen_on.returns).sum(-1).mean().item()
        return ReplacementOutcome(
            **self._returns.outcome(played),
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

    def _schedule(self, side: str, actions: Actions, agents: Collection[str]) -> AttackSchedule | None:
        """The steps in which these agents are attacked; None: every one."""
        steps = self.suite.budget.steps
        return None if steps is None else self.calibrations[side, actions].schedule(agents, steps=steps)

    def _play(
        self,
        what: str,
        actions: Actions,
        *,
        side: str = OWN,
        attack: AttackRun | None = None,
        replacement: Replacement | None = None,
        on_step: StepCallback | None = None,
        selection: bool = False,
    ) -> Played:
        """The reported or the selection episodes, against the victim's own side or an opponent."""
        episodes, env, seed = self.suite.episodes, self.env, self.seed
        if selection:
            episodes, seed = self.suite.selection_episodes, derived_seed(self.seed, Purpose.SELECTION)
            if self._selection_env is None:
                self._selection_env = make_batch(self.spec, min(self.env.num_envs, episodes), flat=True)
            env = self._selection_env
        row = attack.attack if attack else None
        seconds = self.time.row(row, episodes)
        sampled, policy = actions == "sampled", None
        if (replacement := replacement or self.opponents.get(side)) is not None:
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
            on_episode=lambda done: self.tell(_told(what, side, selection), done, seconds * done / episodes),
            on_step=on_step,
        )
        self.finished(row, episodes)
        return played
