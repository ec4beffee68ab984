"""The plug-in for Ray RLlib: `robustify`, and `robustify_policy` for its old API stack.

And the way back: anybody's modules and checkpoints as victims, to be judged like ours.
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
