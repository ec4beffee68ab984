"""Observation adversaries before they are trained: what they see, what they may do, and what is refused."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from torch import nn

from marl_aajr.adversaries.observation_game import (
    GAME,
    ObservationAdversaries,
    ObservationGame,
    ObservationThreat,
)
from marl_aajr.adversaries.warm_start import demonstrate, warm_start
from marl_aajr.core.adversary_actions import adversary_actions
from marl_aajr.core.threat import PerturbationSet
from marl_aajr.rollout.env_checker import check_batched_env, random_actions
from marl_aajr.rollout.environments import make_batch, resolve
from marl_aajr.rollout.perturbed import ADVERSARY, adversary_of
from marl_aajr.training.config import make_config
from marl_aajr.victims import ObservationFilter, Victim, fingerprint
from marl_aajr.victims.stepper import DecisionBatch
from tests.evaluation.players import network, signs, team
from tests.evaluation.test_recurrent import Sticking

ADVERSARY_0 = adversary_of("agent_0")
SPREAD = resolve("marl_aajr.envs.simple_spread_v3", {"N": 2, "max_cycles": 6})
CIRCLE = resolve("tests.rllib.test_stock_rows:circle", {"endings": "mixed"})


def threat(victim: Victim, folder: Path, **settings: Any) -> ObservationThreat:
    """An adversary against a victim that is saved in a folder."""
    arguments = {"kind": "sa-rl", "epsilon": 0.1, **settings}
    saved = victim.save(folder / "victim")
    return ObservationThreat(
        env=victim.env_name,
        env_kwargs=dict(victim.env_kwargs),
        victim=str(saved),
        digest=fingerprint(victim),
        **arguments,
    )


@pytest.mark.parametrize(
    ("spec", "kind", "joint"),
    [(SPREAD, "sa-rl", True), (SPREAD, "pa-ad", False), (CIRCLE, "sa-rl", False), (CIRCLE, "pa-ad", True)],
    ids=["spread-joint", "spread-each", "circle-each", "circle-joint"],
)
@pytest.mark.slow
def test_the_game_keeps_the_contract(spec: Any, kind: str, joint: bool, tmp_path: Path) -> None:
    game = threat(team(spec), tmp_path, kind=kind, joint=joint, norm="l2", actions="sampled")
    check_batched_env(game.build, steps=20 if spec is SPREAD else 45)


@pytest.mark.parametrize("joint", [False, True], ids=["each", "joint"])
@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("kind", ["sa-rl", "pa-ad"])
def test_victims_are_shown_points_of_the_set(kind: str, norm: str, joint: bool, tmp_path: Path) -> None:
    """With mask and scale, of each agent's own size, behind its filter; jointly in one ball."""
    spaces = SPREAD.make().observation_spaces
    seen = {
        agent: ObservationFilter(mean=torch.zeros(12), std=torch.full((12,), 2.0), clip=None)
        for agent in spaces
    }
    budget = {"mask": [True] * 6 + [False] * 6, "scale": [1.0, 3.0] * 6, "scales": {"agent_1": 2.0}}
    settings = {"kind": kind, "norm": norm, "joint": joint, "epsilon": 0.1, **({} if joint else budget)}
    game = threat(team(SPREAD, filters=seen), tmp_path, **settings).build(3)
    perturbations: dict[str, torch.Tensor] = {}
    inner = game.show

    def watched(batch: DecisionBatch, actions: Any) -> torch.Tensor:
        shown = inner(batch, actions)
        perturbations.update({agent: part for agent, _, part in batch.split(shown - batch.inputs)})
        return shown

    game.show = watched  # type: ignore[method-assign]
    game.reset(seed=2)
    for t in range(3):
        game.step({p: (a * 3 if kind == "sa-rl" else a) for p, a in random_actions(game, seed=t).items()})
        raw = {agent: delta * 2.0 for agent, delta in perturbations.items()}
        assert all(bool((delta != 0).any()) for delta in raw.values())
        if joint:
            everything = torch.cat(list(raw.values()), -1)
            size = everything.norm(dim=-1) if norm == "l2" else everything.abs().amax(-1)
            assert (size <= 0.1 * (1 + 1e-5)).all()
            continue
        for agent, factor in (("agent_0", 1.0), ("agent_1", 2.0)):
            assert not raw[agent][:, 6:].any()
            scaled = raw[agent] / torch.tensor(budget["scale"])
            size = scaled.norm(dim=-1) if norm == "l2" else scaled.abs().amax(-1)
            assert (size <= 0.1 * factor * (1 + 1e-5)).all()


