"""The regularizer of one policy in training: its state, its term of the loss, its metrics and its checks."""

from __future__ import annotations

import logging
import time
import zlib
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import gymnasium as gym
import torch
from ray.rllib.core.columns import Columns
from ray.rllib.core.rl_module.torch import TorchRLModule
from ray.rllib.evaluation.postprocessing import Postprocessing
from torch import Tensor

from marl_aajr.core.checks import NonFiniteError, is_search_space
from marl_aajr.core.distributions import ActionDistribution
from marl_aajr.core.jacobian import Backend
from marl_aajr.core.objectives import Need
from marl_aajr.regularizers.regularizer import Regularizer
from marl_aajr.regularizers.sample import Earlier, LossTerm, PolicyLoss, Sample, Shard
from marl_aajr.rllib.internals.learners import all_sum
from marl_aajr.rllib.internals.modules import actor_network
from marl_aajr.rllib.plugin.epoch_weights import EpochWeights
from marl_aajr.rllib.plugin.module_policy import (
    CLEAN_OBS,
    PATH,
    RLModuleCritic,
    actor_of,
    judges_observations,
    module_distribution,
    module_policy,
    reads_words,
)
from marl_aajr.rllib.plugin.observation_layout import FlatLayout, check_masks, flat_layout
from marl_aajr.rllib.plugin.update_report import Report, reduced


