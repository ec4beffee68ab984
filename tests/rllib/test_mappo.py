"""A centralised critic: who reads what, with RLlib's env runner, the fast one and `train`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from ray.rllib.algorithms.ppo import PPOConfig
from ray.rllib.algorithms.ppo.torch.ppo_torch_learner import PPOTorchLearner
from ray.rllib.core.columns import Columns
from ray.rllib.core.rl_module.default_model_config import DefaultModelConfig
from ray.rllib.core.rl_module.rl_module import RLModuleSpec
from ray.rllib.evaluation.postprocessing import Postprocessing
from ray.rllib.policy.sample_batch import MultiAgentBatch, SampleBatch

from marl_aajr import AAJR, robustify
from marl_aajr.rllib.lean.learner import LeanPPOTorchLearner
from marl_aajr.rllib.networks import MAPPOModule
from marl_aajr.rllib.sampling.env import PettingZooEnv, register
from marl_aajr.rllib.sampling.fast import FragmentsToBatch
from marl_aajr.rollout.centralized_critic import Critic
from marl_aajr.rollout.environments import resolve
from marl_aajr.training.algorithm import build_config
from marl_aajr.training.export import export_victim
from marl_aajr.training.policy_mapping import policy_mapping_of
from tests.rllib import fast_runs
from tests.rllib.learners import ppo_config, sample_and_update, update, weights
from tests.rllib.policy_cases import CASES, built, columns_of, regularized
from tests.training.runs import tiny

SPREAD = resolve("marl_aajr.envs.simple_spread_v3", {"N": 2, "max_cycles": 3})
OWN, WHOLE = 12, 24


def test_the_actor_reads_its_own_observation_and_the_critic_the_whole_game() -> None:
    case = CASES["mappo"]
    module: Any = case.spec.build()
    obs = columns_of(case, module)[Columns.OBS]
    state = obs["state"].requires_grad_(True)
    inputs = module.forward_train({Columns.OBS: obs})[Columns.ACTION_DIST_INPUTS]
    alone = {Columns.OBS: {"observation": obs["observation"]}}
    assert torch.equal(module.forward_inference(alone)[Columns.ACTION_DIST_INPUTS], inputs)
    assert torch.autograd.grad(inputs.sum(), state, allow_unused=True) == (None,)
    obs["observation"].requires_grad_(True)
    values = module.compute_values({Columns.OBS: obs})
    gradients = torch.autograd.grad(values.sum(), [state, obs["observation"]])
    assert all(bool((gradient != 0).all()) for gradient in gradients)


def test_the_adversary_moves_the_actors_observation_alone() -> None:
    case = CASES["mappo"]
    module: Any = case.spec.build()
    columns = columns_of(case, module)
    obs = regularized(case, AAJR(), module).sample(columns, None).obs
    assert torch.equal(obs, columns[Columns.OBS]["observation"])


@pytest.mark.parametrize("name", ["mappo", "mappo-box", "mappo-masked"])
def test_the_lean_learner_makes_rllibs_updates(name: str) -> None:
    """With the gradient written out where actor and critic are plain layers."""
    trained = []
    for kind in (PPOTorchLearner, LeanPPOTorchLearner):
        config = ppo_config("a", use_kl_loss=False, minibatch_size=6).learners(learner_class=kind)
        learner: Any = built(config, CASES[name])
        columns = columns_of(CASES[name], learner.module["a"].unwrapped())
        del columns[Columns.LOSS_MASK]
        update(learner, MultiAgentBatch({"a": SampleBatch(columns)}, env_steps=6))
        trained.append(weights(learner))
    assert (learner._losses["a"]._plain is None) == (name == "mappo-masked")
    torch.testing.assert_close(trained[1], trained[0], rtol=1e-5, atol=1e-6)


class Halved(MAPPOModule):
    """A user's own: with more to it than layers."""

    def _forward(self, batch: dict[str, Any], **_: Any) -> dict[str, Any]:
        out = super()._forward(batch)
        return {Columns.ACTION_DIST_INPUTS: 0.5 * out[Columns.ACTION_DIST_INPUTS]}

    def compute_values(self, batch: dict[str, Any], embeddings: Any = None) -> torch.Tensor:
        return 0.5 * super().compute_values(batch)


