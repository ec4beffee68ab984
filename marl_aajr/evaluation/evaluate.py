"""Play a victim with and without attacks, over the same episodes, and say what it earned."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import closing
from pathlib import Path

from marl_aajr.attacks import Attack, Transfer
from marl_aajr.core.numerics import one_torch_thread
from marl_aajr.core.seeds import Purpose, derived_seed, stream
from marl_aajr.core.threat import Norm
from marl_aajr.evaluation.agent_checks import agent_checks
from marl_aajr.evaluation.attack_run import prepare
from marl_aajr.evaluation.budget import Budget
from marl_aajr.evaluation.crosschecks import climb, ladder, objective_checks
from marl_aajr.evaluation.fitting import fitted
from marl_aajr.evaluation.plan import Plan, Request, check_seed, make_plan, positive_integer
from marl_aajr.evaluation.player import Player, Progress
from marl_aajr.evaluation.preflight import examine, report
from marl_aajr.evaluation.probe import ObservationSampler
from marl_aajr.evaluation.protocol import (
    admitted,
    check_actions,
    check_budget,
    named_agents,
    settle_units,
)
from marl_aajr.evaluation.replacements import Replacement, admitted_controls, resolve_replacements
from marl_aajr.evaluation.result import ActionsResult, Check, Evaluation, PlayedEnvironment, Skipped
from marl_aajr.evaluation.return_checks import return_checks
from marl_aajr.evaluation.rows import play_rows
from marl_aajr.evaluation.suites import Actions, Suite, Units
from marl_aajr.rollout.batches import make_batch
from marl_aajr.rollout.environments import EnvironmentSpec, resolve
from marl_aajr.rollout.teams import choose_agents
from marl_aajr.victims import Victim
from marl_aajr.victims.match import check_match, check_victim
from marl_aajr.victims.stepper import alike

NUM_ENVS = 50
"""Copies played side by side. Part of the protocol: see `evaluate`."""

_PROBED = 256
"""Decisions of each policy on which the order of the attacks is checked."""


@one_torch_thread()
def evaluate(
    victim: Victim,
    environment: EnvironmentSpec | str | None = None,
    *,
    suite: str | Path | Suite | None = None,
    attacks: Sequence[Request] = (),
    epsilons: Sequence[float] | None = None,
    episodes: int | None = None,
    selection_episodes: int | None = None,
    actions: Sequence[Actions] | None = None,
    units: Units | None = None,
    norm: Norm | None = None,
    budget: Budget | str | None = None,
    weakest_link: bool | None = None,
    seed: int = 0,
    team: str | None = None,
    agents: Collection[str] | None = None,
    surrogates: Mapping[str, Victim] | None = None,
    replace: Sequence[str | Replacement] = (),
    num_envs: int = NUM_ENVS,
    workers: int | None = None,
    home: Path | None = None,
    on_progress: Callable[[Progress], None] | None = None,
) -> Evaluation:
    """Evaluate a victim: frozen filters, and the same episodes and random numbers for every row.

    One team is attacked, all its agents at every step unless a budget says less; the others play the same
    policies on what is really there. "The return" is the attacked team's: the sum of its agents' undiscounted
    rewards. The worst attack of each ε, and the worst agents, are chosen on other episodes than those they
    are reported on. With attacks come the checks that say whether their returns are evidence: see
    `Evaluation.checks`. Torch has one thread until the end; `workers` take more cores.

    Args:
        victim: who plays all agents.
        environment: where: a name, or with arguments `resolve` of it;
            None: the environment that it was trained on.
        suite: `"quick"`, `"standard"`, `"full"`, a YAML file or a
            `Suite`; None: `attacks` only.
        attacks: more attacks: pairs of attack (a name, or an `Attack`) and epsilon.
        epsilons: instead of the suite's.
        episodes: for the clean row and for each attack; None: the suite's, or 100.
        selection_episodes: to choose the worst attack on; None: the suite's, or 0, which chooses none.
        actions: greedy, sampled or both; None: the suite's, or greedy.
        units: of ε, `"raw"` or `"network"`; None: the suite's. Without an observation filter they are the
            same; with one they must be said.
        norm: of ε, `"linf"` or `"l2"`, for all attacks; None: the suite's, and that of attacks that are
            values.
        budget: what the adversary may spend, a `Budget` or its text, such
            as `"agents=1"` or `"steps=5,timing=strategic"`; None: the suite's.
        weakest_link: also try the worst attack of each ε on each agent alone, on the selection episodes;
            None: as the suite says.
        seed: of the episodes and of the attacks' random numbers. Each row is the same whatever the other
            rows are.
        team: who is attacked; None: the only team, or the largest (of equals, the first).
        agents: attack these agents of the team only (the worst k of them where the budget counts); None:
            all of it.
        surrogates: victims to compute `transfer` perturbations on, by a name for them.
        replace: agents that do not play as the victim does, each a row of its own: `"random"` or `"idle"`
            (each attacked agent in turn), `"random:agent_0,agent_1"` (these together, of any team), or
            `Replacement` values, which bring trained adversaries.
        num_envs: E, copies played side by side. Episode i is seeded as number i // E of copy i mod E, so
            compare evaluations of the same E only.
        workers: Ray tasks that share the rows between them; 1: this process plays them all. None: as many as
            there are cores, from when on what is left would take this process more than 20 seconds; never
            within a task of Ray. The result is the same. Ray is started where it is not running.
        home: folder of the victim's run, in which learned adversaries are looked for and kept; None, or
            another environment than the victim's own: those that are trained are not kept.
        on_progress: told after every episode; after every row where workers play.

    Raises:
        ValueError: numbers out of range, unknown or repeated attacks, attacks that the policies do not
            admit, a budget or an environment that the victim does not fit; all before anything is played.
            More steps in the budget than an episode has, once that has been seen.
        EnvironmentFault: the environment broke its contract.

    Example:
        >>> evaluate(Victim.load("runs/ppo/victim"), suite="quick").worst
    """
    check_victim(victim)
    positive_integer("num_envs", num_envs)
    if workers is not None:
        positive_integer("workers", workers)
    check_seed(seed)
    plan = make_plan(
        suite,
        attacks,
        epsilons=epsilons,
        episodes=episodes,
        selection_episodes=selection_episodes,
        actions=actions,
        units=units,
        norm=norm,
        budget=budget,
        weakest_link=weakest_link,
        surrogates=surrogates or {},
    )
    spec = _environment(environment, victim)
    env = make_batch(spec, min(num_envs, plan.episodes))
    with closing(env):
        check_match(victim, env)
        check_actions(plan, victim)
        members = choose_agents(env.teams, team, named_agents(agents, plan.budget))
        check_budget(plan.budget, victim, members)
        chosen, skipped = admitted(plan, victim, members)
        controls, left_out = admitted_controls(plan.controls, env, members=members)
        asked = resolve_replacements(replace, env, members=members)
        replacements = tuple(dict.fromkeys((*controls, *asked)))
        player = Player(
            victim=victim,
            spec=spec,
            env=env,
            agents=members,
            units=settle_units(plan.units, victim, members if chosen else ()),
            seed=seed,
            scales=plan.budget.scale_of,
            on_progress=on_progress,
            home=home,
        )
        with closing(player):
            player.expect(plan, chosen, replacements=len(replacements))
            if chosen:
                player.calibrate(plan)
            return _judge(
                player,
                plan,
                fitted(player, chosen),
                replacements,
                skipped=(*skipped, *left_out),
                workers=workers,
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


def _judge(
    player: Player,
    plan: Plan,
    attacks: Sequence[Attack],
    replacements: Sequence[Replacement],
    *,
    skipped: tuple[Skipped, ...],
    workers: int | None,
) -> Evaluation:
    observed = ObservationSampler(stream(player.seed, Purpose.PROBE))
    rows = play_rows(player, attacks, plan, replacements=replacements, observed=observed, workers=workers)
    return Evaluation(
        env=PlayedEnvironment(name=player.spec.name, kwargs=dict(player.spec.kwargs)),
        teams=dict(player.env.teams),
        team=player.team,
        agents=tuple(player.agents),
        budget=plan.budget,
        suite=plan.suite,
        units=player.units,
        norm=plan.norm,
        seed=player.seed,
        episodes=plan.episodes,
        selection_episodes=plan.selection_episodes,
        weakest_link=plan.weakest_link,
        num_envs=player.env.num_envs,
        results=rows,
        skipped=skipped,
        checks=(
            *_side_checks(player),
            *_checks(player, attacks, rows, observed),
            *(check for row in rows for check in agent_checks(row)),
        ),
    )


def _side_checks(player: Player) -> list[Check]:
    """A sum over agents who play against each other says nothing."""
    if not player.cancelled:
        return []
    return [
        Check(
            "teams",
            "warn",
            f"The rewards of team {player.team!r} add up to 0 in every episode: its agents play against each "
            "other. Give the environment an attribute teams, a dict from agent to side, for returns that say "
            "something.",
        )
    ]


def _checks(
    player: Player, attacks: Sequence[Attack], rows: Sequence[ActionsResult], observed: ObservationSampler
) -> list[Check]:
    if not attacks:
        return []
    victim, units = player.victim, player.units
    groups = [g for g in alike(victim, player.env.possible_agents) if set(g) & set(player.agents)]
    samples = observed.samples(groups, rows=_PROBED)
    by_size = {a.perturbations.epsilon: a.perturbations for a in attacks}
    largest = by_size[max(by_size)]
    seed = derived_seed(player.seed, Purpose.PROBE)
    health = [
        examine(
            sample,
            victim,
            prepare(ladder(largest)["noise"], victim, sample.agent, units=units).perturbations,
            generator=stream(player.seed, Purpose.PROBE),
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
    distributions = [victim.distributions[victim.module_of[agent]] for agent in player.agents]
    return [*found, *(check for row in rows for check in return_checks(row, distributions))]
