"""The tables of experiments/language/README.md, and the verdicts on its hypotheses.

    .venv/bin/python scripts/language_summary.py

Everything is paired by the seed of training, as in minimax_verdicts.py. `--collect studies/language_bargain
studies/language_bargain_words` first gathers the rows of these studies, without single episodes, in
results.parquet.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import pyarrow.parquet
from experiment_tables import read, results_of
from minimax_verdicts import PLAIN, below, interval, line, markdown, methods, paired, score_by_seed
from study_tables import EXPERIMENTS, SEEDS, of, show

from marl_aajr.report.estimates import Estimate

WORDS = (1, 2, 3, 4)
BEST, DEAF = 16.0, 11.0
"""The best deal, and the best that agents can do who do not listen: both agents together, an episode."""

LOSS, AAJR, SMOOTH, ATTACKED = (
    "off-policy adversarial loss, κ = 0.5",
    "AAJR, κ = 0, λ = 0.001",
    "smooth policy, λ = 0.1",
    "adversarial training",
)
LIAR, CONTROL, HOTFLIP = "traitor", "words-random", "words-gradient"

Rows = Sequence[Mapping[str, Any]]


def main() -> None:
    """Print the tables and the verdicts."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--collect", type=Path, nargs="+", metavar="STUDY")
    options = parser.parse_args()
    file = EXPERIMENTS / "language" / "results.parquet"
    if options.collect:
        pyarrow.parquet.write_table(results_of(options.collect), file)
    rows = read(file)
    for actions in ("greedy", "sampled"):
        if played := of(rows, actions=actions):
            show(f"bargain_v0, {actions} actions", table(played))
    show("the hypotheses", verdicts(of(rows, actions="greedy")))


def table(rows: Rows) -> list[str]:
    """Lines of Markdown: returns by the words that the worst attack replaces, by chance, and with a liar."""
    titles = ["", "no attack", *(f"{m} word{'s' * (m > 1)}" for m in WORDS)]
    titles += ["2 by HotFlip", "2 at random", "with a liar", "decisions changed"]
    lines = []
    for method in methods(rows):
        found = [score_by_seed(rows, method, float(m)) for m in (0, *WORDS)]
        found += [under(rows, method, HOTFLIP, 2.0), under(rows, method, CONTROL, 2.0)]
        found += [under(rows, method, LIAR, None)]
        lines.append([method, *map(_cell, found), f"{_changed(rows, method):.1%}"])
    return markdown(titles, lines)


def under(rows: Rows, method: str, attack: str, epsilon: float | None) -> dict[int, float]:
    """A method's return by seed under one attack; of several rows the lowest."""
    found: dict[int, float] = {}
    for row in rows:
        if (row["label"], row["attack"], row["epsilon"]) == (method, attack, epsilon):
            found[row["seed"]] = min(row["return"], found.get(row["seed"], row["return"]))
    return found


def _changed(rows: Rows, method: str) -> float:
    """The share of greedy decisions that two words of the greedy attack change."""
    greedy = (method, "words-greedy", 2.0)
    return fmean(r["success_rate"] for r in rows if (r["label"], r["attack"], r["epsilon"]) == greedy)


def verdicts(rows: Rows) -> list[str]:
    """Lines of Markdown: hypotheses with their statistics and verdicts, by rows of one kind of actions."""
    lines = ["| hypothesis | statistics: difference with its interval | verdict |", "|---|---|---|"]
    for hypothesis in (_learns, _hurt, _embeddings, _aajr, _direction, _liar, _words):
        try:
            lines.append(hypothesis(rows))
        except ValueError:
            lines.append(f"| {(hypothesis.__doc__ or '').rstrip('.')} | | not run yet |")
    return lines


def _learns(rows: Rows) -> str:
    """0. It learns."""
    clean = _mean(score_by_seed(rows, PLAIN, 0.0))
    return line(_learns, {"clean": clean}, supported=clean.mean >= 0.9 * BEST, refuted=clean.mean < 12)


def _hurt(rows: Rows) -> str:
    """1. Words hurt who was trained plainly."""
    lost = paired(*(score_by_seed(rows, PLAIN, words) for words in (2.0, 0.0)))
    return line(_hurt, {"2 words": lost}, supported=below(lost, 0), refuted=lost.mean > -0.2)


def _embeddings(rows: Rows) -> str:
    """2. Embeddings stand for words."""
    return _helps(_embeddings, rows, LOSS)


def _aajr(rows: Rows) -> str:
    """3. AAJR helps readers."""
    return _helps(_aajr, rows, AAJR)


def _direction(rows: Rows) -> str:
    """4. The direction matters."""
    worst = paired(*(score_by_seed(rows, name, 2.0) for name in (AAJR, SMOOTH)))
    return line(_direction, {"2 words": worst}, supported=worst.positive, refuted=below(worst, 0))


def _liar(rows: Rows) -> str:
    """5. Nobody withstands a liar."""
    found = {name: _mean(under(rows, name, LIAR, None)) for name in methods(rows)}
    best = max(each.mean for each in found.values())
    return line(_liar, found, supported=best < DEAF, refuted=best >= DEAF)


def _words(rows: Rows) -> str:
    """6. Training under other words helps."""
    return _helps(_words, rows, ATTACKED)


def _helps(hypothesis: Callable[..., str], rows: Rows, name: str) -> str:
    """A better worst return under 2 words than plain PPO's, for at most 1 of the return without an attack."""
    clean, worst = (
        paired(*(score_by_seed(rows, each, words) for each in (name, PLAIN))) for words in (0.0, 2.0)
    )
    return line(
        hypothesis,
        {"clean": clean, "2 words": worst},
        supported=worst.positive and clean.mean >= -1,
        refuted=below(worst, 0),
    )


def _mean(scores: Mapping[int, float]) -> Estimate:
    if len(scores) != SEEDS:
        raise ValueError(f"expected {SEEDS} runs, got {len(scores)}")
    return Estimate.over("runs", list(scores.values()), level=0.95)


def _cell(scores: Mapping[int, float]) -> str:
    return interval(_mean(scores)) if len(scores) == SEEDS else ""


if __name__ == "__main__":
    main()
