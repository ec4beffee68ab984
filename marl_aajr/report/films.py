"""Films: one episode without and one under attack, side by side, as an animated GIF.

Both panels start from the same state: episode 0 of the evaluation with the same seed. A picture shows the
state that the agents decide in, the lines above it what they have earned until then.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from math import ceil
from pathlib import Path
from typing import Any, NamedTuple, cast

import matplotlib
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from marl_aajr.attacks import ATTACKS, Attack, make_attack
from marl_aajr.core.checks import decimals_of, written
from marl_aajr.core.seeds import Purpose, stream
from marl_aajr.evaluation.episodes import AttackRun, play
from marl_aajr.evaluation.outcomes import Units
from marl_aajr.report.comparison import Comparison, MethodRow
from marl_aajr.report.conditions import Task
from marl_aajr.report.estimates import size, sizes_in
from marl_aajr.rollout.batched_env import BatchedEnvWrapper, BatchedStep
from marl_aajr.rollout.environments import EnvironmentSpec, make_batch, resolve
from marl_aajr.rollout.teams import choose_agents
from marl_aajr.training.run_directory import RunDirectory
from marl_aajr.victims import Victim
from marl_aajr.victims.spaces import check_match

MOST_FRAMES = 60
"""Longer episodes are shown in larger strides, so that no film becomes heavy."""

HEIGHT = 240
"""Of each picture, in pixels."""

_COLORS = 64
_FRAME_MS, _LAST_MS = 120, 1500
_LINE, _GAP = 18, 4
_INK, _EDGE, _PAPER = (20, 20, 20), (190, 190, 190), (255, 255, 255)


class Shot(NamedTuple):
    """A picture of the state that agents decide in, the steps before it, and the team's return until then."""

    picture: Image.Image
    step: int
    earned: float


def film(
    victim: Victim,
    environment: EnvironmentSpec,
    *,
    attack: Attack,
    team: str | None = None,
    units: Units = "raw",
    sampled: bool = False,
    seed: int = 0,
    title: str = "",
) -> bytes:
    """Film one clean episode beside one under attack; the same arguments give the same GIF.

    Args:
        victim: plays all agents.
        environment: one that can draw itself: ours, or any with `render_mode="rgb_array"`.
        attack: lies to all agents of the team at every step, fitted where it must be.
        team: whose return is shown; None: the only one, or the largest.
        units: of the attack's ε.
        sampled: sample actions rather than take the most likely ones.
        seed: of both episodes and of the attack.
        title: what the victim is called, for example its method.

    Raises:
        ValueError: a victim that does not fit, or an environment that cannot draw itself.
    """
    drawn = replace(environment, kwargs={**environment.kwargs, "render_mode": "rgb_array"})
    with closing(_Filmed(make_batch(drawn, 1, flat=True))) as env:
        check_match(victim, env)
        members = choose_agents(env.teams, team, None)
        generator = stream(seed, Purpose.ATTACK)
        run = AttackRun(
            attack=attack,
            victim=victim,
            agents=members,
            units=units,
            generator=generator,
            channels=env.channels,
        )
        clean, attacked = (
            env.shoot(victim, members, seed=seed, sampled=sampled, attack=lies) for lies in (None, run)
        )
    with sizes_in(attack.perturbations.norm):
        what = ("no attack", f"{attack.name}, {size(attack.perturbations.epsilon)}")
    names = [f"{title}: {each}" if title else each for each in what]
    decimals = decimals_of(shot.earned for shot in (*clean, *attacked))
    last = max(len(clean), len(attacked)) - 1
    times = [*range(0, last, ceil((last + 1) / MOST_FRAMES)), last]
    # Both episodes in step: the shorter one stays at its end.
    shown = [[shots[min(t, len(shots) - 1)] for shots in (clean, attacked)] for t in times]
    return _gif([_panels(names, shots, decimals) for shots in shown])


