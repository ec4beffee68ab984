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
from collections.abc import Callable
from dataclasses import dataclass
from itertools import takewhile
from random import Random
from typing import Any

import gymnasium as gym
import torch
from ray.rllib.connectors.connector_v2 import ConnectorV2
from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.core.rl_module.multi_rl_module import MultiRLModule
from ray.rllib.core.rl_module.torch import TorchRLModule
from torch import Tensor

from marl_aajr.core.channels import NO_CHANNELS, who_observes
from marl_aajr.core.environment_values import agent_name
from marl_aajr.core.seeds import Purpose, derived_seed
from marl_aajr.rllib.internals.algorithms import (
    connectors_made,
    connectors_of,
    runner_of_connectors,
    structures_of,
)
from marl_aajr.rllib.internals.runners import samples_to_train
from marl_aajr.rllib.plugin.attacked_measures import AttackedMeasures
from marl_aajr.rllib.plugin.attacked_modules import AttackedModules, observed
from marl_aajr.rllib.plugin.attacked_rows import check_batch, check_connectors, check_width
from marl_aajr.rllib.plugin.clean_observations import agent_of
from marl_aajr.rllib.plugin.episode_rows import EpisodeRows
from marl_aajr.rllib.plugin.module_policy import CLEAN_OBS
from marl_aajr.rllib.sampling.acting_policy import (
    FilterStatistics,
    HeldColumns,
    acting_rows,
    device_of,
    memory_in,
)
from marl_aajr.rllib.sampling.observation_filter import Moments, ObservationNormalizer
from marl_aajr.rollout.attack.attacked_copies import AttackedCopies
from marl_aajr.rollout.attack.rollout_attack import RolloutAttack
from marl_aajr.rollout.attack.worst_agents import Attempt, objective_gain, settled


@dataclass(frozen=True)
class WithRolloutAttack:
    """`env_to_module_connector` of a configuration, with the attack behind the pieces that were there.

    Attributes:
        attack: The attack.
        before: What makes those pieces.
        keep_clean: Whether what was true is kept.
        requests: `max_requests_in_flight_per_env_runner` as it was.
    """

    attack: RolloutAttack
    before: Callable[..., Any] | None
    keep_clean: bool = False
    requests: int = 1

    def __call__(self, env: Any = None, spaces: Any = None, device: Any = None) -> list[ConnectorV2]:
        piece = AttackedEpisodes(self.attack, keep_clean=self.keep_clean)
        runner = None if env is None else runner_of_connectors(env)
        piece.runner = None if runner is None else weakref.ref(runner)
        return [*connectors_made(self.before, env, spaces, device), piece]


