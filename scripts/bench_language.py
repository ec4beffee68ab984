"""What AAJR costs beside a plain update of a language model: PPO minibatches in turns, in CPU time.

A model as in runs on bargain_v0, K = 2: on all rows, and at the share and the interval that
are the defaults. No Ray is started.
"""

from __future__ import annotations

import argparse
from statistics import median
from typing import Any

from bench_output import judge, load, machine, say
from bench_update import AT_LEAST, MODULE, Size, Update, minibatch

ROWS, WORDS = 256, 64
BARS: Any = {
    "plain + AAJR at its default share": ("at most", 2.5),
}


class LanguageUpdate(Update):
    """One learner of a language model and one minibatch of random words."""

    def __init__(self, regularizer: Any, *, length: int = 17, **model: Any) -> None:
        import gymnasium as gym
        import numpy as np
        import torch
        from ray.rllib.algorithms.ppo import PPOConfig
        from ray.rllib.core.columns import Columns
        from ray.rllib.core.rl_module.multi_rl_module import MultiRLModuleSpec
        from ray.rllib.core.rl_module.rl_module import RLModuleSpec

        from marl_aajr.core.words import Words
        from marl_aajr.rllib import robustify
        from marl_aajr.rllib.language_module import LanguageModule, language_model_config
        from marl_aajr.rllib.lean.learner import LeanPPOTorchLearner

        words = Words.of([[f"word{i}"] for i in range(WORDS)], actions=["word0", "word1", "word2"])
        spaces = gym.spaces.Box(0, WORDS, (length,), np.int64), gym.spaces.Discrete(3)
        config = (
            PPOConfig()
            .multi_agent(policies={MODULE}, policy_mapping_fn=lambda *_, **__: MODULE)
            .training(lr=5e-4, entropy_coeff=0.01, use_kl_loss=False, vf_clip_param=float("inf"))
            .learners(learner_class=LeanPPOTorchLearner)
            .debugging(seed=0, log_level="ERROR")
        )
        config = config if regularizer is None else robustify(config, regularizer)
        torch.manual_seed(0)
        spec = RLModuleSpec(
            LanguageModule, *spaces, model_config=language_model_config(words, *spaces, **model)
        )
        self.size = Size(d=length, m=3, rows=ROWS)
        self.every = 1 if regularizer is None else regularizer.every
        self.epochs = -(-AT_LEAST // self.every) * self.every
        self.learner = config.learner_class(
            config=config, module_spec=MultiRLModuleSpec(rl_module_specs={MODULE: spec})
        )
        self.learner.build()
        tokens = torch.randint(1, WORDS, (ROWS, length), generator=torch.Generator().manual_seed(0))
        self.batch = minibatch(self.learner, self.size, obs=tokens)
        assert self.batch[MODULE][Columns.OBS].dtype == torch.int64
        self(), self()


def main() -> None:
    import torch

    from marl_aajr.regularizers import AAJR

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5, help="measurements of each, in turns")
    parser.add_argument("--hidden-size", type=int, default=32)
    parser.add_argument("--layers", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    say(f"{machine(1)}, load {load()}")
    settings: dict[str, Any] = {
        "coefficient": 1e-3,
        "epsilon": 0.5,
        "norm": "l2",
        "step": "normalized",
        "steps": 2,
    }
    sizes = {"hidden_size": arguments.hidden_size, "layers": arguments.layers}
    updates = {
        "plain": LanguageUpdate(None, **sizes),
        "plain + AAJR on all rows": LanguageUpdate(
            AAJR(sample_fraction=1.0, interval=1, **settings), **sizes
        ),
        "plain + AAJR at its default share": LanguageUpdate(AAJR(**settings), **sizes),
    }
    seconds: dict[str, list[float]] = {name: [] for name in updates}
    for _ in range(arguments.rounds):
        for name, update in updates.items():
            seconds[name].append(update())
    times = {name: median(each) for name, each in seconds.items()}
    for name, value in times.items():
        say(f"{name:<34} {1e3 * value:8.1f} ms a minibatch of {ROWS} rows")
    judge({name: value / times["plain"] for name, value in times.items()}, BARS)


if __name__ == "__main__":
    main()
