"""Agents that read, judged under other words: rows, checks, refusals, and what is written of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from marl_aajr.envs.bargain_v0 import batched_env, parallel_env
from torch import Tensor, nn

from marl_aajr import Victim, evaluate
from marl_aajr.attacks import Attack, make_attack
from marl_aajr.core.token_network import TokenNetwork
from marl_aajr.core.word_budget import WordBudget
from marl_aajr.evaluation.outcomes import AttackOutcome
from marl_aajr.evaluation.result import Evaluation
from marl_aajr.evaluation.word_checks import word_objective_checks, word_return_checks
from marl_aajr.pettingzoo import attacked
from marl_aajr.report import write_report
from marl_aajr.rollout.environment_channels import channels_of
from tests.report.factory import config, write_run

BARGAIN = "marl_aajr.envs.bargain_v0"
FEW: dict[str, Any] = {"episodes": 12, "selection_episodes": 6, "seed": 0}


class Listener(TokenNetwork):
    """Claims what it loves and then what it claimed, but gives way where both want the same.

    Of common words it knows the meaning; a rare synonym of a noun means nothing to it, an adjective never.
    """

    def __init__(self, *, reads: bool = True) -> None:
        super().__init__()
        words = batched_env(1).words
        self.table = nn.Embedding.from_pretrained(torch.eye(len(words)), freeze=True)
        noun = torch.zeros(len(words), 3)
        for good, word in enumerate(words.actions):
            noun[words.vocabulary.index(word), good] = 1.0
        opinion = torch.zeros(len(words))
        for worth, word in ((2.0, "love"), (1.0, "like")):
            kind = words.synonyms[words.vocabulary.index(word)]
            opinion += worth * (torch.tensor(words.synonyms) == kind)
        name = torch.zeros(len(words))
        name[words.vocabulary.index("bob")] = 1.0
        for key, value in {"noun": noun, "opinion": opinion, "name": name}.items():
            self.register_buffer(key, value * reads)

    @property
    def embeddings(self) -> Tensor:
        return self.table.weight

    def from_embedding(self, embedded: Tensor, tokens: Tensor) -> Tensor:
        worth = embedded[:, 1:7:2] @ self.get_buffer("opinion")
        own, other = (embedded[:, place] @ self.get_buffer("noun") for place in (10, 15))
        gives_way = (embedded[:, 0] @ self.get_buffer("name"))[:, None]
        return worth + 4 * own - gives_way * 5.5 * own * other


def team(network: TokenNetwork) -> Victim:
    env = batched_env(1)
    return Victim(
        module_of=dict.fromkeys(env.possible_agents, "reader"),
        modules={"reader": network},
        observation_spaces=env.observation_spaces,
        action_spaces=env.action_spaces,
        env_name=BARGAIN,
    )


def test_readers_are_shown_other_words_in_somebodys_loop() -> None:
    """What a word attack writes, and as much of it as an evaluation plays; the channel's words alone."""
    attack = make_attack("words-greedy", epsilon=2, channels=["messages"])
    plain, victim = parallel_env(), team(Listener())
    env = attacked(parallel_env(), attack, victim, agents=["bob"], seed=3)
    words, changed = batched_env(1).words, 0
    heard = set(channels_of(plain, plain.observation_spaces, name="")["bob"]["messages"].features)
    for seed in range(4):
        true, shown = plain.reset(seed=seed)[0], env.reset(seed=seed)[0]
        while plain.agents:
            assert env.observation_space("bob").contains(shown["bob"])
            assert all((shown[name] == true[name]).all() for name in true if name != "bob")
            other = (shown["bob"] != true["bob"]).nonzero()[0].tolist()
            assert len(other) <= 2
            assert set(other) <= heard
            pairs = ((int(shown["bob"][i]), int(true["bob"][i])) for i in other)
            assert all(words.synonyms[one] == words.synonyms[same] for one, same in pairs)
            changed += len(other)
            actions = victim.act(true, infos={})
            true, shown = plain.step(actions)[0], env.step(actions)[0]
    assert changed > 0
    with pytest.raises(ValueError, match=r"an attack on words, .* to show agents that read, got 'pgd'"):
        attacked(parallel_env(), "pgd", victim, epsilon=0.1)


@pytest.fixture(scope="module")
def judged() -> Evaluation:
    how = {"suite": "words", "channels": ["messages"], "actions": ["greedy"], "epsilons": [1, 2]}
    return evaluate(team(Listener()), **how, **FEW)  # type: ignore[arg-type]


def rows(evaluation: Evaluation) -> Mapping[tuple[str, float], float]:
    (found,) = evaluation.results
    return {(row.attack.name, row.epsilon): row.mean for row in found.attacks}


