"""Rollouts under attack for RLlib's own env runners: one env-to-module connector piece.

RLlib builds what a module reads from the observations in the episodes, in play and in training. The piece
stands behind the user's own and puts in place of an episode's last observation what the agent sees, as
RLlib's MeanStdFilter does: what acted, what is trained on and what values are taken of are the same. It comes
to each observation once, also to the last one of an episode and of a sample; the environment keeps the truth.
Behind our observation filter ε is in units of the environment, and the statistics are clean.
"""

from __future__ import annotations

import weakref
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import gymnasium as gym
import torch
from ray.rllib.connectors.connector_v2 import ConnectorV2
from ray.rllib.connectors.env_to_module import MeanStdFilter
from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.core.rl_module.multi_rl_module import MultiRLModule
from ray.rllib.core.rl_module.torch import TorchRLModule
from torch import Tensor

from marl_aajr.core.channels import NO_CHANNELS, Channels, who_observes
from marl_aajr.core.distributions import from_space
from marl_aajr.core.environment_values import agent_name
from marl_aajr.core.seeds import Purpose, derived_seed
from marl_aajr.rllib.internals.algorithms import connectors_of, structures_of
from marl_aajr.rllib.plugin.attacked_measures import AttackedMeasures
from marl_aajr.rllib.plugin.clean_observations import Pieces, agent_of
from marl_aajr.rllib.plugin.episode_rows import EpisodeRows
from marl_aajr.rllib.plugin.module_policy import CLEAN_OBS
from marl_aajr.rllib.plugin.observation_layout import flat_layout
from marl_aajr.rllib.sampling.acting_policy import (
    ActingModule,
    FilterStatistics,
    HeldColumns,
    acting_rows,
    check_acting,
    memory_in,
)
from marl_aajr.rllib.sampling.batch_env import ask
from marl_aajr.rllib.sampling.observation_filter import Moments, ObservationNormalizer
from marl_aajr.rollout.attack.attacked_copies import AttackedCopies
from marl_aajr.rollout.attack.attacked_play import attacked_members
from marl_aajr.rollout.attack.on_words import attack_on
from marl_aajr.rollout.attack.rollout_attack import RolloutAttack
from marl_aajr.rollout.attack.worst_agents import Attempt, objective_gain, settled

_RUNNERS: weakref.WeakKeyDictionary[Any, weakref.ref[Any]] = weakref.WeakKeyDictionary()
"""The env runner of each environment: RLlib makes connectors by the environment alone."""


def remember_runner(*, env_runner: Any, **_: Any) -> None:
    """A callback of RLlib's: the env runner has made its environment, and makes its connectors next."""
    _RUNNERS[env_runner.env] = weakref.ref(env_runner)


@dataclass(frozen=True)
class WithRolloutAttack:
    """`env_to_module_connector` of a configuration, with the attack behind the pieces that were there."""

    attack: RolloutAttack
    before: Pieces | None
    keep_clean: bool = False

    def __call__(self, env: Any = None, spaces: Any = None, device: Any = None) -> list[ConnectorV2]:
        given = [] if self.before is None else self.before(env, spaces, device)
        pieces = [given] if isinstance(given, ConnectorV2) else list(given)
        piece = AttackedEpisodes(self.attack, keep_clean=self.keep_clean)
        piece.runner = _RUNNERS.get(env) if env is not None else None
        return [*pieces, piece]


