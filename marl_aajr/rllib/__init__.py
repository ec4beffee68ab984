"""The plug-in for Ray RLlib: :func:`robustify`, and :func:`robustify_policy` for its old API stack."""

from marl_aajr.rllib.old_stack import robustify_policy
from marl_aajr.rllib.robustify import robustify

__all__ = ["robustify", "robustify_policy"]
