"""Every kind of policy that the plug-in serves, small: modules, spaces and train batches with padded rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import gymnasium as gym
import numpy as np
import torch
import tree
from gymnasium.spaces import Box, Discrete, MultiDiscrete
from ray.rllib.algorithms.ppo.torch.default_ppo_torch_rl_module import DefaultPPOTorchRLModule
from ray.rllib.core.columns import Columns
from ray.rllib.core.learner.learner import Learner
from ray.rllib.core.rl_module import MultiRLModuleSpec
from ray.rllib.core.rl_module.default_model_config import DefaultModelConfig
from ray.rllib.core.rl_module.rl_module import RLModuleSpec
from ray.rllib.core.rl_module.torch import TorchRLModule
from ray.rllib.evaluation.postprocessing import Postprocessing
from ray.rllib.examples.rl_modules.classes.action_masking_rlm import ActionMaskingTorchRLModule
from ray.rllib.policy.sample_batch import MultiAgentBatch, SampleBatch
from torch import Tensor

from marl_aajr import AAJR
from marl_aajr.core.distributions import from_space
from marl_aajr.core.jacobian import BACKENDS
from marl_aajr.regularizers import LossTerm, Regularizer, ppo_policy_loss
from marl_aajr.regularizers.adversarial import ObservationRegularizer
from marl_aajr.rllib.networks import FlatActorCritic, MAPPOModule
from marl_aajr.rllib.plugin.regularized_module import RegularizedModule
from tests.networks import generator
from tests.rllib.policy_modules import AttentionModule, ConvolutionModule, GRUModule, NestedModule

ROWS, SEQUENCES, LENGTH = 6, 3, 4
VALID_LENGTHS = (4, 2, 3)


NESTED = gym.spaces.Dict(
    {
        "camera": gym.spaces.Dict({"depth": Box(-1, 1, (2, 2)), "rgb": Box(0, 255, (2, 2), np.uint8)}),
        "goal": Box(-1, 1, (2,)),
        "body": gym.spaces.Tuple((Box(-1, 1, (3,)), Discrete(3))),
    }
)
FLAT, IMAGE = Box(-1, 1, (4,)), Box(-1, 1, (8, 8, 2))
MASKED = gym.spaces.Dict({"observation": FLAT, "action_mask": Box(0, 1, (3,), np.int8)})
CENTRAL = gym.spaces.Dict({"observation": FLAT, "state": Box(-1, 1, (7,))})
MASKED_CENTRAL = gym.spaces.Dict({**MASKED.spaces, "state": Box(-1, 1, (2, 3))})


def mlp(**settings: Any) -> DefaultModelConfig:
    return DefaultModelConfig(**{"fcnet_hiddens": [8], "vf_share_layers": False, **settings})


def lstm(**settings: Any) -> DefaultModelConfig:
    return mlp(use_lstm=True, lstm_cell_size=5, max_seq_len=LENGTH, **settings)


@dataclass(frozen=True)
class Case:
    """One kind of policy.

    Attributes:
        obs: Space of the module's observations.
        actions: Space of its actions.
        module: Its class.
        model: Its configuration.
        leaves: What the regularizer is told to perturb.
        paths: Where the perturbed leaves are, in their order.
        backend: The Jacobian backend that `auto` has to choose, on a CPU.
    """

    obs: gym.Space[Any] = field(default_factory=lambda: FLAT)
    actions: gym.Space[Any] = field(default_factory=lambda: Discrete(3))
    module: type[TorchRLModule] = DefaultPPOTorchRLModule
    model: Any = field(default_factory=mlp)
    leaves: tuple[str, ...] | None = None
    paths: Sequence[tuple[Any, ...]] = ((),)
    backend: str = "forward"

    @property
    def spec(self) -> RLModuleSpec:
        return RLModuleSpec(
            module_class=self.module,
            observation_space=self.obs,
            action_space=self.actions,
            model_config=self.model,
        )


CONVOLUTIONS = mlp(conv_filters=[[2, 3, 2], [4, 3, 2]], conv_activation="tanh")
CASES = {
    "mlp": Case(),
    "mlp-shared": Case(model=mlp(vf_share_layers=True)),
    "multi-discrete": Case(actions=MultiDiscrete([2, 3])),
    "box": Case(actions=Box(-1, 1, (2,))),
    "box-free-sigma": Case(actions=Box(-1, 1, (2,)), model=mlp(free_log_std=True)),
    "lstm": Case(model=lstm(), backend="double"),
    "lstm-shared": Case(model=lstm(vf_share_layers=True), backend="double"),
    "gru": Case(module=GRUModule, model={"max_seq_len": LENGTH}),
    "attention": Case(obs=Box(-1, 1, (5, 3)), module=AttentionModule, model={}, backend="central"),
    "cnn": Case(obs=IMAGE, model=CONVOLUTIONS),
    "convolution": Case(obs=IMAGE, module=ConvolutionModule, model={}),
    "nested": Case(
        obs=NESTED, module=NestedModule, model={}, paths=(("body", 0), ("camera", "depth"), ("goal",))
    ),
    "nested-leaf": Case(obs=NESTED, module=NestedModule, model={}, leaves=("goal",), paths=(("goal",),)),
    "nested-branches": Case(
        obs=NESTED,
        module=NestedModule,
        model={},
        leaves=("camera", "body/0"),
        paths=(("body", 0), ("camera", "depth")),
    ),
    "masked": Case(obs=MASKED, module=FlatActorCritic, paths=(("observation",),)),
    "masked-rllib": Case(
        obs=gym.spaces.Dict({"observations": FLAT, "action_mask": Box(0, 1, (3,))}),
        module=ActionMaskingTorchRLModule,
    ),
    "flat-image": Case(obs=IMAGE, module=FlatActorCritic),
    "mappo": Case(obs=CENTRAL, module=MAPPOModule, paths=(("observation",),)),
    "mappo-box": Case(
        obs=CENTRAL,
        actions=Box(-1, 1, (2,)),
        module=MAPPOModule,
        model=mlp(free_log_std=True),
        leaves=("observation",),
        paths=(("observation",),),
    ),
    "mappo-masked": Case(obs=MASKED_CENTRAL, module=MAPPOModule, paths=(("observation",),)),
}


def columns_of(case: Case, module: Any, *, dtype: torch.dtype = torch.float32) -> dict[str, Any]:
    """A train batch with rows that do not count: padding behind sequences, phantom rows among others."""
    stateful = module.is_stateful()
    rows = (SEQUENCES, LENGTH) if stateful else (ROWS,)
    generator = torch.Generator().manual_seed(1)
    case.obs.seed(1)
    samples = [case.obs.sample() for _ in range(int(np.prod(rows)))]
    obs = tree.map_structure(lambda *leaves: _stack(leaves, rows, dtype), *samples)
    mask = torch.ones(rows, dtype=torch.bool)
    columns: dict[str, Any] = {Columns.OBS: obs}
    if stateful:
        mask = torch.arange(LENGTH) < torch.tensor(VALID_LENGTHS)[:, None]
        initial = module.get_initial_state()
        columns[Columns.STATE_IN] = tree.map_structure(
            lambda s: torch.randn(SEQUENCES, *s.shape, generator=generator, dtype=dtype), initial
        )
        columns[Columns.SEQ_LENS] = torch.tensor(VALID_LENGTHS)
    else:
        mask[[1, 4]] = False
    if isinstance(obs, dict) and "action_mask" in obs:
        obs["action_mask"] = torch.ones_like(obs["action_mask"])
        obs["action_mask"][..., 2] = 0
    if case.module is ActionMaskingTorchRLModule:  # as its compute_values leaves the batch
        columns = {Columns.OBS: obs["observations"], "action_mask": obs["action_mask"]}
    with torch.no_grad():
        inputs = module.forward_train(copied(columns))[Columns.ACTION_DIST_INPUTS]
    actions = from_space(case.actions).sample(inputs, generator=generator)
    distribution = module.get_train_action_dist_cls().from_logits(inputs)

    def noise() -> Tensor:
        return torch.randn(rows, generator=generator, dtype=dtype)

    return {
        **columns,
        Columns.ACTIONS: actions,
        Columns.ACTION_LOGP: distribution.logp(actions),
        Columns.ACTION_DIST_INPUTS: inputs,
        Columns.LOSS_MASK: mask,
        Postprocessing.ADVANTAGES: noise(),
        Postprocessing.VALUE_TARGETS: noise(),
    }


def _stack(leaves: Sequence[Any], rows: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    stacked = torch.from_numpy(np.stack(leaves)).reshape(*rows, *np.shape(leaves[0]))
    return stacked.to(dtype) if stacked.is_floating_point() else stacked


def copied(batch: Any) -> Any:
    """The same tensors in new mappings: modules pop from them."""
    return tree.map_structure(lambda leaf: leaf, batch)


PENALTY = AAJR(
    coefficient=1.0,
    epsilon=0.1,
    steps=2,
    objective="surrogate",
    start="zero",
    sample_fraction=1.0,
    points="all",
)


def regularized(case: Case, regularizer: Regularizer, module: Any) -> RegularizedModule:
    if isinstance(regularizer, ObservationRegularizer):
        regularizer = replace(regularizer, leaves=case.leaves)
    return RegularizedModule(
        "a", regularizer, module, policy_loss=ppo_policy_loss(0.3), backends=BACKENDS, shard=None
    )


def evaluated(of: RegularizedModule, columns: dict[str, Any]) -> LossTerm:
    sample = of.sample(columns, None)
    fitted = of.regularizer.fitted(sample.policy, sample.obs)
    return fitted.evaluate(sample, timestep=0, generator=generator(), check=True)


def built(config: Any, case: Case) -> Learner:
    torch.manual_seed(0)
    specs = dict.fromkeys(sorted(config.policies), case.spec)
    learner = config.learner_class(config=config, module_spec=MultiRLModuleSpec(rl_module_specs=specs))
    learner.build()
    return learner


def batch_of(columns: dict[str, Any]) -> MultiAgentBatch:
    return MultiAgentBatch({"a": SampleBatch(columns)}, env_steps=columns[Columns.LOSS_MASK].numel())
