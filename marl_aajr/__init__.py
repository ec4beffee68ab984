"""Multi-agent policies that hold up against an adversary: AAJR on Ray RLlib.

    from marl_aajr import AAJR, robustify
    config = robustify(config, AAJR(coefficient=1e-3, epsilon=0.1))

| to | use |
|---|---|
| put a regularizer into an RLlib configuration | `robustify`, `robustify_policy`, `AAJR` and its rivals |
| give RLlib an environment by its name, and sample it fast | `register`, `fast` |
| train, attack, certify and compare whole runs | `train`, `evaluate`, `certify`, `compare` |
| play and attack a frozen team | `Victim`, `attacked`, `with_agents`, `make_attack` |
| write a method of your own | `Attack`, `register_attack`, `Regularizer` |

Names are loaded on first use: importing the package imports neither torch nor Ray.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from marl_aajr.attacks import Attack as Attack
    from marl_aajr.attacks import make_attack as make_attack
    from marl_aajr.certificates.certifying import certify as certify
    from marl_aajr.evaluation.api import evaluate as evaluate
    from marl_aajr.pettingzoo import attacked as attacked
    from marl_aajr.pettingzoo import with_agents as with_agents
    from marl_aajr.regularizers import AAJR as AAJR
    from marl_aajr.regularizers import ERNIE as ERNIE
    from marl_aajr.regularizers import ConvexSmoothPolicy as ConvexSmoothPolicy
    from marl_aajr.regularizers import Frobenius as Frobenius
    from marl_aajr.regularizers import NoiseAugmentation as NoiseAugmentation
    from marl_aajr.regularizers import OffPolicyAdversarialTraining as OffPolicyAdversarialTraining
    from marl_aajr.regularizers import Radial as Radial
    from marl_aajr.regularizers import RandomDirection as RandomDirection
    from marl_aajr.regularizers import Regularizer as Regularizer
    from marl_aajr.regularizers import SmoothPolicy as SmoothPolicy
    from marl_aajr.regularizers import Spectral as Spectral
    from marl_aajr.regularizers import SpectralNormalization as SpectralNormalization
    from marl_aajr.regularizers import make_regularizer as make_regularizer
    from marl_aajr.report import compare as compare
    from marl_aajr.rllib import fast as fast
    from marl_aajr.rllib import register as register
    from marl_aajr.rllib import robustify as robustify
    from marl_aajr.rllib import robustify_policy as robustify_policy
    from marl_aajr.rollout.attack.rollout_attack import RolloutAttack as RolloutAttack
    from marl_aajr.training.trainer import train as train
    from marl_aajr.victims import Victim as Victim

__version__ = "0.1.0"

_HOMES = {
    "attacks": "Attack make_attack",
    "certificates": "certify",
    "evaluation": "evaluate",
    "pettingzoo": "attacked with_agents",
    "regularizers": "AAJR ConvexSmoothPolicy ERNIE Frobenius NoiseAugmentation OffPolicyAdversarialTraining "
    "Radial RandomDirection Regularizer SmoothPolicy Spectral SpectralNormalization make_regularizer",
    "report": "compare",
    "rollout.attack.rollout_attack": "RolloutAttack",
    "rllib": "fast register robustify robustify_policy",
    "training.trainer": "train",
    "victims": "Victim",
}
_HOME_OF = {name: f"{__name__}.{home}" for home, names in _HOMES.items() for name in names.split()}

__all__ = ["__version__", *_HOME_OF]  # noqa: PLE0604


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOME_OF[name]), name)
