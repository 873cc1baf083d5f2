"""The exception tree. One leaf per kind of fault, one exit code per branch.

    QuilateError            1   our fault: a broken invariant, please report it
    +-- UsageError          2   the command line or the recipe is wrong
    |   +-- ConfigError         an unknown key, a wrong type, an impossible combination
    +-- DataError           3   the input files are wrong
    |   +-- ModelError          a model directory or file cannot or may not be loaded
    |   +-- CheckpointError     a checkpoint is incomplete or altered
    +-- MachineError        4   the machine is wrong: disk full, folder unwritable, folder in use
    +-- GateError           5   a rule of evidence said no: a leak, a threshold
    +-- Interrupted        75   stopped on request; the same command resumes

Every message says what was seen, what the rule is, and what to do (`hint`).
The command line prints a `QuilateError` without a traceback and exits with its code.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class QuilateError(Exception):
    """Base of every error quilate raises on purpose."""

    exit_code = 1

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return self.message if self.hint is None else f"{self.message}\n  what to do: {self.hint}"


class UsageError(QuilateError):
    exit_code = 2


class ConfigError(UsageError):
    pass


class DataError(QuilateError):
    exit_code = 3


class ModelError(DataError):
    pass


class CheckpointError(DataError):
    pass


class MachineError(QuilateError):
    exit_code = 4


class GateError(QuilateError):
    exit_code = 5


class Interrupted(QuilateError):
    exit_code = 75


BY_EXIT_CODE: dict[int, type[QuilateError]] = {
    error.exit_code: error for error in (QuilateError, UsageError, DataError, MachineError, GateError, Interrupted)
}


@contextmanager
def explained_os_errors(path: str | os.PathLike[str], doing: str) -> Iterator[None]:
    """Turn the operating system's refusals into errors that say what to do.

    Args:
        path: the file or folder that is being touched.
        doing: a verb phrase for the message, e.g. "write the checkpoint".

    Raises:
        DataError: the path is missing.
        MachineError: it is not permitted, the disk is full, or anything else failed below us.
    """
    try:
        try:
            yield
        except Exception as error:
            refused = None if isinstance(error, OSError | QuilateError) else _os_error_of(error)
            if refused is None:
                raise
            raise refused from error
    except FileNotFoundError as error:
        missing = error.filename or path
        raise DataError(f"cannot {doing}: {missing} does not exist", hint="check the path and its spelling") from error
    except (PermissionError, IsADirectoryError, NotADirectoryError, FileExistsError) as error:
        raise MachineError(
            f"cannot {doing}: {error.strerror.lower() if error.strerror else error}: {error.filename or path}",
            hint="choose another folder with --out, or ask for write permission",
        ) from error
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            parent = Path(path)
            while not parent.exists() and parent != parent.parent:
                parent = parent.parent
            stats = os.statvfs(parent)
            free_mb = stats.f_bavail * stats.f_frsize / 1e6
            raise MachineError(
                f"cannot {doing}: the disk is full ({free_mb:.0f} MB free at {parent})",
                hint="free some space and run the same command again; nothing written earlier is lost",
            ) from error
        if error.errno in (errno.EFBIG, errno.EIO):
            raise MachineError(
                f"cannot {doing}: {os.strerror(error.errno)}: {error.filename or path}",
                hint="the disk or a limit of this account (`ulimit -f`) refuses the file; choose another folder with "
                "--out; nothing written earlier is lost",
            ) from error
        if error.errno == errno.EROFS:
            raise MachineError(
                f"cannot {doing}: {path} is on a read-only file system", hint="choose another folder"
            ) from error
        raise


def _os_error_of(error: Exception) -> OSError | None:
    """The operating system's refusal behind an error of a library written in Rust (safetensors), which hides it."""
    found = re.search(r"\(os error (\d+)\)", str(error))
    return OSError(int(found[1]), os.strerror(int(found[1]))) if found else None


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory did not suffice: Python's own error, torch's for GPUs, or the plain RuntimeError of its allocator
    for processors and of C++."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    return isinstance(error, RuntimeError) and any(t in str(error) for t in ("DefaultCPUAllocator", "std::bad_alloc"))
