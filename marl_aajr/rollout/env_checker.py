"""A checker of batched environments: plays a `BatchedEnv` at random and checks every promise of the contract.

It knows nothing of our environments: `check_batched_env(lambda num_envs: MyBatch(num_envs))`.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Mapping
from contextlib import suppress
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from marl_aajr.core.environment_values import choices
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

    long = _play(make(5), steps, seed=seed)
    _check_same(long, _play(make(5), steps, seed=seed), "the same seed and actions")
    # The last bits of vectorised functions depend on where in an array a number is.
    _check_same(long.copies(2), _play(make(2), steps, seed=seed), "other copies beside it", rounding=1e-4)
    _check_resets(make(3), steps, seed=seed)
    _check_refusals(make(2), seed=seed)
    _check_restore(make, steps, seed=seed, saves=saves)


def random_actions(env: BatchedEnv, *, seed: int) -> Actions:
    """Legal actions; those of a copy do not depend on how many there are."""
    actions = {}
    for i, (agent, mask) in enumerate(env.action_mask.items()):
        space, rows = deepcopy(env.action_spaces[agent]), []
        for e in range(env.num_envs):
            space.seed(seed * 100_000 + i * 1000 + e)
            legal: Any = None if mask is None else mask[e].cpu().numpy().astype(np.int8)
            if legal is not None and isinstance(space, spaces.MultiDiscrete):
                legal = tuple(np.split(legal, space.nvec.cumsum()[:-1]))
            rows.append(space.sample() if legal is None else space.sample(legal))
        actions[agent] = torch.from_numpy(np.stack(rows)).to(env.device)
    return actions


def _promise(kept: bool | Tensor, promise: str) -> None:
    if not bool(kept):
        raise AssertionError(f"expected {promise}")


@dataclass(frozen=True)
class _Transcript:
    """Every answer of a batch: the first observations (where they were kept), then the steps."""

    first: dict[str, Tensor] = field(default_factory=dict)
    steps: list[BatchedStep] = field(default_factory=list)

    def copies(self, number: int) -> _Transcript:
        """The same of the first copies only."""

        def cut(part: Any) -> Any:
            return {a: rows[:number] for a, rows in part.items()} if isinstance(part, dict) else part[:number]

        return _Transcript(cut(self.first), [BatchedStep(*map(cut, step)) for step in self.steps])


def _play(env: BatchedEnv, steps: int, *, seed: int) -> _Transcript:
    """Plays at random, checking each answer by itself."""
    _check_declarations(env)
    played = _Transcript(env.reset(seed=seed))
    _check_obs(env, played.first)
    kept: list[tuple[Tensor, Tensor]] = []
    for t in range(steps):
        busy = torch.stack(list(env.active.values())).any(0)
        _promise(env.may_idle or busy.all(), "somebody to act in every copy")
        step = env.step(random_actions(env, seed=seed * 1000 + t))
        _check_step(env, step)
        kept += [(value, value.clone()) for value in (*step.obs.values(), *step.rewards.values())]
        played.steps.append(step)
    _promise(all(torch.equal(value, copy) for value, copy in kept), "answers that later steps do not change")
    over = torch.stack([step.episode_over for step in played.steps])
    _promise(over.any(0).all(), f"every copy to end an episode in {steps} steps; play longer")
    env.close()
    return played


def _check_declarations(env: BatchedEnv) -> None:
    agents = env.possible_agents
    _promise(isinstance(agents, tuple) and bool(agents), "possible_agents as a tuple")
    _promise(len(set(agents)) == len(agents), "each agent once")
    for name in ("observation_spaces", "action_spaces", "teams"):
        _promise(tuple(getattr(env, name)) == agents, f"{name} to have every agent, in order")
    _promise(isinstance(env.device, torch.device), "device as a torch.device")


def _check_obs(env: BatchedEnv, obs: Mapping[str, Tensor]) -> None:
    """Observations, masks and who must act, after a reset or a step."""
    for given in (obs, env.active, env.action_mask):
        _promise(tuple(given) == env.possible_agents, f"every agent, in order, got {list(given)}")
    for agent, seen in obs.items():
        space, active, what = env.observation_spaces[agent], env.active[agent], f"obs[{agent!r}]"
        _check_flag(active, env, f"active[{agent!r}]")
        shape = (env.num_envs, *(space.shape or ()))
        _promise(seen.shape == shape, f"{what} [E, *space], got {seen.shape}")
        _promise(seen.device.type == env.device.type, f"{what} on {env.device}, got {seen.device}")
        _promise(str(seen.dtype) == f"torch.{space.dtype}", f"{what} in {space.dtype}, got {seen.dtype}")
        _promise(not seen[~active].any(), f"{what} to be 0 where it is not active")
        _promise(_contains(space, seen[active]), f"{what} in its space")
        _check_mask(env, agent, active)


def _check_mask(env: BatchedEnv, agent: str, active: Tensor) -> None:
    mask, space = env.action_mask[agent], env.action_spaces[agent]
    if mask is None:
        return
    _promise(choices(space) is not None, f"a mask for discrete actions only, got one for {agent!r}")
    _promise(mask.dtype == torch.bool, f"action_mask[{agent!r}] in bool")
    _promise(mask.shape == (env.num_envs, choices(space)), f"action_mask[{agent!r}] [E, n]")
    _promise(mask[~active].all(), f"action_mask[{agent!r}] to be True where it is not active")
    _promise(mask[active].any(1).all(), f"a legal action for {agent!r}")


def _check_step(env: BatchedEnv, step: BatchedStep) -> None:
    _check_obs(env, step.obs)
    _check_flag(step.episode_over, env, "episode_over")
    _promise(len(step.infos) == env.num_envs, "infos of every copy")
    anybody = torch.zeros_like(step.episode_over)
    for agent, space in env.observation_spaces.items():
        rewards, seen = step.rewards[agent], step.final_obs[agent]
        _promise(rewards.shape == (env.num_envs,), f"rewards[{agent!r}] [E], got {tuple(rewards.shape)}")
        _promise(rewards.is_floating_point(), f"rewards[{agent!r}] in floats")
        _promise(rewards.isfinite().all(), f"rewards[{agent!r}] to be finite")
        _check_flag(step.terminations[agent], env, f"terminations[{agent!r}]")
        _check_flag(step.truncations[agent], env, f"truncations[{agent!r}]")
        ended = _ended(step)[agent]
        _promise(_contains(space, seen[ended]), f"final_obs[{agent!r}] in its space where it ended")
        again = env.active[agent] & ended & ~step.episode_over
        _promise(not again.any(), f"{agent!r} not to act after its end")
        anybody |= ended
    _promise(anybody[step.episode_over].all(), "somebody to end where an episode is over")
    if env.keeps_final_states and env.state_space is not None and step.episode_over.any():
        last = env.final_state()[step.episode_over]
        _promise(_contains(env.state_space, last), "final_state() in its space where an episode is over")


def _check_flag(flag: Tensor, env: BatchedEnv, name: str) -> None:
    _promise(flag.shape == (env.num_envs,) and flag.dtype == torch.bool, f"{name} [E] bool")


def _contains(space: spaces.Space[Any], rows: Tensor) -> bool:
    return all(space.contains(row) for row in rows.cpu().numpy())


def _check_same(one: _Transcript, other: _Transcript, what: str, *, rounding: float = 0.0) -> None:
    def check(name: str, a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> None:
        for agent in a:
            same = torch.allclose(a[agent].double(), b[agent].double(), rtol=rounding, atol=rounding)
            _promise(same, f"the same {name} with {what}")

    check("first observations", one.first, other.first)
    for s, r in zip(one.steps, other.steps, strict=True):
        check("episode_over", {"": s.episode_over}, {"": r.episode_over})
        for name in ("obs", "rewards", "terminations", "truncations"):
            check(name, getattr(s, name), getattr(r, name))
        check("final_obs", *({a: x.final_obs[a][ended] for a, ended in _ended(s).items()} for x in (s, r)))


def _ended(step: BatchedStep) -> dict[str, Tensor]:
    return {agent: end | step.truncations[agent] for agent, end in step.terminations.items()}


def _check_resets(env: BatchedEnv, steps: int, *, seed: int) -> None:
    first = env.reset(seed=seed)
    with suppress(NotImplementedError):  # not every environment has one
        _promise(len(env.state()) == env.num_envs, "state() [E, ...]")
    if env.state_space is not None:
        shape, given = (env.num_envs, *(env.state_space.shape or ())), env.state().shape
        _promise(given == shape, f"state() of shape {shape}, got {tuple(given)}")
    for t in range(steps // 2):
        env.step(random_actions(env, seed=t))
    again = env.reset(seed=seed)
    same = all(torch.equal(first[agent], again[agent]) for agent in first)
    _promise(same, "reset to forget what was played")


def _check_refusals(env: BatchedEnv, *, seed: int) -> None:
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
        _promise(agent in message, wanted)


def _check_restore(make: Make, steps: int, *, seed: int, saves: bool) -> None:
    """A batch goes on as the one whose state it was given, whatever it was doing before."""
    saved = make(3)
    _check_refused(saved.get_state, "get_state before reset")
    saved.reset(seed=seed)
    for t in range(steps // 3):
        saved.step(random_actions(saved, seed=t))
    if not saves:
        _check_refused(saved.get_state, "get_state of what cannot be saved")
        return
    state = saved.get_state()
    written = pickle.dumps(state)
    _check_refused(lambda: make(2).set_state(state), "a state of 3 copies in a batch of 2")
    active, chosen, played = saved.active, [], _Transcript()
    for t in range(steps):
        chosen.append(random_actions(saved, seed=seed + t))
        played.steps.append(saved.step(chosen[-1]))
    busy = make(3)
    busy.reset(seed=seed + 1)
    busy.step(random_actions(busy, seed=seed))
    # The last one goes back to where it was: its own steps must not have changed the state.
    for other, given in ((make(3), pickle.loads(written)), (busy, state), (saved, state)):
        other.set_state(given)
        now = other.active
        _promise(all(torch.equal(now[a], active[a]) for a in active), "the same agents to act when restored")
        again = _Transcript(steps=[other.step(actions) for actions in chosen])
        _check_same(played, again, "a restored state")


def _check_refused(call: Callable[[], Any], what: str) -> None:
    try:
        call()
    except ValueError:
        return
    raise AssertionError(f"expected {what} to be refused with a ValueError")
