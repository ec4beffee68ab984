"""The tables of adversaries, by hand-made numbers."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from marl_aajr.report import compare, load_run
from marl_aajr.report.adversaries import learned, of_training, undertrained, weakest_links
from tests.report.evaluations import evaluation
from tests.report.factory import cells, compared, write_run


class TestLearnedAdversaries:
    def with_learned(self, loss: float) -> dict[str, Any]:
        content = evaluation(attacks={("pgd", 0.1): -8.0, ("sa-rl", 0.1): loss})
        content["attacks"][1]["access"] = "learned"
        return content

    def test_one_that_takes_more_than_the_myopic_ones_is_shown_beside_them(self, tmp_path: Path) -> None:
        comparison = compared(tmp_path, none=[self.with_learned(-20.0)])
        blocks = learned(comparison)
        (own,), (other,) = (
            cells(blocks, "ε = 0.1", header) for header in ("sa-rl", "strongest that is not learned")
        )
        assert (own.main, own.note, other.main) == ("−60.0", "", "−48.0")
        assert list(undertrained(comparison)) == []

    def test_one_that_takes_less_is_called_undertrained(self, tmp_path: Path) -> None:
        comparison = compared(tmp_path, none=[self.with_learned(-2.0), self.with_learned(-9.0)])
        (own,) = cells(learned(comparison), "ε = 0.1", "sa-rl")
        assert own.note == "undertrained in 1 of 2"
        (line,) = undertrained(comparison)
        assert line.startswith("sa-rl at ε = 0.1 leaves more return than a myopic attack in 1 of 2 runs")

    def test_chance_does_not_make_it_undertrained(self, tmp_path: Path) -> None:
        content = self.with_learned(-7.9)
        row = content["attacks"][1]
        shuffled = row["returns"][::-1]
        content["attacks"][1] = row | {"returns": shuffled}
        assert list(undertrained(compared(tmp_path, none=[content]))) == []

    def test_without_any_there_is_no_table(self, tmp_path: Path) -> None:
        assert learned(compared(tmp_path, none=[evaluation()])) == ()


class TestTheAttackOfTraining:
    def trained(self, clean: float, known: float, *, epsilon: float = 0.1) -> dict[str, Any]:
        content = evaluation(clean)
        row = {**content["attacks"][0], "attack": "training_attack", "epsilon": epsilon}
        moved = [x + known - row["mean"] for x in row["returns"]]
        ends = {end: row[end] + known - row["mean"] for end in ("mean", "low", "high")}
        return content | {"training_attack": row | ends | {"returns": moved}}

    def test_the_gap_to_the_strongest_is_over_the_same_runs(self, tmp_path: Path) -> None:
        several = [self.trained(-40.0, -44.0), self.trained(-30.0, -35.0)]
        one = [self.trained(-40.0, -46.5)]
        blocks = of_training(compared(tmp_path, none=[evaluation()], aajr=several, frobenius=one))
        assert [block.title for block in blocks] == ["ε = 0.1"]
        found = {line.header: [cell.main for cell in line.cells] for line in blocks[0].lines}
        assert found == {
            "attack of training": ["—", "−39.5", "−46.5"],
            "strongest of its size": ["—", "−43.0", "−48.0"],
            "gap": ["—", "3.5", "1.5"],
        }
        assert blocks[0].lines[2].cells[1].under == "[−2.9,\u00a09.9]", "t of 4 and 3"
        assert blocks[0].lines[2].cells[2].under == "[1.5,\u00a01.5]", "the same noise in both"

    def test_a_size_that_nothing_else_has_has_no_gap(self, tmp_path: Path) -> None:
        (block,) = of_training(compared(tmp_path, aajr=[self.trained(-40.0, -44.0, epsilon=0.15)]))
        assert [line.cells[0].main for line in block.lines] == ["−44.0", "—", "—"]
        assert of_training(compared(tmp_path / "other", none=[evaluation()])) == ()


class TestWeakestLink:
    attacks: ClassVar = {("noise", 0.1): -1.0, ("pgd", 0.1): -8.0}

    def searched(
        self, *means: float, attacks: Mapping[tuple[str, float], float] = attacks, **changes: Any
    ) -> dict[str, Any]:
        """Under noise agent i is left with the i-th, under PGD with one less, ± 1 in two episodes."""
        content = evaluation(attacks=attacks, selection_episodes=2, clean_selection=[-31.0, -29.0], **changes)
        content["subsets"] = [
            {
                **{key: row[key] for key in ("attack", "settings", "epsilon")},
                "agents": [f"agent_{i}"],
                "returns": [(mean := x - (row["attack"] == "pgd")) - 1.0, mean + 1.0],
            }
            for i, x in enumerate(means)
            for row in content["attacks"]
        ]
        return content

    def test_each_subset_counts_with_the_attack_that_hurts_it_most(self, tmp_path: Path) -> None:
        comparison = compared(tmp_path, none=[self.searched(-40, -50), self.searched(-42, -48)])
        title, blocks = "ε = 0.1, 1 agent attacked (2 episodes)", weakest_links(comparison)
        strong, weak = (cells(blocks, title, f"agent_{i}")[0] for i in (0, 1))
        assert (strong.main, strong.under, strong.note, strong.mark) == ("−42.0", "pgd", "", "")
        assert (weak.main, weak.note, weak.mark) == ("−50.0", "weakest in 2 of 2", "worst")
        assert [cell.main for cell in cells(blocks, title, "no attack")] == ["−30.0"]

    def test_where_runs_disagree_nobody_is_marked(self, tmp_path: Path) -> None:
        runs = [self.searched(-40, -50), self.searched(-50, -40)]
        (block,) = weakest_links(compared(tmp_path, none=runs))
        assert {line.cells[0].note for line in block.lines[1:]} == {"weakest in 1 of 2"}
        assert {line.cells[0].mark for line in block.lines} == {""}

    def test_a_lowest_within_noise_of_the_next_is_not_marked(self, tmp_path: Path) -> None:
        content = self.searched(-40, -50)
        for subset in content["subsets"][:2]:
            subset["returns"].reverse()
        (block,) = weakest_links(compared(tmp_path, none=[content]))
        assert {(line.cells[0].note, line.cells[0].mark) for line in block.lines} == {("", "")}

    def test_an_attack_that_not_all_runs_faced_does_not_count(self, tmp_path: Path) -> None:
        more = self.searched(-40, -50, attacks={("noise", 0.1): -1.0, ("pgd", 0.1): -9.0})
        fewer = self.searched(-40, -50, attacks={("noise", 0.1): -1.0})
        blocks = weakest_links(compared(tmp_path, none=[more], aajr=[fewer]))
        found = cells(blocks, "ε = 0.1, 1 agent attacked (2 episodes)", "agent_1")
        assert [(cell.main, cell.under) for cell in found] == [("−50.0", "noise"), ("−50.0", "noise")]

    def test_each_budget_has_a_block_of_its_own(self, tmp_path: Path) -> None:
        agents = ["agent_0", "agent_1"]
        who: dict[str, Any] = {"agents": agents, "attacks": self.attacks}
        files = {
            "always": self.searched(-40, -50, **who),
            "seldom": self.searched(-35, -36, budget="steps=5,timing=random", **who),
        }
        for content in files.values():
            content["teams"] = dict.fromkeys(agents, "team")
        run = load_run(write_run(tmp_path / "run", evaluations=files))
        blocks = weakest_links(compare([run]))
        attacked = "ε = 0.1, 1 agent attacked"
        assert [block.title for block in blocks] == [
            f"{attacked} (2 episodes)",
            f"{attacked}, 5 steps (random) (2 episodes)",
        ]
        assert [block.lines[2].cells[0].main for block in blocks] == ["−51.0", "−37.0"]

    def test_without_subsets_there_is_no_table(self, tmp_path: Path) -> None:
        assert weakest_links(compared(tmp_path, none=[evaluation()])) == ()
