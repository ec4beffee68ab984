"""How threats that have no size are played: faults with every draw of what breaks, other dynamics."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import MISSING, fields

import torch

from marl_aajr.attacks import Attack, Fault
from marl_aajr.evaluation.counted_episodes import Played
from marl_aajr.evaluation.evaluator import Evaluator
from marl_aajr.evaluation.outcomes import Actions
from marl_aajr.evaluation.row_games import AttackTask, Row, label_of
from marl_aajr.evaluation.team_returns import TeamReturns
from marl_aajr.evaluation.threats import ThreatOutcome
from marl_aajr.evaluation.variations import parse_variation
from marl_aajr.rollout.environments import make_batch


def play_fault(
    evaluator: Evaluator, task: AttackTask, fault: Fault
) -> tuple[ThreatOutcome, ThreatOutcome] | tuple[float, ...]:
    """The random and the worst form; on the selection episodes the returns of the random one."""
    played = []
    for draw in range(fault.draws):
        run = evaluator.attack_run(fault, task.agents, draw=draw)
        row = Row(task.actions, side=task.side, attack=run, selection=task.selection)
        played += evaluator.play_rows(label_of([task]), [row])
    if task.selection:
        return evaluator.returns.each(torch.stack([one.returns for one in played]).mean(0))
    return fault_outcomes(fault, tuple(run.agents), played, evaluator.returns)


def play_beside(evaluator: Evaluator, task: AttackTask) -> tuple[ThreatOutcome, ...] | tuple[float, ...]:
    """The row of an attack on other channels than those of the suite, or of words."""
    attack = task.attack
    run = evaluator.attack_run(attack, task.agents, schedule=task.schedule)
    row = Row(task.actions, side=task.side, attack=run, selection=task.selection)
    (played,) = evaluator.play_rows(label_of([task]), [row])
    if task.selection:
        return evaluator.returns.each(played.returns)
    own = {
        f.name: value
        for f in fields(attack)
        if f.repr and f.default is not MISSING and (value := getattr(attack, f.name)) != f.default
    }
    source = "".join(str(own.pop(name, "")) for name in ("source", "adversary"))
    found = ThreatOutcome(
        **evaluator.returns.outcome(played),
        kind="channel" if attack.sized else "message",
        name=attack.name,
        form="random" if attack.access == "none" else "worst",
        settings=limits_of(attack) | own,
        agents=tuple(run.agents),
        source=source,
    )
    return (found,)


def limits_of(attack: Attack) -> dict[str, object]:
    """Size, norm and limits of an attack's set, as far as they are given."""
    limits = attack.perturbations
    size = {"epsilon": limits.epsilon} if attack.sized else {}
    norm = {"norm": limits.norm} if attack.sized and limits.norm != "linf" else {}
    named = ("mask", "scale", "low", "high", "channels")
    return {**size, **norm} | {n: value for n in named if (value := getattr(limits, n)) is not None}


def play_dynamics(evaluator: Evaluator, actions: Actions) -> Iterator[ThreatOutcome]:
    """A row for each value of the arguments that the suite varies, on copies of their own."""
    for variation in map(parse_variation, evaluator.suite.vary):
        for value, spec in variation.specs(evaluator.spec):
            settings = {variation.argument: value}
            with closing(make_batch(spec, evaluator.env.num_envs, flat=True)) as env:
                row = Row(actions, env=env)
                (played,) = evaluator.play_rows(f"{variation.argument} = {value}", [row])
            yield ThreatOutcome(
                **evaluator.returns.outcome(played),
                kind="dynamics",
                name=variation.argument,
                form="value",
                settings=settings,
            )


def fault_settings(fault: Fault) -> dict[str, object]:
    """The settings of a fault that differ from none: its size, if it has one, its own, its limits."""
    beside = {"perturbations", "objective", "draws"}
    own = {f.name: getattr(fault, f.name) for f in fields(fault) if f.repr and f.name not in beside}
    return limits_of(fault) | own


def fault_outcomes(
    fault: Fault, agents: tuple[str, ...], played: Sequence[Played], returns: TeamReturns
) -> tuple[ThreatOutcome, ThreatOutcome]:
    """The random and the worst form of a fault, from its draws of the same episodes."""
    earned = torch.stack([draw.returns for draw in played])
    worst = torch.stack([torch.tensor(returns.each(draw.returns)) for draw in played]).argmin(0)
    known = set.intersection(*(set(draw.metrics) for draw in played))
    metrics = {name: torch.stack([draw.metrics[name] for draw in played]) for name in sorted(known)}
    episodes = torch.arange(len(worst))
    forms = {
        "random": Played(earned.mean(0), {name: values.mean(0) for name, values in metrics.items()}),
        "worst": Played(
            earned[worst, episodes], {name: values[worst, episodes] for name, values in metrics.items()}
        ),
    }
    random, least = (
        ThreatOutcome(
            **returns.outcome(rows),
            kind="fault",
            name=fault.name,
            form=form,  # type: ignore[arg-type]
            settings=fault_settings(fault),
            agents=agents,
            draws=fault.draws,
        )
        for form, rows in forms.items()
    )
    return random, least
