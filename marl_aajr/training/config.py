"""The configuration of a run: every setting, with its default here and nowhere else.

`config.yaml` of a run directory is one of these with all defaults written out, so that a run means the same
after a default has changed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, model_validator

from marl_aajr.rollout.attack.beside_regularizers import path_for
from marl_aajr.rollout.attack.rollout_attack import RolloutAttack
from marl_aajr.rollout.disturbances import read_disturbance
from marl_aajr.rollout.teams import SAID
from marl_aajr.training.atla import ATLA
from marl_aajr.training.fields import (
    Count,
    Fraction,
    NonNegative,
    Positive,
    Schedule,
    Section,
    Whole,
    validated,
)
from marl_aajr.training.files import load_yaml
from marl_aajr.training.language_config import LanguageConfig
from marl_aajr.training.method import MethodConfig, RolloutsConfig
from marl_aajr.training.resources import Resources


class EnvConfig(Section):
    """The environment.

    Attributes:
        name: environment: a name of `list envs` or an import path, `my_package.my_env:make`; those of
            `marl_aajr.envs` are mpe2's, batched in torch: the same games at several times the speed.
        kwargs: arguments of its constructor. Among them is kept what the environment does not say itself:
            `env.teams`, who plays with whom, such as `{red_*: red, blue_*: blue}`, and `env.channels`, what
            observations consist of, such as `{messages: [3, 4], others: "5:9"}`.
    """

    name: str = Field(min_length=1)
    kwargs: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="before")
    @classmethod
    def _by_name(cls, data: Any) -> Any:
        """`env: simple_spread_v3` is `env: {name: simple_spread_v3}`; what is said of it, an argument."""
        if isinstance(data, Mapping):
            said = {key: data[short] for key in SAID if (short := key.removeprefix("env.")) in data}
            rest = {key: value for key, value in data.items() if f"env.{key}" not in said}
            return {**rest, "kwargs": {**(data.get("kwargs") or {}), **said}} if said else rest
        return {"name": data} if isinstance(data, str) else data


class ModelConfig(Section):
    """The networks: an actor and a critic of the same shape for each module.

    Attributes:
        hidden: widths of the hidden layers.
        activation: function between the layers.
        initialization: initial weights of the hidden layers: `orthogonal` (gain √2, no bias) or `torch`
            (its default, which is RLlib's too).
        lstm: width of an LSTM behind the hidden layers, for policies with a memory; None: none.
        sequence_length: decisions in a piece of an episode that an LSTM is trained on.
        free_log_std: for Box actions, log σ is a parameter of its own instead of an output.
        critic: input of the critic: the agent's `own` observation; beside it the `joint` observation of all
            agents or the environment's `state` (MAPPO, arXiv 2103.01955).
        language: a language model in their place, for observations that are words; None: MLPs.
    """

    hidden: tuple[Count, ...] = (64, 64)
    activation: Literal["tanh", "relu", "silu"] = "tanh"
    initialization: Literal["orthogonal", "torch"] = "orthogonal"
    lstm: Count | None = None
    sequence_length: Count = 20
    free_log_std: bool = False
    critic: Literal["own", "joint", "state"] = "own"
    language: LanguageConfig | None = None


class PPOSettings(Section):
    """Every number of PPO. The defaults are measured: experiments/ppo_defaults.

    Attributes:
        lr: learning rate of Adam; a number or `[[env_step, value], ...]`.
        gamma: discount.
        gae_lambda: λ of generalised advantage estimation.
        clip: bound of the probability ratio's distance from 1.
        vf_clip: bound of the squared value error (RLlib's `vf_clip_param`); None: none. RLlib's 10 stops
            the critic from learning where returns are large.
        vf_loss_coeff: weight of the value loss.
        entropy_coeff: weight of the entropy bonus; a number or schedule.
        kl_coeff: initial weight of RLlib's adaptive KL term; 0: no such term.
        kl_target: KL per iteration that the adaptive weight aims at, in nats.
        epochs: passes over each train batch.
        minibatch_size: rows (agent steps) of each module per gradient step.
        train_batch_size: environment steps per iteration.
        grad_clip: bound of the global norm of each module's gradient; None: none.
    """

    lr: Schedule = 1e-3
    gamma: Fraction = 0.95
    gae_lambda: Fraction = 0.95
    clip: Positive = 0.2
    vf_clip: Positive | None = None
    vf_loss_coeff: NonNegative = 1.0
    entropy_coeff: Schedule = 0.01
    kl_coeff: NonNegative = 0.0
    kl_target: Positive = 0.01
    epochs: Count = 10
    minibatch_size: Count = 1200
    train_batch_size: Count = 4000
    grad_clip: Positive | None = None


class RunConfig(Section):
    """One training run.

    Attributes:
        env: the environment.
        method: the method that makes the policy robust.
        rollouts: the attack that a share of the copies is played under, beside the method; None: there is
            none. `rollouts: {epsilon: 0.1}` with method aajr is a minimax with AAJR in it.
        disturb: disturbance of actions that agents learn under, such as `replace=0.1` (PR-MDP), `mix=0.1`
            (NR-MDP) or `noise=0.2`, by chance or by a trained adversary, `replace=0.1,by=RUN`; see
            `marl_aajr.rollout.disturbances`. None: there is none.
        seed: seed of everything random: same seed, same run.
        env_steps: length of the run in environment steps, summed over the copies. The last iteration may
            exceed it.
        policies: `shared`: one network for all agents of a team with the same spaces; `independent`: one
            for each agent.
        model: the networks.
        algorithm: learning algorithm: `appo` and `impala` sample while they learn: faster with many env
            runners, not repeatable, and with `--runner stock`. What these learn from, and so their numbers,
            depends on how fast each process was: the same seed is not the same run, and a resumed run goes on
            as another. They use RLlib's runner and learner; of `ppo` neither of them uses `gae_lambda`,
            `vf_clip`, `epochs` and `minibatch_size` (one pass, V-trace), nor `impala` `clip` and `kl_...`.
        ppo: the numbers of the algorithm.
        observation_filter: `mean_std` normalises observations by their running mean and deviation, for each
            network.
        resources: processes and hardware.
        checkpoint_every: iterations between the checkpoints that a run can resume from. Environments start
            new episodes there, so that a resumed run equals one that never stopped.
        time_limits_terminate: treat time limits as RLlib's own PettingZoo wrapper does (as terminations).
        initial_policy: folder of a saved victim (a run's `victim`) whose networks the run begins with, by
            module; None: random ones. The run keeps a copy and needs the folder no more.
    """

    env: EnvConfig
    method: MethodConfig = Field(default_factory=MethodConfig)
    rollouts: RolloutsConfig | None = None
    disturb: Annotated[str, AfterValidator(read_disturbance)] | None = None
    seed: Whole = 0
    env_steps: Count = 1_000_000
    policies: Literal["shared", "independent"] = "shared"
    algorithm: Literal["ppo", "appo", "impala"] = "ppo"
    model: ModelConfig = Field(default_factory=ModelConfig)
    ppo: PPOSettings = Field(default_factory=PPOSettings)
    observation_filter: Literal["none", "mean_std"] = "none"
    resources: Resources = Field(default_factory=Resources)
    checkpoint_every: Count = 10
    time_limits_terminate: bool = False
    initial_policy: str | None = None

    @property
    def repeatable(self) -> bool:
        """Whether the same configuration gives the same numbers, resumed or not."""
        return self.algorithm == "ppo"

    @property
    def attack(self) -> RolloutAttack | None:
        """The attack that a share of the copies is played under, of whichever team; None: nobody ever is."""
        steps = {"env_steps": self.env_steps}
        found = (method.rollouts(**steps) for method in self.method.each)
        attack = next((each for each in found if each is not None), None)
        if self.rollouts is not None:
            attack = self.rollouts.attack(**steps)
        if attack is None or not attack.ever:
            return None
        paths = (path_for(method.regularizer(**steps)) for method in self.method.each)
        path = next((each for each in paths if each != "none"), None)
        return attack if path is None else replace(attack, path=path)

    @property
    def atla(self) -> ATLA | None:
        """The settings of ATLA, of whichever team; None: nobody has it as its method."""
        found = (method.atla(env_steps=self.env_steps) for method in self.method.each)
        return next((each for each in found if each is not None), None)

    @model_validator(mode="after")
    def _one_attack(self) -> RunConfig:
        methods = [method for method in self.method.each if method.name in (RolloutAttack.name, ATLA.name)]
        if self.rollouts is not None and methods:
            raise ValueError(
                "expected beside rollouts a method without an adversary in the rollouts, got "
                f"{methods[0].name}: observations would be perturbed twice; remove one of them"
            )
        if any(method != methods[0] for method in methods):
            raise ValueError(
                f"expected one adversary in the rollouts of a run, got those of {self.method.label}; give "
                "these teams the same method with the same settings, or only one of them such a method"
            )
        if (attack := self.attack) is not None and self.resources.runner != "fast":
            kept = "fresh" if attack.path == "none" else "rollout"
            for name, value, right in (
                ("rollouts.critic", attack.critic, "seen"),
                ("the method's directions", kept, "fresh"),
            ):
                if value != right:
                    raise ValueError(
                        f"expected {name} {right} with resources.runner {self.resources.runner}, got "
                        f"{value}: RLlib's episodes keep no path, and its critics read what agents saw; "
                        "change one of them"
                    )
        return self

    @model_validator(mode="after")
    def _asynchronous(self) -> RunConfig:
        if self.algorithm == "ppo":
            return self
        for key, value, right in (
            ("resources.runner", self.resources.runner, "stock"),
            ("model.critic", self.model.critic, "own"),
            ("model.lstm", self.model.lstm, None),
            ("observation_filter", self.observation_filter, "none"),
        ):
            if value != right:
                raise ValueError(
                    f"expected {key} {right} for algorithm {self.algorithm}, got {value}; change one of them"
                )
        if self.resources.env_runners == 0 or self.atla is not None:
            raise ValueError(
                f"expected resources.env_runners ≥ 1 and a method other than atla for algorithm "
                f"{self.algorithm}, got {self.resources.env_runners} and {self.method.label}; change them"
            )
        return self

    @model_validator(mode="after")
    def _batches(self) -> RunConfig:
        ppo, resources = self.ppo, self.resources
        copies = max(resources.env_runners, 1) * resources.copies
        if ppo.minibatch_size > ppo.train_batch_size:
            raise ValueError(
                f"expected ppo.minibatch_size ≤ ppo.train_batch_size = {ppo.train_batch_size}, "
                f"got {ppo.minibatch_size}; lower it"
            )
        if copies > ppo.train_batch_size:
            raise ValueError(
                f"expected at most ppo.train_batch_size = {ppo.train_batch_size} environment copies, got "
                f"{copies}; lower resources.env_runners or resources.envs_per_runner"
            )
        for name in ("train_batch_size", "minibatch_size"):
            if resources.learners > 1 and getattr(ppo, name) % resources.learners:
                raise ValueError(
                    f"expected ppo.{name} to be a multiple of resources.learners = {resources.learners}, "
                    f"got {getattr(ppo, name)}; change one of them"
                )
        return self


def make_config(data: Mapping[str, Any]) -> RunConfig:
    """A configuration from nested mappings, as a YAML file or a command line gives them.

    Raises:
        ValueError: one line per problem, naming the field and what would be right.
    """
    return validated(RunConfig, dict(data))


def load_config(path: str | Path) -> RunConfig:
    """The configuration in a YAML file.

    Raises:
        ValueError: no such file, not a YAML mapping, or one line per problem, naming the line of the file.
    """
    data, source = load_yaml(Path(path))
    return validated(RunConfig, data, where=source.where)
