"""Play a victim with and without attacks, over the same episodes, and say what it earned."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from marl_aajr.attacks import Attack
from marl_aajr.core.seeds import Purpose, one_torch_thread, stream
from marl_aajr.evaluation import admission, sources
from marl_aajr.evaluation.best_responses import response_checks
from marl_aajr.evaluation.budget import named_agents
from marl_aajr.evaluation.company import (
    Companion,
    Company,
    Judged,
    company_notes,
    read_company,
    resolve_opponents,
    resolve_partners,
)
from marl_aajr.evaluation.disturbed_rows import DisturbedRow, admitted_disturbances, disturbance_checks
from marl_aajr.evaluation.evaluator import Evaluator, Progress
from marl_aajr.evaluation.order_checks import agent_checks, return_checks
from marl_aajr.evaluation.preflight import ObservationSampler, attack_checks
from marl_aajr.evaluation.protocol import Protocol, Suite, load_suite
from marl_aajr.evaluation.replacements import Replacement, admitted_controls, resolve_replacements
from marl_aajr.evaluation.result import ActionsResult, Check, Evaluation, PlayedEnvironment, Skipped
from marl_aajr.evaluation.rows import play_rows
from marl_aajr.evaluation.variations import admitted_variations
from marl_aajr.evaluation.word_checks import embedding_checks, word_return_checks
from marl_aajr.rollout.environments import EnvironmentSpec, make_batch, resolve
from marl_aajr.rollout.teams import SAID, announce, choose_agents
from marl_aajr.training.files import check_out
from marl_aajr.training.run_directory import RunDirectory
from marl_aajr.victims import SmoothedVictim, Victim, smoothed
from marl_aajr.victims.spaces import check_match, check_victim

Folders = Sequence[Path | str] | Mapping[str, Path | str]
"""Folders, named by the keys of a mapping, else by their own names."""


@one_torch_thread()
def evaluate(
    victim: Victim | Path | str,
    env: EnvironmentSpec | str | None = None,
    protocol: Protocol | None = None,
    *,
    env_kwargs: Mapping[str, Any] | None = None,
    surrogates: Folders | Mapping[str, Victim] = (),
    adversaries: Folders = (),
    opponents: Company = (),
    partners: Company = (),
    out: Path | str | None = None,
    on_progress: Callable[[Progress], None] | None = None,
    **settings: Any,
) -> Evaluation:
    """Evaluate a victim: frozen filters, and the same episodes and random numbers for every row.

    One team is attacked, all its agents at every step unless a budget says less; the others play the same
    policies on what is really there, then those of the opponents: what is played against the victim's own
    side is played against each of them. "The return" is the attacked team's: the sum of its agents'
    undiscounted rewards. The worst attack of each ε, and the worst agents, are chosen on other episodes than
    those they are reported on. Whether the returns are evidence is said by `Evaluation.checks`.

    The result of a folder is written at the end and in one step: to `RUN/evaluations`, or for saved victims
    and checkpoints to a folder beside theirs, `…-evaluations`; the same evaluation again replaces its file.
    Adversaries that a run's evaluation trains are kept in the run. A run that was trained under attack is
    attacked by that, too, beside other attacks (`training_attack`). Torch has one thread until the end.

    Args:
        victim: plays all agents; or the folder of a finished run, a saved victim or an RLlib checkpoint.
        env: the environment, by a name or as `resolve` gives it; None: that of the victim's training, which
            a checkpoint does not know. A run has its own.
        protocol: what is played; None: what `settings` say.
        env_kwargs: arguments of an environment that is named; for any, `env.teams` and `env.channels`.
        surrogates: victims or folders of victims, to compute `transfer` perturbations on.
        adversaries: runs of trained adversaries: traitors and opponents are added to `replace`, observation
            adversaries to `attacks`, at the size they were trained for.
        opponents: players of the other teams, the same for every team that is to be compared:
            `{name: folder or victim}`, or `random`, `idle` and folders, `RUN:TEAM` for one team only; the
            result has a block of rows for each. Of none, those of the suite. See `pool_scores`.
        partners: victims or folders that play for a member of the team: of `RUN` in the place of each
            attacked agent in turn, of `RUN:agent_0,agent_1` of these together. Each is a row in
            `adversarial_agents`, beside random and idle agents in the same place.
        out: a file to write the result to; None: see above, and of a `Victim` nothing is written.
        on_progress: told after every episode; after every row where workers play.
        settings: fields of `Protocol` by name, such as `suite`, `attacks`, `episodes` and `budget`.

    Raises:
        ValueError: nothing of the kind in a folder, an unfinished run, or anything that the victim does not
            admit; all before anything is played, but for more steps in the budget than an episode has.
        EnvironmentFault: the environment broke its contract.

    Example:
        >>> evaluate("runs/ppo", suite="quick").worst
        >>> evaluate(victim, "simple_spread_v3", attacks=[("pgd", 0.1)], episodes=10, budget="agents=1")
    """
    check_out(out)
    protocol = (protocol or Protocol()).changed(**settings)
    folder = Path(victim) if isinstance(victim, Path | str) else None
    player, spec, given = player_of(victim, env, env_kwargs)
    others = {name: _surrogate(other, given) for name, other in _named(surrogates).items()}
    base = load_suite(protocol.suite).opponents if protocol.suite else ()
    company = read_company(opponents or base, given), read_company(partners, given)
    protocol, notes = sources.with_adversaries(
        protocol, _named(adversaries), against=player, spec=spec, at=folder or "VICTIM"
    )
    home = folder if folder is not None and RunDirectory(folder).is_run else None
    found = _played(player, spec, protocol, others, company, home=home, on_progress=on_progress)
    found = found.model_copy(update={"checks": (*notes, *found.checks)})
    sources.write(found, out, folder)
    return found


def player_of(
    victim: Victim | Path | str, env: Any, kwargs: Mapping[str, Any] | None
) -> tuple[Victim, EnvironmentSpec, EnvironmentSpec | None]:
    """The victim that is meant, its environment, and that again where it was given; as in `evaluate`."""
    if env is None and set(kwargs or ()) - {*SAID}:
        raise ValueError(
            f"expected the name of an environment with its arguments {dict(kwargs or {})}, got none; name "
            "it: --env NAME (in Python env=)"
        )
    given = None if env is None else resolve(env, kwargs)
    player = _victim(victim, given)
    if given is None and not player.env_name:
        raise ValueError(
            "expected the environment of a victim that does not name it, got none; name it: env=NAME (on the "
            "command line --env NAME)"
        )
    return player, given or resolve(player.env_name, {**player.env_kwargs, **(kwargs or {})}), given


def _victim(victim: Victim | Path | str, env: EnvironmentSpec | None) -> Victim:
    if isinstance(victim, Path | str):
        return sources.find_victim(Path(victim), env)
    check_victim(victim)
    return victim


def _surrogate(victim: Victim | Path | str, env: EnvironmentSpec | None) -> Victim:
    """Another victim, of the same environment, which a run knows by itself."""
    knows = isinstance(victim, Path | str) and RunDirectory(victim).is_run
    return _victim(victim, None if knows else env)


def _named(folders: Folders | Mapping[str, Victim]) -> dict[str, Any]:
    """Folders by the names that were given, or by their own, or by their paths where two have the same."""
    if isinstance(folders, Mapping):
        return dict(folders)
    names = [Path(folder).resolve().name for folder in folders]
    return {
        name if names.count(name) == 1 else str(folder): folder
        for name, folder in zip(names, folders, strict=True)
    }


def _played(
    victim: Victim,
    spec: EnvironmentSpec,
    protocol: Protocol,
    surrogates: Mapping[str, Victim],
    company: tuple[list[Companion], list[Companion]],
    *,
    home: Path | None,
    on_progress: Callable[[Progress], None] | None,
) -> Evaluation:
    suite = protocol.settled(opponents=len(company[0]))
    attacks, asked = admission.requested(protocol, suite, surrogates=surrogates)
    suite = admission.common_set(attacks, suite)
    with closing(make_batch(spec, min(protocol.num_envs, suite.episodes), flat=True)) as env:
        check_match(victim, env)
        members = choose_agents(env.teams, protocol.team, named_agents(protocol.agents, suite.budget))
        victim = _voting(victim, protocol, env.teams, members)
        admission.check_actions(suite, victim)
        announce(spec.name, env.teams, attacked=env.teams[members[0]])
        admission.check_budget(suite.budget, victim, members)
        judged = Judged(victim, env, spec, members)
        chosen, skipped = admission.admitted(attacks, judged, suite, asked=asked)
        controls, left_out = admitted_controls(suite.controls, env, members=members)
        opponents, partners = _resolved(company, judged, suite)
        replaced = resolve_replacements([*protocol.replace, *partners], env, members=members)
        replacements = tuple(dict.fromkeys((*controls, *replaced)))
        suite, disturbed, unfitting = _threats(suite, judged, protocol)
        units = admission.settle_units(suite.units, victim, members if any(a.sized for a in chosen) else ())
        compared = home if any(map(suite.ranks, chosen)) else None
        trained = sources.training_attack_of(compared, members) if compared else None
        known, unfit = admission.fitting(trained, judged, suite=suite, units=units)
        evaluator = Evaluator(
            victim=victim,
            spec=spec,
            env=env,
            agents=members,
            units=units,
            suite=suite,
            seed=protocol.seed,
            opponents=opponents,
            on_progress=on_progress,
            home=home,
        )
        with closing(evaluator):
            rows, checks = _rows(evaluator, chosen, replacements, known, disturbed, workers=protocol.workers)
        return Evaluation(
            env=PlayedEnvironment(name=spec.name, kwargs=dict(spec.kwargs)),
            teams=dict(env.teams),
            team=evaluator.team,
            agents=tuple(members),
            suite=suite.name,
            units=evaluator.units,
            smoothing=victim.smoothing if isinstance(victim, SmoothedVictim) else None,
            seed=protocol.seed,
            num_envs=env.num_envs,
            results=rows,
            skipped=(*skipped, *unfit, *left_out, *unfitting),
            checks=(*company_notes(company, spec), *checks),
            **{name: getattr(suite, name) for name in _OF_SUITE},
        )


def _threats(
    suite: Suite, judged: Judged, protocol: Protocol
) -> tuple[Suite, tuple[DisturbedRow, ...], tuple[Skipped, ...]]:
    """The suite with the dynamics that can be varied, the actions that can be disturbed, and what cannot."""
    victim, env, spec, members = judged.victim, judged.env, judged.spec, judged.members
    varied, unvaried = admitted_variations(suite.vary, victim, spec, env, asked=bool(protocol.vary))
    asked = bool(protocol.disturb)
    disturbed, undisturbed = admitted_disturbances(suite.disturb, victim, env, members, asked=asked)
    return suite.changed(vary=varied), disturbed, (*unvaried, *undisturbed)


def _voting(victim: Victim, protocol: Protocol, teams: Mapping[str, str], members: Sequence[str]) -> Victim:
    """The victim, whose judged team votes under noise where that is asked for."""
    team = [agent for agent in victim.agents if teams[agent] == teams[members[0]]]
    return victim if protocol.smoothing is None else smoothed(victim, protocol.smoothing, agents=team)


def _rows(
    evaluator: Evaluator,
    attacks: Sequence[Attack],
    replacements: Sequence[Replacement],
    training_attack: Attack | None,
    disturbed: Sequence[DisturbedRow],
    *,
    workers: int | None,
) -> tuple[tuple[ActionsResult, ...], tuple[Check, ...]]:
    """All rows, and whether they can be believed."""
    evaluator.expect(attacks, replacements=replacements, beside=training_attack, disturbances=len(disturbed))
    evaluator.calibrate(attacked=bool(attacks))
    observed = ObservationSampler(stream(evaluator.seed, Purpose.PROBE))
    rows = play_rows(
        evaluator,
        attacks,
        replacements=replacements,
        observed=observed,
        workers=workers,
        training_attack=training_attack,
        disturbed=disturbed,
    )
    return rows, tuple(_checks(evaluator, rows, [*filter(evaluator.suite.ranks, attacks)], observed))


def _resolved(
    company: tuple[list[Companion], list[Companion]], judged: Judged, suite: Suite
) -> tuple[dict[str, Replacement], list[Replacement]]:
    """Opponents by name and partners, who can play as the suite asks."""
    opponents, partners = resolve_opponents(company[0], judged), resolve_partners(company[1], judged)
    for player in (*opponents.values(), *partners):
        admission.check_actions(suite, player.victim or judged.victim)
    return opponents, partners


_OF_SUITE = ("budget", "norm", "channels", "episodes", "selection_episodes", "weakest_link")


def _checks(
    evaluator: Evaluator,
    rows: Sequence[ActionsResult],
    attacks: Sequence[Attack],
    observed: ObservationSampler,
) -> Iterator[Check]:
    if evaluator.cancelled:
        text = (
            f"The rewards of team {evaluator.team!r} add up to 0 in every episode: its agents play against "
            "each other. Say who plays with whom, by env.teams or an attribute teams of the environment."
        )
        yield Check("teams", "warn", text)
    if attacks:
        distributions = [evaluator.victim.distribution(agent) for agent in evaluator.agents]
        yield from attack_checks(evaluator, attacks, observed)
        in_words = evaluator.suite.norm == "words"
        yield from () if in_words else embedding_checks(evaluator, attacks)
        for row in rows:
            yield from word_return_checks(row) if in_words else return_checks(row, distributions)
    for row in rows:
        yield from agent_checks(row)
        yield from disturbance_checks(row)
        yield from response_checks(row)
