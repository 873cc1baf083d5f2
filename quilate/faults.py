"""Named fault points: the places where a test can make the world fail.

Production code calls `faults.at("checkpoint.rename")`; nothing happens unless a test has armed that name, in
process with `arm(...)` or in a child process through the variable `QUILATE_FAULTS`
(`name:nth:action[,name:nth:action]`). Killing at a *named* point replaces tests that sleep and hope.
"""

from __future__ import annotations

import errno
import os
import signal
from collections import Counter
from collections.abc import Callable
from typing import Any, TypeVar

T = TypeVar("T")


def _kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _terminate() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def _pause() -> None:
    os.kill(os.getpid(), signal.SIGSTOP)


def _disk_full() -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _out_of_memory() -> None:
    raise MemoryError("injected by a fault point")


ACTIONS: dict[str, Callable[[], None]] = {
    "kill": _kill,
    "terminate": _terminate,
    "pause": _pause,
    "disk-full": _disk_full,
    "out-of-memory": _out_of_memory,
}

_armed: dict[str, tuple[int, Callable[..., Any]]] = {}
_seen: Counter[str] = Counter()


def arm(name: str, action: str | Callable[..., Any], nth: int = 1) -> None:
    """Make the `nth` passage (from 1) of the point `name` perform `action`; at a point that values pass through it is
    given the value and returns what takes its place."""
    _armed[name] = (nth, ACTIONS[action] if isinstance(action, str) else action)
    _seen[name] = 0


def disarm() -> None:
    """Forget every armed point and every count."""
    _armed.clear()
    _seen.clear()


def at(name: str) -> None:
    """Pass the fault point `name`. Inert unless a test armed it."""
    if _armed and _fires(name):
        _armed[name][1]()


def through(name: str, value: T) -> T:
    """Pass the fault point `name` with a value, unchanged unless a test armed it."""
    if _armed and _fires(name):
        altered: T = _armed[name][1](value)
        return altered
    return value


def _fires(name: str) -> bool:
    if name not in _armed:
        return False
    _seen[name] += 1
    return _seen[name] == _armed[name][0]


def _arm_from_environment() -> None:
    for item in filter(None, os.environ.get("QUILATE_FAULTS", "").split(",")):
        name, nth, action = item.split(":")
        arm(name, action, int(nth))


_arm_from_environment()
