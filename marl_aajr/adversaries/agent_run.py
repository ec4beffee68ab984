"""The run by which a traitor or an opponent is trained: an ordinary one, in a game with frozen victims."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from marl_aajr.adversaries import agent_game
from marl_aajr.adversaries.agent_game import AgentThreat, Kind, Pays
from marl_aajr.adversaries.game import victim_folder
from marl_aajr.training.config import EnvConfig, Resources, RunConfig
from marl_aajr.training.modules import policy_mapping_of
from marl_aajr.training.run_directory import RunDirectory
from marl_aajr.victims import Victim, fingerprint

GAME = f"{agent_game.__name__}:{agent_game.parallel_env.__name__}"
"""The environment of these runs."""

ENV_STEPS = 400_000
"""How long they are by default."""


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
    are known to learn in this environment; only a memory or a central critic they do without, and one process
    does it all. An opponent begins as those who opposed the victims in their training: on simple_tag this
    beats a run from nothing of three times the length. A traitor begins from nothing: from a loyal policy it
    learns to do less harm.

    Args:
        victims: their run, or the folder of a saved victim.
        kind: `"traitor"` or `"opponent"`.
        agents: whom the learners play; see `AgentThreat`.
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
    same = all(
        victim.module_of[agent] == module for agent, module in policy_mapping_of(config).module_of.items()
    )
    return same and not victim.recurrent and not any(victim.filters.values())
