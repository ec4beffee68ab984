"""Robust Sarsa: what it watches, what it learns of it, and that the attack follows what was learned."""

from __future__ import annotations

import pickle
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from marl_aajr.adversaries.action_value import ActionValue, encode
from marl_aajr.adversaries.robust_sarsa import RobustSarsa, Transitions, watch
from marl_aajr.attacks import make_attack
from marl_aajr.core.distributions import ActionDistribution, Categorical, DiagGaussian, MultiCategorical
from marl_aajr.core.policy import ModulePolicy, PulledBack, autograd_vjp
from marl_aajr.core.threat import PerturbationSet
from marl_aajr.rollout.environments import make_batch, resolve
from marl_aajr.victims import Victim
from tests.evaluation.players import moves, network, sign_reader, signs, team
from tests.networks import generator, observations
from tests.rollout.toy_games import Scripted

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("kind", [Categorical(5), MultiCategorical((2, 3)), DiagGaussian(2)], ids=str)
def test_the_gradient_through_q_and_the_policy_is_that_of_autograd(kind: ActionDistribution) -> None:
    actions = 2 if isinstance(kind, DiagGaussian) else kind.num_inputs
    q = ActionValue(4, actions, generator=generator()).requires_grad_(False)
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, kind.num_inputs))
    attack = make_attack("robust-sarsa", epsilon=0.1)
    assert isinstance(attack, RobustSarsa)
    attack = replace(attack, values={"shared": q}, _q=q)
    policy = ModulePolicy(net.requires_grad_(False), kind)
    obs = observations(6, 4, dtype=torch.float32)
    critic = attack.clean(policy, obs, policy(obs)).values
    assert isinstance(critic, PulledBack)
    seen = obs + 0.1
    value, pull = critic.vjp(seen)
    expected, expected_pull = autograd_vjp(critic, seen)
    torch.testing.assert_close(value, expected)
    torch.testing.assert_close(pull(torch.ones(6)), expected_pull(torch.ones(6)))


class TestWatching:
    def test_every_decision_becomes_one_transition(self) -> None:
        """Signs of fixed length: rewards are those of the team, chains link up, ends are marked."""
        spec = signs(longest=1)
        victim, env = team(spec, sign_reader()), make_batch(spec, 4)
        seen = watch(victim, env, agents=victim.agents, decisions=40, seed=0, generator=generator())["shared"]
        env.close()
        assert len(seen.over) == 40 * 3, "three agents, and every episode has one step"
        assert seen.over.all()
        right = (seen.actions.argmax(-1) == 1) == (seen.obs[:, 0] > 0)
        by_agent = right.float().mul(2).sub(1).reshape(3, -1).sum(0)
        assert torch.equal(seen.rewards.reshape(3, -1), by_agent.expand(3, -1)), "they share what they earn"

    def test_lying_to_one_agent_is_to_cost_its_team(self) -> None:
        """Only agent_1 is lied to: it is paid what both of its side earn, and nothing of agent_0's."""
        spec = signs(longest=1, teams=True)
        rewards = {}
        for agents in (["agent_1"], ["agent_1", "agent_2"]):
            env = make_batch(spec, 4)
            seen = watch(
                team(spec, sign_reader()), env, agents=agents, decisions=40, seed=0, generator=generator()
            )
            env.close()
            rewards[len(agents)] = seen["shared"].rewards
        assert torch.equal(rewards[1], rewards[2][:40])
        assert set(rewards[1].tolist()) <= {-2.0, 0.0, 2.0}

    def test_transitions_within_an_episode_lead_to_the_next_decision(self) -> None:
        spec = signs(longest=6)
        victim, env = team(spec, sign_reader()), make_batch(spec, 1)
        seen = watch(victim, env, agents=["agent_0"], decisions=60, seed=0, generator=generator())["shared"]
        env.close()
        assert 0 < seen.over.sum() < len(seen.over)
        for i in range(len(seen.over) - 1):
            if not seen.over[i]:
                assert torch.equal(seen.next_obs[i], seen.obs[i + 1])
                assert torch.equal(seen.next_actions[i], seen.actions[i + 1])

    def test_who_is_out_before_the_others_is_paid_to_the_end(self) -> None:
        """Agent a acts once; its team earns 6 in that step, and 5 in each of the three that follow."""
        endings = {"a": (1, "terminated"), "b": (4, "terminated"), "c": (4, "truncated")}
        spec = resolve("tests.rollout.toy_games:Scripted", {"endings": endings})
        env = make_batch(spec, 2)
        victim = Victim.from_policies(network(3, 2), Scripted(**spec.kwargs))
        seen = watch(victim, env, agents=["a"], decisions=24, seed=0, generator=generator())["policy"]
        env.close()
        assert seen.over.all()
        assert seen.rewards.tolist() == [21.0] * 6

    def test_turn_by_turn_a_decision_earns_until_the_next_one(self) -> None:
        """In Moves the other takes back what it earns: both rewards belong to the decision."""
        spec = moves()
        victim, env = team(spec), make_batch(spec, 1)
        seen = watch(victim, env, agents=["first"], decisions=200, seed=0, generator=generator())["shared"]
        env.close()
        assert (seen.rewards < 0).any()
        assert (seen.rewards > 0).any()
        assert seen.over.any()


class TestEncoding:
    def test_one_hot_probabilities_and_means(self) -> None:
        logits = torch.tensor([[0.0, 0.0, 5.0]])
        multi = MultiCategorical((2, 1))
        chosen = encode(multi, logits, torch.tensor([[1, 0]]))
        assert chosen.tolist() == [[0, 1, 1]]
        assert encode(multi, logits, None).tolist() == [[0.5, 0.5, 1.0]]
        assert encode(Categorical(3), logits, torch.tensor([2])).tolist() == [[0, 0, 1]]
        gaussian = torch.tensor([[0.3, -1.0]])
        assert encode(DiagGaussian(1), gaussian, None).tolist() == [[pytest.approx(0.3)]]


