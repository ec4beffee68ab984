"""The state of any environment as bytes, and back, although it was not written to be saved.

Pickle alone is a trap. Most PettingZoo environments are `EzPickle`, which pickles the arguments of the
constructor and nothing else: what comes back is a new environment, without a word. Here their attributes are
pickled, so what comes back is the environment in its state, its own random generators included.

Left out, because they cannot be read: windows, surfaces and fonts of pygame (those of the environment that
the state is put into take their place), and everything outside of Python objects. An environment whose
simulator is such a thing (Box2D's worlds) is refused. What an environment draws from the global generators of
`random` and NumPy is no part of its state.
"""

from __future__ import annotations

import io
import pickle
from typing import Any

from gymnasium.utils import EzPickle


def save(thing: Any) -> bytes:
    """The state of an environment, or of any object.

    Raises:
        ValueError: Something in it cannot be pickled.
    """
    buffer = io.BytesIO()
    try:
        _Writer(buffer).dump(thing)
    except Exception as error:  # what refuses to be pickled does so in its own way
        raise ValueError(f"{type(error).__name__}: {error}") from error
    return buffer.getvalue()


def restore(state: bytes, like: Any) -> Any:
    """The object in its state.

    Args:
        state: Result of `save`. It is a pickle: from a source that you would run code from.
        like: An object that was built alike; it lends what a state does not hold.
    """
    writer = _Writer(io.BytesIO())
    writer.dump(like)
    return _Reader(io.BytesIO(state), writer.left_out).load()


class _Writer(pickle.Pickler):
    def __init__(self, buffer: io.BytesIO) -> None:
        super().__init__(buffer)
        self.left_out: dict[str, list[Any]] = {}

    def persistent_id(self, obj: Any) -> tuple[str, int] | None:
        """Kind and number among those of the kind."""
        if type(obj).__module__.partition(".")[0] != "pygame" or _picklable(obj):
            return None
        alike = self.left_out.setdefault(type(obj).__qualname__, [])
        known = [i for i, other in enumerate(alike) if other is obj]
        if not known:
            alike.append(obj)
        return type(obj).__qualname__, known[0] if known else len(alike) - 1

    def reducer_override(self, obj: Any) -> Any:
        if not isinstance(obj, EzPickle):
            return NotImplemented
        return object.__new__, (type(obj),), vars(obj), None, None, _fill


class _Reader(pickle.Unpickler):
    def __init__(self, buffer: io.BytesIO, lent: dict[str, list[Any]]) -> None:
        super().__init__(buffer)
        self._lent = lent

    def persistent_load(self, pid: tuple[str, int]) -> Any:
        kind, number = pid
        alike = self._lent.get(kind, [])
        return alike[number] if number < len(alike) else None


def _fill(obj: Any, attributes: dict[str, Any]) -> None:
    vars(obj).update(attributes)


def _picklable(obj: Any) -> bool:
    try:
        pickle.dumps(obj)
    except Exception:
        return False
    return True
