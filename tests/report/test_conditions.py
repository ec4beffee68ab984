"""Which rows of two runs are the same condition."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from marl_aajr.report import Comparison, compare, load_run
from tests.report.evaluations import evaluation
from tests.report.factory import config, write_run

TEAM = {"agent_0": "team", "agent_1": "team", "agent_2": "team"}
PGD = {("pgd", 0.1): -8.0}


def team(**changes: Any) -> dict[str, Any]:
    """An evaluation of a team of three under PGD."""
    return evaluation(attacks=PGD) | {"teams": TEAM, "team": "team", "agents": list(TEAM), **changes}


def compared(tmp_path: Path, *files: dict[str, dict[str, Any]]) -> Comparison:
    """One run per mapping of evaluations."""
    return compare(
        [
            load_run(write_run(tmp_path / str(i), configuration=config(seed=i), evaluations=contents))
            for i, contents in enumerate(files)
        ]
    )


def labels(comparison: Comparison) -> list[str]:
    return [condition.attack for condition in comparison.conditions]


def limited(attack_agents: list[str], **changes: Any) -> dict[str, Any]:
    """An evaluation whose row attacks some agents only."""
    content = team(worst=[], **changes)
    content["attacks"][0] |= {"agents": attack_agents}
    return content


def test_a_budget_makes_another_condition_beside_the_whole_attack(tmp_path: Path) -> None:
    budget = limited(list(TEAM), budget="steps=5,timing=strategic,scale=agent_0:0.5")
    comparison = compared(tmp_path, {"whole": team(), "budget": budget})
    assert labels(comparison) == ["pgd", "pgd, 5 steps (strategic), ε × agent_0:0.5"]


def test_the_lengths_of_a_runs_episodes_are_no_difference(tmp_path: Path) -> None:
    files = []
    for shortest in (25, 18):
        content = limited(list(TEAM), budget="steps=5,timing=random")
        steps = {"limit": 5, "timing": "random", "shortest": shortest, "longest": 25, "mean": 5.0}
        content["attacks"][0]["attacked_steps"] = steps
        files.append({"budget": content})
    assert labels(compared(tmp_path, *files)) == ["pgd, 5 steps (random)"]


def test_each_run_has_its_own_weakest_agents(tmp_path: Path) -> None:
    def found(agent: str) -> dict[str, Any]:
        tried = [{"agents": [a], "attack": "pgd", "epsilon": 0.1, "selection_return": -1.0} for a in TEAM]
        return limited([agent], budget="agents=1", subsets=tried)

    comparison = compared(tmp_path, {"e": found("agent_0")}, {"e": found("agent_2")})
    assert labels(comparison) == ["pgd, worst 1 of 3 agents"]


def test_named_agents_are_named(tmp_path: Path) -> None:
    comparison = compared(tmp_path, {"e": limited(["agent_1"], agents=["agent_1"])})
    assert labels(comparison) == ["pgd, agent_1 only"]


def test_the_worst_of_a_size_is_one_without_limits_where_there_is_one(tmp_path: Path) -> None:
    """The limited attack takes more here, as can happen by chance: it is not what the size is judged by."""
    stronger = evaluation(attacks={("pgd", 0.1): -30.0})
    budget = team(budget="steps=5,timing=random", attacks=stronger["attacks"], worst=stronger["worst"])
    (row,) = compared(tmp_path, {"a": team(), "b": budget}).rows
    assert row.worst_attack[0.1].limits == ""
    assert row.worst_return[0.1].mean == -48.0


def test_a_size_that_only_a_limited_attack_has_is_not_among_the_sizes(tmp_path: Path) -> None:
    other = evaluation(attacks={("pgd", 0.4): -30.0})
    budget = team(budget="steps=5,timing=random", attacks=other["attacks"], worst=[])
    comparison = compared(tmp_path, {"a": team(), "b": budget})
    assert comparison.epsilons == (0.1,)
    assert len(comparison.conditions) == 2


def test_surrogates_of_each_run_are_the_same_condition_and_two_of_one_run_are_not(tmp_path: Path) -> None:
    def transferred(*sources: str) -> dict[str, Any]:
        content = evaluation(attacks={("transfer", 0.1): -8.0})
        (row,) = content["attacks"]
        content["attacks"] = [row | {"source": source} for source in sources]
        content["worst"] = [content["worst"][0] | {"source": sources[-1]}]
        return content

    comparison = compared(tmp_path, {"e": transferred("a", "b")}, {"e": transferred("c", "d")})
    assert labels(comparison) == ["transfer", "transfer (2)"]
    (row,) = comparison.rows
    assert row.worst_attack[0.1].attack == "transfer (2)"


def test_an_attack_is_named_with_its_channels_and_who_hears_nothing_is_no_limit(tmp_path: Path) -> None:
    content = limited(["agent_1"], channels=["messages"])
    content["attacks"][0] |= {"settings": {"steps": 10, "channels": ["messages"]}}
    comparison = compared(tmp_path, {"messages": content})
    assert labels(comparison) == ["pgd on messages"]
    assert str(comparison.protocol).endswith("attacks on messages")
