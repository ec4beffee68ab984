"""A smoothed victim: its votes, their random numbers and gradients, its noise, and how it is attacked."""

from __future__ import annotations

import pickle
from math import erf, sqrt
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from marl_aajr.attacks import Attack
from marl_aajr.core.flat_observations import FlatBox
from marl_aajr.core.policy import Policy, autograd_vjp
from marl_aajr.core.threat import PerturbationSet
from marl_aajr.victims import Smoothing, Victim, fingerprint, smoothed
from marl_aajr.victims.noise import as_smoothing
from marl_aajr.victims.smoothing import SmoothedPolicy
from marl_aajr.victims.stepper import Stepper
from tests.networks import generator
from tests.victims.teams import OUTPUTS, FixedLogits, frozen, learned_filter, victim
from tests.victims.test_recurrent import Counter

OBS = torch.randn(4, 6, generator=generator(3))


def line(direction: list[float], bias: float = 0.0) -> nn.Module:
    """Five logits, of which the first is `direction · s + bias`, and the rest but one are never the best."""
    layer = nn.Linear(6, 5)
    layer.weight.data = torch.zeros(5, 6)
    layer.weight.data[0] = torch.tensor(direction)
    layer.bias.data = torch.tensor([bias, 0.0, -99.0, -99.0, -99.0])
    return layer


def votes(team: Victim, obs: Tensor, **state: Any) -> Tensor:
    """The shares of votes, as they are to be read from the outputs."""
    with torch.no_grad():
        return team.policy("a_0", **state)(obs).exp()


def test_votes_are_the_probability_of_a_choice_under_noise() -> None:
    """P(w·(s + η) + b > 0) = Φ((w·s + b) / σ‖w‖), with units of the features in w, and none where masked."""
    direction = [3.0, 4.0, 0.0, 0.0, 0.0, 2.0]
    team = victim(modules={"shared": line(direction, bias=0.3)})
    noise = Smoothing(
        0.5, 20_000, mask=(True, True, True, True, True, False), scale=(1.0, 2.0, 1.0, 1.0, 1.0, 1.0)
    )
    shares = votes(smoothed(team, noise), OBS)
    score = OBS @ torch.tensor(direction) + 0.3
    for row, z in zip(shares, (score / (0.5 * sqrt(3**2 + 8**2))).tolist(), strict=True):
        expected = (1 + erf(z / sqrt(2))) / 2
        assert row[0].item() == pytest.approx(expected, abs=0.012)
        assert row[1].item() == pytest.approx(1 - expected, abs=0.012)
        assert row[2:].max() < 1e-4


def test_the_same_seed_votes_the_same_and_every_decision_has_noise_of_its_own() -> None:
    team = smoothed(victim(), "0.7:7")
    stepper = Stepper(team, team.memory(4), groups=[["a_0", "a_1"]])

    def decisions() -> list[Tensor]:
        seen = [stepper.see({"a_0": OBS, "a_1": OBS})[0] for _ in range(3)]
        for batch in seen:
            assert torch.equal(batch.policy(batch.inputs), batch.policy(batch.inputs))
            assert torch.equal(
                batch.policy.select(torch.tensor([2]))(OBS[2:3]), batch.policy(batch.inputs)[2:3]
            )
        return [batch.policy(batch.inputs) for batch in seen]

    team.reseed(5)
    first = decisions()
    assert not torch.equal(first[0], first[1])
    assert not torch.equal(first[1], first[2])
    team.reseed(5)
    assert all(map(torch.equal, first, decisions()))
    team.reseed(6)
    assert not torch.equal(first[0], decisions()[0])
    again = pickle.loads(pickle.dumps(team))
    again.reseed(5)
    team.reseed(5)
    assert torch.equal(votes(again, OBS), votes(team, OBS))
    assert team.draws


@pytest.mark.parametrize("kind", ["discrete", "multi", "box"])
def test_the_greedy_action_is_that_of_most_noisy_observations(kind: str) -> None:
    """Counted one by one; of Gaussian actions the median in each component."""
    team, base = smoothed(victim(kind), "0.7:31"), victim(kind).policy("a_0")
    policy = team.policy("a_0")
    assert isinstance(policy, SmoothedPolicy)
    with torch.no_grad():
        outputs, each = policy(OBS), policy.noisy_outputs(OBS)
        distribution = policy.distribution
        chosen = torch.stack([distribution.mode(y) for y in each])
    assert each.shape == (31, 4, base.distribution.num_inputs)
    expected = chosen.median(0).values if kind == "box" else chosen.mode(0).values
    torch.testing.assert_close(distribution.mode(outputs), expected)
    assert not torch.equal(each[0], each[1])


