"""Attacks that are held to named channels: who is attacked, on which features, and what the result says."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from pettingzoo.utils.env import ParallelEnv
from torch import nn

from marl_aajr.attacks import make_attack
from marl_aajr.evaluation import Evaluation, evaluate
from marl_aajr.pettingzoo import attacked
from marl_aajr.rollout.environments import EnvironmentSpec, resolve
from marl_aajr.victims import ObservationFilter, Victim
from tests.evaluation.players import network, returns_one_by_one, sign_reader, signs, team
from tests.evaluation.test_evaluate import decisions

HELD = {"attack": "pgd", "channels": ["no"]}
SIGN = {"sign": [0], "rest": "1:"}
LISTEN = resolve("marl_aajr.envs.simple_speaker_listener_v4", {"max_cycles": 5})


def on(spec: EnvironmentSpec, channels: Any) -> EnvironmentSpec:
    return resolve(spec.name, {**spec.kwargs, "env.channels": channels})


def played(channel: str, *, said: Any = SIGN, **how: Any) -> Evaluation:
    spec = on(signs(), said)
    filters = how.pop("filters", {})
    protocol: dict[str, Any] = {
        "attacks": [("pgd-margin", 1.1)],
        "episodes": 12,
        "num_envs": 6,
        "units": "raw",
    }
    return evaluate(team(spec, sign_reader(), filters=filters), channels=[channel], **(protocol | how))


@pytest.mark.parametrize("filtered", [False, True])
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_only_the_named_features_are_touched(filtered: bool, norm: Any) -> None:
    """The sign decides, the rest does not; in the environment's units with a filter, too."""
    half = ObservationFilter(torch.zeros(2), torch.full((2,), 0.5), clip=None)
    filters = dict.fromkeys(("agent_0", "agent_1", "agent_2"), half) if filtered else {}
    truth = decisions(signs(), episodes=12, seed=0, num_envs=6)
    turned, same = (played(name, filters=filters, norm=norm).attacks[0] for name in ("sign", "rest"))
    assert list(same.returns) == truth
    assert list(turned.returns) == [-x for x in truth]
    assert (turned.attack.label, turned.attack.channels) == ("pgd-margin on sign", ("sign",))


def test_agents_of_one_network_have_channels_of_their_own() -> None:
    """`what` is the sign of agent_0, and what agent_1 does not look at; agent_2 has none of the name."""
    said = {"agent_0": {"what": [0]}, "agent_1": {"what": [1]}}
    found = played("what", said=said)
    row = found.attacks[0]
    assert row.epsilons == {"agent_0": 1.1, "agent_1": 1.1}
    totals = returns_one_by_one(team(signs(), sign_reader()), signs(), episodes=12, seed=0, num_envs=6)
    assert list(row.returns) == [each["agent_1"] + each["agent_2"] - each["agent_0"] for each in totals]
    assert Evaluation.model_validate_json(found.model_dump_json()) == found


def test_only_those_who_listen_are_lied_to_and_by_what_they_hear() -> None:
    policies = {"speaker_0": network(3, 3), "listener_0": network(5, 11)}
    victim = Victim.from_policies(policies, LISTEN.make().env, env_name=LISTEN.name)
    found = evaluate(
        victim,
        LISTEN,
        attacks=["noise", "fgsm", "pgd-margin", {"attack": "square", "queries": 3}],
        epsilons=[0.3],
        channels=["messages"],
        episodes=6,
        selection_episodes=2,
        actions=["greedy"],
    )
    assert {row.agents for row in found.attacks} == {("listener_0",)}
    assert {row.attack.label for row in found.attacks} == {
        f"{name} on messages" for name in ("noise", "fgsm", "pgd-margin", "square")
    }
    assert not [check for check in found.checks if check.verdict == "fail" and "gradient" in check.name]
    everything = evaluate(victim, LISTEN, attacks=[("pgd-margin", 0.3)], episodes=6)
    assert everything.attacks[0].objective_gain > found.attacks[2].objective_gain > 0
    assert everything.clean == found.clean


