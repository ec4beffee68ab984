"""Policies with a memory: what they must offer, and the states that they have in a game.

A recurrent policy's state advances once per decision, with what the policy was shown. An attack may ask the
policy as often as it likes: the policy that it is given holds the state fixed (`VictimPolicy`), and only
`Memory` moves it on.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn

from marl_aajr.core.policy import map_tree, where_rows

State = Any
"""Tensors `[B, ...]`, alone or nested in dicts and tuples."""

CORES = (nn.LSTM, nn.GRU)


def is_recurrent(module: nn.Module) -> bool:
    """Whether a module has a state: a method `initial_state(rows)`, and `forward(obs, state)`.

    `initial_state` gives the state at the beginning of an episode, tensors `[rows, ...]`, alone or nested
    in dicts and tuples; `forward` takes observations `[B, *shape]` and a state and returns distribution
    inputs `[B, m]` and the next state.
    """
    return hasattr(module, "initial_state")


def initial_state(module: nn.Module, rows: int) -> State:
    """The state of a recurrent module at the beginning of an episode."""
    return cast(Any, module).initial_state(rows)


class Recurrent(nn.Sequential):
    """A stack of layers with LSTMs and GRUs among them, one step at a time; it can be saved.

    Raises:
        ValueError: no LSTM or GRU among the layers, or one with projections or two directions.

    Example:
        >>> Recurrent(nn.Linear(18, 64), nn.Tanh(), nn.LSTM(64, 64), nn.Linear(64, 5))
    """

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__(*layers)
        cores = [layer for layer in layers if isinstance(layer, CORES)]
        if not cores:
            raise ValueError("expected an LSTM or a GRU among the layers, got none; use nn.Sequential")
        if any(core.bidirectional or core.proj_size for core in cores):
            raise ValueError("expected LSTMs and GRUs of one direction without projections, got others")

    def initial_state(self, rows: int) -> State:
        """Zeros: for each LSTM (h, c), for each GRU (h,), all `[rows, layers, hidden]`."""
        state = []
        for core in (layer for layer in self if isinstance(layer, CORES)):
            shape, device = (rows, core.num_layers, core.hidden_size), next(core.parameters()).device
            count = 2 if isinstance(core, nn.LSTM) else 1
            state.append(tuple(torch.zeros(shape, device=device) for _ in range(count)))
        return tuple(state)

    def forward(self, obs: Tensor, state: State) -> tuple[Tensor, State]:  # type: ignore[override]
        """One step: `[B, *shape]` and the state before it give `[B, m]` and the state after it."""
        before: Iterator[tuple[Tensor, ...]] = iter(state)
        x, after = obs, []
        for layer in self:
            if isinstance(layer, CORES):
                x, state_out = _step(layer, x, next(before))
                after.append(state_out)
            else:
                x = layer(x)
        return x, tuple(after)


def _step(core: nn.LSTM | nn.GRU, x: Tensor, before: tuple[Tensor, ...]) -> tuple[Tensor, tuple[Tensor, ...]]:
    time = 1 if core.batch_first else 0
    layers_first = tuple(part.transpose(0, 1).contiguous() for part in before)
    if isinstance(core, nn.LSTM):
        y, after = core(x.unsqueeze(time), layers_first)
    else:
        y, h = core(x.unsqueeze(time), *layers_first)
        after = (h,)
    return y.squeeze(time), tuple(part.transpose(0, 1) for part in after)


class Memory:
    """The states of agents' recurrent policies in E copies of a game; nothing for other policies.

    Args:
        networks: agent -> its network.
        num_envs: E.

    Example:
        >>> memory = victim.memory(num_envs)
        >>> policy = victim.policy("a", state=memory.recall({"a": copies}))
        >>> ...  # attack the policy, show it something, let it act
        >>> memory.advance({"a": copies}, policy.next_state(shown))
        >>> memory.forget(step.episode_over)
    """

    def __init__(self, networks: Mapping[str, nn.Module], num_envs: int) -> None:
        self.num_envs = num_envs
        self._initial: dict[str, State] = {
            agent: initial_state(network, num_envs)
            for agent, network in networks.items()
            if is_recurrent(network)
        }
        self._states = dict(self._initial)

    def recall(self, rows: Mapping[str, Tensor]) -> State:
        """The states before a decision, of Σ b rows; None where the agents' policy has none.

        Args:
            rows: agent -> copies `[b]` in which it decides, in their order; agents of one module.
        """
        if next(iter(rows)) not in self._states:
            return None
        own = [map_tree(lambda x, i=index: x[i], self._states[agent]) for agent, index in rows.items()]
        return map_tree(lambda *parts: torch.cat(parts), *own)

    def advance(self, rows: Mapping[str, Tensor], after: State | None) -> None:
        """Move on by one decision of the agents in `rows`, to the states after it; None: they have none."""
        if after is None:
            return
        sizes = [len(index) for index in rows.values()]
        for number, (agent, index) in enumerate(rows.items()):

            def put(old: Tensor, new: Tensor, at: Tensor = index, part: int = number) -> Tensor:
                return old.index_put((at,), new.split(sizes)[part])

            self._states[agent] = map_tree(put, self._states[agent], after)

    def forget(self, over: Tensor | None = None) -> None:
        """Back to the initial state in the copies whose episode is over, `[E]` bool; None: in all."""
        if over is None:
            self._states = dict(self._initial)
            return
        for agent, state in self._states.items():
            initial = self._initial[agent]
            self._states[agent] = map_tree(lambda old, new: where_rows(over, new, old), state, initial)

    def get_state(self) -> dict[str, State]:
        """The states of now, for `set_state`; later steps do not change them."""
        return dict(self._states)

    def set_state(self, states: Mapping[str, State]) -> None:
        """Go on from where `get_state` was asked."""
        self._states = dict(states)
