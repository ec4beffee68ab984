"""The one line that puts a regularizer into an existing RLlib configuration."""

from __future__ import annotations

from collections.abc import Mapping

from ray.rllib.algorithms.algorithm_config import AlgorithmConfig
from ray.rllib.core.learner.torch.torch_learner import TorchLearner

from marl_aajr.regularizers.regularizer import Regularizer
from marl_aajr.rllib.internals import check_gradients_are_served
from marl_aajr.rllib.plugin.learner import REGULARIZERS_KEY, robust_learner_class


def robustify(
    config: AlgorithmConfig, regularizer: Regularizer | Mapping[str, Regularizer]
) -> AlgorithmConfig:
    """Add a regularizer to the loss of an RLlib algorithm; everything else stays as the user set it.

    Several learners do together what one would do with all rows: they draw the noise of the same rows, and
    average over the rows that count anywhere. Where one has no row of a module that another has, which would
    make PPO and SAC wait for ever, training stops and says so. IMPALA's and APPO's learners, which RLlib lets
    have rows of different modules, average terms of their own. Checkpoints hold the regularizer's state, and
    the KL coefficients, temperatures and entropy schedules that RLlib's leave out.

    Args:
        config: any configuration of the new API stack whose learner is a torch learner, with its modules
            already declared (`multi_agent`, `rl_module`). Call this last.
        regularizer: one for every module, or `{module_id: regularizer}`; modules without one train as
            before.

    Returns:
        The same configuration, with the learner class extended.

    Raises:
        ValueError: the old API stack, a learner that is not a torch learner or differentiates something
            else than the losses of its modules, an unknown module id.

    Example:
        >>> config = PPOConfig().environment("my_env").multi_agent(policies={"shared"}, ...)
        >>> config = robustify(config, AAJR(coefficient=3e-3, epsilon=0.1))
        >>> algo = config.build_algo()
    """
    if not config.enable_rl_module_and_learner:
        raise ValueError(
            "expected RLlib's new API stack, got a configuration of the old one; call "
            "config.api_stack(enable_rl_module_and_learner=True, "
            "enable_env_runner_and_connector_v2=True), or give its policies robustify_policy's class"
        )
    base = config.learner_class
    if not (isinstance(base, type) and issubclass(base, TorchLearner)):
        raise ValueError(
            f"expected a learner class derived from TorchLearner, got {base!r}; "
            "set config.framework('torch') or another learner_class"
        )
    check_gradients_are_served(base)
    regularizers = _per_module(config, regularizer)
    config.learners(
        learner_class=robust_learner_class(base),
        learner_config_dict={REGULARIZERS_KEY: regularizers},
    )
    return config


def _per_module(
    config: AlgorithmConfig, regularizer: Regularizer | Mapping[str, Regularizer]
) -> dict[str, Regularizer]:
    known = sorted(config.policies)
    mapping = dict.fromkeys(known, regularizer) if isinstance(regularizer, Regularizer) else (regularizer)
    if not isinstance(mapping, Mapping) or not mapping:
        raise ValueError(f"expected a regularizer or {{module_id: regularizer}}, got {regularizer!r}")
    for module_id, value in mapping.items():
        if module_id not in known:
            raise ValueError(
                f"expected a module id out of {', '.join(known)}, got {module_id!r}; declare it with "
                "config.multi_agent(policies=...) before robustify"
            )
        if not isinstance(value, Regularizer):
            raise ValueError(f"expected a regularizer for module {module_id!r}, got {value!r}")
    return dict(mapping)
