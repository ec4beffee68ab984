"""A game in which frozen victims play, and its players learn to hurt them.

Every learned adversary is a player of such a game, a `BatchedEnv` over the victims' own with other players:
PPO, checkpoints, resuming and exporting need to know nothing of attacks. The players of the game share

    r(t) = − Σ_{i in the attacked team} R_i(t)

in equal parts: what they earn together in an episode is minus the team's return, to the last step, also where
some of them are out before the others. Source: Zhang 2020 (arXiv 2003.08938), section 3.1, where the optimal
adversary is the optimal policy of this game.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from copy import deepcopy
from typing import Any

import torch
from gymnasium import spaces
from torch import Tensor

from marl_aajr.core.checks import one_of
from marl_aajr.core.policy import where_rows
from marl_aajr.rollout.batched_env import BatchedEnv, BatchedEnvWrapper, BatchedStep, check_action
from marl_aajr.rollout.perturbed import ADVERSARY, loss
from marl_aajr.victims import Victim
from marl_aajr.victims.spaces import check_match
from marl_aajr.victims.stepper import CounterSampler, DecisionBatch, Stepper

_KEPT = ("obs", "last", "met", "owed")


class VictimGame(BatchedEnvWrapper):
    """E copies of an environment that frozen victims play, as the environment of their adversaries.

    A player of the game stands behind agents of the environment (`agents_of`). It must act when one of them
    must; it ends when the episode does, as truncated if one of them was cut off in that very step and as
    terminated otherwise. Where nobody must act in a copy (the others move, or the players' agents are out),
    the game goes on by itself: `may_idle`.

    A subclass says what the players observe (`observe`), and what their actions do: change what the
    victims are shown (`show`), or take the place of some of them (`play`).

    Args:
        env: the copies that the victims play.
        victim: plays every agent of `env` that is not replaced. Its networks are on the CPU.
        agents_of: by player of the game, the agents of `env` that it stands behind.
        team: the attacked team, whose reward the players lower.
        observation_spaces: of the players.
        action_spaces: of the players.
        replaced: agents of `env` that the victims do not play: `play` decides for them.
        groups: the victims in groups that are shown something together; None: all that are alike.
        sampled: whether the victims sample their actions or take the most likely ones.

    Raises:
        ValueError: a victim that does not fit the environment, or an unknown team or agent.
    """

    _owed: Tensor
    _met: dict[str, Tensor]
    _obs: dict[str, Tensor]
    _last: dict[str, Tensor]

    def __init__(
        self,
        env: BatchedEnv,
        victim: Victim,
        *,
        agents_of: Mapping[str, Sequence[str]],
        team: str,
        observation_spaces: Mapping[str, spaces.Space[Any]],
        action_spaces: Mapping[str, spaces.Space[Any]],
        replaced: Collection[str] = (),
        groups: Sequence[Sequence[str]] | None = None,
        sampled: bool = False,
    ) -> None:
        check_match(victim, env)
        one_of("a team", team, env.teams.values())
        for agent in {agent for agents in agents_of.values() for agent in agents} | set(replaced):
            one_of("an agent", agent, env.possible_agents)
        super().__init__(env)
        self.may_idle = True
        self.victim, self.team = victim, team
        self.agents_of = {player: tuple(agents) for player, agents in agents_of.items()}
        self.possible_agents = tuple(self.agents_of)
        self.observation_spaces = dict(observation_spaces)
        self.action_spaces = dict(action_spaces)
        self.teams = dict.fromkeys(self.possible_agents, ADVERSARY)
        self._members = [agent for agent in env.possible_agents if env.teams[agent] == team]
        played = [agent for agent in env.possible_agents if agent not in replaced]
        self._stepper = Stepper(victim, victim.memory(env.num_envs), groups=groups or victim.alike(played))
        kinds = {agent: victim.distribution(agent) for agent in played}
        self._sampler = CounterSampler(kinds, env.num_envs, device=env.device) if sampled else None
        self._clear()

    def observe(self, obs: Mapping[str, Tensor], active: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """What the players see.

        Args:
            obs: `[E, ...]` by agent of the environment.
            active: `[E]` bool by agent: where there is such an observation.

        Returns:
            `[E, ...]` by player; what is said where none of its agents is active does not count.
        """
        raise NotImplementedError

    def show(self, batch: DecisionBatch, actions: Mapping[str, Tensor]) -> Tensor:
        """What victims are shown, `[B, d]`; here, what is there.

        Args:
            batch: decisions that they must make, with what their network receives of the true observations.
            actions: of the players, checked.
        """
        return batch.inputs

    def play(self, own: dict[str, Tensor], actions: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The environment's actions, `[E, ...]` by agent: here the victims' `own`, whoever plays."""
        return own

    def pay(self, step: BatchedStep) -> Tensor:
        """The players' rewards for a step of the environment, `[players, E]`; here r(t) in equal parts."""
        each = loss(step.rewards, self._members, adversaries=len(self.agents_of))
        return each.expand(len(self.agents_of), -1)

    def reset(self, *, seed: int) -> dict[str, Tensor]:
        self._clear()
        self._obs = self.env.reset(seed=seed)
        if self._sampler is not None:
            self._sampler.reset(seed=seed)
        self._active = self.active
        self._met = {player: must.clone() for player, must in self._active.items()}
        return self._seen(self._obs)

    def step(self, actions: Mapping[str, Tensor]) -> BatchedStep:
        given = self._checked(actions)
        step = self.env.step(self.play(self._victims_actions(given), given))
        self._obs, over = step.obs, step.episode_over
        ends = {a: step.terminations[a] | step.truncations[a] for a in self.env.possible_agents}
        self._active = self.active
        self._owed = self._owed + self.pay(step)
        told = over | torch.stack(list(self._active.values()))
        rewards = dict(zip(self.agents_of, torch.where(told, self._owed, 0.0).unbind(0), strict=True))
        self._owed = self._owed.masked_fill(told, 0.0)
        seen = self._seen(self._obs)
        ended = {player: over & met for player, met in self._met.items()}
        cut = self._of_players(step.truncations)
        final = self._final_obs(step, ends) if any(bool(end.any()) for end in ends.values()) else seen
        self._stepper.memory.forget(over)
        if self._sampler is not None:
            self._sampler.advance(over)
        self._met = {p: self._active[p] | (met & ~over) for p, met in self._met.items()}
        return BatchedStep(
            obs=seen,
            rewards=rewards,
            terminations={p: ended[p] & ~cut[p] for p in self.agents_of},
            truncations={p: ended[p] & cut[p] for p in self.agents_of},
            episode_over=over,
            final_obs=final,
            infos=step.infos,
            metrics=step.metrics,
        )

    @property
    def active(self) -> dict[str, Tensor]:
        return self._of_players(self.env.active)

    @property
    def action_mask(self) -> dict[str, Tensor | None]:
        return dict.fromkeys(self.possible_agents)

    def nothing(self) -> dict[str, Tensor]:
        """Zeros as the actions of all players, `[E, ...]`."""
        zeros = {}
        for player, space in self.action_spaces.items():
            kind = torch.float32 if isinstance(space, spaces.Box) else torch.int64
            shape = (self.num_envs, *(space.shape or ()))
            zeros[player] = torch.zeros(shape, dtype=kind, device=self.device)
        return zeros

    def get_state(self) -> Mapping[str, Any]:
        return {
            "env": self.env.get_state(),
            **{name: deepcopy(getattr(self, f"_{name}")) for name in _KEPT},
            "memory": self._stepper.memory.get_state(),
            "sampler": None if self._sampler is None else self._sampler.get_state(),
        }

    def set_state(self, state: Mapping[str, Any]) -> None:
        if tuple(state["met"]) != self.possible_agents or state["owed"].shape != self._owed.shape:
            raise ValueError(
                f"expected a state of {self.num_envs} copies with {list(self.possible_agents)}, got one of "
                f"{state['owed'].shape[1]} with {list(state['met'])}; build the same game"
            )
        self.env.set_state(state["env"])
        for name in _KEPT:
            setattr(self, f"_{name}", deepcopy(state[name]))
        self._stepper.memory.set_state(state["memory"])
        if self._sampler is not None:
            self._sampler.set_state(state["sampler"])
        self._active = self.active

    def _clear(self) -> None:
        self._owed = torch.zeros(len(self.agents_of), self.num_envs, device=self.device)
        self._met, self._obs, self._last = {}, {}, {}
        self._stepper.memory.forget()

    def _of_players(self, flags: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Whether a flag `[E]` is set for one of the agents that a player stands behind."""
        found = {}
        for player, agents in self.agents_of.items():
            own = [flags[agent] for agent in agents]
            found[player] = own[0] if len(own) == 1 else torch.stack(own).any(0)
        return found

    def _seen(self, obs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The players' observations now; zero where they need not act."""
        seen = self.observe(obs, self.env.active)
        return {p: seen[p] if bool(must.all()) else _only(seen[p], must) for p, must in self._active.items()}

    def _final_obs(self, step: BatchedStep, ends: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The players' last observations, from the last ones of their agents, whenever those left."""
        known: dict[str, Tensor] = {}
        for agent, end in ends.items():
            final = step.final_obs[agent]
            known[agent] = where_rows(end, final, self._last.get(agent, torch.zeros_like(final)))
        self._last = {a: _only(obs, ~step.episode_over) for a, obs in known.items()}
        everybody = torch.ones_like(step.episode_over)
        return self.observe(known, dict.fromkeys(known, everybody))

    @torch.no_grad()
    def _victims_actions(self, given: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Actions of the victims that must act; what they are shown here, and nothing else, they remember."""
        batches = self._stepper.see(self._obs, active=self.env.active, action_mask=self.env.action_mask)
        shown = [batch.shown(self.show(batch, given)) for batch in batches]
        return self._stepper.act(shown, self._sampler)

    def _checked(self, actions: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Actions of all players, zeros for those that may be left out."""
        if not self._met:
            raise ValueError("expected reset before the first step; call reset(seed=...)")
        nothing = self.nothing()
        for player, given in actions.items():
            if player in nothing:
                check_action(player, given, self.action_spaces[player], self.num_envs)
                nothing[player] = given
        for player, must in self._active.items():
            if player not in actions and bool(must.any()):
                raise ValueError(f"expected actions of {player!r}, which is active; add them")
        return nothing


def _only(rows: Tensor, where: Tensor) -> Tensor:
    """Zero elsewhere."""
    return where_rows(where, rows, torch.zeros_like(rows))
