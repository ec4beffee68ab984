from __future__ import annotations

from collections.abc import Sequence
from itertools import product

from hypothesis import given, settings
from hypothesis import strategies as st

from marl_aajr.training.cluster import have_room
from marl_aajr.training.resources import Group, Resources


def amounts(step: float, most: int) -> st.SearchStrategy[dict[str, float]]:
    kinds = {kind: st.integers(0, most).map(lambda units: step * units) for kind in ("CPU", "GPU")}
    return st.fixed_dictionaries(kinds)


def groups(name: str) -> st.SearchStrategy[Group]:
    return st.builds(Group, st.just(name), st.integers(0, 3), amounts(0.5, 4))


def somehow(runners: Group, learners: Group, nodes: Sequence[dict[str, float]]) -> bool:
    """By trying every way of putting each process on each node."""
    wanted = [runners.each] * runners.count + [learners.each] * learners.count
    return any(
        all(
            sum(each[kind] for each, where in zip(wanted, places, strict=True) if where == i) <= node[kind]
            for i, node in enumerate(nodes)
            for kind in node
        )
        for places in product(range(len(nodes)), repeat=len(wanted))
    )


@settings(max_examples=30, deadline=None)
@given(groups("env runner"), groups("learner"), st.lists(amounts(1.0, 2), min_size=1, max_size=3))
def test_there_is_room_where_some_way_of_placing_all_processes_is(
    runners: Group, learners: Group, nodes: list[dict[str, float]]
) -> None:
    assert have_room(runners, learners, nodes) is somehow(runners, learners, nodes)


def test_many_nodes_are_no_trouble() -> None:
    runners = Group("env runner", 2000, {"CPU": 1.0, "GPU": 0.0})
    nodes = [{"CPU": 32.0, "GPU": float(i % 4 == 0)} for i in range(64)]
    assert have_room(runners, Group("learner", 16, {"CPU": 1.0, "GPU": 1.0}), nodes)
    assert not have_room(runners, Group("learner", 17, {"CPU": 1.0, "GPU": 1.0}), nodes)


def test_tenths_of_a_processor_add_up() -> None:
    tenth = {"CPU": 0.1, "GPU": 0.0}
    assert have_room(Group("env runner", 10, tenth), Group("learner", 0, tenth), [{"CPU": 1.0, "GPU": 0.0}])


def test_a_run_as_the_bundles_of_a_placement_group() -> None:
    resources = Resources(env_runners=2, cpus_per_env_runner=0.5, learners=1, gpus_per_learner=1)
    assert resources.bundles == [
        {"CPU": 1},
        {"CPU": 0.5},
        {"CPU": 0.5},
        {"CPU": 1, "GPU": 1},
    ]


def test_what_the_main_process_does_itself_is_in_its_bundle() -> None:
    assert Resources(gpus_per_learner=0.5).bundles == [{"CPU": 1, "GPU": 0.5}]