def test_other_words_cost_what_a_listener_does_not_know(judged: Evaluation) -> None:
    (found,) = judged.results
    mean = rows(judged)
    assert judged.norm == "words"
    assert judged.channels == ("messages",)
    assert {count for name, count in mean if name == "words-greedy"} == {1, 2}
    assert [count for name, count in mean if name == "words-exhaustive"] == [1]
    # One word is enough: it is the noun, which greedy, HotFlip and every sentence find.
    for name in ("words-greedy", "words-gradient", "words-exhaustive"):
        assert mean[name, 1] < mean["words-random", 1] < found.clean.mean, name
    assert mean["words-greedy", 1] == mean["words-exhaustive", 1]
    assert {worst.epsilon: worst.attack for worst in found.worst}[1].name != "words-random"
    assert all(check.verdict == "pass" for check in judged.checks if "word" in check.name), judged.checks
    assert [c.name for c in judged.checks if "sentence" in c.name] == ["one word ≤ every sentence"]


def test_who_does_not_listen_loses_nothing() -> None:
    """Its values are its own: held to the others' words, an attack changes nothing."""
    judged = evaluate(
        team(Listener(reads=False)), attacks=["words-greedy"], epsilons=[4], channels=["messages"], **FEW
    )
    (found,) = judged.results
    assert found.attacks[0].returns == found.clean.returns
    assert found.attacks[0].success_rate == 0


@pytest.mark.parametrize(("epsilon", "within"), [(0.9, "0%"), (1.0, "100%")])
def test_attacks_on_embeddings_are_an_upper_bound_within_their_size(epsilon: float, within: str) -> None:
    """All words of the listener are as far from each other as neighbours are: 1."""
    judged = evaluate(
        team(Listener()), attacks=["pgd"], epsilons=[epsilon], norm="l2", channels=["messages"], **FEW
    )
    (check,) = (check for check in judged.checks if check.name == "embedded words")
    assert f"Of all synonyms {within} are within ε = {epsilon:g}, the farthest at 1." in check.text
    (found,) = judged.results
    assert found.attacks[0].mean < found.clean.mean


def test_words_are_not_mixed_with_balls() -> None:
    with pytest.raises(ValueError, match=r"attacks of one norm.*words-greedy in words"):
        evaluate(team(Listener()), attacks=["words-greedy", "pgd"], epsilons=[1], **FEW)


@pytest.mark.usefixtures("undrawn")
def test_the_page_counts_words(judged: Evaluation, tmp_path: Path) -> None:
    run = write_run(tmp_path / "listener", configuration={**config(), "env": {"name": BARGAIN}})
    (run / "evaluations" / "default.json").write_text(judged.model_dump_json())
    page = write_report([run], tmp_path / "page.html").read_text("utf-8")
    assert "words replaced by their synonyms" in page
    assert "1 word" in page
    assert "Return against words replaced" in page
    shown = page.partition("<details")[0]
    assert "ε =" not in shown


class TestOrder:
    """What the checks say where an order is broken."""

    @staticmethod
    def found(gains: Mapping[str, Sequence[float]]) -> dict[str, str]:
        """Verdicts, with these gains of random, gradient, greedy and exhaustive words, by number of words."""

        def climb(attacks: Mapping[str, Attack]) -> Mapping[str, Tensor]:
            return {
                name: torch.full((4,), gains[attack.name][int(attack.perturbations.epsilon) - 1])
                for name, attack in attacks.items()
            }

        checks = word_objective_checks([WordBudget(epsilon=m) for m in (1, 2)], climb)
        return {check.name: check.verdict for check in checks}

    @pytest.mark.parametrize(
        ("changed", "failing"),
        [
            ({}, None),
            ({"words-random": [0.1, 1.0]}, "random words ≤ greedy"),
            ({"words-gradient": [0.6, 0.2]}, "more words, larger objective"),
            ({"words-exhaustive": [0.55]}, "one word ≤ every sentence"),
        ],
    )
    def test_of_the_objective(self, changed: dict[str, list[float]], failing: str | None) -> None:
        sound = {"random": [0.1, 0.2], "gradient": [0.5, 0.7], "greedy": [0.6, 0.9], "exhaustive": [0.6]}
        found = self.found({f"words-{name}": gain for name, gain in sound.items()} | changed)
        assert len(found) == 3
        assert [name for name, verdict in found.items() if verdict != "pass"] == [failing] * bool(failing)

    def test_of_the_returns(self, judged: Evaluation) -> None:
        (result,) = judged.results

        def shifted(row: AttackOutcome, by: float) -> AttackOutcome:
            noise = [0.01 * (i % 2) for i in range(len(row.returns))]
            returns = tuple(r + by + n for r, n in zip(result.clean.returns, noise, strict=True))
            return row.model_copy(update={"returns": returns, "mean": sum(returns) / len(returns)})

        def verdicts(by: Mapping[tuple[str, float], float]) -> list[str]:
            rows = tuple(shifted(row, by.get((row.attack.name, row.epsilon), -3.0)) for row in result.attacks)
            return [c.verdict for c in word_return_checks(result.model_copy(update={"attacks": rows}))]

        assert verdicts({}) == ["pass"]
        assert verdicts({("words-random", 1.0): -5.0}) == ["fail"]
        assert verdicts({("words-greedy", 2.0): -1.0}) == ["pass", "warn"]
