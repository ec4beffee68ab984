"""Whose agents act under attack: those that are named, by the keys that the environment knows them by."""

from __future__ import annotations

import re
from typing import Any

import pytest
from ray.rllib.algorithms.algorithm_config import AlgorithmConfig
from ray.rllib.algorithms.ppo import PPOConfig
from ray.rllib.core.columns import Columns
from ray.rllib.core.rl_module.default_model_config import DefaultModelConfig
from ray.rllib.core.rl_module.rl_module import RLModule
from ray.rllib.core.rl_module.torch import TorchRLModule
from ray.rllib.examples.envs.classes.multi_agent import MultiAgentCartPole
from ray.rllib.examples.rl_modules.classes.random_rlm import RandomRLModule

from marl_aajr import AAJR, robustify
from marl_aajr.rllib.plugin.attacked_episodes import complaint
from marl_aajr.rllib.sampling.env import PettingZooEnv
from marl_aajr.rollout.attack.rollout_attack import RolloutAttack
from tests.rllib.fast_runs import TAG, config, fragment, runner
from tests.rllib.recorder import Recorder, chunks, runner_of, size
from tests.rllib.test_attacked_rollouts import moved
from tests.rllib.test_bystanders import with_opponent

EPSILON = 0.1
ATTACK = RolloutAttack(epsilon=EPSILON)


def first_and_others(agent: int, *_: Any, **__: Any) -> str:
    return "main" if agent == 0 else "others"


def carts() -> AlgorithmConfig:
    """Two agents, 0 and 1."""
    return (
        PPOConfig()
        .environment(MultiAgentCartPole, env_config={"num_agents": 2})
        .env_runners(num_env_runners=0, num_envs_per_env_runner=2)
        .multi_agent(policies={"main", "others"}, policy_mapping_fn=first_and_others)
        .rl_module(model_config=DefaultModelConfig(fcnet_hiddens=[8]))
        .debugging(seed=0, log_level="ERROR")
    )


@pytest.mark.usefixtures("ray_session")
def test_a_regularizer_stands_beside_the_attack_on_its_own_agents() -> None:
    """A loss off-policy may be that of agents whom nobody attacks, and of no others."""
    off_policy = AAJR(adversarial_weight=0.5)
    attack = RolloutAttack(epsilon=EPSILON, agents=(0,))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="leaves the policy loss as it is with rollouts under attack"):
        robustify(carts(), {"main": off_policy}, rollouts=attack).build_algo()
    robustify(carts(), {"others": off_policy}, rollouts=attack).build_algo().stop()


def by_episode(agent: int, episode: Any, **_: Any) -> str:
    """Who plays the learner changes from episode to episode."""
    return "main" if (agent + sum(map(ord, episode.id_))) % 2 == 0 else "others"


def only_main(module: str, batch: Any) -> bool:
    return module == "main"


@pytest.mark.parametrize("trained", [["main"], only_main])
@pytest.mark.parametrize("mapping", [first_and_others, by_episode])
def test_opponents_who_are_not_trained_see_the_truth(trained: Any, mapping: Any) -> None:
    config = carts().multi_agent(policies_to_train=trained, policy_mapping_fn=mapping)
    runner = runner_of(robustify(config, None, rollouts=ATTACK))
    recorder = Recorder(runner)
    sizes: dict[str, list[float]] = {"main": [], "others": []}
    agents = set()
    for one in chunks(runner, num_timesteps=100):
        sizes[one.module_id].extend(size(one, recorder))
        agents.add((one.agent_id, one.module_id))
    assert len(agents) == (2 if mapping is first_and_others else 4)
    assert min(sizes["main"]) > 0.9 * EPSILON
    assert max(sizes["others"]) == 0


def test_agents_that_are_named_are_attacked_whoever_they_act_by() -> None:
    config = carts().multi_agent(policies_to_train=["main"])
    attack = RolloutAttack(epsilon=EPSILON, agents=("1",))
    runner = runner_of(robustify(config, None, rollouts=attack))
    recorder = Recorder(runner)
    for one in chunks(runner, num_timesteps=24):
        assert (size(one, recorder) > 0).all() == (one.agent_id == 1)


def test_the_fast_runner_leaves_out_whom_nobody_trains_too() -> None:
    """Also those who are frozen later, as leagues do it."""
    configured = config("adversary", "agent").multi_agent(policies_to_train=["adversary"])
    subject = runner(configured, TAG, rollouts=ATTACK)
    for attacked, other in (("adversary", "agent"), ("agent", "adversary")):
        subject.config.multi_agent(policies_to_train=[attacked])
        parts = fragment(subject).modules
        assert (moved(parts[attacked]) > 0.9 * EPSILON).all()
        assert parts[other].clean_obs is None or moved(parts[other]).max() == 0


class Idle(TorchRLModule):
    """A torch module without a network: it always takes the first action."""

    def _forward(self, batch: Any, **_: Any) -> dict[str, Any]:
        return {Columns.ACTIONS: batch[Columns.OBS].numpy()[:, 0].astype(int) * 0}


@pytest.mark.parametrize("heuristic", [RandomRLModule, Idle])
@pytest.mark.parametrize("is_fast", [True, False], ids=["fast", "stock"])
def test_heuristics_are_opponents_and_no_victims(heuristic: type[RLModule], is_fast: bool) -> None:
    def built(attack: RolloutAttack) -> Any:
        if is_fast:
            return runner(with_opponent(heuristic), TAG, rollouts=attack)
        configured = with_opponent(heuristic).environment(PettingZooEnv, env_config={"env": TAG})
        return runner_of(robustify(configured, None, rollouts=attack))

    subject = built(ATTACK)
    assert is_fast or complaint(subject) == ""
    assert subject.sample(num_timesteps=8)
    named, reason = RolloutAttack(agents=("agent_0",)), "name the agents of other modules"
    if is_fast:
        with pytest.raises(ValueError, match=f"got {heuristic.__name__}.*{reason}"):
            built(named)
    else:
        assert re.search(f"got {heuristic.__name__}.*{reason}", complaint(built(named)))
