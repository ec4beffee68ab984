"""One fixed network for passes beyond the learner's own: an ascent, a Jacobian, an attack.

A network in training mode is another function in every pass (dropout, batch normalisation), and a pass leaves
traces in it (running statistics, power iterations, counters, hooks). What a learner sees of its network must
be as if nobody else had looked, and an adversary must climb on one function.
"""

from __future__ import annotations

import inspect
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from types import FunctionType
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parameter import is_lazy

Difference = Literal["none", "hooks", "mode"]
"""Why the outputs of a fixed network may differ from those of the learner's own pass."""

_WITH_DROPOUT_OF_THEIR_OWN = (
    nn.RNNBase,
    nn.MultiheadAttention,
    nn.TransformerEncoder,
    nn.TransformerEncoderLayer,
)
"""They stay in training mode, without dropout: in evaluation mode cuDNN's recurrent layers have no gradient,
and attention takes kernels that have no Jacobian-vector product."""


@contextmanager
def fixed(network: nn.Module) -> Iterator[Difference]:
    """Hold a network as one fixed function, row by row, while more observations pass it than its learner's.

    Within the block it is in evaluation mode, as it plays: no dropout, the running statistics of batch
    normalisation, no power iteration of spectral norms. Hooks that watch it are silent. After the block
    modes, buffers, attributes and random numbers are as before.

    Raises:
        ValueError: batch normalisation without running statistics, or random numbers whatever the mode.
    """
    every = [] if unmade(network) else network.modules()
    modules = [module for module in every if not isinstance(module, torch.jit.ScriptModule)]
    if all(map(_inert, modules)):
        yield "none"
        return
    for name, module in network.named_modules():
        if isinstance(module, _BatchNorm) and module.running_mean is None:
            raise ValueError(
                "expected a policy whose rows do not depend on one another, got "
                f"{type(module).__name__} at {name!r}, which normalises by the batch; give it running "
                "statistics (track_running_stats=True), or use LayerNorm"
            )
    watched: Difference = "none" if all(map(_of_torch, _hooks(modules))) else "hooks"
    difference: Difference = "mode" if any(map(_depends_on_mode, modules)) else watched
    before = [(module, dict(vars(module)), dict(module._buffers)) for module in modules]
    random = _random_states(network)
    try:
        for module in modules:
            _fix(module)
        yield difference
    finally:
        for module, attributes, buffers in before:
            for name in set(vars(module)) - set(attributes):
                del vars(module)[name]
            vars(module).update(attributes)
            module._buffers.update(buffers)
        changed = not all(map(torch.equal, random, _random_states(network)))
        if changed:
            torch.set_rng_state(random[0])
            for state in random[1:]:
                torch.cuda.set_rng_state(state, _device(network))
    if changed:
        raise ValueError(
            f"expected a network that is one function in evaluation mode, got {type(network).__name__}, "
            "which draws random numbers there; let it draw them where self.training is true"
        )


def _fix(module: nn.Module) -> None:
    state = vars(module)
    module._buffers.update({name: None if b is None else b.clone() for name, b in module._buffers.items()})
    if isinstance(module, _WITH_DROPOUT_OF_THEIR_OWN):
        if isinstance(state.get("dropout"), float):
            state["dropout"] = 0.0
    else:
        state["training"] = False
    # RLlib's modules change to training mode by themselves in every training pass.
    state["train"] = lambda mode=True: module
    for kind in ("_forward_hooks", "_forward_pre_hooks"):
        state[kind] = OrderedDict((key, hook) for key, hook in state[kind].items() if _of_torch(hook))


def _inert(module: nn.Module) -> bool:
    """Whether a pass changes nothing in one of torch's own modules, and the mode neither."""
    plain = type(module).__module__.startswith("torch.nn.modules.") and not module._buffers
    return plain and not _depends_on_mode(module) and not any(_hooks([module]))


def _hooks(modules: Sequence[nn.Module]) -> Iterator[object]:
    for module in modules:
        yield from (*module._forward_hooks.values(), *module._forward_pre_hooks.values())


def _of_torch(hook: object) -> bool:
    """Whether a hook is a part of the network, as those of weight norm and pruning are."""
    return any(getattr(k, "__module__", "").startswith("torch.") for k in (hook, *type(hook).__mro__))


def _depends_on_mode(module: nn.Module) -> bool:
    if isinstance(module, _WITH_DROPOUT_OF_THEIR_OWN):
        return isinstance(dropout := getattr(module, "dropout", None), float) and dropout > 0
    return module.training and _asks_for_mode(type(module))  # type: ignore[arg-type]


@cache
def _asks_for_mode(cls: type) -> bool:
    """Whether the methods of a forward pass read `self.training`."""
    # RLlib's modules train by methods of their own; `forward` calls those that play, too.
    names = ["forward_train", "_forward_train"] if hasattr(cls, "forward_train") else ["forward"]
    seen = set()
    while names:
        name = names.pop()
        method = inspect.unwrap(getattr(cls, name, None))  # type: ignore[arg-type]
        if name in seen or not isinstance(method, FunctionType) or method.__module__ == nn.Module.__module__:
            continue
        seen.add(name)
        if "training" in method.__code__.co_names:
            return True
        names += method.__code__.co_names
    return False


def unmade(network: nn.Module) -> bool:
    """Whether lazy layers get their weights from the pass that comes."""
    return any(map(is_lazy, network.parameters()))


def _device(network: nn.Module) -> torch.device:
    return next((p.device for p in network.parameters()), torch.device("cpu"))


def _random_states(network: nn.Module) -> list[Tensor]:
    device = _device(network)
    on_device = [torch.cuda.get_rng_state(device)] if device.type == "cuda" else []
    return [torch.get_rng_state(), *on_device]
