"""Games in which an agent itself is the adversary: a traitor among frozen victims, or the side against them.

These games change no observation. Their players are agents of the victims' environment: they see what those
agents see and act in their place. An ordinary run trains them, which `agent_config` configures.

- **Traitor**: one or more members of the victims' team, paid minus what the team earns, their own part
  included, in equal parts. Where rewards are shared, that is minus the common reward; where they are not, a
  traitor that hurts only itself is paid for it too, which is why an evaluation says beside the team's return
  what the loyal members earn.
- **Opponent**: agents of the other sides, by default each paid what the environment pays it, as in the field
  (Gleave 2020, arXiv 1905.10615: the frozen victim is part of the environment, and the adversary maximises
  its own return in it); `pays="loss"` pays them minus what the victims earn instead, which differs where
  the game is not zero-sum.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from marl_aajr.adversaries.game import VictimGame, load_frozen, victim_folder
from marl_aajr.core.checks import one_of
from marl_aajr.envs.single_copy import SingleCopy, declare
from marl_aajr.rollout.batched_env import BatchedEnv, BatchedStep
from marl_aajr.rollout.environments import make_batch, resolve
from marl_aajr.training.config import EnvConfig, Resources, RunConfig
from marl_aajr.training.run_directory import RunDirectory
from marl_aajr.victims import Victim, fingerprint

GAME = f"{__name__}:parallel_env"
"""The game as an environment's name."""

ENV_STEPS = 400_000
"""Environment steps of a training by default."""

Kind = Literal["traitor", "opponent"]
Pays = Literal["loss", "own"]

PAYS: Mapping[Kind, Pays] = {"traitor": "loss", "opponent": "own"}
"""The default of `pays` by kind."""


class AgentGame(VictimGame):
    """E copies of an environment, as its adversarial agents see it; see `VictimGame`.

    Args:
        env: the copies that the victims play.
        victim: plays all other agents.
        team: the victims' side.
        agents: the agents that the learners play.
        pays: `"loss"`: minus what the team earns, in equal parts; `"own"`: each what it earns itself.
        sampled: whether the victims sample their actions or take the most likely ones.
        loyal: let the victims play all agents, whatever the learners do: for reference.

    Raises:
        ValueError: a victim that does not fit the environment, an unknown team or agent, or a team
            without a loyal agent.
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
    ) -> None:
        one_of("pays", pays, ("loss", "own"))
        super().__init__(
            env,
            victim,
            agents_of={agent: (agent,) for agent in agents},
            team=team,
            observation_spaces={agent: env.observation_spaces[agent] for agent in agents},
            action_spaces={agent: env.action_spaces[agent] for agent in agents},
            replaced=() if loyal else agents,
            sampled=sampled,
        )
        self.pays, self.loyal = pays, loyal

    def observe(self, obs: Mapping[str, Tensor], active: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """What the agents themselves see."""
        return {agent: obs[agent].clone() for agent in self.possible_agents}

    def play(self, actions: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The players' own actions."""
        return {} if self.loyal else dict(actions)

    def pay(self, step: BatchedStep) -> Tensor:
        """Their own rewards or the victims' loss, `[players, E]`."""
        if self.pays == "loss":
            return super().pay(step)
        return torch.stack([step.rewards[agent] for agent in self.possible_agents])

    @property
    def action_mask(self) -> dict[str, Tensor | None]:
        """See `BatchedEnv.action_mask`."""
        masks = self.env.action_mask
        return {agent: masks[agent] for agent in self.possible_agents}


