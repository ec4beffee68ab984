"""Which copies of an environment are attacked, in which of their steps, and how far.

A copy is attacked from the beginning of an episode to its end, so that returns are those of whole episodes of
one kind. Nothing here waits for a device but once per sample.
"""

from __future__ import annotations

import torch
from torch import Tensor

from marl_aajr.rollout.attack.rollout_attack import RolloutAttack

_SMALLEST = 1e-6
"""Of the fractions of ε: a set has a radius."""


class AttackedCopies:
    """The attacked ones of E copies, step by step.

    Args:
        attack: The attack.
        num_envs: E.
        device: Device of the flags.

    Attributes:
        generator: Source of what is drawn; whoever samples seeds it.
        epsilon: ε in force; 0: nobody is attacked.
        reach: Copies from this number on are not attacked in this sample. The share's are, and those whose
            episode began under attack.
    """

    def __init__(self, attack: RolloutAttack, num_envs: int, device: torch.device) -> None:
        self._attack, self._device = attack, device
        self.generator = torch.Generator(device)
        self.epsilon, self.reach = 0.0, 0
        self._index = torch.arange(num_envs, device=device)
        self._count = 0
        self._member = torch.zeros(num_envs, dtype=torch.bool, device=device)
        self._mixed = False
        self._new = torch.ones_like(self._member)
        self._factor = torch.ones(num_envs, device=device)
        self._place = torch.zeros_like(self._index)
        self._left = torch.zeros_like(self._index)
        self._due: Tensor | None = None
        self._ended: list[tuple[Tensor, Tensor]] = []

    def begin(self, timestep: float) -> None:
        """Begin a sample, at this environment step: copies that begin an episode now are the new share's."""
        before, self._count = self._count, self._attack.copies(len(self._index), timestep)
        self._ended.clear()
        self.reach = self._count
        if self._count != before or self._mixed:
            wanted = self._index < self._count
            self._member = torch.where(self._new, wanted, self._member)
            others = (self._member != wanted).any()
            last = ((self._index + 1) * self._member).amax()
            mixed, reach = torch.stack([others.long(), last]).tolist()
            self._mixed, self.reach = bool(mixed), max(self._count, reach)
        self.epsilon = self._attack.size_at(timestep) if self.reach else 0.0

    def begin_episodes(self, over: Tensor) -> None:
        """New episodes begin in the copies `over [E]`; called after every step, and at a reset."""
        self._ended.append((over, self._member))
        self._new = over
        if self._mixed:
            self._member = torch.where(over, self._index < self._count, self._member)
        if (draw := self._attack.epsilon_draw) is not None:
            drawn = torch.rand(len(over), generator=self.generator, device=self._device)
            radius = (draw[0] + (draw[1] - draw[0]) * drawn).clamp_min(_SMALLEST)
            self._factor = torch.where(over, radius, self._factor)
        if (budget := self._attack.attacked_steps) is not None:
            self._place = (self._place + 1).masked_fill(over, 0) % budget[1]
            self._draw_due(*budget)

    def _draw_due(self, some: int, of: int) -> None:
        """Draw whether this step is one of the m of T: with probability (m left) / (steps left)."""
        left = torch.where(self._place == 0, some, self._left)
        drawn = torch.rand(len(left), generator=self.generator, device=self._device)
        self._due = drawn * (of - self._place) < left
        self._left = left - self._due.long()

    def has(self, copy: int) -> bool:
        """Whether a copy's episode is played under attack."""
        return bool(self._member[copy])

    def hit(self) -> Tensor | None:
        """The copies that are attacked in this step, `[reach]` bool; None: all of them."""
        member = self._member[: self.reach] if self._mixed else None
        if self._due is None:
            return member
        due = self._due[: self.reach]
        return due if member is None else due & member

    def radius(self, agents: int) -> float | Tensor:
        """ε; where each copy has its own, `[agents · reach, 1]`."""
        if self._attack.epsilon_draw is None:
            return self.epsilon
        return (self.epsilon * self._factor[: self.reach]).repeat(agents).unsqueeze(1)

    def ended(self) -> Tensor:
        """Whether each episode that ended since `begin` was attacked, in their order, `[n]` on the CPU."""
        flags = [member[over] for over, member in self._ended]
        return torch.cat(flags).cpu() if flags else torch.zeros(0, dtype=torch.bool)
