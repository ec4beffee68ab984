"""The options of `train` that stand for a key of the configuration: name, help, and where the value goes.

The configuration checks the values and knows the defaults; a test compares the ones shown here with it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import yaml

RUN, NETWORK, RAY = "Run", "Networks", "Ray resources"
ROBUST = "Robustness: settings of the method (defaults of aajr; any other by --set method.NAME=VALUE)"


def number_or_text(text: str) -> Any:
    """A YAML value; `1e6`, which PyYAML takes for text, is a number too."""
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        return text
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return value
    return value


def widths(text: str) -> Any:
    """`64,64` as a list."""
    return number_or_text(f"[{text}]")


def fractions(text: str) -> Any:
    """`0.1,0.4` as a list, `none` as None."""
    return None if text == "none" else number_or_text(f"[{text}]")


@dataclass(frozen=True)
class Setting:
    """One option.

    Attributes:
        flag: as typed, `--env-steps`.
        key: where its value goes in the configuration, `env_steps`.
        metavar: what the help shows for the value.
        panel: heading of the help.
        help: one sentence, with units.
        default: as the help shows it; None where there is none.
        read: text to value.
    """

    flag: str
    key: str
    metavar: str
    panel: str
    help: str
    default: str | None = None
    read: Callable[[str], Any] = number_or_text

    @property
    def name(self) -> str:
        """The parameter's name in Python."""
        return self.flag.removeprefix("--").replace("-", "_")


