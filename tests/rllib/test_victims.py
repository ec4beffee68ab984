"""RLlib's modules as victims: what the victim plays is what the module plays, to the last bit."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from ray.rllib.algorithms.algorithm_config import AlgorithmConfig
from ray.rllib.algorithms.dqn import DQNConfig
from ray.rllib.algorithms.dqn.torch.default_dqn_torch_rl_module import DefaultDQNTorchRLModule
from ray.rllib.algorithms.ppo.torch.default_ppo_torch_rl_module import DefaultPPOTorchRLModule
from ray.rllib.algorithms.sac import SACConfig
from ray.rllib.algorithms.sac.torch.default_sac_torch_rl_module import DefaultSACTorchRLModule
from ray.rllib.core.columns import Columns
from ray.rllib.core.distribution.torch.torch_distribution import TorchDeterministic
from ray.rllib.core.rl_module.default_model_config import DefaultModelConfig
from ray.rllib.core.rl_module.torch import TorchRLModule
from ray.rllib.utils.spaces.space_utils import unsquash_action
from torch import Tensor, nn

from marl_aajr.attacks import FGSM, PGD
from marl_aajr.core.policy import leaves
from marl_aajr.core.threat import PerturbationSet
from marl_aajr.evaluation import evaluate
from marl_aajr.rllib.networks import FlatActorCritic
from marl_aajr.rllib.playing_networks import LiveModule
from marl_aajr.rllib.victims import victim_from_module, victim_from_modules
from marl_aajr.victims import Victim
from tests.networks import generator
from tests.rllib.victim_toys import AnySpaces, Leaky, MaskReader, observed

ENV = "tests.rllib.victim_toys:AnySpaces"
SMALL: dict[str, Any] = {"fcnet_hiddens": [8], "head_fcnet_hiddens": [7]}
CONVOLUTIONS = {"conv_filters": [[4, 3, 2], [6, 3, 2]]}

DEFAULT_CATALOG: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "mlp": (SMALL, {}),
    "own critic": ({**SMALL, "vf_share_layers": False}, {}),
    "box actions": (SMALL, {"box_actions": True}),
    "free log std": ({**SMALL, "free_log_std": True}, {"box_actions": True}),
    "lstm": ({**SMALL, "use_lstm": True, "lstm_cell_size": 5, "max_seq_len": 3}, {}),
    "lstm, own critic": (
        {**SMALL, "use_lstm": True, "lstm_cell_size": 5, "max_seq_len": 3, "vf_share_layers": False},
        {"box_actions": True},
    ),
    "convolutions": (CONVOLUTIONS, {"shape": (10, 10, 3)}),
}


def module(
    kind: type[TorchRLModule] = DefaultPPOTorchRLModule,
    *,
    settings: dict[str, Any] | None = None,
    shape: tuple[int, ...] = (6,),
    box_actions: bool = False,
    masked: bool = False,
    key: str = "observation",
) -> TorchRLModule:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return kind(
            observation_space=observed(shape, masked=masked, key=key),
            action_space=AnySpaces(box_actions=box_actions).action_space("a_0"),
            model_config=asdict(DefaultModelConfig(**(settings or {}))),
        )


class InRLlib:
    """Asks a module as RLlib's env runner does, and keeps its state."""

    def __init__(self, played: TorchRLModule, rows: int) -> None:
        self.played = played
        self.state: Any = None
        if played.is_stateful():
            self.state = _tree(
                lambda x: torch.as_tensor(x).repeat(rows, *[1] * x.ndim), played.get_initial_state()
            )

    def decide(self, obs: Any) -> Tensor:
        if self.state is None:
            return self.played.forward_inference({Columns.OBS: obs})[Columns.ACTION_DIST_INPUTS]
        out = self.played.forward_inference({Columns.OBS: obs[:, None], Columns.STATE_IN: self.state})
        self.state = out[Columns.STATE_OUT]
        return out[Columns.ACTION_DIST_INPUTS][:, 0]


def _tree(function: Any, tree: Any) -> Any:
    return {k: _tree(function, v) for k, v in tree.items()} if isinstance(tree, dict) else function(tree)


