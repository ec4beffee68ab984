"""The pilot's pursuers against one and the same prey: that of plain PPO, which none of them was trained with.

    .venv/bin/python scripts/pilot_crossplay.py

In a competitive game a method changes both sides, so the pursuers of each method met another prey in
training and in the study's own judgement: a return can be high because the prey became worse. Here the
pursuers of every run play the prey of plain PPO of the next seed (of the last seed: of the first) under the
standard suite without learned adversaries. Reads the runs of studies/pilot, writes
experiments/pilot/crossplay.parquet: rows with the columns of results.parquet, without the returns of single
episodes.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet
import torch

from marl_aajr.evaluation import evaluate
from marl_aajr.training.run_directory import RunDirectory
from marl_aajr.victims import Victim

ROOT = Path(__file__).resolve().parent.parent
PREY = "agent"
SEEDS = 3


def main() -> None:
    """Evaluate all pursuers and write the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--study", type=Path, default=ROOT / "studies" / "pilot")
    parser.add_argument("--out", type=Path, default=ROOT / "experiments" / "pilot" / "crossplay.parquet")
    parser.add_argument("--jobs", type=int, default=2, help="evaluations at a time, one core each")
    options = parser.parse_args()
    runs = sorted((options.study / "runs").glob("simple_tag_v3-*"))
    if not runs:
        parser.error(f"expected the runs of the pilot, got none in {options.study}; run it, or give --study")
    rows: list[dict[str, Any]] = []
    with ProcessPoolExecutor(options.jobs) as pool:
        for done, found in enumerate(pool.map(judged, runs), 1):
            rows += found
            name, clean = found[0]["run"], found[0]["return"]
            print(f"{done} of {len(runs)}: {name}: {clean:.1f} without an attack", flush=True)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), options.out)


def judged(run: Path) -> list[dict[str, Any]]:
    """Rows of one run's pursuers against the prey of another run."""
    torch.set_num_threads(1)
    config = RunDirectory(run).config()
    other = run.with_name(f"simple_tag_v3-none-s{(config.seed + 1) % SEEDS}")
    victim, stranger = Victim.load(run / "victim"), Victim.load(other / "victim")
    crossed = replace(victim, modules={**victim.modules, PREY: stranger.modules[PREY]})
    evaluation = evaluate(crossed, suite="standard", team="adversary", workers=1).to_json()
    common = {"run": run.name, "environment": config.env.name, "seed": config.seed}
    common |= {"config": config.model_dump_json(), "prey": other.name}
    return [{**common, **row} for actions in (evaluation, *evaluation["others"]) for row in played(actions)]


def played(rows: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The clean row and the attacked ones of one kind of actions."""
    kept = ("attack", "settings", "epsilon", "return", "success_rate")
    worst = {(row["attack"], row["settings"], row["epsilon"]) for row in rows["worst"]}
    clean = {"attack": "none", "settings": "", "epsilon": 0.0, **rows["clean"]}
    for row in (clean, *rows["attacks"]):
        chosen = (row["attack"], row["settings"], row["epsilon"]) in worst
        yield {"actions": rows["actions"], "worst": chosen, **{key: row.get(key) for key in kept}}


if __name__ == "__main__":
    main()
