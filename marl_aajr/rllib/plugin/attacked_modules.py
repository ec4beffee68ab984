"""The modules of RLlib's env runners under attack, and what cannot be attacked."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import gymnasium as gym
from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.core.rl_module.multi_rl_module import MultiRLModule
from ray.rllib.core.rl_module.torch import TorchRLModule

from marl_aajr.core.channels import NO_CHANNELS, Channels
from marl_aajr.core.distributions import from_space
from marl_aajr.core.environment_values import agent_name
from marl_aajr.rllib.internals.algorithms import agent_ids_of, structures_of
from marl_aajr.rllib.plugin.observation_layout import flat_layout
from marl_aajr.rllib.sampling.acting_policy import ActingModule, check_acting
from marl_aajr.rllib.sampling.batch_env import ask
from marl_aajr.rllib.trained_modules import may_train
from marl_aajr.rollout.attack.members import attacked_members
from marl_aajr.rollout.attack.on_words import attack_on
from marl_aajr.rollout.attack.rollout_attack import RolloutAttack


class AttackedModules:
    """The modules of an env runner as they act, each with the attack on it."""

    def __init__(self, attack: RolloutAttack) -> None:
        self._attack = attack
        self._acting: dict[str, tuple[ActingModule, RolloutAttack]] = {}

    def known(
        self, runner: Any, name: str, module: TorchRLModule, agents: Sequence[Any] = ()
    ) -> tuple[ActingModule, RolloutAttack]:
        """A module as it acts, and its attack on these of its agents; modules may come, and be replaced."""
        if name not in self._acting or self._acting[name][0].module is not module:
            acting = ActingModule(module, from_space(module.action_space))
            attack = self._on_features(runner, name, module)
            if attack.channels is not None or attack.norm == "words":
                known, names = observed(runner), map(agent_name, agents)
                attack = attack_on(attack, {name: known.get(name, {}) for name in names}, acting.width)
            check_acting(acting, name, attack)
            self._acting[name] = acting, attack
        return self._acting[name]

    def _on_features(self, runner: Any, name: str, module: TorchRLModule) -> RolloutAttack:
        """The attack without action masks and integers that RLlib's connector has flattened."""
        space, structures = module.observation_space, structures_of(runner)
        flat = isinstance(space, gym.spaces.Box) and len(space.shape) == 1
        if self._attack.mask is not None or not structures or not flat or self._attack.norm == "words":
            return self._attack
        layout = flat_layout(space.shape[0], structures, leaves=None, actions=module.action_space)
        if layout is None:
            return self._attack
        if not len(layout.places):
            raise ValueError(
                f"rollouts under attack, module {name!r}: expected floating-point observations to "
                "perturb, got integers only; name the agents whose are floats: agents=[...]"
            )
        places = set(layout.places.tolist())
        return replace(self._attack, mask=tuple(i in places for i in range(space.shape[0])))

    def attacks(self, runner: Any, agent: str, module: str) -> bool:
        """Whether an agent that acts by a module is attacked; see `RolloutAttack.agents`."""
        chosen = self._attack.agents
        return may_train(runner.config, module) if chosen is None else agent in chosen

    def check(self, runner: Any) -> None:
        """Raise `ValueError` for a runner that cannot be attacked."""
        self._attack.check_copies(runner.num_envs)
        if not isinstance(runner.module, MultiRLModule):
            given = {name: getattr(self._attack, name) for name in ("agents", "channels", "worst_agents")}
            given["norm words"] = self._attack.norm == "words" or None
            if wrong := [name for name, value in given.items() if value is not None]:
                name = wrong[0]
                raise ValueError(f"expected no {name} in a single-agent environment, got {given[name]}")
            self.known(runner, DEFAULT_MODULE_ID, runner.module.unwrapped())
            return
        ids = {agent_name(i): i for i in agent_ids_of(runner)}
        groups: dict[str, list[str]] = defaultdict(list)
        for agent, module in ask(ids, runner.config.policy_mapping_fn).items():
            groups[module].append(agent)
        of_module = {module: tuple(agents) for module, agents in groups.items()}
        trained = [module for module in of_module if may_train(runner.config, module)]
        members = attacked_members(self._attack, of_module, observed(runner), trained=trained)
        for name, places in members.items():
            agents = [of_module[name][i] for i in places]
            self.known(runner, name, runner.module[name].unwrapped(), agents)


def observed(runner: Any) -> Mapping[str, Channels]:
    """What the agents of a runner's environment observe, by agent, where it says so."""
    found: Mapping[str, Channels] = getattr(runner.env.envs[0].unwrapped, "channels", NO_CHANNELS)
    return found
