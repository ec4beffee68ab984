"""The portable artefact of a victim: `victim.json` describes it, `victim.safetensors` has its numbers.

No pickle: a file from a stranger can be wrong, but it cannot run code. The JSON carries a checksum of the
numbers, because safetensors has none and one flipped bit in a weight would go unnoticed.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from marl_aajr.core.flat_observations import FlatBox
from marl_aajr.core.token_network import TokenNetwork
from marl_aajr.victims.filters import ObservationFilter
from marl_aajr.victims.layers import build, describe, flatten
from marl_aajr.victims.noise import Smoothing
from marl_aajr.victims.smoothing import SmoothedVictim, smoothed
from marl_aajr.victims.victim import Victim

FORMAT = "marl_aajr.victim"
VERSION = 1
DESCRIPTION = "victim.json"
NUMBERS = "victim.safetensors"

_NETWORKS = ("modules", "critics")
_FLAGS = ("normalize_actions", "clip_actions", "greedy_only")


def save_victim(victim: Victim, folder: Path | str) -> Path:
    """Write a victim; see `Victim.save`."""
    folder = Path(folder)
    if folder.is_dir() and (foreign := sorted(set(os.listdir(folder)) - {DESCRIPTION, NUMBERS})):
        raise ValueError(
            f"expected {folder} to be new, empty or a saved victim, got a folder with {foreign[0]}; "
            "choose another"
        )
    if folder.is_file():
        raise ValueError(f"expected {folder} to be a folder, got a file; choose another")
    text, numbers = _contents(victim)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as scratch:
        fresh = Path(scratch) / "new"
        fresh.mkdir()
        (fresh / DESCRIPTION).write_text(text, encoding="utf-8")
        (fresh / NUMBERS).write_bytes(numbers)
        if folder.exists():
            os.rename(folder, Path(scratch) / "old")
        os.rename(fresh, folder)
    return folder


def check_portable(victim: Victim) -> None:
    """Raise `ValueError` where `save_victim` would, for a network that cannot be described."""
    for network in (*victim.modules.values(), *victim.critics.values()):
        describe(flatten(network))


def load_victim(folder: Path | str) -> Victim:
    """Read a victim that `save_victim` wrote; see `Victim.load`."""
    folder = Path(folder)
    description = _read_description(folder / DESCRIPTION)
    numbers = _read_numbers(folder / NUMBERS, description)
    try:
        return _assemble(description, numbers)
    except (KeyError, TypeError, AttributeError, RuntimeError, ValueError) as error:
        reason = f"lacks {error}" if isinstance(error, KeyError) else str(error).splitlines()[0]
        raise ValueError(f"{folder / DESCRIPTION} is damaged: {reason}; save the victim again") from error


def fingerprint(victim: Victim) -> str:
    """SHA-256 of a victim's weights and filters and of the agents that play by them, saved or not.

    How a description words the rest may change with versions of this library, and is left out.
    """
    _, numbers = _contents(victim)
    players = json.dumps([*victim.module_of.items(), *_smoothing(victim).items()])
    return hashlib.sha256(players.encode() + numbers).hexdigest()


def _contents(victim: Victim) -> tuple[str, bytes]:
    """The contents of the two files; the description has a checksum of the numbers."""
    networks = {kind: {n: flatten(net) for n, net in getattr(victim, kind).items()} for kind in _NETWORKS}
    numbers = save(_numbers(victim, networks))
    description = {
        "format": FORMAT,
        "version": VERSION,
        "env": {"name": victim.env_name, "kwargs": dict(victim.env_kwargs)},
        "agents": [
            {
                "agent": agent,
                "module": module_id,
                "observation_space": _space_to_json(victim.observation_spaces[agent]),
                "action_space": _space_to_json(victim.action_spaces[agent]),
                "filter": None if (seen := victim.filters.get(agent)) is None else {"clip": seen.clip},
            }
            for agent, module_id in victim.module_of.items()
        ],
        **{kind: {name: describe(net) for name, net in own.items()} for kind, own in networks.items()},
        **{name: getattr(victim, name) for name in _FLAGS},
        **_smoothing(victim),
        "sha256": hashlib.sha256(numbers).hexdigest(),
    }
    try:
        return json.dumps(description, indent=1, allow_nan=False), numbers
    except TypeError as error:
        raise ValueError(f"expected env_kwargs of JSON values, got {victim.env_kwargs} ({error})") from None


def _smoothing(victim: Victim) -> dict[str, Any]:
    """The entry of a victim that votes; nothing of others."""
    if not isinstance(victim, SmoothedVictim):
        return {}
    return {"smoothing": {"agents": list(victim.voters), **asdict(victim.smoothing)}}


def _numbers(victim: Victim, networks: Mapping[str, Mapping[str, nn.Module]]) -> dict[str, Tensor]:
    numbers = {
        f"{kind}/{name}/{key}": value.detach().cpu().contiguous()
        for kind, own in networks.items()
        for name, network in own.items()
        for key, value in network.state_dict().items()
    }
    for agent, observed in victim.filters.items():
        if observed is not None:
            # Copies: agents may share a filter, and safetensors refuses tensors that share memory.
            numbers[f"filters/{agent}/mean"] = observed.mean.cpu().clone()
            numbers[f"filters/{agent}/std"] = observed.std.cpu().clone()
    return numbers


def _read_description(path: Path) -> dict[str, Any]:
    try:
        description = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(
            f"expected a saved victim in {path.parent}, got no {path.name}; "
            "finish the training, which saves one, or name another folder"
        ) from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is damaged: {error}; save the victim again") from None
    if not isinstance(description, dict) or description.get("format") != FORMAT:
        raise ValueError(f"expected a victim in {path}, got a file of something else; name another folder")
    if description.get("version") != VERSION:
        raise ValueError(
            f"expected version {VERSION} in {path}, got {description.get('version')!r}; "
            "load it with the marl_aajr that wrote it"
        )
    return description


def _read_numbers(path: Path, description: dict[str, Any]) -> dict[str, Tensor]:
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise ValueError(f"expected {path}, got no such file; save the victim again") from None
    if hashlib.sha256(content).hexdigest() != description.get("sha256"):
        raise ValueError(
            f"{path} is damaged: its checksum is not the one in {DESCRIPTION}; save the victim again"
        )
    try:
        return load(content)
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged: {error}; save the victim again") from None


def _assemble(description: Mapping[str, Any], numbers: Mapping[str, Tensor]) -> Victim:
    agents = {entry["agent"]: entry for entry in description["agents"]}
    settings: dict[str, Any] = {"module_of": {agent: entry["module"] for agent, entry in agents.items()}}
    settings |= {name: description[name] for name in _FLAGS}
    for kind in _NETWORKS:
        own = description[kind].items()
        settings[kind] = {n: _network(layers, _under(numbers, f"{kind}/{n}/")) for n, layers in own}
    for kind in ("observation_space", "action_space"):
        settings[f"{kind}s"] = {agent: _space_from_json(entry[kind]) for agent, entry in agents.items()}
    clips = {agent: entry["filter"]["clip"] for agent, entry in agents.items() if entry["filter"] is not None}
    victim = Victim(
        **settings,
        filters={a: ObservationFilter(**_under(numbers, f"filters/{a}/"), clip=c) for a, c in clips.items()},
        env_name=description["env"]["name"],
        env_kwargs=description["env"]["kwargs"],
    )
    if noise := dict(description.get("smoothing", {})):
        voters = noise.pop("agents")
        return smoothed(victim, Smoothing(**noise), agents=voters)
    return victim


def _under(numbers: Mapping[str, Tensor], prefix: str) -> dict[str, Any]:
    return {key.removeprefix(prefix): value for key, value in numbers.items() if key.startswith(prefix)}


def _network(layers: list[dict[str, Any]], weights: dict[str, Tensor]) -> nn.Module:
    # On the meta device nothing is initialised, so that loading draws no global random numbers.
    with torch.device("meta"):
        network = build(layers)
    network.load_state_dict(weights, assign=True)
    only = next(iter(network))
    return only if isinstance(only, TokenNetwork) else network


def _space_to_json(space: gym.Space[Any]) -> dict[str, Any]:
    """A space as a JSON value, exactly."""
    if isinstance(space, FlatBox):
        return {"space": "FlatBox", "structure": _structure_to_json(space.structure)}
    if isinstance(space, gym.spaces.Box):
        bounds = {"low": _bound(space.low), "high": _bound(space.high)}
        return {"space": "Box", "shape": list(space.shape), "dtype": np.dtype(space.dtype).name, **bounds}
    if isinstance(space, gym.spaces.Discrete):
        return {"space": "Discrete", "n": int(space.n), "start": int(space.start)}
    if isinstance(space, gym.spaces.MultiDiscrete):
        return {"space": "MultiDiscrete", "nvec": space.nvec.tolist(), "start": space.start.tolist()}
    if isinstance(space, gym.spaces.MultiBinary):
        return {"space": "MultiBinary", "shape": list(space.shape)}
    raise ValueError(f"expected a Box, Discrete, MultiDiscrete or MultiBinary space, got {space}")


def _structure_to_json(structure: Any) -> Any:
    """The structure of a `FlatBox` as a JSON value."""
    if isinstance(structure, dict):
        return {"keys": list(structure), "parts": [*map(_structure_to_json, structure.values())]}
    return (
        [*map(_structure_to_json, structure)] if isinstance(structure, tuple) else _space_to_json(structure)
    )


def _space_from_json(value: dict[str, Any]) -> gym.Space[Any]:
    """The space of a JSON value that `_space_to_json` wrote."""
    kind = value.get("space")
    try:
        if kind == "FlatBox":
            return FlatBox(_structure_from_json(value["structure"]))
        if kind == "MultiBinary":
            return gym.spaces.MultiBinary(value["shape"])
        if kind == "Box":
            dtype, shape = np.dtype(value["dtype"]), tuple(value["shape"])
            bounds = (np.array(value[key], dtype) for key in ("low", "high"))
            full = [bound.reshape(shape) if bound.ndim else np.full(shape, bound) for bound in bounds]
            return gym.spaces.Box(*full, dtype=dtype.type)
        if kind == "Discrete":
            return gym.spaces.Discrete(value["n"], start=value["start"])
        if kind == "MultiDiscrete":
            return gym.spaces.MultiDiscrete(np.array(value["nvec"]), start=np.array(value["start"]))
    except (KeyError, TypeError, AssertionError) as error:
        raise ValueError(f"expected a {kind} space, got {value} ({error})") from None
    raise ValueError(f"expected a Box, Discrete, MultiDiscrete or MultiBinary space, got {value}")


def _structure_from_json(value: Any) -> Any:
    if "keys" in value:
        return dict(zip(value["keys"], map(_structure_from_json, value["parts"]), strict=True))
    return tuple(map(_structure_from_json, value)) if isinstance(value, list) else _space_from_json(value)


def _bound(bound: NDArray[Any]) -> Any:
    """One number where all are equal. JSON has no infinity: those are strings."""
    numbers = [x if np.isfinite(x) else str(x) for x in bound.ravel().tolist()]
    return numbers[0] if len(set(numbers)) == 1 else numbers
