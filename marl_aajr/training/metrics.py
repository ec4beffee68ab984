"""One iteration as one flat record: from RLlib's result to a line of `metrics.jsonl` and to TensorBoard."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from torch.utils.tensorboard import SummaryWriter

from marl_aajr.core.checks import NonFiniteError
from marl_aajr.rllib.sampling.episode_metrics import ATTACK_KEY, RETURNS_KEY
from marl_aajr.training.checkpoint import RunProgress
from marl_aajr.training.fields import flat

_LEARNER_KEYS = {
    "total_loss": "total_loss",
    "policy_loss": "policy_loss",
    "vf_loss": "vf_loss",
    "vf_explained_var": "vf_explained_var",
    "entropy": "entropy",
    "logit_scale": "logit_scale",
    "default_optimizer_learning_rate": "lr",
    "curr_entropy_coeff": "entropy_coeff",
    "gradients_default_optimizer_global_norm": "grad_norm",
}
"""RLlib's names and ours; the rest of its learner metrics is bookkeeping."""

_KL_KEYS = {"mean_kl_loss": "mean_kl", "curr_kl_coeff": "kl_coeff"}
"""RLlib reports 0 for them where it computes no KL term."""


def to_record(
    result: Mapping[str, Any],
    progress: RunProgress,
    *,
    modules: Mapping[str, str],
    teams: Collection[str],
    steps_per_second: float,
    with_kl: bool,
) -> dict[str, Any]:
    """The line of one iteration.

    Args:
        result: of `Algorithm.train`.
        progress: after this iteration.
        modules: ids of the trained modules, with the team of each.
        teams: those whose returns count.
        steps_per_second: environment steps per second of this iteration.
        with_kl: whether PPO's KL term is on.

    Returns:
        `iteration`, `env_steps`, `seconds`, `return_mean` (sum over all teams, mean over the
        episodes that ended in this iteration; None where none did), `team_returns`, `episode_length`,
        `env_steps_per_second` and `modules` (module id → name → number); where there are several teams,
        `module_teams` (module id → team); with rollouts under attack `attack` (see `_attack`), and where
        the environment reports metrics, `metrics`, their means.

    Raises:
        NonFiniteError: a number is NaN or infinite; names it.
    """
    record = {
        "iteration": progress.iteration,
        "env_steps": progress.env_steps,
        "seconds": progress.seconds,
        **_episodes(result["env_runners"].get(RETURNS_KEY, {}), teams),
        "env_steps_per_second": steps_per_second,
        "modules": {name: _module(result["learners"][name], with_kl=with_kl) for name in modules},
    }
    if len(teams) > 1:
        record["module_teams"] = dict(modules)
    if (sums := result["env_runners"].get(RETURNS_KEY, {}).get(ATTACK_KEY)) is not None:
        record["attack"] = _attack(sums, teams)
    for name, value in flat(record, ", ").items():
        if isinstance(value, float) and not math.isfinite(value):
            raise NonFiniteError(f"iteration {progress.iteration}: {name} is {value}")
    return record


def _episodes(sums: Mapping[str, Any], counted: Collection[str]) -> dict[str, Any]:
    count = sums.get("episodes", 0)
    # Where no episode ended, RLlib's sum over nothing is NaN.
    if not count > 0:
        return {"return_mean": None, "team_returns": {}, "episode_length": None}
    returns = sorted(sums["returns"].items())
    teams = {team: float(total) / count for team, total in returns if team in counted}
    return {
        "return_mean": sum(teams.values()),
        "team_returns": teams,
        "episode_length": float(sums["length"]) / count,
        **({"metrics": metrics} if (metrics := _reported(sums.get("metrics", {}), count)) else {}),
    }


def _reported(sums: Mapping[str, Mapping[str, Any]], count: float) -> dict[str, float]:
    """Means of what the environment reports of its episodes, where it does so of each of them."""
    return {
        name: float(found["sum"]) / count
        for name, found in sorted(sums.items())
        if found.get("episodes") == count
    }


