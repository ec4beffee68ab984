"""ATLA: one side learns at a time, by the number of the iteration; the victim is the team alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from ray.rllib.core.columns import Columns

from marl_aajr.core.threat import PerturbationSet
from marl_aajr.evaluation import evaluate
from marl_aajr.regularizers import AAJR
from marl_aajr.rollout.perturbed import Perturb, adversary_of
from marl_aajr.training.algorithm import build_config
from marl_aajr.training.atla import ATLA
from marl_aajr.training.atla_phases import begin_phase, phases_of
from marl_aajr.training.config import RunConfig
from marl_aajr.training.policy_mapping import policy_mapping_of
from marl_aajr.training.run_directory import RunDirectory
from marl_aajr.training.trainer import train
from marl_aajr.victims import Victim
from tests.training.runs import assert_same_run, tiny, train_and_copy

SPREAD = {"name": "marl_aajr.envs.simple_spread_v3", "kwargs": {"N": 2}}


def config(method: dict[str, Any] | None = None, **changes: Any) -> RunConfig:
    return tiny(**{"env": SPREAD, "method": {"name": "atla", "ramp": None, **(method or {})}, **changes})


@pytest.fixture(scope="module")
def run_and_copy(ray_session: None, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Six iterations, and the first three; the ramp leaves one to the team; odd ones are the adversaries'."""
    method = {"ramp": [0.1, 0.5], "epsilon": 0.2, "regularizer": {"name": "aajr", "coefficient": 0.01}}
    changes = {"observation_filter": "mean_std", "ppo": {"kl_coeff": 0.2}}
    return train_and_copy(config(method, **changes), tmp_path_factory.mktemp("atla"), after=3)


@pytest.fixture
def run(run_and_copy: tuple[Path, Path]) -> RunDirectory:
    return RunDirectory(run_and_copy[0])


def test_sides_alternate_by_the_number_of_the_iteration_once_there_is_an_epsilon() -> None:
    atla = ATLA(team_iterations=2, adversary_iterations=1).ramped(100, 200)
    theirs = [atla.trains_adversaries(iteration=i, env_steps=50 * i) for i in range(9)]
    assert theirs == [False, False, False, False, False, True, False, False, True]
    sets = [atla.perturbations(steps) for steps in (0, 100, 150, 400)]
    assert [one and one.epsilon for one in sets] == [None, None, 0.05, 0.1]


def test_each_module_of_each_team_has_adversaries_of_its_own() -> None:
    settings = config(env={"name": "marl_aajr.envs.simple_tag_v3", "kwargs": {"num_adversaries": 2}})
    atla = phases_of(settings.atla, policy_mapping_of(settings))
    assert atla is not None
    adversaries = atla.adversaries
    assert adversaries.module_of == {
        "adversary_of_adversary_0": "adversary_of_adversary",
        "adversary_of_adversary_1": "adversary_of_adversary",
        "adversary_of_agent_0": "adversary_of_agent",
    }
    assert adversaries.teams["adversary_of_agent_0"] == "adversary_of_good"
    width = atla.team.observation_spaces["agent_0"].shape
    assert adversaries.action_spaces["adversary_of_agent_0"].shape == width


def test_every_iteration_trains_exactly_one_side(ray_session: None) -> None:
    """Weights, critics, optimisers and KL coefficients of the other are the same bit for bit."""
    settings = config(ppo={"kl_coeff": 0.2})
    atla = phases_of(settings.atla, policy_mapping_of(settings))
    assert atla is not None
    algorithm = build_config(settings).build_algo()
    try:
        (learner,) = (result.get() for result in algorithm.learner_group.foreach_learner(lambda x: x))
        state = state_of(learner)
        for iteration in range(4):
            phase = atla.phase(iteration=iteration, env_steps=100 * iteration)
            assert phase.trains_adversaries == (iteration % 2 == 1)
            begin_phase(algorithm, phase)
            algorithm.train()
            before, state = state, state_of(learner)
            changed = {name for name, value in state.items() if not torch.equal(value, before[name])}
            assert {name.split("/")[1] for name in changed} == set(phase.trained.modules)
            assert {name.split("/")[0] for name in changed} >= {"weights", "optimizer"}
            for name in ("agent", "adversary_of_agent"):
                players = algorithm.env_runner.module[name].unwrapped().pi.state_dict()
                assert all(torch.equal(v, state[f"weights/{name}/pi.{key}"]) for key, v in players.items())
    finally:
        algorithm.stop()


