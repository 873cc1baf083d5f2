"""What every benchmark shares: sides that run in turn in processes of their own, and what is printed of them.

A *side* is one way of doing the work: quilate's, or a peer's in one configuration. It runs as a function of JSON-able
settings, in a fresh process each time, and answers with a measurement of every case. In each round all sides run one
after the other, and every other round in the reverse order, so that a machine that slows down favours none.

`python -m benchmarks.harness MODULE:FUNCTION ANSWER` is such a process: settings come on its standard input.
"""

from __future__ import annotations

import argparse
import importlib
import json
import math
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median
from typing import Any

from quilate.recipe.executors.subprocess import stage_environment

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "docs" / "benchmarks"

PACKAGES = ("quilate", "torch", "transformers", "trl", "peft", "accelerate", "tokenizers", "datasets", "cmeel-mimalloc")
PEAK_SIZE = {"bfloat16": 2048, "float32": 1024}  # n of the n x n matrices; larger ones measured no faster (guess)
FLAGS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "amx_int8")


@dataclass(frozen=True)
class Side:
    """One contestant.

    Attributes:
        name: as in tables.
        function: `MODULE:FUNCTION` of a callable `(settings) -> {case: measurement}`; see `Measurement`.
        settings: its argument, JSON-able; the harness adds `cases`.
        stage: run in the environment of quilate's stages (a preloaded allocator that keeps its pages), else in the
            shell's as it is.
        ours: whether this is quilate.
    """

    name: str
    function: str
    settings: dict[str, Any] = field(default_factory=dict)
    stage: bool = False
    ours: bool = False


@dataclass(frozen=True)
class Measurement:
    """What one side measured of one case in one round.

    Attributes:
        values: one number a repetition, in the benchmark's unit.
        facts: anything that is compared or shown besides (losses, tokens, megabytes).
    """

    side: Side
    case: str
    round: int
    values: list[float]
    facts: dict[str, Any]


@dataclass(frozen=True)
class Quantity:
    """What is measured; `better` is "higher" or "lower"."""

    name: str
    unit: str
    better: str

    def ratio(self, ours: float, peer: float) -> float:
        """How many times better ours is, whichever way better is."""
        return ours / peer if self.better == "higher" else peer / ours


class Disagreement(Exception):
    """The sides did not compute the same thing: their times must not be compared."""


def call(side: Side, settings: dict[str, Any], *, timeout: float | None = None) -> Any:
    """Run a side's function once, in a process of its own.

    Raises:
        RuntimeError: it failed; the message ends with the last lines that it wrote.
        subprocess.TimeoutExpired: it took longer than `timeout` seconds and was killed.
    """
    environment = stage_environment(offline=True) if side.stage else dict(os.environ) | {"HF_HUB_OFFLINE": "1"}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    with tempfile.TemporaryDirectory(prefix="quilate-benchmark-") as folder:
        answer = Path(folder) / "answer.json"
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks.harness", side.function, str(answer)],
            input=json.dumps(settings), capture_output=True, text=True, env=environment, cwd=ROOT, timeout=timeout,
        )  # fmt: skip
        if done.returncode != 0 or not answer.exists():
            last = "\n".join((done.stdout + done.stderr).splitlines()[-20:])
            raise RuntimeError(f"{side.name} failed with exit code {done.returncode}:\n{last}")
        return json.loads(answer.read_text(encoding="utf-8"))


def run_round(number: int, sides: Sequence[Side], cases: Sequence[dict[str, Any]]) -> list[Measurement]:
    """Every side once, on all cases, in the reverse order in odd rounds."""
    measured = []
    for side in sides if number % 2 == 0 else list(reversed(sides)):
        began = time.monotonic()
        answer = call(side, side.settings | {"cases": list(cases)})
        note(f"round {number + 1}: {side.name} ({time.monotonic() - began:.0f} s)")
        measured += [Measurement(side, case, number, a["values"], a["facts"]) for case, a in answer.items()]
    return measured