@pytest.mark.parametrize("kind", ["discrete", "multi", "box"])
@pytest.mark.parametrize("observed", [None, frozen(learned_filter())])
def test_its_gradient_is_that_of_the_mean_over_the_noise(kind: str, observed: Any) -> None:
    """The same by the fast way and by autograd, and that of the log of the mean probability."""
    team = smoothed(victim(kind, filters={"a_0": observed, "a_1": observed}), "40:9")
    policy, cotangent = team.policy("a_0"), torch.randn(4, OUTPUTS[kind], generator=generator())
    assert isinstance(policy, SmoothedPolicy)
    outputs, pull = policy.vjp(OBS)
    values, by_autograd = autograd_vjp(policy, OBS)
    torch.testing.assert_close(outputs, values)
    torch.testing.assert_close(pull(cotangent), by_autograd(cotangent))

    def mean(obs: Tensor) -> Tensor:
        each = policy.noisy_outputs(obs)
        if kind == "box":
            return each.mean(0)
        sizes = [5] if kind == "discrete" else [2, 3]
        return torch.cat([y.softmax(-1).mean(0).log() for y in each.split(sizes, -1)], -1)

    torch.testing.assert_close(autograd_vjp(mean, OBS)[1](cotangent), autograd_vjp(policy, OBS)[1](cotangent))


def test_behind_a_filter_sigma_is_in_units_of_the_environment() -> None:
    """Noise on what the network is given is σ / scale, and stops where the filter clips."""
    observed = frozen(learned_filter())
    filters = {"a_0": observed, "a_1": observed}
    seen: list[Tensor] = []

    class Spy(nn.Module):
        def forward(self, obs: Tensor) -> Tensor:
            seen.append(obs)
            return obs[..., :5]

    team = smoothed(victim(modules={"shared": Spy()}, filters=filters), "3:4000")
    inputs = team.inputs("a_0", observed.mean.float().unsqueeze(0))
    votes(team, inputs)
    noise = (seen[-1] - inputs).reshape(4000, 6)
    inside = noise.abs().amax(0) < 10 - 1e-3
    torch.testing.assert_close(noise.std(0)[inside], (3 / observed.scale).float()[inside], rtol=0.06, atol=0)
    assert inside.any()
    assert seen[-1].abs().max() <= 10
    assert not inside.all()


def test_forbidden_actions_get_no_votes() -> None:
    team = smoothed(victim(modules={"shared": FixedLogits()}), "1:5")
    legal = torch.tensor([[True, True, False, True, False]]).expand(4, -1)
    outputs = team.policy("a_0", action_mask=legal)(OBS)
    assert outputs.argmax(-1).tolist() == [1] * 4
    assert (outputs[~legal] == torch.finfo(torch.float32).min).all()
    outputs, pull = smoothed(victim(), "1:5").policy("a_0", action_mask=legal).vjp(OBS)
    assert (outputs[~legal] == torch.finfo(torch.float32).min).all()
    assert pull(torch.eye(5)[:4]).isfinite().all()


def test_a_recurrent_policy_remembers_what_it_saw_and_not_the_noise() -> None:
    team = smoothed(victim(modules={"shared": Counter()}), "9:3")
    state = team.memory(4).recall({"a_0": torch.arange(4)})
    assert state is not None
    outputs, after = team.policy("a_0", state=state).step(OBS)
    assert outputs.shape == (4, 5)
    assert after is not None
    assert after["decisions"].tolist() == [1] * 4
    torch.testing.assert_close(after["sum"], OBS)


def test_only_voters_vote() -> None:
    team = smoothed(victim(), "0.5:5", agents=["a_1"])
    assert team.alike(["a_0", "a_1"]) == [["a_1"], ["a_0"]]
    assert torch.equal(team.policy("a_0")(OBS), victim().policy("a_0")(OBS))
    assert isinstance(team.policy("a_1"), SmoothedPolicy)
    assert smoothed(victim(), "0.5:5").alike(["a_0", "a_1"]) == [["a_0", "a_1"]]


