"""The two kinds of PettingZoo environment as a `Game`: everybody at once, or one after the other."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from pettingzoo.utils.env import AECEnv, ParallelEnv

from marl_aajr.rollout.game import Game, Turn


class ParallelGame(Game):
    """A `Game` over a ParallelEnv: everybody who lives acts at every step."""

    def _reset(self, seed: int | None, options: dict[str, Any] | None) -> Turn:
        obs, infos = self.env.reset(seed=seed, options=options)
        self._ended: set[str] = set()
        self._listed = list(self.env.agents)
        self._acting = self._ordered(self._listed)
        seen = {agent: self._given(agent, obs) for agent in self._acting}
        nothing = dict.fromkeys(self._acting, False)
        return Turn(
            obs=seen,
            rewards=dict.fromkeys(self._acting, 0.0),
            terminations=nothing,
            truncations=dict(nothing),
            infos={agent: infos.get(agent, {}) for agent in self._acting} if infos else {},
            over=not self._acting,
        )

    def _step(self, actions: dict[str, Any]) -> Turn:
        obs, rewards, terminations, truncations, infos = self.env.step(actions)
        turn = Turn({}, {}, {}, {}, {}, False)
        ended_before = len(self._ended)
        for agent in self._acting:
            try:
                reward = rewards[agent]
                ends = bool(terminations[agent]), bool(truncations[agent])
            except KeyError:
                self._blame(f"gave agent {agent!r} no reward, termination or truncation")
            self._tell(turn, agent, obs, infos, ends=ends)
            turn.rewards[agent] = self._reward(agent, reward)
        if self.env.agents != self._listed or len(self._ended) > ended_before:
            self._change(turn, obs, infos)
        return turn if self._acting else turn._replace(over=True)

    def _tell(
        self,
        turn: Turn,
        agent: str,
        obs: Mapping[str, Any],
        infos: Mapping[str, Any],
        *,
        ends: tuple[bool, bool],
    ) -> None:
        terminated, truncated = ends
        turn.terminations[agent] = terminated
        turn.truncations[agent] = truncated
        turn.infos[agent] = infos.get(agent, {})
        if terminated or truncated:
            self._ended.add(agent)
        # A terminal observation bootstraps nothing: environments may leave it out.
        if agent in obs or not terminated:
            turn.obs[agent] = self._given(agent, obs)

    def _change(self, turn: Turn, obs: Mapping[str, Any], infos: Mapping[str, Any]) -> None:
        """Who acts next when somebody has ended or appeared."""
        listed = set(self.env.agents)
        vanished = [a for a in self._acting if a not in listed and a not in self._ended]
        if vanished:
            self._blame(f"agent {vanished[0]!r} left without being terminated or truncated")
        appeared = self._ordered(listed.difference(self._acting, self._ended))
        for agent in appeared:
            self._tell(turn, agent, obs, infos, ends=(False, False))
            turn.rewards[agent] = 0.0
        self._listed = list(self.env.agents)
        self._acting = self._ordered(listed.difference(self._ended))

    def _given(self, agent: str, obs: Mapping[str, Any]) -> Any:
        if agent not in obs:
            self._blame(f"gave no observation to agent {agent!r}")
        return self._observation(agent, obs[agent])

    def _ordered(self, agents: Iterable[str]) -> tuple[str, ...]:
        try:
            return tuple(sorted(agents, key=self._rank.__getitem__))
        except KeyError as unknown:
            self._blame(f"has an agent {unknown} that is not in possible_agents")


class TurnBasedGame(Game):
    """A `Game` over an AECEnv: one agent acts, and earns between its turns.

    Agents that have ended are stepped with None here, as PettingZoo demands, and appear in the turn
    with their last observation and everything that they earned since their last action.
    """

    def _reset(self, seed: int | None, options: dict[str, Any] | None) -> Turn:
        self.env.reset(seed=seed, options=options)
        return self._collect()

    def _step(self, actions: dict[str, Any]) -> Turn:
        (action,) = actions.values()
        self.env.step(action)
        return self._collect()

    def _collect(self) -> Turn:
        env, turn = self.env, Turn({}, {}, {}, {}, {}, False)
        self._acting = ()
        while env.agents:
            agent = env.agent_selection
            obs, reward, terminated, truncated, info = env.last()
            turn.obs[agent] = self._observation(agent, obs)
            turn.rewards[agent] = self._reward(agent, reward)
            turn.terminations[agent] = bool(terminated)
            turn.truncations[agent] = bool(truncated)
            turn.infos[agent] = info
            if not (terminated or truncated):
                self._acting = (agent,)
                return turn
            env.step(None)
        return turn._replace(over=True)


def game_of(env: Any, *, name: str) -> Game:
    """The game over a PettingZoo environment.

    Args:
        env: An AECEnv or a ParallelEnv.
        name: What faults and messages call it.

    Raises:
        ValueError: If it is neither.
    """
    if isinstance(env, ParallelEnv):
        return ParallelGame(env, name=name)
    if isinstance(env, AECEnv):
        return TurnBasedGame(env, name=name)
    raise ValueError(
        f"expected {name} to be a PettingZoo ParallelEnv or AECEnv, got {type(env).__name__}; "
        "derive it from one of them"
    )
