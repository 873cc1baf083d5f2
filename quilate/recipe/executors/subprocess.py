"""Run a stage in a subprocess: its memory is freed when it ends, it can be killed, and it resumes."""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib.metadata import PackageNotFoundError, files
from pathlib import Path
from threading import Thread
from typing import Any

from quilate.engine.interrupts import StopRequest
from quilate.engine.runlog import Progress
from quilate.errors import BY_EXIT_CODE, Interrupted, MachineError, QuilateError
from quilate.files import make_folder, read_json
from quilate.recipe.spec import StageSpec

EventListener = Callable[[Progress | str], None]


def run_in_subprocess(spec: StageSpec, folder: Path, *, on_event: EventListener, stop: StopRequest) -> None:
    """Run one stage to its end.

    Args:
        on_event: receives progress, and notes as plain text.
        stop: when set, the stage is asked to save and leave.

    Raises:
        QuilateError: whatever the stage raised, with its own exit code; Interrupted (75) if it was stopped.
        MachineError: it was killed.
    """
    make_folder(folder)
    spec.write(folder)
    (folder / "error.json").unlink(missing_ok=True)
    with (folder / "log.txt").open("a", encoding="utf-8") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "quilate.recipe.worker", str(folder)],
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            encoding="utf-8",
            env=_environment(offline=spec.kind != "base"),
            start_new_session=True,  # Ctrl-C reaches the parent alone, which passes it on exactly once
        )
        try:
            for line in _lines(process, stop):
                on_event(_event(line))
        finally:
            if process.poll() is None:
                process.kill()
            process.wait()
    if stop and process.returncode == -signal.SIGTERM:  # it was asked to leave before it had learned to listen
        raise Interrupted(
            f"stopped by {stop.signal} while stage {spec.name} started", hint="run the same command again"
        )
    if process.returncode != 0:
        raise _failure(process.returncode, spec.name, folder)


def _lines(process: subprocess.Popen[str], stop: StopRequest) -> Iterator[str]:
    """The worker's lines as they come; passes a stop request on, once."""
    received: queue.Queue[str | None] = queue.Queue()

    def read() -> None:
        assert process.stdout is not None
        for line in process.stdout:
            received.put(line)
        received.put(None)

    Thread(target=read, daemon=True).start()
    passed_on = False
    while True:
        if stop and not passed_on:
            process.terminate()
            passed_on = True
        try:
            line = received.get(timeout=0.2)
        except queue.Empty:
            continue
        if line is None:
            process.wait()
            return
        yield line


def _event(line: str) -> Progress | str:
    try:
        event: dict[str, Any] = json.loads(line)
        return Progress(**event["progress"]) if "progress" in event else str(event["note"])
    except (ValueError, KeyError, TypeError):
        return line.rstrip()  # a library printed something; show it rather than lose it


def _failure(code: int, name: str, folder: Path) -> QuilateError:
    if code < 0:
        return MachineError(
            f"stage {name} was killed by signal {-code}" + (" (out of memory?)" if code == -9 else ""),
            hint=f"run the same command again to continue from its last checkpoint; its log is {folder / 'log.txt'}",
        )
    error = BY_EXIT_CODE.get(code, QuilateError)
    if not (folder / "error.json").exists():
        return error(f"stage {name} failed", hint=f"see {folder / 'log.txt'}")
    left = read_json(folder / "error.json")
    return error(f"stage {name}: {left['message']}", hint=left["hint"])


def _environment(*, offline: bool) -> dict[str, str]:
    """The stage's environment: no telemetry, no network unless it fetches a base model, a page-keeping allocator."""
    environment = dict(os.environ) | {"HF_HUB_DISABLE_TELEMETRY": "1", "TOKENIZERS_PARALLELISM": "true"}
    if offline:
        environment["HF_HUB_OFFLINE"] = "1"
    allocator = page_keeping_allocator()
    if allocator is not None and "LD_PRELOAD" not in environment:
        # Every step allocates the same large temporaries; glibc gives their pages back and faults them in again.
        environment |= {"LD_PRELOAD": str(allocator), "MIMALLOC_PURGE_DELAY": "-1"}
    return environment


def page_keeping_allocator() -> Path | None:
    """mimalloc from the wheel `cmeel-mimalloc` (the extra `fast`), if it is installed and this is Linux."""
    if sys.platform != "linux":
        return None
    try:
        candidates = [f for f in files("cmeel-mimalloc") or [] if f.name == "libmimalloc.so"]
    except PackageNotFoundError:
        return None
    return next((path for f in candidates if (path := Path(str(f.locate()))).exists()), None)
