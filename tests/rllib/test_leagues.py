"""Modules that come, go and are replaced, and mappings that change: RLlib's self-play."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ray.rllib.algorithms.algorithm import Algorithm
from ray.rllib.core.learner.learner import Learner
from ray.rllib.core.rl_module.rl_module import RLModuleSpec

from marl_aajr import AAJR, Victim, fast, register, robustify
from marl_aajr.rllib.lean.learner import LeanPPOTorchLearner
from marl_aajr.rllib.sampling.batch_env import module_of_agents
from marl_aajr.rllib.victims import victim_from_checkpoint
from tests.rllib.fast_runs import OURS, config, fragment, normalizer, runner
from tests.rllib.learners import build_learner, ppo_batch, ppo_config, update

STRONG = AAJR(coefficient=10.0, epsilon=0.1, interval=1)
DUAL = AAJR(coefficient=0.1, interval=1, epsilon=0.1, form="constraint", gain_bound=1e-3)
SHORT = {"max_cycles": 10}


def learner(regularizer: Any, *modules: str, lean: bool = True) -> Learner:
    configured = ppo_config(*modules)
    if lean:
        configured.learners(learner_class=LeanPPOTorchLearner)
    return build_learner(robustify(configured, regularizer))


def copied(of: Any, name: str) -> RLModuleSpec:
    return RLModuleSpec.from_module(of.module[name].unwrapped())


def parameters(of: Any, name: str) -> torch.Tensor:
    module = of.modules[name] if isinstance(of, Victim) else of.module[name].unwrapped()
    return torch.cat([p.detach().flatten().clone() for p in module.parameters()])


@pytest.mark.parametrize("lean", [True, False], ids=["lean", "rllib"])
def test_a_module_that_replaces_another_has_a_regularizer_of_its_own(lean: bool) -> None:
    found = []
    for coefficient in (0.0, 10.0):
        subject = learner(AAJR(coefficient=coefficient, epsilon=0.1, interval=1), "p", "q", lean=lean)
        update(subject, ppo_batch(subject))
        subject.remove_module("q")
        subject.add_module(module_id="q", module_spec=copied(subject, "p"))
        subject.add_module(module_id="later", module_spec=copied(subject, "p"))
        torch.manual_seed(0)
        for name in ("q", "later"):
            for parameter in subject.module[name].unwrapped().parameters():
                torch.nn.init.normal_(parameter, std=0.3)
        before = {name: parameters(subject, name) for name in ("q", "later")}
        update(subject, ppo_batch(subject))
        for name, old in before.items():
            assert not torch.equal(old, parameters(subject, name)), "nobody trains it"
        found.append({name: parameters(subject, name) for name in before})
    for name, plain in found[0].items():
        assert not torch.allclose(plain, found[1][name], atol=1e-4), f"nobody regularizes {name}"


def test_modules_without_a_regularizer_get_none_when_they_are_added() -> None:
    subject = learner({"p": STRONG}, "p", "q")
    subject.add_module(module_id="later", module_spec=copied(subject, "p"))
    results = update(subject, ppo_batch(subject))
    assert {name for name in ("p", "q", "later") if "aajr" in results[name]} == {"p"}


def test_a_dual_ends_with_its_module() -> None:
    subject = learner(DUAL, "p", "q")
    update(subject, ppo_batch(subject))
    start, moved = 0.1, saved_duals(subject)
    assert set(moved) == {"p", "q"}
    assert start not in moved.values()
    subject.remove_module("q")
    assert set(saved_duals(subject)) == {"p"}
    subject.add_module(module_id="q", module_spec=copied(subject, "p"))
    assert set(saved_duals(subject)) == {"p"}, "a new one has not been trained"
    update(subject, ppo_batch(subject))
    after = saved_duals(subject)
    assert after["q"] < after["p"], "one update after the start, the other two"


def saved_duals(of: Learner) -> dict[str, float]:
    return {name: float(state["dual"]) for name, state in of.get_state()["marl_aajr"]["modules"].items()}


def test_a_grown_league_is_restored_by_those_who_have_its_modules() -> None:
    grown = learner(DUAL, "p", "q")
    grown.add_module(module_id="later", module_spec=copied(grown, "p"))
    update(grown, ppo_batch(grown))
    state = grown.get_state()

    original = learner(DUAL, "p", "q")
    original.set_state(state)
    assert torch.equal(parameters(original, "p"), parameters(grown, "p"))
    assert saved_duals(original) == {name: saved_duals(grown)[name] for name in ("p", "q")}

    again = learner(DUAL, "p", "q")
    again.add_module(module_id="later", module_spec=copied(again, "p"))
    again.set_state(state)
    assert saved_duals(again) == saved_duals(grown)
    update(again, ppo_batch(grown, seed=1)), update(grown, ppo_batch(grown, seed=1))
    for name in ("p", "q", "later"):
        assert torch.equal(parameters(again, name), parameters(grown, name))

    fewer = learner({"p": DUAL}, "p", "q")
    fewer.set_state(state)
    assert set(saved_duals(fewer)) == {"p"}


def mapping(rest: str) -> Callable[..., str]:
    return lambda agent, *_, **__: "main" if agent == "agent_0" else rest


def league(*, is_fast: bool) -> Algorithm:
    configured = config("main", "old").multi_agent(policy_mapping_fn=mapping("old"))
    if is_fast:
        fast(configured, OURS, kwargs=SHORT)
    else:
        configured.environment(register(OURS, kwargs=SHORT))
    return robustify(configured, STRONG).build_algo()


@pytest.mark.usefixtures("ray_session")
@pytest.mark.parametrize("is_fast", [True, False], ids=["fast", "stock"])
def test_self_play_adds_remaps_removes_and_restores(is_fast: bool, tmp_path: Path) -> None:
    algorithm = league(is_fast=is_fast)
    try:
        algorithm.train()
        for name, agents in (("new", 2), ("old", 2)):
            if name == "old":
                algorithm.remove_module("old", new_agent_to_module_mapping_fn=mapping("new"))
            spec = RLModuleSpec.from_module(algorithm.get_module("main"))
            algorithm.add_module(name, spec, new_agent_to_module_mapping_fn=mapping(name))
            before = parameters(algorithm.learner_group._learner, name)
            if not is_fast:
                algorithm.train()  # RLlib's runner has begun episodes that keep their modules.
            result = algorithm.train()
            sampled = {
                module: int(count)
                for module, count in result["env_runners"]["num_module_steps_sampled"].items()
                if count > 0
            }
            assert sampled == {"main": 40, name: agents * 40}
            assert result["learners"][name]["aajr"]["penalty"] > 0
            assert not torch.equal(before, parameters(algorithm.learner_group._learner, name))
        algorithm.save_to_path(tmp_path / "league")
        known = parameters(algorithm.learner_group._learner, "main")
        victim = victim_from_checkpoint(tmp_path / "league", env=OURS, env_kwargs=SHORT)
        assert victim.module_of == {"agent_0": "main", "agent_1": "old", "agent_2": "old"}
        for name in ("main", "old"):  # the first layer: their other networks are the critics'
            first = slice(18 * 16)
            trained = parameters(algorithm.learner_group._learner, name)
            assert torch.equal(parameters(victim, name)[first], trained[first])
        if not is_fast:
            algorithm.add_module("third", spec, new_agent_to_module_mapping_fn=drawn)
            algorithm.save_to_path(tmp_path / "drawn")
            check_drawn(tmp_path / "drawn")
    finally:
        algorithm.stop()
    original = league(is_fast=is_fast)
    try:
        original.restore_from_path(tmp_path / "league")
        assert torch.equal(parameters(original.learner_group._learner, "main"), known)
        original.train()
    finally:
        original.stop()


def drawn(agent: str, *_: Any, **__: Any) -> str:
    return str(np.random.choice(["main", "old", "third"]))  # noqa: NPY002


def check_drawn(path: Path) -> None:
    with pytest.raises(ValueError, match="say who plays whom: in Python, victim_from_checkpoint"):
        victim_from_checkpoint(path, env=OURS, env_kwargs=SHORT)
    settled = {"agent_0": "third", "agent_1": "main", "agent_2": "main"}
    found = victim_from_checkpoint(path, env=OURS, env_kwargs=SHORT, policy_mapping_fn=settled)
    assert found.module_of == settled


def test_a_runner_begins_new_episodes_with_a_new_mapping() -> None:
    """As RLlib's `add_module` changes a runner; the filter counts a new module's observations, too."""
    configured = config("main", "old").multi_agent(policy_mapping_fn=mapping("old"))
    subject = runner(configured.env_runners(env_to_module_connector=normalizer), OURS, kwargs=SHORT)
    assert set(fragment(subject, num_timesteps=40).modules) == {"main", "old"}
    subject.module.add_module("new", copied(subject, "main").build())
    subject.config.multi_agent(policy_mapping_fn=mapping("new"))
    found = fragment(subject, num_timesteps=40)
    assert found.modules["new"].agents == ("agent_1", "agent_2")
    assert found.modules["main"].agents == ("agent_0",)
    assert subject.normalizer is not None
    # Two agents once, or one twice; ten steps, their beginning and the next episode's; four copies.
    assert {name: moments.count for name, moments in subject.normalizer.total.items()} == {
        "main": 2 * 12 * 4,
        "old": 2 * 12 * 4,
        "new": 2 * 12 * 4,
    }

    subject.config.multi_agent(policy_mapping_fn=mapping("gone"))
    with pytest.raises(ValueError, match="expected a module out of main, new, old for 'agent_1', got 'gone'"):
        subject.sample(num_timesteps=40)


GENERATOR = np.random.default_rng(0)


@pytest.mark.parametrize(
    "mapped",
    [
        lambda agent, *_, **__: "main" if np.random.random() < 1 - 1e-12 else "old",  # noqa: NPY002
        lambda agent, *_, **__: "main" if GENERATOR.random() < 0.9 else "old",
        lambda agent, episode, **_: ("main", "old")[hash(episode.id_) % 2],
    ],
    ids=["global generator", "generator of its own", "by episode"],
)
def test_mappings_that_draw_are_refused_and_not_frozen(mapped: Any) -> None:
    with pytest.raises(ValueError, match=r"one module whatever the episode.*train without fast\(\.\.\.\)"):
        runner(config("main", "old").multi_agent(policy_mapping_fn=mapped), OURS)
    drawing = config("main", "old").multi_agent(policy_mapping_fn=mapped)
    with pytest.raises(ValueError, match="train without fast"):
        fast(drawing.env_runners(num_env_runners=1), OURS)
    with pytest.raises(
        ValueError, match=r"whatever the episode.*; give agent -> module as policy_mapping_fn"
    ):
        module_of_agents({"agent_0": "agent_0"}, mapped)
