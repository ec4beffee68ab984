"""The protocol of an evaluation: a request, and the suites that complete it.

Protocol   a request; None is left to the suite. Shared by the command line, Python and studies.
Suite      a complete protocol: a named one of `suites.yaml` or of a file, or `Protocol.settled()`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from importlib import resources
from math import ceil
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import AfterValidator, InstanceOf, field_validator, model_validator

from marl_aajr.attacks import Attack, Fault
from marl_aajr.core.checks import one_of
from marl_aajr.core.threat import SetNorm
from marl_aajr.evaluation.attack_entries import Attacks
from marl_aajr.evaluation.budget import Budget, ReadBudget, as_budget
from marl_aajr.evaluation.outcomes import Actions, Control, Units
from marl_aajr.evaluation.replacements import Replacement
from marl_aajr.evaluation.variations import read_variations
from marl_aajr.rollout.disturbances import read_disturbances
from marl_aajr.training.fields import AgentNames, Count, Positive, Section, Whole, once, some, validated
from marl_aajr.training.files import Key, load_yaml
from marl_aajr.victims.noise import Smoothing, as_smoothing

_FILE = "suites.yaml"
_REQUIRED = ("summary", "episodes", "selection_episodes", "actions", "units", "epsilons", "attacks")

SmoothingText = Annotated[str | InstanceOf[Smoothing], AfterValidator(as_smoothing)]
Sizes = Annotated[tuple[Positive, ...], AfterValidator(once)]
ChannelNames = Annotated[tuple[str, ...], AfterValidator(once)]
Variations = Annotated[tuple[str, ...], AfterValidator(read_variations)]
Disturbances = Annotated[tuple[str, ...], AfterValidator(read_disturbances)]
ActionKinds = Annotated[tuple[Actions, ...], AfterValidator(some), AfterValidator(once)]


class Suite(Section):
    """A complete protocol; `suites.yaml` says what the fields mean, and `Protocol` what they can be.

    Attributes:
        name: its name; empty: it has none.
        summary: one line about it.
        episodes: reported episodes, for each row.
        selection_episodes: others, on which the worst attack is chosen; 0: none is.
        actions: greedy, sampled or both.
        units: units of ε; None: not said, which is no matter without an observation filter.
        norm: norm of ε.
        channels: channels of observations that the attacks are held to; empty: all.
        budget: budget of the adversary.
        weakest_link: whether the worst attack of each size is tried on each agent alone.
        controls: other players in the place of each attacked agent and of the whole team, `random` or `idle`.
        opponents: `random`, `idle`, or folders of runs and victims, as in `evaluate`.
        vary: arguments of the environment over several values, as in `Protocol`.
        disturb: disturbances of actions, as in `Protocol`.
        epsilons: sizes of all attacks.
        attacks: the attacks.
    """

    name: str = ""
    summary: str = ""
    episodes: Count = 100
    selection_episodes: Whole = 0
    actions: ActionKinds = ("greedy",)
    units: Units | None = None
    norm: SetNorm = "linf"
    channels: ChannelNames = ()
    budget: ReadBudget = Budget()
    weakest_link: bool = False
    controls: Annotated[tuple[Control, ...], AfterValidator(once)] = ()
    opponents: Annotated[tuple[str, ...], AfterValidator(once)] = ()
    vary: Variations = ()
    disturb: Disturbances = ()
    epsilons: Sizes = ()
    attacks: Attacks = ()

    def ranks(self, attack: Attack) -> bool:
        """Whether the worst of its size is chosen from it: it is a ball, and on the suite's channels."""
        held = attack.perturbations.channels or ()
        return attack.sized and not isinstance(attack, Fault) and held == self.channels

    def calibrated(self, agents: Sequence[str]) -> bool:
        """Whether something rests on how the selection episodes go without an attack."""
        return self.budget.steps is not None or self.budget.worst is not None or self.alone(agents)

    def alone(self, agents: Sequence[str]) -> bool:
        """Whether the worst attacks are to be tried on each of these agents alone, and have not been."""
        return self.weakest_link and len(agents) > 1 and self.budget.worst != 1


