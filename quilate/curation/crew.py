"""One function over many chunks, by as many processes as there are cores; the answers come in the chunks' order.

The processes are started as programs and speak over pipes, so they need nothing of the caller's main module and end
when the caller does, however it ends. What goes through a pipe goes as multiprocessing sends it, between processes of
this program alone: pages are taken apart in others (`extraction`).
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, suppress
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from queue import SimpleQueue
from types import TracebackType
from typing import Any

from quilate.errors import MachineError, QuilateError

MOST = 16  # guess: each holds some 150 MB of libraries
_AHEAD = 2  # chunks read ahead for each process
_PATIENCE = 0.2  # seconds between two looks at whether somebody wants it to stop

Open = Callable[[], AbstractContextManager[Callable[[Any], Any]]]


def usable_cores() -> int:
    """The cores this process may use, or fewer where OMP_NUM_THREADS says so."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    asked = os.environ.get("OMP_NUM_THREADS", "")
    return min(cores, int(asked)) if asked.isdecimal() and int(asked) else cores


class Crew:
    """Applies a function to chunks. Use it as a context: at its end nothing is left running.

    Args:
        open_: makes what does the work, once in every process; several of them are sent it, and chunks.
        processes: 1 is this one. They start with the first chunk.
    """

    def __init__(self, open_: Open, processes: int) -> None:
        self._open = open_
        self._processes = min(processes, MOST)
        self._stack = ExitStack()
        self._work: Callable[[Any], Any] | None = None  # of this process alone
        self._threads: ThreadPoolExecutor | None = None  # one waits for each of several
        self._idle: SimpleQueue[_Member] = SimpleQueue()

    def __enter__(self) -> Crew:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def each(self, chunks: Iterable[Any], check: Callable[[], None]) -> Iterator[Any]:
        """The answer to every chunk, in their order.

        Args:
            check: is asked often, and raises to end the work.

        Raises:
            QuilateError: whatever the function raised.
            MachineError: one of the processes was killed.
        """
        if self._processes == 1:
            self._work = self._work or self._stack.enter_context(self._open())
            for chunk in chunks:
                check()
                yield self._work(chunk)
            return
        threads = self._threads = self._threads or self._start()
        waiting: deque[Future[Any]] = deque()
        try:
            for chunk in chunks:
                waiting.append(threads.submit(self._ask, chunk))
                if len(waiting) > _AHEAD * self._processes:
                    yield _answer_of(waiting.popleft(), check)
            while waiting:
                yield _answer_of(waiting.popleft(), check)
        finally:
            for future in waiting:
                future.cancel()

    def _start(self) -> ThreadPoolExecutor:
        threads = self._stack.enter_context(ThreadPoolExecutor(self._processes))
        for _ in range(self._processes):
            member = _Member(self._open)
            self._stack.callback(member.end)  # at the end before the threads, which wait for its answer
            self._idle.put(member)
        return threads

    def _ask(self, chunk: Any) -> Any:
        member = self._idle.get()
        try:
            return member.ask(chunk)
        finally:
            self._idle.put(member)


def _answer_of(future: Future[Any], check: Callable[[], None]) -> Any:
    while True:
        check()
        with suppress(TimeoutError):
            return future.result(timeout=_PATIENCE)


class _Member:
    """One process."""

    def __init__(self, open_: Open) -> None:
        self._pipe, theirs = Pipe()
        command = [sys.executable, "-m", "quilate.curation.crew", str(theirs.fileno())]
        self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, pass_fds=[theirs.fileno()])
        theirs.close()  # the process has it now; it ends when this end is closed, by a kill of this process too
        with suppress(OSError):  # the first question says that it is gone
            self._pipe.send(open_)

    def ask(self, chunk: Any) -> Any:
        try:
            self._pipe.send(chunk)
            error, answer = self._pipe.recv()
        except (OSError, EOFError) as gone:
            raise MachineError(
                "one of the processes that share the work was killed, most likely for want of memory",
                hint="free memory, or set OMP_NUM_THREADS=1 for one process, and run the same command again to go on",
            ) from gone
        if error is not None:
            raise error
        return answer

    def end(self) -> None:
        self._process.kill()
        self._process.wait()


def serve(pipe: Connection) -> None:
    """A process of the crew: what does the work comes first, then chunks; answers go back."""
    with pipe.recv()() as work:
        while True:
            try:
                chunk = pipe.recv()
            except EOFError:
                return
            error: Exception | None = None
            answer: Any = None
            try:
                answer = work(chunk)
            except QuilateError as own:
                error = own
            except Exception:  # ours; its trace would be lost on the way
                error = QuilateError(f"curation failed on a chunk:\n{traceback.format_exc()}", hint="please report it")
            pipe.send((error, answer))


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    os.dup2(2, 1)  # what a library prints must not be taken for what a stage says
    with suppress(ConnectionResetError, BrokenPipeError):  # the parent was killed
        serve(Connection(int(sys.argv[1])))
