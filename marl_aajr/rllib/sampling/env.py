"""PettingZoo environments for RLlib, without the faults of the wrappers that ship with it.

RLlib (2.60) puts a per-agent flag and the flag of the whole episode together in ways that its own wrappers
walk into (`ray/rllib/env/multi_agent_episode.py`, `add_env_step`):

1. As soon as every agent that has an episode is flagged, terminated or truncated, the episode counts as
   *terminated*, and so does every agent that ends with it: at a time limit, values never bootstrap. An
   agent that ends together with the game by truncation must therefore have no flag of its own, only
   `truncateds["__all__"]`.
2. The same rule ends the episode when the only agents that RLlib has seen are out, although others are
   about to enter. Their last step is held back until somebody who stays has been seen.
3. Without one of the two `__all__` flags the environment is never reset. A mixed ending needs one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from gymnasium import spaces
from ray import cloudpickle
from ray.rllib.env.multi_agent_env import MultiAgentEnv

from marl_aajr.core.environment_values import named
from marl_aajr.rllib.internals.algorithms import register_creator
from marl_aajr.rllib.internals.cores import own_cores
from marl_aajr.rollout.attack.rollout_attack import RolloutAttack
from marl_aajr.rollout.batched_env import BatchedEnv
from marl_aajr.rollout.centralized_critic import CentralBatch, CentralView, Critic, beside, with_state
from marl_aajr.rollout.environments import EnvironmentSpec, make_batch, resolve
from marl_aajr.rollout.factories import Factory
from marl_aajr.rollout.game_agents import GameStep
from marl_aajr.rollout.game_shares import Processes, in_processes

_Flags = tuple[dict[str, bool], dict[str, bool]]
_BY_AGENT = ("obs", "rewards", "terminations", "truncations", "infos")


class PettingZooEnv(MultiAgentEnv):
    """Any PettingZoo environment as an RLlib environment.

    Agents keep the order and the keys of `possible_agents`, each with its own spaces. Actions count from 0;
    legal actions that the environment tells in `infos` stand in a Dict beside the observation. In a
    turn-based game only the agent to move has an observation; its reward is everything since its last one.

    How agents end in RLlib's episodes: terminated ones are `is_terminated` (no bootstrap), truncated
    ones are `is_truncated` only (their value bootstraps). An agent that terminates in the very step in
    which others are truncated carries both marks, which RLlib's GAE reads as terminated.

    Every episode is seeded: the first with the seed that RLlib gives, the following from a generator
    seeded with it, so that environments which would draw fresh entropy at each reset repeat as well.

    Args:
        config: `env` (as `marl_aajr.rollout.environments.resolve` takes it), `kwargs` (arguments of
            the environment), `time_limits_terminate` (default False) and `critic` (default `"own"`). With
            `time_limits_terminate`, flags and seeds are those of RLlib's own `PettingZooEnv` and
            `ParallelPettingZooEnv`: time limits count as terminal and only the first episode is seeded. Its
            hang on mixed endings is not reproduced. With critic `"joint"` or `"state"` observations are dicts
            of `observation` (and `action_mask`) and `state`, what a centralised critic is given
            (`marl_aajr.rollout.centralized_critic`).

    Raises:
        ValueError: If a setting is unknown, or the environment cannot be built or has no such state.
    """

    def __init__(self, config: Mapping[str, Any] | None = None) -> None:
        super().__init__()
        settings = dict(config or {})
        unknown = sorted(set(settings) - {"env", "kwargs", "time_limits_terminate", "critic"})
        if unknown or "env" not in settings:
            raise ValueError(
                "expected env_config with env and, if needed, kwargs, time_limits_terminate and critic, got "
                f"{sorted(settings)}; put arguments of the environment into kwargs"
            )
        self.game = resolve(settings["env"], settings.get("kwargs")).make()
        self._time_limits_terminate = bool(settings.get("time_limits_terminate", False))
        critic = settings.get("critic", "own")
        self._central = None if critic == "own" else CentralView(self.game, critic)
        # RLlib, and with it somebody's policy_mapping_fn, has the environment's own keys of agents.
        self._ids = self.game.agent_ids
        self.possible_agents = list(self._ids.values())
        # RLlib checks keys against `agents`, also those of agents that have just left.
        self.agents = list(self.possible_agents)
        self.observation_spaces = self._keyed(self.game.observation_spaces)
        if self._central is not None:
            for agent, space in self.observation_spaces.items():
                self.observation_spaces[agent] = with_state(space, self._central.space)
        self.action_spaces, self.channels = self._keyed(self.game.action_spaces), self.game.channels
        self.observation_space = spaces.Dict(self.observation_spaces)
        self.action_space = spaces.Dict(self.action_spaces)
        self.metadata = self.game.metadata
        self.render_mode = self.game.render_mode
        self._seen: set[str] = set()
        self._held: GameStep | None = None

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[Any, Any], dict[Any, Any]]:
        super().reset(seed=seed, options=options)
        if seed is None and not self._time_limits_terminate:
            seed = int(self.np_random.integers(2**31))
        turn = self._with_state(self.game.reset(seed=seed, options=options))
        self._seen = set(turn.obs)
        self._held = None
        return self._keyed(turn.obs), self._keyed(turn.infos)

    def step(
        self, action_dict: Mapping[Any, Any]
    ) -> tuple[dict[Any, Any], dict[Any, float], dict[Any, bool], dict[Any, bool], dict[Any, Any]]:
        turn = self._hold_back(self._with_state(self.game.step(named(action_dict))))
        flags = _stock_flags(turn) if self._time_limits_terminate else _flags(turn)
        obs, rewards, terminateds, truncateds, infos = map(
            self._keyed, (turn.obs, turn.rewards, *flags, turn.infos)
        )
        return obs, rewards, terminateds, truncateds, infos

    def render(self) -> Any:
        return self.game.render()

    def close(self) -> None:
        self.game.close()

    def _keyed(self, by_name: Mapping[str, Any]) -> dict[Any, Any]:
        """With the environment's own keys of agents."""
        return {self._ids.get(agent, agent): value for agent, value in by_name.items()}

    def _with_state(self, turn: GameStep) -> GameStep:
        if self._central is None:
            return turn
        state = self._central(turn)
        return turn._replace(obs={agent: beside(seen, state) for agent, seen in turn.obs.items()})

    def _hold_back(self, turn: GameStep) -> GameStep:
        """Keeps the last step of agents back while RLlib has seen nobody who stays (trap 2)."""
        ending = {a for a, end in turn.terminations.items() if end or turn.truncations[a]}
        if not ending and self._held is None:
            self._seen.update(turn.obs)
            return turn
        if self._held is not None:
            ending.update(self._held.terminations)
            turn = _merge(self._held, turn)
            self._held = None
        if turn.over or self._seen - ending:
            self._seen = (self._seen | set(turn.obs)) - ending
            return turn
        self._held = _part(turn, ending)
        self._seen.update(turn.obs)
        return _part(turn, set(turn.terminations) - ending)


