"""Play a victim with and without attacks, over the same episodes, and say what it earned."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

from marl_aajr.adversaries.learned import FittedAttack
from marl_aajr.attacks import Attack, Transfer
from marl_aajr.core.numerics import one_torch_thread
from marl_aajr.core.seeds import Purpose, derived_seed, stream
from marl_aajr.evaluation.admission import (
    admitted,
    check_actions,
    check_budget,
    common_norm,
    named_agents,
    requested,
    settle_units,
)
from marl_aajr.evaluation.attack_run import prepare
from marl_aajr.evaluation.crosschecks import climb, ladder, objective_checks
from marl_aajr.evaluation.evaluator import Evaluator, Progress
from marl_aajr.evaluation.preflight import ObservationSampler, examine, report
from marl_aajr.evaluation.protocol import Protocol
from marl_aajr.evaluation.replacements import Replacement, admitted_controls, resolve_replacements
from marl_aajr.evaluation.result import ActionsResult, Check, Evaluation, PlayedEnvironment, Skipped
from marl_aajr.evaluation.return_checks import agent_checks, return_checks
from marl_aajr.evaluation.rows import play_rows
from marl_aajr.rollout.environments import EnvironmentSpec, make_batch, resolve
from marl_aajr.rollout.teams import choose_agents
from marl_aajr.victims import Victim
from marl_aajr.victims.spaces import check_match, check_victim

_PROBED = 256
"""Decisions of each policy on which the order of the attacks is checked."""


@one_torch_thread()
def evaluate(
    victim: Victim,
    environment: EnvironmentSpec | str | None = None,
    protocol: Protocol | None = None,
    *,
    surrogates: Mapping[str, Victim] | None = None,
    home: Path | None = None,
    on_progress: Callable[[Progress], None] | None = None,
    **settings: Any,
) -> Evaluation:
    """Evaluate a victim: frozen filters, and the same episodes and random numbers for every row.

    One team is attacked, all its agents at every step unless a budget says less; the others play the same
    policies on what is really there. "The return" is the attacked team's: the sum of its agents' undiscounted
    rewards. The worst attack of each ε, and the worst agents, are chosen on other episodes than those they
    are reported on. With attacks come the checks that say whether their returns are evidence: see
    `Evaluation.checks`.

    Torch has one thread until the end; `workers` take more cores. Unless their number is given there are
    none within a task of Ray, and else as many as there are cores, from when on what is left would take this
    process more than 20 seconds. Ray is started where it is not running.

    Args:
        victim: plays all agents.
        environment: a name, or with arguments `resolve` of it; None: the environment of its training.
        protocol: what is played; None: what `settings` say.
        surrogates: victims to compute `transfer` perturbations on, by a name for them.
        home: folder of the victim's run, in which learned adversaries are looked for and kept; None, or
            another environment than the victim's own: those that are trained are not kept.
        on_progress: told after every episode; after every row where workers play.
        settings: fields of `Protocol` by name, such as `suite`, `attacks`, `episodes` and `budget`.

    Raises:
        ValueError: numbers out of range, unknown or repeated attacks, attacks that the policies do not
            admit, a budget or an environment that the victim does not fit; all before anything is played.
            More steps in the budget than an episode has, once that has been seen.
        EnvironmentFault: the environment broke its contract.

    Example:
        >>> evaluate(Victim.load("runs/ppo/victim"), suite="quick").worst
        >>> evaluate(victim, "simple_spread_v3", attacks=[("pgd", 0.1)], episodes=10, budget="agents=1")
    """
    check_victim(victim)
    protocol = (protocol or Protocol()).changed(**settings)
    suite = protocol.settled()
    attacks, asked = requested(protocol, suite, surrogates=surrogates or {})
    suite = suite.changed(norm=common_norm(attacks) or suite.norm)
    spec = _environment(environment, victim)
    env = make_batch(spec, min(protocol.num_envs, suite.episodes))
    with closing(env):
        check_match(victim, env)
        check_actions(suite, victim)
        members = choose_agents(env.teams, protocol.team, named_agents(protocol.agents, suite.budget))
        check_budget(suite.budget, victim, members)
        chosen, skipped = admitted(attacks, victim, members, asked=asked)
        controls, left_out = admitted_controls(suite.controls, env, members=members)
        replaced = resolve_replacements(protocol.replace, env, members=members)
        replacements = tuple(dict.fromkeys((*controls, *replaced)))
        evaluator = Evaluator(
            victim=victim,
            spec=spec,
            env=env,
            agents=members,
            units=settle_units(suite.units, victim, members if chosen else ()),
            suite=suite,
            seed=protocol.seed,
            on_progress=on_progress,
            home=home,
        )
        with closing(evaluator):
            evaluator.expect(chosen, replacements=len(replacements))
            if chosen:
                evaluator.calibrate()
            return _result(
                evaluator,
                _all_fitted(evaluator, chosen),
                replacements,
                skipped=(*skipped, *left_out),
                workers=protocol.workers,
            )


def _environment(environment: EnvironmentSpec | str | None, victim: Victim) -> EnvironmentSpec:
    if environment is None:
        return resolve(victim.env_name, victim.env_kwargs)
    if isinstance(environment, str):
        return resolve(environment)
    if not isinstance(environment, EnvironmentSpec):
        raise ValueError(
            f"expected the environment's name or import path, such as my_package.my_env:make, got a "
            f"{type(environment).__name__}: each row is played on fresh copies"
        )
    return environment


def _result(
    evaluator: Evaluator,
    attacks: Sequence[Attack],
    replacements: Sequence[Replacement],
    *,
    skipped: tuple[Skipped, ...],
    workers: int | None,
) -> Evaluation:
    observed = ObservationSampler(stream(evaluator.seed, Purpose.PROBE))
    rows = play_rows(evaluator, attacks, replacements=replacements, observed=observed, workers=workers)
    suite = evaluator.suite
    return Evaluation(
        env=PlayedEnvironment(name=evaluator.spec.name, kwargs=dict(evaluator.spec.kwargs)),
        teams=dict(evaluator.env.teams),
        team=evaluator.team,
        agents=tuple(evaluator.agents),
        budget=suite.budget,
        suite=suite.name,
        units=evaluator.units,
        norm=suite.norm,
        seed=evaluator.seed,
        episodes=suite.episodes,
        selection_episodes=suite.selection_episodes,
        weakest_link=suite.weakest_link,
        num_envs=evaluator.env.num_envs,
        results=rows,
        skipped=skipped,
        checks=(
            *_side_checks(evaluator),
            *_checks(evaluator, attacks, rows, observed),
            *(check for row in rows for check in agent_checks(row)),
        ),
    )


def _side_checks(evaluator: Evaluator) -> list[Check]:
    """A warning where the team's agents play against each other: the sum of their returns says nothing."""
    if not evaluator.cancelled:
        return []
    return [
        Check(
            "teams",
            "warn",
            f"The rewards of team {evaluator.team!r} add up to 0 in every episode: its agents play against "
            "each other. Give the environment an attribute teams, a dict from agent to side, for returns "
            "that say something.",
        )
    ]


