"""One PPO minibatch update, again and again: its time, its memory and its operations."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

AT_LEAST = 4
"""Minibatches of a measurement."""

HIDDEN = 64
MODULE = "shared"


@dataclass(frozen=True)
class Size:
    """A minibatch: features d, actions m, rows B; of sequences of length T where T > 1, or of images."""

    d: int
    m: int
    rows: int
    steps: int = 1
    jacrev: bool = False
    width: int = HIDDEN
    image: bool = False

    @property
    def shape(self) -> tuple[int, ...]:
        """Of an observation."""
        return (*[round((self.d / 3) ** 0.5)] * 2, 3) if self.image else (self.d,)

    def recurrent_gflop(self) -> float:
        """Operations of the products in the LSTMs of actor and critic, which `Update.gflop` does not see."""
        forward = 2 * self.rows * 4 * self.width * (2 * self.width)
        return 2 * 3 * forward / 1e9 if self.steps > 1 else 0.0

    def mlp_gflop(self) -> float:
        """Operations of an update of two MLPs: the inputs of a first layer need no gradient."""
        d, w = self.d, self.width
        return sum(2 * self.rows * (2 * d * w + 3 * w * w + 3 * w * m) for m in (self.m, 1)) / 1e9

    def __str__(self) -> str:
        width, network = self.width, f"{self.width}x{self.width} tanh"
        if self.steps > 1:
            network = f"LSTM of {width}, sequences of {self.steps}"
        return f"d = {self.d}, m = {self.m}, {self.rows:,} rows, {network}"


class Update:
    """One learner and one minibatch; a call makes a few updates and says how long one took.

    A regularizer of every m-th minibatch is measured over m of them.
    """

    def __init__(
        self, size: Size, regularizer: Any = None, *, lean: bool = False, device: str = "cpu"
    ) -> None:
        self.size = size
        self.every = 1 if regularizer is None else regularizer.every
        self.epochs = -(-AT_LEAST // self.every) * self.every
        self.learner = build_learner(size, regularizer, lean=lean, device=device)
        self.batch = minibatch(self.learner, size).to_device(device, framework="torch")
        self(), self()

    def __call__(self, epochs: int | None = None) -> float:
        from ray.rllib.utils.metrics import NUM_ENV_STEPS_SAMPLED_LIFETIME

        epochs = epochs or self.epochs
        started = time.process_time()
        self.learner.update(
            batch=self.batch,
            timesteps={NUM_ENV_STEPS_SAMPLED_LIFETIME: 0},
            num_epochs=epochs,
            minibatch_size=self.size.rows,
            shuffle_batch_per_epoch=False,
        )
        return (time.process_time() - started) / epochs

    def peak_bytes(self) -> float:
        """What the learner holds, and the highest sum of what an update allocates and frees, in order."""
        from torch.profiler import ProfilerActivity, profile

        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
            self(epochs=self.every)
        events = [e for e in profiler.profiler.kineto_results.events() if e.name() == "[memory]"]
        now = peak = 0
        for event in sorted(events, key=lambda event: event.start_ns()):
            now += event.nbytes()
            peak = max(peak, now)
        return self._resident() + peak

    def gflop(self) -> float:
        """Operations in matrix products, by PyTorch's own formulas."""
        from torch.utils._python_dispatch import TorchDispatchMode
        from torch.utils.flop_counter import flop_registry

        total = 0

        class Counter(TorchDispatchMode):  # FlopCounterMode's hooks forbid derivatives of derivatives
            def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
                nonlocal total
                out = func(*args, **(kwargs or {}))
                if count := flop_registry.get(func.overloadpacket):
                    total += count(*args, **(kwargs or {}), out_val=out)
                return out

        with Counter():
            self(epochs=self.every)
        return total / 1e9 / self.every

    def _resident(self) -> int:
        import torch
        import tree

        module = self.learner.module[MODULE].unwrapped()
        held: list[Any] = [*module.parameters(), *tree.flatten(dict(self.batch[MODULE]))]
        for optimizer in self.learner.get_optimizers_for_module(MODULE):
            for _, state in optimizer[1].state.items():
                held += [value for value in state.values() if isinstance(value, torch.Tensor)]
        return sum(tensor.numel() * tensor.element_size() for tensor in held)


