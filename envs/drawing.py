"""Pictures of environments, drawn by matplotlib without a window."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Circle
from numpy.typing import NDArray

from .particles import World
from .scenario import Scenario

_INCHES, _DPI = 7.0, 100
_MARGIN = 1.1
_FIXED_SCALE = 1 / 0.9  # mpe2 draws radius 1 as half the width when it does not rescale


def draw_particles(world: World, scenario: Scenario, copy: int) -> NDArray[np.uint8]:
    """The world of one copy from above, with what was said `[700, 700, 3]`."""
    layout = world.layout
    bodies = layout.bodies
    places = world.position[:, : len(bodies), copy].T.cpu().numpy()
    # Where all bodies begin is always in sight: a camera that zooms at every step moves what stands still.
    reach = max(1.0, float(np.abs(places).max()))
    scale = 1.0 if scenario.dynamic_rescaling else reach * _FIXED_SCALE
    figure, axes = blank_page()
    axes.set(xlim=(-reach * _MARGIN, reach * _MARGIN), ylim=(-reach * _MARGIN, reach * _MARGIN))
    axes.set_aspect("equal")
    axes.set_axis_off()
    # Landmarks first, so that they hide no agent.
    for body, place in reversed(list(zip(bodies, places, strict=True))):
        axes.add_patch(
            Circle((place[0], place[1]), body.size * scale, facecolor=body.color, edgecolor="black")
        )
    for line, (i, message) in enumerate(
        zip(layout.speakers, world.message[..., copy].T.tolist(), strict=True)
    ):
        said = f"{bodies[i].name} says {_spelled(message, continuous=scenario.continuous_actions)}"
        axes.text(0.02, 0.02 + 0.05 * line, said, transform=axes.transAxes)
    return pixels(figure)


def blank_page(frame: tuple[float, float, float, float] = (0.0, 0.0, 1.0, 1.0)) -> tuple[Figure, Axes]:
    """A square figure with one set of axes in a frame (left, bottom, width, height)."""
    figure = Figure(figsize=(_INCHES, _INCHES), dpi=_DPI)
    return figure, figure.add_axes(frame)


def pixels(figure: Figure) -> NDArray[np.uint8]:
    """A drawn figure `[height, width, 3]`."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def _spelled(message: Sequence[float], *, continuous: bool) -> str:
    if not any(message):
        return "nothing"
    if continuous:
        return "[" + ", ".join(f"{value:.2f}" for value in message) + "]"
    return "ABCDEFGHIJ"[int(np.argmax(message))]


def draw_shares(splits: Mapping[str, Sequence[float]]) -> NDArray[np.uint8]:
    """Bars of several splits of the agents between resources `[700, 700, 3]`."""
    figure, axes = blank_page((0.1, 0.1, 0.85, 0.85))
    width = 0.8 / len(splits)
    for i, (name, shares) in enumerate(splits.items()):
        axes.bar(np.arange(len(shares)) + width * i, shares, width, label=name)
    axes.set(ylim=(0, 1), xlabel="resource", ylabel="share of the agents")
    axes.legend()
    return pixels(figure)
