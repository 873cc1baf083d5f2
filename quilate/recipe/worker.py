"""The process a stage runs in: `python -m quilate.recipe.worker FOLDER`, or forked by that command given no folder.
Under `torchrun`, or with `--processes N` after the folder, it is one of several that train the stage together.

Reads `config.yaml`, does the work, writes `manifest.json`. Speaks to its parent in JSON lines on standard output:
`{"progress": ...}` and `{"note": ...}`. Ends with the exit codes of `quilate.errors`; an error is left in `error.json`.

Without a folder it is a server: every line of standard input, `{"folder": ..., "warm": ...}`, is a stage to run in a
forked process, one after another. It says `{"began": PROCESS}` and `{"ended": EXIT_CODE}`. Importing transformers takes
four seconds, and a recipe has dozens of stages.
"""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from importlib import import_module
from pathlib import Path
from typing import Any, NoReturn

from quilate.config import validate
from quilate.engine.interrupts import StopRequest, stop_on_signals
from quilate.engine.runlog import ProgressListener
from quilate.errors import Interrupted, MachineError, QuilateError, explained_os_errors, is_out_of_memory
from quilate.files import write_json
from quilate.phases.stage import StageContext
from quilate.recipe.kinds import KINDS, stage_kind
from quilate.recipe.manifest import check_outputs, write_manifest
from quilate.recipe.meter import Attempts, Process
from quilate.recipe.spec import StageSpec


def die_with_parent() -> None:
    """Ask the kernel to kill this process when its parent dies: no orphan keeps training (Linux only)."""
    if sys.platform == "linux":
        pr_set_pdeathsig = 1  # linux/prctl.h
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)


def say(**event: Any) -> None:
    print(json.dumps(event, ensure_ascii=False), flush=True)


def run_stage(folder: Path, stop: StopRequest) -> None:
    """Run the stage that `folder` specifies and declare it finished; with the other processes, if `torchrun` started
    several, of which all but the first only train, whenever that one calls them."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        _run_stage(folder, stop, {}, others=list)
        return
    # Here, not above: torch takes a second to import, and not every stage needs it.
    from quilate.engine.distributed import Released, called, processes, report, reports

    with processes() as world:
        if world.leads:
            facts = {"processes": {"number": world.size, "sharding": world.sharding}}
            _run_stage(folder, stop, facts, others=lambda: [Process(**one) for one in reports()])
            return
        cpu_started = time.process_time()
        while called():
            spec = StageSpec.read(folder)
            with suppress(Released, Interrupted):  # the first process reports
                stage_kind(spec.kind).run(_context(spec, folder, stop, listener=lambda _: None, note=lambda _: None))
            report(asdict(Process.this(cpu_started)))


def _run_stage(folder: Path, stop: StopRequest, facts: dict[str, Any], *, others: Callable[[], list[Process]]) -> None:
    spec = StageSpec.read(folder)
    kind = stage_kind(spec.kind)
    for source in set(spec.inputs.values()):
        check_outputs(Path(source))
    attempts = Attempts(folder)

    def tell(**event: Any) -> None:
        say(**event)
        attempts.progressed()

    context = _context(
        spec, folder, stop, listener=lambda progress: tell(progress=asdict(progress)), note=lambda line: tell(note=line)
    )
    try:
        report = kind.run(context)
    except Interrupted:
        attempts.keep(others())
        raise
    except BaseException:
        attempts.keep()  # without the others, which may be gone
        raise
    measured = attempts.keep(others())
    report.facts.update(facts)
    write_manifest(folder, spec, report, measured)
    shutil.rmtree(folder / "checkpoints", ignore_errors=True)  # the finished model has replaced them


def _context(
    spec: StageSpec, folder: Path, stop: StopRequest, *, listener: ProgressListener, note: Callable[[str], None]
) -> StageContext[Any]:
    return StageContext(
        config=validate(stage_kind(spec.kind).config, spec.config, source=str(folder / "config.yaml")),
        inputs={role: Path(path) for role, path in spec.inputs.items()},
        folder=folder,
        seed=spec.seed,
        base_folder=Path(spec.base_folder),
        listener=listener,
        note=note,
        stop=stop,
    )


def main(folder: Path) -> int:
    die_with_parent()
    try:
        with stop_on_signals() as stop, explained_os_errors(folder, "run the stage"):
            run_stage(folder, stop)
        return 0
    except QuilateError as expected:
        error = expected
    except Exception as unexpected:
        traceback.print_exc()
        if is_out_of_memory(unexpected):
            error = MachineError("out of memory", hint="lower micro_batch_tokens, or close other programs")
        else:
            error = QuilateError(
                f"{type(unexpected).__name__}: {unexpected}",
                hint=f"this is a fault of quilate; please report it with {folder / 'log.txt'}",
            )
    if os.environ.get("RANK", "0") != "0":
        return error.exit_code
    if not isinstance(error, Interrupted):
        say(note=f"failed: {error.message}")
    try:
        write_json(folder / "error.json", {"message": error.message, "hint": error.hint, "exit_code": error.exit_code})
    except (QuilateError, OSError):
        traceback.print_exc()  # the disk may be full: the parent still has the exit code and the log
    return error.exit_code


def serve() -> None:
    """Fork a process for every stage named on standard input, until it is closed.

    The server itself computes nothing: threads, of OpenMP say, would not survive in the forked processes.
    """
    die_with_parent()
    warm = False
    for line in sys.stdin:
        wanted = json.loads(line)
        if wanted["warm"] and not warm:
            warm = True
            import_what_models_need()
        process = os.fork()
        if process == 0:
            _run_forked(Path(wanted["folder"]))
        say(began=process)
        _, status = os.waitpid(process, 0)
        say(ended=os.waitstatus_to_exitcode(status))


def import_what_models_need() -> None:
    with suppress(Exception):  # what is broken fails again in the stage, whose log is kept
        for module in (*{place.partition(":")[0] for place in KINDS.values()}, "peft", "quilate.evaluation.metrics"):
            import_module(module)


def _run_forked(folder: Path) -> NoReturn:
    log = os.open(folder / "log.txt", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(log, 2)
    os.dup2(nothing, 0)
    code = 1
    try:
        code = main(folder)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)  # not sys.exit: the server's own end must not run here


def run_together(folder: Path, number: str) -> None:
    """Start processes that train one stage together; all of them run `main`."""
    from torch.distributed.run import main as torchrun

    die_with_parent()
    torchrun(["--standalone", "--nproc-per-node", number, "-m", "quilate.recipe.worker", str(folder)])


if __name__ == "__main__":
    match sys.argv[1:]:
        case [stage, "--processes", number]:
            run_together(Path(stage), number)
        case [stage]:
            if os.environ.get("RANK") == "0":  # of the processes that `torchrun` started, the one that is spoken to
                say(began=os.getpid())
            sys.exit(main(Path(stage)))
        case _:
            serve()