def build_learner(size: Size, regularizer: Any, *, lean: bool, device: str = "cpu") -> Any:
    """A PPO learner without Ray, as runs have it."""
    import gymnasium as gym
    import numpy as np
    import torch
    from ray.rllib.algorithms.ppo import PPOConfig
    from ray.rllib.core.rl_module import MultiRLModuleSpec, RLModuleSpec
    from ray.rllib.core.rl_module.default_model_config import DefaultModelConfig

    from marl_aajr import robustify
    from marl_aajr.rllib.lean.learner import LeanPPOTorchLearner

    model = DefaultModelConfig(
        fcnet_hiddens=[size.width] if size.steps > 1 else [size.width, size.width],
        vf_share_layers=False,
        use_lstm=size.steps > 1,
        lstm_cell_size=size.width,
        max_seq_len=size.steps,
        conv_filters=[[16, 3, 2], [32, 3, 2]] if size.image else None,
        head_fcnet_hiddens=[size.width] if size.image else [],
    )
    config = (
        PPOConfig()
        .multi_agent(policies={MODULE}, policy_mapping_fn=lambda *_, **__: MODULE)
        .training(lr=5e-4, entropy_coeff=0.01, use_kl_loss=False, vf_clip_param=float("inf"))
        .learners(num_gpus_per_learner=int(device != "cpu"))
        .debugging(seed=0, log_level="ERROR")
    )
    if lean:
        config.training(learner_class=LeanPPOTorchLearner)
    if regularizer is not None:
        config = robustify(config, regularizer)
    torch.manual_seed(0)
    spec = RLModuleSpec(
        module_class=config.get_default_rl_module_spec().module_class,
        observation_space=gym.spaces.Box(-10, 10, size.shape, np.float32),
        action_space=gym.spaces.Discrete(size.m),
        model_config=model,
    )
    learner = config.learner_class(
        config=config, module_spec=MultiRLModuleSpec(rl_module_specs={MODULE: spec})
    )
    learner.build()
    return learner


def minibatch(learner: Any, size: Size, obs: Any = None) -> Any:
    """Observations (None: random numbers) and the actions that the module would take there."""
    import torch
    import tree
    from ray.rllib.core.columns import Columns
    from ray.rllib.evaluation.postprocessing import Postprocessing
    from ray.rllib.policy.sample_batch import MultiAgentBatch, SampleBatch

    module = learner.module[MODULE].unwrapped()
    torch.manual_seed(0)
    lead = (size.rows // size.steps, size.steps) if size.steps > 1 else (size.rows,)
    columns: dict[str, Any] = {Columns.OBS: torch.randn(*lead, *size.shape) if obs is None else obs}
    if size.steps > 1:
        state = tree.map_structure(torch.as_tensor, module.get_initial_state())
        columns[Columns.STATE_IN] = tree.map_structure(
            lambda part: part.expand(lead[0], *part.shape).clone(), state
        )
        columns[Columns.LOSS_MASK] = torch.ones(lead, dtype=torch.bool)
        columns[Columns.SEQ_LENS] = torch.full(lead[:1], size.steps)
    with torch.no_grad():
        inputs = module.forward_train(dict(columns))[Columns.ACTION_DIST_INPUTS]
    distribution = module.get_train_action_dist_cls().from_logits(inputs)
    actions = distribution.sample()
    columns |= {
        Columns.ACTIONS: actions,
        Columns.ACTION_LOGP: distribution.logp(actions),
        Columns.ACTION_DIST_INPUTS: inputs,
        Postprocessing.ADVANTAGES: torch.randn(lead),
        Postprocessing.VALUE_TARGETS: torch.randn(lead),
    }
    return MultiAgentBatch({MODULE: SampleBatch(columns)}, env_steps=size.rows)
