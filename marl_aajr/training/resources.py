"""The processes and the hardware of a run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from marl_aajr.training.fields import AutoCount, Count, NonNegative, Section, Whole

COPIES = 160
"""Environment copies by default: more of them, each for fewer steps, make a step of all cheaper."""

Amounts = Mapping[str, float]
"""Amounts of CPU and GPU."""


@dataclass(frozen=True)
class Group:
    """Processes of a run that are alike: the name of their kind, their number, the resources of each."""

    name: str
    count: int
    each: Amounts


class Resources(Section):
    """The processes, processors and GPUs that the run asks Ray for.

    Attributes:
        env_runners: processes that sample; 0: the main process samples.
        runner: `fast`: batches of environment copies and a lean learner; `stock`: RLlib's own env runner
            and learner.
        envs_per_runner: environment copies in each process that samples; None: 160 in all.
        env_processes: processes that step the copies in each process that samples, itself among them; for
            environments without a batched version (PettingZoo's) and the fast runner. Numbers do not depend
            on it. `auto`: one for each of its cores, while each has 8 copies or more, and itself alone where
            others cannot build the environment. Its cores: cpus_per_env_runner; of the main process all of
            the machine, or what Tune gives it.
        learners: processes that learn; 0: the main process learns. Batch sizes are divided among them.
        cpus_per_env_runner: CPUs of each sampling process.
        gpus_per_env_runner: GPUs of each sampling process; with env_runners = 0, of the main process
            (0 or 1).
        cpus_per_learner: CPUs of each learning process.
        gpus_per_learner: GPUs of each learning process; with learners = 0, of the main process (0 or 1).
        torch_threads: threads of torch in each process; more than 1 makes numbers depend on the machine.
            `auto`: one for each of its cores, as above; for wide networks on a machine that nobody else uses.
            The learner takes two cores without it, to the same numbers, where networks are wide.
        address: a running Ray cluster, `host:port` or `auto`; None: RAY_ADDRESS, else a local one.
    """

    env_runners: Whole = 0
    runner: Literal["fast", "stock"] = "fast"
    envs_per_runner: Count | None = None
    env_processes: AutoCount = "auto"
    learners: Whole = 0
    cpus_per_env_runner: NonNegative = 1.0
    gpus_per_env_runner: NonNegative = 0.0
    cpus_per_learner: NonNegative = 1.0
    gpus_per_learner: NonNegative = 0.0
    torch_threads: AutoCount = 1
    address: str | None = None

    @property
    def copies(self) -> int:
        """Environment copies in each process that samples."""
        return self.envs_per_runner or max(1, COPIES // max(self.env_runners, 1))

    @property
    def groups(self) -> tuple[Group, Group]:
        """The env runners and the learners."""
        runner = {"CPU": self.cpus_per_env_runner, "GPU": self.gpus_per_env_runner}
        learner = {"CPU": self.cpus_per_learner, "GPU": self.gpus_per_learner}
        return Group("env runner", self.env_runners, runner), Group("learner", self.learners, learner)

    @property
    def bundles(self) -> list[dict[str, float]]:
        """A run as the bundles of a placement group, as `ray.tune.PlacementGroupFactory` takes them.

        The first is for the process that calls `train`, with the GPUs of what it does itself; RLlib puts env
        runner i on bundle i, and learners follow.
        """
        local = max((group.each["GPU"] for group in self.groups if group.count == 0), default=0.0)
        each = [{"CPU": 1.0, "GPU": local}, *(g.each for g in self.groups for _ in range(g.count))]
        return [{kind: amount for kind, amount in bundle.items() if amount} for bundle in each]
