"""Robust Sarsa: an attack that learns Q of the frozen victim, then makes it take actions of low Q.

    L(θ) = E[(r + γ Q̄(s', a') − Q(s, a))²] + λ E[max_{‖â − a‖_∞ ≤ ρ} (Q(s, â) − Q(s, a))²]

Q̄ is a slowly following copy. The second term keeps Q smooth in the action, so that its gradient says where
worse actions lie instead of where Q is ill fitted. Its maximum is bounded from above by interval arithmetic,
the convex relaxation of the source.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from copy import deepcopy
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, NamedTuple, Self

import torch
from torch import Tensor

from marl_aajr.adversaries.action_value import ActionValue, encode, pull_encoded
from marl_aajr.adversaries.learned import FittedAttack
from marl_aajr.attacks import PGD, Attack
from marl_aajr.core.checks import grouped, positive, proportion, whole
from marl_aajr.core.objectives import Clean, Objective
from marl_aajr.core.policy import Policy
from marl_aajr.rollout.batched_env import BatchedEnv
from marl_aajr.victims import Victim
from marl_aajr.victims.stepper import GeneratorSampler, Stepper

_MINIBATCH = 512
_LEARNING_RATE = 1e-3
_FOLLOW = 0.01
"""How much of Q goes into Q̄ after each update."""


@dataclass(frozen=True, kw_only=True)
class RobustSarsa(PGD, FittedAttack, mixes_sizes=True):
    """`PGD` on −Q(s, π(s + δ)): Q is learned from watching the victim, one for each module.

    Q is asked at the true observation, so it says what the action is really worth; the actor is asked at the
    false one. For discrete actions π are the probabilities, for Gaussian ones the mean.

    Attributes:
        experience: environment steps to learn from, over all copies.
        updates: of Q.
        discount: γ.
        robustness: λ, weight of Q's smoothness in the action; 0: plain Sarsa.
        radius: ρ of that smoothness, in units of the action (of probability for discrete ones).
        values: module id -> Q; None until `fit`.

    Raises:
        ValueError: a setting out of its range, or an attack that was not fitted.

    Source: Zhang 2020 (arXiv 2003.08938), section 3.5. Theirs is for continuous actions; reading a discrete
    action as a vector of probabilities is ours.
    """

    name: ClassVar[str] = "robust-sarsa"
    summary: ClassVar[str] = "projected gradient descent on a Q function fitted to the frozen victim"

    objective: str | Objective = "value"
    experience: int = 20_000
    updates: int = 2000
    discount: float = 0.9
    robustness: float = 0.1
    radius: float = 0.1
    values: Mapping[str, ActionValue] | None = field(default=None, repr=False, compare=False)
    _q: ActionValue | None = field(default=None, repr=False, compare=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        whole("experience", self.experience)
        whole("updates", self.updates)
        positive("robustness", self.robustness, zero=True)
        positive("radius", self.radius, zero=True)
        proportion("a discount", self.discount)

    @property
    def ready(self) -> bool:
        return self.values is not None

    def fit(self, victim: Victim, env: BatchedEnv, *, agents: Collection[str], seed: int, **_: Any) -> Self:
        generator = torch.Generator().manual_seed(seed)
        seen = watch(victim, env, agents=agents, decisions=self.experience, seed=seed, generator=generator)
        values = {name: self.learn(own, generator=generator) for name, own in seen.items()}
        return replace(self, values=values)

    def learn(self, seen: Transitions, *, generator: torch.Generator) -> ActionValue:
        """Q of the frozen victim, by the loss in the module's docstring on minibatches of 512 transitions.

        Rewards are divided by their root mean square first: only the shape of Q matters to an attack.
        """
        q = ActionValue(seen.obs.shape[1], seen.actions.shape[1], generator=generator)
        slow = deepcopy(q).requires_grad_(False)
        optimizer = torch.optim.Adam(q.parameters(), lr=_LEARNING_RATE)
        rewards = seen.rewards / seen.rewards.square().mean().sqrt().clamp_min(1e-6)
        for _ in range(self.updates):
            rows = torch.randint(len(rewards), (min(_MINIBATCH, len(rewards)),), generator=generator)
            obs, actions = seen.obs[rows], seen.actions[rows]
            with torch.no_grad():
                ahead = slow(seen.next_obs[rows], seen.next_actions[rows])
                target = rewards[rows] + self.discount * ahead.masked_fill(seen.over[rows], 0.0)
            value = q(obs, actions)
            low, high = q.bounds(obs, actions, radius=self.radius)
            wobble = torch.maximum((high - value).square(), (value - low).square())
            loss = (target - value).square().mean() + self.robustness * wobble.mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            with torch.no_grad():
                for follower, leader in zip(slow.parameters(), q.parameters(), strict=True):
                    follower.lerp_(leader, _FOLLOW)
        return q.requires_grad_(False)

    def against(self, victim: Victim, agent: str) -> Attack:
        if self.values is None:
            raise self.unfitted
        return replace(self, _q=self.values[victim.module_of[agent]])

    def clean(self, policy: Policy, obs: Tensor, outputs: Tensor) -> Clean:
        if self._q is None:
            raise ValueError(f"expected fit() and against() before {self.name} runs, got neither")
        return Clean(outputs, values=_ValueOfPerturbed(self._q, policy, obs))


@dataclass(frozen=True, eq=False)
class _ValueOfPerturbed:
    """Q at the true observation of the expected action at a perturbed one, `[B, d] -> [B]`."""

    q: ActionValue
    policy: Policy
    obs: Tensor

    def __call__(self, seen: Tensor) -> Tensor:
        return self.q(self.obs, encode(self.policy.distribution, self.policy(seen), None))

    def vjp(self, seen: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        """Q, and c ↦ its derivative by the perturbed observation, once; see `Policy.vjp`."""
        outputs, pull = self.policy.vjp(seen)
        distribution = self.policy.distribution
        value, by_features = self.q.mlp.vjp(torch.cat([self.obs, encode(distribution, outputs, None)], -1))

        def pull_through(cotangent: Tensor) -> Tensor:
            by_action = by_features(cotangent)[..., self.obs.shape[-1] :]
            return pull(pull_encoded(distribution, outputs, by_action))

        return value.squeeze(-1), pull_through

    def select(self, index: Tensor) -> _ValueOfPerturbed:
        return _ValueOfPerturbed(self.q, self.policy.select(index), self.obs[index])


class Transitions(NamedTuple):
    """Transitions of one module's agents, `N` rows.

    Attributes:
        obs: network inputs s, `[N, d]`.
        actions: encoded actions a, `[N, k]`; see `encode`.
        rewards: what the agent's team earned until the next decision, or to the end of the episode, `[N]`.
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
    """The transitions of agents of one team, by module, while the victim plays by sampled actions.

    Args:
        victim: plays all agents.
        env: copies of its environment.
        agents: the agents whose transitions are kept.
        decisions: environment steps, over all copies.
        seed: of the episodes.
        generator: of the actions.
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
        step = env.step({agent: victim.to_environment(agent, action) for agent, action in chosen.items()})
        stepper.memory.forget(step.episode_over)
        earned = torch.stack([step.rewards[agent] for agent in team]).sum(0)
        for buffer in buffers.values():
            buffer.earn(earned, step.episode_over)
        obs = step.obs
    found = grouped((victim.module_of[a], seen) for a, kept in buffers.items() for seen in kept.transitions)
    return {name: Transitions(*map(torch.cat, zip(*parts, strict=True))) for name, parts in found.items()}


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

    def earn(self, rewards: Tensor, over: Tensor) -> None:
        self.earned = self.earned + rewards
        self._close(self.open & over, torch.zeros_like(self.obs), torch.zeros_like(self.actions), over=True)
        self.open = self.open & ~over

    def _close(self, where: Tensor, obs: Tensor, actions: Tensor, *, over: bool) -> None:
        if where.any():
            own = (self.obs[where], self.actions[where], self.earned[where])
            ends = torch.full_like(where[where], over)
            self.transitions.append(Transitions(*own, obs[where], actions[where], ends))
