"""The library of C++ operations: built once for this machine at first use, then loaded from the cache.

Where it cannot be (another system, no compiler, `QUILATE_KERNELS=off`) everything works on torch's own operations,
slower.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from quilate.errors import QuilateError
from quilate.files import cache_folder, digest, make_folder, sha256_of_tree

SOURCES = Path(__file__).parent / "csrc"
OPTIMIZE = ["-std=c++20", "-O3", "-march=native", "-fopenmp-simd", "-fno-math-errno", "-fno-trapping-math"]
_plain = ContextVar("plain", default=False)
STABLE_ABI = "-DTORCH_TARGET_VERSION=0x020b000000000000"  # torch 2.11, the oldest that quilate supports


def operation(name: str) -> Any | None:
    """`torch.ops.quilate.NAME`, or None where it is not to be had: see `why_missing`."""
    if _plain.get() or _load() is not None or not hasattr(torch.ops.quilate, name):
        return None
    return getattr(torch.ops.quilate, name)


@contextmanager
def plain_operations() -> Iterator[None]:
    """Inside, torch's own operations stand in for the fused ones: these have a gradient, but no second one."""
    token = _plain.set(True)
    try:
        yield
    finally:
        _plain.reset(token)


def refuse_second_derivative() -> None:
    """For the backward pass of an operation whose gradient is no torch operation: there is none of its own behind it.

    torch's `once_differentiable` does not see it where the gradient that comes in is a constant, as it is for a loss.

    Raises:
        RuntimeError: a graph of the backward pass is wanted, in which this gradient would pass for a constant.
    """
    if torch.is_grad_enabled():
        raise RuntimeError("this operation has no second derivative: compute the loss by `twice_differentiable`")


def why_missing() -> str | None:
    """Why this machine computes without the fused operations, for people; None if it has them all."""
    reason = _load()
    if reason is None and operation("attention_forward") is None:
        return "the processor has no AVX512-BF16"
    return reason


@lru_cache(maxsize=1)
def _load() -> str | None:
    """Load the library, building it if need be; the reason if that cannot be done."""
    if os.environ.get("QUILATE_KERNELS") == "off":
        return "QUILATE_KERNELS is off"
    if sys.platform != "linux" or platform.machine() != "x86_64":
        return f"there are none for {sys.platform} on {platform.machine()}"
    compiler = shutil.which(os.environ.get("CXX", "g++")) or shutil.which("clang++")
    if compiler is None:
        return "there is no C++ compiler (g++ or clang++)"
    try:
        torch.ops.load_library(str(_built(compiler)))  # type: ignore[no-untyped-call]
    except (OSError, QuilateError) as error:
        return f"they cannot be built: {error}"
    return None


def _built(compiler: str) -> Path:
    """The shared library for this source, compiler, processor and torch; written whole or not at all."""
    version = subprocess.run([compiler, "--version"], capture_output=True, text=True, check=False).stdout
    identity = digest([sha256_of_tree(SOURCES), OPTIMIZE, version, _processor(), torch.__version__])
    target = make_folder(cache_folder() / "kernels") / f"quilate-{identity[:16]}.so"
    if target.exists():
        return target
    root = Path(torch.__file__).parent
    with tempfile.TemporaryDirectory(dir=target.parent) as place:
        made = Path(place) / target.name
        command = [
            compiler, *OPTIMIZE, STABLE_ABI, "-fPIC", "-shared", "-isystem", str(root / "include"),
            *map(str, sorted(SOURCES.glob("*.cpp"))), "-o", str(made), f"-L{root / 'lib'}", "-ltorch_cpu", "-ltorch",
            "-lc10",
        ]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            errors = [line for line in done.stderr.splitlines() if "error" in line]
            raise QuilateError((errors or [f"{compiler} ended with {done.returncode}"])[0])
        made.replace(target)  # two processes may build at once: either result will do
    return target


def _processor() -> str:
    """Model and instruction sets: `-march=native` code of another processor may not run here."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    return "\n".join(sorted({line for line in lines if line.startswith(("model name", "flags"))}))