def assert_plays_the_same(victim: Victim, played: TorchRLModule, *, rows: int = 16, steps: int = 4) -> None:
    theirs, memory, everywhere = InRLlib(played, rows), victim.memory(rows), {"a_1": torch.arange(rows)}
    for step in range(steps):
        obs = torch.randn(rows, *victim.observation_spaces["a_1"].shape, generator=generator(step))
        policy = victim.policy("a_1", state=memory.recall(everywhere))
        assert torch.equal(policy(obs.flatten(1)), theirs.decide(obs)), f"step {step}"
        memory.advance(everywhere, policy.next_state(obs.flatten(1)))


class TestDefaultCatalog:
    @pytest.mark.parametrize("kind", DEFAULT_CATALOG)
    def test_becomes_layers_that_give_the_same_bits_and_can_be_saved(self, kind: str, tmp_path: Path) -> None:
        settings, spaces = DEFAULT_CATALOG[kind]
        played = module(settings=settings, **spaces)
        victim = victim_from_module(played, ENV, env_kwargs=spaces)
        assert not any(isinstance(network, LiveModule) for network in victim.modules.values())
        assert_plays_the_same(victim, played)
        assert_plays_the_same(Victim.load(victim.save(tmp_path / "victim")), played)

    def test_a_state_equals_rllibs_at_every_step_of_an_attacked_game(self) -> None:
        settings, spaces = DEFAULT_CATALOG["lstm, own critic"]
        played = module(settings=settings, **spaces)
        victim = victim_from_module(played, ENV, env_kwargs=spaces)
        theirs, memory, rows = InRLlib(played, 8), victim.memory(8), {"a_0": torch.arange(8)}
        attack = PGD(perturbations=PerturbationSet(epsilon=0.3), steps=4, objective="kl")
        for step in range(5):
            obs = torch.randn(8, 6, generator=generator(step))
            policy = victim.policy("a_0", state=memory.recall(rows))
            attacked = attack(policy, obs, generator=generator(step))
            assert torch.equal(attacked.outputs, theirs.decide(attacked.perturbed))
            memory.advance(rows, policy.next_state(attacked.perturbed))
            ours = leaves(memory.recall(rows))
            actor = theirs.state["actor"]
            assert torch.equal(ours[0], actor["h"])
            assert torch.equal(ours[1], actor["c"])

    def test_the_critic_comes_along_where_it_has_layers_of_its_own(self) -> None:
        played = module(settings={**SMALL, "vf_share_layers": False})
        obs = torch.randn(5, 6, generator=generator())
        critic = victim_from_module(played, ENV).policy("a_0").critic
        assert critic is not None
        assert torch.equal(critic(obs), played.compute_values({Columns.OBS: obs}))
        assert victim_from_module(module(settings=SMALL), ENV).policy("a_0").critic is None

    def test_an_override_is_respected(self) -> None:
        class Louder(DefaultPPOTorchRLModule):
            def _forward_inference(self, batch: Any, **kwargs: Any) -> Any:
                out = self._forward(batch)
                return {**out, Columns.ACTION_DIST_INPUTS: 2 * out[Columns.ACTION_DIST_INPUTS]}

        played = module(Louder, settings=SMALL)
        victim = victim_from_module(played, ENV)
        assert isinstance(victim.modules["module"], LiveModule)
        assert_plays_the_same(victim, played)


