"""The critic of the Robust Sarsa attack: what a frozen victim will earn, learned from watching it.

    L(θ) = E[(r + γ Q̄(s', a') − Q(s, a))²] + λ E[max_{‖â − a‖_∞ ≤ ρ} (Q(s, â) − Q(s, a))²]

Q̄ is a slowly following copy. The second term keeps Q smooth in the action, so that its gradient says where
worse actions lie instead of where Q is ill fitted. Its maximum is bounded from above by interval arithmetic.
Source: Zhang 2020 (arXiv 2003.08938), section 3.5; the interval bound is the convex relaxation used there.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from copy import deepcopy
from dataclasses import dataclass, fields
from itertools import pairwise

import torch
from torch import Tensor, nn

from marl_aajr.core.distributions import ActionDistribution, Categorical, MultiCategorical
from marl_aajr.rollout.batched_env import BatchedEnv, BatchedStep
from marl_aajr.victims import Victim
from marl_aajr.victims.stepper import GeneratorSampler, Stepper

_HIDDEN = 64
_MINIBATCH = 512
_LEARNING_RATE = 1e-3
_FOLLOW = 0.01
"""How much of Q goes into Q̄ after each update."""


@dataclass(frozen=True)
class Transitions:
    """Transitions of one module's agents, `N` rows.

    Attributes:
        obs: network inputs s, `[N, d]`.
        actions: encoded actions a, `[N, k]`; see `encode`.
        rewards: what the agent's team earned until the next decision, `[N]`.
        next_obs: s', `[N, d]`; zero where the episode is over.
        next_actions: a', `[N, k]`.
        over: whether the episode ended, `[N]` bool. A cut-off counts as an end: returns end there too.
    """

    obs: Tensor
    actions: Tensor
    rewards: Tensor
    next_obs: Tensor
    next_actions: Tensor
    over: Tensor

    def __len__(self) -> int:
        return len(self.rewards)


class ActionValue(nn.Module):
    """Q(s, a): an MLP of two hidden ReLU layers, with interval bounds in the action.

    Args:
        features: d.
        action_features: k.
        generator: of the initial weights.
    """

    def __init__(self, features: int, action_features: int, *, generator: torch.Generator) -> None:
        super().__init__()
        self.features = features
        sizes = (features + action_features, _HIDDEN, _HIDDEN, 1)
        # Built on the meta device: layers that initialise themselves draw global random numbers.
        layers = [nn.Linear(i, o, device="meta") for i, o in pairwise(sizes)]
        self.hidden = nn.ModuleList(layer.to_empty(device=generator.device) for layer in layers[:-1])
        self.last = layers[-1].to_empty(device=generator.device)
        for layer in layers:
            bound = layer.in_features**-0.5
            nn.init.uniform_(layer.weight, -bound, bound, generator=generator)
            nn.init.uniform_(layer.bias, -bound, bound, generator=generator)

    def forward(self, obs: Tensor, actions: Tensor) -> Tensor:
        """Q, `[..., d], [..., k] -> [...]`."""
        h = torch.cat([obs, actions], -1)
        for layer in self.hidden:
            h = torch.relu(layer(h))
        value: Tensor = self.last(h)
        return value.squeeze(-1)

    def bounds(self, obs: Tensor, actions: Tensor, *, radius: float) -> tuple[Tensor, Tensor]:
        """Lower and upper bounds of Q(s, â) over ‖â − a‖_∞ ≤ radius, each `[...]`."""
        centre = torch.cat([obs, actions], -1)
        spread = torch.cat([torch.zeros_like(obs), torch.full_like(actions, radius)], -1)
        for layer in self.hidden:
            assert isinstance(layer, nn.Linear)
            centre, spread = layer(centre), spread @ layer.weight.abs().T
            low, high = torch.relu(centre - spread), torch.relu(centre + spread)
            centre, spread = (low + high) / 2, (high - low) / 2
        centre, spread = self.last(centre), spread @ self.last.weight.abs().T
        return (centre - spread).squeeze(-1), (centre + spread).squeeze(-1)


def encode(distribution: ActionDistribution, outputs: Tensor, actions: Tensor | None) -> Tensor:
    """Actions as Q reads them, `[..., k]`: one-hot for discrete ones, as they are for Gaussian ones.

    Without `actions` the expected ones at these outputs, differentiable: probabilities, or the mean.
    """
    if isinstance(distribution, MultiCategorical):
        parts = distribution.split(outputs)
        each = [None] * len(parts) if actions is None else list(actions.unbind(-1))
        return torch.cat([_one_hot(y, a) for y, a in zip(parts, each, strict=True)], -1)
    if isinstance(distribution, Categorical):
        return _one_hot(outputs, actions)
    return distribution.mode(outputs) if actions is None else actions


def _one_hot(logits: Tensor, actions: Tensor | None) -> Tensor:
    if actions is None:
        return torch.softmax(logits, -1)
    return nn.functional.one_hot(actions, logits.shape[-1]).to(logits.dtype)


@torch.no_grad()
def watch(
    victim: Victim,
    env: BatchedEnv,
    *,
    agents: Collection[str],
    decisions: int,
    seed: int,
    generator: torch.Generator,
) -> dict[str, Transitions]:
    """Let the victim play with sampled actions, and record the transitions of each module of `agents`.

    Args:
        victim: plays all agents.
        env: copies of its environment.
        agents: the agents whose transitions are kept, all of one team.
        decisions: environment steps, over all copies.
        seed: of the episodes.
        generator: of the actions.

    Returns:
        Module id -> transitions.
    """
    buffers = {agent: _TransitionBuffer(env.num_envs) for agent in env.possible_agents if agent in agents}
    sides = {env.teams[agent] for agent in buffers}
    team = [agent for agent in env.possible_agents if env.teams[agent] in sides]
    groups = [[agent] for agent in env.possible_agents]
    stepper = Stepper(victim, victim.memory(env.num_envs), groups=groups)
    kinds = {agent: victim.distribution(agent) for agent in env.possible_agents}
    sampler = GeneratorSampler(kinds, env.num_envs, generator)
    obs = env.reset(seed=seed)
    for _ in range(max(decisions // env.num_envs, 2)):
        batches = stepper.see(obs, active=env.active, action_mask=env.action_mask)
        outputs = stepper.decide(batches)
        chosen = sampler(outputs)
        for batch in batches:
            if (agent := batch.agent) in buffers:
                inputs = batch.everywhere(batch.inputs, env.num_envs)[agent]
                encoded = encode(kinds[agent], outputs[agent], chosen[agent])
                buffers[agent].decide(env.active[agent], inputs, encoded)
        actions = {agent: victim.to_environment(agent, action) for agent, action in chosen.items()}
        step = env.step(actions)
        stepper.memory.forget(step.episode_over)
        earned = torch.stack([step.rewards[agent] for agent in team]).sum(0)
        for agent, buffer in buffers.items():
            buffer.earn(earned, _out(step, agent))
        obs = step.obs
    found: dict[str, list[Transitions]] = {}
    for agent, buffer in buffers.items():
        found.setdefault(victim.module_of[agent], []).extend(buffer.transitions)
    return {module_id: _joined(parts) for module_id, parts in found.items()}


def _out(step: BatchedStep, agent: str) -> Tensor:
    return step.terminations[agent] | step.truncations[agent] | step.episode_over


class _TransitionBuffer:
    """The transitions of one agent in every copy: its last decision, and what was earned since."""

    def __init__(self, num_envs: int) -> None:
        self.open = torch.zeros(num_envs, dtype=torch.bool)
        self.transitions: list[Transitions] = []
        self.earned = torch.zeros(num_envs)
        self.obs = self.actions = torch.zeros(num_envs, 0)

    def decide(self, active: Tensor, obs: Tensor, actions: Tensor) -> None:
        if not self.obs.shape[1]:
            self.obs, self.actions = torch.zeros_like(obs), torch.zeros_like(actions)
        self._close(self.open & active, obs, actions, over=False)
        self.obs = torch.where(active[:, None], obs, self.obs)
        self.actions = torch.where(active[:, None], actions, self.actions)
        self.earned = self.earned.masked_fill(active, 0.0)
        self.open = self.open | active

    def earn(self, rewards: Tensor, out: Tensor) -> None:
        self.earned = self.earned + rewards
        self._close(self.open & out, torch.zeros_like(self.obs), torch.zeros_like(self.actions), over=True)
        self.open = self.open & ~out

    def _close(self, where: Tensor, obs: Tensor, actions: Tensor, *, over: bool) -> None:
        if not where.any():
            return
        rows = where.nonzero().flatten()
        ends = torch.full((len(rows),), over)
        own = (self.obs[rows], self.actions[rows], self.earned[rows])
        self.transitions.append(Transitions(*own, obs[rows], actions[rows], ends))


def _joined(parts: list[Transitions]) -> Transitions:
    names = [f.name for f in fields(Transitions)]
    return Transitions(**{name: torch.cat([getattr(part, name) for part in parts]) for name in names})


def fit_action_value(
    seen: Transitions,
    *,
    discount: float,
    robustness: float,
    radius: float,
    updates: int,
    generator: torch.Generator,
) -> ActionValue:
    """Q of the frozen victim, by Sarsa with the robustness regulariser; the module's docstring has the loss.

    Rewards are divided by their root mean square first: only the shape of Q matters to an attack.

    Args:
        seen: transitions.
        discount: γ.
        robustness: λ.
        radius: ρ.
        updates: of Adam, on minibatches of 512 rows.
        generator: of weights and minibatches.
    """
    q = ActionValue(seen.obs.shape[1], seen.actions.shape[1], generator=generator)
    slow = deepcopy(q).requires_grad_(False)
    optimizer = torch.optim.Adam(q.parameters(), lr=_LEARNING_RATE)
    rewards = seen.rewards / _size(seen.rewards)
    for rows in _minibatches(len(seen), updates, generator):
        obs, actions = seen.obs[rows], seen.actions[rows]
        with torch.no_grad():
            ahead = slow(seen.next_obs[rows], seen.next_actions[rows])
            target = rewards[rows] + discount * ahead.masked_fill(seen.over[rows], 0.0)
        value = q(obs, actions)
        low, high = q.bounds(obs, actions, radius=radius)
        wobble = torch.maximum((high - value).square(), (value - low).square())
        loss = (target - value).square().mean() + robustness * wobble.mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            for follower, leader in zip(slow.parameters(), q.parameters(), strict=True):
                follower.lerp_(leader, _FOLLOW)
    return q.requires_grad_(False)


def _size(rewards: Tensor) -> Tensor:
    return rewards.square().mean().sqrt().clamp_min(1e-6)


def _minibatches(rows: int, updates: int, generator: torch.Generator) -> Iterator[Tensor]:
    for _ in range(updates):
        yield torch.randint(rows, (min(_MINIBATCH, rows),), generator=generator)
