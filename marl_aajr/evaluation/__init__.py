"""Evaluation: what a victim earns, with and without attacks, over the same episodes."""

from __future__ import annotations

from marl_aajr.evaluation.api import evaluate
from marl_aajr.evaluation.attack_entries import AttackEntry
from marl_aajr.evaluation.best_responses import Exploitability, exploitability
from marl_aajr.evaluation.budget import Budget, parse_budget
from marl_aajr.evaluation.crossplay import CrossPlay, MeanOverRuns, TeamRating
from marl_aajr.evaluation.evaluator import Progress
from marl_aajr.evaluation.outcomes import OWN, AttackOutcome, AttackSpec, Outcome, ReplacementOutcome
from marl_aajr.evaluation.pool import Met, PoolScore, everybody_met, pool_scores
from marl_aajr.evaluation.protocol import Protocol, Suite, builtin_suites, load_suite
from marl_aajr.evaluation.replacements import Replacement
from marl_aajr.evaluation.result import ActionsResult, Check, Evaluation, OpponentResult, SubsetOutcome
from marl_aajr.evaluation.worst_attack import WorstAttack

__all__ = [
    "OWN",
    "ActionsResult",
    "AttackEntry",
    "AttackOutcome",
    "AttackSpec",
    "Budget",
    "Check",
    "CrossPlay",
    "Evaluation",
    "Exploitability",
    "MeanOverRuns",
    "Met",
    "OpponentResult",
    "Outcome",
    "PoolScore",
    "Progress",
    "Protocol",
    "Replacement",
    "ReplacementOutcome",
    "SubsetOutcome",
    "Suite",
    "TeamRating",
    "WorstAttack",
    "builtin_suites",
    "evaluate",
    "everybody_met",
    "exploitability",
    "load_suite",
    "parse_budget",
    "pool_scores",
]
