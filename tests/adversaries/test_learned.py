"""Trained observation adversaries: they find what is known to be best, and are evaluated as they learned."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from marl_aajr.adversaries import training as adversary_training
from marl_aajr.adversaries.kinds import DEFAULTS, OBSERVERS
from marl_aajr.adversaries.learned import LEARNED, LearnedAttack, loaded
from marl_aajr.adversaries.observation_game import GAME, ObservationGame, ObservationThreat
from marl_aajr.adversaries.request import AdversaryRequest
from marl_aajr.adversaries.store import (
    KEPT,
    RECORD,
    REQUEST,
    WARM,
    SelectionEpisodes,
    lead,
    request_of,
    search_folder,
)
from marl_aajr.adversaries.training import find_or_train, train_adversary
from marl_aajr.adversaries.warm_start import warm_start
from marl_aajr.attacks import make_attack
from marl_aajr.evaluation import evaluate
from marl_aajr.evaluation.outcomes import AttackSpec
from marl_aajr.report.comparison import compare
from marl_aajr.report.methods import load_run
from marl_aajr.rollout.environments import make_batch, resolve
from marl_aajr.training.config import make_config
from marl_aajr.training.run_directory import RunDirectory
from marl_aajr.training.trainer import train
from marl_aajr.victims import ObservationFilter, Victim, fingerprint
from tests.adversaries.test_observation_game import SPREAD, threat
from tests.evaluation.players import network, sign_reader, signs, team
from tests.training.runs import assert_same_run, tiny

FILTER = ObservationFilter(mean=torch.full((12,), 0.1), std=torch.full((12,), 0.5), clip=2.0)


def untrained(game: ObservationGame) -> Victim:
    """Adversaries with random networks."""
    spaces = game.observation_spaces
    return Victim(
        module_of={player: player for player in game.possible_agents},
        modules={
            player: network(
                _outputs(game.action_spaces[player]), int((spaces[player].shape or (0,))[0]), seed=i
            )
            for i, player in enumerate(game.possible_agents)
        },
        observation_spaces=spaces,
        action_spaces=game.action_spaces,
    )


def _outputs(space: Any) -> int:
    if hasattr(space, "nvec"):
        return int(space.nvec.sum())
    return int(space.n) if hasattr(space, "n") else 2 * int(space.shape[0])


def attack_by(game: ObservationGame, against: ObservationThreat, policy: Victim) -> LearnedAttack:
    return LEARNED[against.kind](
        perturbations=against.perturbations,
        joint=against.joint,
        _policy=policy,
        _adversaries=game.adversaries,
        _digest=against.digest,
    )


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("joint", [False, True], ids=["each", "joint"])
@pytest.mark.parametrize("kind", ["sa-rl", "pa-ad"])
def test_an_evaluation_plays_the_game_that_was_learned(
    kind: str, joint: bool, norm: str, tmp_path: Path
) -> None:
    """Behind observation filters, in raw units: the same episodes, the same returns."""
    victim = team(SPREAD, filters={"agent_0": FILTER, "agent_1": FILTER})
    against = threat(victim, tmp_path, kind=kind, joint=joint, norm=norm, epsilon=0.4)
    game = against.build(5)
    policy = untrained(game)
    obs, earned = game.reset(seed=9), torch.zeros(5, dtype=torch.float64)
    for _ in range(6):
        actions = {p: policy.greedy(p, policy.policy(p)(seen)) for p, seen in obs.items()}
        step = game.step(actions)
        earned += torch.stack(list(step.rewards.values())).sum(0)
        obs = step.obs
    result = evaluate(
        victim, attacks=[(attack_by(game, against, policy), 0.4)], episodes=5, num_envs=5, seed=9, units="raw"
    )
    (row,) = result.attacks
    played = torch.tensor(row.returns, dtype=torch.float64)
    torch.testing.assert_close(played, -earned, rtol=1e-4, atol=1e-4)
    assert row.mean != pytest.approx(result.results[0].clean.mean, abs=1e-3)


def test_it_attacks_nobody_else_than_it_was_trained_against(tmp_path: Path) -> None:
    victim = team(SPREAD)
    against = threat(victim, tmp_path, agents=["agent_0"])
    game = against.build(1)
    attack = attack_by(game, against, untrained(game))
    with pytest.raises(ValueError, match="expected the victims that sa-rl was trained against"):
        attack.against(team(SPREAD, network(5, 12, seed=4)), "agent_0")
    with pytest.raises(ValueError, match="out of agent_0; got 'agent_1'"):
        attack.against(victim, "agent_1")
    with pytest.raises(ValueError, match="expected a fitted sa-rl, got a fresh one"):
        make_attack("sa-rl", epsilon=0.1).against(victim, "agent_0")


@pytest.fixture(scope="module", autouse=True)
def _short() -> Iterator[None]:
    """Iterations of 160 steps, one of each copy, instead of 4,000, and a tenth of the warm start."""
    with pytest.MonkeyPatch.context() as patch:
        for kind in OBSERVERS:
            ppo = {**DEFAULTS[kind].ppo, "train_batch_size": 160, "minibatch_size": 80}
            patch.setitem(DEFAULTS, kind, replace(DEFAULTS[kind], ppo=ppo))
        patch.setattr(adversary_training, "warm_start", partial(warm_start, updates=100))
        yield


@pytest.fixture(scope="module")
def victims(ray_session: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    env = {"name": SPREAD.name, "kwargs": dict(SPREAD.kwargs)}
    return train(tiny(env=env, env_steps=200), tmp_path_factory.mktemp("learned") / "victims")


@pytest.fixture(scope="module")
def straight(victims: Path) -> Path:
    return train_adversary(victims, kind="pa-ad", epsilon=0.2, env_steps=800, search=2, seed=3)


@pytest.mark.usefixtures("ray_session")
class TestTraining:
    def test_sa_rl_finds_the_best_perturbation(self, tmp_path: Path) -> None:
        """Where the right action is the sign of 0.15, 0.2 against the sign costs every reward."""
        victim = team(signs(longest=1, size=0.15), sign_reader())
        against = threat(victim, tmp_path, epsilon=0.2)
        config = make_config(
            {
                "env": {"name": GAME, "kwargs": against.arguments},
                "env_steps": 3000,
                "model": {"hidden": [8], "free_log_std": True},
                "ppo": {
                    "lr": 1e-2,
                    "train_batch_size": 250,
                    "minibatch_size": 250,
                    "entropy_coeff": 0.0,
                },
                "resources": {"envs_per_runner": 25},
            }
        )
        selection = SelectionEpisodes(config, seed=0)
        run = train(config, tmp_path / "run")
        assert selection.references()["clean"].mean() == -3.0
        assert selection.score(Victim.load(run / "victim")).mean() > 2.9

    def test_everything_is_recorded_in_its_folder(self, victims: Path, straight: Path) -> None:
        assert straight == victims / "adversaries" / "pa-ad-eps0.2-s3"
        record = json.loads((straight / RECORD).read_text())
        assert (record["kind"], record["epsilon"], record["env_steps"]) == ("pa-ad", 0.2, 800)
        assert len(record["tried"]) == 2
        assert set(record["selection"]) == {"clean", "pgd", "warm_start", "trained"}
        assert record["selection"]["pgd"] != record["selection"]["clean"]
        for folder in ("victim", "initial_policy", "warm-start", "search/1/victim", "search/2/victim"):
            assert Victim.load(straight / folder).agents == ("adversary_of_agent_0", "adversary_of_agent_1")
        assert not straight.with_name(f"{straight.name}.search").exists()

    def test_the_stronger_of_what_it_began_with_and_what_it_learned_attacks(self, straight: Path) -> None:
        recorded = json.loads((straight / RECORD).read_text())["selection"]
        selection = SelectionEpisodes(RunDirectory(straight).config(), seed=3)
        kept = {name: Victim.load(straight / folder) for name, folder in KEPT.items()}
        earned = {name: selection.score(victim).mean() for name, victim in kept.items()}
        assert earned == pytest.approx({name: recorded[name] for name in KEPT})
        played = loaded(straight)._policy
        assert played is not None
        assert selection.score(played).mean() == max(earned.values()) > min(earned.values())

    def test_one_that_was_stopped_goes_on_to_the_same_numbers(
        self, victims: Path, straight: Path, tmp_path: Path
    ) -> None:
        out = tmp_path / "stopped"
        asked: dict[str, Any] = {"kind": "pa-ad", "epsilon": 0.2, "env_steps": 800, "search": 2, "seed": 3}
        train_adversary(victims, **asked, out=out, should_stop=lambda: True)
        assert not (out / RECORD).exists()
        with pytest.raises(ValueError, match="whose training was stopped; resume it"):
            train_adversary(victims, **asked, out=out)
        with pytest.raises(ValueError, match=r"expected the adversary that .* was started with"):
            train_adversary(victims, **{**asked, "epsilon": 0.3}, out=out, resume=True)
        assert request_of(out)[0].search == 2
        train_adversary(victims, **asked, out=out, resume=True)
        assert_same_run(straight, out)
        one, other = (json.loads((run / RECORD).read_text()) for run in (straight, out))
        assert {**one, "seconds": 0} == {**other, "seconds": 0}

    def test_one_that_was_killed_at_the_very_end_is_finished(
        self, victims: Path, straight: Path, tmp_path: Path
    ) -> None:
        """Between the copies of what it began with and the record."""
        out = Path(shutil.copytree(straight, tmp_path / "killed"))
        record = json.loads((out / RECORD).read_text())
        aside = Path(shutil.copytree(out / "search", search_folder(out)))
        shutil.copytree(out / WARM, aside / WARM)
        (out / RECORD).unlink()
        asked = {name: record[name] for name in AdversaryRequest.model_fields}
        (aside / REQUEST).write_text(json.dumps({**asked, "victims": str(victims.resolve())}))
        train_adversary(victims, **asked, out=out, resume=True)
        assert {**json.loads((out / RECORD).read_text()), "seconds": 0} == {**record, "seconds": 0}
        assert not aside.exists()

    def test_an_evaluation_uses_it_again(self, victims: Path, straight: Path, tmp_path: Path) -> None:
        """For what asks for as much training and search or less; the results say what it had."""
        attack = make_attack("pa-ad", epsilon=0.2, adversary=str(straight))
        less = make_attack("pa-ad", epsilon=0.2, env_steps=600, search=1)
        before = sorted((victims / "adversaries").iterdir())
        attacks = [(less, 0.2), ("pgd-strong", 0.2)]
        result = evaluate(victims, attacks=attacks, episodes=4, out=tmp_path / "result.json")
        assert sorted((victims / "adversaries").iterdir()) == before
        settings = result.attacks[0].attack.settings
        assert (settings["env_steps"], settings["search"]) == (800, 2)
        again = evaluate(victims / "victim", out=tmp_path / "again.json", attacks=[(attack, 0.2)], episodes=4)
        assert result.attacks[0].returns == again.attacks[0].returns
        with pytest.raises(ValueError, match=r"expected the size that .* was trained for"):
            make_attack("pa-ad", epsilon=0.3, adversary=str(straight))

    def test_two_of_one_kind_and_size_are_told_apart(
        self, victims: Path, straight: Path, tmp_path: Path
    ) -> None:
        """In the results, in the files that hold them, and on a page of them."""
        other = Path(shutil.copytree(straight, tmp_path / "other"))
        for liars in ([straight], [other], [straight, other]):
            result = evaluate(victims, adversaries=liars, episodes=2)
        assert [row.attack.source for row in result.attacks] == [straight.name, "other"]
        assert len(list((victims / "evaluations").iterdir())) == 3
        assert len(compare([load_run(victims)]).conditions) == 2

    def test_it_is_trained_in_the_game_that_is_evaluated(
        self, victims: Path, straight: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """And kept with the victims only where that is their own."""
        asked: list[tuple[Any, bool]] = []

        def find(victim: Victim, request: AdversaryRequest, *, home: Path) -> Path:
            asked.append((victim.env_kwargs["max_cycles"], home == victims))
            return straight

        monkeypatch.setattr(adversary_training, "find_or_train", find)
        settings: dict[str, Any] = {"attacks": [("pa-ad", 0.2)], "episodes": 2}
        evaluate(victims, **settings, out=tmp_path / "own.json")
        other = resolve(SPREAD.name, {"N": 2, "max_cycles": 3})
        evaluate(Victim.load(victims / "victim"), other, **settings)
        assert asked == [(6, True), (3, False)]

    @pytest.mark.usefixtures("two_threads")
    def test_other_victims_get_an_adversary_of_their_own_whose_training_takes_one_thread(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        taken, score = [], SelectionEpisodes.score

        def counted(selection: SelectionEpisodes, adversary: Victim) -> Tensor:
            taken.append(torch.get_num_threads())
            return score(selection, adversary)

        monkeypatch.setattr(SelectionEpisodes, "score", counted)
        other = team(SPREAD, network(5, 12, seed=6))
        request = AdversaryRequest(kind="sa-rl", epsilon=0.2, env_steps=1, search=1, warm_start=False)
        found = find_or_train(other, request, home=tmp_path)
        assert (taken, torch.get_num_threads()) == ([1], 2)
        assert found.is_relative_to(tmp_path)
        assert loaded(found)._digest == fingerprint(other)
        assert json.loads((found / RECORD).read_text())["env_steps"] == 1

    def test_it_learns_against_sampled_actions_where_it_is_asked_to(self, tmp_path: Path) -> None:
        settings: dict[str, Any] = {"env_steps": 100, "search": 1, "warm_start": False}
        attack = make_attack("sa-rl", epsilon=0.2, actions="sampled", **settings)
        assert isinstance(attack, LearnedAttack)
        env = make_batch(SPREAD, 1)
        fitted = attack.fit(team(SPREAD), env, agents=env.possible_agents, seed=0, home=tmp_path)
        assert AttackSpec.of(fitted).settings["actions"] == "sampled"
        assert loaded(next(tmp_path.glob(f"adversaries/*/{RECORD}")).parent).actions == "sampled"


def test_sampled_victims_are_compared_with_sampled_ones(tmp_path: Path) -> None:
    """A reader of signs that is never wrong, and hardly sure of any, loses by sampling alone."""
    victim = team(signs(longest=1, size=0.15), sign_reader())
    losses = {}
    for actions in ("greedy", "sampled"):
        against = threat(victim, tmp_path / actions, epsilon=0.1, actions=actions)
        config = make_config({"env": {"name": GAME, "kwargs": against.arguments}})
        references = SelectionEpisodes(config, seed=0).references()
        losses[actions] = {name: loss.mean() for name, loss in references.items()}
    assert losses["greedy"] == {"clean": -3.0, "pgd": -3.0}
    assert -2.5 < losses["sampled"]["clean"] < losses["sampled"]["pgd"]


def test_two_adversaries_are_told_apart_by_the_same_episodes() -> None:
    """Episodes differ by hundreds; what one takes more than the other, by 0.2."""
    episodes = torch.linspace(0, 500, 100)
    ahead = lead(episodes + 1 + 0.1 * (-1) ** torch.arange(100), episodes)
    assert ahead["mean"] == pytest.approx(1, abs=1e-4)
    assert (1 - ahead["low"], ahead["high"] - 1) == pytest.approx((0.0261, 0.0261), abs=2e-4)
