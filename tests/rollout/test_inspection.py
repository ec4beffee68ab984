"""A batch of arrays that breaks its contract is named with its copy, agent and step."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from marl_aajr.core.environment_values import EnvironmentFault
from marl_aajr.rollout.batched_env import BatchedStep
from marl_aajr.rollout.collector import Collector
from marl_aajr.rollout.environments import resolve
from marl_aajr.rollout.pettingzoo_batch import PettingZooBatch
from marl_aajr.rollout.rollout_buffer import Decision

EPISODE = 7
BREAKS_AT = 10  # the third step of the second episode


class Breaks(PettingZooBatch):
    """Breaks one promise in its tenth step."""

    def __init__(self, how: str) -> None:
        super().__init__(resolve("mpe2.simple_tag_v3", {"max_cycles": EPISODE}), 3)
        self.how, self.t = how, 0

    def step(self, actions: Any) -> BatchedStep:
        self.t += 1
        step = super().step(actions)
        if self.t < BREAKS_AT:
            return step
        nan = torch.tensor([0.0, torch.nan, 0.0])
        if self.how == "raises":
            raise KeyError("wheel")
        if self.how == "reward":
            step.rewards["agent_0"] += nan
        if self.how == "observation":
            step.obs["agent_0"] += nan[:, None]
        if self.how == "shape":
            step.rewards["agent_0"] = step.rewards["agent_0"][:, None]
        if self.how == "missing":
            del step.obs["agent_0"]
        return step


class Still:
    """Nobody moves."""

    def filter_obs(self, module: str, obs: Tensor, rows: Tensor | None) -> Tensor:
        return obs

    def sequence_length(self, module: str) -> None:
        return None

    def act(self, module: str, obs: Tensor, mask: Tensor | None, rows: Tensor | None) -> Decision:
        nothing = torch.zeros(len(obs), dtype=torch.long)
        return Decision(nothing, nothing, torch.zeros(len(obs)), torch.zeros(len(obs), 5))

    def begin_episodes(self, episode_over: Tensor) -> None:
        pass


def collector(how: str) -> Collector:
    env = Breaks(how)
    made = Collector(env, {a: a.partition("_")[0] for a in env.possible_agents}, Still(), name="my_batch")
    made.reset(seed=0)
    return made


@pytest.mark.parametrize(
    ("how", "says"),
    [
        ("raises", "3 copies, step 10 since the reset: raised KeyError: 'wheel'"),
        ("reward", "copy 1, step 3: the reward of agent 'agent_0' is not finite"),
        ("observation", "copy 1, step 3: the observation of agent 'agent_0' is not finite"),
        ("shape", r"step 10 since the reset: the reward of agent 'agent_0' has shape \(3, 1\)"),
        ("missing", "step 10 since the reset: gave agent 'agent_0' no observation"),
    ],
)
@pytest.mark.parametrize("first", [4, 8, BREAKS_AT])
def test_fault_is_named_wherever_fragments_are_cut(how: str, says: str, first: int) -> None:
    subject = collector(how)
    if first < BREAKS_AT:
        subject.collect(first)
    with pytest.raises(EnvironmentFault, match=f"environment my_batch, (.*){says}"):
        subject.collect(12)


def test_last_observation_is_looked_at_too() -> None:
    subject = collector("none")
    env = subject.env
    original = env.step

    def step(actions: Any) -> BatchedStep:
        answer = original(actions)
        if answer.episode_over.any():
            answer.final_obs["adversary_2"][2] = torch.inf
        return answer

    env.step = step  # type: ignore[method-assign]
    with pytest.raises(EnvironmentFault, match="copy 2, step 7: the last observation of agent 'adversary_2'"):
        subject.collect(EPISODE)
