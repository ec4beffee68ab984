"""PPO's loss of one module.

`ModuleLoss.forward` stands for the module's `forward_train`. Where both networks are plain MLPs, it computes
the loss and its gradient by the weights at once. The loss is in its output, under `LOSS`, and the gradient in
`ModuleLoss.gradients`: RLlib's way from forward pass to optimizer has no other place for a gradient that is
there before the loss is differentiated.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from ray.rllib.algorithms.ppo.ppo import (
    LEARNER_RESULTS_KL_KEY,
    LEARNER_RESULTS_VF_EXPLAINED_VAR_KEY,
    LEARNER_RESULTS_VF_LOSS_UNCLIPPED_KEY,
)
from ray.rllib.core.columns import Columns
from ray.rllib.core.learner.learner import ENTROPY_KEY, POLICY_LOSS_KEY, VF_LOSS_KEY
from ray.rllib.core.rl_module.torch import TorchRLModule
from ray.rllib.evaluation.postprocessing import Postprocessing
from ray.rllib.utils.torch_utils import explained_variance
from torch import Tensor, nn

from marl_aajr.core.distributions import logit_scale
from marl_aajr.core.environment_values import split
from marl_aajr.rllib.internals.modules import plain_networks
from marl_aajr.rllib.lean.plain_gradient import plain_gradient
from marl_aajr.rllib.lean.ppo_loss import PPOCoefficients, PPORows, ppo_loss, ppo_parts
from marl_aajr.rllib.networks import FlatActorCritic, floats
from marl_aajr.rllib.plugin.module_policy import CLEAN_OBS, ROLLOUTS_KEY
from marl_aajr.rllib.plugin.robust_learner import REGULARIZERS_KEY
from marl_aajr.rllib.sampling.module_policies import own_distribution
from marl_aajr.rollout.attack.rollout_attack import RolloutAttack

VALUES, LOSS, ROWS = (f"marl_aajr_{name}" for name in ("values", "loss", "rows"))
"""Keys of a forward pass's output: the critic's values `[N]`; or PPO's loss, which then has no graph, and the
`PPORows` that it is of."""

LOGIT_SCALE_KEY = "logit_scale"

_ROWS = (Columns.ACTIONS, Columns.ACTION_LOGP, Postprocessing.ADVANTAGES, Postprocessing.VALUE_TARGETS)

Metrics = dict[str, Tensor]


@dataclass(frozen=True)
class Plan:
    """What an update does with a module.

    Attributes:
        coefficients: Of the loss.
        with_graph: Whether RLlib's loss has more terms than ours, and is differentiated as a whole.
        in_place: Whether the gradient stays where it was computed, in the optimizer's buffer.
        grad_clip: The largest norm of a gradient; None: any.
    """

    coefficients: PPOCoefficients
    with_graph: bool
    in_place: bool
    grad_clip: float | None


def unread_columns(settings: Mapping[str, Any]) -> tuple[str, ...]:
    """Columns of a batch that nobody reads, by a learner's settings: `AlgorithmConfig.learner_config_dict`.

    They are the true observations, where critics read what the agents saw and nobody is regularized.
    """
    rollouts = settings.get(ROLLOUTS_KEY)
    read = rollouts is None or rollouts.critic == "clean" or REGULARIZERS_KEY in settings
    return () if read else (CLEAN_OBS,)


class ModuleLoss:
    """PPO's loss of one unwrapped module, with a buffer for the gradient by each parameter.

    Args:
        module: The module.
        buffers: Where gradients by its parameters can be written, by parameter.
        rollouts: The attack that agents act under; None: there is none.

    Attributes:
        gradients: Those buffers that are filled then, by parameter.
        distribution: The distribution of the module's outputs; None: not one of ours, and only RLlib's own
            loss can serve.
    """

    def __init__(
        self,
        module: TorchRLModule,
        buffers: Mapping[Tensor, Tensor],
        rollouts: RolloutAttack | None = None,
    ) -> None:
        self.module = module
        self._clean = rollouts is not None and rollouts.critic == "clean"
        self.distribution = own_distribution(module, module.action_space)
        self._networks = networks(module)
        self._plain = plain_gradient(self._networks, self.distribution, buffers)
        written = () if self._plain is None else self._plain.parameters
        self.gradients = {parameter: buffers[parameter] for parameter in written}

    def forward(
        self, columns: dict[str, Any], coefficients: PPOCoefficients, *, with_graph: bool
    ) -> dict[str, Any]:
        """The module's `forward_train`; for small networks, loss and gradient at once unless `with_graph`."""
        if self._networks is None:
            return self.module.forward_train(columns)
        obs, critic_obs = network_inputs(self.module, columns[Columns.OBS])
        if self._clean and CLEAN_OBS in columns:
            critic_obs = network_inputs(self.module, columns[CLEAN_OBS])[1]
        if self._plain is not None and Columns.LOSS_MASK not in columns and not with_graph:
            constants = [columns[name] for name in _ROWS]
            loss, rows = self._plain(obs, critic_obs, constants, coefficients)
            return {LOSS: loss, ROWS: rows}
        actor, critic = self._networks
        return {Columns.ACTION_DIST_INPUTS: actor(obs), VALUES: critic(critic_obs).squeeze(-1)}

    def __call__(
        self,
        batch: Mapping[str, Any],
        fwd_out: Mapping[str, Any],
        coefficients: PPOCoefficients,
        *,
        kl_coefficient: Tensor | None,
        report: bool,
    ) -> tuple[Tensor, Metrics]:
        """The loss, with `kl_coefficient · KL(π_old ‖ π)` if there is one; metrics, if `report`.

        These are RLlib's, and `logit_scale` where actions are discrete.
        """
        assert self.distribution is not None
        if LOSS in fwd_out:
            loss = fwd_out[LOSS]
            none = torch.zeros_like(loss)
            return loss, self._report(fwd_out[ROWS], coefficients, none) if report else {}
        values = fwd_out.get(VALUES)
        if values is None:
            read = self.for_critic(batch, fwd_out)
            embeddings = read["fwd_out"].get(Columns.EMBEDDINGS)
            values = self.module.compute_values(read["batch"], embeddings=embeddings)
        rows = PPORows(fwd_out[Columns.ACTION_DIST_INPUTS], values, *(batch[name] for name in _ROWS))
        old, mask = batch[Columns.ACTION_DIST_INPUTS], batch.get(Columns.LOSS_MASK)
        if mask is not None:
            rows, old = rows.where(mask.bool()), old[mask.bool()]
        loss = ppo_loss(self.distribution, rows, coefficients)
        divergence = torch.zeros_like(loss)
        if kl_coefficient is not None and len(rows.values):
            divergence = self.distribution.kl(old, rows.inputs).mean()
            loss = loss + kl_coefficient * divergence
        measure = report and len(rows.values) > 0
        return loss, self._report(rows, coefficients, divergence) if measure else {}

    def for_critic(self, batch: Any, fwd_out: Any) -> dict[str, Any]:
        """`batch` as the critic reads it, and what is of use to the critic of `fwd_out`."""
        if not self._clean or CLEAN_OBS not in batch:
            return {"batch": batch, "fwd_out": fwd_out}
        # The actor's encoder saw other observations.
        of_use = {key: out for key, out in fwd_out.items() if key != Columns.EMBEDDINGS}
        return {"batch": {**batch, Columns.OBS: batch[CLEAN_OBS]}, "fwd_out": of_use}

    @torch.no_grad()
    def _report(self, rows: PPORows, c: PPOCoefficients, divergence: Tensor) -> Metrics:
        assert self.distribution is not None
        parts = ppo_parts(self.distribution, rows, clip=c.clip, vf_clip=c.vf_clip)
        scale = logit_scale(self.distribution, rows.inputs)
        return {
            **({} if scale is None else {LOGIT_SCALE_KEY: scale}),
            POLICY_LOSS_KEY: parts["policy_loss"],
            VF_LOSS_KEY: parts["vf_loss"],
            LEARNER_RESULTS_VF_LOSS_UNCLIPPED_KEY: parts["vf_loss_unclipped"],
            LEARNER_RESULTS_VF_EXPLAINED_VAR_KEY: explained_variance(rows.value_targets, rows.values),
            ENTROPY_KEY: parts["entropy"],
            LEARNER_RESULTS_KL_KEY: divergence.detach(),
        }


def network_inputs(module: TorchRLModule, obs: Any) -> tuple[Tensor, Tensor]:
    """The inputs of a module's actor and critic from a batch of observations."""
    if not isinstance(module, FlatActorCritic):
        return obs, obs
    own, _ = split(obs)
    return floats(own), module.critic_inputs(obs)


def networks(module: TorchRLModule) -> tuple[nn.Sequential, nn.Sequential] | None:
    """A module's actor and critic as layers on `network_inputs`; None where they are more than that."""
    if not isinstance(module, FlatActorCritic):
        return plain_networks(module)
    actor, critic = module.flat_actor, module.flat_critic
    return None if actor is None or critic is None else (actor, critic)
