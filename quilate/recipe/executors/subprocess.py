"""Run stages in processes of their own: a stage's memory is freed when it ends, it can be killed, and it resumes."""

from __future__ import annotations

import json
import os
import queue
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, files
from pathlib import Path
from threading import Thread
from typing import Any

from quilate.engine.distributed import SHARDING, Sharding
from quilate.engine.interrupts import StopRequest
from quilate.engine.runlog import Progress
from quilate.errors import BY_EXIT_CODE, Interrupted, MachineError, QuilateError
from quilate.files import make_folder, read_json
from quilate.recipe.spec import StageSpec

USES_NETWORK = ("base",)  # a hub name is fetched there, and nowhere else

EventListener = Callable[[Progress | str], None]

TRAIN_TOGETHER = ("pretrain", "adapt", "sft", "reward", "dpo", "finetune", "multitask")


@dataclass(frozen=True)
class Together:
    """How one stage is trained: by how many processes of this machine, and how they hold the model. A `launcher` starts
    them itself, on several machines perhaps: `srun torchrun --nnodes=4 ...`."""

    processes: int = 1
    sharding: Sharding = "ddp"
    launcher: str = ""

    @property
    def several(self) -> bool:
        return self.processes > 1 or bool(self.launcher)


ALONE = Together()


class StageProcesses:
    """Runs stages one after another, each in a process of its own.

    The processes are forked from one server, `python -m quilate.recipe.worker`, which has imported what takes seconds;
    it starts with the first stage. A stage that may use the network has a server to itself: whether it may is read when
    libraries are imported. Use it as a context: at its end nothing is left running.

    Args:
        together: of stages that train by the engine's loop, how many processes `torchrun` is to start.
    """

    def __init__(self, together: Together = ALONE) -> None:
        self.together = together
        self._server: _Server | None = None

    def __enter__(self) -> StageProcesses:
        return self

    def __exit__(self, *_: object) -> None:
        self._close()

    def run(
        self, spec: StageSpec, folder: Path, *, uses_models: bool, on_event: EventListener, stop: StopRequest
    ) -> None:
        """Run one stage to its end.

        Args:
            uses_models: import what models need before forking, if that is not done yet.
            on_event: receives progress, and notes as plain text.
            stop: when set, the stage is asked to save and leave.

        Raises:
            QuilateError: whatever the stage raised, with its own exit code; Interrupted (75) if it was stopped.
            MachineError: it was killed.
        """
        make_folder(folder)
        spec.write(folder)
        (folder / "error.json").unlink(missing_ok=True)
        if self.together.several and spec.kind in TRAIN_TOGETHER:
            if _run_together(folder, self.together, on_event=on_event, stop=stop) != 0:
                raise _failure_together(spec.name, folder)
            return
        offline = spec.kind not in USES_NETWORK
        if self._server is not None and self._server.offline != offline:
            self._close()
        if self._server is None:
            self._server = _Server(offline=offline, log=folder / "log.txt")
        finished = False
        try:
            code = self._server.run(folder, warm=uses_models and not has_gpu(), on_event=on_event, stop=stop)
            finished = True
        finally:
            if not finished:  # a listener raised, or the server is gone: leave no stage running unattended
                self._close()
        if stop and code == -signal.SIGTERM:  # it was asked to leave before it had learned to listen
            raise Interrupted(
                f"stopped by {stop.signal} while stage {spec.name} started", hint="run the same command again"
            )
        if code != 0:
            raise stage_failure(code, spec.name, folder)

    def _close(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None


class _Lines:
    """A process and the lines it writes, as they come."""

    def __init__(self, command: list[str], *, log: Path, environment: dict[str, str]) -> None:
        with log.open("a", encoding="utf-8") as errors:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                encoding="utf-8",
                env=environment,
                start_new_session=True,  # Ctrl-C reaches the parent alone, which passes it on exactly once
            )
        self._received: queue.Queue[str | None] = queue.Queue()
        Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._received.put(line)
        self._received.put(None)

    def follow(self, *, on_event: EventListener, stop: StopRequest, launches: bool = False) -> int:
        """Until a stage ends; returns its exit code, negative for a signal. Passes a stop request on, once: to the
        stage, or to this process if it `launches` stages elsewhere."""
        stage, told = self._process.pid if launches else None, False
        while True:
            if stop and stage is not None and not told:
                with suppress(ProcessLookupError):
                    os.kill(stage, signal.SIGTERM)
                told = True
            try:
                line = self._received.get(timeout=0.2)
            except queue.Empty:
                continue
            if line is None:
                return self._process.wait()
            event = event_of(line)
            if isinstance(event, Began):
                stage = stage if launches else event.process
            elif isinstance(event, Ended):
                return event.code
            else:
                on_event(event)

    def close(self) -> None:
        """End the process, and with it the stage it may still run."""
        self._process.kill()
        self._process.wait()