class Regularized:
    """The regularizer of one policy, with its state and its metrics of the update in progress.

    Args:
        name: the policy's, for messages and for the key of the private random generator.
        regularizer: the settings.
        distribution: what the policy's outputs parametrise.
        offers: what its learner can give beside observations and outputs.
        backends: the Jacobian backends that this learner may use, in order of preference.
        defer: let a number that is not finite be, until `finish`: where others would wait for ever
            for a learner that has stopped.

    Attributes:
        reported: the metrics of the last update that had a regularised minibatch. The metrics of an update
            that had none are the same, because RLlib makes NaN of a metric that is there only sometimes.

    Raises:
        ValueError: settings that do not fit the policy or the learner.
    """

    def __init__(
        self,
        name: str,
        regularizer: Regularizer,
        distribution: ActionDistribution,
        *,
        offers: set[Need],
        backends: Sequence[Backend],
        defer: bool = False,
    ) -> None:
        regularizer.check(distribution, offers=offers)
        self.name = name
        self.regularizer = regularizer
        self.distribution = distribution
        self.state = regularizer.initial_state()
        self.reported: Mapping[str, float] = {}
        self._backends = backends
        self._defer = defer
        self._fitted = False
        self._records: dict[str, list[Tensor]] = defaultdict(list)
        self._seconds = 0.0
        self._origin: str | None = None

    def term(self, sample: Sample, loss: Tensor, *, timestep: float, minibatch: int, key: str) -> Tensor:
        """The term that is added to the learner's own loss, after so many environment steps and minibatches.

        The same key of the random generator draws the same numbers. Where only every m-th minibatch is
        regularised, the first of them in an update is measured: the policy is that which has acted.

        Raises:
            NonFiniteError: naming the first number that is not finite (on the CPU; on an accelerator
                `finish` raises, so that nothing waits for it here).
        """
        if not sample.obs.shape[-1]:
            self._records["penalty"].append(loss.new_zeros(()))
            return loss.new_zeros(())
        started = time.perf_counter()
        measure = self.regularizer.every == 1 or not self._records
        if not self._fitted:
            self.regularizer = self.regularizer.fitted(sample.policy, sample.obs, backends=self._backends)
            self._fitted = True
        evaluation = self._evaluate(sample, key, timestep=timestep, minibatch=minibatch, measure=measure)
        if sample.obs.device.type == "cpu" and evaluation.metrics["nonfinite"] > 0 and self._origin is None:
            self._name_the_origin(sample, timestep=timestep, minibatch=minibatch, key=key)
        for name, value in evaluation.metrics.items():
            self._records[name].append(value)
        if measure:
            added, base = evaluation.loss.detach().abs() / self.regularizer.every, loss.detach().abs()
            self._records["loss_share"].append(added / (added + base))
        self._seconds += time.perf_counter() - started
        return evaluation.loss

    @property
    def latest(self) -> dict[str, Tensor]:
        """The metrics of the last minibatch of the update in progress."""
        return {name: values[-1] for name, values in self._records.items()}

    def report(self) -> Report | None:
        """The report on the update that ends; None if nothing was done in it."""
        if not self._records:
            return None
        values = [reduced(name, torch.stack(seen).float()) for name, seen in self._records.items()]
        # In one transfer: what was computed on the host joins what is on an accelerator.
        device = next((value.device for value in values if value.device.type != "cpu"), torch.device("cpu"))
        numbers = torch.stack([value.to(device) for value in values]).tolist()
        metrics = dict(zip(self._records, numbers, strict=True)) | {"seconds": self._seconds}
        self._records.clear()
        self._seconds = 0.0
        return Report(metrics, self._origin)

    def told(self) -> Mapping[str, float]:
        """What is told of this update; if nothing is done in the next, that took no time."""
        told = self.reported
        self.reported = {name: 0.0 if name == "seconds" else value for name, value in told.items()}
        return told

    def finish(self, report: Report) -> None:
        """Move the state after an update, given the report on it of all learners.

        Raises:
            NonFiniteError: a number was not finite during the update.
        """
        if report.metrics.get("nonfinite", 0) > 0:
            raise NonFiniteError(
                report.origin
                or f"regularizer {self.regularizer.name!r} of module {self.name!r}: a number was not "
                "finite; run on the CPU to learn which"
            )
        self.reported = report.metrics
        if self.state and self._fitted:
            self.regularizer.after_update(self.state, report.metrics)

    def _evaluate(self, sample: Sample, key: str, **circumstances: Any) -> LossTerm:
        seed = zlib.crc32(f"{key}/{self.name}".encode())
        generator = torch.Generator(device=sample.obs.device).manual_seed(seed)
        return self.regularizer.evaluate(sample, generator=generator, state=self.state, **circumstances)

    def _name_the_origin(self, sample: Sample, *, timestep: float, minibatch: int, key: str) -> None:
        """Compute the same numbers once more, slowly, up to the first one that is not finite."""
        if sample.shard is not None:  # the others are not there to add anything up with
            sample = replace(sample, shard=sample.shard.alone())
        try:
            self._evaluate(sample, key, timestep=timestep, minibatch=minibatch, check=True)
        except NonFiniteError as error:
            where = f"regularizer {self.regularizer.name!r} of module {self.name!r}"
            self._origin = f"{where}, environment step {timestep}: {error}"
            if not self._defer:
                raise NonFiniteError(self._origin) from None


