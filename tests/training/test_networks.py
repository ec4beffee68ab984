"""From a run's model to RLlib's module."""

from __future__ import annotations

from typing import Any

import pytest

from marl_aajr.training.algorithm import build_config
from tests.training.runs import tiny


@pytest.mark.parametrize(
    "changes",
    [
        {"env": {"name": "pettingzoo.classic.connect_four_v3"}, "model": {"lstm": 8}},
        {"model": {"lstm": 8, "critic": "joint"}},
    ],
    ids=["action masks", "centralised"],
)
def test_an_lstm_is_refused_where_only_our_own_modules_will_do(changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"without action masks, and model\.critic own, for model\.lstm"):
        build_config(tiny(**changes))


def test_an_lstm_is_rllibs() -> None:
    specs = build_config(tiny(model={"lstm": 8, "sequence_length": 5})).rl_module_spec.rl_module_specs
    for spec in specs.values():
        module = spec.build()
        assert module.is_stateful()
        assert module.get_initial_state()["actor"]["h"].shape == (1, 8)
        assert module.model_config["max_seq_len"] == 5
