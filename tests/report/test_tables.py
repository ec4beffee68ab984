"""What the tables of the page hold, by hand-made numbers."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import pytest

from marl_aajr.report import Comparison, compare, load_run
from marl_aajr.report.adversaries import learned, replaced, undertrained, weakest_links
from marl_aajr.report.estimates import Block, Cell
from marl_aajr.report.figures import hypervolumes, tradeoff
from marl_aajr.report.scores import Reference
from marl_aajr.report.tables import heat_map, lowest_and_highest, results, worst_of_each_run
from tests.report.factory import config, evaluation, write_run


def compared(tmp_path: Path, **methods: list[dict[str, Any]]) -> Comparison:
    """Per method one run for each evaluation."""
    return compare(
        [
            load_run(
                write_run(
                    tmp_path / f"{method}-{seed}",
                    configuration=config(method, seed=seed),
                    evaluations={"e": content},
                )
            )
            for method, contents in methods.items()
            for seed, content in enumerate(contents)
        ]
    )


def cells(blocks: tuple[Block, ...], title: str, header: str) -> list[Cell]:
    (block,) = [block for block in blocks if block.title == title]
    (line,) = [line for line in block.lines if line.header == header]
    return list(line.cells)


class TestHeatMap:
    def test_attacks_stand_in_the_block_of_their_size_and_the_worst_is_marked(self, tmp_path: Path) -> None:
        blocks = heat_map(compared(tmp_path, none=[evaluation()]), decimals=0)
        assert [block.title for block in blocks] == ["No attack", "ε = 0.1", "ε = 0.2"]
        (pgd,), (noise,) = cells(blocks, "ε = 0.2", "pgd"), cells(blocks, "ε = 0.2", "noise")
        assert (pgd.main, pgd.mark, pgd.shade) == ("−60", "worst", 0)
        assert (noise.main, noise.mark, noise.shade) == ("−43", "", 7)
        (clean,) = cells(blocks, "No attack", "none")
        assert (clean.main, clean.mark, clean.shade) == ("−40", "", 8)
        assert lowest_and_highest(blocks) == ("−60", "−40")

    def test_an_attack_that_takes_nothing_has_the_shade_of_no_attack(self, tmp_path: Path) -> None:
        blocks = heat_map(compared(tmp_path, none=[evaluation(attacks={("pgd", 0.1): 0.0})]), decimals=0)
        assert {cell.shade for block in blocks for line in block.lines for cell in line.cells} == {8}


class TestWorstOfSuite:
    def test_every_run_is_listed_under_its_own(self, tmp_path: Path) -> None:
        noise, pgd = (
            {(name, 0.1): loss for name, loss in (("noise", a), ("pgd", b))} for a, b in ((-9, -8), (-1, -30))
        )
        comparison = compared(tmp_path, none=[evaluation(attacks=noise), evaluation(-41.0, attacks=pgd)])
        sheet = worst_of_each_run(comparison, decimals=0)
        assert sheet.columns == ("run", "method", "clean", "worst at ε = 0.1")
        assert [line[2:] for line in sheet.lines] == [("−40", "−49 (noise)"), ("−41", "−71 (pgd)")]

    def test_the_area_under_the_curve_is_the_mean_over_sizes(self, tmp_path: Path) -> None:
        """Trapezoids over 0, 0.1, 0.2: (44 + 54) / 2; of a single run with its interval over episodes."""
        blocks = results(compared(tmp_path, none=[evaluation()]), decimals=0)
        (area,) = cells(blocks, "Worst of the attacks tried, of each run its own", "mean over ε")
        assert (area.main, area.under) == ("−49", "[−51,\u00a0−47]")


class TestLearnedAdversaries:
    def with_learned(self, loss: float) -> dict[str, Any]:
        content = evaluation(attacks={("pgd", 0.1): -8.0, ("sa-rl", 0.1): loss})
        content["attacks"][1]["access"] = "learned"
        return content

    def test_one_that_takes_more_than_the_myopic_ones_is_shown_beside_them(self, tmp_path: Path) -> None:
        comparison = compared(tmp_path, none=[self.with_learned(-20.0)])
        blocks = learned(comparison, decimals=0)
        (own,), (other,) = (
            cells(blocks, "ε = 0.1", header) for header in ("sa-rl", "strongest that is not learned")
        )
        assert (own.main, own.note, other.main) == ("−60", "", "−48")
        assert undertrained(comparison) == ()

    def test_one_that_takes_less_is_called_undertrained(self, tmp_path: Path) -> None:
        comparison = compared(tmp_path, none=[self.with_learned(-2.0), self.with_learned(-9.0)])
        (own,) = cells(learned(comparison, decimals=0), "ε = 0.1", "sa-rl")
        assert own.note == "undertrained in 1 of 2"
        (line,) = undertrained(comparison)
        assert line.startswith("sa-rl at ε = 0.1 leaves more return than a myopic attack in 1 of 2 runs")

    def test_chance_does_not_make_it_undertrained(self, tmp_path: Path) -> None:
        content = self.with_learned(-7.9)
        row = content["attacks"][1]
        shuffled = row["returns"][::-1]
        content["attacks"][1] = row | {"returns": shuffled}
        assert undertrained(compared(tmp_path, none=[content])) == ()

    def test_without_any_there_is_no_table(self, tmp_path: Path) -> None:
        assert learned(compared(tmp_path, none=[evaluation()]), decimals=0) == ()


class TestAdversarialAgents:
    def replaced(self, kind: str, mean: float, **changes: Any) -> dict[str, Any]:
        return {
            **evaluation(mean)["clean"],
            "kind": kind,
            "agents": ["agent_0"],
            "loyal_return": mean / 2,
            **changes,
        }

    def test_they_are_means_over_runs_with_what_the_others_earn(self, tmp_path: Path) -> None:
        runs = [
            evaluation(adversarial_agents=[self.replaced("random", mean), self.replaced("idle", mean)])
            for mean in (-50.0, -54.0)
        ]
        blocks = replaced(compared(tmp_path, none=runs), decimals=0)
        assert [block.title for block in blocks] == ["Random", "Idle"]
        (cell,) = cells(blocks, "Random", "agent_0")
        assert (cell.main, cell.note) == ("−52", "the others −26")

    def test_of_two_traitors_the_worse_on_the_selection_episodes_counts(self, tmp_path: Path) -> None:
        two = [
            self.replaced("traitor", -70.0, selection_return=-60.0),
            self.replaced("traitor", -65.0, selection_return=-66.0, worst=True),
        ]
        blocks = replaced(compared(tmp_path, none=[evaluation(adversarial_agents=two)]), decimals=0)
        (cell,) = cells(blocks, "Traitor", "agent_0")
        assert (cell.main, cell.mark) == ("−65", "worst")

    def test_a_method_without_them_has_a_dash(self, tmp_path: Path) -> None:
        some = [evaluation(adversarial_agents=[self.replaced("random", -50.0)])]
        blocks = replaced(compared(tmp_path, none=some, aajr=[evaluation()]), decimals=0)
        assert [cell.main for cell in cells(blocks, "Random", "agent_0")] == ["−50", "—"]


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
        title, blocks = "ε = 0.1, 1 agent attacked (2 episodes)", weakest_links(comparison, decimals=0)
        strong, weak = (cells(blocks, title, f"agent_{i}")[0] for i in (0, 1))
        assert (strong.main, strong.under, strong.note, strong.mark) == ("−42", "pgd", "", "")
        assert (weak.main, weak.note, weak.mark) == ("−50", "weakest in 2 of 2", "worst")
        assert [cell.main for cell in cells(blocks, title, "no attack")] == ["−30"]

    def test_where_runs_disagree_nobody_is_marked(self, tmp_path: Path) -> None:
        runs = [self.searched(-40, -50), self.searched(-50, -40)]
        (block,) = weakest_links(compared(tmp_path, none=runs), decimals=0)
        assert {line.cells[0].note for line in block.lines[1:]} == {"weakest in 1 of 2"}
        assert {line.cells[0].mark for line in block.lines} == {""}

    def test_a_lowest_within_noise_of_the_next_is_not_marked(self, tmp_path: Path) -> None:
        content = self.searched(-40, -50)
        for subset in content["subsets"][:2]:
            subset["returns"].reverse()
        (block,) = weakest_links(compared(tmp_path, none=[content]), decimals=0)
        assert {(line.cells[0].note, line.cells[0].mark) for line in block.lines} == {("", "")}

    def test_an_attack_that_not_all_runs_faced_does_not_count(self, tmp_path: Path) -> None:
        more = self.searched(-40, -50, attacks={("noise", 0.1): -1.0, ("pgd", 0.1): -9.0})
        fewer = self.searched(-40, -50, attacks={("noise", 0.1): -1.0})
        blocks = weakest_links(compared(tmp_path, none=[more], aajr=[fewer]), decimals=0)
        found = cells(blocks, "ε = 0.1, 1 agent attacked (2 episodes)", "agent_1")
        assert [(cell.main, cell.under) for cell in found] == [("−50", "noise"), ("−50", "noise")]

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
        blocks = weakest_links(compare([run]), decimals=0)
        attacked = "ε = 0.1, 1 agent attacked"
        assert [block.title for block in blocks] == [
            f"{attacked} (2 episodes)",
            f"{attacked}, 5 steps (random) (2 episodes)",
        ]
        assert [block.lines[2].cells[0].main for block in blocks] == ["−51", "−37"]

    def test_without_subsets_there_is_no_table(self, tmp_path: Path) -> None:
        assert weakest_links(compared(tmp_path, none=[evaluation()]), decimals=0) == ()


class TestTradeoff:
    def three(self, tmp_path: Path) -> Comparison:
        """(clean, robust): none (−40, −48), aajr (−42, −44), ernie (−43, −45), which aajr beats."""
        of = {"none": (-40.0, -8.0), "aajr": (-42.0, -2.0), "ernie": (-43.0, -2.0)}
        runs = {name: [evaluation(clean, attacks={("pgd", 0.1): loss})] for name, (clean, loss) in of.items()}
        return compared(tmp_path, **runs)

    def test_front_and_volumes_by_hand(self, tmp_path: Path) -> None:
        """Above (−50, −50): none covers 10 · 2, aajr 8 · 6, ernie 7 · 5; together 8 · 6 + 2 · 2."""
        found = tradeoff(self.three(tmp_path), 0.1, Reference(-50.0, 0.0))
        assert found.front == ("aajr", "none (plain PPO)")
        assert found.volumes == pytest.approx({"none": 20.0, "aajr": 48.0, "ernie": 35.0})
        assert found.whole == pytest.approx(52.0)

    def test_without_a_reference_the_lowest_returns_of_the_page_are_the_corner(self, tmp_path: Path) -> None:
        found = tradeoff(self.three(tmp_path), 0.1, None)
        assert found.reference == (-43.0, -48.0)
        assert found.volumes["none"] == 0.0

    def test_areas_that_are_all_zero_are_not_shown(self, tmp_path: Path) -> None:
        """Two methods, each the lowest in one return: neither covers anything above that corner."""
        crossed = {"none": [evaluation(-40.0, attacks={("pgd", 0.1): -9.0})]}
        crossed["aajr"] = [evaluation(-42.0, attacks={("pgd", 0.1): -2.0})]
        comparison = compared(tmp_path, **crossed)
        assert hypervolumes([tradeoff(comparison, 0.1, None)], decimals=0) is None
        shown = hypervolumes([tradeoff(comparison, 0.1, Reference(-50.0, 0.0))], decimals=0)
        assert shown is not None
