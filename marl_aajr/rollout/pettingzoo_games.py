"""The two kinds of PettingZoo environment as a `Game`: everybody at once, or one after the other."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import gymnasium
from pettingzoo.utils.conversions import aec_to_parallel_wrapper
from pettingzoo.utils.env import AECEnv, ParallelEnv
from pettingzoo.utils.wrappers import AssertOutOfBoundsWrapper, OrderEnforcingWrapper

from marl_aajr.rollout.adapters import RLlibGame, RLlibParallelEnv, to_pettingzoo
from marl_aajr.rollout.game import Game
from marl_aajr.rollout.game_agents import GameStep


class ParallelGame(Game):
    """A `Game` over a ParallelEnv: everybody who lives acts at every step."""

    _progress = (*Game._progress, "_listed")

    def _reset(self, seed: int | None, options: dict[str, Any] | None) -> GameStep:
        obs, infos = self._parts("reset", self.env.reset(seed=seed, options=options))
        self._ended = set()
        self._listed = list(self.env.agents)
        self._acting = self._ordered(self._listed)
        turn = GameStep({}, {}, {}, {}, {}, over=not self._acting)
        self._welcome(self._acting, turn, obs, infos or {})
        return turn

    def _step(self, actions: dict[Any, Any]) -> GameStep:
        obs, rewards, terminations, truncations, infos = self._play(actions)
        turn, outcome = GameStep({}, {}, {}, {}, {}, False), self._agents.outcome
        ended_before = len(self._ended)
        for agent in self._acting:
            try:
                given = rewards[agent], terminations[agent], truncations[agent]
            except KeyError:
                self._blame(f"gave agent {agent!r} no reward, termination or truncation")
            reward, terminated, truncated = outcome(agent, *given)
            if terminated or truncated:
                self._ended.add(agent)
            # A terminal observation bootstraps nothing: environments may leave it out.
            if agent in obs or not terminated:
                turn.obs[agent] = self._given(agent, obs)
            turn.tell(agent, reward, terminated, truncated, infos.get(agent, {}))
        if self._ended:
            self._check_dead(terminations, truncations)
        if self.env.agents != self._listed or len(self._ended) > ended_before:
            self._change(turn, obs, infos)
        return turn if self._acting else turn._replace(over=True)

    def _play(self, actions: dict[Any, Any]) -> Any:
        return self._parts("step", self.env.step(actions))

    def _check_dead(self, terminations: Mapping[Any, Any], truncations: Mapping[Any, Any]) -> None:
        """Blames the environment if an agent lives again: nobody would ask it for its actions."""
        for agent in self._ended.intersection(self.env.agents):
            over = terminations.get(agent, True) or truncations.get(agent, True)
            if not over or agent not in self._listed:
                self._came_back(agent)

    def _change(self, turn: GameStep, obs: Mapping[Any, Any], infos: Mapping[Any, Any]) -> None:
        """Updates the acting agents when somebody has ended or appeared."""
        listed = set(self.env.agents)
        vanished = [a for a in self._acting if a not in listed and a not in self._ended]
        if vanished:
            self._blame(f"agent {vanished[0]!r} left without being terminated or truncated")
        self._welcome(self._ordered(listed.difference(self._acting, self._ended)), turn, obs, infos)
        self._listed = list(self.env.agents)
        self._acting = self._ordered(listed.difference(self._ended))

    def _welcome(
        self, agents: Iterable[Any], turn: GameStep, obs: Mapping[Any, Any], infos: Mapping[Any, Any]
    ) -> None:
        """Agents that begin now: they have earned nothing, and nobody has ended them."""
        for agent in agents:
            turn.obs[agent] = self._given(agent, obs)
            turn.tell(agent, 0.0, False, False, infos.get(agent, {}))

    def _given(self, agent: Any, obs: Mapping[Any, Any]) -> Any:
        if agent not in obs:
            self._blame(f"gave no observation to agent {agent!r}")
        return self._agents.observation(agent, obs[agent])

    def _ordered(self, agents: Iterable[Any]) -> tuple[Any, ...]:
        try:
            return tuple(sorted(agents, key=self._rank.__getitem__))
        except KeyError as unknown:
            self._blame(f"has an agent {unknown} that is not in possible_agents")


class ConvertedGame(ParallelGame):
    """A `ParallelGame` over PettingZoo's own conversion of a turn-based environment (all of mpe2).

    The conversion asks for an observation before every single action and throws it away, and reads every
    attribute through all wrappers. Here the same calls are made without that observation, and behind the
    two wrappers that only check their caller: a step of simple_spread takes half of the time, and little more
    than its own arithmetic.
    """

    def _play(self, actions: dict[Any, Any]) -> Any:
        turns, bounded = self.env.aec_env, False
        while type(turns) in (OrderEnforcingWrapper, AssertOutOfBoundsWrapper):
            bounded = bounded or type(turns) is AssertOutOfBoundsWrapper
            turns = turns.env
        earned = dict.fromkeys(turns.agents, 0.0)
        for agent in list(turns.agents):
            if turns.agent_selection != agent:
                self._blame(
                    f"agent {turns.agent_selection!r} is to move where {agent!r} should: the "
                    "environment says is_parallelizable, but its agents do not move in a cycle"
                )
            action = actions[agent]
            if bounded and not turns.action_space(agent).contains(action):
                raise AssertionError("action is not in action space")
            turns.step(action)
            paid = turns.rewards
            for other in turns.agents:
                earned[other] += paid[other]
        terminations, truncations = dict(turns.terminations), dict(turns.truncations)
        infos = dict(turns.infos)
        obs = {agent: turns.observe(agent) for agent in turns.agents}
        while turns.agents and (
            turns.terminations[turns.agent_selection] or turns.truncations[turns.agent_selection]
        ):
            turns.step(None)
        self.env.agents = turns.agents
        return obs, earned, terminations, truncations, infos


class TurnBasedGame(Game):
    """A `Game` over an AECEnv: one agent acts, and earns between its turns.

    Agents that have ended are stepped with None here, as PettingZoo demands, and appear in the turn
    with their last observation and everything that they earned since their last action.
    """

    def _reset(self, seed: int | None, options: dict[str, Any] | None) -> GameStep:
        self.env.reset(seed=seed, options=options)
        self._ended = set()
        return self._collect()

    def _step(self, actions: dict[Any, Any]) -> GameStep:
        (action,) = actions.values()
        self.env.step(action)
        return self._collect()

    def _collect(self) -> GameStep:
        env, turn = self.env, GameStep({}, {}, {}, {}, {}, False)
        self._acting = ()
        while env.agents:
            agent = env.agent_selection
            obs, reward, terminated, truncated, info = self._parts("last", env.last())
            turn.obs[agent] = self._agents.observation(agent, obs)
            reward, terminated, truncated = self._agents.outcome(agent, reward, terminated, truncated)
            turn.tell(agent, reward, terminated, truncated, info)
            if not (terminated or truncated):
                if agent in self._ended:
                    self._came_back(agent)
                self._acting = (agent,)
                return turn
            self._ended.add(agent)
            env.step(None)
        return turn._replace(over=True)


_PARALLEL = ("possible_agents", "observation_space", "action_space", "reset", "step", "unwrapped")


def game_of(env: Any, *, name: str, **said: Any) -> Game:
    """The game over an environment.

    Args:
        env: An AECEnv or a ParallelEnv of PettingZoo, a Gymnasium environment or a `MultiAgentEnv` of RLlib.
        name: Its name in faults and messages.
        said: What is said of it, `teams` and `channels`, as in `Game`.

    Raises:
        ValueError: If it is neither.
    """
    if isinstance(env, gymnasium.Env):
        env = to_pettingzoo(env)
    if isinstance(env, RLlibParallelEnv):
        return RLlibGame(env, name=name, **said)
    if type(env) is aec_to_parallel_wrapper:
        return ConvertedGame(env, name=name, **said)
    if isinstance(env, AECEnv):
        return TurnBasedGame(env, name=name, **said)
    # Some packages write the interface without deriving from it.
    if isinstance(env, ParallelEnv) or all(hasattr(env, part) for part in _PARALLEL):
        return ParallelGame(env, name=name, **said)
    raise ValueError(
        f"expected {name} to be a PettingZoo ParallelEnv or AECEnv, a Gymnasium environment or an RLlib "
        f"MultiAgentEnv, got {type(env).__name__}; derive it from one of them"
    )
