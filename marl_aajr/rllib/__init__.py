"""The plug-in for Ray RLlib: :func:`robustify`."""

from marl_aajr.rllib.robustify import robustify

__all__ = ["robustify"]