EnvProcesses = int | Literal["auto"]
BY_NAME = "give fast a PettingZoo environment by its name, or as resolve(factory)"
BatchFactory = Callable[[int, torch.device], BatchedEnv]
"""`(num_envs, device)` to a batch: for environments that exist in this form only."""


@dataclass(frozen=True)
class EnvCreator:
    """The creator behind a registered name: of one environment, or of many copies as a batch.

    Attributes:
        source: A specification, or a function that builds batches.
        device: Device of the copies and of the modules that act; None: RLlib's choice for the env runner.
        env_processes: See `marl_aajr.rllib.sampling.fast.fast`.
        rollouts: The attack that a share of the copies is played under in training; None: there is none.
    """

    source: EnvironmentSpec | BatchFactory
    time_limits_terminate: bool = False
    critic: Critic = "own"
    device: str | None = None
    env_processes: EnvProcesses = "auto"
    rollouts: RolloutAttack | None = None

    @property
    def name(self) -> str:
        """The name of the environment in faults."""
        return getattr(self.source, "name", getattr(self.source, "__qualname__", "env"))

    def register(self) -> str:
        """Makes this known to Ray under a name of its own, for `config.environment(...)`."""
        spec = self.source if isinstance(self.source, EnvironmentSpec) else None
        code = spec.made_by if spec else self.source
        arguments = sorted(spec.kwargs.items()) if spec else []
        settings: tuple[Any, ...] = (arguments, self.time_limits_terminate, self.critic, self.device)
        settings += (self.env_processes, *([] if self.rollouts is None else [self.rollouts]))
        sent = b"" if code is None else cloudpickle.dumps(code)
        digest = hashlib.sha256(repr(settings).encode() + sent).hexdigest()[:8]
        plain = code is None and settings == ([], False, "own", None, "auto")
        name = f"marl_aajr/{self.name}" if plain else f"marl_aajr/{self.name}@{digest}"
        register_creator(name, self)
        return name

    def __call__(self, config: Mapping[str, Any]) -> PettingZooEnv:
        """One environment, for RLlib's own env runners; `ValueError` where it exists as a batch only."""
        spec = self._spec(config)
        if spec is None:
            raise ValueError(
                f"expected an env runner that takes batches, got one for single environments of {self.name}; "
                "use FastEnvRunner"
            )
        settings = {"time_limits_terminate": self.time_limits_terminate, "critic": self.critic, **config}
        settings.pop("kwargs", None)
        return PettingZooEnv({**settings, "env": spec})

    def batch(self, config: Mapping[str, Any], num_envs: int, device: torch.device) -> BatchedEnv:
        """E copies, with RLlib's `env_config` over our own settings."""
        spec, automatic = self._spec(config), self.env_processes == "auto"
        processes = Processes(own_cores() if automatic else int(self.env_processes), optional=automatic)
        with in_processes(processes):
            batch = make_batch(spec, num_envs, device=device) if spec else self.source(num_envs, device)  # type: ignore[operator]
        if not isinstance(batch, BatchedEnv):
            raise ValueError(
                f"expected {self.name} to build a BatchedEnv, got {type(batch).__name__}; {BY_NAME}"
            )
        critic = config.get("critic", self.critic)
        return batch if critic == "own" else CentralBatch(batch, critic)

    def _spec(self, config: Mapping[str, Any]) -> EnvironmentSpec | None:
        """The specification, with RLlib's `env_config` over its own settings; None: there is none."""
        if not isinstance(self.source, EnvironmentSpec):
            return None
        kwargs = config.get("kwargs", self.source.kwargs)
        return (
            resolve(config["env"], kwargs) if "env" in config else replace(self.source, kwargs=dict(kwargs))
        )


