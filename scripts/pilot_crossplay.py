"""The pilot's pursuers against prey of plain PPO that they have not met, and the other way round.

    .venv/bin/python scripts/pilot_crossplay.py

In a competitive game a method changes both sides, so in training and in the study's own evaluation the
pursuers of each method met another prey. Here (a) the pursuers of every run meet the prey of plain PPO
of the next seed (of the last seed: of the first), under the standard suite without learned adversaries,
and (b) the prey of every run is met by the pursuers of plain PPO of the next seed, without an attack.
Greedy and sampled rows are so for both sides. Runs of a seed meet the same stranger. Reads the runs of
studies/pilot, writes crossplay.parquet (a) and prey.parquet (b) to experiments/pilot: rows as in
results.parquet, without the returns of single episodes.
"""

from __future__ import annotations

import argparse
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet
import torch

from marl_aajr.evaluation import evaluate
from marl_aajr.study.report import outcomes
from marl_aajr.training.run_directory import RunDirectory
from marl_aajr.victims import Victim

ROOT = Path(__file__).resolve().parent.parent
PURSUER, PREY = "adversary", "agent"
SEEDS = 3
COLUMNS = ("actions", "attack", "settings", "epsilon", "return", "success_rate", "worst")


def main() -> None:
    """Play everything and write the tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--study", type=Path, default=ROOT / "studies" / "pilot")
    parser.add_argument(
        "--out", type=Path, default=ROOT / "experiments" / "pilot", help="folder of the tables"
    )
    parser.add_argument("--jobs", type=int, default=2, help="evaluations at a time, one core each")
    options = parser.parse_args()
    runs = sorted((options.study / "runs").glob("simple_tag_v3-*"))
    if not runs:
        parser.error(f"expected the runs of the pilot, got none in {options.study}; run it, or give --study")
    with ProcessPoolExecutor(options.jobs) as pool:
        for play, name in ((met_by_strangers, "prey"), (pursuing_strangers, "crossplay")):
            rows: list[dict[str, Any]] = []
            for done, found in enumerate(pool.map(play, runs), 1):
                rows += found
                print(
                    f"{name}: {done} of {len(runs)}: {found[0]['run']}: {found[0]['return']:.1f}", flush=True
                )
            pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), options.out / f"{name}.parquet")


def pursuing_strangers(run: Path) -> list[dict[str, Any]]:
    """Rows of a run's pursuers, against the prey of a plain run."""
    return _rows(run, of=PREY, suite="standard")


def met_by_strangers(run: Path) -> list[dict[str, Any]]:
    """Rows of a plain run's pursuers, against the prey of a run."""
    return _rows(run, of=PURSUER, episodes=100, actions=("greedy", "sampled"))


def _rows(run: Path, *, of: str, **protocol: Any) -> list[dict[str, Any]]:
    """The return of the pursuers where one side of a run is that of the plain run of the next seed."""
    torch.set_num_threads(1)
    config = RunDirectory(run).config()
    other = run.with_name(f"simple_tag_v3-none-s{(config.seed + 1) % SEEDS}")
    victim, stranger = Victim.load(run / "victim"), Victim.load(other / "victim")
    crossed = replace(victim, modules={**victim.modules, of: stranger.modules[of]})
    evaluation = evaluate(crossed, team=PURSUER, workers=1, **protocol)
    common = {
        "run": run.name,
        "seed": config.seed,
        "config": config.model_dump_json(),
        "stranger": other.name,
    }
    played = (row for actions in evaluation.results for row in outcomes(actions))
    return [common | {name: row.get(name) for name in COLUMNS} for row in played]


if __name__ == "__main__":
    main()
