"""MAPPO on RLlib's new stack: the actor sees its own observation, the critic the whole game.

    π(a | o_i)        decentralised: all that playing, exporting and attacking need
    V(o_i, s)         centralised, in training only: the state s beside the agent's own observation

Source: Yu et al. 2022 (arXiv 2103.01955), whose "agent-specific global state" this input is; s is the joint
observation or PettingZoo's ``state()``. Their normalised values are not included.

The environment hands out s as a part of each observation, ``{"observation": o_i, "state": s}`` and, where
there is one, ``"action_mask"``: ask `marl_aajr.rllib.env.register` or `marl_aajr.rllib.fast.fast` for it with
``critic="joint"`` or ``"state"``. What a module's critic alone reads is never perturbed: it says so by the
attribute ``critic_only``, a tuple of keys, and a module of your own can do the same.
"""

from __future__ import annotations

from typing import Any, ClassVar

import gymnasium as gym
import torch
from torch import Tensor

from marl_aajr.rllib.modules import FlatActorCritic, floats, split
from marl_aajr.rollout.central import STATE, flat_size


class MAPPOModule(FlatActorCritic):
    """Actor and centralised critic as MLPs, for PPO and every other algorithm that trains a value function.

    Configuration (``model_config``): see `FlatActorCritic`.

    Raises:
        ValueError: Observations without a state.

    Example:
        >>> config = (
        ...     PPOConfig()
        ...     .environment(register(resolve("simple_spread_v3"), critic="joint"))
        ...     .multi_agent(policies={"team"}, policy_mapping_fn=lambda agent, *_, **__: "team")
        ...     .rl_module(
        ...         rl_module_spec=RLModuleSpec(
        ...             module_class=MAPPOModule, model_config=DefaultModelConfig(fcnet_hiddens=[64, 64])
        ...         )
        ...     )
        ... )
        >>> config = robustify(config, AAJR(coefficient=3e-3, epsilon=0.1))
    """

    critic_only: ClassVar[tuple[str, ...]] = (STATE,)

    def setup(self) -> None:
        space = self.observation_space
        if not isinstance(space, gym.spaces.Dict) or not {"observation", STATE} <= set(space.spaces):
            raise ValueError(
                f"expected observations with the keys observation and {STATE}, got {space}; build the "
                "environment with critic='joint' or 'state'"
            )
        super().setup()

    @property
    def critic_width(self) -> int:
        state = self.observation_space[STATE]
        return super().critic_width + flat_size(state)

    def critic_inputs(self, obs: Any) -> Tensor:
        observation, _ = split(obs)
        return torch.cat([floats(observation).flatten(1), floats(obs[STATE]).flatten(1)], 1)
