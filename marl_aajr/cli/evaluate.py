"""`marl-aajr evaluate`: play a trained team with and without attacks on its observations."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from marl_aajr.cli.findings import show
from marl_aajr.cli.options import assigned, guide, sample, told

if TYPE_CHECKING:
    from marl_aajr.evaluation import Evaluation

SUITE = "quick"
"""The suite where neither a suite nor an attack is named."""

EPSILONS = (0.05, 0.1, 0.2)
"""Sizes of named attacks where none is named: around the ε that methods train against by default."""

JSON = """\
results             for each kind of actions:
  clean             mean, low, high, returns
  attacks           attack: name, epsilon, norm, settings; and as clean
  worst             attack, mean; lead: over the runner_up
  subsets           agents, attack, returns
  adversarial_agents  kind, agents, and as clean
skipped             attack, reason
checks              name, verdict, text
"""
"""Keys of the object, and what is under them."""

HELP = guide(
    "Play a team without and with attacks on what it observes: a finished run's, a saved victim's or that of "
    "an RLlib checkpoint. The result is kept in RUN/evaluations, where compare finds it, or in a folder "
    "beside the victim or checkpoint. Attacked episodes use the seeds of the clean ones.",
    "marl-aajr evaluate runs/study-3",
    "marl-aajr evaluate runs/study-3 --suite standard --surrogate runs/study-4",
    "marl-aajr evaluate runs/study-3 --attack pgd --epsilon 0.1 --epsilon 0.2",
    "marl-aajr evaluate runs/study-3 --budget agents=1,steps=5,timing=strategic",
    "marl-aajr evaluate runs/study-3 --suite full --json > result.json",
    "marl-aajr evaluate checkpoint_000010 --env simple_spread_v3 --units raw",
) + sample("What --json prints, among others:", JSON)


def evaluate(
    *,
    run: Annotated[
        Path,
        typer.Argument(
            metavar="RUN", help="A finished run's folder, a saved victim's, or an RLlib checkpoint."
        ),
    ],
    env: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Environment of an RLlib checkpoint, which does not know it: a name of [b]list envs[/b] or "
            "an import path. Its arguments: --set env.kwargs.N=5.",
        ),
    ] = None,
    assignments: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="An argument of --env, such as env.kwargs.N=5; may be repeated.",
        ),
    ] = None,
    suite: Annotated[
        str | None,
        typer.Option(
            metavar="NAME|FILE.yaml",
            help=told("Protocol: quick (seconds), standard, full, or a file.", f"{SUITE}, unless --attack"),
        ),
    ] = None,
    attack: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="A name of [b]list attacks[/b], beside or instead of a suite; may be repeated.",
        ),
    ] = None,
    epsilon: Annotated[
        list[float] | None,
        typer.Option(
            metavar="FLOAT",
            help=told(
                "Size of the attacks; may be repeated.",
                f"the suite's, or {' '.join(f'{size:g}' for size in EPSILONS)}",
            ),
        ),
    ] = None,
    units: Annotated[
        str | None,
        typer.Option(
            metavar="raw|network",
            help=told(
                "Units of epsilon: the environment's, or behind the observation filter.", "the suite's"
            ),
        ),
    ] = None,
    norm: Annotated[
        str | None,
        typer.Option(
            metavar="linf|l2",
            help=told(
                "Norm of epsilon. In l2 it is the length of the whole perturbation: for d features of the "
                "size e it is e√d.",
                "the suite's, or linf",
            ),
        ),
    ] = None,
    budget: Annotated[
        str | None,
        typer.Option(
            metavar="KEY=VALUE,…",
            help=told(
                "What the adversary may spend. [b]agents=K[/b]: the worst K of the team, found on other "
                "episodes; [b]agents=A+B[/b]: these. [b]steps=M[/b]: M steps of each episode, "
                "[b]timing=random[/b] or [b]strategic[/b] (where the agents prefer an action most). "
                "[b]scale=A:0.5+B:2[/b]: half of epsilon for A, twice for B. Learned adversaries were "
                "trained without steps and scale, and do not know them.",
                "the suite's: everybody, every step",
            ),
        ),
    ] = None,
    weakest_link: Annotated[
        bool | None,
        typer.Option(
            "--weakest-link/--no-weakest-link",
            help=told(
                "Also try the worst attack of each size on each agent alone, on other episodes.",
                "the suite's",
            ),
            show_default=False,
        ),
    ] = None,
    episodes: Annotated[
        int | None,
        typer.Option(
            metavar="INT",
            help=told("Episodes without attack, and for each attack and size.", "the suite's, or 100"),
        ),
    ] = None,
    selection_episodes: Annotated[
        int | None,
        typer.Option(
            metavar="INT",
            help=told(
                "Other episodes, on which the worst attack of each size is chosen.",
                "the suite's, or 0: none is",
            ),
        ),
    ] = None,
    actions: Annotated[
        list[str] | None,
        typer.Option(
            metavar="greedy|sampled",
            help=told("How actions are taken; may be repeated.", "the suite's, or greedy"),
        ),
    ] = None,
    seed: Annotated[int, typer.Option(metavar="INT", help="Seed of the episodes and of the attacks.")] = 0,
    team: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help=told("Side that is attacked, and whose return is reported.", "the only one, or the largest"),
        ),
    ] = None,
    agents: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME", help=told("Attack this agent of the team only; may be repeated.", "all")
        ),
    ] = None,
    surrogate: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="RUN",
            help="Another run, to compute the perturbations of [b]transfer[/b] on; may be repeated.",
        ),
    ] = None,
    replace: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KIND[:AGENT,…]",
            help="Let [b]random[/b] or [b]idle[/b] agents play in the place of those named, together, or of "
            "each attacked agent in turn; may be repeated.",
        ),
    ] = None,
    adversary: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="RUN",
            help="A run of [b]adversary train[/b]: let it play against this team; may be repeated.",
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="FILE.json", help=told("Where the result is kept.", "see above"))
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option(
            metavar="INT",
            help=told(
                "Ray workers that share the rows; the result is the same.", "one a core where it takes long"
            ),
        ),
    ] = None,
    as_json: Annotated[
        bool,
        typer.Option(
            "--json",
            help="Print one object, as kept in RUN/evaluations; see above.",
        ),
    ] = False,
) -> None:
    """Evaluate one run and print what came out."""
    if suite is None and not attack:
        suite = SUITE
    sizes = epsilon or (EPSILONS if suite is None else ())
    # Whatever a library prints must not get between the braces.
    with contextlib.redirect_stdout(sys.stderr):
        result = _evaluate(
            run,
            env=env,
            env_kwargs=env_arguments(assignments or ()),
            out=out,
            suite=suite,
            attacks=attack or (),
            epsilons=sizes,
            units=units,
            norm=norm,
            budget=budget,
            weakest_link=weakest_link,
            episodes=episodes,
            selection_episodes=selection_episodes,
            actions=actions,
            seed=seed,
            team=team,
            agents=agents,
            surrogates=surrogate or (),
            replace=replace or (),
            adversaries=adversary or (),
            workers=workers,
        )
    if as_json:
        print(result.model_dump_json())
        return
    show(result, run, kept=_kept(run, out))


def _kept(run: Path, out: Path | None) -> Path | None:
    """Where the result is; None: in a run's folder."""
    from marl_aajr.training.run_directory import RunDirectory
    from marl_aajr.training.run_record import evaluations_beside

    return out or (None if RunDirectory(run).is_run else evaluations_beside(run))


def env_arguments(assignments: Sequence[str]) -> dict[str, Any]:
    """The arguments of the environment in `--set env.kwargs.N=5`.

    Raises:
        ValueError: another key, or no assignment.
    """
    found = {}
    for key, value in assigned(assignments).items():
        name = key.removeprefix("env.kwargs.")
        if name == key or "." in name:
            raise ValueError(
                f"expected --set env.kwargs.NAME=VALUE in evaluate, got {key}; a run has the rest"
            )
        found[name] = value
    return found


def _evaluate(run: Path, **protocol: Any) -> Evaluation:
    """The evaluation, with a bar while it plays."""
    from rich.console import Console

    from marl_aajr.cli.progress import PlayingProgress, waiting

    console = Console(stderr=True)
    with waiting("Loading torch", console=console):
        from marl_aajr.evaluation import evaluate_run
    with PlayingProgress(console) as progress:
        given = {name: value for name, value in protocol.items() if value not in (None, ())}
        return evaluate_run(run, on_progress=progress, **given)
