"""What is played: a suite and what was asked for beside it, settled before anything runs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import isfinite
from pathlib import Path
from typing import Any, get_args

from marl_aajr.attacks import Attack, attack_class, make_attack
from marl_aajr.attacks.transfer import Transfer
from marl_aajr.core.threat import Norm
from marl_aajr.core.values import one_of
from marl_aajr.evaluation.budget import Budget, as_budget, trials
from marl_aajr.evaluation.suites import Actions, Control, Suite, Units, load_suite
from marl_aajr.victims import Victim

SELECTION_EPISODES = 50
"""Where something must be found on them, and nobody said how many."""

Request = tuple[str | Attack, float]
"""An attack (by name, or a value whose radius is replaced) and its epsilon."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What will be played.

    Attributes:
        suite: the suite's name; empty where there is none.
        attacks: by attack, then radius.
        asked: those of them that are not the suite's: they are refused, not left out, where they do not fit.
        episodes: reported, for each row.
        selection_episodes: others, on which the worst attack is chosen; 0: none is.
        actions: greedy, sampled or both.
        units: of ε; None: not said, which is no matter without an observation filter.
        norm: of ε.
        budget: whom the adversary may attack, in how many steps, and how much each of them.
        weakest_link: whether the worst attack of each size is tried on each agent alone.
        controls: what else plays in the place of each attacked agent, `"random"` or `"idle"`.
    """

    suite: str
    attacks: tuple[Attack, ...]
    asked: tuple[Attack, ...]
    episodes: int
    selection_episodes: int
    actions: tuple[Actions, ...]
    units: Units | None
    norm: Norm
    budget: Budget
    weakest_link: bool
    controls: tuple[Control, ...]

    def trials(self, agents: Sequence[str]) -> int:
        """How many subsets of these agents each attack is tried on."""
        return 0 if self.budget.worst is None else trials(agents, self.budget.worst)

    def calibrated(self, agents: Sequence[str]) -> bool:
        """Whether something rests on how the selection episodes go without an attack."""
        return self.budget.steps is not None or self.budget.worst is not None or self.alone(agents)

    def alone(self, agents: Sequence[str]) -> bool:
        """Whether the worst attacks are to be tried on each of these agents alone, and have not been."""
        return self.weakest_link and len(agents) > 1 and self.budget.worst != 1


def make_plan(
    suite: str | Path | Suite | None,
    attacks: Sequence[Request],
    *,
    epsilons: Sequence[float] | None,
    episodes: int | None,
    selection_episodes: int | None,
    actions: Sequence[Actions] | None,
    units: Units | None,
    norm: Norm | None,
    budget: Budget | str | None,
    weakest_link: bool | None,
    surrogates: Mapping[str, Victim],
) -> Plan:
    """Settle what a suite leaves open, and what was asked for beside it.

    Raises:
        ValueError: numbers out of range, unknown or repeated names, or something to be found without
            selection episodes to find it on.
    """
    chosen = None if suite is None else load_suite(suite)
    entries = _entries(chosen, epsilons, norm)
    episodes = episodes if episodes is not None else (100 if chosen is None else chosen.episodes)
    positive_integer("episodes", episodes)
    actions = actions or (("greedy",) if chosen is None else chosen.actions)
    for kind in actions:
        one_of("actions", kind, ("greedy", "sampled"))
    units = units or (None if chosen is None else chosen.units)
    if units is not None:
        one_of("units", units, ("raw", "network"))
    settled = as_budget(budget if budget is not None or chosen is None else chosen.budget)
    if weakest_link is None:
        weakest_link = chosen is not None and chosen.weakest_link
    named = norm or (None if chosen is None else chosen.norm)
    found = resolve_attacks([*entries, *attacks], norm=norm, names=named or "linf")
    return Plan(
        suite="" if chosen is None else chosen.name,
        attacks=_with_surrogates(found, surrogates),
        asked=_with_surrogates(found[len(entries) :], surrogates),
        episodes=episodes,
        selection_episodes=_selection(selection_episodes, chosen, settled, weakest_link=weakest_link),
        actions=tuple(dict.fromkeys(actions)),
        units=units,
        norm=_one_norm(found) or named or "linf",
        budget=settled,
        weakest_link=weakest_link,
        controls=() if chosen is None else chosen.controls,
    )


def _entries(suite: Suite | None, epsilons: Sequence[float] | None, norm: Norm | None) -> list[Request]:
    """The suite's attacks, at its sizes or at those given instead."""
    if suite is None:
        if epsilons is not None:
            raise ValueError("expected epsilons with a suite, got no suite; give each attack its own epsilon")
        return []
    sizes = suite.epsilons if epsilons is None else epsilons
    _check_epsilons(suite.name, sizes)
    return [
        (entry.at(epsilon, norm=norm or suite.norm), epsilon) for entry in suite.attacks for epsilon in sizes
    ]