class _Server(_Lines):
    """The process that stages are forked from."""

    def __init__(self, *, offline: bool, log: Path) -> None:
        self.offline = offline
        command = [sys.executable, "-m", "quilate.recipe.worker"]
        super().__init__(command, log=log, environment=stage_environment(offline=offline))

    def run(self, folder: Path, *, warm: bool, on_event: EventListener, stop: StopRequest) -> int:
        """Run the stage in `folder`; returns its exit code, negative for a signal. Passes a stop request on, once."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"folder": str(folder), "warm": warm}) + "\n")
        self._process.stdin.flush()
        code = self.follow(on_event=on_event, stop=stop)
        return code if code != 0 or self._process.poll() is None else 1  # the server is to outlive the stage


def _run_together(folder: Path, together: Together, *, on_event: EventListener, stop: StopRequest) -> int:
    """Run one stage by several processes; the first speaks for all."""
    environment = stage_environment(offline=True) | {SHARDING: together.sharding}
    command = [sys.executable, "-m", "quilate.recipe.worker", str(folder), "--processes", str(together.processes)]
    if together.launcher:
        command = [*shlex.split(together.launcher), "-m", "quilate.recipe.worker", str(folder.resolve())]
    else:
        environment.setdefault("OMP_NUM_THREADS", str(max(1, len(os.sched_getaffinity(0)) // together.processes)))
    lines = _Lines(command, log=folder / "log.txt", environment=environment)
    try:
        return lines.follow(on_event=on_event, stop=stop, launches=bool(together.launcher))
    finally:
        lines.close()


def _failure_together(name: str, folder: Path) -> QuilateError:
    """What the first process left; `torchrun` itself has but one exit code for any failure."""
    path = folder / "error.json"
    if path.exists():
        return stage_failure(int(read_json(path)["exit_code"]), name, folder)
    return MachineError(
        f"stage {name}: one of its processes died",
        hint=f"run the same command again to continue from its last checkpoint; its log is {folder / 'log.txt'}",
    )


@dataclass(frozen=True)
class Began:
    process: int


@dataclass(frozen=True)
class Ended:
    code: int


def has_gpu() -> bool:
    """Whether CUDA may be initialized while libraries are imported: it does not survive a fork."""
    return Path("/dev/nvidiactl").exists()


def event_of(line: str) -> Progress | Began | Ended | str:
    """A line that a stage's process has written."""
    try:
        event: dict[str, Any] = json.loads(line)
        if "began" in event:
            return Began(event["began"])
        if "ended" in event:
            return Ended(event["ended"])
        return Progress(**event["progress"]) if "progress" in event else str(event["note"])
    except (ValueError, KeyError, TypeError):
        return line.rstrip()  # a library printed something; show it rather than lose it


def stage_failure(code: int, name: str, folder: Path) -> QuilateError:
    """The error with which a stage ended, from its exit code and what it left in its folder."""
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


def stage_environment(*, offline: bool) -> dict[str, str]:
    """The stage's environment: no telemetry, no network unless it fetches a base model, a page-keeping allocator."""
    environment = dict(os.environ) | {"HF_HUB_DISABLE_TELEMETRY": "1", "TOKENIZERS_PARALLELISM": "true"}
    if offline:
        environment["HF_HUB_OFFLINE"] = "1"
    allocator = page_keeping_allocator()
    if allocator is not None and "LD_PRELOAD" not in environment:
        # Every step allocates the same large temporaries; glibc gives their pages back and faults them in again.
        environment |= {"LD_PRELOAD": str(allocator), "MIMALLOC_PURGE_DELAY": "-1"}
    # oneDNN keeps each matrix product's code by its shape, 1,024 of them. There are few (quilate.kernels.rows);
    # with 128 a model of 2M parameters that predicts every token held 0.74 GB after 50 steps instead of 0.78.
    environment.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "128")
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
