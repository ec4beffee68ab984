"""Networks that read words, split at their embeddings: what an adversary moves is the embedded observation.

    x = E[w] / ρ,     f(x, w) = network(ρ x where a word may be moved, E[w] elsewhere)       x ∈ [B, L·e]

Words w are integers, which nothing moves by a little. ρ is the mean distance of an embedding to its nearest
neighbour, so that ε is in units of it: at ε = 1, in L2, a word reaches its neighbours. Each word has this
radius for itself (`Policy.block`). Padding and words of control are held fixed.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, Self

import torch
from torch import Tensor, nn

from marl_aajr.core.distributions import ActionDistribution
from marl_aajr.core.policy import Policy

NEIGHBOURS = 256
"""Embeddings whose nearest neighbour is sought, evenly spaced over larger vocabularies."""

_BEYOND = 10.0
"""No curve of ε needs sizes of so many times the distance of the furthest word."""


class TokenNetwork(nn.Module, ABC):
    """A network from words `[B, L]` to distribution inputs `[B, m]`, in two halves.

    Attributes:
        held: words that nobody perturbs, such as padding.
    """

    held: tuple[int, ...] = ()

    def __init__(self) -> None:
        super().__init__()
        self._unit: tuple[float, Tensor] | None = None

    @property
    @abstractmethod
    def embeddings(self) -> Tensor:
        """E, the embedding of each word, `[V, e]`."""

    @property
    def embedding_table(self) -> Tensor:
        """The weights that embeddings are rows of: ρ is measured anew when they change."""
        return self.embeddings

    @abstractmethod
    def from_embedding(self, embedded: Tensor, tokens: Tensor) -> Tensor:
        """Distribution inputs `[B, m]` of embedded words `[B, L, e]`; `tokens` say which are padding."""

    def forward(self, tokens: Tensor) -> Tensor:
        tokens = tokens.long()
        return self.from_embedding(self.embeddings[tokens], tokens)

    @property
    def unit(self) -> Tensor:
        """ρ, a constant of the weights of now: without a gradient."""
        # Not by the version of the tensor, which fused optimizers leave as it is.
        total = float(self.embedding_table.detach().sum(dtype=torch.float64))
        if self._unit is None or self._unit[0] != total:
            self._unit = total, neighbour_distance(self.embeddings.detach())
        return self._unit[1]

    def embed(self, tokens: Tensor) -> Tensor:
        """x of words `[B, L]`, as what an adversary moves, `[B, L·e]`."""
        embedded: Tensor = self.embeddings[tokens.long()] / self.unit
        return embedded.flatten(-2)

    def words_at(self, obs: Tensor, tokens: Tensor) -> Tensor:
        """The words nearest to x `[B, L·e]`, `[B, L]`; those that nobody has moved are `tokens` still."""
        x, kept = (at.unflatten(-1, (tokens.shape[-1], -1)) for at in (obs, self.embed(tokens)))
        table = self.embeddings / self.unit
        distances = torch.cdist(x, table, compute_mode="donot_use_mm_for_euclid_dist")
        return torch.where((x == kept).all(-1), tokens, distances.argmin(-1))

    def free(self, tokens: Tensor) -> Tensor:
        """Which words may be moved, `[B, L]` bool."""
        held = torch.tensor(self.held, dtype=tokens.dtype, device=tokens.device)
        return ~torch.isin(tokens, held)

    def at(self, obs: Tensor, tokens: Tensor, free: Tensor | None = None) -> Tensor:
        """f(x, w), `[B, L·e] -> [B, m]`; `free` in the place of `self.free`."""
        tokens = tokens.long()
        clean, unit = self.embeddings[tokens], self.unit
        # A difference: where nobody has moved a word, to the last bit what the word is.
        moved = clean + (obs.unflatten(-1, (tokens.shape[-1], -1)) - clean / unit) * unit
        free = self.free(tokens) if free is None else free
        return self.from_embedding(torch.where(free.unsqueeze(-1), moved, clean), tokens)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_unit": None}


class TokenPolicy(Policy):
    """A `TokenNetwork` at the words of some rows, as a policy of their embeddings `[B, L·e]`.

    Args:
        network: the network; its observations are `policy.embed(tokens)`.
        distribution: what its outputs parametrise.
        tokens: the words, `[B, L]` integers.
        free: which of them an adversary may move, `[B, L]` bool, such as those that others have said; None:
            all but `network.held`.
        forward: in the place of `network.at`, for outputs that are more.

    Example:
        >>> policy = TokenPolicy(network, Categorical(3), tokens)
        >>> PGD(perturbations=PerturbationSet(epsilon=0.5, norm="l2"))(policy, policy.embed(tokens), ...)
    """

    network: TokenNetwork

    def __init__(
        self,
        network: TokenNetwork,
        distribution: ActionDistribution,
        tokens: Tensor,
        *,
        free: Tensor | None = None,
        forward: Callable[[Tensor, Tensor, Tensor], Tensor] | None = None,
    ) -> None:
        super().__init__(distribution)
        self.network, words = network, tokens.long()
        self.tokens: Tensor = words
        self.free = network.free(words) if free is None else free & network.free(words)
        self.block = network.embeddings.shape[-1]
        self._forward = forward

    @property
    def embeddings(self) -> Tensor:
        return self.network.embeddings.detach() / self.network.unit

    def embed(self, tokens: Tensor) -> Tensor:
        return self.network.embed(tokens)

    def __call__(self, obs: Tensor) -> Tensor:
        return (self._forward or self.network.at)(obs, self.tokens, self.free)

    def parameters(self) -> list[Tensor]:
        return list(self.network.parameters())

    def changed(self, change: Callable[[Tensor], Tensor]) -> Self:
        columns = {"tokens": change(self.tokens), "free": change(self.free)}
        return type(self)(self.network, self.distribution, **columns, forward=self._forward)


def neighbour_distance(embeddings: Tensor) -> Tensor:
    """ρ: the mean Euclidean distance of embeddings `[V, e]` to the nearest other one, a positive number.

    Over `NEIGHBOURS` of them at most. Words with the same embedding are one word.

    Raises:
        ValueError: fewer than two different embeddings.
    """
    count = len(embeddings)
    chosen = torch.linspace(0, count - 1, min(count, NEIGHBOURS), device=embeddings.device).long()
    distances = torch.cdist(embeddings[chosen], embeddings)
    nearest = distances.masked_fill(distances <= 1e-6 * distances.amax(), torch.inf).amin(-1)
    apart = nearest[nearest.isfinite()]
    if not len(apart):
        raise ValueError(f"expected embeddings of at least two words, got {count} that are all the same")
    return apart.mean()


def check_radius(embeddings: Tensor, epsilon: float) -> None:
    """Raise `ValueError` for an ε far beyond all embeddings `[V, e]`, as one in other units is."""
    reach = float(torch.linalg.vector_norm(embeddings.detach() - embeddings.detach().mean(0), dim=-1).amax())
    if epsilon > _BEYOND * reach:
        raise ValueError(
            "expected epsilon in units of the mean distance between neighbouring embeddings, where all words "
            f"lie within {reach:.3g} of their middle, got {epsilon:g}; at 1 a word reaches its neighbours"
        )
