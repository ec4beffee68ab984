"""An RLlib module as it acts in a runner, to an adversary: a `Policy` from the numbers it can perturb.

    s + δ  ──filter──►  module  ──legal actions──►  distribution inputs

Everything but s + δ is held: the filter's statistics, the legal actions, the recurrent state before the step,
the centralised critic's part of the observation.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from itertools import chain
from math import prod
from typing import Any, Self

import torch
import tree
from ray.rllib.core.columns import Columns
from ray.rllib.core.rl_module.apis import InferenceOnlyAPI
from ray.rllib.core.rl_module.rl_module import RLModule
from ray.rllib.core.rl_module.torch import TorchRLModule
from torch import Tensor, nn

from marl_aajr.core.distributions import ActionDistribution
from marl_aajr.core.mlp import PlainMLP
from marl_aajr.core.mlp_kernel import MLPKernel
from marl_aajr.core.policy import Policy, Tree, differentiable, map_tree
from marl_aajr.core.token_network import TokenNetwork, TokenPolicy
from marl_aajr.rllib.networks import observation_of
from marl_aajr.rllib.playing_networks import live_module, parts_of, playing_network
from marl_aajr.rllib.plugin.module_policy import judges_observations
from marl_aajr.rllib.sampling.observation_filter import CLIP, Moments
from marl_aajr.rollout.attack.attackable import ActingRows
from marl_aajr.rollout.attack.on_words import check_observations
from marl_aajr.rollout.attack.rollout_attack import RolloutAttack
from marl_aajr.victims.filters import SMALL


class ActingModule:
    """What all acting policies of one module share.

    Args:
        module: The unwrapped module, as the runner has it.
        distribution: The distribution that it acts by.

    Attributes:
        shape: Of the array that an agent sees.
        width: d, the number of its numbers.
        reader: The network, of a module that reads words; None: it reads numbers.
    """

    def __init__(self, module: TorchRLModule, distribution: ActionDistribution) -> None:
        self.module, self.distribution = module, distribution
        self.recurrent = bool(module.is_stateful())
        self.network: nn.Module = live_module(module) if self.recurrent else playing_network(module)
        self.reads_mask = bool(getattr(self.network, "reads_action_mask", False))
        self.shape = parts_of(module)[0].shape
        self.width = prod(self.shape)
        layers = self.network
        if isinstance(layers, nn.Sequential) and len(layers) and type(layers[0]) is nn.Flatten:
            layers = nn.Sequential(*list(layers)[1:])
        self.mlp, self._changed = PlainMLP.of(layers), True
        self.reader = layers if isinstance(layers, TokenNetwork) else None
        without = isinstance(module, InferenceOnlyAPI) and module.inference_only
        self.has_critic = judges_observations(module) and not without

    def vjp(self, seen: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        """The plain MLP at what the module sees; see `Policy.vjp`."""
        assert self.mlp is not None
        changed, self._changed = self._changed, False
        return self.mlp.vjp(seen, changed=changed)

    def kernel(self, seen: Tensor) -> MLPKernel | None:
        """The compiled network of a plain MLP, if it takes what the module sees."""
        if self.mlp is None:
            return None
        changed, self._changed = self._changed, False
        return self.mlp.kernel_for(seen, changed=changed)

    def weights_changed(self) -> None:
        """Read the weights anew."""
        self._changed = True

    def value(self, seen: Tensor) -> Tensor:
        """V at what the module sees, `[N, d] -> [N]`."""
        obs = observation_of(seen.unflatten(-1, self.shape), None, self.module.observation_space)
        found: Tensor = self.module.compute_values({Columns.OBS: obs})
        return found


@dataclass(frozen=True)
class HeldColumns:
    """What is held of each row.

    Attributes:
        legal: Legal actions `[N, n]`.
        memory: Recurrent state `[N, ...]`.
    """

    legal: Tensor | None = None
    memory: Tree | None = None


@dataclass(frozen=True)
class FilterStatistics:
    """A filter's mean and standard deviation `[d]` of the numbers that can be perturbed."""

    mean: Tensor
    scale: Tensor

    @classmethod
    def of(cls, moments: Moments, width: int, *, like: Tensor) -> FilterStatistics:
        """Those of a module, of the first `width` numbers."""
        mean, std = (
            torch.as_tensor(part, device=like.device).to(like.dtype).flatten()[:width]
            for part in (moments.mean, moments.std)
        )
        return cls(mean, std + SMALL)

    def __call__(self, obs: Tensor) -> Tensor:
        return ((obs - self.mean) / self.scale).clamp(-CLIP, CLIP)

    def before(self, filtered: Tensor) -> Tensor:
        """The observations that the filter gave this for; of those that it clipped, the nearest ones."""
        return filtered * self.scale + self.mean