def test_adversaries_see_what_the_network_receives_and_who_the_agent_is(tmp_path: Path) -> None:
    victim = team(SPREAD)
    each, joint = threat(victim, tmp_path).build(2), threat(victim, tmp_path, joint=True).build(2)
    alone = threat(victim, tmp_path, agents=["agent_1"]).build(2)
    seen, together, single = (game.reset(seed=4) for game in (each, joint, alone))
    true = each.env.reset(seed=4)
    which = torch.tensor([[0.0, 1.0]] * 2)
    assert torch.equal(seen[adversary_of("agent_1")], torch.cat([true["agent_1"], which], -1))
    assert torch.equal(together[ADVERSARY], torch.cat([true["agent_0"], true["agent_1"]], -1))
    assert torch.equal(single[adversary_of("agent_1")], true["agent_1"])


class TestMemory:
    """Victims that answer, through an episode, with the sign that they were shown first."""

    def game(self, kind: str, num_envs: int) -> ObservationGame:
        spec = signs(longest=4)
        victim = team(spec, Sticking())
        adversaries = ObservationAdversaries(
            actions=adversary_actions(kind), victim=victim, agents=victim.agents
        )
        return ObservationGame(
            make_batch(spec, num_envs),
            adversaries,
            dict.fromkeys(victim.agents, PerturbationSet(epsilon=2.0)),
        )

    def test_what_they_remember_is_part_of_the_state(self) -> None:
        check_batched_env(lambda num_envs: self.game("pa-ad", num_envs), steps=12)

    @pytest.mark.parametrize("kind", ["sa-rl", "pa-ad"])
    def test_one_lie_is_remembered_and_queries_are_not(self, kind: str) -> None:
        game = self.game(kind, 8)
        answers: list[torch.Tensor] = []
        play = game.env.step

        def step(actions: Any) -> Any:
            answers.append(actions["agent_0"])
            return play(actions)

        game.env.step = step  # type: ignore[method-assign]
        sign = game.reset(seed=1)[ADVERSARY_0][:, 0].sign()
        first, begins = sign, torch.ones(8, dtype=torch.bool)
        for _ in range(12):
            first = torch.where(begins, sign, first)
            given = game.nothing()
            # At first the opposite of what is there; then, what is there.
            wish = torch.where(begins, -sign, sign)
            if kind == "pa-ad":
                given[ADVERSARY_0] = (wish > 0).long()
            else:
                given[ADVERSARY_0][:, 0] = torch.where(begins, wish, 0.0)
            after = game.step(given)
            assert torch.equal(answers[-1], (first < 0).long())
            sign, begins = after.obs[ADVERSARY_0][:, 0].sign(), after.episode_over