class TestCustomModules:
    def test_with_a_state_of_their_own(self) -> None:
        played = module(Leaky)
        victim = victim_from_module(played, ENV)
        assert_plays_the_same(victim, played)
        assert victim.memory(1).recall({"a_0": torch.tensor([0])})["trace"].tolist() == [[0.5] * 6]

    def test_get_the_action_mask_under_their_names(self) -> None:
        played = module(MaskReader, masked=True, key="observations")
        victim = victim_from_module(played, ENV, env_kwargs={"masked": True})
        obs = torch.randn(9, 6, generator=generator())
        mask = torch.rand(9, 5, generator=generator()) < 0.6
        mask[:, 0] = True
        batch = {Columns.OBS: {"observations": obs, "action_mask": mask.to(torch.int8)}}
        expected = played.forward_inference(batch)[Columns.ACTION_DIST_INPUTS]
        policy = victim.policy("a_0", action_mask=mask)
        assert torch.equal(policy(obs)[mask], expected[mask])
        torch.testing.assert_close(policy.select(torch.tensor([4]))(obs[[4]])[0], policy(obs)[4])
        assert (policy(obs)[~mask] == torch.finfo(torch.float32).min).all()

    def test_ours_for_masks_and_images_become_layers(self, tmp_path: Path) -> None:
        played = module(FlatActorCritic, settings={"fcnet_hiddens": [8]}, shape=(2, 3), masked=True)
        victim = victim_from_module(played, ENV, env_kwargs={"shape": (2, 3), "masked": True})
        obs = torch.randn(4, 6, generator=generator())
        batch = {Columns.OBS: {"observation": obs.view(4, 2, 3), "action_mask": torch.ones(4, 5)}}
        expected = played.forward_inference(batch)[Columns.ACTION_DIST_INPUTS]
        assert torch.equal(Victim.load(victim.save(tmp_path / "v")).policy("a_0")(obs), expected)

    def test_flattened_observations_are_flattened(self, tmp_path: Path) -> None:
        played = module(settings=SMALL)
        victim = victim_from_module(played, ENV, env_kwargs={"shape": (2, 3)})
        obs = torch.randn(4, 2, 3, generator=generator())
        expected = played.forward_inference({Columns.OBS: obs.flatten(1)})[Columns.ACTION_DIST_INPUTS]
        assert torch.equal(victim.policy("a_0")(obs.flatten(1)), expected)
        victim.save(tmp_path / "victim")

    @pytest.mark.parametrize("kind", [Leaky, MaskReader])
    def test_are_evaluated_with_gradients_and_cannot_be_saved(
        self, kind: type[TorchRLModule], tmp_path: Path
    ) -> None:
        masked = kind is MaskReader
        played = module(kind, masked=masked, key="observations")
        victim = victim_from_module(played, ENV, env_kwargs={"masked": masked})
        set_ = PerturbationSet(epsilon=0.5)
        evaluation = evaluate(victim, attacks=[(FGSM(perturbations=set_), 0.5)], episodes=4)
        assert evaluation.attacks[0].objective_gain > 0
        with pytest.raises(ValueError, match=r"expected layers out of .*rllib\.playing_networks"):
            victim.save(tmp_path / "victim")
        with pytest.raises(ValueError, match="a victim that can be saved for 'sa-rl'"):
            evaluate(victim, attacks=[("sa-rl", 0.5)], episodes=4)


class TestOtherAlgorithms:
    def test_dqn_plays_its_largest_q_value_and_is_attacked_through_it(self) -> None:
        played = of_algorithm(DefaultDQNTorchRLModule, DQNConfig())
        victim = victim_from_module(played, ENV)
        obs = torch.randn(64, 6, generator=generator())
        actions = victim.greedy("a_0", victim.policy("a_0")(obs))
        assert torch.equal(actions, played.forward_inference({Columns.OBS: obs})[Columns.ACTIONS])
        result = evaluate(victim, attacks=[("pgd-margin", 1.0)], episodes=4)
        assert result.attacks[0].objective_gain > 0

    def test_sac_plays_the_mean_as_rllib_does(self) -> None:
        played = of_algorithm(DefaultSACTorchRLModule, SACConfig(), box_actions=True)
        victim = victim_from_module(played, ENV, env_kwargs={"box_actions": True})
        obs = torch.randn(64, 6, generator=generator())
        inputs = played.forward_inference({Columns.OBS: obs})[Columns.ACTION_DIST_INPUTS]
        taken = played.get_inference_action_dist_cls().from_logits(inputs).to_deterministic().sample()
        expected = [unsquash_action(row, played.action_space) for row in taken.detach().numpy()]
        actions = victim.greedy("a_0", victim.policy("a_0")(obs))
        np.testing.assert_array_equal(actions.detach().numpy(), np.stack(expected))

    def test_sampled_actions_are_refused_before_anything_is_played(self) -> None:
        victim = victim_from_module(of_algorithm(DefaultDQNTorchRLModule, DQNConfig()), ENV)
        with pytest.raises(ValueError, match=r"expected greedy actions .* say --actions greedy"):
            evaluate(victim, actions=["greedy", "sampled"], episodes=2)
        with pytest.raises(ValueError, match="expected greedy actions"):
            victim.act({"a_0": np.zeros(6, np.float32)}, generator=generator())


