"""Checkpoints whose connectors flatten observations play as RLlib plays them; nobody perturbs a one-hot."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from mpe2 import simple_spread_v3
from pettingzoo.utils.wrappers import BaseParallelWrapper
from ray.rllib.algorithms.ppo import PPOConfig
from ray.rllib.connectors.env_to_module import FlattenObservations, MeanStdFilter
from ray.rllib.core.columns import Columns
from ray.rllib.utils.numpy import flatten_inputs_to_1d_tensor
from ray.rllib.utils.spaces.space_utils import get_base_struct_from_space

from marl_aajr import AAJR, register, robustify
from marl_aajr.attacks import make_attack
from marl_aajr.core.flat_observations import FlatBox, own_part, vector_space
from marl_aajr.evaluation import evaluate
from marl_aajr.evaluation.episodes import play
from marl_aajr.evaluation.prepared_attack import prepare
from marl_aajr.rllib import victim_from_checkpoint
from marl_aajr.rollout.environments import make_batch, resolve
from marl_aajr.victims import Victim

CELLS = spaces.MultiDiscrete([5, 5, 5])
LEGAL = np.array([0, 1, 1, 1, 1], np.int8)
SEEN: dict[str, spaces.Space[Any]] = {
    "multi": CELLS,
    "discrete": spaces.Discrete(5),
    "dict": spaces.Dict(
        {
            "z": spaces.Box(-9, 9, (2, 2), np.float32),
            "a": spaces.Discrete(5),
            "m": CELLS,
            "n": spaces.Tuple([spaces.Box(0, 4, (1,), np.int64), spaces.Box(-9, 9, (), np.float64)]),
        }
    ),
    "tuple": spaces.Tuple([spaces.Box(-9, 9, (4,), np.float32), CELLS]),
    "masked": spaces.Dict(
        {
            "a": spaces.Discrete(5),
            "action_mask": spaces.Box(0, 1, (5,), np.int8),
            "z": spaces.Box(-9, 9, (4,)),
        }
    ),
}
WITH_FLOATS = ["dict", "masked", "tuple"]


class Cells(BaseParallelWrapper[str, Any, Any]):
    """simple_spread whose agents see numbers in a space, and cells of a grid."""

    def __init__(self, seen: str) -> None:
        super().__init__(simple_spread_v3.parallel_env(max_cycles=10))
        self.seen = SEEN[seen]

    def observation_space(self, agent: str) -> spaces.Space[Any]:
        return self.seen

    def reset(self, seed: int | None = None, options: Any = None) -> Any:
        obs, infos = self.env.reset(seed=seed, options=options)
        return {agent: as_seen(self.seen, own) for agent, own in obs.items()}, infos

    def step(self, actions: dict[str, Any]) -> Any:
        obs, *rest = self.env.step(actions)
        return {agent: as_seen(self.seen, own) for agent, own in obs.items()}, *rest


def as_seen(space: Any, own: Any) -> Any:
    cells = np.clip(np.round(own * 2 + 2), 0, 4).astype(np.int64)
    if isinstance(space, spaces.Dict):
        return {
            key: LEGAL if key == "action_mask" else as_seen(part, own[i:])
            for i, (key, part) in enumerate(space.items())
        }
    if isinstance(space, spaces.Tuple):
        return tuple(as_seen(part, own[i:]) for i, part in enumerate(space))
    if isinstance(space, spaces.Discrete):
        return cells[0]
    numbers = own if space.dtype.kind == "f" else cells
    return numbers[: int(np.prod(space.shape))].reshape(space.shape).astype(space.dtype)


def make(seen: str) -> Cells:
    return Cells(seen)


HERE = f"{__name__}:make"


def flatten(env: Any, spaces: Any, device: Any) -> Any:
    return FlattenObservations(multi_agent=True)


def flatten_and_filter(env: Any, spaces: Any, device: Any) -> Any:
    return [FlattenObservations(multi_agent=True), MeanStdFilter(multi_agent=True)]


def config(seen: str, connector: Any = flatten) -> PPOConfig:
    return (
        PPOConfig()
        .environment(register(resolve(HERE, {"seen": seen})))
        .multi_agent(policies={"p"}, policy_mapping_fn=lambda *_, **__: "p")
        .training(train_batch_size=60, minibatch_size=60, num_epochs=1)
        .env_runners(num_env_runners=0, env_to_module_connector=connector)
        .debugging(seed=0, log_level="ERROR")
    )


def trained(asked: PPOConfig, path: Path) -> Any:
    """The module that acts, and the result of one training step."""
    algorithm = asked.build_algo()
    result = algorithm.train()
    algorithm.save_to_path(str(path))
    module = algorithm.get_module("p")
    algorithm.stop()
    return module, result


def rllibs_return(module: Any, seen: str, seed: int, legal: bool) -> float:
    """The sum of all rewards of an episode that RLlib's module plays on what RLlib's connector shows it."""
    env, total = make(seen), 0.0
    structure = get_base_struct_from_space(SEEN[seen])
    obs, _ = env.reset(seed=seed)
    while env.agents:
        rows = [flatten_inputs_to_1d_tensor(own, structure, batch_axis=False) for own in obs.values()]
        outputs = module.forward_inference({Columns.OBS: torch.from_numpy(np.stack(rows))})
        logits = outputs[Columns.ACTION_DIST_INPUTS]
        if legal:
            logits = logits.masked_fill(torch.from_numpy(LEGAL == 0), -torch.inf)
        obs, rewards, *_ = env.step(dict(zip(env.agents, logits.argmax(-1).tolist(), strict=True)))
        total += sum(rewards.values())
    return total


def assert_played_alike(victim: Victim, module: Any, seen: str, folder: Path) -> None:
    """A victim of a checkpoint and RLlib's module; a victim that has been saved as well."""
    batch = make_batch(resolve(HERE, {"seen": seen}), 2, flat=True)
    found = play(victim, batch, episodes=2, seed=7).returns
    for e in range(2):
        seed = int(np.random.SeedSequence(7, spawn_key=(e, 0)).generate_state(1)[0] >> 1)
        assert found[e].sum().item() == pytest.approx(rllibs_return(module, seen, seed, seen == "masked"))
    attacks = [("pgd", 0.1)] if seen in WITH_FLOATS else []
    assert len(evaluate(victim, attacks=attacks, episodes=2).clean.returns) == 2
    obs, _ = make(seen).reset(seed=0)
    assert victim.act(obs).keys() == obs.keys()
    if seen != "masked":  # its network is no stack of layers
        saved = Victim.load(victim.save(folder / "saved"))
        assert saved.observation_spaces == victim.observation_spaces
        assert saved.act(obs) == victim.act(obs)


