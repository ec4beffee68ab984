"""A causal language model as an RLModule: an actor that reads words, and a critic."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Literal

import gymnasium as gym
import torch
from ray.rllib.algorithms.algorithm import Algorithm
from ray.rllib.core.columns import Columns
from ray.rllib.core.distribution.torch.torch_distribution import TorchCategorical
from ray.rllib.core.learner.torch.torch_learner import TorchLearner
from ray.rllib.core.rl_module.apis import InferenceOnlyAPI, ValueFunctionAPI
from ray.rllib.core.rl_module.torch import TorchRLModule
from torch import Tensor, nn

from marl_aajr.core.checks import maximum
from marl_aajr.core.token_network import check_radius
from marl_aajr.core.words import Words
from marl_aajr.language import LanguageNetwork
from marl_aajr.language.checks import check_length
from marl_aajr.language.critic import WordCritic
from marl_aajr.language.models import has_weights
from marl_aajr.language.network import folder_arguments
from marl_aajr.regularizers.adversarial import Perturbing
from marl_aajr.regularizers.regularizer import Regularizer

NETWORK, FOLDER, CRITIC = "language_network", "folder", "language_critic"
"""Keys of `model_config`: the arguments of a `LanguageNetwork`, the folder of its first weights, if any, and
the kind of critic (without it: `shared`).

