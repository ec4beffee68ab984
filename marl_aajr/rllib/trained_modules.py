"""Which modules a configuration of RLlib's trains."""

from __future__ import annotations

from ray.rllib.algorithms.algorithm_config import AlgorithmConfig


def surely_trains(config: AlgorithmConfig, module_id: str) -> bool:
    """Whether a configuration trains a module, as far as it says so before there is a batch."""
    trained = config.policies_to_train
    return trained is None or (not callable(trained) and module_id in trained)


def may_train(config: AlgorithmConfig, module_id: str) -> bool:
    """Whether a configuration may train a module: a function that answers by the batch may say so then."""
    trained = config.policies_to_train
    if not callable(trained):
        return surely_trains(config, module_id)
    try:
        return bool(trained(module_id, None))
    except (AssertionError, AttributeError, LookupError, TypeError, ValueError):
        return True
