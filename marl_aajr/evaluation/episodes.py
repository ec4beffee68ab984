"""Whole episodes of a victim, with and without an attack on its observations.

An `AttackRun` is what one row of an evaluation adds to an `Attack`, which perturbs batches of observations:
the attacked agents, each one's ε in the units of its network, the steps in which the budget lets it act, its
random numbers, and the statistics of what it changed.

`play` makes returns comparable. Episode i is the (i // E)-th episode of copy i mod E and is seeded as such,
so every attack faces the same episodes. Each copy plays its own share to the end: taking the first episodes
to finish would favour short ones. Sampled actions share their random numbers too: those of a step and a copy
are the same under every attack.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from marl_aajr.attacks import Attack, Attacked
from marl_aajr.attacks.episode_memory import EpisodeMemory
from marl_aajr.attacks.together import AttackCall, Playing, play_together
from marl_aajr.core.channels import Channels
from marl_aajr.core.checks import grouped
from marl_aajr.core.distributions import ActionDistribution
from marl_aajr.core.seeds import Purpose, stream
from marl_aajr.evaluation.attack_schedule import (
    AttackSchedule,
    BudgetCounter,
    StepSelector,
    acting_and_preferences,
    mean_where,
)
from marl_aajr.evaluation.counted_episodes import CountedEpisodes, Played
from marl_aajr.evaluation.outcomes import Units
from marl_aajr.evaluation.prepared_attack import prepare, reachable
from marl_aajr.evaluation.replacements import ReplacementPolicy
from marl_aajr.rollout.batched_env import BatchedEnv
from marl_aajr.victims import Victim
from marl_aajr.victims.stepper import DecisionBatch, GeneratorSampler, Stepper


@dataclass
class AttackStatistics:
    """The effects of an attack on single decisions, summed over all attacked decisions of all episodes.

    Greedy actions that changed; gain g(δ) − g(0) of the attack's objective; KL(π(·|s) ‖ π(·|s + δ)) in nats.
    """

    decisions: int = 0
    changed: float = 0.0
    gain: float = 0.0
    kl: float = 0.0

    def add(self, attacked: Attacked, distribution: ActionDistribution) -> None:
        """Count one attacked batch."""
        self.decisions += len(attacked.success)
        self.changed += attacked.success.double().sum().item()
        self.gain += (attacked.value - attacked.clean_value).double().sum().item()
        self.kl += distribution.kl(attacked.clean_outputs, attacked.outputs).double().sum().item()


@dataclass(kw_only=True, eq=False)
class AttackRun:
    """One attack over the episodes of one row: `begin` once, then `perturb` and `restart` in every step.

    Attributes:
        attack: fitted where it must be, with random numbers from the generator.
        agents: those whose observations are perturbed.
        units: the units of the attack's perturbation set.
        scales: agent -> its ε as a multiple of the attack's; absent: 1.
        channels: of each agent's observation; who has none of those that the attack names is not attacked.
        schedule: the steps in which the attack acts; None: every step.
        draw: the number of an attack's random numbers that remembers episodes; others have other ones.
        statistics: what the attack did to single decisions so far.
    """

    attack: Attack
    victim: Victim
    agents: Collection[str]
    units: Units
    generator: torch.Generator
    scales: Mapping[str, float] = field(default_factory=dict)
    channels: Mapping[str, Channels] = field(default_factory=dict)
    schedule: AttackSchedule | None = None
    draw: int = 0
    statistics: AttackStatistics = field(default_factory=AttackStatistics)
    _memory: EpisodeMemory | None = field(init=False, default=None)
    _steps: tuple[StepSelector, BudgetCounter] | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        self.agents = reachable(self.attack, self.victim, self.agents, self.channels)

    @cached_property
    def prepared(self) -> dict[str, Attack]:
        """Attacked agent -> the attack on its policy, of its own size, in the units of its network."""
        found = {}
        for agent in self.agents:
            scale = self.scales.get(agent, 1.0)
            sized = self.attack if scale == 1.0 else self.attack.at(scale * self.attack.perturbations.epsilon)
            found[agent] = prepare(sized, self.victim, agent, units=self.units, channels=self.channels)
        return found

    def together(self, agents: Sequence[str]) -> list[list[str]]:
        """Agents of one module and one filter in groups that can be attacked as one batch."""
        masks = {agent: attack.perturbations.mask for agent, attack in self.prepared.items()}
        alike = grouped(((self.scales.get(agent, 1.0), masks.get(agent)), agent) for agent in agents)
        return [part for each in alike.values() for part in self.attack.together(each)]

    def begin(self, num_envs: int, *, generator: torch.Generator) -> None:
        """Begin episodes in `num_envs` copies; the generator chooses the attacked steps, if not all are."""
        seed = int(torch.randint(2**62, (self.draw + 1,), generator=self.generator.clone_state())[-1])
        self._memory = self.attack.remember(num_envs, seed=seed)
        if self.schedule is not None:
            selector = StepSelector(self.schedule, num_envs=num_envs, generator=generator)
            self._steps = selector, BudgetCounter(self.schedule.steps, num_envs=num_envs)

    @property
    def attacked_steps(self) -> int:
        """Attacked steps of all episodes so far; 0 without a schedule, which has none counted."""
        return 0 if self._steps is None else self._steps[1].total

    def perturb(self, batches: Sequence[DecisionBatch], live: Tensor) -> Playing[list[DecisionBatch]]:
        """The decisions of one step, on what the attack shows the policies; it asks for the attack's answers.

        Nobody is attacked but in copies whose episode counts, `live [E]` bool.

        Raises:
            BudgetError: an attack that takes more than it may.
        """
        where = self._attacked_copies(batches, live)
        chosen = self._adversary_actions(batches, where)
        hits = [self._hit(batch, where) for batch in batches]
        calls = [
            self._call(batch, hit.nonzero().flatten(), where, chosen)
            for batch, hit in zip(batches, hits, strict=True)
            if hit.any()
        ]
        answers = iter((yield calls)) if calls else iter(())
        if self._memory is not None:
            self._memory.advance()
        return [
            self._shown(batch, hit, next(answers)) if hit.any() else batch
            for batch, hit in zip(batches, hits, strict=True)
        ]

    def restart(self, over: Tensor) -> None:
        """Begin new episodes where the old ones are `over`, `[E]` bool."""
        for each in self._steps or ():
            each.restart(over)
        if self._memory is not None:
            self._memory.forget(over)

    def _attacked_copies(self, batches: Sequence[DecisionBatch], live: Tensor) -> Tensor:
        """Copies to attack in this step, `[E]` bool: selected by the schedule, and counted apart from it."""
        if self.schedule is None or self._steps is None:
            return live
        selector, counter = self._steps
        strategic = self.schedule.timing == "strategic"
        acting, preferences = acting_and_preferences(
            batches, list(self.agents), len(live), strategic=strategic
        )
        acting &= live.unsqueeze(-1)
        anybody = acting.any(1)
        where = selector.select(anybody, mean_where(preferences, acting)) & live
        counter.add(where & anybody)
        return where

    def _adversary_actions(self, batches: Sequence[DecisionBatch], where: Tensor) -> Mapping[str, Tensor]:
        """Agent -> the actions of an adversary that looks at all attacked agents before each is attacked."""
        if not self.attack.acts_jointly:
            return {}
        seen = {}
        for batch in batches:
            for agent, copies, part in batch.split(batch.inputs):
                if agent in self.agents:
                    seen[agent] = part.new_zeros(len(where), part.shape[-1])
                    seen[agent][copies] = part * where[copies].unsqueeze(-1)
        return self.attack.choose_actions(seen, generator=self.generator) if seen else {}

    def _hit(self, batch: DecisionBatch, where: Tensor) -> Tensor:
        """The rows of attacked agents in attacked copies, `[B]` bool."""
        return torch.cat([where[copies] & (agent in self.agents) for agent, copies in batch.rows.items()])

    def _call(
        self, batch: DecisionBatch, index: Tensor, where: Tensor, chosen: Mapping[str, Tensor]
    ) -> AttackCall:
        """The attack on the rows `index` of one batch."""
        targets = {agent: copies for agent, copies in batch.rows.items() if agent in self.agents}
        attack = self.prepared[next(iter(targets))]
        if chosen:
            attack = attack.with_actions(
                torch.cat([chosen[agent][copies[where[copies]]] for agent, copies in targets.items()])
            )
        if self._memory is not None:
            here = {agent: copies[where[copies]] for agent, copies in targets.items()}
            attack = attack.with_memory(
                self._memory.at({a: copies for a, copies in here.items() if len(copies)})
            )
        return AttackCall(attack, batch.policy.select(index), batch.inputs[index], self.generator)

    def _shown(self, batch: DecisionBatch, hit: Tensor, attacked: Attacked) -> DecisionBatch:
        """The decisions of one batch, perturbed in the rows that are `hit`."""
        index, rest = hit.nonzero().flatten(), (~hit).nonzero().flatten()
        self.statistics.add(attacked, batch.policy.distribution)
        inputs = batch.inputs.clone()
        outputs = attacked.outputs.new_empty(len(hit), attacked.outputs.shape[-1])
        inputs[index], outputs[index] = attacked.perturbed, attacked.outputs
        if len(rest):
            with torch.no_grad():
                outputs[rest] = batch.policy.select(rest)(batch.inputs[rest])
        return batch.shown(inputs, outputs)


StepCallback = Callable[[Sequence[DecisionBatch], Tensor], None]
"""Called in every step with the decisions that are to be made, on what is really there, and with the number
of each copy's episode, `[E]`; −1 where it does not count."""


