"""Games in which an agent itself is the adversary: a traitor among frozen victims, or the side against them.

These games change no observation. Their players are agents of the victims' environment: they see what those
agents see and act in their place. An ordinary run trains them.

- **Traitor**: one or more members of the victims' team, paid minus what the team earns, their own part
  included, in equal parts. Where rewards are shared, that is minus the common reward; where they are not, a
  traitor that hurts only itself is paid for it too, which is why an evaluation says beside the team's return
  what the loyal members earn.
- **Opponent**: agents of the other sides, by default each paid what the environment pays it, as in the field
  (Gleave 2020, arXiv 1905.10615: the frozen victim is part of the environment, and the adversary maximises
  its own return in it); `pays="loss"` pays them minus what the victims earn instead, which differs where
  the game is not zero-sum.
- **Traitor with α**: it acts with probability α only, else the victim itself does (PR-MDP), or its action is
  mixed with the victim's (NR-MDP, Box actions): see `marl_aajr.rollout.disturbances`. It may stand behind all
  agents of the team.
- **Best response**: an opponent that is paid what the victims lose, found with more effort: what it leaves
  them is how exploitable they are, as far as its training has come.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from marl_aajr.adversaries.game_settings import Threat, factories
from marl_aajr.adversaries.victim_game import VictimGame
from marl_aajr.core.checks import one_of
from marl_aajr.rollout.batched_env import BatchedEnv, BatchedStep
from marl_aajr.rollout.disturbances import Disturbance
from marl_aajr.rollout.disturbed import Chance
from marl_aajr.victims import Victim

GAME = f"{__name__}:parallel_env"
"""The game as an environment's name."""

Kind = Literal["traitor", "opponent", "best-response"]
Pays = Literal["loss", "own"]

PAYS: Mapping[Kind, Pays] = {"traitor": "loss", "opponent": "own", "best-response": "loss"}
"""The default of `pays` by kind."""


