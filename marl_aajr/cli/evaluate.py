"""`marl-aajr evaluate`: play a trained team with and without attacks on its observations."""

from __future__ import annotations

import contextlib
import shlex
import sys
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from marl_aajr.cli.display import PlayingProgress, mean_and_interval, say, table_of, waiting
from marl_aajr.cli.options import assigned, guide, options, sample, takes, values
from marl_aajr.cli.threat_tables import curve_lines, threat_table
from marl_aajr.core.checks import METRIC_DECIMALS, decimals_for, grouped, written

if TYPE_CHECKING:
    from rich.table import Table

    from marl_aajr.evaluation import ActionsResult, AttackSpec, Evaluation, Outcome

SUITE = "quick"
"""The suite where neither a suite nor an attack is named."""

EPSILONS = (0.05, 0.1, 0.2)
"""Sizes of named attacks where none is named: around the ε that methods train against by default."""

JSON = """\
results             for each kind of actions:
  clean             mean, low, high, returns; metrics (success, ...) if any
  attacks           attack: name, epsilon, norm, settings; and as clean
  training_attack   as one of attacks: of the run's own training
  worst             attack, mean; lead: over the runner_up
  threats           kind, name, form, settings, and as clean
  subsets           agents, attack, returns
  adversarial_agents  kind, agents, and as clean
  opponents         opponent, agents; clean to adversarial_agents
skipped             attack, reason
checks              name, verdict, text
"""
"""Keys of the object, and what is under them."""

HELP = guide(
    "Play a trained team with and without attacks on what it observes. RUN is the folder of a run, a saved "
    "victim or an RLlib checkpoint. The result goes to RUN/evaluations, where compare finds it, or to a "
    "folder beside the victim or checkpoint. Attacked episodes have the seeds of the clean ones.",
    "marl-aajr evaluate runs/spread-3",
    "marl-aajr evaluate runs/spread-3 --suite standard --surrogate runs/spread-4",
    "marl-aajr evaluate runs/spread-3 --attack pgd --epsilon 0.1 --epsilon 0.2",
    "marl-aajr evaluate runs/spread-3 --attack delay --attack dropout",
    "marl-aajr evaluate runs/spread-3 --attack dropout --vary kwargs.mass=0.5,1,2",
    "marl-aajr evaluate runs/tag-3 --team adversary --opponent runs/tag-7",
    "marl-aajr evaluate runs/spread-3 --budget agents=1,steps=5,timing=strategic",
    "marl-aajr evaluate runs/spread-3 --attack pgd --norm l2 --smoothing 0.1:100",
    "marl-aajr evaluate runs/spread-3 --suite full --json > result.json",
    "marl-aajr evaluate checkpoint_000010 --env simple_spread_v3 --units raw",
) + sample("What --json prints, among others:", JSON)

SETTINGS = options(
    "marl_aajr.evaluation.protocol.Protocol",
    "suite attacks epsilons units norm channels budget weakest_link episodes selection_episodes actions seed "
    "team agents smoothing replace vary disturb workers",
    flags={"attacks": "--attack", "epsilons": "--epsilon", "channels": "--channel"},
    metavars={
        "smoothing": "SIGMA:SAMPLES",
        "suite": "NAME|FILE.yaml",
        "budget": "KEY=VALUE,…",
        "replace": "KIND[:AGENT,…]",
        "vary": "kwargs.NAME=VALUE,…",
        "disturb": "KIND=SIZE[,by=RUN]",
    },
    defaults={
        "suite": f"{SUITE}, unless --attack",
        "epsilons": f"the suite's, or {' '.join(f'{size:g}' for size in EPSILONS)}",
    },
    repeated=["attacks", "epsilons", "channels", "actions", "agents", "replace", "vary", "disturb"],
)


