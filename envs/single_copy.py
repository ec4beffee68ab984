"""One copy of a batch: as a PettingZoo environment, and as a picture."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from pettingzoo.utils.env import ParallelEnv
from torch import Tensor

from marl_aajr.core.environment_values import joined, joined_space
from marl_aajr.rollout.batched_env import BatchedEnv
from marl_aajr.rollout.game_agents import METRICS

from .particles import World
from .scenario import Scenario

if TYPE_CHECKING:  # matplotlib is slow to import
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_Batch = TypeVar("_Batch", bound=BatchedEnv)

_INCHES, _DPI = 7.0, 100
_MARGIN = 1.1
_FIXED_SCALE = 1 / 0.9  # mpe2 draws radius 1 as half the width when it does not rescale


class SingleCopy(ParallelEnv[str, Any, Any]):
    """A batch of one copy, played episode by episode.

    `reset(seed=s)` begins the episode that copy 0 of the batch begins with seed s. Later resets without a
    seed continue the sequence that s began; without any seed it comes from the operating system.

    Args:
        batch: The batch; the view steps it alone.
        name: The environment's name for itself.
        render_mode: `"rgb_array"`, or None for no drawing; `"ansi"` where agents read words.

    Attributes:
        batch: As given, for what PettingZoo has no words for (its saved state, its curriculum).
        teams: Team of each agent.
        channels: What each agent's observation consists of.
        words: The words that agents read; None where they see numbers.

    Raises:
        ValueError: If the batch has more than one copy, or the render mode is another.
    """

    def __init__(self, batch: BatchedEnv, *, name: str, render_mode: str | None = None) -> None:
        if batch.num_envs != 1:
            raise ValueError(f"expected a batch of one copy, got {batch.num_envs}; build it with num_envs=1")
        modes = ["rgb_array"] if batch.words is None else ["rgb_array", "ansi"]
        if render_mode not in (None, *modes):
            raise ValueError(
                f"expected render_mode {' or '.join(map(repr, modes))} or None, got {render_mode!r}"
            )
        self.metadata: dict[str, Any] = {
            "name": name,
            "render_modes": modes,
            "render_fps": 10,
            "is_parallelizable": True,
        }
        self.batch = batch
        self.render_mode = render_mode
        self.possible_agents = list(batch.possible_agents)
        self.agents: list[str] = []
        self.observation_spaces: dict[str, spaces.Space[Any]] = {
            agent: space if (mask := batch.action_mask[agent]) is None else joined_space(space, mask.shape[1])
            for agent, space in batch.observation_spaces.items()
        }
        self.action_spaces: dict[str, spaces.Space[Any]] = batch.action_spaces
        if batch.state_space is not None:
            self.state_space = batch.state_space
            batch.keeps_final_states = True
        self.teams, self.channels, self.words = batch.teams, batch.channels, batch.words
        self._seeds: np.random.Generator | None = None
        self._given: dict[str, Tensor] = {}  # those of agents that have ended count for nothing

    def observation_space(self, agent: str) -> spaces.Space[Any]:
        return self.observation_spaces[agent]

    def action_space(self, agent: str) -> spaces.Space[Any]:
        return self.action_spaces[agent]

    def reset(
        self, seed: int | None = None, options: Mapping[str, Any] | None = None
    ) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
        """Begins an episode; `options` are not used."""
        if seed is not None or self._seeds is None:
            self._seeds = np.random.default_rng(seed)
        first = seed if seed is not None else int(self._seeds.integers(2**63))
        self.agents, self._over = list(self.possible_agents), False
        return self._seen(self.batch.reset(seed=first)), {agent: {} for agent in self.agents}

    def step(
        self, actions: Mapping[str, Any]
    ) -> tuple[dict[str, Any], dict[str, float], dict[str, bool], dict[str, bool], dict[str, dict[str, Any]]]:
        """Plays one step of the episode.

        Raises:
            ValueError: If no episode runs, or an action is missing or not in its space. Continuous actions
                out of bounds are clipped.
        """
        if not self.agents:
            raise ValueError("expected an episode to be running; call reset first")
        self._given |= {agent: self._action(agent, actions) for agent in self.agents}
        after = self.batch.step(self._given)
        over = self._over = bool(after.episode_over)
        agents, info = self.agents, after.infos[0]
        cut = {agent: bool(after.truncations[agent]) for agent in agents}
        ended = {agent: bool(after.terminations[agent]) or (over and not cut[agent]) for agent in agents}
        self.agents = [agent for agent in agents if not (over or ended[agent] or cut[agent])]
        told = {agent: info.get(agent, {}) for agent in agents}
        if over and after.metrics:
            metrics = {name: float(value) for name, value in after.metrics.items()}
            told = {agent: {**own, METRICS: metrics} for agent, own in told.items()}
        seen = {agent: (after.obs if agent in self.agents else after.final_obs)[agent] for agent in agents}
        return (
            self._seen(seen),
            {agent: float(after.rewards[agent]) for agent in agents},
            ended,
            cut,
            told,
        )

    def state(self) -> NDArray[Any]:
        """The batch's global state; after the last step, that of the episode's end."""
        states: Tensor = self.batch.final_state() if self._over else self.batch.state()
        return states[0].cpu().numpy()

    def render(self) -> NDArray[np.uint8] | str | None:
        """The picture `[height, width, 3]`; the text that agents read; or None without a render mode."""
        if self.render_mode == "ansi":
            return self.batch.text(0)
        return self.batch.draw(0) if self.render_mode else None

    def close(self) -> None:
        self.batch.close()

    def _seen(self, obs: Mapping[str, Tensor]) -> dict[str, Any]:
        masks = self.batch.action_mask
        seen: dict[str, Any] = {agent: rows[0].cpu().numpy() for agent, rows in obs.items()}
        for agent, own in seen.items():
            if (mask := masks[agent]) is not None:
                seen[agent] = joined(own, mask[0].cpu().numpy().astype(np.int8))
        return seen

    def _action(self, agent: str, actions: Mapping[str, Any]) -> Tensor:
        if agent not in actions:
            raise ValueError(f"expected actions of {self.agents}, got none of {agent!r}; add it")
        space, action = self.action_spaces[agent], np.asarray(actions[agent])
        if isinstance(space, spaces.Discrete) and not space.contains(action[()]):
            raise ValueError(f"expected an action of {agent!r} in {space}, got {actions[agent]!r}")
        return torch.from_numpy(action[None]).to(self.batch.device)


def factories(
    options: type[Any], batch: Callable[..., _Batch]
) -> tuple[Callable[..., _Batch], Callable[..., SingleCopy]]:
    """The two functions that every environment offers, with its options as keywords.

    Args:
        options: The class of the options; its `name` is the environment's.
        batch: The batched environment: `batch(options(), num_envs, device=, dtype=)`.

    Returns:
        `batched_env(num_envs, *, device, dtype, **options)` for E copies, and
        `parallel_env(*, render_mode, **options)` for one, as a PettingZoo environment.
    """

    def batched_env(
        num_envs: int,
        *,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        **settings: Any,
    ) -> _Batch:
        return batch(options(**settings), num_envs, device=device, dtype=dtype)

    def parallel_env(*, render_mode: str | None = None, **settings: Any) -> SingleCopy:
        return SingleCopy(batch(options(**settings), 1), name=options.name, render_mode=render_mode)

    declare(batched_env, options)
    declare(parallel_env, options)
    return batched_env, parallel_env


def declare(factory: Callable[..., Any], options: Callable[..., Any]) -> None:
    """Names the options in the factory's signature and documentation, for checks and `help()`."""
    own = inspect.signature(factory)
    named = [p for p in own.parameters.values() if p.kind is not p.VAR_KEYWORD]
    named += [p.replace(kind=p.KEYWORD_ONLY) for p in inspect.signature(options).parameters.values()]
    vars(factory)["__signature__"] = own.replace(parameters=named)
    factory.__module__ = options.__module__
    factory.__doc__ = f"Builds the environment; the options are described at `{options.__qualname__}`."


def draw_particles(world: World, scenario: Scenario, copy: int) -> NDArray[np.uint8]:
    """The world of one copy from above, with what was said `[700, 700, 3]`."""
    from matplotlib.patches import Circle

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
    for line, (i, message) in enumerate(zip(layout.speakers, world.message[..., copy].T, strict=True)):
        said = f"{bodies[i].name} says {_spelled(message.tolist(), continuous=scenario.continuous_actions)}"
        axes.text(0.02, 0.02 + 0.05 * line, said, transform=axes.transAxes)
    return pixels(figure)


def blank_page(frame: tuple[float, float, float, float] = (0.0, 0.0, 1.0, 1.0)) -> tuple[Figure, Axes]:
    """A square figure with one set of axes in a frame (left, bottom, width, height)."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(_INCHES, _INCHES), dpi=_DPI)
    return figure, figure.add_axes(frame)


def pixels(figure: Figure) -> NDArray[np.uint8]:
    """A drawn figure `[height, width, 3]`."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def _spelled(message: Sequence[float], *, continuous: bool) -> str:
    if not any(message):
        return "nothing"
    if continuous:
        return "[" + ", ".join(f"{value:.2f}" for value in message) + "]"
    return "ABCDEFGHIJ"[int(np.argmax(message))]
