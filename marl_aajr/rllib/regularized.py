"""One module's regularizer during training: what it remembers, adds, measures and checks."""

from __future__ import annotations

import time
import zlib
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from ray.rllib.core.columns import Columns
from ray.rllib.core.rl_module.apis import ValueFunctionAPI
from ray.rllib.core.rl_module.torch import TorchRLModule
from ray.rllib.evaluation.postprocessing import Postprocessing
from torch import Tensor

from marl_aajr.jacobian import Backend
from marl_aajr.numerics import NonFiniteError
from marl_aajr.objectives import Need
from marl_aajr.regularizers.base import Evaluation, PolicyLoss, Regularizer, Sample
from marl_aajr.rllib.internals import actor_network
from marl_aajr.rllib.policy import module_critic, module_distribution, module_policy


class RegularizedModule:
    """The regularizer of one module, with its state and its metrics of the update in progress.

    Args:
        module_id: for messages and for the key of the private random generator.
        regularizer: the settings.
        module: the unwrapped module.
        policy_loss: the learner's policy loss; None where it has none to offer.
        backends: the Jacobian backends that this learner may use, in order of preference.
        shard: (i, n): this is learner i of n.

    Raises:
        ValueError: settings that do not fit the module or the learner.
    """

    def __init__(
        self,
        module_id: str,
        regularizer: Regularizer,
        module: TorchRLModule,
        *,
        policy_loss: PolicyLoss | None,
        backends: Sequence[Backend],
        shard: tuple[int, int],
    ) -> None:
        self.module_id = module_id
        self.regularizer = regularizer
        self.module = module
        self.distribution = module_distribution(module)
        self._policy_loss = policy_loss
        self._backends = backends
        self._shard = shard
        self._fitted = False
        self._records: dict[str, list[Tensor]] = defaultdict(list)
        self._seconds = 0.0
        offers: set[Need] = set()
        if isinstance(module, ValueFunctionAPI):
            offers.add("critic")
        if policy_loss is not None:
            offers |= {"policy_loss", "advantages"}
        regularizer.check(self.distribution, offers=offers)
        self.state = regularizer.initial_state()

    def term(
        self,
        columns: Mapping[str, Any],
        outputs: Tensor | None,
        loss: Tensor,
        *,
        timestep: float,
        key: str,
    ) -> Tensor:
        """What to add to the loss of one minibatch.

        Args:
            columns: the minibatch; not modified.
            outputs: the module's distribution inputs, with their graph; None: computed here.
            loss: the learner's own loss, for the share.
            timestep: environment steps so far.
            key: of the random generator; the same key draws the same numbers.

        Raises:
            NonFiniteError: naming the first number that is not finite (on the CPU; on an accelerator
                :meth:`finish` raises, so that nothing waits for it here).
        """
        started = time.perf_counter()
        sample = self._sample(columns, outputs)
        evaluation = self._evaluate(sample, timestep=timestep, key=key)
        if sample.obs.device.type == "cpu" and evaluation.metrics["nonfinite"] > 0:
            where = f"regularizer {self.regularizer.name!r} of module {self.module_id!r}"
            try:
                # The same numbers once more, slowly, to name the first one that is not finite.
                self._evaluate(sample, timestep=timestep, key=key, check=True)
            except NonFiniteError as error:
                raise NonFiniteError(f"{where}, environment step {timestep}: {error}") from None
        for name, value in evaluation.metrics.items():
            self._records[name].append(value)
        added, base = evaluation.loss.detach().abs(), loss.detach().abs()
        self._records["loss_share"].append(added / (added + base))
        self._seconds += time.perf_counter() - started
        return evaluation.loss

    def constrain(self, *, exact: bool) -> None:
        """Bring the actor's weights back into the permitted set, where the regularizer has one."""
        if type(self.regularizer).constrain is Regularizer.constrain:
            return
        started = time.perf_counter()
        metrics = self.regularizer.constrain(actor_network(self.module), self.state, exact=exact)
        for name, value in metrics.items():
            self._records[name].append(value)
        self._seconds += time.perf_counter() - started

    def finish(self) -> dict[str, Tensor]:
        """The metrics of the update that ends, after the state has moved; empty if nothing was done.

        Raises:
            NonFiniteError: on an accelerator, a number that was not finite during the update.
        """
        if not self._records:
            return {}
        metrics = {name: _reduce(name, values) for name, values in self._records.items()}
        metrics["seconds"] = torch.tensor(self._seconds)
        self._records.clear()
        self._seconds = 0.0
        if float(metrics.get("nonfinite", 0)) > 0:
            raise NonFiniteError(
                f"regularizer {self.regularizer.name!r} of module {self.module_id!r}: a number was not "
                "finite; run on the CPU to learn which"
            )
        if self.state:
            self.regularizer.after_update(self.state, self._averaged(metrics))
        return metrics

    def _evaluate(self, sample: Sample, *, timestep: float, key: str, check: bool = False) -> Evaluation:
        seed = zlib.crc32(f"{key}/{self.module_id}".encode())
        generator = torch.Generator(device=sample.obs.device).manual_seed(seed)
        return self.regularizer.evaluate(
            sample, timestep=timestep, generator=generator, state=self.state, check=check
        )

    def _sample(self, columns: Mapping[str, Any], outputs: Tensor | None) -> Sample:
        policy, obs = module_policy(self.module, columns, self.distribution)
        if not self._fitted:
            self.regularizer = self.regularizer.fitted(policy, obs, backends=self._backends)
            self._fitted = True
        mask = columns.get(Columns.LOSS_MASK)
        return Sample(
            policy=policy,
            obs=obs,
            outputs=policy(obs) if outputs is None else outputs,
            mask=None if mask is None else mask.bool(),
            actions=columns.get(Columns.ACTIONS),
            log_probs=columns.get(Columns.ACTION_LOGP),
            advantages=columns.get(Postprocessing.ADVANTAGES),
            policy_loss=self._policy_loss,
            values=module_critic(self.module, columns, policy),
            shard=self._shard,
        )

    def _averaged(self, metrics: Mapping[str, Tensor]) -> dict[str, float]:
        """Metrics averaged over all learners: the dual variable must move alike in each."""
        values = torch.stack([value.detach().float().cpu() for value in metrics.values()])
        if self._shard[1] > 1:
            torch.distributed.all_reduce(values)
            values /= self._shard[1]
        return dict(zip(metrics, values.tolist(), strict=True))


def _reduce(name: str, values: list[Tensor]) -> Tensor:
    stacked = torch.stack(values).float()
    if name.endswith("nonfinite"):
        return stacked.sum()
    if name.endswith("_max"):
        return stacked.amax()
    return stacked.amin() if name.endswith("_min") else stacked.mean()
