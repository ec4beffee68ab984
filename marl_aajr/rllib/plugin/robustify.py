"""The one line that puts a regularizer, and an attack on the rollouts, into an existing RLlib configuration.

`robustify` puts `RobustLearnerMixin` in front of the configuration's learner class.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from ray.rllib.algorithms.algorithm_config import AlgorithmConfig
from ray.rllib.algorithms.impala import IMPALAConfig
from ray.rllib.algorithms.ppo import PPOConfig
from ray.rllib.core.learner.torch.torch_learner import TorchLearner
from ray.rllib.utils import force_list

from marl_aajr.core.checks import is_search_space
from marl_aajr.core.environment_values import named
from marl_aajr.regularizers.regularizer import Regularizer
from marl_aajr.rllib.internals.algorithms import (
    agent_ids,
    env_to_module_connector,
    module_to_env_connector,
    structures_before_flattening,
)
from marl_aajr.rllib.internals.learners import (
    check_gradients_are_served,
)
from marl_aajr.rllib.internals.runners import OpenEnvRunner
from marl_aajr.rllib.plugin.attacked_episodes import WithRolloutAttack, complaint
from marl_aajr.rllib.plugin.clean_observations import WithCleanObservations
from marl_aajr.rllib.plugin.module_policy import ROLLOUTS_KEY
from marl_aajr.rllib.plugin.robust_learner import REGULARIZERS_KEY, robust_learner_class
from marl_aajr.rollout.attack.rollout_attack import RolloutAttack

REQUESTS_IN_FLIGHT = 64
"""RLlib drops a broadcast of weights, filters or the steps done to a runner that has more than this many to
work off; with its default of 1 it depends on timing whether a runner gets its filter, and a schedule its
step.
"""


def robustify(
    config: AlgorithmConfig,
    regularizer: Regularizer | Mapping[str, Regularizer] | None,
    *,
    rollouts: RolloutAttack | None = None,
) -> AlgorithmConfig:
    """Add a regularizer to the loss of an RLlib algorithm; everything else stays as the user set it.

    Several learners do together what one would do with all rows: they draw the noise of the same rows, and
    average over the rows that count anywhere. Where one has no row of a module that another has, which would
    make PPO and SAC wait for ever, training stops and says so. IMPALA's and APPO's learners, which RLlib lets
    have rows of different modules, average terms of their own. Checkpoints hold the regularizer's state, and
    the KL coefficients, temperatures and entropy schedules that RLlib's leave out.

    Modules may come and go (`Algorithm.add_module`, `remove_module`): each has a regularizer with a state of
    its own from the first update that trains it. Modules that are not trained may be anything.

    With `rollouts`, agents act in training under attack, in RLlib's own env runners (see
    `marl_aajr.rllib.plugin.attacked_episodes`), and all that is trained on is what they saw, with the action
    and the log-probability there: also for IMPALA and APPO, whose corrections hold, because what acted is
    what was attacked. A regularizer's own adversary begins at what was true.

    Attacked is what RLlib samples to train on. Nobody is attacked where `explore=False`, in env runners of
    evaluation (`evaluation_interval`), in `Algorithm.evaluate()` where there are none of them and it plays in
    those of training, nor in a `sample(num_episodes=...)` of your own; a `sample(num_timesteps=...)` is.
    PPO's `max_requests_in_flight_per_env_runner` becomes 64: with less, RLlib tells its runners by chance how
    many steps are done, and with them ε of a schedule and the statistics of a filter.

    Args:
        config: any configuration of the new API stack whose learner is a torch learner, with its modules
            already declared (`multi_agent`, `rl_module`). Call this last. DQN's Q-values are taken as logits.
        regularizer: one for every module, those that are added later included, or
            `{module_id: regularizer}`; modules without one train as before. For Ray Tune also a search space
            of regularizers: `tune.grid_search([AAJR(coefficient=c) for c in (1e-3, 1e-2)])`. None: there is
            none, and the learner stays as it is.
        rollouts: the attack that a share of each env runner's copies is played under, in the place of one
            that the configuration has; None: that one stays (`RolloutAttack(share=0)` takes it away).

    Returns:
        The same configuration, with the learner class extended.

    Raises:
        ValueError: the old API stack, a learner that is not a torch learner or differentiates something
            else than the losses of its modules, an unknown module id; with `rollouts`, another algorithm than
            PPO, IMPALA or APPO, an env runner that is not RLlib's, settings that need the fast one. What the
            modules or the copies cannot do is refused when the algorithm is built.

    Example:
        >>> config = PPOConfig().environment("my_env").multi_agent(policies={"shared"}, ...)
        >>> config = robustify(config, AAJR(coefficient=3e-3, epsilon=0.1))
        >>> config = robustify(config, None, rollouts=RolloutAttack(epsilon=0.1, share=0.5))
        >>> algo = config.build_algo()
    """
    if not isinstance(config, AlgorithmConfig):
        raise ValueError(f"expected a configuration of RLlib, such as PPOConfig(), got {config!r}")
    if not config.enable_rl_module_and_learner:
        raise ValueError(
            "expected RLlib's new API stack, got a configuration of the old one; call "
            "config.api_stack(enable_rl_module_and_learner=True, "
            "enable_env_runner_and_connector_v2=True), or give its policies robustify_policy's class"
        )
    if regularizer is None and rollouts is None:
        raise ValueError("expected a regularizer, rollouts under attack, or both, got None")
    if regularizer is not None:
        _add(config, regularizer)
    _play_under(config, rollouts)
    return config


def _add(config: AlgorithmConfig, regularizer: Any) -> None:
    """Put a regularizer into the learner of a configuration."""
    base = config.learner_class
    if not (isinstance(base, type) and issubclass(base, TorchLearner)):
        raise ValueError(
            f"expected a learner class derived from TorchLearner, got {base!r}; "
            "set config.framework('torch') or another learner_class"
        )
    check_gradients_are_served(base)
    if not isinstance(regularizer, Regularizer) and not is_search_space(regularizer):
        regularizer = _checked(regularizer, known=sorted(config.policies))
    given = {REGULARIZERS_KEY: regularizer}
    config.learners(learner_class=robust_learner_class(base), learner_config_dict=given)
    callbacks = [c for c in force_list(config.callbacks_on_algorithm_init) if c is not _tell_learners]
    config.callbacks(on_algorithm_init=[*callbacks, _tell_learners])


def _tell_learners(*, algorithm: Any, **_: Any) -> None:
    """Tell the learners what observations were before connectors flattened them, and who the agents are."""
    structures, ids = structures_before_flattening(algorithm), named({i: i for i in agent_ids(algorithm)})
    tell = partial(_follow, structures=structures, ids=ids)
    for result in algorithm.learner_group.foreach_learner(tell):
        result.get()


def _follow(learner: Any, *, structures: list[Any], ids: Mapping[str, Any], **_: Any) -> None:
    learner.follow(structures, ids)


def _checked(mapping: Mapping[str, Regularizer], *, known: list[str]) -> dict[str, Regularizer]:
    if not isinstance(mapping, Mapping) or not mapping:
        raise ValueError(f"expected a regularizer or {{module_id: regularizer}}, got {mapping!r}")
    for module_id, value in mapping.items():
        if module_id not in known:
            raise ValueError(
                f"expected a module id out of {', '.join(known)}, got {module_id!r}; declare it with "
                "config.multi_agent(policies=...) before robustify, or give one regularizer for all modules"
            )
        if not isinstance(value, Regularizer) and not is_search_space(value):
            raise ValueError(f"expected a regularizer for module {module_id!r}, got {value!r}")
    return dict(mapping)


def _play_under(config: AlgorithmConfig, attack: RolloutAttack | None) -> None:
    """Let the env runners of a configuration play under this attack; None: under the one that they have."""
    known = env_to_module_connector(config)
    if isinstance(known, WithRolloutAttack):
        attack = attack or known.attack
    if attack is None:
        return
    if attack.ever:
        _check_rollouts(config, attack)
    if isinstance(known, WithRolloutAttack):
        _play_plainly(config, known)
    if not attack.ever:
        return
    # A regularizer may have come since an earlier call, and begins at what was true.
    keeps = REGULARIZERS_KEY in config.learner_config_dict
    before = env_to_module_connector(config)
    requests = config.max_requests_in_flight_per_env_runner
    attacked = WithRolloutAttack(attack, before, keep_clean=keeps, requests=requests)
    config.env_runners(env_to_module_connector=attacked)
    if isinstance(config, PPOConfig):
        # For the others it is how far a runner may be ahead of the learner.
        config.env_runners(max_requests_in_flight_per_env_runner=max(requests, REQUESTS_IN_FLIGHT))
    if keeps:
        after = module_to_env_connector(config)
        config.env_runners(module_to_env_connector=WithCleanObservations(after))
    config.learners(learner_config_dict={ROLLOUTS_KEY: attack})
    config.callbacks(on_algorithm_init=[_check_runners, *force_list(config.callbacks_on_algorithm_init)])


def _play_plainly(config: AlgorithmConfig, known: WithRolloutAttack) -> None:
    """Take the attack, and what came with it, out of a configuration."""
    config.env_runners(env_to_module_connector=known.before)
    if isinstance(config, PPOConfig) and config.max_requests_in_flight_per_env_runner == REQUESTS_IN_FLIGHT:
        config.env_runners(max_requests_in_flight_per_env_runner=known.requests)
    if isinstance(after := module_to_env_connector(config), WithCleanObservations):
        config.env_runners(module_to_env_connector=after.before)
    config.learner_config_dict.pop(ROLLOUTS_KEY, None)
    begun = [c for c in force_list(config.callbacks_on_algorithm_init) if c is not _check_runners]
    config.callbacks(on_algorithm_init=begun)


def _check_rollouts(config: AlgorithmConfig, attack: RolloutAttack) -> None:
    if not isinstance(config, PPOConfig | IMPALAConfig):  # APPO's is a subclass of IMPALA's.
        raise ValueError(
            f"expected PPO, IMPALA or APPO with rollouts under attack, got {type(config).__name__}: what was "
            "attacked must be the policy that is trained, by what it did just now"
        )
    runner = config.env_runner_cls
    if runner is not None and issubclass(runner, OpenEnvRunner) and not runner.plays_episodes:
        raise ValueError(
            f"expected RLlib's own env runners for an attack from here, got {runner.__name__}; give it to "
            "fast(config, environment, rollouts=...)"
        )
    if not config.enable_env_runner_and_connector_v2:
        raise ValueError("expected RLlib's env runners of the new API stack for rollouts under attack")
    for name, value, needed in (("critic", attack.critic, "seen"), ("path", attack.path, "none")):
        if value != needed:
            raise ValueError(
                f"expected {name} {needed!r} in rollouts for RLlib's env runners, got {value!r}: their "
                "episodes hold what agents saw, and nothing else; use fast(config, environment, rollouts=...)"
            )
    attack.check_copies(config.num_envs_per_env_runner)


def _check_runners(*, algorithm: Any, **_: Any) -> None:
    """A callback of RLlib's: refuse before anything is played what the modules or their copies cannot do."""
    for reason in algorithm.env_runner_group.foreach_env_runner(complaint):
        if reason:
            raise ValueError(reason)
