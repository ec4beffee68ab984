"""Multi-agent policies that hold up against an adversary: AAJR on Ray RLlib.

    from marl_aajr import AAJR, robustify
    config = robustify(config, AAJR(coefficient=3e-3, epsilon=0.1))

| to | use |
|---|---|
| put a regularizer into an RLlib configuration | `robustify`, `robustify_policy`, `AAJR` and its rivals |
| give RLlib an environment by its name, and sample it fast | `register`, `fast` |
| train, attack and compare whole runs | `train`, `evaluate`, `compare` |
| play and attack a frozen team | `Victim`, `attacked`, `with_agents`, `make_attack` |
| write a method of your own | `Attack`, `register_attack`, `Regularizer` |

Names are loaded on first use: importing the package imports neither torch nor Ray.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from marl_aajr.attacks import Attack, make_attack
    from marl_aajr.evaluation.evaluate import evaluate
    from marl_aajr.pettingzoo import attacked, with_agents
    from marl_aajr.regularizers import (
        AAJR,
        ERNIE,
        AdversarialTraining,
        Frobenius,
        NoiseAugmentation,
        RandomDirection,
        Regularizer,
        SmoothPolicy,
        Spectral,
        SpectralNormalization,
        make_regularizer,
    )
    from marl_aajr.report import compare
    from marl_aajr.rllib import fast, register, robustify, robustify_policy
    from marl_aajr.training.trainer import train
    from marl_aajr.victims import Victim

__version__ = "0.1.0"

_HOMES = {
    "attacks": ("Attack", "make_attack"),
    "evaluation": ("evaluate",),
    "pettingzoo": ("attacked", "with_agents"),
    "regularizers": (
        "AAJR",
        "ERNIE",
        "AdversarialTraining",
        "Frobenius",
        "NoiseAugmentation",
        "RandomDirection",
        "Regularizer",
        "SmoothPolicy",
        "Spectral",
        "SpectralNormalization",
        "make_regularizer",
    ),
    "report": ("compare",),
    "rllib": ("fast", "register", "robustify", "robustify_policy"),
    "training.trainer": ("train",),
    "victims": ("Victim",),
}
_HOME_OF = {name: f"{__name__}.{home}" for home, names in _HOMES.items() for name in names}

__all__ = [
    "AAJR",
    "ERNIE",
    "AdversarialTraining",
    "Attack",
    "Frobenius",
    "NoiseAugmentation",
    "RandomDirection",
    "Regularizer",
    "SmoothPolicy",
    "Spectral",
    "SpectralNormalization",
    "Victim",
    "__version__",
    "attacked",
    "compare",
    "evaluate",
    "fast",
    "make_attack",
    "make_regularizer",
    "register",
    "robustify",
    "robustify_policy",
    "train",
    "with_agents",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOME_OF[name]), name)