class Protocol(Section):
    """The request for an evaluation; the suite decides each field that is None.

    Attributes:
        suite: suite: `quick` (seconds), `standard`, `full`, `threats`, or a YAML file; None: `attacks` only.
            In Python also a `Suite`.
        attacks: names of `list attacks`, beside or instead of the suite's. With settings an attack is
            `{attack: NAME, setting: value}`, in Python also an `Attack`, or a pair of one of these and its
            size. They are refused where a victim does not admit them, while those of a suite are left out.
        epsilons: sizes of the attacks; None: the suite's.
        episodes: episodes without attack, and for each attack and size; None: the suite's, or 100.
        selection_episodes: other episodes, on which the worst attack of each size is chosen; None: in the
            suite's proportion to `episodes`, or 0, where none is. Where agents or steps must be found on
            them, and nobody says how many, they are half as many as `episodes`.
        actions: how actions are taken; None: the suite's, or greedy.
        units: units of epsilon: the environment's, or those behind the observation filter; None: the suite's.
        norm: norm of epsilon: in `l2` it is the length of the whole perturbation, which for d features of the
            size e is e√d; None: the suite's, or linf.
        channels: channels of observations that the attacks are held to, such as `messages`, as the
            environment or `env.channels` names them; None: the suite's, or all.
        budget: budget of the adversary: `agents=K`, the worst K of the team, found on other episodes, or
            `agents=A+B`, these; `steps=M`, M steps of each episode, `timing=random` or `strategic` (where the
            agents prefer an action most); `scale=A:0.5+B:2`, half of epsilon for A, twice for B; learned
            adversaries, trained without steps and scale, do not know them; None: the suite's, or everybody
            at every step. See `marl_aajr.evaluation.budget`.
        weakest_link: try the worst attack of each size on each agent alone as well, on the selection
            episodes; None: as the suite says.
        seed: seed of the episodes and of the attacks.
        team: team that is attacked, and whose return is reported; None: the only one, or the largest.
        agents: agents of the team that are attacked; None: all.
        replace: agents that do not play as the victim does: `random` or `idle` ones in the place of each
            attacked agent in turn, or of those named, together: `random:agent_0,agent_1`. Each is a row of
            its own. In Python also `Replacement` values.
        vary: arguments of the environment to play with other values, clean: `kwargs.mass=0.5,1,2`, or
            `kwargs.mass=0.5:2:4` for four values; each is a row, on the same seeds; empty: the suite's.
        smoothing: let the team vote under Gaussian noise: `SIGMA:SAMPLES`, σ in the units of the environment
            and votes for each decision, such as `0.1:100` (randomised smoothing); None: it plays as it is.
            Each pass through its networks costs as many.
        disturb: disturbances of the attacked agents' actions: `replace=0.1` (another action with probability
            0.1: PR-MDP), `mix=0.1` (NR-MDP), `noise=0.2`, `gradient=0.2`; by chance, or by an adversary:
            `replace=0.1,by=RUN`; see `marl_aajr.rollout.disturbances`; empty: the suite's.
        num_envs: copies played side by side. Of E copies episode i is number i // E of copy i mod E, and is
            seeded as such, so compare evaluations of the same E only.
        workers: processes that share the rows, this one among them; None: one a core where it takes long.
            Then, within a task of Ray, the process plays alone; elsewhere Ray is started where it is not
            running, as soon as the rest would take more than 20 seconds.
    """

    suite: str | InstanceOf[Suite] | None = None
    attacks: Attacks = ()
    epsilons: Sizes | None = None
    episodes: Count | None = None
    selection_episodes: Whole | None = None
    actions: ActionKinds | None = None
    units: Units | None = None
    norm: SetNorm | None = None
    channels: ChannelNames | None = None
    budget: str | InstanceOf[Budget] | None = None
    weakest_link: bool | None = None
    seed: Whole = 0
    team: str | None = None
    agents: AgentNames | None = None
    replace: tuple[str | InstanceOf[Replacement], ...] = ()
    vary: Variations = ()
    smoothing: SmoothingText | None = None
    disturb: Disturbances = ()
    num_envs: Count = 50
    workers: Count | None = None

    @field_validator("suite", mode="before")
    @classmethod
    def _suite_from_a_path(cls, value: Any) -> Any:
        return str(value) if isinstance(value, Path) else value

    @model_validator(mode="after")
    def _epsilons_are_used(self) -> Protocol:
        unsized = [entry for entry in self.attacks if entry.sized and entry.epsilon is None]
        if self.suite is None and bool(unsized) != bool(self.epsilons):
            bare = ", ".join(entry.name for entry in self.attacks if not entry.sized)
            raise ValueError(
                f"expected attacks and epsilons, or neither, got attacks {[entry.name for entry in unsized]} "
                f"and epsilons {list(self.epsilons or ())}; "
                f"{f'drop epsilon: it is not for {bare}, which have no size' if bare else 'name both'}"
            )
        return self

    def settled(self, *, opponents: int = 0) -> Suite:
        """The suite with everything else that was asked for; `attacks` aside.

        Against several opponents there are selection episodes, on which the worst of them is chosen.

        Raises:
            ValueError: no such suite, or something to be found without selection episodes to find it on.
        """
        base = Suite() if self.suite is None else load_suite(self.suite)
        given = {name: getattr(self, name) for name in Suite.model_fields if name in type(self).model_fields}
        del given["attacks"]
        given["budget"] = None if self.budget is None else as_budget(self.budget)
        settled = base.model_copy(
            update={name: value for name, value in given.items() if value not in (None, ())}
        )
        selection = self._selection(base, settled, several=opponents > 1)
        return settled.model_copy(update={"selection_episodes": selection})

    def _selection(self, base: Suite, settled: Suite, *, several: bool) -> int:
        """The number of selection episodes: in the suite's proportion, else half where they are needed."""
        what = [
            *(["the worst agents"] if settled.budget.worst is not None else []),
            *(["when to attack"] if settled.budget.steps is not None else []),
            *(["the weakest link"] if settled.weakest_link else []),
            *(["the worst opponent"] if several else []),
        ]
        if self.selection_episodes is None:
            of_suite = ceil(base.selection_episodes * settled.episodes / base.episodes)
            return of_suite or (ceil(settled.episodes / 2) if what else 0)
        if what and not self.selection_episodes:
            raise ValueError(
                f"expected selection_episodes ≥ 1 to find out {what[0]} on, got 0; leave it out for half as "
                "many as the others"
            )
        return self.selection_episodes


def load_suite(suite: str | Path | Suite) -> Suite:
    """A suite by name, or from a YAML file of one suite's fields.

    Raises:
        ValueError: no such suite or file, or one that is not valid; the message names the field.
    """
    if isinstance(suite, Suite):
        return suite
    path = Path(suite)
    if path.suffix in (".yaml", ".yml"):
        fields, source = load_yaml(path)
        return _suite_of(path.stem, fields, source.where)
    one_of("a suite", str(suite), builtin_suites())
    return builtin_suites()[str(suite)]


@cache
def builtin_suites() -> dict[str, Suite]:
    """The suites of `suites.yaml`, by name."""
    text = resources.files("marl_aajr.evaluation").joinpath(_FILE).read_text("utf-8")
    return {name: _suite_of(name, fields, lambda _: _FILE) for name, fields in yaml.safe_load(text).items()}


def _suite_of(name: str, fields: Mapping[str, Any], where: Callable[[Key], str]) -> Suite:
    for field in _REQUIRED:
        if not fields.get(field) and fields.get(field) != 0:
            raise ValueError(f"{where((field,))}: {field}: missing or empty; add it")
    return validated(Suite, {**fields, "name": name}, where=where)