def _checks(
    evaluator: Evaluator,
    attacks: Sequence[Attack],
    rows: Sequence[ActionsResult],
    observed: ObservationSampler,
) -> list[Check]:
    if not attacks:
        return []
    victim, units = evaluator.victim, evaluator.units
    groups = [g for g in victim.alike(evaluator.env.possible_agents) if set(g) & set(evaluator.agents)]
    samples = observed.samples(groups, rows=_PROBED)
    by_size = {a.perturbations.epsilon: a.perturbations for a in attacks}
    largest = by_size[max(by_size)]
    seed = derived_seed(evaluator.seed, Purpose.PROBE)
    health = [
        examine(
            sample,
            victim,
            prepare(ladder(largest)["noise"], victim, sample.agent, units=units).perturbations,
            generator=stream(evaluator.seed, Purpose.PROBE),
        )
        for sample in samples
    ]
    transfers = list({a.source: a for a in attacks if isinstance(a, Transfer)}.values())
    found = report(health)
    if all(h.differentiable for h in health):
        gains = {
            epsilon: climb(samples, victim, ladder(by_size[epsilon], transfers), units=units, seed=seed)
            for epsilon in sorted(by_size)
        }
        found += objective_checks(gains)
    distributions = [victim.distribution(agent) for agent in evaluator.agents]
    return [*found, *(check for row in rows for check in return_checks(row, distributions))]


def _all_fitted(evaluator: Evaluator, attacks: Sequence[Attack]) -> tuple[Attack, ...]:
    """The attacks, those that are not ready fitted: once for all sizes, unless one is for one size only.

    Where the environment is not the victim's own, its run neither has what fits nor keeps it.
    """
    learned: dict[Attack, Attack] = {}
    found: list[Attack] = []
    for attack in attacks:
        if attack.ready or not isinstance(attack, FittedAttack):
            found.append(attack)
            continue
        key = attack if attack.per_size else attack.at(1.0)
        if key not in learned:
            evaluator.tell(f"fitting {attack.name}")
            learned[key] = _fitted(evaluator, attack)
        found.append(learned[key] if attack.per_size else learned[key].at(attack.perturbations.epsilon))
    return tuple(found)


def _fitted(evaluator: Evaluator, attack: FittedAttack) -> Attack:
    victim, spec, home = evaluator.victim, evaluator.spec, evaluator.home
    own = resolve(victim.env_name, victim.env_kwargs) if victim.env_name else None
    if own is None or (own.name, dict(own.kwargs)) != (spec.name, dict(spec.kwargs)):
        victim, home = replace(victim, env_name=spec.name, env_kwargs=dict(spec.kwargs)), None
    seed = derived_seed(evaluator.seed, Purpose.FIT)
    return attack.fit(
        victim, evaluator.env, agents=evaluator.agents, seed=seed, units=evaluator.units, home=home
    )
