"""Make the page of the pilot again: experiments/pilot/report.html.

    python scripts/pilot_page.py --crossplay studies/crossplay

The pilot's own runs are gone. What it played on simple_spread is read from its tables (results.parquet,
training.parquet), beside a team that does nothing and one that acts at random, played anew on the same
episodes. On simple_tag, where it met its own prey alone, stand the runs of experiments/crossplay.yaml, which
were trained anew and met one pool of prey.
"""

from __future__ import annotations

import argparse
import ast
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet
from torch import nn

from marl_aajr.adversaries.learned import LearnedAttack  # noqa: F401  # registers pa-ad
from marl_aajr.attacks import attack_class
from marl_aajr.core.checks import grouped
from marl_aajr.evaluation import Evaluation, evaluate
from marl_aajr.evaluation.outcomes import AttackOutcome, AttackSpec, Outcome
from marl_aajr.evaluation.result import ActionsResult, PlayedEnvironment
from marl_aajr.evaluation.worst_attack import WorstAttack
from marl_aajr.report import EvaluatedRun, Notes, compare_each, write_report
from marl_aajr.rollout.environments import resolve
from marl_aajr.training.run_record import Iteration, Status
from marl_aajr.victims import Victim

ROOT = Path(__file__).resolve().parent.parent
PILOT = ROOT / "experiments" / "pilot"
GAME = "marl_aajr.envs.simple_spread_v3"
SUMMARY = """\
On simple_spread the returns that the pilot found: plain PPO, AAJR at three shares κ of the adversarial loss,
the smooth policy penalty, the Frobenius Jacobian penalty and adversarial training without a penalty. Its runs
are gone; the numbers of this page are those of its tables, without the checks that its evaluations made of
themselves.

On simple_tag, where the pilot judged pursuers by their own prey, its methods were trained anew with the
defaults of today (the penalty on a twentieth of the samples instead of a tenth), against one pool of prey.

Nothing was tuned, AAJR has four settings on simple_spread where its rivals have one, and three seeds settle
nothing."""

Rows = Sequence[Mapping[str, Any]]


def main() -> None:
    """Write the page."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--crossplay", type=Path, default=Path("studies/crossplay"), help="the study's folder"
    )
    parser.add_argument("--out", type=Path, default=PILOT / "report.html")
    options = parser.parse_args()
    trained_anew = sorted(
        path for path in options.crossplay.glob("runs/*") if (path / "evaluations").is_dir()
    )
    notes = Notes(
        summary=SUMMARY,
        command=f"marl-aajr study experiments/crossplay.yaml\npython {Path(__file__).relative_to(ROOT)}",
    )
    title = "Pilot: AAJR, its rivals and plain PPO on simple_spread and simple_tag"
    write_report(compare_each([*recorded_runs(), *trained_anew]), options.out, title=title, notes=notes)


def recorded_runs() -> list[EvaluatedRun]:
    """The pilot's runs on simple_spread, as far as its tables know them."""
    played = pyarrow.parquet.read_table(PILOT / "results.parquet").to_pylist()
    curves = grouped((row["run"], row) for row in _read_curves())
    nothing = learned_nothing()
    runs = grouped((row["run"], row) for row in played if row["environment"] == GAME)
    return [_recorded_run(name, rows, curves[name], nothing) for name, rows in runs.items()]


def learned_nothing() -> Evaluation:
    """A team that does nothing and one that acts at random, on the pilot's episodes."""
    spec = resolve(GAME)
    game = spec.make()
    spaces = {agent: game.observation_spaces[agent] for agent in game.possible_agents}
    anybody = Victim(
        module_of={agent: agent for agent in spaces},
        modules={agent: nn.Linear(space.shape[0], 5) for agent, space in spaces.items()},
        observation_spaces=spaces,
        action_spaces={agent: game.action_spaces[agent] for agent in spaces},
        env_name=spec.name,
    )
    team = ",".join(spaces)
    replaced = [f"random:{team}", f"idle:{team}"]
    return evaluate(anybody, replace=replaced, episodes=100, actions=["greedy", "sampled"])


def _read_curves() -> Rows:
    return pyarrow.parquet.read_table(PILOT / "training.parquet").to_pylist()


def _recorded_run(name: str, rows: Rows, curves: Rows, nothing: Evaluation) -> EvaluatedRun:
    (first, *_) = rows
    evaluation = nothing.model_copy(
        update={
            "env": PlayedEnvironment(name=GAME),
            "suite": first["suite"],
            "selection_episodes": 50,
            "results": tuple(
                _result([row for row in rows if row["actions"] == found.actions], found)
                for found in nothing.results
            ),
        }
    )
    return EvaluatedRun(
        path=Path("studies/pilot/runs") / name,
        config=json.loads(first["config"]),
        status=Status("finished", curves[-1]["iteration"], first["env_steps"]),
        versions=None,
        metrics=tuple(_iteration(row) for row in curves),
        evaluations={"standard": evaluation},
    )


def _iteration(row: Mapping[str, Any]) -> Iteration:
    metrics = {"entropy": row["entropy"]} | ({} if row["gain"] is None else {"aajr/gain_mean": row["gain"]})
    known = {key: row[key] for key in ("iteration", "env_steps", "seconds", "return_mean")}
    return Iteration(**known, modules={row["module"]: metrics})


def _result(rows: Rows, nothing: ActionsResult) -> ActionsResult:
    """The rows of one kind of actions.

    Which attack is the worst was decided on episodes that the tables do not hold, nor do they know gains and
    divergences, which the page does not show: both are 0 here.
    """
    attacked = [(row["worst"], _attacked(row)) for row in rows if row["epsilon"]]
    (clean,) = (_outcome(row) for row in rows if row["attack"] == "none")
    worst = (WorstAttack.of([(found, found.mean)]) for chosen, found in attacked if chosen)
    return ActionsResult(
        actions=nothing.actions,
        clean=Outcome(**clean),
        attacks=tuple(found for _, found in attacked),
        worst=tuple(worst),
        adversarial_agents=nothing.adversarial_agents,
    )


def _attacked(row: Mapping[str, Any]) -> AttackOutcome:
    call = ast.parse(row["settings"], mode="eval").body
    assert isinstance(call, ast.Call)
    settings = {str(keyword.arg): ast.literal_eval(keyword.value) for keyword in call.keywords}
    spec = AttackSpec(
        name=row["attack"],
        access=attack_class(row["attack"]).access,
        epsilon=row["epsilon"],
        norm=settings.pop("norm"),
        source=settings.pop("source", settings.pop("adversary", "")),
        settings=settings,
    )
    return AttackOutcome(
        **_outcome(row),
        attack=spec,
        epsilons=dict.fromkeys(row["agents"], row["epsilon"]),
        success_rate=row["success_rate"],
        objective_gain=0.0,
        kl=0.0,
    )


def _outcome(row: Mapping[str, Any]) -> dict[str, Any]:
    return {"mean": row["return"], "low": row["low"], "high": row["high"], "returns": row["returns"]}


if __name__ == "__main__":
    main()