@pytest.mark.parametrize(
    ("channels", "settings", "words"),
    [
        (["messages"], {}, r"a channel of agent_0, agent_1, agent_2 in .*Signs out of sign, rest; got 'mess"),
        (["sing"], {}, "did you mean sign"),
        (["sign", "sign"], {}, "channels: expected each once, got 'sign' twice"),
        (None, {"attacks": [(HELD, 1), ("fgsm", 1)]}, "out of sign, rest; got 'no'"),
    ],
)
def test_refused_before_anything_is_played(channels: Any, settings: Any, words: str) -> None:
    def play(_: object) -> None:
        pytest.fail("it was played")

    with pytest.raises(ValueError, match=words):
        evaluate(
            team(on(signs(), SIGN), sign_reader()),
            channels=channels,
            on_progress=play,
            **({"attacks": [("pgd", 1)], "episodes": 2} | settings),
        )


def test_an_environment_that_says_nothing_is_named_with_what_to_say() -> None:
    with pytest.raises(ValueError, match=r"got .*Signs, which does not; say it: env\.channels"):
        evaluate(team(signs(), sign_reader()), attacks=[("pgd", 1)], channels=["sign"], episodes=2)


def test_a_game_in_somebodys_loop_is_attacked_on_its_channels() -> None:
    env = LISTEN.make().env
    victim = Victim.from_policies({"speaker_0": network(3, 3), "listener_0": network(5, 11)}, env)
    told = attacked(env, make_attack("noise", epsilon=0.2, channels=("messages",)), victim)
    before, _ = env.reset(seed=3)
    after, _ = told.reset(seed=3)
    change = after["listener_0"] - before["listener_0"]
    assert (change[:8] == 0).all()
    assert (change[8:] != 0).all()
    assert (after["speaker_0"] == before["speaker_0"]).all()
    with pytest.raises(ValueError, match="out of goal, velocity, landmarks, messages; got 'key'"):
        attacked(env, make_attack("noise", epsilon=0.2, channels=("key",)), victim)


class Told(ParallelEnv[str, Any, Any]):
    """Answer the word that you hear, and mind the sign of a number: 1 for each that is right."""

    metadata = {"name": "told_v0", "render_modes": []}  # noqa: RUF012
    render_mode = None
    possible_agents = ["agent_0", "agent_1"]  # noqa: RUF012

    def observation_space(self, agent: str) -> spaces.Space[Any]:
        return spaces.Dict(heard=spaces.Dict(word=spaces.Discrete(2)), number=spaces.Box(-9, 9, (1,)))

    def action_space(self, agent: str) -> spaces.Space[Any]:
        return spaces.Discrete(2)

    def reset(self, seed: int | None = None, options: Any = None) -> Any:
        self.agents, self.word = list(self.possible_agents), int(np.random.default_rng(seed).integers(2))
        return self._look(), {agent: {} for agent in self.agents}

    def step(self, actions: dict[str, int]) -> Any:
        rewards = {agent: float(actions[agent] == self.word) for agent in self.agents}
        told, ends, self.agents = self._look(), dict.fromkeys(self.agents, True), []
        return told, rewards, ends, dict.fromkeys(ends, False), {agent: {} for agent in ends}

    def _look(self) -> dict[str, Any]:
        number = np.array([2 * self.word - 1], np.float32)
        return {agent: {"heard": {"word": self.word}, "number": number} for agent in self.agents}


def test_parts_of_a_dict_are_channels_and_integers_are_words() -> None:
    """The features are the two of the word, then the number; one agent reads each."""
    reader, counter = nn.Linear(3, 2, bias=False), nn.Linear(3, 2, bias=False)
    reader.weight.data = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
    counter.weight.data = torch.tensor([[0.0, 0.0, -1.0], [0.0, 0.0, 1.0]])
    victim = Victim.from_policies({"agent_0": reader, "agent_1": counter}, Told())
    lies = [{"attack": name, "channels": ["heard/word"]} for name in ("message-random", "message-worst")]
    ball = ({"attack": "pgd-margin", "channels": ["number"]}, 2.0)
    found = evaluate(victim, resolve(Told), attacks=[*lies, ball], episodes=6)
    assert found.clean_return == 2.0
    assert [row.mean for row in found.results[0].threats] == [1.0, 1.0]
    assert found.attacks[0].mean == 1.0
    with pytest.raises(ValueError, match="leaves the adversary a feature"):
        evaluate(victim, resolve(Told), attacks=[({"attack": "pgd-margin", "channels": ["heard/word"]}, 2.0)])
