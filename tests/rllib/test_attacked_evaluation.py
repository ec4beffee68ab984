"""Evaluation is without attack, also where RLlib plays it in the env runners of training."""

from __future__ import annotations

from typing import Any

import pytest

from marl_aajr import AAJR, fast, robustify
from marl_aajr.rollout.attack.rollout_attack import RolloutAttack
from tests.rllib.fast_runs import OURS, config, fragment, runner
from tests.rllib.recorder import Recorder, chunks, moved, runner_of, size
from tests.rllib.test_attacked_episodes import several, single
from tests.rllib.test_attacked_rollouts import moved as moved_in

EPSILON = 0.1
ATTACK = RolloutAttack(epsilon=EPSILON)
SMALL: dict[str, Any] = {"train_batch_size": 32, "minibatch_size": 32, "num_epochs": 1}


@pytest.fixture
def ascents(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """One entry for each call of the adversary."""
    made: list[int] = []
    perturb = RolloutAttack.perturb

    def counted(self: RolloutAttack, policy: Any, obs: Any, **settings: Any) -> Any:
        made.append(len(obs))
        return perturb(self, policy, obs, **settings)

    monkeypatch.setattr(RolloutAttack, "perturb", counted)
    return made


@pytest.mark.usefixtures("ray_session")
@pytest.mark.parametrize(
    "configured",
    [
        lambda: robustify(single().training(**SMALL), AAJR(), rollouts=ATTACK),
        lambda: robustify(several(), AAJR(), rollouts=ATTACK),
        lambda: fast(config(), OURS, rollouts=ATTACK),
    ],
    ids=["single", "several", "fast"],
)
def test_an_algorithm_without_runners_of_evaluation_evaluates_without_attack(
    configured: Any, ascents: list[int]
) -> None:
    algorithm = configured().evaluation(evaluation_duration=2).build_algo()
    try:
        for unit in ("episodes", "timesteps"):
            algorithm.train()
            assert ascents
            ascents.clear()
            vars(algorithm.config)["evaluation_duration_unit"] = unit
            result = algorithm.evaluate()
            assert result["env_runners"]["num_env_steps_sampled"] > 0
            measured = result["env_runners"].get("marl_aajr", {}).get("attack", {})
            assert not measured.get("samples", 0) > 0, "NaN where RLlib has nothing to report"
            assert not ascents
        algorithm.train()
        assert ascents
    finally:
        algorithm.stop()


@pytest.mark.parametrize("configure", [single, several])
@pytest.mark.parametrize("batch_mode", ["truncate_episodes", "complete_episodes"])
def test_whole_episodes_are_attacked_where_they_are_trained_on_alone(configure: Any, batch_mode: str) -> None:
    configured = configure().env_runners(batch_mode=batch_mode, rollout_fragment_length=12)
    subject = runner_of(robustify(configured, AAJR(), rollouts=ATTACK))
    recorder = Recorder(subject)
    for _ in range(2):
        trained = [size(one, recorder).max() for one in chunks(subject)]
        assert min(trained) > 0.9 * EPSILON
        assert max(size(one, recorder).max() for one in chunks(subject, num_episodes=2)) == 0
    assert moved(subject, recorder, random_actions=True).max() == 0


def test_the_fast_runner_leaves_those_alone_who_do_not_explore() -> None:
    subject = runner(config(), OURS, rollouts=ATTACK)
    part = fragment(subject, explore=False).modules["agent"]
    assert part.clean_obs is None or moved_in(part).max() == 0
    assert moved_in(fragment(subject).modules["agent"]).max() > 0.9 * EPSILON