def test_what_a_subclass_changes_is_not_passed_by() -> None:
    case = replace(CASES["mappo"], module=Halved)
    module: Any = case.spec.build()
    columns = columns_of(case, module)
    sample = regularized(case, AAJR(), module).sample(columns, None)
    assert torch.equal(sample.policy(sample.obs), columns[Columns.ACTION_DIST_INPUTS])
    assert module.flat_actor is None
    assert module.flat_critic is None


def test_runners_and_players_do_without_the_critic() -> None:
    spec = CASES["mappo"].spec
    learner = spec.build()
    spec.inference_only = True
    runner: Any = spec.build()
    assert not hasattr(runner, "critic")
    runner.set_state(learner.get_state(inference_only=True))


def test_observations_without_a_state_are_refused() -> None:
    with pytest.raises(ValueError, match=r"with the keys observation and state, got Box.* critic='joint'"):
        RLModuleSpec(
            module_class=MAPPOModule,
            observation_space=CASES["mlp"].obs,
            action_space=CASES["mlp"].actions,
            model_config={},
        ).build()


def test_a_critic_of_the_whole_game_cannot_be_attacked_through_one_observation() -> None:
    config = robustify(ppo_config("a"), AAJR(objective="value"))
    built(config, CASES["masked"])
    with pytest.raises(ValueError, match=r"with critic for the objective .*Value.*, got advantages"):
        built(config, CASES["mappo"])
    method = {"name": "aajr", "objective": "value"}
    build_config(tiny(method=method))
    with pytest.raises(ValueError, match=r"method aajr, module 'agent': .* with critic for the objective"):
        build_config(tiny(method=method, model={"critic": "joint"}))


def mappo(config: PPOConfig) -> PPOConfig:
    spec = RLModuleSpec(module_class=MAPPOModule, model_config=DefaultModelConfig(fcnet_hiddens=[8]))
    return config.rl_module(rl_module_spec=spec)


def fast_batch(critic: Critic, *, lambda_: float) -> tuple[Any, dict[str, Any], Any]:
    """Two episodes of three steps of two agents, and a learner's batch of them."""
    runner: Any = fast_runs.runner(mappo(fast_runs.config(copies=2)), SPREAD, critic=critic)
    fragment = fast_runs.fragment(runner, num_timesteps=6)
    module = RLModuleSpec(
        module_class=MAPPOModule,
        observation_space=runner.env.get_observation_space("agent_0"),
        action_space=runner.env.get_action_space("agent_0"),
        model_config={"fcnet_hiddens": [8]},
    ).build()
    connector = FragmentsToBatch(gamma=0.9, lambda_=lambda_)
    modules = {"agent": type("Wrapped", (), {"unwrapped": lambda self: module})()}
    return module, connector(rl_module=modules, batch={}, episodes=[fragment])["agent"], fragment


def test_values_of_a_cut_off_episode_bootstrap_from_its_last_state() -> None:
    """With λ = 1 a value target is what was earned, and V(o, s) of the end; by hand from the rewards."""
    torch.manual_seed(0)
    module, batch, fragment = fast_batch("joint", lambda_=1.0)
    part = fragment.modules["agent"]
    assert batch[Columns.OBS]["observation"].shape == (12, OWN)
    assert batch[Columns.OBS]["state"].shape == (12, WHOLE)
    ends = {"observation": part.final_obs[:, :OWN], "state": part.final_obs[:, OWN:]}
    last = module.compute_values({Columns.OBS: ends}).detach()
    targets = batch[Postprocessing.VALUE_TARGETS].view(3, 2, 2)
    for value, (t, g, e) in zip(last, part.final_at.tolist(), strict=True):
        assert t == 2
        earned = sum(0.9**k * part.rewards[k, g, e] for k in range(3))
        torch.testing.assert_close(targets[0, g, e], earned + 0.9**3 * value)


