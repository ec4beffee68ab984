"""Victims for the toys, and a second opinion: a loop that plays one environment at a time."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from marl_aajr.attacks import Attack, make_attack
from marl_aajr.evaluation import Evaluation, Suite, evaluate
from marl_aajr.rollout.environments import EnvironmentSpec, resolve
from marl_aajr.victims import ObservationFilter, Victim

TOYS = "tests.evaluation.toys"
NOT_LOUDNESS = (True, False)
"""The sign may be touched, the loudness may not."""


def signs(**kwargs: Any) -> EnvironmentSpec:
    return resolve(f"{TOYS}:Signs", kwargs)


def moves(**kwargs: Any) -> EnvironmentSpec:
    return resolve(f"{TOYS}:Moves", kwargs)


def stakes(**kwargs: Any) -> EnvironmentSpec:
    return resolve(f"{TOYS}:Stakes", kwargs)


def network(outputs: int, inputs: int, *, seed: int = 0) -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(inputs, 16), nn.Tanh(), nn.Linear(16, outputs))


def sign_reader(factor: float = 1.0) -> nn.Linear:
    """Logits (−x, x) times a factor: right about Signs until x is pushed across zero; wrong if it is < 0."""
    layer = nn.Linear(2, 2)
    layer.weight.data = factor * torch.tensor([[-1.0, 0.0], [1.0, 0.0]])
    layer.bias.data = torch.zeros(2)
    return layer


class LoudReader(nn.Module):
    """Logits (−x, x) times the loudness: as sure of itself as the step is loud."""

    def forward(self, obs: Tensor) -> Tensor:
        return torch.stack([-obs[..., 0], obs[..., 0]], -1) * obs[..., 1:]


def team(
    spec: EnvironmentSpec,
    module: nn.Module | None = None,
    *,
    filters: Mapping[str, ObservationFilter | None] | None = None,
) -> Victim:
    """One module for all agents of an environment; None: a random network."""
    game = spec.make()
    observed = {a: getattr(s, "spaces", {}).get("observation", s) for a, s in game.observation_spaces.items()}
    first = game.possible_agents[0]
    space = game.action_spaces[first]
    outputs = int(getattr(space, "n", 0)) or 2 * int(np.prod(space.shape or ()))
    module = module or network(outputs, int(np.prod(observed[first].shape or ())))
    return Victim(
        module_of=dict.fromkeys(game.possible_agents, "shared"),
        modules={"shared": module},
        observation_spaces=observed,
        action_spaces=game.action_spaces,
        filters=filters or {},
        env_name=spec.name,
        env_kwargs=spec.kwargs,
    )


def sure(spec: EnvironmentSpec) -> Victim:
    """Random networks whose actions follow from what they see."""
    victim = team(spec)
    with torch.no_grad():
        for parameter in victim.modules["shared"].parameters():
            parameter.mul_(4)
    return victim


def returns_one_by_one(
    victim: Victim, spec: EnvironmentSpec, *, episodes: int, seed: int, num_envs: int
) -> list[dict[str, float]]:
    """Returns by agent of each episode, without batches; seeded as documented."""
    game = spec.make()
    found = []
    for i in range(episodes):
        sequence = np.random.SeedSequence(seed, spawn_key=(i % num_envs, i // num_envs))
        turn = game.reset(seed=int(sequence.generate_state(1)[0] >> 1))
        total = dict.fromkeys(game.possible_agents, 0.0)
        while not turn.over:
            turn = game.step(victim.act({agent: turn.obs[agent] for agent in turn.acting}))
            for agent, reward in turn.rewards.items():
                total[agent] += reward
        found.append(total)
    return found


def flip(name: str = "fgsm") -> Attack:
    """Turns every decision it touches, at ε > 1."""
    return make_attack(name, epsilon=1.1, mask=NOT_LOUDNESS)


def played(
    worth: Collection[float] = (1.0, 1.0), *, steps: int = 4, crucial: bool = False, **protocol: Any
) -> Evaluation:
    """Stakes, by agents who know everything, under attacks that turn them and a budget."""
    spec = stakes(worth=tuple(worth), steps=steps, crucial=crucial)
    attacks = protocol.pop("attacks", None) or [(flip(), 1.1)]
    settings = {"episodes": 10, "num_envs": 4, "selection_episodes": 6}
    return evaluate(team(spec, LoudReader()), spec, attacks=attacks, **(settings | protocol))


FIELDS: dict[str, Any] = {
    "summary": "for tests",
    "episodes": 6,
    "selection_episodes": 4,
    "actions": ["greedy"],
    "units": "raw",
    "epsilons": [0.9, 1.1],
    "attacks": ["noise", "pgd-margin"],
}


class Opaque(nn.Module):
    """A sign reader whose outputs have no graph."""

    def forward(self, obs: torch.Tensor) -> torch.Tensor:
        return torch.from_numpy(np.stack([-obs.detach()[:, 0], obs.detach()[:, 0]], -1))


def suite(**changes: Any) -> Suite:
    return Suite.model_validate({"name": "mine", **FIELDS, **changes})