class RegularizedModule(Regularized):
    """The regularizer of one RLModule.

    Args:
        module_id: its id.
        regularizer: the settings.
        module: the unwrapped module.
        policy_loss: the learner's policy loss; None where it has none to offer.
        backends: the Jacobian backends that this learner may use, in order of preference.
        shard: (i, n): this is learner i of n that work on one minibatch in step; None: alone, or not in step.

    Attributes:
        epoch: the weights with which the present epoch began, where the regularizer asks for them; else None.
    """

    def __init__(
        self,
        module_id: str,
        regularizer: Regularizer,
        module: TorchRLModule,
        *,
        policy_loss: PolicyLoss | None,
        backends: Sequence[Backend],
        shard: tuple[int, int] | None,
    ) -> None:
        if is_search_space(regularizer):
            raise ValueError(
                f"expected a regularizer for module {module_id!r}, got the search space {regularizer!r}; "
                "run the configuration by ray.tune.Tuner, which fills it in"
            )
        self.module = module
        self._layers = actor_of(module)
        self._actor = actor_network(module) if regularizer.constrains else None
        self._policy_loss = policy_loss
        self._shard = shard
        self._flattened: FlatLayout | None = None
        self._members = getattr(regularizer, "members", (regularizer,))
        self._perturbs = any(hasattr(member, "leaves") for member in self._members)
        if self._perturbs and not isinstance(module.observation_space, gym.spaces.Box):
            check_masks(module.observation_space, regularizer.perturbed_leaves, module.action_space)
        self._has_critic = judges_observations(module)
        offers: set[Need] = {"critic", "epochs"} if self._has_critic else {"epochs"}
        if policy_loss is not None:
            offers |= {"policy_loss", "advantages"}
        super().__init__(
            module_id,
            regularizer,
            module_distribution(module),
            offers=offers,
            backends=backends,
            defer=shard is not None,
        )
        looks_back = any(getattr(member, "directions", "") == "epoch" for member in self._members)
        self.epoch = EpochWeights(module) if looks_back else None

    def follow(self, structures: Sequence[Any]) -> None:
        """Find out, by the agents' nested spaces, what observations were before connectors flattened them."""
        space, leaves = self.module.observation_space, self.regularizer.perturbed_leaves
        # Whoever names the features has the last word.
        free = not any(getattr(member, "mask", None) for member in self._members)
        free &= self._perturbs and not reads_words(self.module)
        if free and structures and isinstance(space, gym.spaces.Box) and len(space.shape) == 1:
            width, actions = space.shape[0], self.module.action_space
            self._flattened = flat_layout(width, structures, leaves=leaves, actions=actions)
            if self._flattened is not None and not len(self._flattened.places):
                warning = "module %s sees integers only, which nobody perturbs: %s adds nothing to its loss"
                logging.getLogger("marl_aajr").warning(warning, self.name, self.regularizer.name)

    def sample(self, columns: Mapping[str, Any], outputs: Tensor | None) -> Sample:
        """A train batch as the regularizer sees it; `outputs`, with their graph, are computed where None.

        Where agents acted under attack, the regularizer's own adversary begins where theirs did.
        """
        if CLEAN_OBS in columns:
            columns, outputs = {**columns, Columns.OBS: columns[CLEAN_OBS]}, None
        leaves, flattened = self.regularizer.perturbed_leaves, self._flattened
        policy, obs = module_policy(
            self.module, columns, self.distribution, layers=self._layers, leaves=leaves, flattened=flattened
        )
        mask = columns.get(Columns.LOSS_MASK)
        if outputs is None:
            with policy.fixed():
                outputs = policy.once(obs)
        part, learners = self._shard or (0, 0)
        shard = Shard.part(part, len(obs), learners=learners, total=all_sum) if learners else None
        return Sample(
            policy=policy,
            obs=obs,
            outputs=outputs,
            mask=None if mask is None else mask.bool(),
            actions=columns.get(Columns.ACTIONS),
            log_probs=columns.get(Columns.ACTION_LOGP),
            advantages=columns.get(Postprocessing.ADVANTAGES),
            policy_loss=self._policy_loss,
            values=RLModuleCritic(self.module, columns, leaves, flattened) if self._has_critic else None,
            shard=shard,
            path=columns.get(PATH),
            earlier=None if self.epoch is None else self._earlier(self.epoch.module, columns),
        )

    def _earlier(self, module: TorchRLModule, columns: Mapping[str, Any]) -> Earlier:
        """The policy as it was when the epoch began, on the same train batch."""
        leaves, flattened, layers = self.regularizer.perturbed_leaves, self._flattened, actor_of(module)
        policy, obs = module_policy(
            module, columns, self.distribution, layers=layers, leaves=leaves, flattened=flattened
        )
        values = RLModuleCritic(module, columns, leaves, flattened) if self._has_critic else None
        return Earlier(policy, obs.detach(), values)

    def constrain_actor(self, *, exact: bool) -> None:
        """Bring the actor's weights back into the permitted set, where the regularizer has one."""
        if self._actor is None:
            return
        started = time.perf_counter()
        for name, value in self.regularizer.constrain(self._actor, self.state, exact=exact).items():
            self._records[name].append(value)
        self._seconds += time.perf_counter() - started
