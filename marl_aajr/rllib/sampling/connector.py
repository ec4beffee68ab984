"""From fragments to a train batch: the learner's whole connector pipeline in one piece."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gymnasium as gym
import torch
from ray.rllib.connectors.connector_v2 import ConnectorV2
from ray.rllib.core.columns import Columns
from ray.rllib.core.rl_module.torch import TorchRLModule
from ray.rllib.evaluation.postprocessing import Postprocessing
from torch import Tensor

from marl_aajr.rllib.networks import observation_of
from marl_aajr.rollout.fragments import Fragment, map_tree
from marl_aajr.rollout.parity import stock_rows, time_limits_terminate
from marl_aajr.rollout.postprocessing import Critic, Rows, training_rows
from marl_aajr.rollout.sequences import RecurrentCritic, SequenceRows, sequence_rows


class FragmentsToBatch(ConnectorV2):
    """Computes values, advantages and value targets, and lays the rows out by module.

    A module that has no sample in the fragments has no batch.

    Args:
        gamma: Discount.
        lambda_: λ of GAE.
        parity: Make the very rows that RLlib's connectors would (`marl_aajr.rollout.parity`), with time
            limits as its PettingZoo wrapper has them.
    """

    def __init__(
        self,
        input_observation_space: gym.Space[Any] | None = None,
        input_action_space: gym.Space[Any] | None = None,
        *,
        gamma: float,
        lambda_: float,
        parity: bool = False,
    ) -> None:
        super().__init__(input_observation_space, input_action_space)
        self.gamma = gamma
        self.lambda_ = lambda_
        self.parity = parity

    def __call__(
        self,
        *,
        rl_module: Any,
        batch: dict[str, Any],
        episodes: list[Fragment],
        shared_data: dict[str, Any] | None = None,
        **_: Any,
    ) -> dict[str, Any]:
        if self.parity:
            episodes = [time_limits_terminate(fragment) for fragment in episodes]
        for name in episodes[0].modules:
            module = rl_module[name].unwrapped()
            rows = self._rows(name, module, episodes)
            if len(rows):
                batch[name] = _columns(rows, module)
            if isinstance(rows, SequenceRows) and shared_data is not None:
                shared_data[f"_zero_padded_for_mid={name}"] = True
        return batch

    def _rows(self, name: str, module: TorchRLModule, fragments: list[Fragment]) -> Rows | SequenceRows:
        settings = {"gamma": self.gamma, "lambda_": self.lambda_}
        device = next(module.parameters()).device
        fragments = [fragment.to(device) for fragment in fragments]
        if module.is_stateful():
            if self.parity:
                raise ValueError(
                    f"expected modules without recurrent state in parity mode, got {name!r}; turn it off, or "
                    "use RLlib's env runner"
                )
            length = int(module.model_config["max_seq_len"])
            initial = map_tree(torch.as_tensor, module.get_initial_state())
            critic = recurrent_critic_of(module)
            return sequence_rows(fragments, name, critic, initial, length=length, **settings)
        if self.parity:
            return stock_rows(fragments, name, critic_of(module), **settings)
        parts = [fragment.modules[name] for fragment in fragments]
        return training_rows(parts, critic_of(module), **settings)


def critic_of(module: TorchRLModule) -> Critic:
    """The values of a module that has a value function.

    Raises:
        ValueError: The module has none.
    """
    compute = _compute_values(module)
    return lambda obs, mask: compute({Columns.OBS: observation_of(obs, mask, module.observation_space)})


def recurrent_critic_of(module: TorchRLModule) -> RecurrentCritic:
    """The values of a recurrent module that has a value function.

    Raises:
        ValueError: The module has none.
    """
    compute = _compute_values(module)
    return lambda obs, mask, states: compute(
        {Columns.OBS: observation_of(obs, mask, module.observation_space), Columns.STATE_IN: states}
    )


def _compute_values(module: TorchRLModule) -> Callable[[dict[str, Any]], Tensor]:
    compute: Callable[[dict[str, Any]], Tensor] | None = getattr(module, "compute_values", None)
    if compute is None:
        raise ValueError(f"expected a module with compute_values, got {type(module).__name__}")
    return compute


def _columns(rows: Rows | SequenceRows, module: TorchRLModule) -> dict[str, Any]:
    columns = {
        Columns.OBS: observation_of(rows.obs, rows.mask, module.observation_space),
        Columns.ACTIONS: rows.actions,
        Columns.ACTION_LOGP: rows.log_probs,
        Columns.ACTION_DIST_INPUTS: rows.inputs,
        Postprocessing.ADVANTAGES: rows.advantages,
        Postprocessing.VALUE_TARGETS: rows.value_targets,
    }
    if rows.loss_mask is not None:
        columns[Columns.LOSS_MASK] = rows.loss_mask
    if isinstance(rows, SequenceRows):
        columns |= {Columns.STATE_IN: rows.states, Columns.SEQ_LENS: rows.loss_mask.sum(1)}
    return columns