class AttackedEpisodes(ConnectorV2):
    """Shows the agents of a share of an env runner's copies what an adversary makes of their observations.

    Not in evaluation, and not where actions are not drawn (`explore=False`).

    Attributes:
        runner: The env runner; None where there is no environment to sample from.
    """

    def __init__(
        self,
        attack: RolloutAttack,
        input_observation_space: gym.Space[Any] | None = None,
        input_action_space: gym.Space[Any] | None = None,
        *,
        keep_clean: bool = False,
    ) -> None:
        super().__init__(input_observation_space, input_action_space, attack=attack, keep_clean=keep_clean)
        self._noted: dict[Any, Any] | None = {} if keep_clean else None
        self.runner: weakref.ref[Any] | None = None
        self._attack = attack
        self._measures = AttackedMeasures(attack)
        self._calls = 0
        self._unseeded = 0
        self._copies: AttackedCopies | None = None
        self._ids: list[Any] = []
        self._acting: dict[str, tuple[ActingModule, RolloutAttack]] = {}

    def __call__(
        self,
        *,
        rl_module: Any,
        batch: dict[str, Any],
        episodes: list[Any],
        explore: bool | None = None,
        shared_data: dict[str, Any] | None = None,
        **_: Any,
    ) -> dict[str, Any]:
        runner = None if self.runner is None else self.runner()
        if runner is None or rl_module is None or runner.config.in_evaluation or not episodes:
            return batch
        if self._noted is not None and shared_data is not None:
            self._noted = shared_data.setdefault(CLEAN_OBS, {})
        copies = self._follow(runner, episodes)
        self._calls += 1
        self._measures.step(runner, copies.epsilon if explore else 0.0)
        if not explore or not copies.epsilon or not copies.reach:
            return batch
        tried: dict[str, Attempt[None]] = {}
        for name, rows in self._attacked(runner, episodes, copies).items():
            module = rl_module[name] if isinstance(rl_module, MultiRLModule) else rl_module
            tried[name] = self._attempt(runner, name, module.unwrapped(), rows)
            if self._attack.worst_agents is None:
                settled({name: tried.pop(name)}, None)
        settled(tried, self._attack.worst_agents)
        return batch

    def _follow(self, runner: Any, episodes: list[Any]) -> AttackedCopies:
        """The flags of the copies at this step, given all episodes in order, or some that have ended."""
        if self._copies is None or len(self._ids) != runner.num_envs:
            self._copies = AttackedCopies(self._attack, runner.num_envs, torch.device("cpu"))
            self._ids = [None] * runner.num_envs
        copies, seed = self._copies, runner.config.seed
        if seed is None:
            seed = self._unseeded = self._unseeded or 1 + int(torch.randint(2**31, ()))
        place = runner.worker_index or 0, self._calls
        copies.generator.manual_seed(derived_seed(seed, Purpose.ROLLOUT_ATTACK, *place))
        if len(episodes) == runner.num_envs:
            new = [e.is_reset and e.id_ != known for e, known in zip(episodes, self._ids, strict=True)]
            pairs = zip(episodes, self._ids, new, strict=True)
            self._ids = [episode.id_ if begins else known for episode, known, begins in pairs]
            copies.begin_episodes(torch.tensor(new))
            copies.begin(runner.num_env_steps_sampled_lifetime)
        return copies

    def _attacked(
        self, runner: Any, episodes: list[Any], copies: AttackedCopies
    ) -> dict[str, list[tuple[Any, int]]]:
        """By module the single-agent episodes whose last observation is attacked, each with its copy."""
        hit, chosen, channels = copies.hit(), self._attack.agents, self._attack.channels
        known = NO_CHANNELS if channels is None else _observed(runner)
        rows: dict[str, list[tuple[Any, int]]] = defaultdict(list)
        for episode in episodes:
            copy = self._ids.index(episode.id_) if episode.id_ in self._ids else copies.reach
            if copy >= copies.reach or (hit is not None and not hit[copy]):
                continue
            for one in self.single_agent_episode_iterator([episode]):
                agent = agent_name(one.agent_id)
                if (chosen is None or agent in chosen) and who_observes(channels, known, [agent]):
                    rows[one.module_id or DEFAULT_MODULE_ID].append((one, copy))
        return rows

    def _attempt(
        self, runner: Any, name: str, module: TorchRLModule, episodes: list[tuple[Any, int]]
    ) -> Attempt[None]:
        """The ascents of a module's agents; nobody has seen anything of them yet."""
        acting, attack = self._known(runner, name, module, [episode.agent_id for episode, _ in episodes])
        assert self._copies is not None
        pieces = (piece for piece in connectors_of(runner) if isinstance(piece, ObservationNormalizer))
        known_as = episodes[0][0].module_id
        moments = next((piece.total.get(known_as, Moments()) for piece in pieces), None)
        if moments is not None and not moments.spread:
            return Attempt(lambda _: None)  # ε has no size yet in the units of the filter.
        acting.weights_changed()  # The algorithm gives the runner new ones, and does not tell.
        device = next(module.parameters()).device
        rows = EpisodeRows(episodes, device)
        memory = memory_in(module, rows.episodes, device) if acting.recurrent else None
        filtered = None if moments is None else FilterStatistics.of(moments, acting.width, like=rows.obs)
        own = rows.obs if filtered is None else filtered.before(rows.obs)
        epsilon = self._copies.radius(1)
        if isinstance(epsilon, Tensor):
            epsilon = epsilon.to(device)[rows.copies]
        generator = self._copies.generator
        acted = acting_rows(acting, own, HeldColumns(rows.legal, memory), filtered)
        found = attack.perturb(acted.policy, acted.obs, epsilon=epsilon, generator=generator)

        def show(hit: Tensor | None) -> None:
            self._measures.decisions(
                name, attack, acted, found, hit=hit, epsilon=epsilon, generator=generator
            )
            rows.replace(acted.seen(acted.obs + found.delta), hit, note=self._note)

        if attack.worst_agents is None:
            return Attempt(show)
        gain = objective_gain(attack.adversary, acted.policy, acted.obs, found)
        return Attempt(show, ranked=(gain, rows.copies))

    def _note(self, episode: Any, clean: Any) -> None:
        """Keep what an agent would have seen without attack, where a regularizer begins there."""
        if self._noted is not None:
            self._noted[agent_of(episode)] = clean

    def is_attacked(self, copy: int) -> bool:
        """Whether a copy's episode is played under attack."""
        return self._copies is not None and self._copies.has(copy)

    def _known(
        self, runner: Any, name: str, module: TorchRLModule, agents: Sequence[Any] = ()
    ) -> tuple[ActingModule, RolloutAttack]:
        """A module as it acts, and its attack on these of its agents; modules may come, and be replaced."""
        if name not in self._acting or self._acting[name][0].module is not module:
            acting = ActingModule(module, from_space(module.action_space))
            attack = self._on_features(runner, name, module)
            if attack.channels is not None or attack.norm == "words":
                known, names = _observed(runner), map(agent_name, agents)
                attack = attack_on(attack, {name: known.get(name, {}) for name in names}, acting.width)
            check_acting(acting, name, attack)
            self._acting[name] = acting, attack
        return self._acting[name]

    def _on_features(self, runner: Any, name: str, module: TorchRLModule) -> RolloutAttack:
        """The attack without action masks and integers that RLlib's connector has flattened."""
        space, structures = module.observation_space, structures_of(runner)
        flat = isinstance(space, gym.spaces.Box) and len(space.shape) == 1
        if self._attack.mask is not None or not structures or not flat or self._attack.norm == "words":
            return self._attack
        layout = flat_layout(space.shape[0], structures, leaves=None, actions=module.action_space)
        if layout is None:
            return self._attack
        if not len(layout.places):
            raise ValueError(
                f"rollouts under attack, module {name!r}: expected floating-point observations to "
                "perturb, got integers only; name the agents whose are floats: agents=[...]"
            )
        places = set(layout.places.tolist())
        return replace(self._attack, mask=tuple(i in places for i in range(space.shape[0])))

    def check(self, runner: Any, pieces: Sequence[Any]) -> None:
        """Raise `ValueError` for a runner that cannot be attacked, behind these other pieces."""
        self._attack.check_copies(runner.num_envs)
        if any(isinstance(piece, MeanStdFilter) for piece in pieces):
            raise ValueError(
                "expected no observation filter of RLlib's with rollouts under attack, got MeanStdFilter, "
                "behind which ε is not in units of the environment; take ObservationNormalizer of "
                "marl_aajr.rllib.sampling.observation_filter"
            )
        if not isinstance(runner.module, MultiRLModule):
            given = {name: getattr(self._attack, name) for name in ("agents", "channels", "worst_agents")}
            given["norm words"] = self._attack.norm == "words" or None
            if wrong := [name for name, value in given.items() if value is not None]:
                name = wrong[0]
                raise ValueError(f"expected no {name} in a single-agent environment, got {given[name]}")
            self._known(runner, DEFAULT_MODULE_ID, runner.module.unwrapped())
            return
        ids = runner.env.envs[0].unwrapped.possible_agents
        groups: dict[str, list[str]] = defaultdict(list)
        for agent, module in ask({agent_name(i): i for i in ids}, runner.config.policy_mapping_fn).items():
            groups[module].append(agent)
        of_module = {module: tuple(agents) for module, agents in groups.items()}
        for name, places in attacked_members(self._attack, of_module, _observed(runner)).items():
            agents = [of_module[name][i] for i in places]
            self._known(runner, name, runner.module[name].unwrapped(), agents)

    def get_state(self, *_: Any, **__: Any) -> dict[str, Any]:
        return {"calls": self._calls}

    def set_state(self, state: dict[str, Any]) -> None:
        self._calls = state.get("calls", self._calls)

    def merge_states(self, states: list[dict[str, Any]]) -> dict[str, Any]:
        """Of several runners: that of the one that has sampled most; each draws by its own index."""
        return {"calls": max(state["calls"] for state in states)}


def _observed(runner: Any) -> Mapping[str, Channels]:
    """What the agents of a runner's environment observe, by agent, where it says so."""
    found: Mapping[str, Channels] = getattr(runner.env.envs[0].unwrapped, "channels", NO_CHANNELS)
    return found


def complaint(runner: Any) -> str:
    """The reason why a runner cannot sample under attack; nothing where it can."""
    pieces = connectors_of(runner)
    for piece in pieces:
        if isinstance(piece, AttackedEpisodes) and runner.env is not None and runner.module is not None:
            try:
                piece.check(runner, pieces)
            except ValueError as error:
                return str(error)
    return ""
