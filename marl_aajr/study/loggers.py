"""Other places that a study's curves go to: Weights & Biases and MLflow, by Ray's own callbacks."""

from __future__ import annotations

import importlib.util

from ray import tune

from marl_aajr.study.config import StudyConfig
from marl_aajr.training.files import YamlSource


def check_loggers(study: StudyConfig, source: YamlSource) -> None:
    """Raise `ValueError` where a package is missing that the study wants to log with."""
    for place, name in enumerate(study.log):
        if importlib.util.find_spec(name) is None:
            raise ValueError(
                f"{source.where(('log', place))}: log: expected the package {name} to be installed; "
                f"pip install {name}"
            )


def callbacks_for(study: StudyConfig) -> list[tune.Callback]:
    """Tune's callbacks for what the study logs to; each node of the study is a run there.

    MLflow goes to `MLFLOW_TRACKING_URI`, Weights & Biases to the account of `WANDB_API_KEY` or to a local
    folder with `WANDB_MODE=offline`.
    """
    found: list[tune.Callback] = []
    if "mlflow" in study.log:
        from marl_aajr.study.mlflow import MLflow

        found.append(MLflow(experiment_name=study.name))
    if "wandb" in study.log:
        from ray.air.integrations.wandb import WandbLoggerCallback

        found.append(WandbLoggerCallback(project=study.name))
    return found
