"""Multi-agent policies that hold up against an adversary: AAJR on Ray RLlib."""

from marl_aajr.version import __version__

__all__ = ["__version__"]