@pytest.mark.parametrize("kind", ["sa-rl", "pa-ad"])
@pytest.mark.parametrize("joint", [False, True], ids=["each", "joint"])
@pytest.mark.slow
def test_a_warm_start_does_what_pgd_does(kind: str, joint: bool, tmp_path: Path) -> None:
    """As an ascent through the victim, or as the actions that PGD made likeliest."""
    sharp = network(5, 12)
    last = sharp[-1]
    assert isinstance(last, nn.Linear)
    last.weight.data *= 10.0
    game = threat(team(SPREAD, sharp), tmp_path, kind=kind, joint=joint, epsilon=0.3)
    config = make_config(
        {
            "env": {"name": GAME, "kwargs": game.arguments},
            "model": {"hidden": [32]},
        }
    )
    adversary = warm_start(config, game, steps=6, updates=150, seed=0)
    adversaries, demonstrated = demonstrate(game, steps=6, seed=1)
    moved, agreed, pgd = [], [], []
    for step in demonstrated:
        actions = {p: adversary.greedy(p, adversary.policy(p)(seen)) for p, seen in step.obs.items()}
        for attacked in step.attacked:
            by_agent = adversaries.split(actions, attacked.perturbations)
            policy, inputs = attacked.batch.policy, attacked.batch.inputs
            given = torch.cat([by_agent[agent][copies] for agent, copies in attacked.batch.rows.items()])
            outputs = policy(inputs + adversaries.perturb(policy, inputs, given, attacked.perturbations))
            kind_of, clean = policy.distribution, policy(inputs)
            moved.append(kind_of.kl(clean, outputs).mean().item())
            pgd.append(kind_of.kl(clean, attacked.outputs).mean().item())
            agreed.append((outputs.argmax(-1) == attacked.outputs.argmax(-1)).float().mean().item())
    if kind == "sa-rl":
        assert np.mean(moved) > 0.3 * np.mean(pgd)
    else:
        assert np.mean(agreed) > 0.45  # by chance 0.2


def test_a_warm_start_learns_on_other_episodes_than_those_reported(tmp_path: Path) -> None:
    """Although training and evaluation are asked for with one seed."""
    game = threat(team(SPREAD), tmp_path)
    _, (step,) = demonstrate(game, steps=1, seed=0)
    reported = game.build(100).reset(seed=0)
    for player, seen in step.obs.items():
        assert not torch.isin(seen[:, 2], reported[player][:, 2]).any()


class TestRefusals:
    def test_other_victims_than_those_it_was_made_for(self, tmp_path: Path) -> None:
        game = threat(team(SPREAD), tmp_path)
        team(SPREAD, nn.Linear(12, 5)).save(tmp_path / "victim")
        with pytest.raises(ValueError, match="trained anew or replaced; train the adversary again"):
            game.build(1)
        shutil.rmtree(tmp_path / "victim")
        with pytest.raises(ValueError, match="expected a saved victim in"):
            game.build(1)

    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"kind": "pa"}, "expected kind out of sa-rl, pa-ad; got 'pa'"),
            ({"epsilon": 0.0}, "expected a finite epsilon > 0"),
            ({"agents": ["agent_9"]}, "expected agents out of agent_0, agent_1; got 'agent_9'"),
            ({"units": "metres"}, "expected units out of raw, network"),
            ({"scales": {"agent_9": 2.0}}, "expected scales out of agent_0, agent_1"),
            ({"action_settings": {"steps": 3}}, "expected settings of 'sa-rl'"),
            ({"kind": "pa-ad", "action_settings": {"steps": 0}}, "expected an integer steps ≥ 1"),
        ],
    )
    def test_a_threat_that_makes_no_sense(
        self, settings: dict[str, Any], message: str, tmp_path: Path
    ) -> None:
        with pytest.raises(ValueError, match=message):
            threat(team(SPREAD), tmp_path, **settings).build(1)

    def test_one_director_of_policies_of_several_kinds(self) -> None:
        box = gym.spaces.Box(-1, 1, (3,), np.float32)
        victim = Victim(
            module_of={"a": "a", "b": "b"},
            modules={"a": nn.Linear(3, 2), "b": nn.Linear(3, 2)},
            observation_spaces={"a": box, "b": box},
            action_spaces={"a": gym.spaces.Discrete(2), "b": gym.spaces.Box(-1, 1, (1,), np.float32)},
        )
        with pytest.raises(ValueError, match="expected agents with one kind of actions"):
            ObservationAdversaries(
                actions=adversary_actions("pa-ad"), victim=victim, agents=("a", "b"), joint=True
            )