def _selection(asked: int | None, suite: Suite | None, budget: Budget, *, weakest_link: bool) -> int:
    """How many selection episodes; enough where something must be found on them and nobody said."""
    needs = {
        "the worst agents": budget.worst is not None,
        "when to attack": budget.steps is not None,
        "the weakest link": weakest_link,
    }
    what = [name for name, needed in needs.items() if needed]
    if asked is None:
        asked = 0 if suite is None else suite.selection_episodes
        return asked or (SELECTION_EPISODES if what else 0)
    if asked:
        positive_integer("selection_episodes", asked)
    elif what:
        raise ValueError(
            f"expected selection_episodes ≥ 1 to find out {what[0]} on, got 0; leave it out for "
            f"{SELECTION_EPISODES}"
        )
    return asked


def _one_norm(attacks: Sequence[Attack]) -> Norm | None:
    norms = {attack.perturbations.norm: attack for attack in attacks}
    if len(norms) > 1:
        raise ValueError(
            "expected attacks of one norm, whose sizes can be compared, got "
            + " and ".join(f"{attack.name} in {norm}" for norm, attack in norms.items())
            + "; evaluate once for each norm"
        )
    return next(iter(norms), None)


def _check_epsilons(name: str, epsilons: Sequence[float]) -> None:
    for epsilon in epsilons:
        if not (isinstance(epsilon, int | float) and isfinite(epsilon) and epsilon > 0):
            raise ValueError(f"expected a finite epsilon > 0 for the suite {name!r}, got {epsilon!r}")
    if len(set(epsilons)) < len(epsilons):
        raise ValueError(f"expected each epsilon once, got {list(epsilons)}")


def _with_surrogates(attacks: Sequence[Attack], surrogates: Mapping[str, Victim]) -> tuple[Attack, ...]:
    """Transfers without a surrogate of their own become one for each that is there."""
    found: list[Attack] = []
    for attack in attacks:
        if isinstance(attack, Transfer) and attack.surrogate is None and surrogates:
            found += [replace(attack, surrogate=v, source=name) for name, v in surrogates.items()]
        else:
            found.append(attack)
    return tuple(found)


def resolve_attacks(
    requests: Sequence[Request], *, norm: Norm | None = None, names: Norm = "linf"
) -> tuple[Attack, ...]:
    """The attacks that were asked for.

    Args:
        requests: by name, or as values.
        norm: of all of them; None: values keep theirs.
        names: the norm of those that are named.

    Raises:
        ValueError: unknown name, an epsilon that is no finite number > 0, or the same one twice.
    """
    one_of("norm", names, get_args(Norm))
    attacks = tuple(_resolve(attack, epsilon, norm, names) for attack, epsilon in requests)
    for attack, times in Counter(attacks).items():
        if times > 1:
            raise ValueError(
                f"expected each attack and epsilon once, got {attack.name} at "
                f"{attack.perturbations.epsilon:g} {times} times; drop the repetition"
            )
    return attacks


def positive_integer(name: str, value: Any) -> None:
    """Raise `ValueError` unless `value` is an integer ≥ 1."""
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(f"expected {name} to be an integer ≥ 1, got {value!r}")


def check_seed(seed: Any) -> None:
    """Raise `ValueError` unless `seed` is an integer ≥ 0."""
    if not isinstance(seed, int) or isinstance(seed, bool) or seed < 0:
        raise ValueError(f"expected seed to be an integer ≥ 0, got {seed!r}")


def _resolve(attack: str | Attack, epsilon: float, norm: Norm | None, names: Norm) -> Attack:
    name = attack if isinstance(attack, str) else attack.name
    if isinstance(attack, str):
        attack_class(attack)
    number = isinstance(epsilon, int | float) and not isinstance(epsilon, bool)
    if not (number and isfinite(epsilon) and epsilon > 0):
        raise ValueError(f"expected a finite epsilon > 0 for {name}, got {epsilon!r}")
    if isinstance(attack, str):
        return make_attack(attack, epsilon=epsilon, norm=names)
    if norm is not None and norm != attack.perturbations.norm:
        attack = replace(attack, perturbations=replace(attack.perturbations, norm=norm))
    return attack.at(epsilon)