def play(victim: Victim, env: BatchedEnv, **how: Any) -> Played:
    """Play exactly `episodes` episodes in E copies; arguments as for `playing`."""
    return play_together([playing(victim, env, **how)])[0]


def playing(
    victim: Victim,
    env: BatchedEnv,
    *,
    episodes: int,
    seed: int,
    sampled: bool = False,
    attack: AttackRun | None = None,
    replacement: ReplacementPolicy | None = None,
    on_episode: Callable[[int], None] | None = None,
    on_step: StepCallback | None = None,
) -> Playing[Played]:
    """Play exactly `episodes` episodes in E copies, E ≤ `episodes`; for `play_together`.

    Without an attack all policies are shown what is there. A replacement acts for some agents instead of the
    victim, whose own random numbers stay as they are. `on_step` is called before anybody is attacked, and
    `on_episode` with the number of episodes that are done.

    Raises:
        ValueError: an episode that does not end.
        BudgetError: an attack that takes more than it may.
    """
    agents = env.possible_agents
    others = set() if replacement is None else set(replacement.agents)
    # Nobody asks policies whose agents are all replaced; the rest decide in the same batches as in every row.
    groups = [group for group in victim.alike(agents) if not others.issuperset(group)]
    if attack is not None:
        groups = [part for group in groups for part in attack.together(group)]
        attack.begin(env.num_envs, generator=stream(seed, Purpose.TIMING))
    stepper = Stepper(victim, victim.memory(env.num_envs), groups=groups)
    kinds = {agent: victim.distribution(agent) for agent in agents}
    sampler = GeneratorSampler(kinds, env.num_envs, stream(seed, Purpose.ACTIONS)) if sampled else None
    counted = CountedEpisodes(env, episodes)
    victim.reseed(seed)
    if replacement is not None:
        replacement.reseed(seed)
    obs = env.reset(seed=seed)
    while (live := counted.live).any():
        batches = stepper.see(obs, active=env.active, action_mask=env.action_mask)
        if on_step is not None:
            on_step(batches, counted.episode)
        if attack is not None:
            batches = yield from attack.perturb(batches, live)
        actions = stepper.act(batches, sampler)
        if replacement is not None:
            actions |= replacement(env, obs)
        step = env.step(actions)
        obs = step.obs
        stepper.memory.forget(step.episode_over)
        if replacement is not None:
            replacement.forget(step.episode_over)
        if attack is not None:
            attack.restart(step.episode_over)
        counted.add(step, on_episode)
    return counted.played