def choose_sides(
    kind: Kind, teams: Mapping[str, str], *, team: str | None, agents: Sequence[str] | None
) -> tuple[str, tuple[str, ...]]:
    """The victims' side, and the agents that the learners play.

    Args:
        kind: traitor or opponent.
        teams: the team of each agent.
        team: the victims'; None: that of the traitors, or the largest without the opponents.
        agents: the learners'; None: for an opponent, all that are not on the team.

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
            "train a traitor"
        )
    if kind == "traitor" and not agents:
        raise ValueError(f"expected the agents that betray team {team!r}, got none; name some of {mine}")
    chosen = side if agents is None else agents
    for agent in chosen:
        one_of(f"an agent that can be {kind} of team {team!r}", agent, side)
    if set(chosen) >= set(mine):
        raise ValueError(
            f"expected somebody of team {team!r} to stay loyal, got all of it ({', '.join(mine)}) as "
            "traitors; name fewer"
        )
    return team, tuple(agent for agent in teams if agent in chosen)


@dataclass(frozen=True, kw_only=True)
class AgentThreat:
    """The settings of an `AgentGame`: victims, learning agents and their reward. All values are JSON.

    Attributes:
        env: the victims' environment by name.
        env_kwargs: and its arguments.
        victim: folder of the victims.
        digest: their `marl_aajr.victims.fingerprint`; others in the folder are refused.
        kind: `"traitor"` or `"opponent"`.
        team: the victims' side; None: see `choose_sides`.
        agents: the agents that the learners play; None, for opponents only: all that are not on the team.
        pays: `"loss"` or `"own"`; None: what `PAYS` says.
        actions: whether the victims take their most likely actions or sample them.
    """

    env: str
    victim: str
    digest: str
    kind: Kind
    env_kwargs: Mapping[str, Any] = field(default_factory=dict)
    team: str | None = None
    agents: Sequence[str] | None = None
    pays: Pays | None = None
    actions: Literal["greedy", "sampled"] = "greedy"

    def __post_init__(self) -> None:
        one_of("kind", self.kind, PAYS)
        one_of("actions", self.actions, ("greedy", "sampled"))

    def build(self, num_envs: int, *, device: torch.device | str = "cpu") -> AgentGame:
        """E copies of the game.

        Raises:
            ValueError: whatever `choose_sides` and `AgentGame` refuse, other victims in the folder, or an
                unknown environment.
        """
        victim = load_frozen(self.victim, self.digest)
        env = make_batch(resolve(self.env, self.env_kwargs), num_envs, device=device)
        team, agents = choose_sides(self.kind, env.teams, team=self.team, agents=self.agents)
        pays = self.pays or PAYS[self.kind]
        return AgentGame(env, victim, team=team, agents=agents, pays=pays, sampled=self.actions == "sampled")


def batched_env(num_envs: int, *, device: torch.device | str = "cpu", **threat: Any) -> AgentGame:
    """E copies of the game of an `AgentThreat`."""
    return AgentThreat(**threat).build(num_envs, device=device)


def parallel_env(**threat: Any) -> SingleCopy:
    """One copy of it for PettingZoo."""
    return SingleCopy(AgentThreat(**threat).build(1), name=f"{threat['kind']}_v0")


declare(batched_env, AgentThreat)
declare(parallel_env, AgentThreat)


def agent_config(
    victims: Path,
    *,
    kind: Kind,
    agents: Sequence[str] | None = None,
    team: str | None = None,
    pays: Pays | None = None,
    actions: Literal["greedy", "sampled"] = "greedy",
    env_steps: int = ENV_STEPS,
    seed: int = 0,
) -> RunConfig:
    """The configuration of the run.

    Networks, PPO's numbers and the observation filter are those of the victims' run, if there is one, which
    are known to learn in this environment; but without memory and without a central critic, in one
    process. An opponent begins with the policies that opposed the victims in their training: on simple_tag
    this beats a run from nothing of three times the length. A traitor begins from nothing: from a loyal
    policy it learns to do less harm.

    Args:
        victims: their run, or the folder of a saved victim.
        kind: `"traitor"` or `"opponent"`.
        agents: the agents that the learners play; see `AgentThreat`.
        team: the victims' side; None: see `marl_aajr.adversaries.agent_game.choose_sides`.
        pays: see `AgentThreat`.
        actions: whether the victims take their most likely actions or sample them.
        env_steps: length of the run.
        seed: of the run.

    Raises:
        ValueError: what `AgentThreat` refuses, or the victims' run has no victims.
    """
    folder = victim_folder(victims)
    victim = Victim.load(folder)
    threat = AgentThreat(
        env=victim.env_name,
        env_kwargs=dict(victim.env_kwargs),
        victim=str(folder.resolve()),
        digest=fingerprint(victim),
        kind=kind,
        team=team,
        agents=None if agents is None else list(agents),
        pays=pays,
        actions=actions,
    )
    threat.build(1).close()
    config = RunConfig(env=EnvConfig(name=GAME, kwargs=vars(threat)), seed=seed, env_steps=env_steps)
    run = RunDirectory(victims)
    if not run.is_run:
        return config
    config = _as_they_learned(config, run.config())
    if kind == "opponent" and _can_begin(config, victim):
        config = config.model_copy(update={"initial_policy": threat.victim})
    return config


def _as_they_learned(config: RunConfig, trained: RunConfig) -> RunConfig:
    asked = trained.resources
    return RunConfig(
        env=config.env,
        seed=config.seed,
        env_steps=config.env_steps,
        policies=trained.policies,
        model=trained.model.model_copy(update={"critic": "own", "lstm": None}),
        ppo=trained.ppo,
        observation_filter=trained.observation_filter,
        resources=Resources(envs_per_runner=max(asked.env_runners, 1) * asked.copies),
    )


def _can_begin(config: RunConfig, victim: Victim) -> bool:
    """Whether the run has modules of the victims' own, and can take them over."""
    from marl_aajr.training.modules import policy_mapping_of  # which imports Ray: evaluations need none

    mapping = policy_mapping_of(config)
    same = all(victim.module_of[agent] == module for agent, module in mapping.module_of.items())
    return same and not victim.recurrent and not any(victim.filters.values())
