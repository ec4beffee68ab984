"""The policy mapping of a run, and the network of each module.

`policy_mapping_of` says which module plays for which agent; `module_spec` makes RLlib's specification of a
module from the spaces that it plays in and the settings under `model`.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import gymnasium as gym
from ray.rllib.algorithms.appo.torch.default_appo_torch_rl_module import DefaultAPPOTorchRLModule
from ray.rllib.algorithms.ppo.torch.default_ppo_torch_rl_module import DefaultPPOTorchRLModule
from ray.rllib.core.rl_module.default_model_config import DefaultModelConfig
from ray.rllib.core.rl_module.rl_module import RLModuleSpec
from ray.rllib.core.rl_module.torch import TorchRLModule

from marl_aajr.core.channels import Channels
from marl_aajr.core.environment_values import agent_name, split
from marl_aajr.core.words import Words
from marl_aajr.rllib.language_module import LanguageModule, language_model_config
from marl_aajr.rllib.networks import ORTHOGONAL_GAIN, FlatActorCritic, MAPPOModule, needs_flat_module
from marl_aajr.rollout.centralized_critic import CentralView, with_state
from marl_aajr.rollout.environments import resolve
from marl_aajr.training.config import ModelConfig, RunConfig
from marl_aajr.training.fields import check_untouched


@dataclass(frozen=True)
class PolicyMapping:
    """The agents of an environment, and the module that plays for each of them.

    Attributes:
        observation_spaces: of each agent, in the environment's order, like all that follow.
        action_spaces: as the environment declares them.
        channels: of what each agent observes, by agent.
        central: space of what a centralised critic reads beside an agent's observation; None: there is none.
    """

    observation_spaces: Mapping[str, gym.Space[Any]]
    action_spaces: Mapping[str, gym.Space[Any]]
    teams: Mapping[str, str]
    module_of: Mapping[str, str]
    central: gym.spaces.Box | None = None
    channels: Mapping[str, Channels] = field(default_factory=dict)

    def words(self, agent: str) -> Words | None:
        """The words that an agent reads; None: it reads none."""
        known = (channel.words for channel in self.channels.get(agent, {}).values())
        return next((words for words in known if words is not None), None)

    @property
    def modules(self) -> dict[str, str]:
        """Each module with the first agent that it plays for."""
        first: dict[str, str] = {}
        for agent, module in self.module_of.items():
            first.setdefault(module, agent)
        return first

    def module_space(self, agent: str) -> gym.Space[Any]:
        """The space of the observations in the batches of an agent's module."""
        own = self.observation_spaces[agent]
        return own if self.central is None else with_state(own, self.central)


@dataclass(frozen=True)
class ModuleOf:
    """RLlib's `policy_mapping_fn`."""

    modules: Mapping[str, str]

    def __call__(self, agent_id: Any, episode: Any = None, **_: Any) -> str:
        return self.modules[agent_name(agent_id)]


def policy_mapping_of(config: RunConfig) -> PolicyMapping:
    """The policy mapping of a run.

    `shared` policies: one module for all agents of a team that have the same spaces, named after what
    their names have in common (`agent_0`, `agent_1` → `agent`), or else after the team; where two
    modules would get one name, each after its first agent. `independent`: each agent its own, named
    after it.
    """
    game = resolve(config.env.name, config.env.kwargs).make()
    try:
        agents = game.possible_agents
        observation_spaces, action_spaces = dict(game.observation_spaces), game.env_action_spaces
        teams, channels = dict(game.teams), game.channels
        critic = config.model.critic
        central = None if critic == "own" else CentralView(game, critic).space
    finally:
        game.close()
    if config.policies == "independent":
        module_of = {agent: agent for agent in agents}
    else:
        alike = [(teams[a], observation_spaces[a], action_spaces[a]) for a in agents]
        groups = [[b for b, other in zip(agents, alike, strict=True) if other == own] for own in alike]
        module_of = dict(zip(agents, _names(groups, teams), strict=True))
    return PolicyMapping(observation_spaces, action_spaces, teams, module_of, central, channels)