def best_of(measured: Sequence[Measurement], quantity: Quantity, case: str) -> list[Side]:
    """The best peer as its users run it, and the best one in the environment of a stage."""
    choose = max if quantity.better == "higher" else min
    best = []
    for stage in (False, True):
        group = [m for m in measured if m.case == case and not m.side.ours and m.side.stage == stage]
        if group:
            best.append(choose(group, key=lambda m: median(m.values)).side)
    return best


def note(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


@dataclass(frozen=True)
class Row:
    """One side on one case: the median over all repetitions of all rounds, the smallest and the largest."""

    case: str
    side: str
    stage: bool
    ours: bool
    median: float
    low: float
    high: float
    repetitions: int
    rounds: int
    facts: dict[str, Any]


def summarize(measured: Sequence[Measurement]) -> list[Row]:
    """Rows in the order in which cases and sides first appeared. Facts are those of a side's first round."""
    groups: dict[tuple[str, str], list[Measurement]] = {}
    for m in sorted(measured, key=lambda m: m.round):
        groups.setdefault((m.case, m.side.name), []).append(m)
    cases = list(dict.fromkeys(case for case, _ in groups))
    rows = []
    for (case, name), group in sorted(groups.items(), key=lambda item: cases.index(item[0][0])):
        values = [value for m in group for value in m.values]
        side = group[0].side
        rows.append(
            Row(
                case,
                name,
                side.stage,
                side.ours,
                median(values),
                min(values),
                max(values),
                len(values),
                len({m.round for m in group}),
                group[0].facts,
            )
        )
    return rows


@dataclass(frozen=True)
class Ratio:
    """Ours against one peer on one case: the ratio of the medians, and the extremes over rounds that had both."""

    case: str
    against: str
    stage: bool
    ratio: float
    low: float
    high: float
    rounds: int


def compare(measured: Sequence[Measurement], quantity: Quantity) -> list[Ratio]:
    rows = summarize(measured)
    rounds: dict[tuple[str, str], dict[int, float]] = {}
    for m in measured:
        rounds.setdefault((m.case, m.side.name), {})[m.round] = median(m.values)
    ratios = []
    for ours in (row for row in rows if row.ours):
        own = rounds[ours.case, ours.side]
        for peer in (row for row in rows if row.case == ours.case and not row.ours):
            theirs = rounds[peer.case, peer.side]
            paired = [quantity.ratio(own[n], theirs[n]) for n in own.keys() & theirs.keys()]
            ratios.append(
                Ratio(
                    ours.case,
                    peer.side,
                    peer.stage,
                    quantity.ratio(ours.median, peer.median),
                    min(paired),
                    max(paired),
                    len(paired),
                )
            )
    return ratios


def require_close(measured: Sequence[Measurement], fact: str, tolerance: float) -> str:
    """Check that all sides have the same number for a fact, in every case; returns what was checked, in words.

    Raises:
        Disagreement: two differ by more than the tolerance.
    """
    largest = 0.0
    for case in dict.fromkeys(m.case for m in measured):
        seen = {m.side.name: float(m.facts[fact]) for m in measured if m.case == case}
        spread = max(seen.values()) - min(seen.values())
        if not (spread <= tolerance and all(map(math.isfinite, seen.values()))):
            raise Disagreement(f"{case}: {fact} differs by {spread:.4f}, more than {tolerance}: {seen}")
        largest = max(largest, spread)
    return f"{fact}: all sides within {largest:.4f} (tolerance {tolerance})"


def matmul_peak(settings: dict[str, Any]) -> dict[str, float]:
    """TFLOP/s of the fastest of some square matrix products, by number format: what this machine can do at most."""
    import torch

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    peaks = {}
    for name, size in PEAK_SIZE.items():
        size = size * 4 if device.type == "cuda" else size
        left, right = (torch.randn(size, size).to(device, getattr(torch, name)) for _ in range(2))
        seconds = []
        for _ in range(settings["repetitions"]):
            began = time.perf_counter()
            float((left @ right)[0, 0])  # reading a number waits for a device
            seconds.append(time.perf_counter() - began)
        peaks[name] = 2 * size**3 / min(seconds) / 1e12
    return peaks


def measured_peak(*, quick: bool) -> dict[str, float]:
    side = Side("matmul peak", "benchmarks.harness:matmul_peak", stage=True)
    peak: dict[str, float] = call(side, {"repetitions": 2 if quick else 20})
    return peak


def machine(peaks: Sequence[dict[str, float]]) -> dict[str, Any]:
    """What the figures depend on. `peaks` are those measured in this run; the largest counts."""
    from quilate.kernels.operations import why_missing

    information = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    fields = dict(line.split("\t", 1) for line in information.splitlines() if "\t" in line)
    fields = {key.strip(): value.strip(": \t") for key, value in fields.items()}
    present = fields.get("flags", "").split()
    return {
        "system": platform.platform(),
        "python": platform.python_version(),
        "processor": fields.get("model name", platform.processor()),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "flags": [flag for flag in FLAGS if flag in present],
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
        "load_average": round(os.getloadavg()[0], 2),
        "device": _accelerator(),
        "without fused operations": why_missing(),
        "matmul_peak_tflops": {name: round(max(p[name] for p in peaks), 3) for name in peaks[0]} if peaks else {},
    }


def _accelerator() -> str | None:
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else None


def versions() -> dict[str, str]:
    """Of every package that matters here and is installed."""
    found = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    if "quilate" not in found:  # a checkout that is on the path but not installed
        found["quilate"] = importlib.import_module("quilate").__version__
    return found


@dataclass(frozen=True)
class Result:
    """What a benchmark found; its JSON is the last line printed."""

    name: str
    quantity: Quantity
    headline: Ratio | None
    rows: list[Row]
    ratios: list[Ratio]
    checks: list[str]
    machine: dict[str, Any]
    facts: dict[str, Any]
    command: str

    def json(self) -> dict[str, Any]:
        """The keys `name, ours, peer, ratio, unit, versions` are of the headline; the rest is in `rows`, `ratios`."""
        ours = peer = None
        if self.headline is not None:
            at = {(row.case, row.side): row.median for row in self.rows}
            ours = next(row.median for row in self.rows if row.ours and row.case == self.headline.case)
            peer = at[self.headline.case, self.headline.against]
        return {
            "name": self.name,
            "ours": ours,
            "peer": peer,
            "ratio": None if self.headline is None else self.headline.ratio,
            "unit": self.quantity.unit,
            "versions": versions(),
            "machine": self.machine,
            "quantity": asdict(self.quantity),
            "headline": None if self.headline is None else asdict(self.headline),
            "rows": [asdict(row) for row in self.rows],
            "ratios": [asdict(ratio) for ratio in self.ratios],
            "checks": self.checks,
            "facts": self.facts,
            "command": self.command,
        }


def parser(description: str | None) -> argparse.ArgumentParser:
    """The flags that all benchmarks have."""
    flags = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("--quick", action="store_true", help="a tiny random model and few steps: does it still work?")
    flags.add_argument("--rounds", type=int, default=3, help="rounds in which all sides run in turn (3)")
    flags.add_argument("--write", action="store_true", help=f"keep the JSON and the figure in {RESULTS.name}/")
    return flags


def finish(result: Result, arguments: argparse.Namespace) -> None:
    """Print the table, write the files if asked for, print the JSON line."""
    from benchmarks.show import print_result, write_result

    print_result(result.json())
    if arguments.write:
        write_result(result.json(), RESULTS)
    print(json.dumps(result.json(), ensure_ascii=False))


def command_line() -> str:
    return f"python -m benchmarks.{Path(sys.argv[0]).stem} {' '.join(sys.argv[1:])}".strip()


def _serve(function: str, answer: str) -> None:
    module, _, name = function.partition(":")
    result = getattr(importlib.import_module(module), name)(json.load(sys.stdin))
    Path(answer).write_text(json.dumps(result), encoding="utf-8")


if __name__ == "__main__":
    _serve(*sys.argv[1:])