def test_an_env_runner_that_is_replaced_plays_the_iteration_as_the_others_do(ray_session: None) -> None:
    settings = config(resources={"env_runners": 1})
    atla = phases_of(settings.atla, policy_mapping_of(settings))
    assert atla is not None
    algorithm = build_config(settings).build_algo()

    def perturbed() -> list[bool]:
        return algorithm.env_runner_group.foreach_env_runner(
            lambda runner: runner.env.batch.perturb is not None, local_env_runner=False
        )

    try:
        begin_phase(algorithm, atla.phase(iteration=1, env_steps=1000))
        assert perturbed() == [True]
        algorithm.env_runner_group.foreach_env_runner(lambda runner: runner.start_afresh(seed=0))
        assert perturbed() == [False]
        for callback in algorithm.config.callbacks_on_env_runners_recreated:
            callback(algorithm=algorithm, env_runner_indices=[1])
        assert perturbed() == [True]
    finally:
        algorithm.stop()


def state_of(learner: Any) -> dict[str, torch.Tensor]:
    modules = learner.module.keys()
    state = {
        f"weights/{name}/{key}": value.clone()
        for name in modules
        for key, value in learner.module[name].unwrapped().state_dict().items()
    }
    for name in modules:
        state[f"kl/{name}"] = learner.curr_kl_coeffs_per_module[name].clone()
        for _, optimizer in learner.get_optimizers_for_module(name):
            moments = [m["exp_avg"].flatten() for m in optimizer.state.values()]
            state[f"optimizer/{name}"] = torch.cat(moments) if moments else torch.zeros(1)
    return state


def test_steps_are_those_of_the_environment_and_the_adversaries_share_is_told(run: RunDirectory) -> None:
    lines = run.metrics()
    assert [line["env_steps"] for line in lines] == [100, 200, 300, 400, 500, 600]
    assert [line["atla"]["adversary_env_steps"] for line in lines] == [0, 100, 100, 200, 200, 300]
    assert [line["atla"]["epsilon"] for line in lines] == pytest.approx([0, 1 / 30, 7 / 60, 0.2, 0.2, 0.2])
    assert [set(line["modules"]) for line in lines[:2]] == [{"agent"}, {"adversary_of_agent"}]
    assert [line["episode_length"] for line in lines if line["episode_length"]] == [25.0] * 6
    assert all(line["return_mean"] < -5 and set(line["team_returns"]) == {"team"} for line in lines)


def test_the_victim_is_the_team_alone_and_is_evaluated_like_any_other(run: RunDirectory) -> None:
    victim = Victim.load(run.victim)
    assert victim.agents == ("agent_0", "agent_1")
    assert (victim.env_name, set(victim.modules)) == (SPREAD["name"], {"agent"})
    assert set(victim.critics) == {"agent"}
    evaluation = evaluate(run.path, attacks=["pgd"], epsilons=[0.1], episodes=2, units="raw")
    assert evaluation.attacks


def test_a_regularizer_is_the_teams_alone(run: RunDirectory) -> None:
    penalised = {name for line in run.metrics() for name, m in line["modules"].items() if "aajr/penalty" in m}
    assert penalised == {"agent"}
    regularizer = run.config().method.regularizer(env_steps=600)
    assert regularizer == AAJR(coefficient=0.01).ramped(60, 300)
    assert config().method.regularizer(env_steps=600) is None


def test_the_adversaries_are_kept(run: RunDirectory) -> None:
    adversary = Victim.load(run.adversary)
    assert adversary.agents == ("adversary_of_agent_0", "adversary_of_agent_1")
    obs = torch.zeros(3, 12)
    agent = adversary.agents[0]
    action = adversary.greedy(agent, adversary.policy(agent)(adversary.inputs(agent, obs)))
    assert action.shape == (3, 12)
    assert (PerturbationSet(epsilon=0.1).squash(action, obs).abs() <= 0.1).all()


def test_a_resumed_run_goes_on_to_the_same_numbers(run_and_copy: tuple[Path, Path]) -> None:
    """It was left between a phase of the team and one of the adversaries, behind a checkpoint."""
    run, copy = run_and_copy
    assert_same_run(run, train(RunDirectory(run).config(), copy, resume=True))