def warn_of_images(mapping: PolicyMapping) -> None:
    """Tells the logger `marl_aajr` which modules read images, which their MLPs take as rows of numbers."""
    for module, agent in mapping.modules.items():
        box, _ = split(mapping.observation_spaces[agent])
        if len(box.shape) == 3:
            logging.getLogger("marl_aajr").warning(
                "%s: an MLP reads images %s as %d numbers in a row; make them smaller, or train a "
                "convolutional network of your own by robustify",
                module,
                " x ".join(map(str, box.shape)),
                gym.spaces.flatdim(box),
            )


def _names(groups: list[list[str]], teams: Mapping[str, str]) -> list[str]:
    """A name for the group of each agent; agents of one group get the same."""
    # What their names have in common, without a number at its end; these are no paths.
    common = [os.path.commonprefix(group).rstrip("0123456789").rstrip("_-") for group in groups]  # noqa: RUF071
    wanted = {tuple(group): name or teams[group[0]] for group, name in zip(groups, common, strict=True)}
    taken = list(wanted.values())
    names = {group: name if taken.count(name) == 1 else group[0] for group, name in wanted.items()}
    return [names[tuple(group)] for group in groups]


def module_spec(
    model: ModelConfig,
    observation_space: gym.Space[Any],
    action_space: gym.Space[Any],
    *,
    target_network: bool = False,
    words: Words | None = None,
) -> RLModuleSpec:
    """RLlib's module for these spaces and settings: its own where that will do.

    `words` are those that observations consist of, for `model.language`.

    Raises:
        ValueError: an LSTM, or APPO's target network, where only our own modules will do, which have none.
    """
    if model.language is not None:
        return _language_spec(model, observation_space, action_space, words, target_network=target_network)
    orthogonal = {
        "fcnet_kernel_initializer": "orthogonal_",
        "fcnet_kernel_initializer_kwargs": {"gain": ORTHOGONAL_GAIN},
        "fcnet_bias_initializer": "zeros_",
    }
    settings = DefaultModelConfig(
        fcnet_hiddens=list(model.hidden),
        fcnet_activation=model.activation,
        vf_share_layers=False,
        use_lstm=model.lstm is not None,
        lstm_cell_size=model.lstm or DefaultModelConfig.lstm_cell_size,
        max_seq_len=model.sequence_length,
        free_log_std=model.free_log_std and isinstance(action_space, gym.spaces.Box),
        **(orthogonal if model.initialization == "orthogonal" else {}),
    )
    default = DefaultAPPOTorchRLModule if target_network else DefaultPPOTorchRLModule
    kind: type[TorchRLModule] = default
    if model.critic != "own":
        kind = MAPPOModule
    elif needs_flat_module(observation_space):
        kind = FlatActorCritic
    if model.lstm is not None and kind is not default:
        raise ValueError(
            "expected one-dimensional float observations without action masks, and model.critic own, for "
            f"model.lstm, got {observation_space}; leave it out, or flatten the observations"
        )
    if target_network and kind is not default:
        raise ValueError(
            "expected one-dimensional float observations without action masks for algorithm appo, got "
            f"{observation_space}; use ppo or impala, or flatten the observations"
        )
    spaces = {"observation_space": observation_space, "action_space": action_space}
    return RLModuleSpec(module_class=kind, model_config=settings, **spaces)


def _language_spec(
    model: ModelConfig,
    observation_space: gym.Space[Any],
    action_space: gym.Space[Any],
    words: Words | None,
    *,
    target_network: bool,
) -> RLModuleSpec:
    assert model.language is not None
    if target_network:
        raise ValueError("expected algorithm ppo with model.language, got appo; change one of them")
    others = [name for name in type(model).model_fields if name != "language"]
    check_untouched(model, others, of="model", beside="model.language")
    settings = model.language.model_dump()
    if settings["folder"] is not None:
        sizes = ("architecture", "hidden_size", "layers", "heads")
        check_untouched(
            model.language, sizes, of="model.language", beside="a folder, whose model has its own"
        )
        settings = {name: value for name, value in settings.items() if name not in sizes}
    config = language_model_config(words, observation_space, action_space, **settings)
    spaces = {"observation_space": observation_space, "action_space": action_space}
    return RLModuleSpec(module_class=LanguageModule, model_config=config, **spaces)