def test_the_joint_observation_of_a_particle_game_is_its_state() -> None:
    batches = []
    for critic in ("joint", "state"):
        torch.manual_seed(0)
        batches.append(fast_batch(critic, lambda_=0.9)[1])
    for name in ("observation", "state"):
        assert torch.equal(batches[0][Columns.OBS][name], batches[1][Columns.OBS][name])
    for name in (Columns.ACTIONS, Postprocessing.VALUE_TARGETS, Postprocessing.ADVANTAGES):
        assert torch.equal(batches[0][name], batches[1][name])


def test_modules_see_the_same_space_with_either_runner() -> None:
    one = PettingZooEnv({"env": SPREAD.name, "kwargs": SPREAD.kwargs, "critic": "joint"})
    many: Any = fast_runs.runner(mappo(fast_runs.config()), SPREAD, critic="joint").env
    assert one.observation_spaces == {agent: many.get_observation_space(agent) for agent in one.agents}
    obs, _ = one.reset(seed=0)
    assert all(one.observation_spaces[agent].contains(seen) for agent, seen in obs.items())


def test_it_trains_in_a_users_own_configuration() -> None:
    """RLlib's env runner, learner and connectors; only the environment and the module are ours."""
    config = (
        PPOConfig()
        .environment(register(SPREAD, critic="state"))
        .env_runners(num_env_runners=0)
        .multi_agent(policies={"team"}, policy_mapping_fn=lambda agent, *_, **__: "team")
        .training(train_batch_size=60, minibatch_size=30, num_epochs=1)
        .debugging(seed=0, log_level="ERROR")
    )
    learner, results = sample_and_update(robustify(mappo(config), AAJR(coefficient=0.1, epsilon=0.2)))
    assert results["team"]["aajr"]["penalty"].peek() > 0
    assert learner.module["team"].unwrapped().critic[1].in_features == OWN + WHOLE


@pytest.mark.usefixtures("ray_session")
def test_train_exports_the_actor_alone(tmp_path: Path) -> None:
    """Also its filter: that of the agent's own numbers, of all that were normalised."""
    env = {"name": SPREAD.name, "kwargs": dict(SPREAD.kwargs)}
    config = tiny(env=env, model={"critic": "joint"}, observation_filter="mean_std")
    algorithm = build_config(config).build_algo()
    try:
        algorithm.train()
        victim = export_victim(algorithm, config, policy_mapping_of(config), tmp_path / "victim")
        normalizer = algorithm.env_runner.normalizer
        assert normalizer is not None
        moments = normalizer.total["agent"]
    finally:
        algorithm.stop()
    layers = victim.modules["agent"].modules()
    first = next(layer for layer in layers if isinstance(layer, torch.nn.Linear))
    assert first.in_features == OWN
    assert not victim.critics
    assert moments.mean.shape == (OWN + WHOLE,)
    kept = victim.filters["agent_0"]
    assert kept is not None
    assert torch.equal(kept.mean.double(), torch.from_numpy(moments.mean[:OWN]))


@pytest.mark.parametrize(
    ("env", "critic", "message"),
    [
        ("pettingzoo.classic.tictactoe_v3", "joint", "whose agents all see something .* use 'state'"),
        ("pettingzoo.classic.tictactoe_v3", "state", "to declare a state_space .* use 'joint' or 'own'"),
    ],
)
def test_games_without_such_a_view_are_refused(env: str, critic: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_config(tiny(env={"name": env}, model={"critic": critic}))


def test_leaves_are_named_in_a_run_as_anywhere() -> None:
    spread = {"critic": "joint"}
    with pytest.raises(ValueError, match="module 'agent': expected no leaves for an observation that is one"):
        build_config(tiny(method={"name": "aajr", "leaves": ["position"]}, model=spread))