RLlib puts settings of its own beside them.
"""


class LanguageModule(TorchRLModule, ValueFunctionAPI, InferenceOnlyAPI):
    """The model is the actor; the critic has weights of its own (`own`), or shares the model's (`shared`).

    A shared critic is one layer on what the model makes of the last word.

    Configuration (`model_config`): as `language_model_config` gives it.

    Attributes:
        actor: the network between words and actions, which regularizers perturb in its embeddings.
        awaited: the folder of its first weights where that is not on this machine; they come from the driver
            (`send_first_weights`) or from a checkpoint (`set_state`). Until then it does not play.
    """

    reads_obs_only: ClassVar[bool] = True

    def setup(self) -> None:
        super().setup()
        self.actor = LanguageNetwork(**self.model_config[NETWORK])
        self.awaited: str | None = self.model_config.get(FOLDER)
        if self.awaited is not None and has_weights(self.awaited):
            self.actor.read_weights(self.awaited)
            self.awaited = None
        if not self.inference_only:
            self.value: nn.Module = nn.Linear(self.actor.hidden_size, 1)
            if self._own_critic:
                space: Any = self.observation_space
                self.value = WordCritic(len(self.actor.vocabulary), *space.shape)
        self.action_dist_cls = TorchCategorical

    @property
    def token_network(self) -> LanguageNetwork:
        """The network that a policy of its embeddings asks."""
        return self.actor

    @property
    def _own_critic(self) -> bool:
        return self.model_config.get(CRITIC) == "own"

    def set_state(self, state: Any) -> None:
        super().set_state(state)
        self.awaited = None

    def take(self, weights: Mapping[str, Tensor]) -> None:
        """Begin with the weights of a folder, as `first_weights` reads them."""
        self.actor.load_state_dict(weights, strict=False)
        self.awaited = None

    def get_non_inference_attributes(self) -> list[str]:
        return ["value"]

    def _forward(self, batch: dict[str, Any], **_: Any) -> dict[str, Any]:
        hidden = self._read(batch[Columns.OBS])
        return {Columns.ACTION_DIST_INPUTS: self.actor.logits(hidden), Columns.EMBEDDINGS: hidden}

    def compute_values(self, batch: dict[str, Any], embeddings: Any = None) -> Tensor:
        values: Tensor
        if self._own_critic:
            values = self.value(batch[Columns.OBS].long())
        else:
            hidden = self._read(batch[Columns.OBS]) if embeddings is None else embeddings
            values = self.value(hidden).squeeze(-1)
        return values

    def _read(self, obs: Tensor) -> Tensor:
        if self.awaited is not None:
            raise ValueError(
                f"expected the weights of {self.awaited} on this machine or in a checkpoint, got neither; "
                "copy the folder to it"
            )
        tokens = obs.long()
        return self.actor.hidden(self.actor.embeddings[tokens], tokens)


def first_weights(model_config: Mapping[str, Any]) -> dict[str, Tensor]:
    """The weights of a folder, by their names in the actor; a head for the actions is none of them."""
    with torch.random.fork_rng(devices=[]):
        network = LanguageNetwork(**model_config[NETWORK])
        network.read_weights(model_config[FOLDER])
    own = network.outputs is not None
    return {k: value for k, value in network.state_dict().items() if not (own and k.startswith("head."))}


def send_first_weights(algorithm: Algorithm) -> None:
    """Give the weights of folders to learners on machines without these, and then to env runners."""
    asked = algorithm.learner_group.foreach_learner(_awaiting)
    if not (names := sorted({name for result in asked for name in result.get()})):
        return
    specs = algorithm.config.rl_module_spec.rl_module_specs
    weights = {name: first_weights(specs[name].model_config) for name in names}
    for result in algorithm.learner_group.foreach_learner(partial(_take, weights=weights)):
        result.get()
    algorithm.env_runner_group.sync_weights(
        from_worker_or_learner_group=algorithm.learner_group, inference_only=True
    )


def _awaiting(learner: TorchLearner, **_: Any) -> list[str]:
    modules = {name: learner.module[name].unwrapped() for name in learner.module.keys()}  # noqa: SIM118
    return [name for name, module in modules.items() if getattr(module, "awaited", None) is not None]


def _take(learner: TorchLearner, *, weights: Mapping[str, Mapping[str, Tensor]], **_: Any) -> None:
    for name, each in weights.items():
        module: LanguageModule = learner.module[name].unwrapped()
        module.take(each)


def check_epsilon(model_config: Mapping[str, Any], regularizer: Regularizer) -> None:
    """Raise `ValueError` where ε is in other units than those of the embeddings that a run begins with."""
    folder = model_config.get(FOLDER)
    if folder is not None and not has_weights(folder):  # a run that is resumed was checked as it began
        return
    with torch.random.fork_rng(devices=[]):
        network = LanguageNetwork(**model_config[NETWORK])
        if folder is not None:
            network.read_weights(folder)
    for member in getattr(regularizer, "members", (regularizer,)):
        if isinstance(member, Perturbing):
            check_radius(network.embeddings / network.unit, maximum(member.epsilon))


def language_model_config(
    words: Words | None,
    observation_space: gym.Space[Any],
    action_space: gym.Space[Any],
    *,
    folder: str | None = None,
    head: bool = False,
    critic: Literal["own", "shared"] = "own",
    **sizes: Any,
) -> dict[str, Any]:
    """The configuration of a `LanguageModule`: all that it is made of but its weights, as values of JSON.

    Args:
        words: of the environment.
        observation_space: a Box of tokens, `[L]`.
        action_space: Discrete.
        folder: of a model whose weights it begins with, or of its configuration and tokenizer alone, for
            weights out of a checkpoint; None: random ones.
        head: whether a head answers, although the environment has words for the actions.
        critic: whether it has weights of its own.
        sizes: of a new model, see `marl_aajr.language.model_config`.

    Raises:
        ValueError: an environment that is not of words, or not of discrete actions; a folder of something
            else, a tokenizer that does not cover the words, or a context that is too short.
    """
    if words is None or len(observation_space.shape or ()) != 1:
        raise ValueError(
            "expected an environment whose observations are words for model.language, got "
            f"{observation_space}; use bargain_v0, or marl_aajr.rollout.text_observations for texts, "
            "without action masks"
        )
    if not isinstance(action_space, gym.spaces.Discrete):
        raise ValueError(f"expected Discrete actions for model.language, got {action_space}")
    length, outputs = int(observation_space.shape[0]), int(action_space.n)
    with torch.random.fork_rng(devices=[]):
        if folder is None:
            sizes = {"context": length, **sizes}
            network = LanguageNetwork.of_words(words, outputs=outputs, head=head, **sizes)
        else:
            network = LanguageNetwork(**folder_arguments(folder, words, outputs=outputs, head=head))
            if has_weights(folder):
                network.read_weights(folder)
    check_length(network.body, length)
    path = None if folder is None else str(Path(folder).resolve())
    return {NETWORK: network.arguments, FOLDER: path, CRITIC: critic}