SETTINGS = (
    Setting(
        "--env",
        "env.name",
        "NAME",
        RUN,
        help="Environment: a name of [b]list envs[/b] or an import path, my_package.my_env:make. Those of "
        "marl_aajr.envs are mpe2's, batched in torch: the same games at several times the speed. "
        "Its arguments: --set env.kwargs.N=5.",
        read=str,
    ),
    Setting(
        "--method",
        "method.name",
        "NAME",
        RUN,
        help="How the policy is made robust: a name of [b]list methods[/b].",
        default="none",
        read=str,
    ),
    Setting(
        "--algorithm",
        "algorithm",
        "ppo|appo|impala",
        RUN,
        help="Asynchronous ones sample while they learn: faster with many env runners, not repeatable, and "
        "with --runner stock.",
        default="ppo",
        read=str,
    ),
    Setting(
        "--seed",
        "seed",
        "INT",
        RUN,
        help="Seed of everything random: same seed, same run.",
        default="0",
    ),
    Setting(
        "--env-steps",
        "env_steps",
        "INT",
        RUN,
        help="Length of the run, in environment steps summed over the copies.",
        default="1000000",
    ),
    Setting(
        "--checkpoint-every",
        "checkpoint_every",
        "INT",
        RUN,
        help="Iterations between the checkpoints that a run can resume from.",
        default="10",
    ),
    Setting(
        "--coefficient",
        "method.coefficient",
        "FLOAT",
        ROBUST,
        help="λ, weight of the penalty: a number or a schedule, '\\[\\[env_step, value], ...]'.",
        default="0.001",
    ),
    Setting(
        "--epsilon",
        "method.epsilon",
        "FLOAT",
        ROBUST,
        help="Radius trained against, in the units that the network sees (atla: of the environment): "
        "a number or a schedule.",
        default="0.1",
    ),
    Setting(
        "--inner-steps",
        "method.steps",
        "INT",
        ROBUST,
        help="K, ascent steps of the inner adversary.",
        default="3",
    ),
    Setting(
        "--step-size",
        "method.step_size",
        "FLOAT",
        ROBUST,
        help="Size of an ascent step as a fraction of ε, or auto.",
        default="0.5",
    ),
    Setting(
        "--adversarial-weight",
        "method.adversarial_weight",
        "FLOAT",
        ROBUST,
        help="κ in \\[0, 1], share of the policy loss at the perturbed observation: number or schedule.",
        default="0.0",
    ),
    Setting(
        "--output-map",
        "method.output",
        "NAME",
        ROBUST,
        help="Output whose sensitivity counts: logits, mean, probs or fisher.",
        default="logits",
        read=str,
    ),
    Setting(
        "--form",
        "method.form",
        "NAME",
        ROBUST,
        help="How ‖J u‖ is penalised: squared, hinge or constraint.",
        default="squared",
        read=str,
    ),
    Setting(
        "--gain-bound",
        "method.gain_bound",
        "FLOAT",
        ROBUST,
        help="γ, bound on ‖J u‖ of the forms hinge and constraint.",
    ),
    Setting(
        "--objective",
        "method.objective",
        "NAME",
        ROBUST,
        help="What the inner adversary maximises: kl, surrogate, margin or value.",
        default="kl",
        read=str,
    ),
    Setting(
        "--norm",
        "method.norm",
        "NAME",
        ROBUST,
        help="Norm of the radius: linf or l2.",
        default="linf",
        read=str,
    ),
    Setting(
        "--sample-fraction",
        "method.sample_fraction",
        "FLOAT",
        ROBUST,
        help="Share of each minibatch that is regularised, above 0 up to 1.",
        default="0.1",
    ),
    Setting(
        "--ramp",
        "method.ramp",
        "A,B",
        ROBUST,
        help="λ and κ rise from 0 between these fractions of the run; none: full from the start.",
        default="0.1,0.4",
        read=fractions,
    ),
    Setting(
        "--policies",
        "policies",
        "shared|independent",
        NETWORK,
        help="One network for all alike agents of a team, or one for each agent.",
        default="shared",
        read=str,
    ),
    Setting(
        "--hidden",
        "model.hidden",
        "INT,INT,...",
        NETWORK,
        help="Widths of the hidden layers.",
        default="64,64",
        read=widths,
    ),
    Setting(
        "--activation",
        "model.activation",
        "NAME",
        NETWORK,
        help="Between the layers: tanh, relu or silu.",
        default="tanh",
        read=str,
    ),
    Setting(
        "--critic",
        "model.critic",
        "own|joint|state",
        NETWORK,
        help="What the critic reads: the agent's own observation; beside it those of all agents, or the "
        "environment's state (MAPPO).",
        default="own",
        read=str,
    ),
    Setting(
        "--observation-filter",
        "observation_filter",
        "none|mean_std",
        NETWORK,
        help="Normalise observations by their running mean and deviation.",
        default="none",
        read=str,
    ),
    Setting(
        "--env-runners",
        "resources.env_runners",
        "INT",
        RAY,
        help="Processes that sample; 0: the main process does.",
        default="0",
    ),
    Setting(
        "--envs-per-runner",
        "resources.envs_per_runner",
        "INT",
        RAY,
        help="Environment copies in each of them; 160 in all if not given.",
    ),
    Setting(
        "--runner",
        "resources.runner",
        "fast|stock",
        RAY,
        help="Batches of copies and a lean learner, or RLlib's own env runner and learner.",
        default="fast",
        read=str,
    ),
    Setting(
        "--learners",
        "resources.learners",
        "INT",
        RAY,
        help="Processes that learn; 0: the main process does.",
        default="0",
    ),
    Setting(
        "--gpus-per-env-runner",
        "resources.gpus_per_env_runner",
        "FLOAT",
        RAY,
        help="GPUs of each sampling process.",
        default="0.0",
    ),
    Setting(
        "--gpus-per-learner",
        "resources.gpus_per_learner",
        "FLOAT",
        RAY,
        help="GPUs of each learning process; of the main one with --learners 0.",
        default="0.0",
    ),
    Setting(
        "--address",
        "resources.address",
        "HOST:PORT",
        RAY,
        help="A running Ray cluster, or auto; else RAY_ADDRESS, else a local one.",
        read=str,
    ),
)
"""In the order of the help."""