class _Filmed(BatchedEnvWrapper):
    """One copy that is photographed before every step."""

    def shoot(self, victim: Victim, members: Sequence[str], *, seed: int, **how: Any) -> list[Shot]:
        """One episode."""
        self._pictures: list[Image.Image] = []
        self._rewards: list[dict[str, Tensor]] = []
        play(victim, self, episodes=1, seed=seed, **how)
        team = [agent for agent in self.possible_agents if self.teams[agent] == self.teams[members[0]]]
        earned = [0.0]
        for rewards in self._rewards:
            earned.append(earned[-1] + sum(rewards[agent].item() for agent in team))
        pictures = [*self._pictures, self._pictures[-1]]  # the last state is shown twice
        return [Shot(p, t, e) for t, (p, e) in enumerate(zip(pictures, earned, strict=True))]

    def step(self, actions: Mapping[str, Tensor]) -> BatchedStep:
        picture = Image.fromarray(self.env.draw(0))
        width = round(picture.width * HEIGHT / picture.height)
        self._pictures.append(picture.resize((width, HEIGHT), Image.Resampling.LANCZOS))
        step = self.env.step(actions)
        self._rewards.append(step.rewards)
        return step


def _panels(names: Sequence[str], shots: Sequence[Shot], decimals: int) -> Image.Image:
    width, height = shots[0].picture.size
    frame = Image.new("RGB", (len(shots) * (width + _GAP) - _GAP, height + 2 * _LINE), _PAPER)
    # matplotlib brings a font that has Greek letters, on every machine the same.
    path = Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf")
    pen, font = ImageDraw.Draw(frame), ImageFont.truetype(path, _LINE - 6)
    for i, (name, shot) in enumerate(zip(names, shots, strict=True)):
        left = i * (width + _GAP)
        frame.paste(shot.picture, (left, 2 * _LINE))
        pen.rectangle((left, 2 * _LINE, left + width - 1, 2 * _LINE + height - 1), outline=_EDGE)
        for line, text in enumerate((name, f"step {shot.step}, return {written(shot.earned, decimals)}")):
            pen.text((left + _GAP, line * _LINE), _fitting(text, font, width - 2 * _GAP), _INK, font)
    return frame


def _fitting(text: str, font: ImageFont.FreeTypeFont, width: int) -> str:
    cuts = (f"{text[:n]}…" for n in range(len(text) - 1, 0, -1))
    return next((shown for shown in (text, *cuts) if font.getlength(shown) <= width), "…")


def _gif(frames: Sequence[Image.Image]) -> bytes:
    """One palette for all frames, so that nothing flickers and only what moves is stored."""
    shown = frames[:: len(frames) // 4 or 1]
    sheet = Image.new("RGB", (frames[0].width, sum(frame.height for frame in shown)))
    for i, frame in enumerate(shown):
        sheet.paste(frame, (0, i * frame.height))
    palette = sheet.quantize(_COLORS)
    first, *rest = [frame.quantize(palette=palette, dither=Image.Dither.NONE) for frame in frames]
    buffer = io.BytesIO()
    durations = [_FRAME_MS] * len(rest) + [_LAST_MS]
    first.save(buffer, "GIF", save_all=True, append_images=rest, duration=durations, loop=0)
    return buffer.getvalue()


def films_of(comparisons: Sequence[Comparison]) -> dict[Task, bytes | str]:
    """One animated GIF for each task, of the plain method's first run (or the first method's).

    The attack is the worst of the largest size where it can be made from its description alone, and PGD
    otherwise. The reason stands instead where an environment cannot draw itself, or a run has no victim.
    """
    found: dict[Task, bytes | str] = {}
    for comparison in comparisons:
        try:
            found[comparison.task] = _film(comparison)
        except ValueError as error:
            found[comparison.task] = str(error)
    return found


def _film(comparison: Comparison) -> bytes:
    row, protocol = comparison.plain or comparison.rows[0], comparison.protocol
    victim = Victim.load(RunDirectory(row.runs[0].run.path).victim)
    return film(
        victim,
        resolve(victim.env_name, victim.env_kwargs),
        attack=_attack_to_show(row, comparison.epsilons[-1]),
        team=comparison.task.team or None,
        units=cast(Units, protocol.units),
        sampled=protocol.actions == "sampled",
        seed=protocol.seed,
        title=row.method.label,
    )


def _attack_to_show(row: MethodRow, epsilon: float) -> Attack:
    """The worst attack of a size where its description says all about it; else PGD."""
    worst = row.worst_attack[epsilon]
    if worst.spec.name in ATTACKS and not worst.limits and worst.spec.access != "surrogate":
        made = worst.spec.make()
        if made.ready:
            return made
    return make_attack("pgd", epsilon=epsilon)
