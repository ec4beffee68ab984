"""Evaluation: what a victim earns, with and without attacks, over the same episodes."""

from __future__ import annotations

from marl_aajr.evaluation.evaluate import Progress, evaluate
from marl_aajr.evaluation.results import AttackOutcome, Evaluation, Outcome
from marl_aajr.evaluation.run import evaluate_run

__all__ = ["AttackOutcome", "Evaluation", "Outcome", "Progress", "evaluate", "evaluate_run"]
