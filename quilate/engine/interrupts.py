"""Ctrl-C and SIGTERM as a request: finish the unit of work, save, leave with exit code 75."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from quilate.errors import Interrupted


class StopRequest:
    """Whether somebody asked this process to stop. Loops look at it between two units of work."""

    def __init__(self) -> None:
        self.signal: str | None = None

    def __bool__(self) -> bool:
        return self.signal is not None

    def raise_if_set(self) -> None:
        """Leave now, for work that needs no saving.

        Raises:
            Interrupted: a stop was requested.
        """
        if self.signal is not None:
            raise Interrupted(f"stopped by {self.signal}", hint="run the same command again to continue")


@contextmanager
def stop_on_signals() -> Iterator[StopRequest]:
    """Catch SIGINT and SIGTERM for the block: the first sets the request, the second ends the process at once (75)."""
    request = StopRequest()

    def handle(number: int, _: FrameType | None) -> None:
        if request.signal is not None:
            os._exit(Interrupted.exit_code)
        request.signal = signal.Signals(number).name

    previous = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield request
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
