"""`marl-aajr certify`: prove which decisions of a trained team no perturbation changes."""

from __future__ import annotations

import contextlib
import shlex
import sys
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

from marl_aajr.cli.display import CertifyingProgress, say, table_of, waiting
from marl_aajr.cli.evaluate import env_arguments
from marl_aajr.cli.options import guide, options, sample, takes, values

if TYPE_CHECKING:
    from marl_aajr.certificates import Certificate
    from marl_aajr.certificates.certificate import Votes

JSON = """\
sizes             epsilon; interval, certified, attacked: shares
largest           the largest ε each decision is certified for
reach             the largest ε that was looked at for it
decisions         how many there are
"""
"""Keys of the object, and what is under them."""

HELP = guide(
    "Prove which decisions of a trained team no perturbation of an observation changes, and attack the same "
    "decisions: the share of those that stay whatever happens lies between what is certified and what no "
    "attack changed. For MLPs; with --smoothing for any network, which then votes under noise, and but for "
    "a probability alpha. A proof is of single decisions, not of returns. It is kept in "
    "RUN/certificates, where compare finds it.",
    "marl-aajr certify runs/spread-3",
    "marl-aajr certify runs/spread-3 --epsilon 0.005 --epsilon 0.02",
    "marl-aajr certify runs/spread-3 --norm l2 --epsilon 0.1 --episodes 50",
    "marl-aajr certify runs/talk-3 --channel messages",
    "marl-aajr certify runs/spread-3 --smoothing 0.1:100 --norm l2 --epsilon 0.1",
    "marl-aajr certify runs/tag-3 --team adversary --agents adversary_0",
    "marl-aajr certify runs/spread-3 --json > certificate.json",
) + sample("What --json prints, among others:", JSON)

SETTINGS = options(
    "marl_aajr.certificates.certificate.CertificateRequest",
    "epsilons norm units channels mask scale low high attacks smoothing samples alpha episodes seed team "
    "agents",
    flags={"attacks": "--attack", "epsilons": "--epsilon", "channels": "--channel"},
    metavars={
        "smoothing": "SIGMA:SAMPLES",
        "mask": "true|false,…",
        "low": "FLOAT|LIST",
        "high": "FLOAT|LIST",
    },
    defaults={"attacks": "gradient attacks from several starts"},
    repeated=["attacks", "epsilons", "channels", "agents"],
)


@takes(*SETTINGS)
def certify(
    run: Path,
    *,
    env: str | None = None,
    set_: list[str] | None = None,
    out: Path | None = None,
    json_: bool = False,
    **typed: Any,
) -> None:
    """Certify one run and print what is proven.

    Args:
        run (RUN): A finished run's folder, a saved victim's, or an RLlib checkpoint.
        env (NAME): Environment of an RLlib checkpoint, which does not know it: a name of `list envs` or an
            import path. Its arguments: --set env.kwargs.N=5.
        set_ (KEY=VALUE): An argument of --env, such as env.kwargs.N=5, or who plays with whom, env.teams=…,
            or what observations consist of, env.channels=…; may be repeated.
        out (FILE.json): Where the certificate is kept. Default: see above.
        json_: Print one object, as kept in RUN/certificates; see above.
        typed: What was given of `SETTINGS`.
    """
    from rich.console import Console

    console = Console(stderr=True)
    # Whatever a library prints must not get between the braces.
    with contextlib.redirect_stdout(sys.stderr):
        with waiting("Loading torch", console=console):
            from marl_aajr.certificates import certify as prove
        began = perf_counter()
        with CertifyingProgress(console) as progress:
            found = prove(
                run,
                env=env,
                env_kwargs=env_arguments(set_ or ()),
                out=out,
                on_progress=progress,
                **values(SETTINGS, typed),
            )
    if json_:
        print(found.model_dump_json())
        return
    seconds = perf_counter() - began
    from marl_aajr.evaluation.sources import certificates_of
    from marl_aajr.training.run_directory import RunDirectory

    kept = out or (None if RunDirectory(run).is_run else certificates_of(run))
    show(found, run, kept=kept, seconds=seconds)


def show(certificate: Certificate, run: Path, *, seconds: float, kept: Path | None = None) -> None:
    """Print a certificate; without a file where it is kept, it is in the run's folder."""
    from rich.console import Console

    console = Console()
    number = f"{certificate.decisions:,} greedy decisions of {certificate.episodes} unattacked episodes"
    say(console, f"Team {certificate.team}, {number}, ε in {certificate.units} units")
    votes = certificate.votes
    alone = "whole steps" if votes else "by intervals"
    numbers = ["certified", alone, "nobody knows", "attacked"]
    numbers += ["mean moves by at most"] if certificate.continuous else []
    shown = table_of(numbers=["ε", *numbers])
    for size in certificate.sizes:
        unknown = max(0.0, 1 - size.certified - size.attacked)
        shares = (size.certified, size.whole_steps if votes else size.interval, unknown, size.attacked)
        moves = ["–" if size.mean_change is None else f"{size.mean_change:.3g}"] * certificate.continuous
        shown.add_row(f"{size.epsilon:g}", *(f"{share or 0:.1%}" for share in shares), *moves)
    changed = "some mean moves by more than σ" if certificate.continuous else "another action is greedy"
    proof = "but for a probability" if votes else "provably"
    shown.caption = f"certified: {proof} no perturbation changes it; attacked: one was found ({changed})"
    shown.caption += "; whole steps: all agents are certified at once" if votes else ""
    console.print(shown, highlight=False, markup=False)
    if votes:
        say(console, f"{_price(certificate.decisions, votes)} All of it took {seconds:.0f} s.")
    half = certificate.largest[len(certificate.largest) // 2]
    say(console, f"Half of the decisions are certified for ε ≥ {half:.3g}.")
    where = f"On a page: marl-aajr compare {shlex.quote(str(run))}" if kept is None else f"Kept in {kept}"
    say(console, where)


def _price(decisions: int, votes: Votes) -> str:
    """What votes and their certificates cost, and how sure they are."""
    passes = decisions * votes.samples
    return (
        f"Votes under noise of σ = {votes.smoothing.sigma:g}: {votes.smoothing.samples} passes for each "
        f"decision as it is played, and {votes.samples} to certify it ({passes:,} in all). Each is wrong "
        f"with a probability of {votes.alpha:g} at most; {votes.abstained:.1%} of the decisions have none."
    )
