"""Everything that touches Ray RLlib: the plug-in, fast sampling, networks, and RLlib's policies as victims.

    RLlib configuration ── robustify ─► plugin/      regularizers in the loss of any torch learner
            │                           old_stack    the same for policies of the old API stack
            ├── register ─────────────► sampling/env RLlib's env runners on PettingZoo environments
            └── fast ─────────────────► sampling/    batches of copies as arrays: runner, connector, filter
                                          └────────► lean/    PPO's updates with less overhead
    modules, checkpoints ─────────────► victims      frozen policies, which attacks and evaluations take
                                          └────────► playing_networks   the layers by which they play

`networks` has modules for action masks, images, integers and centralised critics. `internals/` holds every
private name of RLlib that any of these touches.
"""

from marl_aajr.rllib.old_stack import robustify_policy
from marl_aajr.rllib.plugin.robustify import robustify
from marl_aajr.rllib.sampling.env import register
from marl_aajr.rllib.sampling.fast import fast
from marl_aajr.rllib.victims import victim_from_checkpoint, victim_from_module, victim_from_modules

__all__ = [
    "fast",
    "register",
    "robustify",
    "robustify_policy",
    "victim_from_checkpoint",
    "victim_from_module",
    "victim_from_modules",
]
