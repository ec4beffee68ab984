"""Attacks of several games at once: calls that differ in their size ε, answered as one batch.

A call on 150 rows spends more time between the network's passes than in them. Rows are independent of one
another, so the games of several evaluated rows are played side by side, each in a coroutine (`Playing`) that
asks for its attacks step by step; what they ask for in the same step is answered together (`play_together`).
Whoever plays alone gets the same numbers.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass, fields, replace
from typing import TypeVar

import torch

from marl_aajr.attacks.base import Attack, Attacked
from marl_aajr.core.seeds import RowGenerators
from marl_aajr.core.threat import PerturbationSet, PerturbationSets
from marl_aajr.victims import VictimPolicy

T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class AttackCall:
    """A call of an attack: its policy, observations `[B, d]` and random numbers."""

    attack: Attack
    policy: VictimPolicy
    obs: torch.Tensor
    generator: torch.Generator

    def mixes(self, other: AttackCall) -> bool:
        """Whether both can be answered as one: alike but for their size, on the same network."""
        return same_but_for_size(self.attack, other.attack) and self.policy.same_network(other.policy)


Playing = Generator[list[AttackCall], list[Attacked], T]
"""A game that asks for what attacks show in a step, at each step, and ends with a result."""


def play_together(games: Sequence[Playing[T]]) -> list[T]:
    """Play games to their ends, step by step; their results, in their order."""
    results: dict[int, T] = {}
    asked: dict[int, list[AttackCall]] = {}

    def proceed(number: int, answers: list[Attacked] | None) -> None:
        try:
            asked[number] = next(games[number]) if answers is None else games[number].send(answers)
        except StopIteration as end:
            asked.pop(number, None)
            results[number] = end.value

    for number in range(len(games)):
        proceed(number, None)
    while asked:
        for number, answers in zip(list(asked), answered(list(asked.values())), strict=True):
            proceed(number, answers)
    return [results[number] for number in range(len(games))]


def answered(calls: Sequence[Sequence[AttackCall]]) -> list[list[Attacked]]:
    """The answers to several games' calls; those of one game are answered in their order."""
    answers: list[list[Attacked]] = [[] for _ in calls]
    while waiting := [game for game, own in enumerate(calls) if len(answers[game]) < len(own)]:
        heads = {game: calls[game][len(answers[game])] for game in waiting}
        first = heads[waiting[0]]
        alike = [game for game, call in heads.items() if call is first or first.mixes(call)]
        for game, attacked in zip(alike, _as_one([heads[game] for game in alike]), strict=True):
            answers[game].append(attacked)
    return answers


def same_but_for_size(a: Attack, b: Attack) -> bool:
    """Whether two attacks are alike but for their ε, and mix sizes."""
    if type(a) is not type(b) or not (a.mixes_sizes and b.mixes_sizes):
        return False
    if not type(a.perturbations) is type(b.perturbations) is PerturbationSet:
        return False
    for column in fields(a):
        x, y = getattr(a, column.name), getattr(b, column.name)
        if column.name == "perturbations":
            x, y = replace(x, epsilon=1.0), replace(y, epsilon=1.0)
        if x is not y and not (column.compare and x == y):
            return False
    return True


def _as_one(calls: Sequence[AttackCall]) -> list[Attacked]:
    first, counts = calls[0], [len(call.obs) for call in calls]
    if len(calls) == 1:
        return [first.attack(first.policy, first.obs, generator=first.generator)]
    sizes = [call.attack.perturbations.epsilon for call in calls]
    attack = first.attack
    if len(set(sizes)) > 1:
        epsilon = torch.tensor(sizes, dtype=torch.float64).repeat_interleave(torch.tensor(counts))
        perturbations = PerturbationSets.of(attack.perturbations, epsilon.unsqueeze(-1))
        attack = replace(attack, perturbations=perturbations)
    policy = VictimPolicy.joined([call.policy for call in calls])
    with RowGenerators([call.generator for call in calls], counts) as generators:
        return attack(policy, torch.cat([call.obs for call in calls]), generator=generators).split(counts)
