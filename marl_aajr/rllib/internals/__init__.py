"""Every private or unannotated RLlib name that this project touches, in one place.

Checked against Ray 2.60. When Ray is upgraded, these are the files to read again. Classes named `Open...`
are RLlib's own with public names for the private parts that ours read and replace.
"""

from __future__ import annotations

from marl_aajr.rllib.internals.alarms import errors_raise, remote_errors_raise
from marl_aajr.rllib.internals.configs import (
    RunAPPO,
    RunIMPALA,
    RunPPO,
    custom_connectors,
    episode_callbacks,
    foreign_env_to_module,
    registered_creator,
    stale_connector_settings,
)
from marl_aajr.rllib.internals.inference import forward_inference, inference_layers
from marl_aajr.rllib.internals.learners import (
    OpenPPOTorchLearner,
    OpenTorchLearner,
    adapt,
    adapted,
    add_to_policy_loss,
    backends_for,
    begin_update,
    check_gradients_are_served,
    current_entropy_coeff,
    dead_learners,
    in_step,
    keep_thread_errors,
    learner_index,
    log_trained,
    optimizers,
    plain_optimization,
    train_batch,
)
from marl_aajr.rllib.internals.modules import (
    actor_forward,
    actor_layers,
    actor_network,
    plain_actor,
    plain_networks,
    trained_actor,
)
from marl_aajr.rllib.internals.runners import OpenEnvRunner, OrderedEpisode, observation_normalizer, ordered

__all__ = [
    "OpenEnvRunner",
    "OpenPPOTorchLearner",
    "OpenTorchLearner",
    "OrderedEpisode",
    "RunAPPO",
    "RunIMPALA",
    "RunPPO",
    "actor_forward",
    "actor_layers",
    "actor_network",
    "adapt",
    "adapted",
    "add_to_policy_loss",
    "backends_for",
    "begin_update",
    "check_gradients_are_served",
    "current_entropy_coeff",
    "custom_connectors",
    "dead_learners",
    "episode_callbacks",
    "errors_raise",
    "foreign_env_to_module",
    "forward_inference",
    "in_step",
    "inference_layers",
    "keep_thread_errors",
    "learner_index",
    "log_trained",
    "observation_normalizer",
    "optimizers",
    "ordered",
    "plain_actor",
    "plain_networks",
    "plain_optimization",
    "registered_creator",
    "remote_errors_raise",
    "stale_connector_settings",
    "train_batch",
    "trained_actor",
]
