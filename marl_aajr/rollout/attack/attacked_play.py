"""Play under attack: between what an environment shows and what its agents see, while a batch is sampled.

The collector asks for what the agents see (`AttackedPlay.seen`) before it asks the policies to act; what
they see is what is kept and trained on. Ascents come first (`Attempt`), because who is attacked may depend on
all of them (`worst_agents`). The attack looks at a module as it is: weights, filter, recurrent state.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from random import Random
from typing import TypeVar

import torch
from torch import Tensor

from marl_aajr.core.channels import NO_CHANNELS, Channels
from marl_aajr.core.end_of_ascent import Ascended
from marl_aajr.core.policy import Tree, where_rows
from marl_aajr.rollout.attack.attackable import ActingRows, AttackablePolicies
from marl_aajr.rollout.attack.attacked_copies import AttackedCopies
from marl_aajr.rollout.attack.attacked_metrics import AttackedDecisions, attack_metrics
from marl_aajr.rollout.attack.kept_path import KEPT, kept_path
from marl_aajr.rollout.attack.members import attacked_members
from marl_aajr.rollout.attack.on_words import attack_on
from marl_aajr.rollout.attack.rollout_attack import RolloutAttack
from marl_aajr.rollout.attack.worst_agents import Attempt, objective_gain, settled
from marl_aajr.rollout.fragments import ModuleFragment
from marl_aajr.rollout.rollout_buffer import StepInputs

_Shown = TypeVar("_Shown")
_Key = TypeVar("_Key")


class AttackedPlay:
    """A rollout attack on a batch that is being sampled.

    Args:
        attack: The attack.
        groups: The agents of each module.
        num_envs: E.
        policies: Their policies.
        device: Of the batch.
        channels: What the agents observe, by agent, where the attack is held to channels.
        trained: The modules that are trained; None: all.

    Attributes:
        attack: The same.
        copies: The copies that are attacked.
        allowed: Whether this sample is one for attacks.

    Raises:
        ValueError: Unknown agents, or a share that gives no copy.
    """

    def __init__(
        self,
        attack: RolloutAttack,
        groups: Mapping[str, tuple[str, ...]],
        num_envs: int,
        policies: AttackablePolicies,
        device: torch.device,
        *,
        channels: Mapping[str, Channels] = NO_CHANNELS,
        trained: Collection[str] | None = None,
    ) -> None:
        attack.check_copies(num_envs)
        self.attack = attack
        self.copies = AttackedCopies(attack, num_envs, device)
        self._members = attacked_members(attack, groups, channels, trained=trained)
        self._observe = {
            module: {groups[module][i]: channels.get(groups[module][i], {}) for i in places}
            for module, places in self._members.items()
        }
        self._held: dict[str, RolloutAttack] = {}
        self._policies, self._num_envs, self._device = policies, num_envs, device
        self._places: dict[tuple[str, int], Tensor] = {}
        self._decisions: dict[str, AttackedDecisions] = {}
        self._ends: list[tuple[Tensor | None, float | Tensor, dict[str, Tree | None]]] = []
        self.allowed = True
        self._samples = 0
        """Those in which somebody was attacked."""

    @property
    def on(self) -> bool:
        """Whether anybody may be attacked in this sample."""
        return self.allowed and self.copies.epsilon > 0 and self.copies.reach > 0

    @property
    def modules(self) -> tuple[str, ...]:
        """The modules that have attacked agents."""
        return tuple(self._members)

    def attack_on(self, module: str) -> RolloutAttack:
        """The attack on what the agents of a module observe; `ValueError`: they have other channels."""
        if module not in self._held:
            width = self._policies.width(module)
            self._held[module] = attack_on(self.attack, self._observe[module], width)
        return self._held[module]

    @property
    def epsilon(self) -> float:
        """ε in force; 0: nobody is attacked."""
        return self.copies.epsilon if self.on else 0.0

    def begin(self, timestep: float, *, allowed: bool = True) -> None:
        """Begin a sample at this environment step; without attack, unless it is allowed."""
        self.copies.begin(timestep)
        self.allowed = allowed
        self._decisions = {m: AttackedDecisions(Random(int(timestep))) for m in self._members}
        self._ends.clear()
        self._samples += self.on

    def begin_episodes(self, over: Tensor) -> None:
        """A step is over, and with it the episodes of these copies `[E]`; their states are still there."""
        if self.on:
            keep = {m: self._policies.memory(m) for m in self._members if self._last_is_seen}
            self._ends.append((self.copies.hit(), self.copies.radius(1), keep))
        self.copies.begin_episodes(over)

    @property
    def _last_is_seen(self) -> bool:
        """Whether critics read what the agents see, also at the end of an episode or a sample."""
        return self.attack.critic == "seen"

    def seen(
        self, given: Mapping[str, StepInputs], clean: Mapping[str, Tensor], *, row: int
    ) -> dict[str, StepInputs]:
        """What the agents of all modules that may be attacked see; arguments as in `attempt`, by module."""
        tried = {m: self.attempt(m, given[m], clean[m], row=row) for m in self._members if self.on}
        return self.settled(tried)

    def settled(self, attempts: Mapping[_Key, Attempt[_Shown]]) -> dict[_Key, _Shown]:
        """What agents see, of those of one moment, or of the moments that the attempts tell apart."""
        return settled(attempts, self.attack.worst_agents)

    def attempt(
        self, module: str, given: StepInputs, clean: Tensor, *, row: int | None
    ) -> Attempt[StepInputs]:
        """What the agents of a module would see.

        Args:
            module: The module.
            row: Where it is kept in the columns; None: the sample ends, and nobody acts on it.
            given: Observations as the environment gives them.
            clean: The same as the module sees them when nobody perturbs them.
        """
        nobody = given.none_acts or (row is None and not self._last_is_seen)
        if nobody or not self._policies.can_be_attacked(module):
            truth = given._replace(obs=clean, clean=clean, path=self._no_path(module, clean))
            return Attempt(lambda _: truth)
        agents, reach = self._members[module], self.copies.reach
        whole = len(agents) == len(clean)

        def part(column: Tensor) -> Tensor:
            column = column if whole else column[list(agents)]
            return column[:, :reach].flatten(0, 1)

        def among_all(values: Tensor, others: Tensor) -> Tensor:
            values = values.view(len(agents), reach, *values.shape[1:])
            if whole and reach == self._num_envs:
                return values
            result = others.clone()
            result[list(agents), :reach] = values
            return result

        mask = None if given.mask is None else part(given.mask)
        rows = self._policies.acting(module, part(given.obs), mask, self._places_of(module))
        epsilon, keeps = self.copies.radius(len(agents)), self.attack.path != "none"
        found = self._ascend(module, rows, epsilon, keep_path=keeps)
        draw = self.copies.generator
        path = kept_path(self.attack, found, rows, part(clean), generator=draw) if keeps else None
        hit = self._hit(len(agents))
        if not given.all_act:
            acts = part(given.acts)
            hit = acts if hit is None else hit & acts

        def show(hit: Tensor | None) -> StepInputs:
            seen, kept = rows.seen(rows.obs + found.delta), path
            if hit is not None:
                seen = where_rows(hit, seen, part(clean))
                kept = None if kept is None else where_rows(hit, kept, torch.zeros_like(kept))
            if row is not None:
                self._decisions[module].note(row, rows, found.clean_outputs, epsilon, hit)
            if kept is not None:
                kept = among_all(kept, kept.new_zeros(*clean.shape[:2], *kept.shape[1:]))
            return given._replace(obs=among_all(seen, clean), clean=clean, path=kept)

        copies = torch.arange(reach, device=clean.device).repeat(len(agents))
        return Attempt(show, hit, self._ranked(module, rows, found, copies))

    def _ascend(
        self, module: str, rows: ActingRows, epsilon: float | Tensor, *, keep_path: bool = False
    ) -> Ascended:
        generator = self.copies.generator
        return self.attack_on(module).perturb(
            rows.policy, rows.obs, epsilon=epsilon, generator=generator, keep_path=keep_path
        )

    def _ranked(
        self, module: str, rows: ActingRows, found: Ascended, moment: Tensor
    ) -> tuple[Tensor, Tensor] | None:
        if self.attack.worst_agents is None:
            return None
        return objective_gain(self.attack.adversary, rows.policy, rows.obs, found), moment

    def _no_path(self, module: str, clean: Tensor) -> Tensor | None:
        if self.attack.path == "none":
            return None
        points = 1 if self.attack.path == "one" else self.attack.steps
        width = self._policies.width(module)
        return clean.new_zeros((*clean.shape[:2], 2, points, width), dtype=KEPT)

    def last_attempt(
        self, module: str, given: Tensor, clean: Tensor, at: Tensor, *, lead: int
    ) -> Attempt[Tensor]:
        """What agents of a module would see last in an episode, `[K, ...]`.

        Args:
            module: The module.
            given: Their last observations, as the environment gives them.
            clean: The same as the module sees them.
            at: (t, g, e) of each, `[K, 3]`, all of one step.
            lead: Rows of the fragment before the first step.
        """
        nobody = not self.attacks(module) or not self._last_is_seen or not len(at)
        if nobody or not self._policies.can_be_attacked(module):
            return Attempt(lambda _: clean)
        agents = torch.tensor(self._members[module], device=at.device)
        step, g, e = int(at[0, 0]) - lead, at[:, 1], at[:, 2]
        hit, epsilon, memory = self._ends[step]
        copies = e.clamp_max(self.copies.reach - 1)
        there = torch.isin(g, agents) & (e < self.copies.reach)
        if hit is not None:
            there = there & hit[copies]
        # Legal is everything: nobody acts on it.
        places = g * self._num_envs + e
        rows = self._policies.acting(module, given, None, places, memory[module])
        found = self._ascend(module, rows, epsilon[copies] if isinstance(epsilon, Tensor) else epsilon)

        def show(hit: Tensor | None) -> Tensor:
            assert hit is not None
            return where_rows(hit, rows.seen(rows.obs + found.delta), clean)

        return Attempt(show, there, self._ranked(module, rows, found, step * self._num_envs + e))

    def attacks(self, module: str) -> bool:
        """Whether agents of a module may be attacked in this sample."""
        return self.on and module in self._members

    def metrics(self, parts: Mapping[str, ModuleFragment]) -> dict[str, float]:
        """Measures of the attack in the sample that ends, whose columns these are: see `sums_of`."""
        if not self.on:
            return {}
        interval = self.attack.gap_interval
        measured = interval > 0 and (self._samples - 1) % interval == 0
        noted = {
            m: (self.attack_on(m), self._decisions[m], parts[m], own) for m, own in self._members.items()
        }
        return attack_metrics(
            noted,
            reach=self.copies.reach,
            generator=self.copies.generator if measured else None,
        )

    def _hit(self, agents: int) -> Tensor | None:
        hit = self.copies.hit()
        return None if hit is None else hit.repeat(agents)

    def _places_of(self, module: str) -> Tensor:
        key = (module, self.copies.reach)
        if key not in self._places:
            agents = torch.tensor(self._members[module], device=self._device)
            copies = torch.arange(self.copies.reach, device=self._device)
            self._places[key] = (agents[:, None] * self._num_envs + copies).flatten()
        return self._places[key]
