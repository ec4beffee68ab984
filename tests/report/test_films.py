"""Films of real environments: what is in the frames, and that nothing else decides what comes out."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageSequence

from marl_aajr.attacks import make_attack
from marl_aajr.report import films
from marl_aajr.report.films import film
from marl_aajr.rollout.environments import EnvironmentSpec, resolve
from tests.evaluation.players import signs, team

pytestmark = pytest.mark.slow

ARRAYS = resolve("marl_aajr.envs.simple_spread_v3", {"max_cycles": 6})
MPE2 = resolve("simple_spread_v3", {"max_cycles": 6})


def frames(gif: bytes) -> list[np.ndarray[Any, Any]]:
    """`[height, width, 3]` each, without the captions."""
    with Image.open(io.BytesIO(gif)) as picture:
        return [np.asarray(frame.convert("RGB"), int)[40:] for frame in ImageSequence.Iterator(picture)]


def halves(frame: np.ndarray[Any, Any]) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    width = (frame.shape[1] - 4) // 2
    return frame[:, :width], frame[:, -width:]


@pytest.mark.parametrize("spec", [ARRAYS, MPE2], ids=["as arrays", "by pygame"])
def test_both_halves_start_alike_and_part_under_attack(spec: EnvironmentSpec) -> None:
    gif = film(team(spec), spec, attack=make_attack("pgd", epsilon=5.0), title="PPO")
    shown = frames(gif)
    assert gif[:6] == b"GIF89a"
    assert len(shown) == 6 + 1, "a state for every decision, and the end"
    clean, attacked = halves(shown[0])
    np.testing.assert_array_equal(clean, attacked)
    clean, attacked = halves(shown[-1])
    assert (np.abs(clean - attacked).sum(-1) > 90).mean() > 0.01
    assert (np.abs(shown[0] - shown[-1]).sum(-1) > 90).mean() > 0.01


def test_without_an_adversary_that_matters_both_halves_are_the_same() -> None:
    for clean, attacked in map(
        halves, frames(film(team(ARRAYS), ARRAYS, attack=make_attack("pgd", epsilon=1e-9)))
    ):
        np.testing.assert_array_equal(clean, attacked)


def test_the_same_arguments_give_the_same_bytes() -> None:
    spec = resolve("marl_aajr.envs.simple_spread_v3", {"max_cycles": 3})
    victim, attack = team(spec), make_attack("noise", epsilon=0.5)
    film_of = {(seed, n): film(victim, spec, attack=attack, seed=seed) for seed in (1, 2) for n in (0, 1)}
    assert film_of[1, 0] == film_of[1, 1] != film_of[2, 0]


def test_a_whole_episode_of_simple_spread_is_small() -> None:
    spec = resolve("marl_aajr.envs.simple_spread_v3")
    gif = film(team(spec), spec, attack=make_attack("noise", epsilon=0.5))
    assert len(frames(gif)) == 26
    assert len(gif) < 300_000


def test_long_episodes_are_shown_in_strides_with_their_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(films, "MOST_FRAMES", 4)
    monkeypatch.setattr(films, "HEIGHT", 40)
    gif = film(team(ARRAYS), ARRAYS, attack=make_attack("noise", epsilon=0.5))
    assert len(frames(gif)) == len((0, 2, 4, 6))


def test_an_environment_that_cannot_draw_itself_is_named() -> None:
    with pytest.raises(ValueError, match=r"tests\.evaluation\.toys:Signs.*render_mode"):
        film(team(signs()), signs(), attack=make_attack("noise", epsilon=0.5))
