"""The player of an evaluation's rows: one victim in one environment, row after row."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from marl_aajr.attacks import Attack
from marl_aajr.attacks.together import play_together
from marl_aajr.core.seeds import Purpose, stream
from marl_aajr.evaluation.attack_schedule import AttackSchedule, ScheduleCalibration
from marl_aajr.evaluation.budget import trials
from marl_aajr.evaluation.counted_episodes import Played
from marl_aajr.evaluation.episodes import AttackRun, StepCallback
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
from marl_aajr.evaluation.prepared_attack import prepare
from marl_aajr.evaluation.protocol import Suite
from marl_aajr.evaluation.replacements import Replacement
from marl_aajr.evaluation.row_games import AttackTask, Row, RowGames, label_of, plays_of, told
from marl_aajr.evaluation.team_returns import TeamReturns
from marl_aajr.evaluation.time_left import TimeLeft
from marl_aajr.evaluation.variations import parse_variation
from marl_aajr.rollout.batched_env import BatchedEnv
from marl_aajr.rollout.environments import EnvironmentSpec
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
        longest: steps of the longest clean episode.
        returns: sums the agents' returns by team.
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
    longest: int = 0
    cancelled: bool = False
    rows: list[tuple[Attack | None, int]] = field(default_factory=list)
    time: TimeLeft = field(init=False)
    games: RowGames = field(init=False)
    returns: TeamReturns = field(init=False)

    def __post_init__(self) -> None:
        self.time = TimeLeft(self.env.num_envs)
        self.games = RowGames(
            self.victim, self.spec, self.env, suite=self.suite, seed=self.seed, opponents=self.opponents
        )
        teams = {agent: self.env.teams[agent] for agent in self.env.possible_agents}
        self.returns = TeamReturns(teams, self.team, self.seed)

    @property
    def team(self) -> str:
        """The team whose return is "the return"."""
        return self.env.teams[self.agents[0]]

    @property
    def sides(self) -> tuple[str, ...]:
        """`OWN`, and the names of the opponents."""
        return OWN, *self.opponents

    def whole(self, replacements: Sequence[Replacement]) -> list[Replacement]:
        """Controls of the whole team, which meet every opponent, too: a team that has learned nothing."""
        team = {agent for agent, name in self.env.teams.items() if name == self.team}
        return [one for one in replacements if one.victim is None and set(one.agents) == team]

    def expect(
        self,
        attacks: Sequence[Attack],
        *,
        replacements: Sequence[Replacement],
        beside: Attack | None = None,
        disturbances: int = 0,
    ) -> None:
        """Count the episodes to play; one attack may be played beside those that are chosen from."""
        suite, k = self.suite, self.suite.budget.worst
        rows: list[tuple[Attack | None, int]] = [(attack, suite.episodes) for attack in attacks]
        tried = [*attacks] * (1 if k is None else trials(self.agents, k))
        if suite.alone(self.agents):
            sizes = {a.perturbations.epsilon: a for a in attacks if suite.ranks(a)}
            tried += [*sizes.values()] * len(self.agents)
        rows += [(a, suite.selection_episodes) for a in tried if k is not None or suite.ranks(a)]
        rows = [row for row in rows for _ in range(plays_of(row[0]))]
        replaced = [(None, episodes) for episodes in (suite.episodes, suite.selection_episodes)]
        controls = [(None, suite.episodes)] * len(self.whole(replacements))
        others = [(None, suite.episodes), *rows, *controls] * len(self.opponents)
        self.rows = [*rows, *replaced * len(replacements), *others]
        self.rows += [(beside, suite.episodes)] if beside is not None else []
        self.rows += [(None, suite.episodes)] * (
            disturbances + sum(len(parse_variation(v).values) for v in suite.vary)
        )
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
                self.unattacked[side, actions] = self.returns.each(played.returns)
                self._schedule(side, actions, self.agents)

    def clean(self, side: str, actions: Actions, *, on_step: StepCallback | None = None) -> Outcome:
        """The row without attack."""
        played = self._play("clean", actions, side=side, on_step=on_step)
        if side == OWN:
            self.longest = max(self.longest, played.longest)
            own = self.returns.members(played.returns)
            size = own.abs().sum(-1)
            self.cancelled = bool((size > 0).any() and (own.sum(-1).abs() <= 1e-6 * size).all())
        return Outcome(**self.returns.outcome(played))

    def task(
        self, side: str, actions: Actions, attack: Attack, agents: tuple[str, ...], *, selection: bool
    ) -> AttackTask:
        """An attack on some agents in the steps that the budget allows."""
        return AttackTask(side, actions, attack, agents, self._schedule(side, actions, agents), selection)

    def play(self, tasks: Sequence[AttackTask]) -> list[AttackOutcome | tuple[float, ...]]:
        """The rows of one attack; on the selection episodes the returns alone, which choices rest on."""
        found = []
        most = self.games.side_by_side(tasks[0].attack)
        for some in (tasks[i : i + most] for i in range(0, len(tasks), most)):
            runs = [self.attack_run(task.attack, task.agents, schedule=task.schedule) for task in some]
            rows = [
                Row(task.actions, side=task.side, attack=run, selection=task.selection)
                for task, run in zip(some, runs, strict=True)
            ]
            played = self.play_rows(label_of(some), rows)
            found += [self._of_attack(*each) for each in zip(some, runs, played, strict=True)]
        return found

    def _of_attack(
        self, task: AttackTask, run: AttackRun, played: Played
    ) -> AttackOutcome | tuple[float, ...]:
        if task.selection:
            return self.returns.each(played.returns)
        statistics, size, steps = run.statistics, task.attack.perturbations.epsilon, task.schedule
        decisions = max(statistics.decisions, 1)
        return AttackOutcome(
            **self.returns.outcome(played),
            attack=AttackSpec.of(task.attack),
            success_rate=statistics.changed / decisions,
            objective_gain=statistics.gain / decisions,
            kl=statistics.kl / decisions,
            epsilons={agent: run.scales.get(agent, 1.0) * size for agent in run.agents},
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
        draw: int = 0,
    ) -> AttackRun:
        """An attack on some agents, with random numbers for a purpose, or a draw of those of a fault."""
        return AttackRun(
            attack=attack,
            victim=self.victim,
            agents=agents,
            units=self.units,
            generator=stream(self.seed, purpose),
            scales=self.suite.budget.scale_of,
            channels=self.env.channels,
            schedule=schedule,
            draw=draw,
        )

    def prepared(self, attack: Attack, agent: str) -> Attack:
        """An attack as it meets one agent."""
        return prepare(attack, self.victim, agent, units=self.units, channels=self.env.channels)

    def replaced(self, replacement: Replacement, actions: Actions, *, side: str = OWN) -> ReplacementOutcome:
        """The row of one replacement, and what the choice of the worst one rests on; none among controls."""
        played = self._play(replacement.label, actions, replacement=replacement, side=side)
        loyal = self.returns.members(played.returns, but=replacement.agents)
        left = None
        if self.suite.selection_episodes and side == OWN:
            chosen_on = self._play(replacement.label, actions, replacement=replacement, selection=True)
            left = self.returns.members(chosen_on.returns).sum(-1).mean().item()
        return ReplacementOutcome(
            **self.returns.outcome(played),
            kind=replacement.kind,
            agents=replacement.agents,
            source=replacement.source,
            training=replacement.training,
            loyal_return=loyal.sum(-1).mean().item(),
            selection_return=left,
        )

    def close(self) -> None:
        """Free the copies that were made here."""
        self.games.close()

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

    def _play(self, what: str, actions: Actions, **how: Any) -> Played:
        """One row; the rest is as for `Row`."""
        row = Row(actions, **how)
        return self.play_rows(told(what, row.side, row.selection), [row])[0]

    def play_rows(self, what: str, rows: Sequence[Row]) -> list[Played]:
        """Rows side by side, which know nothing of each other."""
        finished = [0] * len(rows)
        sizes = [self.games.episodes(row) for row in rows]
        seconds = [self.time.row(row.of, episodes) for row, episodes in zip(rows, sizes, strict=True)]

        def on_episode(place: int, count: int) -> None:
            finished[place] = count
            passed = (s * n / size for s, n, size in zip(seconds, finished, sizes, strict=True))
            self.tell(what, sum(finished), sum(passed))

        played = play_together(self.games.begin(rows, on_episode=on_episode))
        for row, episodes in zip(rows, sizes, strict=True):
            self.finished(row.of, episodes)
        return played
