"""A run that begins with the networks of another."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from marl_aajr.training.trainer import train
from marl_aajr.victims import Victim, fingerprint
from tests.training.runs import assert_same_run, tiny, train_and_copy

pytestmark = pytest.mark.usefixtures("ray_session")


@pytest.fixture(scope="module")
def before(ray_session: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(tiny(env_steps=100, seed=8), tmp_path_factory.mktemp("start") / "before") / "victim"


def test_a_run_begins_with_the_policies_and_critics_that_it_was_given(before: Path, tmp_path: Path) -> None:
    run = train(tiny(initial_policy=str(before), env_steps=100, ppo={"lr": 1e-9}), tmp_path / "run")
    given, after = Victim.load(before), Victim.load(run / "victim")
    for networks, others in ((given.modules, after.modules), (given.critics, after.critics)):
        assert networks.keys() == others.keys()
        for name, network in networks.items():
            for own, other in zip(network.parameters(), others[name].parameters(), strict=True):
                torch.testing.assert_close(own, other, atol=1e-5, rtol=0)
    assert fingerprint(Victim.load(run / "initial_policy")) == fingerprint(given)


def test_it_can_be_resumed_without_the_folder_of_the_given_ones(before: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(before, tmp_path / "given")
    config = tiny(initial_policy=str(folder), env_steps=200)
    straight, begun = train_and_copy(config, tmp_path, after=1)
    shutil.rmtree(folder)
    assert_same_run(straight, train(config, begun, resume=True))


def test_what_cannot_be_begun_with_is_refused(before: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="expected a saved victim in"):
        train(tiny(initial_policy=str(tmp_path / "nowhere")), tmp_path / "run")
    assert not (tmp_path / "run").exists()
    with pytest.raises(ValueError, match="expected an initial policy of 'agent' of shapes"):
        train(tiny(initial_policy=str(before), model={"hidden": [9]}), tmp_path / "run")
