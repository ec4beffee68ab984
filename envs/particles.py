"""The world of the particle environments: discs that are pushed by their actions and by contact.

The dynamics are those of `mpe2` (`mpe2/_mpe_utils/core.py`), with time step h = 0.1, damping 0.25,
contact stiffness c = 100 and contact margin k = 0.001, for agents i and bodies j that collide:

    d_ij = |p_i − p_j| − (size_i + size_j)
    f_i  = a_i u_i + Σ_j c · k log(1 + exp(−d_ij / k)) · (p_i − p_j) / |p_i − p_j|
    p_i ← p_i + h v_i
    v_i ← 0.75 v_i + h f_i,    then  v_i ← v_i · min(1, limit_i / |v_i|)

Distances and directions that rewards and observations need at the end of a step are those that the forces of
the next step need, so they are computed once.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from .layout import Layout, State

TIME_STEP = 0.1
DAMPING = 0.25
CONTACT_FORCE = 100.0
CONTACT_MARGIN = 0.001

_SOFTPLUS_THRESHOLD = 40.0  # above it log(1 + exp x) is x in both dtypes


class World(State):
    """E copies of a particle world.

    Args:
        layout: Who is in it.
        num_envs: E.
        device: Where the tensors live.
        dtype: float32, or float64 for proofs.

    Attributes:
        relative: `[2, A, M, E]`, `position[:, j] - position[:, i]`.
        distance: `[A, M, E]`, its length. An agent's distance to itself is 1 by convention, so that it
            neither touches itself nor divides by 0.
    """

    def __init__(self, layout: Layout, num_envs: int, *, device: torch.device, dtype: torch.dtype) -> None:
        last, start, shape = list(layout.places())[-1]
        assert last == "relative"
        super().__init__(
            layout,
            torch.zeros(start + math.prod(shape), num_envs, device=device, dtype=dtype),
        )
        agents, bodies = shape[1:]
        self.distance = torch.zeros(agents, bodies, num_envs, device=device, dtype=dtype)
        self._agents = self.position[:, :agents]
        self._to, self._from = self.position[:, None], self._agents[:, :, None]
        self._dx, self._dy = self.relative

        def constant(values: list[float]) -> Tensor:
            return torch.tensor(values, device=device, dtype=dtype)

        # Added to squared distances: 1 for an agent and itself; for two bodies in one place, the least
        # that keeps 0 / 0 out (mpe2 gives NaN there).
        self._floor = torch.full((agents, bodies, 1), torch.finfo(dtype).tiny, device=device, dtype=dtype)
        self._floor.diagonal(dim1=0, dim2=1).fill_(1.0)
        sizes = constant([body.size for body in layout.bodies] + [0.0] * layout.markers)
        self._contact = (sizes[:agents, None] + sizes[None])[:, :, None]
        self._pairs: dict[tuple[int, ...], tuple[Tensor, Tensor]] = {}
        self._limit = constant([agent.max_speed for agent in layout.agents])[:, None]
        self._limited = any(math.isfinite(agent.max_speed) for agent in layout.agents)
        # Scales the acceleration and the speed limit of each agent, in worlds that have it.
        self._agility = self.extra.get("agility")
        self._set_up_contact(layout.colliders)

    def _set_up_contact(self, colliders: int) -> None:
        layout = self.layout
        assert all(body.collides == (i < colliders) for i, body in enumerate(layout.bodies))
        assert not 0 < colliders < len(layout.agents)
        self._colliders = colliders
        self._near = self.distance[:, :colliders]
        self._toward = self.relative[:, :, :colliders]
        self._reach = self._contact[:, :colliders]
        # Below this gap the force is less than rounding, and exp would make denormals, which are slow.
        self._gap_floor = 1.5 * CONTACT_MARGIN * math.log(torch.finfo(self.rows.dtype).eps)

    def advance(self, impulse: Tensor) -> None:
        """Moves the agents by one time step; call `relate` afterwards.

        Args:
            impulse: `[2, A, E]`, h · a_i u_i: the change of velocity that the actions ask for.
        """
        push = self._push() if self._colliders else None
        if self._agility is not None:
            impulse = impulse * self._agility
        self._agents.add_(self.velocity, alpha=TIME_STEP)
        torch.add(impulse, self.velocity, alpha=1 - DAMPING, out=self.velocity)
        if push is not None:
            self.velocity.sub_(push, alpha=CONTACT_FORCE * TIME_STEP)
        if self._limited:
            self._limit_speed()

    def relate(self) -> None:
        """Computes `relative` and `distance` from the positions."""
        torch.sub(self._to, self._from, out=self.relative)
        torch.addcmul(self._floor, self._dx, self._dx, out=self.distance)
        self.distance.addcmul_(self._dy, self._dy).sqrt_()

    def touching(self, agents: slice, bodies: slice) -> Tensor:
        """Which agents overlap which bodies `[agents, bodies, E]` bool; never themselves."""
        # Slicing costs as much as comparing, and scenarios ask for the same slices at every step.
        key = (agents.start, agents.stop, bodies.start, bodies.stop)
        pair = self._pairs.get(key)
        if pair is None:
            pair = self._pairs[key] = (self.distance[agents, bodies], self._contact[agents, bodies])
        return pair[0] < pair[1]

    def _push(self) -> Tensor:
        """Minus the contact forces `[2, A, E]`, divided by c."""
        gap = torch.sub(self._reach, self._near).clamp_min_(self._gap_floor)
        depth = functional.softplus(gap, beta=1 / CONTACT_MARGIN, threshold=_SOFTPLUS_THRESHOLD)
        return (depth.div_(self._near) * self._toward).sum(2)

    def _limit_speed(self) -> None:
        x, y = self.velocity
        speed = (x * x).addcmul_(y, y).sqrt_()
        limit = self._limit if self._agility is None else self._limit * self._agility
        self.velocity.mul_(torch.div(limit, speed).clamp_max_(1.0))
