"""Opponents and partners in a game whose returns are known: who plays, what is chosen, what is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from marl_aajr.attacks import make_attack
from marl_aajr.evaluation import OWN, Evaluation, Replacement, Suite, evaluate, everybody_met, pool_scores
from marl_aajr.evaluation.evaluator import Evaluator
from marl_aajr.evaluation.sources import file_name
from tests.evaluation.players import moves, sign_reader, signs, team
from tests.matrix_game import matrix_game, players

ROCK, PAPER, SCISSORS = range(3)
TURN = (make_attack("fgsm", epsilon=1.1), 1.1)
WEAK = (make_attack("noise", epsilon=0.1), 0.1)
"""Turns nothing."""


def judged(opponents: Any, row: int = ROCK, **settings: Any) -> Evaluation:
    """The rows of one who always plays rock against its own scissors: 2 a game at home."""
    asked: dict[str, Any] = {"attacks": [TURN, WEAK], "episodes": 6, "num_envs": 4, "selection_episodes": 4}
    return evaluate(players(row, SCISSORS), team="rows", opponents=opponents, **(asked | settings))


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> Evaluation:
    paper = players(SCISSORS, PAPER).save(tmp_path_factory.mktemp("pool") / "paper")
    return judged({"rock": players(ROCK, ROCK), "paper": f"{paper}:columns", "idle": "idle"})


class TestClosedForm:
    def test_each_plays_its_own_strategy_clean_and_under_attack(self, result: Evaluation) -> None:
        """Rock meets rock, paper, action 0; turned by an attack it is scissors."""
        (rows,) = result.results
        assert rows.clean.mean == 2
        assert {name: side.clean.mean for name, side in rows.sides.items()} == {
            OWN: 2,
            "rock": 0,
            "paper": -2,
            "idle": rows.opponents[2].clean.mean,
        }
        turned = {name: side.attacks[0].mean for name, side in rows.sides.items()}
        assert {name: turned[name] for name in (OWN, "rock", "paper")} == {OWN: 0, "rock": -2, "paper": 2}
        for opponent in rows.opponents:
            assert opponent.attacks[1].returns == opponent.clean.returns
        assert {(row.kind, row.agents) for row in rows.opponents} == {
            ("stranger", ("column",)),
            ("idle", ("column",)),
        }
        assert rows.opponents[0].clean.team_returns == {"rows": 0, "columns": 0}

    def test_the_score_is_the_mean_over_the_pool_and_never_counts_the_own_side(
        self, result: Evaluation
    ) -> None:
        (rows,) = result.results
        clean, weak, turned = pool_scores(rows)
        idle = rows.opponents[2]
        assert clean.mean == pytest.approx((0 - 2 + idle.clean.mean) / 3)
        assert clean.by_opponent == {"rock": 0, "paper": -2, "idle": idle.clean.mean}
        assert (clean.worst, clean.worst_mean) == ("paper", -2)
        assert (weak.epsilon, weak.mean, weak.worst) == (0.1, clean.mean, "paper")
        assert turned.epsilon == 1.1
        assert turned.by_opponent["rock"] == -2
        assert turned.worst == "rock"
        assert turned.returns[0] == pytest.approx(
            sum(opponent.attacks[0].returns[0] for opponent in rows.opponents) / 3
        )

    def test_the_worst_is_chosen_on_selection_episodes(self, result: Evaluation) -> None:
        (rows,) = result.results
        lucky = rows.opponents[0].model_copy(update={"clean_selection": (-9.0,)})
        changed = rows.model_copy(update={"opponents": (lucky, *rows.opponents[1:])})
        assert (pool_scores(changed)[0].worst, pool_scores(changed)[0].worst_mean) == ("rock", 0)

    def test_everybody_is_in_one_table(self, result: Evaluation) -> None:
        (rows,) = result.results
        met = everybody_met(rows, result.teams, result.team)
        assert [(each.kind, each.name, each.outcome.mean) for each in met][:3] == [
            ("own", "", 2),
            ("stranger", "rock", 0),
            ("stranger", "paper", -2),
        ]
        assert [each.name for each in met if each.worst] == ["paper"]
        assert met[2].lost is not None
        assert met[2].lost.difference == -4

    def test_a_team_that_has_learned_nothing_meets_every_opponent(self) -> None:
        """Idle draws against idle; against rock it earns what rock loses to it, on the same episodes."""
        told: list[Any] = []
        suite = Suite(controls=("random", "idle"), actions=("greedy", "sampled"))
        pool = {"rock": players(ROCK, ROCK), "idle": "idle"}
        result = judged(pool, suite=suite, attacks=(), on_progress=told.append)
        assert told[-1].done == told[-1].total
        for rows in result.results:
            rock, idle = rows.opponents
            for opponent in rows.opponents:
                played = [(row.kind, row.agents) for row in opponent.adversarial_agents]
                assert played == [("random", ("row",)), ("idle", ("row",))]
            random, nothing = idle.adversarial_agents
            assert nothing.returns == (0,) * 6
            assert set(random.returns) != {0}
            if rows.actions == "greedy":
                earned = rock.adversarial_agents[1].returns
                assert earned == tuple(-left for left in idle.clean.returns) != nothing.returns
            assert rock.adversarial_agents[1].selection_return is None

    def test_controls_of_single_members_meet_the_own_side_only(self) -> None:
        teams = {"a": "hunters", "b": "hunters", "prey": "prey"}
        evaluator: Any = SimpleNamespace(env=SimpleNamespace(teams=teams), team="hunters")
        alone, whole = (Replacement(kind="idle", agents=agents) for agents in (("a",), ("b", "a")))
        traitors = Replacement(kind="traitor", agents=("a", "b"), victim=players(ROCK, ROCK))
        assert Evaluator.whole(evaluator, [alone, whole, traitors]) == [whole]

    def test_a_random_opponent_is_met_half_way(self) -> None:
        rows = judged(["random"], attacks=(), episodes=200, selection_episodes=None).results[0]
        assert rows.opponents[0].clean.mean == pytest.approx(0, abs=0.4)
        assert rows.clean.mean == 2

    def test_a_planted_team_that_only_beats_its_own_side_is_behind_a_better_one(self) -> None:
        pool = {"rock": players(ROCK, ROCK), "other rock": players(PAPER, ROCK)}
        planted, better = (judged(pool, row, attacks=()).results[0] for row in (ROCK, PAPER))
        assert planted.clean.mean == 2 > better.clean.mean == -2
        assert pool_scores(planted)[0].mean == 0 < pool_scores(better)[0].mean == 2


class TestSameEpisodes:
    def test_play_with_its_own_side_does_not_change(self, result: Evaluation) -> None:
        alone = judged(()).results[0]
        assert alone == result.results[0].model_copy(update={"opponents": ()})

    def test_budgets_are_searched_for_each_opponent(self) -> None:
        spec = signs(teams=True)
        stranger = team(spec, sign_reader(-1))
        asked: dict[str, Any] = {"attacks": [(TURN[0], 1.5)], "episodes": 5, "selection_episodes": 3}
        asked |= {"budget": "agents=1,steps=2", "num_envs": 3, "team": "right", "replace": ["idle:agent_1"]}
        asked |= {"actions": ["greedy", "sampled"], "opponents": {"liar": stranger}, "seed": 3}
        seen: list[tuple[int, int]] = []
        asked["on_progress"] = lambda p: seen.append((p.done, p.total))
        one = evaluate(team(spec, sign_reader()), spec, workers=1, **asked)
        assert seen[-1][0] == seen[-1][1]
        for rows in one.results:
            (liar,) = rows.opponents
            assert liar.agents == ("agent_0",)
            assert liar.clean.team_returns["left"] < 0 < rows.clean.team_returns["left"]
            assert liar.clean.returns == rows.clean.returns
            assert liar.subsets == rows.subsets != ()
            assert liar.clean_selection == rows.clean_selection != ()

    def test_an_opponent_that_draws_by_itself_draws_the_same_in_every_row(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        class Drawing(nn.Module):
            """A network that takes any action, by random numbers of its own."""

            def __init__(self) -> None:
                super().__init__()
                self.reseed(0)

            def reseed(self, seed: int) -> None:
                self.rng = np.random.default_rng(seed)

            def forward(self, obs: Tensor) -> Tensor:
                return torch.from_numpy(self.rng.normal(size=(len(obs), 3))).float()

        # Whose rows are never played side by side.
        monkeypatch.setattr("marl_aajr.evaluation.row_games.PettingZooBatch", ())
        pure = players(ROCK, ROCK)
        drawing = {"drawing": replace(pure, modules={**pure.modules, "column": Drawing()})}
        few, many = (
            judged(drawing, attacks=[(WEAK[0].at(size), size) for size in sizes], episodes=20).results[0]
            for sizes in ([0.3], [0.1, 0.2, 0.3])
        )
        (alone,), (company,) = few.opponents, many.opponents
        assert np.std(alone.clean.returns) > 0
        assert company.clean == alone.clean
        assert company.attacks[-1] == alone.attacks[0]
        assert {row.returns for row in company.attacks} == {alone.clean.returns}, "noise turns nothing"

    def test_a_result_with_others_has_another_file(self, result: Evaluation) -> None:
        own = result.model_copy(update={"results": (result.results[0].model_copy(update={"opponents": ()}),)})
        assert file_name(own) != file_name(result)
        assert Evaluation.model_validate_json(result.model_dump_json()) == result


class TestSuites:
    def test_a_suite_names_opponents_and_arguments_replace_them(self) -> None:
        suite = Suite(name="mine", episodes=4, opponents=("random", "idle"))
        for opponents, expected in (((), [("random", 3), ("idle", 3)]), (["idle"], [("idle", 0)])):
            rows = judged(opponents, attacks=(), suite=suite, selection_episodes=None).results[0]
            assert [(each.opponent, len(each.clean_selection)) for each in rows.opponents] == expected


class TestPartners:
    def test_each_place_in_turn_and_which_hurts_most(self) -> None:
        found = evaluate(
            team(signs(), sign_reader()),
            partners={"liar": team(signs(), sign_reader(-1))},
            episodes=12,
            selection_episodes=8,
            num_envs=4,
        )
        rows = found.results[0]
        partners = {row.agents[0]: row for row in rows.adversarial_agents if row.kind == "partner"}
        assert list(partners) == ["agent_0", "agent_1", "agent_2"]
        assert {row.source for row in partners.values()} == {"liar"}
        lost = {agent: 2 * (rows.clean.mean - row.loyal_return) for agent, row in partners.items()}
        assert {a: row.mean for a, row in partners.items()} == pytest.approx(
            {agent: rows.clean.mean - lost[agent] for agent in lost}
        )
        assert lost["agent_1"] < lost["agent_0"]
        assert [agent for agent, row in partners.items() if row.worst] == ["agent_0", "agent_2"], "equal ones"
        kinds = [each.kind for each in everybody_met(rows, found.teams, found.team)]
        assert kinds == ["own", *["partner"] * 3, *["random"] * 3, *["idle"] * 3]

    def test_several_together(self, tmp_path: Path) -> None:
        saved = team(signs(), sign_reader(-1)).save(tmp_path / "liar")
        found = evaluate(team(signs(), sign_reader()), partners=[f"{saved}:agent_2,agent_0"], episodes=4)
        (row, *controls) = found.adversarial_agents
        assert (row.source, row.label) == (
            "liar:agent_2,agent_0",
            f"partner agent_0, agent_2 of {row.source}",
        )
        assert row.mean == 2 * row.loyal_return - found.clean_return
        assert [(c.kind, c.agents) for c in controls] == [("random", row.agents), ("idle", row.agents)]


class TestRefusals:
    @pytest.mark.parametrize(
        ("opponents", "message"),
        [
            (["nowhere"], "expected the folder of a run, .*got nowhere"),
            (["random:cows"], "a team for the opponent 'random:cows' out of rows, columns; got 'cows'"),
            (["random:rows"], "opponent of another team than 'rows', .*got 'random:rows', .*one of columns"),
            ({"own": "random"}, "none that is 'own', got own; rename one"),
            (["idle", "idle"], "expected names of their own for opponents and partners.*got idle, idle"),
            ({"a": "idle", "b": "idle"}, "each opponent once, got 'a' and 'b', which are the same"),
            ({"me": players(ROCK, SCISSORS)}, "opponent 'me' to be somebody else, got the evaluated victim"),
            ({"a": players(PAPER, ROCK), "b": players(PAPER, ROCK)}, "each opponent once, got 'a' and 'b'"),
            ({"x": team(signs())}, "opponent 'x' to be trained in tests.matrix_game.*, got one of .*Signs"),
            (
                {"x": replace(team(signs()), env_name="")},
                "expected the opponent 'x' that plays column, got one for agent_0",
            ),
            (
                {"x": players(0, 0, matrix_game([[0, 1], [1, 0]]))},
                r"the opponent 'x' for the actions Discrete\(3\) of 'column', got one for Discrete\(2\)",
            ),
            (
                {"x": replace(players(PAPER, PAPER), greedy_only=True)},
                "expected greedy actions for a victim without a distribution",
            ),
            ({"x": 3}, "expected a victim for 'x', got a int"),
        ],
    )
    def test_by_name_before_anything_is_played(self, opponents: Any, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            judged(
                opponents,
                attacks=(),
                actions=["greedy", "sampled"],
                on_progress=lambda _: pytest.fail("it was played"),
            )

    def test_a_game_of_one_team(self) -> None:
        with pytest.raises(ValueError, match=r"several teams for the opponent 'idle', .*\(--partner\)"):
            evaluate(team(signs()), opponents=["idle"])

    @pytest.mark.parametrize(
        ("partners", "message"),
        [
            (["random"], "a run or a victim as a partner, got 'random'; say --replace random"),
            ({"x": team(moves())}, "the partner 'x' to be trained in .*Signs, got one of .*Moves"),
        ],
    )
    def test_partners(self, partners: Any, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            evaluate(team(signs()), partners=partners, on_progress=lambda _: pytest.fail("it was played"))

    def test_partners_of_the_other_team_and_of_everybody(self, tmp_path: Path) -> None:
        folder = players(PAPER, PAPER).save(tmp_path / "paper")
        with pytest.raises(ValueError, match="of team 'rows' for the partner 'paper:column' out of row"):
            judged((), partners=[f"{folder}:column"])
        with pytest.raises(ValueError, match="somebody of team 'rows' to be left"):
            judged((), partners=[folder])

    def test_other_arguments_of_the_environment_are_said(self) -> None:
        longer = players(PAPER, PAPER, matrix_game(steps=5))
        found = judged({"x": longer}, attacks=())
        (note,) = [check for check in found.checks if check.name == "company of x"]
        assert "'steps': 5" in note.text
        assert note.verdict == "warn"
