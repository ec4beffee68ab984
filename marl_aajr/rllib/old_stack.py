"""The plug-in for RLlib's old API stack: a policy class with a regularizer in its loss.

For those who still train policies there; everything else stays RLlib's. What is perturbed is what the network
sees, after RLlib's filters and preprocessors.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from ray.rllib.algorithms.ppo.ppo_torch_policy import PPOTorchPolicy
from ray.rllib.models.torch.torch_action_dist import (
    TorchCategorical,
    TorchDiagGaussian,
    TorchMultiCategorical,
)
from ray.rllib.policy.sample_batch import SampleBatch

from marl_aajr.core.distributions import (
    ActionDistribution,
    Categorical,
    DiagGaussian,
    MultiCategorical,
    from_space,
)
from marl_aajr.core.jacobian import BACKENDS
from marl_aajr.core.objectives import EVERYTHING
from marl_aajr.regularizers.regularizer import Regularizer
from marl_aajr.regularizers.sample import ppo_policy_loss
from marl_aajr.rllib.old_stack_model import Features, model_sample, undisturbed
from marl_aajr.rllib.plugin.regularized_module import Regularized

_RLLIB_CLASSES: dict[type[ActionDistribution], type] = {
    Categorical: TorchCategorical,
    MultiCategorical: TorchMultiCategorical,
    DiagGaussian: TorchDiagGaussian,
}

STATE_KEY = "marl_aajr"
_ADAPTED = ("entropy_coeff", "cur_lr")
"""The attributes in which schedules keep their current values; RLlib's state leaves them out."""


def robustify_policy(policy: type[PPOTorchPolicy], regularizer: Regularizer) -> type[PPOTorchPolicy]:
    """A policy class of RLlib's old API stack with a regularizer in its loss.

    Schedules go by the steps that RLlib reports to policies after each training step (agent steps), as its
    own schedules do there. Metrics are in the policy's learner statistics, as `aajr/penalty` and so on;
    RLlib averages them over minibatches.

    Args:
        policy: RLlib's `PPOTorchPolicy`, or a class derived from it. Any `ModelV2`: feed-forward,
            convolutional, recurrent, with action masks, with previous actions.
        regularizer: the settings. With coefficients of zero it trains as `policy` does, bit for bit.

    Returns:
        A class derived from `policy`, for a `PolicySpec`.

    Raises:
        ValueError: a class that is not derived from `PPOTorchPolicy`, a regularizer that changes weights.
            What depends on the environment is refused when RLlib makes the policy: observations without
            floating-point numbers, other action distributions, several GPUs for one policy.

    Example:
        >>> robust = robustify_policy(PPOTorchPolicy, AAJR(coefficient=3e-3, epsilon=0.1))
        >>> config.multi_agent(policies={"team": PolicySpec(policy_class=robust)}, ...)
    """
    if not (isinstance(policy, type) and issubclass(policy, PPOTorchPolicy)):
        raise ValueError(
            f"expected a class derived from RLlib's PPOTorchPolicy, got {policy!r}; with other algorithms "
            "use the new API stack and robustify"
        )
    if not isinstance(regularizer, Regularizer):
        raise ValueError(f"expected a regularizer, got {regularizer!r}")
    if regularizer.constrains:
        raise ValueError(
            f"expected a regularizer that works through the loss, got {regularizer!r}, which changes the "
            "weights of the actor alone, and a ModelV2 does not say which these are; use the new API stack"
        )
    attributes = {"regularizer": regularizer, "__module__": __name__, "__doc__": policy.__doc__}
    return type(f"Robust{policy.__name__}", (RobustPolicyMixin, policy), attributes)


class RobustPolicyMixin(PPOTorchPolicy):
    """Adds a regularizer to the loss of a policy; see `robustify_policy`."""

    regularizer: ClassVar[Regularizer]

    def __init__(self, observation_space: Any, action_space: Any, config: Any) -> None:
        # RLlib's constructor tries the loss on a batch of zeros.
        self._regularized: Regularized | None = None
        super().__init__(observation_space, action_space, config)
        self._timestep = 0
        self._minibatches = 0
        self._check()
        features = Features.of(self.observation_space, self.regularizer.perturbed_leaves)
        self._features = features.to(self.device)
        self._regularized = Regularized(
            str(self.config.get("__policy_id")),
            self.regularizer,
            self._distribution(),
            offers=set(EVERYTHING),
            backends=BACKENDS,
        )

    def loss(self, model: Any, dist_class: Any, train_batch: SampleBatch) -> Any:
        loss = super().loss(model, dist_class, train_batch)
        regularized = self._regularized
        if regularized is None or not regularized.regularizer.active(self._timestep):
            return loss
        self._minibatches += 1
        with undisturbed(model):
            sample = model_sample(
                model,
                train_batch,
                features=self._features,
                distribution=regularized.distribution,
                policy_loss=ppo_policy_loss(self.config["clip_param"]),
            )
            key = f"{self.config['seed']}/{self._minibatches}"
            return loss + regularized.term(sample, loss, timestep=self._timestep, key=key)

    def stats_fn(self, train_batch: SampleBatch) -> dict[str, Any]:
        stats = super().stats_fn(train_batch)
        if self._regularized is not None:
            name = self._regularized.regularizer.name
            stats |= {f"{name}/{key}": value.item() for key, value in self._regularized.latest.items()}
        return stats

    def on_global_var_update(self, global_vars: Any) -> None:
        """Ends the update; RLlib calls this after each training step."""
        super().on_global_var_update(global_vars)
        self._timestep = int(global_vars["timestep"])
        if self._regularized is not None and (report := self._regularized.report()) is not None:
            self._regularized.finish(report)

    def get_state(self) -> Any:
        state = super().get_state()
        assert self._regularized is not None
        state[STATE_KEY] = {
            "timestep": self._timestep,
            "minibatches": self._minibatches,
            "adapted": {name: getattr(self, name) for name in _ADAPTED},
            "state": {name: value.cpu().numpy() for name, value in self._regularized.state.items()},
        }
        return state

    def set_state(self, state: Any) -> None:
        super().set_state(state)
        if (own := state.get(STATE_KEY)) is None:
            return
        assert self._regularized is not None
        self._timestep, self._minibatches = own["timestep"], own["minibatches"]
        for name, value in own["adapted"].items():
            setattr(self, name, value)
        self._regularized.state = {name: torch.as_tensor(value) for name, value in own["state"].items()}

    def _check(self) -> None:
        if len(self.devices) > 1:
            raise ValueError(
                f"expected one device for a policy with a regularizer, got {len(self.devices)}; set num_gpus "
                "to at most 1"
            )
        if self.model.is_time_major():
            raise ValueError("expected a batch-major model, got a time-major one; set _time_major=False")

    def _distribution(self) -> ActionDistribution:
        distribution = from_space(self.action_space)
        found: Any = getattr(self.dist_class, "func", self.dist_class)
        if not issubclass(found, _RLLIB_CLASSES[type(distribution)]):
            raise ValueError(
                "expected a policy with RLlib's TorchCategorical, TorchMultiCategorical or "
                f"TorchDiagGaussian, got {found.__name__}; leave this policy as it is"
            )
        return distribution