class AgentGame(VictimGame):
    """E copies of an environment, as its adversarial agents see it; see `VictimGame`.

    Args:
        env: see `VictimGame`, as for `victim`, `team` and `sampled`.
        agents: the agents that the learners play.
        pays: `"loss"`: minus what the team earns, in equal parts; `"own"`: each what it earns itself.
        loyal: let the victims play all agents, whatever the learners do: for reference.
        disturbance: how the learners' actions meet those of the victims; None: they replace them.
    """

    def __init__(
        self,
        env: BatchedEnv,
        victim: Victim,
        *,
        team: str,
        agents: Sequence[str],
        pays: Pays = "loss",
        sampled: bool = False,
        loyal: bool = False,
        disturbance: Disturbance | None = None,
    ) -> None:
        one_of("pays", pays, ("loss", "own"))
        super().__init__(
            env,
            victim,
            agents_of={agent: (agent,) for agent in agents},
            team=team,
            observation_spaces={agent: env.observation_spaces[agent] for agent in agents},
            action_spaces={agent: env.action_spaces[agent] for agent in agents},
            replaced=() if loyal or disturbance else agents,
            sampled=sampled,
        )
        self.pays, self.loyal, self.disturbance = pays, loyal, disturbance
        self._chance = Chance(self.action_spaces, env.num_envs, device=env.device)
        for agent in agents if disturbance else ():
            assert disturbance is not None
            disturbance.check(agent, env.action_spaces[agent])

    def observe(self, obs: Mapping[str, Tensor], active: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {agent: obs[agent].clone() for agent in self.possible_agents}

    def play(self, own: dict[str, Tensor], actions: Mapping[str, Tensor]) -> dict[str, Tensor]:
        if self.loyal:
            return own
        if (disturbance := self.disturbance) is None:
            return {**own, **actions}
        met = {}
        for agent in self.agents_of.keys() & own.keys():
            space, (chance, _) = self.env.action_spaces[agent], self._chance.numbers(agent)
            met[agent] = disturbance.applied(space, own[agent], actions[agent], chance)
        return {**own, **met}

    def reset(self, *, seed: int) -> dict[str, Tensor]:
        self._chance.reset(seed=seed)
        return super().reset(seed=seed)

    def step(self, actions: Mapping[str, Tensor]) -> BatchedStep:
        step = super().step(actions)
        self._chance.advance(step.episode_over)
        return step

    def get_state(self) -> Mapping[str, Any]:
        return {**super().get_state(), "chance": self._chance.get_state()}

    def set_state(self, state: Mapping[str, Any]) -> None:
        super().set_state(state)
        self._chance.set_state(state["chance"])

    def pay(self, step: BatchedStep) -> Tensor:
        if self.pays == "loss":
            return super().pay(step)
        return torch.stack([step.rewards[agent] for agent in self.possible_agents])

    @property
    def action_mask(self) -> dict[str, Tensor | None]:
        masks = self.env.action_mask
        return {agent: masks[agent] for agent in self.possible_agents}


def choose_sides(
    kind: Kind,
    teams: Mapping[str, str],
    *,
    team: str | None,
    agents: Sequence[str] | None,
    whole: bool = False,
) -> tuple[str, tuple[str, ...]]:
    """The victims' side, and the agents that the learners play.

    Args:
        kind: traitor, opponent or best-response.
        teams: the team of each agent.
        team: the victims'; None: that of the traitors, or the largest without the opponents.
        agents: the learners'; None: unless they are traitors, all that are not on the team.
        whole: whether all agents of the team may be traitors.

    Raises:
        ValueError: unknown agents or team, traitors of another team, a whole team of traitors, opponents of
            the victims' own team, or none where there is only one team.
    """
    one_of("kind", kind, PAYS)
    for agent in agents or ():
        one_of("an agent", agent, teams)
    if team is None:
        taken = {teams[agent] for agent in agents or ()}
        known = [side for side in teams.values() if (side in taken) == (kind == "traitor")]
        team = max(known or teams.values(), key=list(teams.values()).count)
    one_of("a team", team, teams.values())
    mine = [agent for agent, side in teams.items() if side == team]
    side = mine if kind == "traitor" else [agent for agent in teams if agent not in mine]
    if not side:
        raise ValueError(
            f"expected an opponent in a game of several teams, got one in which all are of {team!r}; "
            "train a traitor, or say who plays with whom (env.teams)"
        )
    if kind == "traitor" and not agents:
        raise ValueError(f"expected the agents that betray team {team!r}, got none; name some of {mine}")
    chosen = side if agents is None else agents
    for agent in chosen:
        one_of(f"an agent that can be {kind} of team {team!r}", agent, side)
    if set(chosen) >= set(mine) and not whole:
        raise ValueError(
            f"expected somebody of team {team!r} to stay loyal, got all of it ({', '.join(mine)}) as "
            "traitors; name fewer"
        )
    return team, tuple(agent for agent in teams if agent in chosen)


@dataclass(frozen=True, kw_only=True)
class AgentThreat(Threat):
    """The settings of an `AgentGame`: its agents are those that the learners play.

    Attributes:
        kind: `"traitor"`, `"opponent"` or `"best-response"`.
        team: the victims' side; None: see `choose_sides`.
        pays: `"loss"` or `"own"`; None: what `PAYS` says.
        alpha: of traitors: the probability that one acts in the place of the victim, or its share of the
            action; None: always.
        mixed: whether actions are mixed, with share α, in place of replaced with probability α.
    """

    kind: Kind
    team: str | None = None
    pays: Pays | None = None
    alpha: float | None = None
    mixed: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        one_of("kind", self.kind, PAYS)
        if self.alpha is None and self.mixed:
            raise ValueError("expected alpha for mixed actions, got none; give the adversary's share")
        if self.alpha is not None and self.kind != "traitor":
            raise ValueError(f"expected alpha of a traitor, got one of {self.kind!r}; leave it out")

    @property
    def disturbance(self) -> Disturbance | None:
        """How the learners' actions meet those of the victims; None: they replace them."""
        if self.alpha is None:
            return None
        # The adversary's folder is not known yet; that there will be one is.
        return Disturbance(kind="mix" if self.mixed else "replace", size=self.alpha, by=self.kind)

    def build(self, num_envs: int, *, device: torch.device | str = "cpu") -> AgentGame:
        victim, env = self.frozen, self.copies(num_envs, device=device)
        disturbance = self.disturbance
        team, agents = choose_sides(
            self.kind, env.teams, team=self.team, agents=self.agents, whole=disturbance is not None
        )
        pays = self.pays or PAYS[self.kind]
        return AgentGame(
            env, victim, team=team, agents=agents, pays=pays, sampled=self.sampled, disturbance=disturbance
        )


batched_env, parallel_env = factories(AgentThreat)
