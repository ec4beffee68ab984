"""The env runner that samples from batches: it steps all copies at once and returns columns (`Fragment`)."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from ray.rllib.env.env_context import EnvContext

from marl_aajr.core.environment_values import EnvironmentFault
from marl_aajr.core.seeds import Purpose, derived_seed
from marl_aajr.rllib.internals.algorithms import (
    registered_creator,
    stale_connector_settings,
)
from marl_aajr.rllib.internals.runners import samples_to_train
from marl_aajr.rllib.sampling.batch_env import WITHOUT_FAST, BatchSpaces, ask, module_of_agents
from marl_aajr.rllib.sampling.env import EnvCreator
from marl_aajr.rllib.sampling.episode_metrics import SamplingMetrics
from marl_aajr.rllib.sampling.module_policies import ModulePolicies
from marl_aajr.rllib.sampling.run_env_runner import RunEnvRunner
from marl_aajr.rllib.trained_modules import may_train, surely_trains
from marl_aajr.rollout.attack.attacked_play import AttackedPlay
from marl_aajr.rollout.batched_env import BatchedEnv
from marl_aajr.rollout.collector import Collector, agent_groups
from marl_aajr.rollout.fragments import Episodes, Fragment

_STEPS_AT_ONCE = 32
"""Steps between two counts of the episodes that are done, where whole episodes are asked for."""


@dataclass(frozen=True)
class EpisodeTally:
    """The result of `sample(num_episodes=...)`: episodes are counted and measured, not kept."""

    steps: int
    agents_steps: int

    def env_steps(self) -> int:
        return self.steps

    def agent_steps(self) -> int:
        return self.agents_steps

    def __len__(self) -> int:
        return self.agents_steps


class FastEnvRunner(RunEnvRunner):
    """Samples from a batch of environment copies; see the module's documentation.

    Callbacks of episodes are not called, because there are none; RLlib's metrics of them are there.

    Where modules, the mapping of agents to them or, under attack, which of them are trained change
    (`Algorithm.add_module`, `remove_module`), the next sample begins new episodes in all copies.

    Sampling is a function of the seed: of `config.seed` and the runner's index, or of the one that was
    given to `start_afresh`, and of the weights.
    """

    plays_episodes = False
    env: BatchSpaces | None

    def __init__(self, config: Any, **kwargs: Any) -> None:
        self._collector: Collector | None = None
        self._mapping: Any = None
        self._module_of: dict[str, str] = {}
        self._trained: frozenset[str] = frozenset()
        self._generator = torch.Generator()
        self._begun: tuple[int, int] = (0, 0)
        super().__init__(config=config, **kwargs)
        if self.foreign_connectors:
            raise ValueError(
                "expected no env-to-module connector but our ObservationNormalizer, got "
                f"{', '.join(self.foreign_connectors)}; they work on episodes, which this runner does not "
                "make: use RLlib's env runner"
            )
        stale = stale_connector_settings(self.config)
        if stale:
            raise ValueError(
                f"expected the training settings that fast(config, environment) found, got other {stale}; "
                "call it last"
            )
        seed = torch.seed() % 2**31 if self.first_seed is None else self.first_seed
        self._seed_with(seed)
        if self.env is not None:
            self._assembled()  # so that what cannot be sampled is refused before anything starts

    def make_env(self) -> None:
        if self.env is not None:
            self.env.close()
        context = self.config.env_config
        if not isinstance(context, EnvContext):
            context = EnvContext(
                context, worker_index=self.worker_index, num_workers=self.config.num_env_runners
            )
        creator = registered_creator(self.config.env) if isinstance(self.config.env, str) else None
        if not isinstance(creator, EnvCreator):
            raise ValueError(
                f"expected an environment that fast(config, environment) has set, got {self.config.env!r}; "
                "call it last"
            )
        self._creator = creator
        if creator.device is not None:
            self.place = torch.device(creator.device)
        batch = creator.batch(context, self.config.num_envs_per_env_runner, self.place)
        self.env = BatchSpaces(batch)
        self.num_envs = batch.num_envs
        self._collector = None
        self.must_reset = True
        self.announce_environment(context)

    def start_afresh(self, *, seed: int) -> None:
        """Build new environments; the next sample, and all that follow, are a function of `seed`."""
        self.make_env()
        self.first_seed = seed
        self._seed_with(seed)

    def _seed_with(self, seed: int) -> None:
        self._generator.manual_seed(seed)
        self._begun = (seed, 0)

    def get_metrics(self) -> Any:
        return self.metrics.reduce()

    def collect(
        self,
        *,
        num_timesteps: int | None = None,
        num_episodes: int | None = None,
        explore: bool,
        random_actions: bool = False,
        force_reset: bool = False,
    ) -> list[Any]:
        collector, policies, is_new = self._assembled()
        policies.module = self.module
        policies.explore, policies.random = explore, random_actions
        policies.timestep = self.num_env_steps_sampled_lifetime
        with self._at_work():
            self._seed_attack(collector)
            if force_reset or num_episodes is not None or self.must_reset or is_new:
                self._begin(collector)
            if collector.attack is not None:
                policies.weights_changed()
                collector.attack.begin(policies.timestep, allowed=explore and samples_to_train(self))
            if num_episodes is not None:
                self.must_reset = True
                return self._whole_episodes(collector, num_episodes)
            return self._steps(collector, num_timesteps or 0)

    @contextmanager
    def _at_work(self) -> Iterator[None]:
        """Within this block the filter's statistics are on the device, and faults say whose they are."""
        if self.normalizer is not None:
            self.normalizer.to(self.place)
        try:
            yield
        except EnvironmentFault as fault:
            # Some copies are a step ahead of others; what follows, if anything does, begins anew.
            self.must_reset, self.first_seed = True, self._draw()
            if not self.worker_index:
                raise
            raise EnvironmentFault(f"{fault} (in env runner {self.worker_index})") from fault
        finally:
            if self.normalizer is not None:
                self.normalizer.to(None)

    def _steps(self, collector: Collector, num_timesteps: int) -> list[Fragment]:
        per_step = self.num_envs
        if self.config.count_steps_by == "agent_steps":
            per_step *= len(collector.agents)
        started = time.perf_counter()
        fragment, episodes = collector.collect(max(1, -(-num_timesteps // per_step)))
        seconds = time.perf_counter() - started
        self._measures.steps(fragment)
        self._measures.episodes(episodes, seconds * self.num_envs / fragment.env_steps())
        if collector.attack is not None and collector.attack.allowed:
            attacked = collector.attack.copies.ended()
            self._measures.attack(episodes, attacked, collector.attack_metrics, collector.attack.epsilon)
        # Equal parts, or RLlib would try to cut fragments like episodes to share them out.
        return fragment.split(max(self.config.num_learners, 1))

    def _whole_episodes(self, collector: Collector, wanted: int) -> list[EpisodeTally]:
        """Each copy plays its share, so that short episodes are not preferred to long ones."""
        share = torch.full((self.num_envs,), wanted // self.num_envs)
        share[: wanted % self.num_envs] += 1
        kept: list[Episodes] = []
        started, steps = time.perf_counter(), 0
        while bool((share > 0).any()):
            fragment, episodes = collector.collect(_STEPS_AT_ONCE)
            steps += fragment.steps // fragment.phases
            chosen = []
            for i, copy in enumerate(episodes.copies.tolist()):
                if share[copy] > 0:
                    share[copy] -= 1
                    chosen.append(i)
            kept.append(episodes.select(chosen))
        played = Episodes.join(kept)
        agent_steps = played.agent_steps.sum(0).tolist()
        self._measures.count(int(played.lengths.sum()), dict(zip(collector.agents, agent_steps, strict=True)))
        self._measures.episodes(played, (time.perf_counter() - started) / steps)
        return [EpisodeTally(int(played.lengths.sum()), sum(agent_steps))]

    def _assembled(self) -> tuple[Collector, ModulePolicies, bool]:
        """The collector and its policies for the mapping of now, and whether they are new."""
        assert self.env is not None
        batch, mapping = self.env.batch, self.config.policy_mapping_fn
        if mapping is not self._mapping or ask(self.env.ids, mapping) != self._module_of:
            module_of = module_of_agents(self.env.ids, mapping, instead=WITHOUT_FAST)
            if module_of != self._module_of:
                self._collector = None
            self._mapping, self._module_of = mapping, module_of
        module_of = self._module_of
        self._check_modules()
        if self._collector is not None and self._attacks_whom_it_should(self._collector):
            return self._collector, self._players, False
        normalizer = self.normalizer
        if normalizer is not None and self.config.in_evaluation:
            normalizer.frozen = True
        self._players: ModulePolicies = ModulePolicies(
            {module_of[agent]: batch.action_spaces[agent] for agent in batch.possible_agents},
            normalize_actions=self.config.normalize_actions,
            clip_actions=self.config.clip_actions,
            normalizer=normalizer,
            device=self.place,
        )
        self._collector = Collector(
            batch, module_of, self._players, name=self._creator.name, attack=self._attack(batch, module_of)
        )
        self._measures = SamplingMetrics(self, self._collector.agents, module_of, batch.teams)
        return self._collector, self._players, True

    def _attack(self, batch: BatchedEnv, module_of: Mapping[str, str]) -> AttackedPlay | None:
        """The attack that training is played under, checked against the modules that act."""
        settings = self._creator.rollouts
        if settings is None or not settings.ever or self.config.in_evaluation:
            return None
        groups = agent_groups(batch, module_of)
        place, channels = self.place, batch.channels
        trained = self._trained = self._may_train(groups)
        play = AttackedPlay(
            settings, groups, batch.num_envs, self._players, place, channels=channels, trained=trained
        )
        self._players.module = self.module
        for module in play.modules:
            self._players.check_attack(module, play.attack_on(module))
        return play

    def _may_train(self, modules: Iterable[str]) -> frozenset[str]:
        return frozenset(name for name in modules if may_train(self.config, name))

    def _attacks_whom_it_should(self, collector: Collector) -> bool:
        """Whether the modules that are trained are those of when the attack was made; they may change."""
        return collector.attack is None or self._may_train(collector.groups) == self._trained

    def _seed_attack(self, collector: Collector) -> None:
        """The attack's random numbers: by the seed, which is of a runner and a checkpoint, and the sample."""
        seed, samples = self._begun
        self._begun = (seed, samples + 1)
        if collector.attack is not None:
            drawn = derived_seed(seed, Purpose.ROLLOUT_ATTACK, samples)
            collector.attack.copies.generator.manual_seed(drawn)

    def _check_modules(self) -> None:
        for agent, name in self._module_of.items():
            if name not in self.module:
                known = ", ".join(sorted(self.module.keys()))
                raise ValueError(
                    f"expected a module out of {known} for {agent!r}, got {name!r}; add it first"
                )
            module = self.module[name]
            if surely_trains(self.config, name) and not hasattr(module, "compute_values"):
                raise ValueError(
                    f"expected modules with compute_values to train, got {type(module).__name__} for "
                    f"{name!r}; leave it out of config.multi_agent(policies_to_train=[...])"
                )

    def _begin(self, collector: Collector) -> None:
        """New episodes: the first from the runner's seed, later ones from numbers drawn with it."""
        known = self.first_seed if self.must_reset else None
        seed = self._draw() if known is None else known
        collector.reset(seed=seed)
        self._players.generator.manual_seed(self._draw())
        self.must_reset = False

    def _draw(self) -> int:
        return int(torch.randint(2**31, (), generator=self._generator))
