"""How exploitable a team is: the return that it loses to the best response that was trained against it.

    exploitability ≥ J(team, its own side) − J(team, best response)

Training finds a lower bound, which says something where the response has learned all that it could: its
return no longer rises, and nobody else leaves the team less.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from marl_aajr.adversaries.learning_curve import Rise, last_rise
from marl_aajr.core.checks import written
from marl_aajr.evaluation.order_checks import lower
from marl_aajr.evaluation.outcomes import Outcome, ReplacementOutcome
from marl_aajr.evaluation.result import ActionsResult, Check
from marl_aajr.evaluation.worst_attack import Difference, paired_difference

BEST_RESPONSE = "best-response"


class Exploitability(NamedTuple):
    """The return that a team loses to the strongest best response to it.

    Attributes:
        response: its row.
        lost: return against the team's own side, minus that against the response, over the same episodes.
        rise: what the response has gained over the last quarter of its training; None: it is not known.
        stronger: the other opponent that leaves the team least, where that is less beyond doubt; else None.
    """

    response: ReplacementOutcome
    lost: Difference
    rise: Rise | None
    stronger: tuple[str, float] | None

    @property
    def still_rising(self) -> bool:
        """Whether the response was still learning when its training ended."""
        return self.rise is not None and self.rise.goes_on(lost=self.lost.difference)

    @property
    def undertrained(self) -> bool:
        """Whether the team is known to lose more than this to one that has learned all that it could."""
        return self.still_rising or self.stronger is not None


def exploitability(rows: ActionsResult) -> Exploitability | None:
    """The exploitability that an evaluation has found with one kind of actions; None without a best response.

    Of several responses the one counts that leaves the team least, on the selection episodes if there are
    any. A response to other victims is none to these, but an opponent like others.
    """
    responses = [row for row in rows.adversarial_agents if row.met_as == BEST_RESPONSE]
    if not responses:
        return None
    response = min(
        responses, key=lambda row: row.mean if row.selection_return is None else row.selection_return
    )
    rivals: list[tuple[str, Outcome]] = [
        (row.source or row.label, row)
        for row in rows.adversarial_agents
        if row.met_as != BEST_RESPONSE and set(row.agents) == set(response.agents)
    ]
    rivals += [(opponent.opponent, opponent.clean) for opponent in rows.opponents]
    ahead = [(name, rival.mean) for name, rival in rivals if lower(rival, response, among=len(rivals))]
    return Exploitability(
        response=response,
        lost=paired_difference(rows.clean.returns, response.returns),
        rise=None if response.training is None else last_rise(response.training.curve),
        stronger=min(ahead, key=lambda rival: rival[1], default=None),
    )


def response_checks(rows: ActionsResult) -> Iterator[Check]:
    """Whether the best response has learned all that it could."""
    found = exploitability(rows)
    if found is None:
        return
    name, of_steps = f"best response ({rows.actions})", ""
    if found.response.training is not None:
        of_steps = f" of {found.response.training.env_steps:,} env steps"
    if found.stronger is not None:
        rival, left = found.stronger
        text = (
            f"Undertrained: it leaves the team a return of {written(found.response.mean)}, {rival} leaves "
            f"{written(left)}. The team is more exploitable than its row says; train it for longer."
        )
    elif found.still_rising:
        assert found.rise is not None
        text = (
            f"Undertrained: its return was still rising, by {written(found.rise.mean)} over the last quarter"
            f"{of_steps}, and the team has lost {written(found.lost.difference)}. It is more exploitable "
            "than that; train it for longer."
        )
    elif found.rise is None:
        text = f"Its training{of_steps} has too few iterations to tell whether its return was still rising."
    else:
        text = f"Its return no longer rose at the end{of_steps}, and no other opponent leaves the team less."
        yield Check(name, "pass", text)
        return
    yield Check(name, "warn", text)
