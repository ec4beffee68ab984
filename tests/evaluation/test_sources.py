"""Whatever has a folder can be evaluated: runs, saved victims, RLlib checkpoints.

The result goes into a finished run or beside the others, in one step; anything else is refused, and nothing
written.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, ClassVar

import pytest

from marl_aajr.adversaries import agent_game, observation_game
from marl_aajr.adversaries.store import REQUEST, search_folder
from marl_aajr.evaluation import Evaluation, evaluate
from marl_aajr.evaluation.sources import evaluations_of
from marl_aajr.training.config import EnvConfig, RunConfig
from marl_aajr.training.run_directory import RunDirectory
from marl_aajr.training.run_record import Status
from tests.cli.test_evaluate import finished_run
from tests.evaluation.players import sign_reader, signs, team

SPEC, SHORT = signs(longest=3), signs(longest=2)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return written_run(tmp_path / "run")


def written_run(path: Path, **settings: Any) -> Path:
    """A run as training leaves it, whose team reads signs."""
    directory = RunDirectory(path)
    env = {"name": SPEC.name, "kwargs": dict(SPEC.kwargs)}
    directory.create(RunConfig.model_validate({"env": env, "env_steps": 12, **settings}))
    directory.unlock()
    team(SPEC, sign_reader()).save(directory.victim)
    directory.write_status(Status("finished", iteration=3, env_steps=12))
    return directory.path


class TestTheAttackOfTraining:
    ROLLOUTS: ClassVar[dict[str, Any]] = {"epsilon": [[0, 0.1], [12, 1.1]], "share": 0.5, "steps": 3}

    def test_it_is_played_beside_the_others_at_its_last_size(self, tmp_path: Path) -> None:
        run = written_run(tmp_path / "run", rollouts=self.ROLLOUTS)
        asked: dict[str, Any] = {
            "workers": 1,
            "attacks": [("pgd", 1.1), ("noise", 0.9)],
            "actions": ["greedy", "sampled"],
        }
        found = evaluate(run, **asked, episodes=6, selection_episodes=3)
        alone = evaluate(team(SPEC, sign_reader()), **asked, episodes=6, selection_episodes=3)
        assert found.skipped == ()
        (name,) = os.listdir(run / "evaluations")
        assert Evaluation.model_validate_json((run / "evaluations" / name).read_text()) == found
        for result, other in zip(found.results, alone.results, strict=True):
            row = result.training_attack
            assert row is not None
            assert (row.attack.name, row.epsilon, row.agents) == ("training_attack", 1.1, found.agents)
            assert row.attack.settings == {
                "objective": "margin",
                "steps": 3,
                "step_size": 0.5,
                "step": "auto",
            }
            assert row.success_rate == 1.0
            assert result.attacks[0].returns == row.returns, "every sign turns over"
            assert result.model_copy(update={"training_attack": None}) == other

    @pytest.mark.parametrize(
        ("rollouts", "asked", "reason"),
        [
            ({}, {"budget": "agents=1"}, "expected no budget, got agents=1"),
            ({"norm": "l2"}, {}, "expected the norm of training, l2, got linf"),
            ({"mask": [True]}, {}, "expected 2 features in mask, got 1"),
            ({"objective": "value"}, {}, "expected a victim with a critic for the attack 'training_attack'"),
        ],
    )
    def test_the_reason_is_said_where_it_does_not_fit(
        self, rollouts: dict[str, Any], asked: dict[str, Any], reason: str, tmp_path: Path
    ) -> None:
        run = written_run(tmp_path / "run", rollouts=self.ROLLOUTS | rollouts)
        found = evaluate(run, attacks=[("fgsm", 1.1)], episodes=2, **asked)
        assert found.results[0].training_attack is None
        (skipped,) = found.skipped
        assert skipped.attack == "training_attack"
        assert reason in skipped.reason

    @pytest.mark.parametrize(
        "rollouts", [{"epsilon": 0}, {"epsilon": [[0, 0.1], [12, 0]]}, {"agents": ["agent_2"]}]
    )
    def test_there_is_none_where_training_ended_without(self, rollouts: Any, tmp_path: Path) -> None:
        run = written_run(tmp_path / "run", rollouts=rollouts)
        found = evaluate(run, attacks=[("fgsm", 1.1)], episodes=2, agents=["agent_0", "agent_1"])
        assert (found.results[0].training_attack, found.skipped) == (None, ())


def test_writes_what_it_returns(run: Path) -> None:
    found = evaluate(run, attacks=["noise", "pgd"], epsilons=[0.9, 1.1], episodes=6, seed=1)
    (name,) = os.listdir(run / "evaluations")
    assert name.startswith("seed1-episodes6-")
    assert Evaluation.model_validate_json((run / "evaluations" / name).read_text()) == found
    rows = [(row.attack.name, row.attack.epsilon) for row in found.attacks]
    assert rows == [("noise", 0.9), ("noise", 1.1), ("pgd", 0.9), ("pgd", 1.1)]
    assert found == evaluate(team(SPEC, sign_reader()), attacks=rows, episodes=6, seed=1)


def test_the_same_again_replaces_and_another_one_joins(run: Path) -> None:
    settings: dict[str, Any] = {"attacks": ["fgsm"], "epsilons": [0.5], "episodes": 3}
    evaluate(run, **settings)
    evaluate(run, **settings)
    assert len(os.listdir(run / "evaluations")) == 1
    for other in ({"attacks": ["pgd"]}, {"epsilons": [0.6]}, {"episodes": 4}, {"seed": 5}):
        evaluate(run, **(settings | other))
    assert len(os.listdir(run / "evaluations")) == 5


def test_evaluations_in_several_environments_are_kept_side_by_side(tmp_path: Path) -> None:
    team(SPEC, sign_reader()).save(tmp_path / "victim")
    settings: dict[str, Any] = {"attacks": ["fgsm"], "epsilons": [0.5], "episodes": 2}
    settings |= {"env": SPEC.name, "selection_episodes": 2}
    for other in (
        {},
        {"env_kwargs": {"longest": 2}},
        {"env_kwargs": {"longest": 5}},
        {"num_envs": 1},
        {"weakest_link": True},
    ):
        evaluate(tmp_path / "victim", **(settings | other))
    assert len(os.listdir(tmp_path / "victim-evaluations")) == 5


def test_without_attacks_it_is_the_clean_return(run: Path) -> None:
    assert evaluate(run, attacks=[], epsilons=[], episodes=2).attacks == ()


def test_interrupted_it_leaves_nothing(run: Path) -> None:
    def interrupt(progress: Any) -> None:
        if progress.what != "clean":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        evaluate(run, attacks=["pgd"], epsilons=[0.5], episodes=2, on_progress=interrupt)
    assert not (run / "evaluations").exists()


class TestRefusals:
    @pytest.mark.parametrize("state", ["running", "interrupted", "failed"])
    def test_an_unfinished_run(self, run: Path, state: Any) -> None:
        RunDirectory(run).write_status(Status(state, iteration=2))
        with pytest.raises(
            ValueError, match=rf"got .*run, which is {state} at iteration 2; finish it with: .*--resume --out"
        ):
            evaluate(run, attacks=[], epsilons=[])

    @pytest.mark.parametrize("state", ["interrupted", "finished"])
    def test_an_adversary_that_was_not_judged_yet(self, run: Path, state: Any) -> None:
        RunDirectory(run).write_status(Status(state, iteration=2))
        request = search_folder(run) / REQUEST
        request.parent.mkdir()
        request.write_text("{}")
        finish = rf"finish it with: marl-aajr adversary train --resume --out {run}$"
        with pytest.raises(ValueError, match=finish):
            evaluate(run, adversaries=[run])

    @pytest.mark.parametrize("game", [observation_game.GAME, agent_game.GAME])
    def test_an_adversary_in_the_place_of_a_team(self, run: Path, game: str) -> None:
        adversary = RunDirectory(run.with_name("its adversary"))
        adversary.create(RunConfig(env=EnvConfig(name=game, kwargs={"victim": str(run / "victim")})))
        adversary.unlock()
        adversary.write_status(Status("finished"))
        judge = rf"marl-aajr evaluate {run} --adversary '{adversary.path}'$"
        with pytest.raises(ValueError, match=judge):
            evaluate(adversary.path)

    def test_a_run_that_is_being_trained_is_not_to_be_resumed(self, run: Path) -> None:
        directory = RunDirectory(run)
        directory.write_status(Status("running", iteration=2))
        directory.lock()
        try:
            with pytest.raises(
                ValueError, match=r"is running at iteration 2; it is being trained: wait"
            ) as said:
                evaluate(run, attacks=[], epsilons=[])
        finally:
            directory.unlock()
        assert "--resume" not in str(said.value)

    def test_not_a_run(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match="expected the folder of a run"):
            evaluate(tmp_path, attacks=[], epsilons=[])

    def test_a_lost_victim(self, run: Path) -> None:
        (run / "victim" / "victim.json").unlink()
        with pytest.raises(ValueError, match=r"expected a saved victim in .*; finish the training"):
            evaluate(run, attacks=[], epsilons=[])

    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"attacks": ["pdg"]}, "an attack out of noise"),
            ({"attacks": ["pgd", "pgd"]}, "attacks: expected each attack once, got pgd twice"),
            ({"epsilons": [0.5, 0.5]}, r"epsilons: expected each once, got 0\.5 twice"),
            ({"attacks": ["pgd", ("pgd", 0.5)]}, r"got pgd at 0\.5 2 times"),
            ({"epsilons": [-1.0]}, r"epsilons\.0: expected a number greater than 0, got -1\.0"),
            ({"epsilons": []}, "name both"),
            ({"attacks": []}, "name both"),
            ({"episodes": 0}, "episodes: expected a number greater than or equal to 1"),
        ],
    )
    def test_bad_settings_before_anything_is_written(
        self, run: Path, settings: dict[str, Any], message: str
    ) -> None:
        valid: dict[str, Any] = {"attacks": ["pgd"], "epsilons": [0.5], "episodes": 2}
        with pytest.raises(ValueError, match=message):
            evaluate(run, **valid | settings)
        assert not (run / "evaluations").exists()


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    return team(SHORT, sign_reader()).save(tmp_path / "mine")


def test_a_saved_victim_leaves_its_result_beside_it(saved: Path) -> None:
    result = evaluate(saved, attacks=["fgsm"], epsilons=[1.1], episodes=4)
    [file] = (saved.parent / "mine-evaluations").iterdir()
    assert json.loads(file.read_text())["results"][0]["clean"]["mean"] == result.clean.mean
    assert sorted(path.name for path in saved.iterdir()) == ["victim.json", "victim.safetensors"]


def test_the_result_goes_where_it_is_told(saved: Path, tmp_path: Path) -> None:
    evaluate(saved, episodes=2, out=tmp_path / "there" / "result.json")
    assert json.loads((tmp_path / "there" / "result.json").read_text())["episodes"] == 2
    assert not (saved.parent / "mine-evaluations").exists()


def test_a_saved_victim_may_play_elsewhere(saved: Path) -> None:
    result = evaluate(saved, SHORT.name, env_kwargs={"longest": 1}, episodes=3)
    assert result.env.kwargs == {"longest": 1}
    assert result.clean.returns == (3.0, 3.0, 3.0), "three agents, one step"


def test_a_run_knows_its_environment(tmp_path: Path) -> None:
    run = finished_run(tmp_path / "run")
    assert evaluations_of(run) == run / "evaluations"
    with pytest.raises(ValueError, match=r"expected no environment for the run .*run, which has its own"):
        evaluate(run, "simple_spread_v3")
    with pytest.raises(ValueError, match=r"expected the name of an environment with its arguments .*--env"):
        evaluate(run, env_kwargs={"longest": 1})


def test_surrogates_come_from_anywhere(saved: Path, tmp_path: Path) -> None:
    other = finished_run(tmp_path / "run")
    for victim, surrogate in ((saved, other), (other, saved)):
        result = evaluate(victim, attacks=["transfer"], epsilons=[1.1], episodes=4, surrogates=[surrogate])
        assert result.attacks[0].success_rate > 0


def test_a_checkpoint_must_be_told_where_it_plays(tmp_path: Path) -> None:
    (tmp_path / "rllib_checkpoint.json").write_text("{}")
    with pytest.raises(ValueError, match=r"the environment of the RLlib checkpoint .*--env NAME"):
        evaluate(tmp_path)


def test_other_folders_are_named(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"of a run, of a saved victim or of an RLlib checkpoint, got .*none"
    ):
        evaluate(tmp_path / "none")