_MEANS = {
    "objective_gain": ("gain", "rows"),
    "changed_decisions": ("changed", "rows"),
    "inner_gain": ("trained_gain", "gap_rows"),
    "strong_gain": ("strong_gain", "gap_rows"),
    "monotone_fraction": ("monotone", "gap_rows"),
    "smoothness": ("smoothness", "gap_rows"),
}
"""Measures of rollouts under attack: a sum, and what it is divided by."""


def _attack(sums: Mapping[str, Any], counted: Collection[str]) -> dict[str, Any]:
    """Measures of rollouts under attack from their sums over all runners; None where there was nothing.

    `epsilon` in force; `attacked_return_mean` and `clean_return_mean` of the episodes of both kinds, of
    several teams also `attacked_team_returns` and `clean_team_returns`;
    `objective_gain` g(δ_K) − g(0) and the share of `changed_decisions` over the attacked ones. Now and then,
    on a few rows: the `inner_gain` of the K steps beside the `strong_gain` of 50 steps with restarts, the
    `inner_gap` between them, the `monotone_fraction` of the K steps, and `smoothness` L_eff along their path.
    """
    found: dict[str, Any] = {"epsilon": float(sums["epsilon"]) / float(sums["samples"])}
    for kind in ("attacked", "clean"):
        ended = sums.get(kind, {"episodes": 0, "returns": {}})  # RLlib's runners report what there was
        count, returns = ended["episodes"], ended["returns"]
        totals = {team: float(value) for team, value in returns.items() if team in counted}
        found[f"{kind}_return_mean"] = sum(totals.values()) / count if count > 0 else None
        if len(counted) > 1:
            means = {team: total / count if count > 0 else None for team, total in totals.items()}
            found[f"{kind}_team_returns"] = means
    for name, (total_of, count_of) in _MEANS.items():
        count = sums.get(count_of, 0)  # NaN, where an earlier iteration had some, and this one has none
        found[name] = float(sums[total_of]) / float(count) if count > 0 and total_of in sums else None
    gains = found["strong_gain"], found["inner_gain"]
    found["inner_gap"] = None if None in gains else gains[0] - gains[1]
    return found


def _module(learned: Mapping[str, Any], *, with_kl: bool) -> dict[str, float | None]:
    names = _LEARNER_KEYS | (_KL_KEYS if with_kl else {})
    found: dict[str, float | None] = {
        ours: float(learned[theirs]) for theirs, ours in names.items() if theirs in learned
    }
    for group, values in sorted(learned.items()):
        # Regularizers report under their own name; NaN is RLlib's for nothing, where no minibatch was due.
        reports = isinstance(values, Mapping) and "throughput" not in group
        if reports and not math.isnan(values.get("nonfinite", 0.0)):
            found |= {f"{group}/{key}": float(value) for key, value in sorted(values.items())}
    undefined = "vf_explained_var"  # 0/0 where all value targets are the same
    if not math.isfinite(found.get(undefined) or 0.0):
        found[undefined] = None
    return found


class Curves:
    """The records as TensorBoard curves over environment steps."""

    def __init__(self, folder: Path) -> None:
        self._writer = SummaryWriter(str(folder))

    def add(self, record: Mapping[str, Any]) -> None:
        """Add one iteration: `return_mean`, `team_returns/<team>`, `modules/<id>/<name>` and so on."""
        for tag, value in numbers(record).items():
            if tag not in ("iteration", "env_steps"):
                self._writer.add_scalar(tag, value, record["env_steps"])
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


def numbers(record: Mapping[str, Any]) -> dict[str, float]:
    """Those of a record, under names that TensorBoard, W&B and MLflow take: `modules/<id>/<name>`."""
    return {key: value for key, value in flat(record, "/").items() if isinstance(value, int | float)}