class TestLearning:
    def transitions(self, rows: int = 4000) -> Transitions:
        """One step: reward −(a − s)², s and a uniform in [−1, 1]."""
        obs, actions = (2 * torch.rand(rows, 1, generator=generator(i)) - 1 for i in (0, 1))
        rewards = -(actions - obs).square().squeeze(-1)
        over = torch.ones(rows, dtype=torch.bool)
        return Transitions(obs, actions, rewards, torch.zeros_like(obs), torch.zeros_like(actions), over)

    def fit(self, seen: Transitions, **settings: Any) -> ActionValue:
        chosen = {"robustness": 0.0, "updates": 300} | settings
        attack = RobustSarsa(perturbations=PerturbationSet(epsilon=0.1), **chosen)
        return attack.learn(seen, generator=generator())

    def test_the_reward_of_one_step(self) -> None:
        seen = self.transitions()
        q = self.fit(seen)
        error = q(seen.obs, seen.actions) - seen.rewards / seen.rewards.square().mean().sqrt()
        assert error.square().mean() < 0.02

    def test_what_comes_later_is_discounted(self) -> None:
        """Two states: 0 pays 7 and leads to 1, which pays 7 and ends. Q(0) / Q(1) = 1 + γ."""
        obs = torch.tensor([[0.0], [1.0]]).repeat(500, 1)
        zeros = torch.zeros(1000, 1)
        rewards = torch.full((1000,), 7.0)
        over = torch.tensor([False, True]).repeat(500)
        seen = Transitions(obs, zeros, rewards, obs.flip(0), zeros, over)
        q = self.fit(seen, discount=0.5, updates=600)
        first, second = q(torch.tensor([[0.0], [1.0]]), torch.zeros(2, 1)).tolist()
        assert second == pytest.approx(1.0, rel=0.02), "in units of the rewards' size"
        assert first == pytest.approx(1.5, rel=0.02)

    def test_the_regulariser_makes_q_smooth_in_the_action(self) -> None:
        seen = self.transitions()
        rough, smooth = (self.fit(seen, robustness=weight) for weight in (0.0, 10.0))

        def wobble(q: ActionValue) -> float:
            moved = q(seen.obs, seen.actions + 0.1) - q(seen.obs, seen.actions)
            return moved.square().mean().item()

        assert wobble(smooth) < 0.5 * wobble(rough)

    def test_interval_bounds_hold_and_shrink_to_the_value(self) -> None:
        q = ActionValue(3, 4, generator=generator()).requires_grad_(False)
        obs, actions = observations(50, 3, dtype=torch.float32), observations(50, 4, dtype=torch.float32)
        low, high = q.bounds(obs, actions, radius=0.3)
        for seed in range(50):
            shift = 0.6 * torch.rand(50, 4, generator=generator(seed)) - 0.3
            value = q(obs, actions + shift)
            assert ((low <= value + 1e-5) & (value <= high + 1e-5)).all()
        low, high = q.bounds(obs, actions, radius=0.0)
        torch.testing.assert_close(low, q(obs, actions))
        torch.testing.assert_close(high, q(obs, actions))

    def test_no_global_random_numbers_and_the_same_again(self) -> None:
        before = torch.get_rng_state()
        one, two = (self.fit(self.transitions(200)) for _ in range(2))
        assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))
        assert torch.equal(torch.get_rng_state(), before)


class TestAttack:
    def test_it_finds_the_flip_that_pays(self) -> None:
        """In Signs the wrong sign costs 2: at ε > 1 the attack must show it, although nobody told it so."""
        spec = signs(longest=3)
        victim, env = team(spec, sign_reader()), make_batch(spec, 10)
        fresh = RobustSarsa(
            perturbations=make_attack("pgd", epsilon=1.1).perturbations, experience=1500, updates=300
        )
        attack = fresh.fit(victim, env, agents=victim.agents, seed=0)
        env.close()
        assert (fresh.ready, attack.ready) == (False, True)
        bound = attack.against(victim, "agent_0")
        obs = torch.tensor([[1.0, 0.0], [-1.0, 0.0]]).repeat(20, 1)
        attacked = bound(victim.policy("agent_0"), obs, generator=generator())
        assert attacked.success.all()
        assert (attacked.value > attacked.clean_value).all()
        same = pickle.loads(pickle.dumps(attack)).against(victim, "agent_0")
        again = same(victim.policy("agent_0"), obs, generator=generator())
        assert torch.equal(again.delta, attacked.delta)

    def test_before_it_was_fitted_it_is_refused(self) -> None:
        victim = team(signs(), sign_reader())
        attack = make_attack("robust-sarsa", epsilon=0.1)
        with pytest.raises(
            ValueError, match=r"expected a fitted robust-sarsa.*call fit\(victim, env\) first"
        ):
            attack.against(victim, "agent_0")
        with pytest.raises(ValueError, match=r"expected fit\(\) and against\(\) before robust-sarsa runs"):
            attack(victim.policy("agent_0"), torch.zeros(1, 2), generator=generator())

    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"experience": 0}, "an integer experience ≥ 1, got 0"),
            ({"robustness": -1.0}, r"robustness ≥ 0, got -1\.0"),
            ({"discount": 1.5}, r"a discount in \[0, 1\], got 1\.5"),
        ],
    )
    def test_settings(self, settings: dict[str, float], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            make_attack("robust-sarsa", epsilon=0.1, **settings)