@takes(*SETTINGS)
def evaluate(
    run: Path,
    *,
    env: str | None = None,
    set_: list[str] | None = None,
    surrogate: list[Path] | None = None,
    adversary: list[Path] | None = None,
    opponent: list[str] | None = None,
    partner: list[str] | None = None,
    out: Path | None = None,
    json_: bool = False,
    **typed: Any,
) -> None:
    """Evaluate one run and print what came out.

    Args:
        run (RUN): A finished run's folder, a saved victim's, or an RLlib checkpoint.
        env (NAME): Environment of an RLlib checkpoint, which does not know it: a name of `list envs` or an
            import path. Its arguments: --set env.kwargs.N=5.
        set_ (KEY=VALUE): An argument of --env, such as env.kwargs.N=5, or who plays with whom:
            env.teams='{red_*: red, blue_*: blue}', or what observations consist of:
            env.channels='{messages: [3, 4]}'; may be repeated.
        surrogate (RUN): Another run, to compute the perturbations of `transfer` on; may be repeated.
        adversary (RUN): A run of `adversary train`: let it play against this team; may be repeated.
        opponent (RUN[:TEAM]): A run or a saved victim that plays the other teams, or only one of them,
            instead of RUN's own; also random and idle; may be repeated.
        partner (RUN[:AGENT,…]): A run or a saved victim that plays in the place of each attacked agent in
            turn, or of these together; may be repeated.
        out (FILE.json): Where the result is kept. Default: see above.
        json_: Print one object, as kept in RUN/evaluations; see above.
        typed: What was given of `SETTINGS`.
    """
    from rich.console import Console

    protocol = values(SETTINGS, typed)
    if not {"suite", "attacks"} & protocol.keys():
        protocol["suite"] = SUITE
    console = Console(stderr=True)
    # Whatever a library prints must not get between the braces.
    with contextlib.redirect_stdout(sys.stderr):
        with waiting("Loading torch", console=console):
            from marl_aajr.evaluation import evaluate as play
            from marl_aajr.evaluation.attack_entries import sizes_are_needed
        if "suite" not in protocol and sizes_are_needed(protocol["attacks"]):
            protocol.setdefault("epsilons", EPSILONS)
        with PlayingProgress(console) as progress:
            result = play(
                run,
                env=env,
                env_kwargs=env_arguments(set_ or ()),
                surrogates=surrogate or (),
                adversaries=adversary or (),
                opponents=opponent or (),
                partners=partner or (),
                out=out,
                on_progress=progress,
                **protocol,
            )
    if json_:
        print(result.model_dump_json())
        return
    from marl_aajr.evaluation.sources import evaluations_of
    from marl_aajr.training.run_directory import RunDirectory

    show(result, run, kept=out or (None if RunDirectory(run).is_run else evaluations_of(run)))


def env_arguments(assignments: Sequence[str]) -> dict[str, Any]:
    """The arguments of the environment in `--set env.kwargs.N=5`."""
    found = {}
    for key, value in assigned(assignments).items():
        name = key.removeprefix("env.kwargs.")
        if key not in ("env.teams", "env.channels") and (name == key or "." in name):
            raise ValueError(
                f"expected --set env.kwargs.NAME=VALUE, env.teams=… or env.channels=… in evaluate, got "
                f"{key}; a run has the rest"
            )
        found[name] = value
    return found


def show(evaluation: Evaluation, run: Path, *, kept: Path | None = None) -> None:
    """Print an evaluation; without a file where it is kept, it is in the run's folder."""
    from rich.console import Console

    console = Console()
    write = partial(console.print, highlight=False, markup=False)
    for check in evaluation.checks:
        if check.verdict != "pass":
            write(f"{'FAILED' if check.verdict == 'fail' else 'Note'}: {check.text}")
    attacked = f" ({', '.join(evaluation.agents)} attacked)" * (evaluation.agents != evaluation.members)
    for result in evaluation.results:
        write(f"Team {evaluation.team}{attacked}, {evaluation.episodes} episodes, {result.actions} actions")
        table = _table(result, agents=evaluation.agents, level=evaluation.level)
        write(*_limits(evaluation, result), table, *_weakest(result), sep="\n")
        if result.threats:
            write(threat_table(result), *curve_lines(result), sep="\n")
        if result.opponents:
            write(_against(result))
    for skipped in evaluation.skipped:
        write(f"Left out: {skipped.attack}: {skipped.reason}")
    others = sorted(set(evaluation.teams.values()) - {evaluation.team})
    if others:
        write(f"Other teams, by --team: {', '.join(others)}")
    where = f"On a page: marl-aajr compare {shlex.quote(str(run))}" if kept is None else f"Kept in {kept}"
    say(console, where)


def _table(result: ActionsResult, *, agents: tuple[str, ...], level: float) -> Table:
    """The returns with one kind of actions; a row of fewer than all attacked agents names them."""
    metrics = result.metrics
    in_words = any(row.attack.norm == "words" for row in result.attacks)
    numbers = ("words" if in_words else "ε", "return", f"{level:.0%} interval", *metrics, "actions changed")
    shown = table_of("attack", numbers=numbers)
    decimals = _decimals(result)

    def add(name: str, epsilon: str, outcome: Outcome, changed: str) -> None:
        told = (_metric(outcome, metric) for metric in metrics)
        shown.add_row(name, epsilon, *mean_and_interval(outcome, decimals), *told, changed)

    add("none", "", result.clean, "")
    marks = {worst.attack: "worst" if worst.sure else "worst?" for worst in result.worst}
    for row in result.attacks:
        name = row.attack.label + (f" on {', '.join(row.agents)}" if row.agents != agents else "")
        name += f" ({marks[row.attack]})" if row.attack in marks else ""
        add(name, f"{row.epsilon:g}", row, f"{row.success_rate:.0%}")
    if (known := result.training_attack) is not None:
        add("that of training", f"{known.epsilon:g}", known, f"{known.success_rate:.0%}")
    for other in result.adversarial_agents:
        label = f"{other.label} (worst)" if other.worst else other.label
        add(label, "", other, "")
    shown.caption = "; ".join(_notes(result, agents, marks)) or None
    return shown


