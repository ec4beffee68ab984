"""MLflow as a study's nodes need it; imported only where the package is there."""

from __future__ import annotations

from typing import Any

from ray.air.integrations.mlflow import MLflowLoggerCallback


class MLflow(MLflowLoggerCallback):
    """Ray's callback, to which a node that reports its own failure would be one that has finished."""

    def log_trial_end(self, trial: Any, failed: bool = False) -> None:
        super().log_trial_end(trial, failed or trial.last_result.get("outcome") == "failed")
