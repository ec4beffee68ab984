"""RLlib's modules as the policies of the sampling loop (`marl_aajr.rollout.collector`)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import cached_property, partial
from typing import Any

import gymnasium as gym
import torch
from ray.rllib.core.columns import Columns
from ray.rllib.core.rl_module.multi_rl_module import MultiRLModule
from ray.rllib.core.rl_module.torch import TorchRLModule
from torch import Tensor

from marl_aajr.core.distributions import ActionDistribution, env_action_map, from_space
from marl_aajr.core.mlp import evaluated
from marl_aajr.core.policy import Tree, leaves, map_tree, where_rows
from marl_aajr.rllib.internals.modules import plain_actor
from marl_aajr.rllib.networks import observation_of
from marl_aajr.rllib.plugin.module_policy import RLLIB_CLASSES
from marl_aajr.rllib.sampling.acting_policy import (
    ActingModule,
    ActingPolicy,
    FilterStatistics,
    HeldColumns,
    check_acting,
    initial_memory,
    rows_of_words,
    seen_rows,
)
from marl_aajr.rllib.sampling.observation_filter import Moments, ObservationNormalizer
from marl_aajr.rollout.attack.attackable import ActingRows
from marl_aajr.rollout.attack.rollout_attack import RolloutAttack
from marl_aajr.rollout.rollout_buffer import Decision


class ModulePolicies:
    """Decides with RLlib's modules, as its env runner and default connectors would.

    Random numbers come from a generator of our own. Only distributions other than RLlib's categorical,
    multi-categorical and diagonal Gaussian draw from torch's global one, because RLlib's classes do.

    By RLlib's settings, bounded Box actions are mapped from [−1, 1] to their bounds (`normalize_actions`), or
    clipped to them (`clip_actions`).

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
        normalizer: ObservationNormalizer | None,
        device: torch.device,
    ) -> None:
        self._spaces = dict(action_spaces)
        self._to_env = {
            name: env_action_map(space, normalize=normalize_actions, clip=clip_actions, device=device)
            for name, space in self._spaces.items()
        }
        self._normalizer = normalizer
        self._actors: dict[str, _ModuleActor] = {}
        self.module: MultiRLModule | None = None
        self.generator = torch.Generator(device)
        self.explore = True
        self.random = False
        self.timestep = 0

    def filter_obs(self, module: str, obs: Tensor, rows: Tensor | None) -> Tensor:
        return obs if self._normalizer is None else self._normalizer.observe(module, obs, rows).to(obs.dtype)

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

    def weights_changed(self) -> None:
        """The modules may have other weights from now on."""
        for actor in self._actors.values():
            if "acting" in vars(actor):
                actor.acting.weights_changed()

    def width(self, module: str) -> int:
        return self._actor(module).acting.width

    def can_be_attacked(self, module: str) -> bool:
        """See `marl_aajr.rollout.attack.attackable.AttackablePolicies`."""
        return self._normalizer is None or self._normalizer.total.get(module, Moments()).spread

    def memory(self, module: str) -> Tree | None:
        return self._actor(module).memory

    def check_attack(self, module: str, attack: RolloutAttack) -> None:
        """Raise `ValueError` where an attack cannot be made on a module as it acts."""
        check_acting(self._actor(module).acting, module, attack)

    def acting(
        self, module: str, obs: Tensor, mask: Tensor | None, places: Tensor, memory: Tree | None = None
    ) -> ActingRows:
        """See `marl_aajr.rollout.attack.attackable.AttackablePolicies`."""
        actor = self._actor(module)
        acting, own = actor.acting, obs.flatten(1)[:, : actor.acting.width]
        if acting.reader is not None:
            return rows_of_words(acting.reader, acting.distribution, obs)
        observed = filtered = None
        if self._normalizer is not None:
            moments = self._normalizer.total[module]
            observed = FilterStatistics.of(moments, acting.width, like=own)
            filtered = moments.normalize
        if acting.recurrent:
            memory = actor.memory if memory is None else memory
            memory = actor.begun(memory, places)
        held = HeldColumns(mask, memory if acting.recurrent else None)
        scale = None if observed is None else observed.scale
        policy, seen = ActingPolicy(acting, held, observed), seen_rows(obs, acting.width, filtered)
        return ActingRows(policy, own, seen, scale)

    def begin_episodes(self, episode_over: Tensor) -> None:
        for actor in self._actors.values():
            actor.begin_episodes(episode_over)

    def _actor(self, name: str) -> _ModuleActor:
        assert self.module is not None
        module = self.module[name]
        # RLlib may replace modules when it restores a runner.
        if name not in self._actors or self._actors[name].module is not module:
            self._actors[name] = _ModuleActor(module, self._spaces[name])
        return self._actors[name]

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

    def __init__(self, module: TorchRLModule, space: gym.Space[Any]) -> None:
        self.module = module
        self.memory: Tree | None = None
        self.sequence_length = int(module.model_config["max_seq_len"]) if module.is_stateful() else None
        self._layers = plain_actor(module)
        self._space = space

    def forward(
        self, obs: Tensor, mask: Tensor | None, rows: Tensor | None, policies: ModulePolicies
    ) -> tuple[dict[str, Any], Tree | None]:
        """The output of the module's forward pass, and the recurrent state before it."""
        batch = {Columns.OBS: observation_of(obs, mask, self.module.observation_space)}
        if self.sequence_length is None:
            return self._forward(batch, policies), None
        before = self.memory
        if before is None:
            before = initial_memory(self.module, obs)
        batch = map_tree(lambda x: x.unsqueeze(1), batch)
        out = self._forward({**batch, Columns.STATE_IN: before}, policies)
        after = out.pop(Columns.STATE_OUT)
        self.memory = after if rows is None else map_tree(partial(where_rows, rows), after, before)
        return map_tree(lambda x: x.squeeze(1), out), before

    def begin_episodes(self, episode_over: Tensor) -> None:
        """Initial states for all agents in the copies `[E]` that are over; states are `[G · E, ...]`."""
        if self.memory is not None:
            agents = len(leaves(self.memory)[0]) // len(episode_over)
            forget = partial(where_rows, episode_over.repeat(agents))
            self.memory = map_tree(forget, self._initial(episode_over.device), self.memory)

    def begun(self, memory: Tree | None, places: Tensor) -> Tree:
        """The states of these rows; the initial one where nobody has acted yet."""
        if memory is None:
            return initial_memory(self.module, places)
        return map_tree(lambda column: column[places], memory)

    @cached_property
    def acting(self) -> ActingModule:
        """The module as an adversary sees it."""
        return ActingModule(self.module, from_space(self._space))

    @cached_property
    def _own(self) -> ActionDistribution | None:
        return own_distribution(self.module, self._space)

    def _initial(self, device: torch.device) -> Tree:
        """One agent's state at the beginning of an episode."""
        return map_tree(partial(torch.as_tensor, device=device), self.module.get_initial_state())

    def decide(self, out: dict[str, Any], policies: ModulePolicies) -> tuple[Tensor, Tensor, Tensor]:
        """Actions, their log-probabilities and the distribution inputs."""
        inputs, log_probs = out.get(Columns.ACTION_DIST_INPUTS), out.get(Columns.ACTION_LOGP)
        if Columns.ACTIONS in out:
            actions = torch.as_tensor(out[Columns.ACTIONS], device=policies.generator.device)
            if inputs is None:  # a heuristic's, which is not trained
                inputs = torch.full((len(actions), from_space(self._space).num_inputs), math.nan)
                inputs, log_probs = inputs.to(actions.device), inputs[:, 0].to(actions.device)
            if log_probs is None:
                log_probs = self.module.get_exploration_action_dist_cls().from_logits(inputs).logp(actions)
            return actions, log_probs, inputs
        assert inputs is not None
        if self._own is not None:
            sample = partial(self._own.sample, generator=policies.generator)
            actions = (sample if policies.explore else self._own.mode)(inputs)
            return actions, self._own.log_prob(inputs, actions), inputs
        if not policies.explore:
            chosen = self.module.get_inference_action_dist_cls().from_logits(inputs).to_deterministic()
            return chosen.sample(), inputs.new_zeros(len(inputs)), inputs
        distribution = self.module.get_exploration_action_dist_cls().from_logits(inputs)
        actions = distribution.sample()
        return actions, distribution.logp(actions), inputs

    def _forward(self, batch: dict[str, Any], policies: ModulePolicies) -> dict[str, Any]:
        if self._layers is not None:
            return {Columns.ACTION_DIST_INPUTS: evaluated(self._layers, batch[Columns.OBS])}
        if policies.explore:
            return self.module.forward_exploration(batch, t=policies.timestep)
        return self.module.forward_inference(batch)


def own_distribution(module: TorchRLModule, space: gym.Space[Any]) -> ActionDistribution | None:
    """Our distribution, where a module explores, acts and trains with one that it computes; else None."""
    kind = from_space(space)
    used = (
        module.get_exploration_action_dist_cls(),
        module.get_inference_action_dist_cls(),
        module.get_train_action_dist_cls(),
    )
    return kind if all(issubclass(cls, RLLIB_CLASSES[type(kind)]) for cls in used) else None


def _bounded(bound: Any, device: torch.device) -> Tensor:
    """Bounds for uniform numbers; ±1 where there are none."""
    return torch.as_tensor(bound, device=device).nan_to_num(posinf=1.0, neginf=-1.0).clamp(-1e6, 1e6)
