"""One module of a victim as the core's `Policy`: what attacks see of it, and what it must offer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import deepcopy
from typing import Any, Self

import gymnasium as gym
import torch
from torch import Tensor, nn

from marl_aajr.core.distributions import ActionDistribution, DiagGaussian, from_space
from marl_aajr.core.mlp import PlainMLP
from marl_aajr.core.policy import Policy, autograd_vjp, leaves, map_tree
from marl_aajr.core.token_network import TokenNetwork
from marl_aajr.victims.recurrent import State, initial_state, is_recurrent


class VictimPolicy(Policy):
    """One module of a victim on a batch of network inputs `[..., d]`, with each row's legal actions.

    A recurrent module is asked with each row's state, which stays as it is however often it is asked; inputs
    are `[B, d]` then.

    Args:
        module: the network, `[B, *shape] -> [B, m]`, or with a state
            (`is_recurrent`).
        distribution: what its outputs parametrise.
        shape: the shape of one observation; `d` is the number of its elements.
        action_mask: legal actions, `[B, m]` bool; None: all. Forbidden logits become the dtype's minimum.
        critic: a network `[B, *shape] -> [B, 1]` or `[B]` of what this policy will earn; None: none.
        state: of a recurrent module, before this decision, `[B, ...]`.
        tokens: the words that a `TokenNetwork` reads, `[B, L]`; its inputs are these, embedded.

    Attributes:
        module: the network.
        action_mask: as above.
        passes: passes through the network for each decision.
    """

    def __init__(
        self,
        module: nn.Module,
        distribution: ActionDistribution,
        *,
        shape: tuple[int, ...],
        action_mask: Tensor | None = None,
        critic: nn.Module | None = None,
        state: State | None = None,
        tokens: Tensor | None = None,
    ) -> None:
        super().__init__(distribution)
        self.passes = 1
        if action_mask is not None:
            _check_mask(action_mask, distribution)
        self.action_mask = action_mask
        self.module = module
        self._shape, self._critic, self._state = shape, critic, state
        self.tokens = tokens
        self.block = module.embeddings.shape[-1] if isinstance(module, TokenNetwork) else None
        self._mlp = _WrittenOut.of(module, shape)
        self._recurrent = is_recurrent(module)
        # Some modules do more with the mask than to forbid actions; they ask for it.
        self._legal = {"action_mask": action_mask} if getattr(module, "reads_action_mask", False) else {}
        if critic is not None:
            self.critic = VictimCritic(critic, shape)

    def __call__(self, obs: Tensor) -> Tensor:
        return self.step(obs)[0]

    def once(self, obs: Tensor) -> Tensor:
        return self(obs) if self._mlp is None else self._masked(self._mlp(obs))

    def step(self, obs: Tensor) -> tuple[Tensor, State | None]:
        """Distribution inputs, and the state after a decision on `obs`; this policy's own stays as it is."""
        state = None
        if self._recurrent:
            if self._state is None:
                raise ValueError(
                    "expected the state of a recurrent policy, got none; keep a memory of the game, "
                    "memory = victim.memory(num_envs), and give policy() what it recalls"
                )
            outputs, state = self.module(obs.reshape(-1, *self._shape), self._state, **self._legal)
        elif isinstance(self.module, TokenNetwork):
            if self.tokens is None:
                raise ValueError("expected the words of a policy that reads them, got none; pass tokens=")
            outputs = self.module.at(obs, self.tokens)
        elif self._mlp is not None and not torch.is_grad_enabled():
            outputs = self._mlp(obs)
        else:
            outputs = _apply(self.module, obs, self._shape, **self._legal)
        return self._masked(outputs), state

    def _masked(self, outputs: Tensor) -> Tensor:
        if self.action_mask is None:
            return outputs
        return outputs.masked_fill(~self.action_mask, torch.finfo(outputs.dtype).min)

    @property
    def embeddings(self) -> Tensor:
        if not isinstance(self.module, TokenNetwork):
            return super().embeddings
        return self.module.embeddings / self.module.unit

    def next_state(self, obs: Tensor) -> State | None:
        """The state after a decision on inputs `[B, d]`; None of a policy that has none."""
        return self.step(obs)[1] if self._recurrent else None

    def vjp(self, obs: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        if self._mlp is None:
            return super().vjp(obs)
        outputs, pull = self._mlp.vjp(obs)
        if (legal := self.action_mask) is None:
            return outputs, pull
        return self._masked(outputs), lambda cotangent: pull(cotangent.masked_fill(~legal, 0.0))

    def changed(self, change: Callable[..., Tensor], *others: dict[str, Any]) -> Self:
        if not self._fixed:
            return self
        own = map_tree(change, self._fixed, *others)
        changed = type(self)(self.module, self.distribution, shape=self._shape, **own)
        # Networks that were prepared for their passes are so for other rows, too.
        changed._mlp, changed._critic, changed.critic = self._mlp, self._critic, self.critic
        return changed

    def same_network(self, other: VictimPolicy) -> bool:
        """Whether `joined` takes both: of one network, with columns of the same kinds."""
        networks = self.module is other.module and self._critic is other._critic
        return networks and self._fixed.keys() == other._fixed.keys()

    @staticmethod
    def joined(policies: Sequence[VictimPolicy]) -> VictimPolicy:
        """One policy for the rows of several, in their order; all of one module."""
        first, *others = policies
        return first.changed(lambda *columns: torch.cat(columns), *(policy._fixed for policy in others))

    @property
    def _fixed(self) -> dict[str, Any]:
        """The tensors that each row has of its own."""
        columns = {"action_mask": self.action_mask, "state": self._state, "tokens": self.tokens}
        return {name: column for name, column in columns.items() if column is not None}


class VictimCritic:
    """The critic of a module as a function of network inputs, `[..., d] -> [...]`."""

    def __init__(self, network: nn.Module, shape: tuple[int, ...]) -> None:
        self._network, self._shape = network, shape
        self._mlp = _WrittenOut.of(network, shape)

    def __call__(self, obs: Tensor) -> Tensor:
        if self._mlp is not None and not torch.is_grad_enabled():
            return self._mlp(obs).reshape(obs.shape[:-1])
        return _apply(self._network, obs, self._shape).reshape(obs.shape[:-1])

    def vjp(self, obs: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        """V(s), and c ↦ c ∂V/∂s, `[...] -> [..., d]`, once; see `Policy.vjp`."""
        if self._mlp is None:
            return autograd_vjp(self, obs)
        values, pull = self._mlp.vjp(obs)
        return values.reshape(obs.shape[:-1]), pull


class _WrittenOut:
    """A plain MLP with its derivatives written out; a frozen one is prepared once for all passes."""

    def __init__(self, mlp: PlainMLP) -> None:
        self._mlp = mlp
        self._trained = any(weight is not None and weight.requires_grad for weight in mlp.parameters())

    @classmethod
    def of(cls, network: nn.Module, shape: tuple[int, ...]) -> Self | None:
        """The network of such observations, where it is a plain MLP of vectors."""
        mlp = PlainMLP.of(network) if len(shape) == 1 else None
        return None if mlp is None else cls(mlp)

    def __call__(self, obs: Tensor) -> Tensor:
        """Outputs `[..., m]`; their graph, where there is one, can be differentiated once."""
        return self._mlp(obs, changed=self._trained)

    def vjp(self, obs: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        """See `PlainMLP.vjp`."""
        return self._mlp.vjp(obs, changed=self._trained)


def _apply(network: nn.Module, obs: Tensor, shape: tuple[int, ...], **legal: Tensor | None) -> Tensor:
    """`[..., d] -> [..., m]` by a network of one batch dimension, unless observations are vectors."""
    if len(shape) == 1:
        return network(obs, **legal)
    outputs = network(obs.reshape(-1, *shape), **legal)
    return outputs.reshape(*obs.shape[:-1], -1)


def _check_mask(mask: Tensor, distribution: ActionDistribution) -> None:
    if isinstance(distribution, DiagGaussian):
        raise ValueError("expected no action mask for Box actions, got one; bounds are the space's business")
    if mask.dtype != torch.bool or mask.shape[-1] != distribution.num_inputs:
        raise ValueError(
            f"expected a bool action mask [B, {distribution.num_inputs}], got {mask.dtype} "
            f"{tuple(mask.shape)}"
        )


ELSEWHERE = (
    "give a network from observations to logits (Box actions: mean and log σ); Victim.from_sb3 takes whole "
    "models of Stable-Baselines3, and in TorchRL's actors it is the module of their TensorDictModule"
)
"""The advice to those who have the policy of another framework."""


def frozen(module: nn.Module, module_id: str) -> nn.Module:
    """A copy in evaluation mode without gradients.

    Raises:
        ValueError: it keeps tensors that were computed, which torch does not copy.
    """
    try:
        return deepcopy(module).eval().requires_grad_(False)
    except RuntimeError as error:
        raise ValueError(
            f"expected module {module_id!r} to be a network that can be copied, got a "
            f"{type(module).__name__}, which keeps tensors of its last forward pass; {ELSEWHERE}"
        ) from error


@torch.no_grad()
def check_network(
    module: nn.Module,
    module_id: str,
    *,
    shape: tuple[int, ...],
    action_space: gym.Space[Any],
    critic: nn.Module | None = None,
) -> None:
    """Raise `ValueError` unless a module maps observations of a shape to inputs of an action distribution."""
    distribution, obs = from_space(action_space), torch.zeros(2, *shape)
    outputs = _first_outputs(module, module_id, obs) if is_recurrent(module) else _ask(module, module_id, obs)
    if not isinstance(outputs, Tensor):
        raise ValueError(
            f"expected module {module_id!r} to give one tensor of distribution inputs, got a "
            f"{type(outputs).__name__} from {type(module).__name__}; {ELSEWHERE}"
        )
    if outputs.shape != (2, distribution.num_inputs):
        hint = " (mean and log σ)" if isinstance(distribution, DiagGaussian) else ""
        raise ValueError(
            f"expected module {module_id!r} to give {distribution.num_inputs} outputs{hint} for "
            f"{action_space}, got {tuple(outputs.shape[1:])}"
        )
    if critic is not None and (values := critic(obs)).shape not in ((2,), (2, 1)):
        raise ValueError(
            f"expected the critic of {module_id!r} to give one value a row, got {tuple(values.shape)} for 2"
        )


def _ask(module: nn.Module, module_id: str, obs: Tensor, *state: State) -> Any:
    try:
        return module(obs, *state)
    except Exception as error:
        raise ValueError(
            f"expected module {module_id!r} to take observations {tuple(obs.shape[1:])}, got "
            f"{type(error).__name__} ({error}) from {type(module).__name__}; {ELSEWHERE}"
        ) from error


def _first_outputs(module: nn.Module, module_id: str, obs: Tensor) -> Any:
    """The outputs of a recurrent module at the beginning of an episode."""
    state = initial_state(module, len(obs))
    result = _ask(module, module_id, obs, state)
    if not (isinstance(result, tuple) and len(result) == 2):
        raise ValueError(
            f"expected recurrent module {module_id!r} to return (outputs, state), got {type(result).__name__}"
        )
    before, after = ([tuple(x.shape) for x in leaves(part)] for part in (state, result[1]))
    if before != after or any(shape[:1] != (len(obs),) for shape in before):
        raise ValueError(
            f"expected states [B, ...] of fixed shapes from recurrent module {module_id!r}, got {before} at "
            f"the beginning and {after} after a step, for B = {len(obs)}; put the batch first"
        )
    return result[0]
