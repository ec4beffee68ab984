"""Multi-agent policies that hold up against an adversary: AAJR on Ray RLlib.

    from marl_aajr import AAJR, robustify
    config = robustify(config, AAJR(coefficient=3e-3, epsilon=0.1))

Names are loaded on first use: importing the package imports neither torch nor Ray.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from marl_aajr.version import __version__

if TYPE_CHECKING:
    from marl_aajr.regularizers import AAJR, make_regularizer
    from marl_aajr.rllib import robustify, robustify_policy

__all__ = ["AAJR", "__version__", "make_regularizer", "robustify", "robustify_policy"]

_HOMES = {
    "AAJR": "marl_aajr.regularizers",
    "make_regularizer": "marl_aajr.regularizers",
    "robustify": "marl_aajr.rllib",
    "robustify_policy": "marl_aajr.rllib",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
