"""RLlib's modules as the policies of the sampling loop (`marl_aajr.rollout.collector`)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import gymnasium as gym
import torch
from ray.rllib.core.columns import Columns
from ray.rllib.core.distribution.torch.torch_distribution import (
    TorchCategorical,
    TorchDiagGaussian,
    TorchMultiCategorical,
)
from ray.rllib.core.rl_module.multi_rl_module import MultiRLModule
from ray.rllib.core.rl_module.torch import TorchRLModule
from torch import Tensor

from marl_aajr.core.distributions import (
    ActionDistribution,
    Categorical,
    DiagGaussian,
    MultiCategorical,
    from_space,
)
from marl_aajr.rllib.internals.modules import plain_actor
from marl_aajr.rllib.networks import observation_of
from marl_aajr.rllib.sampling.observation_filter import BatchFilter
from marl_aajr.rollout.fragments import Tree, map_tree
from marl_aajr.rollout.rollout_buffer import Decision

_OURS = {
    Categorical: TorchCategorical,
    MultiCategorical: TorchMultiCategorical,
    DiagGaussian: TorchDiagGaussian,
}
"""RLlib's distributions that ours compute the same numbers for."""


class ModulePolicies:
    """Decides with RLlib's modules, as its env runner and default connectors would.

    Random numbers come from a generator of our own. Only distributions other than RLlib's categorical,
    multi-categorical and diagonal Gaussian draw from torch's global one, because RLlib's classes do.

    Args:
        action_spaces: By module.
        normalize_actions: RLlib's setting: bounded Box actions are mapped from [−1, 1] to their bounds.
        clip_actions: RLlib's setting: otherwise, Box actions are clipped to their bounds.
        observe: The observation filter, if there is one.
        device: Device of the observations, on which actions are computed.

    Attributes:
        module: RLlib's modules; to be set before the first step.
        generator: Source of random actions.
        explore: Whether to draw actions (with `forward_exploration`) or to take the most likely ones.
        random: Whether to draw them uniformly from the legal ones, without asking the modules.
        timestep: Environment steps of all runners so far, for modules whose exploration follows them.
    """

    def __init__(
        self,
        action_spaces: Mapping[str, gym.Space[Any]],
        *,
        normalize_actions: bool,
        clip_actions: bool,
        observe: BatchFilter | None,
        device: torch.device,
    ) -> None:
        self._spaces = dict(action_spaces)
        self._to_env = {
            name: env_action_map(space, normalize=normalize_actions, clip=clip_actions, device=device)
            for name, space in self._spaces.items()
        }
        self._observe = observe
        self._actors: dict[str, tuple[TorchRLModule, _ModuleActor]] = {}
        self.module: MultiRLModule | None = None
        self.generator = torch.Generator(device)
        self.explore = True
        self.random = False
        self.timestep = 0

    def filter_obs(self, module: str, obs: Tensor, rows: Tensor | None) -> Tensor:
        return obs if self._observe is None else self._observe(module, obs, rows)

    @torch.no_grad()
    def act(self, module: str, obs: Tensor, mask: Tensor | None, rows: Tensor | None) -> Decision:
        if self.random:
            return self._draw_at_random(module, obs, mask)
        actor = self._actor(module)
        out, state = actor.forward(obs, mask, rows, self)
        actions, log_probs, inputs = actor.decide(out, self)
        return Decision(actions, self._to_env[module](actions), log_probs, inputs, state)

    def sequence_length(self, module: str) -> int | None:
        return self._actor(module).sequence_length

    def begin_episodes(self, episode_over: Tensor) -> None:
        for _, actor in self._actors.values():
            actor.begin_episodes(episode_over)

    def _actor(self, name: str) -> _ModuleActor:
        assert self.module is not None
        module = self.module[name]
        # RLlib may replace modules when it restores a runner.
        known = self._actors.get(name)
        if known is None or known[0] is not module:
            known = (module, _ModuleActor(module, name, self._spaces[name]))
            self._actors[name] = known
        return known[1]

    def _draw_at_random(self, module: str, obs: Tensor, mask: Tensor | None) -> Decision:
        space = self._spaces[module]
        kind = from_space(space)
        inputs = obs.new_zeros((len(obs), kind.num_inputs), dtype=torch.float32)
        if isinstance(space, gym.spaces.Box):
            low, high = (_bounded(bound, obs.device) for bound in (space.low, space.high))
            share = torch.rand((len(obs), *space.shape), generator=self.generator, device=obs.device)
            actions = low + share * (high - low)
        else:
            inputs = inputs if mask is None else inputs.masked_fill(~mask, torch.finfo(inputs.dtype).min)
            actions = kind.sample(inputs, generator=self.generator)
        return Decision(actions, actions, kind.log_prob(inputs, actions), inputs)