@pytest.mark.parametrize("model", [{"critic": "state"}, {"lstm": 4}], ids=["state", "lstm"])
def test_both_sides_may_have_a_central_critic_or_a_memory(model: dict[str, Any], ray_session: None) -> None:
    algorithm = build_config(config(model=model, env_steps=100)).build_algo()
    try:
        result = algorithm.train()
    finally:
        algorithm.stop()
    assert {"agent", "adversary_of_agent"} <= set(result["learners"])


def test_a_director_moves_the_policy_as_it_is_now_behind_its_filter(ray_session: None) -> None:
    settings = config({"adversary": "pa-ad"}, observation_filter="mean_std")
    atla = phases_of(settings.atla, policy_mapping_of(settings))
    assert atla is not None
    algorithm = build_config(settings).build_algo()
    try:
        for iteration in range(2):
            begin_phase(algorithm, atla.phase(iteration=iteration, env_steps=0))
            algorithm.train()
        begin_phase(algorithm, atla.phase(iteration=2, env_steps=0))
        runner = algorithm.env_runner
        obs = torch.rand(6, 12, generator=torch.Generator().manual_seed(0))
        seen = runner.normalizer.victims_filter("agent", (12,))(obs)
        expected = runner.module["agent"].unwrapped().forward_inference({Columns.OBS: seen})
        batch = runner.env.batch
        assert isinstance(batch.perturb, Perturb)
        torch.testing.assert_close(
            batch.perturb.policies["agent_1"](obs), expected[Columns.ACTION_DIST_INPUTS]
        )
        true = batch.reset(seed=0)[adversary_of("agent_0")]
        shown = batch.step({adversary_of(agent): torch.zeros(4).long() for agent in batch.attacked}).obs
        assert 0.05 < (shown["agent_0"] - true).abs().amax() <= 0.1 + 1e-6
    finally:
        algorithm.stop()


def test_adversaries_who_act_learn_in_turn_with_the_team(ray_session: None, tmp_path: Path) -> None:
    """The alternation of PR-MDPs: what is kept of the adversaries plays as a disturbance by them."""
    method = {"adversary": "replace", "epsilon": 0.5}
    run = RunDirectory(train(config(method), tmp_path / "run"))
    records = run.metrics()
    assert [set(record["modules"]) for record in records[:2]] == [{"agent"}, {"adversary_of_agent"}]
    adversary = Victim.load(run.adversary)
    assert adversary.action_spaces["adversary_of_agent_0"] == Victim.load(run.victim).action_spaces["agent_0"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"resources": {"runner": "stock"}}, "expected resources.runner fast for method atla, got stock"),
        ({"model": {"critic": "joint"}}, "expected model.critic own or state for method atla, got joint"),
        ({"method": {"mask": [True]}}, "agent 'agent_0': expected 12 features in mask, got 1"),
        (
            {"method": {"adversary": "pa-ad"}, "model": {"lstm": 4}},
            "expected no model.lstm for method atla with adversary pa-ad, .*, got 4; use sa-rl",
        ),
        ({"method": {"agents": ["agent_7"]}}, "expected agents out of agent_0, agent_1; got 'agent_7'"),
        ({"env": {"name": "classic/connect_four-v3"}}, "expected floating-point observations"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_runs(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_config(config(changes.pop("method", None), **changes))


@pytest.mark.parametrize(
    ("method", "message"),
    [
        ({"epsilon": 0}, "expected an epsilon > 0, got 0; for no perturbation use method none"),
        ({"adversary_iterations": 0}, "expected an integer adversary_iterations ≥ 1, got 0"),
        ({"adversary": "pgd"}, "expected adversary out of sa-rl, pa-ad, replace; got 'pgd'"),
        ({"adversary": "replace", "epsilon": 1.5}, "expected an epsilon of at most 1, a probability"),
        ({"adversary": "replace", "mask": [True]}, "nothing that limits observations for adversary replace"),
        ({"regularizer": "aajr"}, "expected a regularizer such as .*, got 'aajr'"),
        ({"regularizer": {"name": "ajar"}}, "expected regularizer out of aajr, .*; got 'ajar'"),
        ({"norm": "l1"}, "expected norm out of linf, l2; got 'l1'"),
        ({"coefficient": 1}, "expected settings of 'atla' out of adversary, epsilon, .*; got coefficient"),
    ],
)
def test_settings_are_checked(method: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        config(method)
