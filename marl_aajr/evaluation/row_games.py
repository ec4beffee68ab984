"""The games of an evaluation's rows, several side by side, each on copies of the environment of its own."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from marl_aajr.attacks import Attack, Fault
from marl_aajr.attacks.together import Playing
from marl_aajr.core.seeds import Purpose, derived_seed, stream
from marl_aajr.evaluation.attack_schedule import AttackSchedule
from marl_aajr.evaluation.counted_episodes import Played
from marl_aajr.evaluation.episodes import AttackRun, StepCallback, playing
from marl_aajr.evaluation.outcomes import OWN, Actions
from marl_aajr.evaluation.protocol import Suite
from marl_aajr.evaluation.replacements import Replacement, ReplacementPolicy, TogetherPolicy
from marl_aajr.rollout.batched_env import BatchedEnv
from marl_aajr.rollout.environments import EnvironmentSpec, make_batch
from marl_aajr.rollout.pettingzoo_batch import PettingZooBatch
from marl_aajr.victims import Victim

_SIDE_BY_SIDE = 6
"""Rows of one attack that are played side by side: a call on 900 observations is mostly work."""


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

    @property
    def plays(self) -> int:
        """How often its episodes are played."""
        return plays_of(self.attack)


def plays_of(attack: Attack | None) -> int:
    """How often an attack's episodes are played: with each of the draws of a fault."""
    return attack.draws if isinstance(attack, Fault) else 1


def told(what: str, side: str, selection: bool) -> str:
    """A row with its opponent and episodes: `pgd 0.1 against ppo-1 (selection)`."""
    against = "" if side == OWN else f" against {side}"
    return f"{what}{against}{' (selection)' if selection else ''}"


def label_of(tasks: Sequence[AttackTask]) -> str:
    """The label of rows of one attack that are played side by side: `pgd 0.05, 0.1`; see `told`."""
    sizes = dict.fromkeys(f" {task.attack.perturbations.epsilon:g}" * task.attack.sized for task in tasks)
    sides, first = {task.side for task in tasks}, tasks[0]
    return told(
        f"{first.attack.name}{','.join(sizes)}",
        first.side if len(sides) == 1 else OWN,
        all(task.selection for task in tasks),
    )


@dataclass(frozen=True, eq=False)
class Row:
    """One row to play: on the reported or the selection episodes, under an attack or with a replacement.

    `side` is `OWN`, or the name of the opponent that plays the other teams; `env` are the copies to play on,
    where they are not those of all rows.
    """

    actions: Actions
    side: str = OWN
    attack: AttackRun | None = None
    replacement: Replacement | None = None
    on_step: StepCallback | None = None
    selection: bool = False
    env: BatchedEnv | None = None

    @property
    def of(self) -> Attack | None:
        """The attack, by whose name the row is counted."""
        return None if self.attack is None else self.attack.attack


class RowGames:
    """Begins the games of rows; copies of the environment are made as they are needed, and kept.

    Args:
        victim: plays all agents.
        spec: the environment.
        env: copies for the first row on the reported episodes; whoever made them closes them.
        suite: the numbers of episodes.
        seed: everything random follows from it.
        opponents: by name, who plays the other teams.
    """

    def __init__(
        self,
        victim: Victim,
        spec: EnvironmentSpec,
        env: BatchedEnv,
        *,
        suite: Suite,
        seed: int,
        opponents: Mapping[str, Replacement],
    ) -> None:
        self._opponents = opponents
        self._victim, self._spec, self._env, self._suite, self._seed = victim, spec, env, suite, seed
        self._copies: dict[bool, list[BatchedEnv]] = {False: [env], True: []}

    def side_by_side(self, attack: Attack) -> int:
        """How many rows of an attack are played side by side.

        One alone where copies are whole environments, which take memory and time of their own, and where
        policies draw random numbers by themselves, which would follow from what is played beside them.
        """
        heavy = isinstance(self._env, PettingZooBatch)
        playing = (self._victim, *(who.victim for who in self._opponents.values()))
        draws = any(victim is not None and victim.draws for victim in playing)
        return 1 if heavy or draws or not attack.mixes_sizes else _SIDE_BY_SIDE

    def episodes(self, row: Row | AttackTask) -> int:
        """The number of a row's episodes."""
        return self._suite.selection_episodes if row.selection else self._suite.episodes

    def begin(self, rows: Sequence[Row], *, on_episode: Callable[[int, int], None]) -> list[Playing[Played]]:
        """The games of rows, for `play_together`; told is a row's place, and how many episodes are done."""
        used = {False: 0, True: 0}
        games = []
        for place, row in enumerate(rows):
            env = row.env or self._copies_for(row, used[row.selection])
            used[row.selection] += row.env is None
            games.append(self._game(row, env, partial(on_episode, place)))
        return games

    def close(self) -> None:
        """Free the copies that were made here."""
        for env in (*self._copies[False][1:], *self._copies[True]):
            env.close()

    def _copies_for(self, row: Row, number: int) -> BatchedEnv:
        made = self._copies[row.selection]
        if number == len(made):
            copies = min(self._env.num_envs, self.episodes(row))
            made.append(make_batch(self._spec, copies, flat=True))
        return made[number]

    def _game(self, row: Row, env: BatchedEnv, on_episode: Callable[[int], None]) -> Playing[Played]:
        sampled = row.actions == "sampled"
        policy: ReplacementPolicy | None = None
        if replaced := [who for who in (self._opponents.get(row.side), row.replacement) if who is not None]:
            draws = stream(self._seed, Purpose.REPLACED)
            policies = [who.policy(env.num_envs, sampled=sampled, generator=draws) for who in replaced]
            policy = policies[0] if len(policies) == 1 else TogetherPolicy(policies)
        return playing(
            self._victim,
            env,
            episodes=self.episodes(row),
            seed=derived_seed(self._seed, Purpose.SELECTION) if row.selection else self._seed,
            sampled=sampled,
            attack=row.attack,
            replacement=policy,
            on_episode=on_episode,
            on_step=row.on_step,
        )