def register(
    environment: str | Factory | EnvironmentSpec,
    *,
    kwargs: Mapping[str, Any] | None = None,
    time_limits_terminate: bool = False,
    critic: Critic = "own",
) -> str:
    """Makes an environment known to Ray under a name of its own.

    Args:
        environment: A name of `marl-aajr list envs`, an import path, a factory, or a specification.
        kwargs: Its arguments.
        time_limits_terminate: See `PettingZooEnv`.
        critic: See `PettingZooEnv`.

    Returns:
        The name for `config.environment(...)`. It is different for different arguments, so that two
        configurations in one process never build each other's environment.

    Raises:
        ValueError: An unknown name or argument.

    Example:
        >>> config = PPOConfig().environment(register("simple_spread_v3", kwargs={"N": 5}))
    """
    return EnvCreator(resolve(environment, kwargs), time_limits_terminate, critic).register()


def _flags(turn: GameStep) -> _Flags:
    terminateds = dict(turn.terminations)
    truncateds = {a: cut and not terminateds[a] for a, cut in turn.truncations.items()}
    bootstrap = turn.over and any(truncateds.values())
    terminateds["__all__"] = turn.over and not bootstrap
    return terminateds, {"__all__": True} if bootstrap else {**truncateds, "__all__": False}


def _stock_flags(turn: GameStep) -> _Flags:
    terminateds, truncateds = dict(turn.terminations), dict(turn.truncations)
    terminated = turn.over and all(terminateds.values())
    truncated = turn.over and all(truncateds.values())
    mixed = turn.over and not terminated and not truncated
    return {**terminateds, "__all__": terminated or mixed}, {**truncateds, "__all__": truncated}


def _merge(first: GameStep, then: GameStep) -> GameStep:
    both: dict[str, Any] = {name: {**getattr(first, name), **getattr(then, name)} for name in _BY_AGENT}
    return then._replace(**both)


def _part(turn: GameStep, agents: set[str]) -> GameStep:
    return turn.each(lambda part: {agent: value for agent, value in part.items() if agent in agents})