@dataclass(frozen=True, eq=False)
class ActingPolicy(Policy):
    """The acting policy of a module on some rows; see the module's documentation."""

    acting: ActingModule
    held: HeldColumns = field(default_factory=HeldColumns)
    observed: FilterStatistics | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "distribution", self.acting.distribution)
        network = None if self.acting.mlp is not None else self.acting.module
        object.__setattr__(self, "network", network)
        object.__setattr__(self, "critic", self._value if self.acting.has_critic else None)

    def __call__(self, obs: Tensor) -> Tensor:
        network, held = self.acting.network, self.held
        seen = self._seen(obs).unflatten(-1, self.acting.shape)
        legal = {"action_mask": held.legal} if self.acting.reads_mask else {}
        if self.acting.recurrent:
            outputs: Tensor = network(seen, held.memory, **legal)[0]
            return outputs
        return self._legal(network(seen, **legal))

    def vjp(self, obs: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        observed = self.observed
        if self.acting.mlp is None:
            return super().vjp(obs)
        seen = self._seen(obs)
        outputs, pull = self.acting.vjp(seen)
        if observed is None:
            return self._legal(outputs), pull
        inside = seen.abs() < CLIP
        return self._legal(outputs), lambda c: torch.where(inside, pull(c) / observed.scale, 0.0)

    def kernel(self, obs: Tensor) -> MLPKernel | None:
        more = self.observed is not None or self.held.legal is not None
        return None if more else self.acting.kernel(obs)

    def changed(self, change: Callable[[Tensor], Tensor]) -> Self:
        held = self.held
        legal = None if held.legal is None else change(held.legal)
        memory = None if held.memory is None else map_tree(change, held.memory)
        return replace(self, held=HeldColumns(legal, memory))

    def _seen(self, obs: Tensor) -> Tensor:
        return obs if self.observed is None else self.observed(obs)

    def _legal(self, outputs: Tensor) -> Tensor:
        legal = self.held.legal
        if legal is None or self.acting.reads_mask:
            return outputs
        return outputs.masked_fill(~legal, torch.finfo(outputs.dtype).min)

    def _value(self, obs: Tensor) -> Tensor:
        return self.acting.value(self._seen(obs))


def acting_rows(
    acting: ActingModule, obs: Tensor, held: HeldColumns, filtered: FilterStatistics | None
) -> ActingRows:
    """Rows of a module that reads numbers `[N, d]`, or words, and nothing else."""
    if acting.reader is not None:
        return rows_of_words(acting.reader, acting.distribution, obs)
    policy = ActingPolicy(acting, held, filtered)
    return ActingRows(policy, obs, (lambda obs: obs) if filtered is None else filtered)


def rows_of_words(reader: TokenNetwork, distribution: ActionDistribution, given: Tensor) -> ActingRows:
    """Rows of words `[N, L]`: an adversary is asked for their embeddings, and the module sees words again."""
    tokens = given.flatten(1).long()
    policy = TokenPolicy(reader, distribution, tokens)

    def seen(obs: Tensor) -> Tensor:
        return reader.words_at(obs, tokens).to(given.dtype).view(given.shape)

    return ActingRows(policy, policy.embed(tokens).detach(), seen)


def check_acting(acting: ActingModule, name: str, attack: RolloutAttack) -> None:
    """Raise `ValueError` where an attack needs what a module has not as it acts.

    That is: floating-point observations, or words, an objective for its actions, features as many as a mask,
    scale or bounds have, a critic, gradients; and with a memory, that the critic reads what was seen.
    """
    box, _ = parts_of(acting.module)
    try:
        check_observations(attack, box.dtype, reads_words=acting.reader is not None)
        attack.check(acting.distribution, offers={"critic"} if acting.has_critic else ())
        attack.check_memory(acting.recurrent)
        rows = torch.zeros(1, acting.width, device=device_of(acting.module))
        attack.perturbations(1.0).project(rows, rows)
        held = HeldColumns(memory=initial_memory(acting.module, rows) if acting.recurrent else None)
        if acting.reader is None and not _has_gradient(ActingPolicy(acting, held), rows):
            raise ValueError(
                "expected a module whose outputs have a gradient by its observations, got "
                f"{type(acting.module).__name__}; name the agents of other modules: agents=[...]"
            )
    except ValueError as error:
        raise ValueError(f"rollouts under attack, module {name!r}: {error}") from None


def _has_gradient(policy: ActingPolicy, rows: Tensor) -> bool:
    try:
        return differentiable(policy, rows)
    except RuntimeError as error:
        if "requires grad" in str(error):  # Heuristics turn what they see into arrays.
            return False
        raise


def device_of(module: RLModule) -> torch.device:
    """The device of a module's numbers; of one that has none, which may be no torch module, the CPU."""
    numbers = chain(module.parameters(), module.buffers()) if isinstance(module, nn.Module) else iter(())
    first = next(numbers, None)
    return torch.device("cpu") if first is None else first.device


def initial_memory(module: TorchRLModule, rows: Tensor) -> Tree:
    """The recurrent states of rows `[N, ...]` at the beginning of an episode."""

    def each(state: Any) -> Tensor:
        one = torch.as_tensor(state, device=rows.device)
        return one.expand(len(rows), *one.shape).clone()

    return map_tree(each, module.get_initial_state())


def memory_in(module: TorchRLModule, episodes: list[Any], device: torch.device) -> Tree:
    """The recurrent states `[N, ...]` from which the module acts next, as RLlib's connector finds them."""

    def state(episode: Any) -> Any:
        begins = episode.t_started == 0 and len(episode) == 0
        if begins or Columns.STATE_OUT not in episode.extra_model_outputs:
            return module.get_initial_state()
        return episode.get_extra_model_outputs(key=Columns.STATE_OUT, indices=-1)

    def column(*parts: Any) -> Tensor:
        return torch.stack([torch.as_tensor(part, device=device) for part in parts])

    found: Tree = tree.map_structure(column, *map(state, episodes))
    return found


def seen_rows(given: Tensor, width: int, filtered: Callable[[Tensor], Any] | None) -> Callable[..., Tensor]:
    """A function from perturbed numbers `[N, d]` to the rows that a module sees, like `given [N, ...]`.

    Behind the d numbers of a row there may be others, which a centralised critic reads.
    """
    rest = given.flatten(1)[:, width:]

    def seen(own: Tensor) -> Tensor:
        rows = (torch.cat([own, rest], 1) if rest.shape[1] else own).view(given.shape)
        result: Tensor = rows if filtered is None else filtered(rows).to(rows.dtype)
        return result

    return seen
