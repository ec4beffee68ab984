"""Whether trained adversarial agents have learned enough for their rows to say something."""

from __future__ import annotations

from marl_aajr.evaluation.result import ActionsResult, Check
from marl_aajr.evaluation.return_checks import lower


def agent_checks(rows: ActionsResult) -> list[Check]:
    """A trained adversary must hurt as much as a random or idle agent in its place, and the victim's own."""
    found = []
    for row in rows.adversarial_agents:
        if not row.trained:
            continue
        rivals = {"the agent that it replaces": rows.clean} | {
            f"a {control.kind} one": control
            for control in rows.adversarial_agents
            if not control.trained and control.agents == row.agents
        }
        name = f"returns ({rows.actions}): {row.label}"
        weaker = {what: rival for what, rival in rivals.items() if lower(rival, row)}
        if not weaker:
            found.append(Check(name, "pass", "It hurts as much as random and idle agents in its place."))
            continue
        what = min(weaker, key=lambda rival: weaker[rival].mean)
        found.append(
            Check(
                name,
                "fail",
                f"Undertrained: it leaves the team a return of {row.mean:.3g}, {what} leaves "
                f"{weaker[what].mean:.3g}. Train it longer before you take its row for robustness.",
            )
        )
    return found