def test_what_stands_for_integers_in_a_flat_observation_has_no_noise() -> None:
    space = FlatBox({"kind": gym.spaces.Discrete(3), "place": gym.spaces.Box(-1, 1, (3,), np.float32)})
    team = victim(observation_spaces={"a_0": space, "a_1": space})
    policy = smoothed(team, "1:50").policy("a_0")
    assert isinstance(policy, SmoothedPolicy)
    noisy, _ = policy._noise(OBS, seed=0, samples=50)
    assert ((noisy - OBS) == 0).all(0).all(0).tolist() == [not free for free in space.free]


def test_it_can_be_saved_and_is_another_victim_than_without(tmp_path: Path) -> None:
    team = smoothed(victim(), Smoothing(0.5, 5, mask=(True,) * 5 + (False,)), agents=["a_1"])
    again = Victim.load(team.save(tmp_path / "team"))
    assert (again.smoothing, again.voters) == (team.smoothing, team.voters)  # type: ignore[attr-defined]
    assert len({fingerprint(v) for v in (victim(), team, smoothed(victim(), "0.5:5"), again)}) == 3


class Asks(Attack):
    """Keeps what the policy answers while it looks."""

    name = "asks"
    summary = "asks"
    answers: Any = []  # noqa: RUF012

    def run(self, policy: Policy, obs: Tensor, *, generator: torch.Generator) -> Tensor:
        self.answers[:] = [policy(obs), policy.repeat(2)(torch.cat([obs, obs]))]
        return torch.zeros_like(obs)


def test_an_attack_does_not_know_the_noise_that_decides_and_both_of_its_outcomes_share_it() -> None:
    policy = smoothed(victim(), "0.7:7").policy("a_0")
    attacked = Asks(perturbations=PerturbationSet(epsilon=0.1))(policy, OBS, generator=generator())
    one, two = Asks.answers
    torch.testing.assert_close(torch.cat([one, one]), two)
    torch.testing.assert_close(attacked.clean_outputs, attacked.outputs)
    assert (attacked.outputs - one).abs().max() > 1e-3
    assert not attacked.success.any()


INTEGERS = gym.spaces.Box(0, 255, (6,), np.uint8)


@pytest.mark.parametrize(
    ("text", "settings", "words"),
    [
        ("0:100", {}, "expected sigma > 0"),
        ("-1:100", {}, "expected sigma > 0"),
        ("nan:100", {}, "expected sigma > 0"),
        ("0.1:0", {}, "samples"),
        ("0.1", {}, r"SIGMA:SAMPLES, such as 0.1:100, got '0.1'"),
        ("0.1:many", {}, "SIGMA:SAMPLES"),
        ("0.1:10", {"greedy_only": True}, "greedy only"),
        (
            "0.1:10",
            {"observation_spaces": {"a_0": INTEGERS, "a_1": INTEGERS}},
            "expected float observations.*'a_0'",
        ),
        (Smoothing(0.1, 10, scale=(1.0, 1.0)), {}, "expected 6 features in scale, got 2"),
    ],
)
def test_bad_input_is_refused_by_name(text: Any, settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        smoothed(victim(**settings), text)


def test_what_cannot_be_smoothed_is_said() -> None:
    with pytest.raises(ValueError, match="smooth once"):
        smoothed(smoothed(victim(), "0.1:10"), "0.1:10")
    with pytest.raises(ValueError, match="agents to smooth"):
        smoothed(victim(), "0.1:10", agents=["nobody"])
    space = FlatBox({"kind": gym.spaces.Discrete(6)})
    with pytest.raises(ValueError, match="expected float observations"):
        smoothed(victim(observation_spaces={"a_0": space, "a_1": space}), "0.1:10")
    assert str(as_smoothing("0.10:100")) == "0.1:100"
    assert as_smoothing(str(as_smoothing("0.123456789:100"))) == as_smoothing("0.123456789:100")
    limited = Smoothing(0.1, 100, mask=(True, False), scale=(1.0, 1e20))
    assert str(limited) == "0.1:100,mask=1+0,scale=1+1e20"
    assert as_smoothing(str(limited)) == limited
    for text in ("0.1:100,mask", "0.1:100,masks=1+0", "0.1:100,mask=1+x", "0.1"):
        with pytest.raises(ValueError, match=r"expected smoothing as SIGMA:SAMPLES, such as 0\.1:100, got"):
            as_smoothing(text)