def _against(result: ActionsResult) -> Table:
    """The returns against every opponent, without attack and under the worst of each size, and their mean."""
    from marl_aajr.evaluation.pool import at_size, pool_scores

    scores, decimals = pool_scores(result), _decimals(result)
    sizes = [score.epsilon for score in scores]
    shown = table_of("opponent", numbers=["no attack", *(f"worst at ε = {size:g}" for size in sizes[1:])])
    for name, rows in result.sides.items():
        known = {worst.epsilon for worst in rows.worst} | {0.0}
        means = [written(at_size(rows, e)[0].mean, decimals) if e in known else "–" for e in sizes]
        marks = ["*" if score.worst == name and len(result.opponents) > 1 else "" for score in scores]
        label = "own side (does not count)" if rows is result else name
        shown.add_row(label, *(mean + mark for mean, mark in zip(means, marks, strict=True)))
    ends = [tuple(written(e, decimals) for e in (s.low, s.high) if e is not None) for s in scores]
    shown.add_row("mean of opponents", *(written(score.mean, decimals) for score in scores))
    shown.add_row("", *(f"({' to '.join(end)})" if end else "" for end in ends))
    if any(score.worst for score in scores) and len(result.opponents) > 1:
        shown.caption = "*: the worst opponent, chosen on other episodes than these"
    return shown


def _notes(result: ActionsResult, agents: tuple[str, ...], marks: dict[AttackSpec, str]) -> Iterator[str]:
    """The meaning of the marks and columns of a table, as far as they need a word."""
    groups = ["size"] if marks else []
    groups += ["kind"] if any(row.worst for row in result.adversarial_agents) else []
    if groups:
        yield f"worst of its {' or '.join(groups)}: chosen on other episodes than these"
    if "worst?" in marks.values():
        yield "worst?: within noise of the next"
    if any(row.attacked_steps is not None or row.agents != agents for row in result.attacks):
        yield "actions changed: of the decisions that were attacked"


def _limits(evaluation: Evaluation, result: ActionsResult) -> Iterator[str]:
    """The budget of the adversary, where it is limited, and the norm, where it is not the usual one."""
    if budget := str(evaluation.budget):
        steps = sorted({str(row.attacked_steps) for row in result.attacks if row.attacked_steps is not None})
        yield f"Budget {budget}" + (f": {', '.join(steps)}" if steps else "")
    if evaluation.norm == "words":
        yield "words: how many of those that agents read are replaced by synonyms"
    elif evaluation.norm != "linf":
        yield f"ε is the {evaluation.norm} norm of a whole perturbation"


def _weakest(result: ActionsResult) -> Iterator[str]:
    """One line for each of the worst attacks that was tried on each agent alone, the lowest return first."""
    from marl_aajr.evaluation.worst_attack import paired_difference

    alone = grouped((subset.attack, subset) for subset in result.subsets if len(subset.agents) == 1)
    worst, decimals = {row.attack for row in result.worst}, _decimals(result)
    for attack, tried in alone.items():
        if attack not in worst or len(tried) < 2:
            continue
        tried.sort(key=lambda subset: subset.mean)
        found = ", ".join(f"{subset.agents[0]} {written(subset.mean, decimals)}" for subset in tried)
        sure = paired_difference(tried[0].returns, tried[1].returns).negative
        said = f"{tried[0].agents[0]} is the weakest link" if sure else "no clear weakest link"
        found += f", against {written(result.clean_selection_return or 0.0, decimals)} without attack"
        size = f"{attack.epsilon:g} words" if attack.norm == "words" else f"ε = {attack.epsilon:g}"
        yield f"Attacked alone, {attack.name} at {size}: {found}; {said}"


def _decimals(result: ActionsResult) -> int:
    return decimals_for([result.clean, *result.attacks, *result.adversarial_agents])


def _metric(outcome: Outcome, name: str) -> str:
    """The mean of a metric, with its interval."""
    metric = outcome.metrics.get(name)
    if metric is None:
        return "–"
    ends = [written(end, METRIC_DECIMALS) for end in (metric.low, metric.high) if end is not None]
    return " ".join([written(metric.mean, METRIC_DECIMALS), f"({' to '.join(ends)})" if ends else ""]).strip()
