from __future__ import annotations

import math
from typing import Any

import pytest

from marl_aajr.core.checks import NonFiniteError
from marl_aajr.training.checkpoint import RunProgress
from marl_aajr.training.metrics import to_record

PROGRESS = RunProgress(iteration=7, env_steps=700, seconds=1.5)


def result(learned: dict[str, Any] | None = None, **sums: Any) -> dict[str, Any]:
    """As much of RLlib's result as a record is made of."""
    learners = {"agent": {"total_loss": 1.0, "num_module_steps_trained": 9} | (learned or {})}
    return {"env_runners": {"marl_aajr": sums} if sums else {}, "learners": learners}


def record(given: dict[str, Any], *, with_kl: bool = False) -> dict[str, Any]:
    return to_record(
        given,
        PROGRESS,
        modules={"agent": "good"},
        teams={"good", "bad"},
        steps_per_second=2.0,
        with_kl=with_kl,
    )


def test_returns_are_means_over_the_episodes_that_ended() -> None:
    line = record(result(episodes=4, length=100, returns={"good": -8.0, "bad": 2.0}))
    assert line["team_returns"] == {"bad": 0.5, "good": -2.0}
    assert (line["return_mean"], line["episode_length"]) == (-1.5, 25.0)


def test_teams_of_adversaries_are_not_counted() -> None:
    line = record(
        result(episodes=4, length=100, returns={"adversary_of_good": 8.0, "good": -8.0, "bad": 2.0})
    )
    assert (line["return_mean"], set(line["team_returns"])) == (-1.5, {"good", "bad"})


@pytest.mark.parametrize(
    "sums", [{}, {"episodes": math.nan, "length": math.nan, "returns": {"good": math.nan}}]
)
def test_without_a_finished_episode_there_is_no_return(sums: dict[str, Any]) -> None:
    """Before the first one RLlib has no sums, later it has NaN."""
    line = record(result(**sums))
    assert (line["return_mean"], line["team_returns"], line["episode_length"]) == (None, {}, None)


def test_metrics_of_the_environment_are_means_where_every_episode_has_them() -> None:
    told = {"success": {"sum": 3.0, "episodes": 4}, "rare": {"sum": 1.0, "episodes": 1}}
    sums: dict[str, Any] = {"episodes": 4, "length": 100, "returns": {"good": -8.0}}
    assert record(result(**sums, metrics=told))["metrics"] == {"success": 0.75}
    nothing = {"success": {"sum": math.nan, "episodes": math.nan}}  # as RLlib has what no longer comes
    assert "metrics" not in record(result(**sums, metrics=nothing))
    assert "metrics" not in record(result(**sums))


def test_regularizers_report_under_their_name_and_bookkeeping_is_left_out() -> None:
    line = record(result({"aajr": {"penalty": 0.5}, "x_throughput": {"since": 1.0}}))
    assert line["modules"] == {"agent": {"total_loss": 1.0, "aajr/penalty": 0.5}}


def test_kl_is_there_only_when_it_is_computed() -> None:
    learned = {"mean_kl_loss": 0.0, "curr_kl_coeff": 0.2}
    assert "mean_kl" not in record(result(learned))["modules"]["agent"]
    assert record(result(learned), with_kl=True)["modules"]["agent"]["kl_coeff"] == 0.2


@pytest.mark.parametrize(
    ("given", "name"),
    [
        (result({"policy_loss": math.nan}), "iteration 7: modules, agent, policy_loss is nan"),
        (result({"aajr": {"gain_max": math.inf}}), "iteration 7: modules, agent, aajr/gain_max is inf"),
        (result(episodes=1, length=1, returns={"bad": math.nan}), "iteration 7: return_mean is nan"),
    ],
)
def test_what_is_not_finite_is_named(given: dict[str, Any], name: str) -> None:
    with pytest.raises(NonFiniteError, match=name):
        record(given)


def test_an_undefined_explained_variance_is_null() -> None:
    """0/0 where every value target is the same, as in a game without rewards."""
    line = record(result({"vf_explained_var": math.nan}))
    assert line["modules"]["agent"]["vf_explained_var"] is None
