"""Metrics of sampling: exact returns per team over any number of runners, and RLlib's metrics of episodes.

RLlib's own `episode_return_mean` is a mean of the runners' means over a window of past episodes, and knows
no teams. Sums over the iteration can be added up without loss. `SamplingMetrics` logs them, and what RLlib
logs of its episodes, for the fast env runner, which has none.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from ray.rllib.utils import metrics as keys
from torch import Tensor

from marl_aajr.core.environment_values import agent_name
from marl_aajr.rollout.fragments import Episodes, Fragment
from marl_aajr.rollout.game_agents import reported

RETURNS_KEY = "marl_aajr"
"""Under `result["env_runners"]`."""

ATTACK_KEY = "attack"
"""Under that: the sums of rollouts under attack."""


@dataclass(frozen=True)
class EpisodeReturns:
    """RLlib's `on_episode_end`: logs `episodes`, `length`, `returns/<team>` and `metrics/<name>` as sums."""

    teams: Mapping[str, str]

    def __call__(
        self,
        *,
        episode: Any,
        prev_episode_chunks: list[Any],
        env_runner: Any,
        env_index: int,
        metrics_logger: Any,
        **_: Any,
    ) -> None:
        returns = team_returns(env_runner, env_index, self.teams)
        length = sum(map(len, [*prev_episode_chunks, episode]))
        sums: dict[str, Any] = {"episodes": 1, "length": length, "returns": returns}
        if metrics := reported(episode.get_infos(-1)):
            sums["metrics"] = {name: {"sum": value, "episodes": 1} for name, value in metrics.items()}
        metrics_logger.log_dict(sums, key=RETURNS_KEY, reduce="sum")


def team_returns(env_runner: Any, copy: int, teams: Mapping[str, str]) -> dict[str, float]:
    """What each team has earned in the episode of a copy, in an env runner of our own runs."""
    returns = dict.fromkeys(teams.values(), 0.0)
    for agent, earned in env_runner.episode_returns[copy].items():
        returns[teams[agent_name(agent)]] += earned
    return returns


@dataclass(frozen=True)
class SamplingMetrics:
    """Logs to a runner's `metrics`; agents stand in the order of the returns."""

    runner: Any
    agents: tuple[str, ...]
    module_of: Mapping[str, str]
    teams: Mapping[str, str]

    def steps(self, fragment: Fragment) -> None:
        """Count the steps of a fragment."""
        counts: dict[str, int] = {}
        for part in fragment.modules.values():
            if part.acts is None:
                counts |= dict.fromkeys(part.agents, fragment.env_steps())
            else:
                acted = part.acts[part.steps - fragment.steps : -1].sum((0, 2)).tolist()
                counts |= dict(zip(part.agents, acted, strict=True))
        self.count(fragment.env_steps(), counts)

    def count(self, env_steps: int, agent_steps: Mapping[str, int]) -> None:
        """Count steps of the environment, and of each agent."""
        module_steps = dict.fromkeys(self.module_of.values(), 0)
        for agent, count in agent_steps.items():
            module_steps[self.module_of[agent]] += count
        log = self.runner.metrics.log_value
        log(keys.NUM_ENV_STEPS_SAMPLED, env_steps, reduce="sum")
        log(keys.NUM_ENV_STEPS_SAMPLED_LIFETIME, env_steps, reduce="lifetime_sum", with_throughput=True)
        for key, lifetime, counts in (
            (keys.NUM_AGENT_STEPS_SAMPLED, keys.NUM_AGENT_STEPS_SAMPLED_LIFETIME, agent_steps),
            (keys.NUM_MODULE_STEPS_SAMPLED, keys.NUM_MODULE_STEPS_SAMPLED_LIFETIME, module_steps),
        ):
            for name, count in counts.items():
                log((key, str(name)), count, reduce="sum")
                log((lifetime, str(name)), count, reduce="lifetime_sum")

    def attack(self, episodes: Episodes, attacked: Tensor, sums: Mapping[str, float], epsilon: float) -> None:
        """Log what rollouts under attack came to, as sums: ε, returns of both kinds of episodes, measures.

        Args:
            episodes: Those that ended.
            attacked: Whether each was played under attack, `[n]` bool.
            sums: See `marl_aajr.rollout.attack.attacked_metrics.attack_metrics`.
            epsilon: ε in force.
        """
        found: dict[str, Any] = {"samples": 1.0, "epsilon": epsilon, **sums}
        for kind, which in (("attacked", attacked), ("clean", ~attacked)):
            returns = self._by_team(episodes.returns[which])
            found[kind] = {"episodes": float(which.sum()), "returns": returns}
        self.runner.metrics.log_dict(found, key=(RETURNS_KEY, ATTACK_KEY), reduce="sum")

    def _by_team(self, returns: Tensor) -> dict[str, float]:
        """The sum of returns `[n, A]` over episodes, by team."""
        teams = dict.fromkeys((self.teams[agent] for agent in self.agents), 0.0)
        for agent, earned in zip(self.agents, returns.sum(0).tolist(), strict=True):
            teams[self.teams[agent]] += earned
        return teams

    def episodes(self, episodes: Episodes, seconds_per_step: float) -> None:
        """Log the episodes that ended."""
        metrics = self.runner.metrics
        returns, lengths = episodes.returns, episodes.lengths
        metrics.log_value(keys.NUM_EPISODES, len(lengths), reduce="sum")
        metrics.log_value(keys.NUM_EPISODES_LIFETIME, len(lengths), reduce="lifetime_sum")
        if not len(lengths):
            return
        teams = self._by_team(returns)
        # As EpisodeReturns.
        sums: dict[str, Any] = {"episodes": len(lengths), "length": int(lengths.sum()), "returns": teams}
        if episodes.metrics:
            sums["metrics"] = {
                name: {"sum": values.nansum().item(), "episodes": int(values.isfinite().sum())}
                for name, values in episodes.metrics.items()
            }
        metrics.log_dict(sums, key=RETURNS_KEY, reduce="sum")
        config = self.runner.config
        window = max(1, math.ceil(config.metrics_num_episodes_for_smoothing / (config.num_env_runners or 1)))
        # RLlib means over a window of the last episodes, which it empties whenever it is read.
        returns, lengths = returns[-window:], lengths[-window:]
        total, length = returns.sum(1), lengths.double().mean().item()
        by_agent = dict(zip(map(str, self.agents), returns.mean(0).tolist(), strict=True))
        agent_steps = episodes.agent_steps[-window:].double().mean(0).tolist()
        by_module = dict.fromkeys(self.module_of.values(), 0.0)
        for agent, module in self.module_of.items():
            by_module[module] += by_agent[str(agent)]
        metrics.log_dict(
            {
                keys.EPISODE_LEN_MEAN: length,
                keys.EPISODE_RETURN_MEAN: total.mean().item(),
                keys.EPISODE_DURATION_SEC_MEAN: seconds_per_step * length,
                keys.EPISODE_AGENT_RETURN_MEAN: by_agent,
                keys.EPISODE_AGENT_STEPS: dict(zip(by_agent, agent_steps, strict=True)),
                keys.EPISODE_MODULE_RETURN_MEAN: by_module,
            },
            window=window,
        )
        for reduce, names, of in (
            ("min", (keys.EPISODE_LEN_MIN, keys.EPISODE_RETURN_MIN), torch.amin),
            ("max", (keys.EPISODE_LEN_MAX, keys.EPISODE_RETURN_MAX), torch.amax),
        ):
            values = (of(lengths).item(), of(total).item())
            metrics.log_dict(dict(zip(names, values, strict=True)), reduce=reduce, window=window)