class AttackedEpisodes(ConnectorV2):
    """Shows the agents of a share of an env runner's copies what an adversary makes of their observations.

    Not in evaluation (`samples_to_train`), and not where actions are not drawn (`explore=False`).

    What is drawn follows from the configuration's seed, the runner's index, the environment steps before its
    first sample (those of the run that a checkpoint is of), and how many steps it has played since: from no
    number of other runners, which RLlib may tell now or later. So there is no state to be kept or merged.

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
        self._begun: tuple[int, int] | None = None
        self._calls = self._seed = 0
        self._elsewhere: torch.Generator | None = None
        self._checked = False
        self._copies: AttackedCopies | None = None
        self._ids: list[Any] = []
        self._modules = AttackedModules(attack)

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
        if not self._checked:
            self.check(runner)
        if self._noted is not None and shared_data is not None:
            self._noted = shared_data.setdefault(CLEAN_OBS, {})
        if not samples_to_train(runner):
            return batch
        if explore:
            check_batch(batch)
        copies = self._follow(runner, episodes)
        self._calls += 1
        acts = any(not episode.is_done for episode in episodes)
        epsilon = copies.epsilon if explore else 0.0
        self._measures.step(runner, epsilon, acts=acts, draw=Random(self._seed))
        if not explore or not copies.epsilon or not copies.reach:
            return batch
        tried: dict[str, Attempt[None]] = {}
        for name, rows in self._attacked(runner, episodes, copies).items():
            module = rl_module[name] if isinstance(rl_module, MultiRLModule) else rl_module
            tried[name] = self._attempt(runner, name, module.unwrapped(), rows)
        # All ascents come first: measuring them draws numbers, too, and must change nothing of play.
        settled(tried, self._attack.worst_agents)
        return batch

    def _follow(self, runner: Any, episodes: list[Any]) -> AttackedCopies:
        """The flags of the copies at this step, given all episodes in order, or some that have ended."""
        if self._copies is None or len(self._ids) != runner.num_envs:
            self._copies = AttackedCopies(self._attack, runner.num_envs, torch.device("cpu"))
            self._ids = [None] * runner.num_envs
        copies = self._copies
        if self._begun is None:
            seed = runner.config.seed
            drawn = int(torch.randint(2**31, ())) if seed is None else seed
            self._begun = drawn, runner.num_env_steps_sampled_lifetime
        seed, steps = self._begun
        place = runner.worker_index or 0, steps, self._calls
        self._seed = derived_seed(seed, Purpose.ROLLOUT_ATTACK, *place)
        copies.generator.manual_seed(self._seed)
        self._elsewhere = None
        if len(episodes) == runner.num_envs:
            new = [e.is_reset and e.id_ != known for e, known in zip(episodes, self._ids, strict=True)]
            pairs = zip(episodes, self._ids, new, strict=True)
            self._ids = [episode.id_ if begins else known for episode, known, begins in pairs]
            copies.begin_episodes(torch.tensor(new))
            copies.begin(runner.num_env_steps_sampled_lifetime)
        return copies

    def _generator(self, copies: AttackedCopies, device: torch.device) -> torch.Generator:
        """The source of what is drawn for rows on a device: on the CPU that of the copies."""
        if device.type == "cpu":
            return copies.generator
        if self._elsewhere is None:
            self._elsewhere = torch.Generator(device).manual_seed(self._seed)
        return self._elsewhere

    def _attacked(
        self, runner: Any, episodes: list[Any], copies: AttackedCopies
    ) -> dict[str, list[tuple[Any, int]]]:
        """By module the single-agent episodes whose last observation is attacked, each with its copy."""
        hit, channels = copies.hit(), self._attack.channels
        known = NO_CHANNELS if channels is None else observed(runner)
        rows: dict[str, list[tuple[Any, int]]] = defaultdict(list)
        for episode in episodes:
            copy = self._ids.index(episode.id_) if episode.id_ in self._ids else copies.reach
            if copy >= copies.reach or (hit is not None and not hit[copy]):
                continue
            for one in self.single_agent_episode_iterator([episode]):
                agent, module = agent_name(one.agent_id), one.module_id or DEFAULT_MODULE_ID
                attacks = self._modules.attacks(runner, agent, module)
                if attacks and who_observes(channels, known, [agent]):
                    rows[module].append((one, copy))
        return rows

    def _attempt(
        self, runner: Any, name: str, module: TorchRLModule, episodes: list[tuple[Any, int]]
    ) -> Attempt[None]:
        """The ascents of a module's agents; nobody has seen anything of them yet."""
        agents = [episode.agent_id for episode, _ in episodes]
        acting, attack = self._modules.known(runner, name, module, agents)
        assert self._copies is not None
        pieces = (piece for piece in connectors_of(runner) if isinstance(piece, ObservationNormalizer))
        known_as = episodes[0][0].module_id
        moments = next((piece.total.get(known_as, Moments()) for piece in pieces), None)
        if moments is not None and not moments.spread:
            return Attempt(lambda _: None)  # ε has no size yet in the units of the filter.
        acting.weights_changed()  # The algorithm gives the runner new ones, and does not tell.
        device = device_of(module)
        rows = EpisodeRows(episodes, device)
        check_width(name, acting.width, rows.obs.shape[1])
        memory = memory_in(module, rows.episodes, device) if acting.recurrent else None
        filtered = None if moments is None else FilterStatistics.of(moments, acting.width, like=rows.obs)
        own = rows.obs if filtered is None else filtered.before(rows.obs)
        epsilon = self._copies.radius(1)
        if isinstance(epsilon, Tensor):
            epsilon = epsilon.to(device)[rows.copies]
        generator = self._generator(self._copies, device)
        acted = acting_rows(acting, own, HeldColumns(rows.legal, memory), filtered)
        found = attack.perturb(acted.policy, acted.obs, epsilon=epsilon, generator=generator)

        def show(hit: Tensor | None) -> None:
            self._measures.decisions(
                runner,
                name,
                attack,
                acted,
                found,
                hit=hit,
                epsilon=epsilon,
                generator=generator,
                acts=rows.acts,
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

    def start_afresh(self, *, seed: int) -> None:
        """Begin as if nothing had been played: what follows is a function of `seed`, as in a resumed run."""
        self._begun, self._calls = (seed, 0), 0
        self._copies, self._ids = None, []
        self._measures = AttackedMeasures(self._attack)

    def check(self, runner: Any) -> None:
        """Raise `ValueError` for a runner that cannot be attacked."""
        self._checked = True
        before = list(takewhile(lambda piece: piece is not self, connectors_of(runner)))
        check_connectors(before, structures_of(runner))
        self._modules.check(runner)


def complaint(runner: Any) -> str:
    """The reason why a runner cannot sample under attack, or would not; nothing where it does."""
    if runner.env is None or runner.module is None:
        return ""
    pieces = connectors_of(runner)
    piece = next((piece for piece in pieces if isinstance(piece, AttackedEpisodes)), None)
    if piece is None or piece.runner is None or piece.runner() is not runner:
        names = ", ".join(type(piece).__name__ for piece in pieces)
        return (
            "expected AttackedEpisodes, made for this env runner, among the env-to-module connectors for "
            f"rollouts under attack, got {names}; call robustify after everything else is configured"
        )
    try:
        piece.check(runner)
    except ValueError as error:
        return str(error)
    return ""