class _ModuleActor:
    """One module with its recurrent state and its action distribution."""

    def __init__(self, module: TorchRLModule, name: str, space: gym.Space[Any]) -> None:
        self._module = module
        self._memory: Tree | None = None
        self.sequence_length = int(module.model_config["max_seq_len"]) if module.is_stateful() else None
        self._layers = plain_actor(module)
        self._own = own_distribution(module, space)

    def forward(
        self, obs: Tensor, mask: Tensor | None, rows: Tensor | None, policies: ModulePolicies
    ) -> tuple[dict[str, Any], Tree | None]:
        """The output of the module's forward pass, and the recurrent state before it."""
        if self.sequence_length is None:
            return self._forward(self._batch(obs, mask), policies), None
        before = self._memory
        if before is None:
            before = map_tree(lambda x: _repeated(x, obs), self._module.get_initial_state())
        batch = map_tree(lambda x: x.unsqueeze(1), self._batch(obs, mask))
        out = self._forward({**batch, Columns.STATE_IN: before}, policies)
        after = out.pop(Columns.STATE_OUT)
        self._memory = after if rows is None else _where(rows, after, before)
        return map_tree(lambda x: x.squeeze(1), out), before

    def begin_episodes(self, episode_over: Tensor) -> None:
        """Initial states where episodes are over."""
        if self._memory is not None:
            initial = map_tree(torch.as_tensor, self._module.get_initial_state())
            self._memory = _where_over(episode_over, initial, self._memory)

    def decide(self, out: dict[str, Any], policies: ModulePolicies) -> tuple[Tensor, Tensor, Tensor]:
        """Actions, their log-probabilities and the distribution inputs."""
        inputs = out[Columns.ACTION_DIST_INPUTS]
        if Columns.ACTIONS in out:
            actions = out[Columns.ACTIONS]
            log_probs = out.get(Columns.ACTION_LOGP)
            return actions, self._log_prob(inputs, actions) if log_probs is None else log_probs, inputs
        if self._own is not None:
            if not policies.explore:
                actions = self._own.mode(inputs)
            else:
                actions = self._own.sample(inputs, generator=policies.generator)
            return actions, self._own.log_prob(inputs, actions), inputs
        if not policies.explore:
            chosen = self._module.get_inference_action_dist_cls().from_logits(inputs).to_deterministic()
            return chosen.sample(), inputs.new_zeros(len(inputs)), inputs
        distribution = self._module.get_exploration_action_dist_cls().from_logits(inputs)
        actions = distribution.sample()
        return actions, distribution.logp(actions), inputs

    def _log_prob(self, inputs: Tensor, actions: Tensor) -> Tensor:
        return self._module.get_exploration_action_dist_cls().from_logits(inputs).logp(actions)

    def _batch(self, obs: Tensor, mask: Tensor | None) -> dict[str, Any]:
        return {Columns.OBS: observation_of(obs, mask, self._module.observation_space)}

    def _forward(self, batch: dict[str, Any], policies: ModulePolicies) -> dict[str, Any]:
        if self._layers is not None:
            return {Columns.ACTION_DIST_INPUTS: self._layers(batch[Columns.OBS])}
        if policies.explore:
            return self._module.forward_exploration(batch, t=policies.timestep)
        return self._module.forward_inference(batch)


def _repeated(initial: Any, obs: Tensor) -> Tensor:
    state = torch.as_tensor(initial, device=obs.device)
    return state.expand(len(obs), *state.shape).clone()


def _where(rows: Tensor, then: Tree, otherwise: Tree) -> Tree:
    """`then` in some of the rows `[N]`."""
    if isinstance(then, Mapping):
        return {key: _where(rows, then[key], otherwise[key]) for key in then}
    return torch.where(rows.view(-1, *[1] * (then.ndim - 1)), then, otherwise)


def _where_over(over: Tensor, initial: Tree, states: Tree) -> Tree:
    """`initial` for all agents in the copies `[E]` that are over; `states [G · E, ...]`."""
    if isinstance(states, Mapping):
        return {key: _where_over(over, initial[key], states[key]) for key in states}
    rows = over.repeat(len(states) // len(over)).view(-1, *[1] * (states.ndim - 1))
    return torch.where(rows, initial.to(states), states)


def own_distribution(module: TorchRLModule, space: gym.Space[Any]) -> ActionDistribution | None:
    """Our distribution, where a module explores, acts and trains with one that it computes; else None."""
    kind = from_space(space)
    used = (
        module.get_exploration_action_dist_cls(),
        module.get_inference_action_dist_cls(),
        module.get_train_action_dist_cls(),
    )
    return kind if all(issubclass(cls, _OURS[type(kind)]) for cls in used) else None


def env_action_map(
    space: gym.Space[Any], *, normalize: bool, clip: bool, device: torch.device
) -> Callable[[Tensor], Tensor]:
    """RLlib's `unsquash_action` or `clip_action`, for rows of actions of one space."""
    if not isinstance(space, gym.spaces.Box):
        return _same
    low, high = (torch.as_tensor(bound, device=device) for bound in (space.low, space.high))
    if normalize:
        return partial(_unsquash, low=low, high=high) if space.is_bounded() else _same
    return partial(torch.clamp, min=low, max=high) if clip else _same


def _same(actions: Tensor) -> Tensor:
    return actions


def _unsquash(actions: Tensor, *, low: Tensor, high: Tensor) -> Tensor:
    return (low + (actions + 1.0) * (high - low) / 2.0).clamp(low, high)


def _bounded(bound: Any, device: torch.device) -> Tensor:
    """Bounds for uniform numbers; ±1 where there are none."""
    return torch.as_tensor(bound, device=device).nan_to_num(posinf=1.0, neginf=-1.0).clamp(-1e6, 1e6)