@pytest.mark.usefixtures("ray_session")
@pytest.mark.parametrize("seen", ["dict", "masked"])
def test_a_checkpoint_plays_as_rllib_plays_it(seen: str, tmp_path: Path) -> None:
    module, _ = trained(config(seen), tmp_path / "checkpoint")
    victim = victim_from_checkpoint(tmp_path / "checkpoint", env=HERE, env_kwargs={"seen": seen})
    assert_played_alike(victim, module, seen, tmp_path)


@pytest.mark.usefixtures("ray_session")
def test_nobody_perturbs_what_stands_for_integers(tmp_path: Path) -> None:
    trained(config("dict", flatten_and_filter), tmp_path)
    victim = victim_from_checkpoint(tmp_path, env=HERE, env_kwargs={"seen": "dict"})
    env = make_batch(resolve(HERE, {"seen": "dict"}), 3, flat=True)
    inputs = victim.inputs("agent_0", env.reset(seed=0)["agent_0"])
    attack = prepare(make_attack("pgd", epsilon=0.1), victim, "agent_0", units="raw")
    delta = attack(victim.policy("agent_0"), inputs, generator=torch.Generator()).delta
    fixed = torch.ones(5 + 15 + 1 + 1 + 4, dtype=torch.bool)
    fixed[-5:] = False
    assert (delta[:, fixed] == 0).all()
    assert (delta[:, ~fixed].abs().amax(0) > 0).all()
    observed = victim.filters["agent_0"]
    assert observed is not None
    assert (delta.abs() * observed.scale <= 0.1 + 1e-6).all()


@pytest.mark.usefixtures("ray_session")
def test_where_all_are_integers_a_regularizer_adds_nothing_and_a_checkpoint_plays_as_rllib_plays_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    asked = robustify(config("multi"), AAJR(coefficient=1.0, epsilon=0.1))
    with caplog.at_level(logging.WARNING, "marl_aajr"):
        module, result = trained(asked, tmp_path / "checkpoint")
    assert result["learners"]["p"]["aajr"]["penalty"] == 0
    assert "module p sees integers only, which nobody perturbs: aajr adds nothing" in caplog.text
    victim = victim_from_checkpoint(tmp_path / "checkpoint", env=HERE, env_kwargs={"seen": "multi"})
    assert_played_alike(victim, module, "multi", tmp_path)
    with pytest.raises(ValueError, match="expected float observations to attack, got"):
        evaluate(victim, attacks=[("pgd", 0.1)], episodes=1)


@pytest.mark.parametrize("seen", SEEN)
def test_vectors_are_those_of_rllib(seen: str) -> None:
    space = SEEN[seen]
    space.seed(0)
    value = own_part(space.sample())[0]
    flat, mask = vector_space(space)
    assert isinstance(flat, FlatBox)
    assert (mask is not None) == (seen == "masked")
    wanted = flatten_inputs_to_1d_tensor(value, flat.structure, batch_axis=False)
    found = flat.vector(value).astype(np.float32)
    np.testing.assert_array_equal(found, wanted)
    assert flat.contains(found)
