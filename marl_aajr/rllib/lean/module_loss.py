"""PPO's loss of one module, and which of its rows go into which minibatch.

`minibatches` follows RLlib's order without its batches: `MiniBatchCyclicIterator` slices, concatenates and
shuffles whole batches of columns, which takes longer than the forward pass of a small network. Here a
minibatch is an index.

`ModuleLoss.forward` stands for the module's `forward_train`. Where both networks are plain MLPs, it computes
the loss and its gradient by the weights at once, and hands them on in its output, under `LOSS` and
`GRADIENT`: RLlib's way from forward pass to optimizer has no other place for a gradient that is there before
the loss is differentiated. `LeanPPOTorchLearner.minibatch_step` takes it out again.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
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

from marl_aajr.core.environment_values import split
from marl_aajr.rllib.internals.modules import plain_networks
from marl_aajr.rllib.lean.ppo_loss import PPOCoefficients, PPORows, plain_gradient, ppo_loss, ppo_parts
from marl_aajr.rllib.networks import FlatActorCritic, floats
from marl_aajr.rllib.sampling.module_policies import own_distribution

Index = NDArray[np.int64]


def minibatches(
    rows: Mapping[str, int], *, size: int, total: int, shuffle: bool
) -> Iterator[dict[str, Index]]:
    """Indices of the rows of each module, of which there are so many, in each of `total` minibatches.

    Every module contributes `size` rows to every minibatch, going round through its rows. The first time,
    rows are in the order given; if `shuffle`, they are shuffled before each of the others. As in RLlib,
    NumPy's global generator does it, so that the same seed gives the same minibatches as RLlib's learner.
    """
    cycles = {module: _cycle(count, size, shuffle=shuffle) for module, count in rows.items()}
    for _ in range(total):
        yield {module: next(cycle) for module, cycle in cycles.items()}


def _cycle(rows: int, size: int, *, shuffle: bool) -> Iterator[Index]:
    """`size` rows of one module at a time, round and round."""
    order: Index = np.arange(rows)
    start = 0
    while True:
        pieces, missing = [], size
        while start + missing >= rows:
            pieces.append(order[start:])
            missing -= rows - start
            start = 0
            if shuffle:
                order = order[np.random.permutation(rows)]  # noqa: NPY002
        if missing:
            pieces.append(order[start : start + missing])
            start += missing
        yield pieces[0] if len(pieces) == 1 else np.concatenate(pieces)


VALUES, LOSS, ROWS, GRADIENT = (f"marl_aajr_{name}" for name in ("values", "loss", "rows", "gradient"))
"""Keys of a forward pass's output: the critic's values `[N]`; or PPO's loss, which then has no graph, the
`PPORows` that it is of, and its gradient by parameter."""

_ROWS = (Columns.ACTIONS, Columns.ACTION_LOGP, Postprocessing.ADVANTAGES, Postprocessing.VALUE_TARGETS)

Metrics = dict[str, Tensor]


class ModuleLoss:
    """PPO's loss of one unwrapped module.

    Attributes:
        distribution: The distribution of the module's outputs; None: not one of ours, and only RLlib's own
            loss can serve.
    """

    def __init__(self, module: TorchRLModule) -> None:
        self.module = module
        self.distribution = own_distribution(module, module.action_space)
        self._networks = _networks(module)
        self._plain = plain_gradient(self._networks, self.distribution)

    def forward(
        self, columns: dict[str, Any], coefficients: PPOCoefficients, *, with_graph: bool
    ) -> dict[str, Any]:
        """The module's `forward_train`; for small networks, loss and gradient at once unless `with_graph`."""
        if self._networks is None:
            return self.module.forward_train(columns)
        obs, critic_obs = self._read(columns[Columns.OBS])
        if self._plain is not None and Columns.LOSS_MASK not in columns and not with_graph:
            constants = [columns[name] for name in _ROWS]
            loss, gradient, rows = self._plain(obs, critic_obs, constants, coefficients)
            return {LOSS: loss, GRADIENT: gradient, ROWS: rows}
        actor, critic = self._networks
        return {Columns.ACTION_DIST_INPUTS: actor(obs), VALUES: critic(critic_obs).squeeze(-1)}

    def _read(self, obs: Any) -> tuple[Tensor, Tensor]:
        """The inputs of the actor and the critic from a batch of observations."""
        if not isinstance(self.module, FlatActorCritic):
            return obs, obs
        own, _ = split(obs)
        return floats(own), self.module.critic_inputs(obs)

    def __call__(
        self,
        batch: Mapping[str, Any],
        fwd_out: Mapping[str, Any],
        coefficients: PPOCoefficients,
        *,
        kl_coefficient: Tensor | None,
        report: bool,
    ) -> tuple[Tensor, Metrics]:
        """The loss, with `kl_coefficient · KL(π_old ‖ π)` if there is one; RLlib's metrics, if `report`."""
        assert self.distribution is not None
        if LOSS in fwd_out:
            loss = fwd_out[LOSS]
            none = torch.zeros_like(loss)
            return loss, self._report(fwd_out[ROWS], coefficients, none) if report else {}
        values = fwd_out.get(VALUES)
        if values is None:
            values = self.module.compute_values(batch, embeddings=fwd_out.get(Columns.EMBEDDINGS))
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

    @torch.no_grad()
    def _report(self, rows: PPORows, c: PPOCoefficients, divergence: Tensor) -> Metrics:
        assert self.distribution is not None
        parts = ppo_parts(self.distribution, rows, clip=c.clip, vf_clip=c.vf_clip)
        return {
            POLICY_LOSS_KEY: parts["policy_loss"],
            VF_LOSS_KEY: parts["vf_loss"],
            LEARNER_RESULTS_VF_LOSS_UNCLIPPED_KEY: parts["vf_loss_unclipped"],
            LEARNER_RESULTS_VF_EXPLAINED_VAR_KEY: explained_variance(rows.value_targets, rows.values),
            ENTROPY_KEY: parts["entropy"],
            LEARNER_RESULTS_KL_KEY: divergence.detach(),
        }


def _networks(module: TorchRLModule) -> tuple[nn.Sequential, nn.Sequential] | None:
    """Actor and critic as layers; None where they are more than that."""
    if not isinstance(module, FlatActorCritic):
        return plain_networks(module)
    actor, critic = module.flat_actor, module.flat_critic
    return None if actor is None or critic is None else (actor, critic)
