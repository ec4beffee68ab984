"""A checker of batched environments: plays a `BatchedEnv` at random and checks every promise of the contract.

It knows nothing of our environments: `check_batched_env(lambda num_envs: MyBatch(num_envs))`.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import torch
from gymnasium import spaces
from torch import Tensor

from marl_aajr.rollout.batched_env import BatchedEnv, BatchedStep

Make = Callable[[int], BatchedEnv]
Actions = dict[str, Tensor]


def check_batched_env(
    build: Make, *, steps: int = 60, seed: int = 3, saves: bool = True, final_states: bool = True
) -> None:
    """Plays batches that `build(num_envs)` builds and checks every promise of `BatchedEnv`.

    Args:
        build: Builds a batch of so many copies; equal batches every time.
        steps: Number of steps to play; more than an episode, so that resets are seen.
        seed: Of the batches and of the random actions.
        saves: Whether the batch can be saved; if not, `get_state` must say so.
        final_states: Whether a batch that has states has them when an episode is over, too.

    Raises:
        AssertionError: A broken promise of the contract, with the agent.
    """

    def make(num_envs: int) -> BatchedEnv:
        env = build(num_envs)
        env.keeps_final_states = final_states and env.state_space is not None
        return env

    long = play(make(5), steps, seed=seed)
    check_same(long, play(make(5), steps, seed=seed), "the same seed and actions")
    # The last bits of vectorised functions depend on where in an array a number is.
    check_same(long.copies(2), play(make(2), steps, seed=seed), "other copies beside it", rounding=1e-4)
    check_resets(make(3), steps, seed=seed)
    check_refusals(make(2), seed=seed)
    check_restore(make, steps, seed=seed, saves=saves)


def promise(kept: bool | Tensor, what: str) -> None:
    """Raises `AssertionError` unless it was kept."""
    if not bool(kept):
        raise AssertionError(f"expected {what}")


@dataclass
class Transcript:
    """Everything that a batch said, step by step."""

    obs: list[dict[str, Tensor]] = field(default_factory=list)
    steps: list[BatchedStep] = field(default_factory=list)

    def take(self, step: BatchedStep) -> None:
        """Take in one answer."""
        self.obs.append(step.obs)
        self.steps.append(step)

    def copies(self, number: int) -> Transcript:
        """The same of the first copies only."""
        steps = [BatchedStep(*(_cut(part, number) for part in step)) for step in self.steps]
        return Transcript([_cut(obs, number) for obs in self.obs], steps)


def _cut(part: Any, number: int) -> Any:
    if isinstance(part, Mapping):
        return {agent: value[:number] for agent, value in part.items()}
    return part[:number]


def play(env: BatchedEnv, steps: int, *, seed: int) -> Transcript:
    """Plays at random, checking each answer by itself."""
    check_declarations(env)
    said = Transcript([env.reset(seed=seed)])
    check_obs(env, said.obs[0])
    kept: list[tuple[Tensor, Tensor]] = []
    for t in range(steps):
        busy = torch.stack(list(env.active.values())).any(0)
        promise(env.may_idle or busy.all(), "somebody to act in every copy")
        step = env.step(random_actions(env, seed=seed * 1000 + t))
        check_step(env, step)
        kept += [(value, value.clone()) for value in (*step.obs.values(), *step.rewards.values())]
        said.take(step)
    promise(all(torch.equal(value, copy) for value, copy in kept), "answers that later steps do not change")
    over = torch.stack([step.episode_over for step in said.steps])
    promise(over.any(0).all(), f"every copy to end an episode in {steps} steps; play longer")
    env.close()
    return said


def check_declarations(env: BatchedEnv) -> None:
    """The attributes fit together."""
    agents = env.possible_agents
    promise(isinstance(agents, tuple) and bool(agents), "possible_agents as a tuple")
    promise(len(set(agents)) == len(agents), "each agent once")
    for name in ("observation_spaces", "action_spaces", "teams"):
        promise(tuple(getattr(env, name)) == agents, f"{name} to have every agent, in order")
    promise(isinstance(env.device, torch.device), "device as a torch.device")


def check_obs(env: BatchedEnv, obs: Mapping[str, Tensor]) -> None:
    """Observations, masks and who must act, after a reset or a step."""
    for given in (obs, env.active, env.action_mask):
        promise(tuple(given) == env.possible_agents, f"every agent, in order, got {list(given)}")
    for agent, seen in obs.items():
        space, active = env.observation_spaces[agent], env.active[agent]
        is_flag(active, env, f"active[{agent!r}]")
        shape = (env.num_envs, *(space.shape or ()))
        promise(seen.shape == shape, f"obs[{agent!r}] [E, *space], got {seen.shape}")
        promise(seen.device.type == env.device.type, f"obs[{agent!r}] on {env.device}, got {seen.device}")
        promise(
            str(seen.dtype) == f"torch.{space.dtype}", f"obs[{agent!r}] in {space.dtype}, got {seen.dtype}"
        )
        promise(not seen[~active].any(), f"obs[{agent!r}] to be 0 where it is not active")
        promise(contains(space, seen[active]), f"obs[{agent!r}] in its space")
        check_mask(env, agent, active)


def check_mask(env: BatchedEnv, agent: str, active: Tensor) -> None:
    """The legal actions of one agent, where the game has such."""
    mask, space = env.action_mask[agent], env.action_spaces[agent]
    if mask is None:
        return
    promise(isinstance(space, spaces.Discrete), f"a mask for discrete actions only, got one for {agent!r}")
    promise(mask.dtype == torch.bool, f"action_mask[{agent!r}] in bool")
    promise(mask.shape == (env.num_envs, getattr(space, "n", -1)), f"action_mask[{agent!r}] [E, n]")
    promise(mask[~active].all(), f"action_mask[{agent!r}] to be True where it is not active")
    promise(mask[active].any(1).all(), f"a legal action for {agent!r}")


def check_step(env: BatchedEnv, step: BatchedStep) -> None:
    """One answer."""
    check_obs(env, step.obs)
    is_flag(step.episode_over, env, "episode_over")
    promise(len(step.infos) == env.num_envs, "infos of every copy")
    anybody = torch.zeros_like(step.episode_over)
    for agent, space in env.observation_spaces.items():
        rewards, seen = step.rewards[agent], step.final_obs[agent]
        promise(rewards.shape == (env.num_envs,), f"rewards[{agent!r}] [E], got {tuple(rewards.shape)}")
        promise(rewards.is_floating_point(), f"rewards[{agent!r}] in floats")
        promise(rewards.isfinite().all(), f"rewards[{agent!r}] to be finite")
        is_flag(step.terminations[agent], env, f"terminations[{agent!r}]")
        is_flag(step.truncations[agent], env, f"truncations[{agent!r}]")
        ended = step.terminations[agent] | step.truncations[agent]
        promise(contains(space, seen[ended]), f"final_obs[{agent!r}] in its space where it ended")
        again = env.active[agent] & ended & ~step.episode_over
        promise(not again.any(), f"{agent!r} not to act after its end")
        anybody |= ended
    promise(anybody[step.episode_over].all(), "somebody to end where an episode is over")
    if env.keeps_final_states and env.state_space is not None and step.episode_over.any():
        last = env.final_state()[step.episode_over]
        promise(contains(env.state_space, last), "final_state() in its space where an episode is over")


def is_flag(flag: Tensor, env: BatchedEnv, name: str) -> None:
    """`[E]` bool."""
    promise(flag.shape == (env.num_envs,) and flag.dtype == torch.bool, f"{name} [E] bool")


def contains(space: spaces.Space[Any], rows: Tensor) -> bool:
    """Whether a space has all rows."""
    return all(space.contains(row) for row in rows.cpu().numpy())


def check_same(one: Transcript, other: Transcript, what: str, *, rounding: float = 0.0) -> None:
    """Two batches said the same."""

    def same(a: Tensor, b: Tensor) -> bool:
        return torch.allclose(a.double(), b.double(), rtol=rounding, atol=rounding)

    for a, b in zip(one.obs, other.obs, strict=True):
        promise(all(same(a[agent], b[agent]) for agent in a), f"the same observations with {what}")
    for s, r in zip(one.steps, other.steps, strict=True):
        promise(torch.equal(s.episode_over, r.episode_over), f"episodes to end alike with {what}")
        for name in ("rewards", "terminations", "truncations"):
            a, b = getattr(s, name), getattr(r, name)
            promise(all(same(a[agent], b[agent]) for agent in a), f"the same {name} with {what}")
        for agent in s.obs:
            ended = s.terminations[agent] | s.truncations[agent]
            last, other_last = s.final_obs[agent][ended], r.final_obs[agent][ended]
            promise(same(last, other_last), f"the same final_obs with {what}")


def check_resets(env: BatchedEnv, steps: int, *, seed: int) -> None:
    """A reset begins anew."""
    first = env.reset(seed=seed)
    with suppress(NotImplementedError):  # not every environment has one
        promise(len(env.state()) == env.num_envs, "state() [E, ...]")
    if env.state_space is not None:
        shape = (env.num_envs, *(env.state_space.shape or ()))
        promise(env.state().shape == shape, f"state() of shape {shape}, got {tuple(env.state().shape)}")
    for t in range(steps // 2):
        env.step(random_actions(env, seed=t))
    again = env.reset(seed=seed)
    same = all(torch.equal(first[agent], again[agent]) for agent in first)
    promise(same, "reset to forget what was played")


def check_refusals(env: BatchedEnv, *, seed: int) -> None:
    """Wrong actions are refused with a `ValueError` that names the agent."""
    env.reset(seed=seed)
    while env.may_idle and not torch.stack(list(env.active.values())).any():
        env.step(random_actions(env, seed=seed))
    actions = random_actions(env, seed=seed)
    agent = next(agent for agent, who in env.active.items() if who.any())
    missing = {other: action for other, action in actions.items() if other != agent}
    wrong: list[Actions] = [missing, {**actions, agent: actions[agent][:1]}]
    if not isinstance(env.action_spaces[agent], spaces.Box):
        wrong.append({**actions, agent: actions[agent].float() + 0.5})
    for given in wrong:
        message = ""
        try:
            env.step(given)
        except ValueError as error:
            message = str(error)
        wanted = f"a ValueError that names {agent!r} for {given.get(agent)}, got {message!r}"
        promise(agent in message, wanted)


def check_restore(make: Make, steps: int, *, seed: int, saves: bool) -> None:
    """A batch goes on as the one whose state it was given, whatever it was doing before."""
    saved = make(3)
    is_refused(saved.get_state, "get_state before reset to be refused with a ValueError")
    saved.reset(seed=seed)
    for t in range(steps // 3):
        saved.step(random_actions(saved, seed=t))
    if not saves:
        is_refused(saved.get_state, "get_state to work, or to be refused with a ValueError")
        return
    state = saved.get_state()
    written = pickle.dumps(state)
    is_refused(lambda: make(2).set_state(state), "a state of 3 copies to be refused by 2 with a ValueError")
    active = saved.active
    choices = []
    said = Transcript()
    for t in range(steps):
        choices.append(random_actions(saved, seed=seed + t))
        said.take(saved.step(choices[-1]))
    busy = make(3)
    busy.reset(seed=seed + 1)
    busy.step(random_actions(busy, seed=seed))
    # The last one goes back to where it was: its own steps must not have changed the state.
    for other, given in ((make(3), pickle.loads(written)), (busy, state), (saved, state)):
        other.set_state(given)
        now = other.active
        promise(all(torch.equal(now[a], active[a]) for a in active), "the same agents to act when restored")
        again = Transcript()
        for actions in choices:
            again.take(other.step(actions))
        check_same(said, again, "a restored state")


def is_refused(call: Callable[[], Any], what: str) -> None:
    """It raises a `ValueError`."""
    try:
        call()
    except ValueError:
        return
    promise(False, what)


def random_actions(env: BatchedEnv, *, seed: int) -> Actions:
    """Legal actions; those of a copy do not depend on how many there are."""
    masks = env.action_mask
    return {
        agent: _random_rows(env.action_spaces[agent], masks[agent], env, seed * 100 + i)
        for i, agent in enumerate(env.possible_agents)
    }


def _random_rows(space: spaces.Space[Any], mask: Tensor | None, env: BatchedEnv, seed: int) -> Tensor:
    rows = []
    for e in range(env.num_envs):
        generator = torch.Generator().manual_seed(seed * 1000 + e)
        if isinstance(space, spaces.Discrete):
            legal = torch.ones(int(space.n)) if mask is None else mask[e].float().cpu()
            rows.append(torch.multinomial(legal, 1, generator=generator)[0])
        elif isinstance(space, spaces.MultiDiscrete):
            shares = torch.rand(space.nvec.shape, generator=generator)
            rows.append((shares * torch.as_tensor(space.nvec)).long())
        elif isinstance(space, spaces.Box):
            low, high = torch.as_tensor(space.low), torch.as_tensor(space.high)
            rows.append(low + (high - low) * torch.rand(space.shape, generator=generator))
        else:
            raise ValueError(f"expected Discrete, MultiDiscrete or Box actions, got {space}")
    return torch.stack(rows).to(env.device)
