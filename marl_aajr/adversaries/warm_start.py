"""The warm start of an observation adversary: it begins with what PGD does, instead of at random.

First PGD attacks the victims for some episodes, and what it does is kept. Then the adversary's policy is
fitted to that, before PPO improves on it:

    SA-RL   max_θ E[KL(π(·|s) ‖ π(·|s + δ_θ(s)))]             PGD's own objective, through the victim
    PA-AD   max_θ E[log π_θ(where PGD moved the policy | s)]   for Gaussian actions, the least squares

SA-RL does not copy PGD's δ: many perturbations have one effect, and their mean has none. On simple_spread at
ε = 0.2 (clean -37, PGD -69) copying gives -50 to -54, the ascent -61.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

from marl_aajr.adversaries.observation_game import (
    AttackedBatch,
    ObservationAdversaries,
    ObservationThreat,
    PGDGame,
)
from marl_aajr.core.adversary_actions import SARLActions
from marl_aajr.core.distributions import DiagGaussian
from marl_aajr.core.objectives import KL, Clean
from marl_aajr.core.seeds import Purpose, derived_seed
from marl_aajr.rllib.playing_networks import playing_network
from marl_aajr.training.config import RunConfig
from marl_aajr.training.policy_mapping import module_spec, policy_mapping_of
from marl_aajr.victims import FreeLogStd, Victim

_COPIES = 100
_LEARNING_RATE = 3e-3
_FENCE = 5.0
"""Weight of what keeps SA-RL's mean in the cube. Far outside, PPO's noise would change nothing."""

_LOG_STD = -1.5
"""log σ that PPO starts from: enough to explore around PGD, not to drown it."""


class DemonstratedStep(NamedTuple):
    """One step of PGD's demonstration: the adversaries' observations, `[E, w]` by adversary; what PGD did."""

    obs: Mapping[str, Tensor]
    attacked: list[AttackedBatch]


def demonstrate(
    threat: ObservationThreat, *, steps: int, seed: int
) -> tuple[ObservationAdversaries, list[DemonstratedStep]]:
    """Let PGD attack the victims for some steps in each of 100 copies, and keep what it did.

    The episodes' own seed is derived from `seed`: an evaluation with the same number plays others.
    """
    game = PGDGame(threat.build(_COPIES), generator=torch.Generator().manual_seed(seed))
    obs, demonstrated = game.reset(seed=derived_seed(seed, Purpose.DEMONSTRATION)), []
    nothing = game.nothing()
    for _ in range(steps):
        game.attacked = []
        before, obs = obs, game.step(nothing).obs
        demonstrated.append(DemonstratedStep(before, game.attacked))
    game.close()
    return game.adversaries, [step for step in demonstrated if step.attacked]


def warm_start(
    config: RunConfig, threat: ObservationThreat, *, steps: int = 75, updates: int = 1000, seed: int
) -> Victim:
    """Adversaries that do what PGD does, as the policies that a run may begin with.

    Args:
        config: of the run, whose modules these are.
        threat: its game.
        steps: of the demonstration.
        updates: of Adam, each on one step of it.
        seed: of the demonstration and of the networks.
    """
    adversaries, demonstrated = demonstrate(threat, steps=steps, seed=seed)
    mapping = policy_mapping_of(config)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        actors = {}
        for module, player in mapping.modules.items():
            spaces = mapping.observation_spaces[player], mapping.action_spaces[player]
            actors[module] = playing_network(module_spec(config.model, *spaces).build())
    adversary = Victim(
        module_of=mapping.module_of,
        modules=actors,
        observation_spaces=mapping.observation_spaces,
        action_spaces=mapping.action_spaces,
        env_name=config.env.name,
        env_kwargs=config.env.kwargs,
    )
    order = torch.randint(len(demonstrated), (updates,), generator=torch.Generator().manual_seed(seed))
    trained = nn.ModuleList(adversary.modules.values()).requires_grad_(True)
    optimizer = torch.optim.Adam(trained.parameters(), lr=_LEARNING_RATE)
    loss_of = _ascent_loss if isinstance(adversaries.actions, SARLActions) else _imitation_loss
    for index in order.tolist():
        loss = loss_of(adversary, adversaries, demonstrated[index])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    for module, player in mapping.modules.items():
        actor = adversary.modules[module].requires_grad_(False)
        if isinstance(adversary.distribution(player), DiagGaussian):
            _set_log_std(actor, _LOG_STD)
    return adversary


def _ascent_loss(adversary: Victim, adversaries: ObservationAdversaries, step: DemonstratedStep) -> Tensor:
    """Minus PGD's objective, as a share of what PGD reaches; plus how far the mean lies outside the cube."""
    means = {p: adversary.distribution(p).mode(adversary.policy(p)(obs)) for p, obs in step.obs.items()}
    # Beyond the cube an action does what its nearest point does; the gradient must come back all the same.
    actions = {player: mean + (mean.clamp(-1, 1) - mean).detach() for player, mean in means.items()}
    gains, taught = [], []
    for attacked in step.attacked:
        policy, inputs = attacked.batch.policy, attacked.batch.inputs
        by_agent = adversaries.split(actions, attacked.perturbations)
        given = torch.cat([by_agent[agent][copies] for agent, copies in attacked.batch.rows.items()])
        delta = adversaries.perturb(policy, inputs, given, attacked.perturbations)
        with torch.no_grad():
            clean = Clean(policy(inputs))
        gains.append(KL().bind(policy, clean)(inputs + delta))
        taught.append(policy.distribution.kl(clean.outputs, attacked.outputs))
    outside = torch.cat([(mean.abs() - 1).clamp_min(0).square().sum(-1) for mean in means.values()])
    tiny = torch.finfo(outside.dtype).tiny
    return _FENCE * outside.mean() - torch.cat(gains).mean() / torch.cat(taught).mean().clamp_min(tiny)


def _imitation_loss(adversary: Victim, adversaries: ObservationAdversaries, step: DemonstratedStep) -> Tensor:
    """Minus the log-likelihood of where PGD moved the policies; for Gaussian ones, the squared distance."""
    labels: dict[str, Tensor] = {}
    for attacked in step.attacked:
        with torch.no_grad():
            clean = attacked.batch.policy(attacked.batch.inputs)
            moved = adversaries.actions.label(attacked.batch.policy, clean, attacked.outputs)
        labels |= attacked.batch.everywhere(moved, _COPIES)
    losses = []
    for player, action in adversaries.join(labels).items():
        kind, outputs = adversary.distribution(player), adversary.policy(player)(step.obs[player])
        if isinstance(kind, DiagGaussian):
            losses.append((kind.mode(outputs) - action).square().sum(-1))
        else:
            losses.append(-kind.log_prob(outputs, action))
    return torch.cat(losses).mean()


def _set_log_std(actor: nn.Module, value: float) -> None:
    """Let a Gaussian policy begin with one log σ everywhere."""
    free = [layer for layer in actor.modules() if isinstance(layer, FreeLogStd)]
    if free:
        free[0].log_std.data.fill_(value)
        return
    last = [layer for layer in actor.modules() if isinstance(layer, nn.Linear)][-1]
    half = last.out_features // 2
    last.weight.data[half:] = 0.0
    last.bias.data[half:] = value