def of_algorithm(
    kind: type[TorchRLModule], config: AlgorithmConfig, *, box_actions: bool = False
) -> TorchRLModule:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return kind(
            observation_space=observed((6,)),
            action_space=AnySpaces(box_actions=box_actions).action_space("a_0"),
            model_config=config._model_config_auto_includes | {"fcnet_hiddens": [8]},
        )


class TestMapping:
    def test_is_rllibs_function_or_a_dict(self) -> None:
        modules = {name: module(settings=SMALL) for name in ("left", "right", "idle")}
        nn.init.zeros_(modules["right"].pi.net.mlp[-1].weight)
        by_dict = victim_from_modules(modules, ENV, policy_mapping_fn={"a_0": "left", "a_1": "right"})
        by_function = victim_from_modules(
            modules, ENV, policy_mapping_fn=lambda agent, episode, **_: {"0": "left", "1": "right"}[agent[-1]]
        )
        for victim in (by_dict, by_function):
            assert victim.module_of == {"a_0": "left", "a_1": "right"}
            assert_plays_the_same(victim, modules["right"])


class TestRefused:
    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"env_kwargs": {"shape": (7,)}}, r"the observations .*\(7,\).* of 'a_0', got one for .*\(6,\)"),
            ({"env_kwargs": {"masked": True}}, "to read the observations"),
            ({"env_kwargs": {"box_actions": True}}, r"to have the actions Box.* got Discrete\(5\)"),
            ({"env": "nowhere_v0"}, "unknown environment 'nowhere_v0'"),
            ({"policy_mapping_fn": {"a_0": "module"}}, "a module for each agent, got none for a_1"),
            ({"policy_mapping_fn": lambda agent, *_: agent}, "the module 'a_0' for 'a_0', got module"),
            ({"policy_mapping_fn": lambda agent, episode: episode.id_}, "whatever the episode"),
            ({"modules": {"module": nn.Linear(6, 5)}}, "new API stack for the agents, got Linear"),
        ],
    )
    def test_what_does_not_fit(self, settings: dict[str, Any], message: str) -> None:
        given: dict[str, Any] = {
            "modules": {"module": module(settings=SMALL)},
            "env": ENV,
            "policy_mapping_fn": {"a_0": "module", "a_1": "module"},
        }
        with pytest.raises(ValueError, match=message):
            victim_from_modules(**(given | settings))

    def test_modules_that_give_no_distribution(self) -> None:
        class Silent(DefaultPPOTorchRLModule):
            def _forward(self, batch: dict[str, Any], **_: Any) -> dict[str, Any]:
                return {}

        with pytest.raises(ValueError, match="to give action_dist_inputs or actions, got"):
            victim_from_module(module(Silent), ENV)

    def test_distributions_that_victims_do_not_have(self) -> None:
        class Odd(DefaultPPOTorchRLModule):
            def get_inference_action_dist_cls(self) -> Any:
                return TorchDeterministic

        with pytest.raises(ValueError, match="or TorchSquashedGaussian, got TorchDeterministic"):
            victim_from_module(module(Odd, box_actions=True), ENV, env_kwargs={"box_actions": True})

    def test_observations_of_many_parts(self) -> None:
        space = gym.spaces.Dict({"a": gym.spaces.Box(0, 1, (2,)), "b": gym.spaces.Box(0, 1, (2,))})
        odd = MaskReader(observation_space=space, action_space=gym.spaces.Discrete(5), model_config={})
        with pytest.raises(ValueError, match="flatten the observations"):
            victim_from_module(odd, ENV)
