"""`quilate plan RECIPE`."""

from __future__ import annotations

import json as json_module
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

TIME_TOLERANCE, MEMORY_TOLERANCE = 0.15, 0.10  # what a plan is to keep to

if TYPE_CHECKING:
    from quilate.plan.against import Comparison
    from quilate.plan.estimate import Estimate


def plan(
    recipe: Path | None = None,
    *,
    set_: Annotated[list[str] | None, Parameter(name="--set")] = None,
    out: Path | None = None,
    against: Path | None = None,
    gpu: str | None = None,
    gpus: int = 1,
    mfu: float = 0.43,
    price: float | None = None,
    probe: bool = True,
    json: bool = False,
) -> None:
    """Say what a recipe will cost before it runs: tokens, FLOPs, memory, time and price of every stage.

    The stages that only read files are finished first (the run reuses them). Each distinct computation is then measured
    for some seconds on this machine, once; the cache keeps it.

    Parameters
    ----------
    recipe
        The recipe file; not needed with --against.
    set_
        Override a key: --set arms.lora.epochs=2 (may be repeated).
    out
        The run's folder; runs/NAME by default.
    against
        Plan an earlier run's recipe, and show the plan beside what the run took.
    gpu
        Plan for this GPU too, from tables: a100-80gb, h100, l4 and others.
    gpus
        How many of them; time is divided by it, weights and optimizer state are sharded over them.
    mfu
        Share of the GPU's peak that is reached. Large models reach 0.35 to 0.5, small ones much less.
    price
        Dollars an hour, of one GPU if --gpu is given (instead of the table's), of this machine otherwise.
    probe
        Measure on this machine; --no-probe shows tokens, FLOPs and what --gpu says.
    json
        Print JSON instead of a table.
    """
    from quilate import config
    from quilate.cli.display import RunDisplay
    from quilate.errors import UsageError
    from quilate.plan.against import PastRun, compare
    from quilate.plan.estimate import plan_recipe, read_inputs
    from quilate.plan.hardware import gpu_named
    from quilate.recipe.graph import build_graph
    from quilate.recipe.schema import Recipe

    if (recipe is None) == (against is None):
        raise UsageError("give a recipe, or --against RUN", hint="quilate plan recipe.yaml")
    chosen = gpu_named(gpu) if gpu is not None else None
    display = RunDisplay(quiet=json)
    if against is not None:
        past = PastRun.of(against)
        graph, base_folder, folders = past.graph, past.base_folder, past.folders
    else:
        assert recipe is not None
        parsed = config.load(Recipe, recipe, set_ or [])
        base_folder, run = recipe.resolve().parent, out or Path("runs") / parsed.recipe
        graph = build_graph(parsed, base_folder)
        folders = {name: node.folder(run) for name, node in graph.nodes.items()}
        read_inputs(parsed, graph, base_folder, run, display)
    estimates = plan_recipe(
        graph, folders.__getitem__, base_folder, probe=probe, gpu=chosen, gpus=gpus, mfu=mfu,
        note=display.console.print,
    )  # fmt: skip
    if against is not None:
        _show_comparison(compare(estimates, folders), json=json)
        return
    hourly = price if price is not None else chosen.price if chosen is not None else None
    _show(estimates, chosen.name if chosen else None, gpus, hourly, json=json)


def _show(estimates: Sequence[Estimate], gpu: str | None, gpus: int, hourly: float | None, *, json: bool) -> None:
    from rich.table import Table

    from quilate.cli.display import clock, result_console

    if json:
        print(json_module.dumps([asdict(estimate) for estimate in estimates], indent=2))
        return
    known = [e for e in estimates if e.estimated]
    probed = any(e.seconds is not None for e in known)
    columns = ["train tokens", "read tokens", "FLOPs", *(["memory", "time"] if probed else [])]
    columns += [f"memory, {gpu}", f"time, {gpus} x {gpu}"] if gpu else []
    columns += ["price"] if hourly is not None else []
    table = Table("stage", box=None, header_style="bold")
    for column in columns:
        table.add_column(column, justify="right")
    for estimate in known:
        cells = [f"{estimate.train_tokens:,}", f"{estimate.read_tokens:,}", f"{estimate.flops:.2e}"]
        if probed:
            cells += [_gigabytes(estimate.memory_bytes), clock(estimate.seconds or 0.0)]
        if gpu:
            cells += [_gigabytes(estimate.gpu_memory_bytes), clock(estimate.gpu_seconds or 0.0)]
        if hourly is not None:
            cells.append(f"${_dollars(estimate, gpus, hourly):,.4f}")
        table.add_row(estimate.name, *cells)
    console = result_console()
    console.print(table)
    if probed:
        console.print(f"\nin all on this machine: {clock(sum(e.seconds or 0 for e in known))}, one stage after another")
    if gpu:
        console.print(f"in all on {gpus} x {gpu}: {clock(sum(e.gpu_seconds or 0 for e in known))}")
    if hourly is not None:
        console.print(f"price: ${sum(_dollars(e, gpus, hourly) for e in known):,.2f} at ${hourly:g} an hour")
    _say_what_is_not_known(estimates)


def _say_what_is_not_known(estimates: Sequence[Estimate]) -> None:
    import os

    from quilate.cli.display import result_console

    console = result_console()
    left_out: dict[str, list[str]] = {}
    for estimate in estimates:
        if not estimate.estimated:
            left_out.setdefault("; ".join(estimate.notes), []).append(estimate.name)
    if left_out:
        console.print(f"not estimated, and not in what stands above: {sum(map(len, left_out.values()))} stages")
    for reason, names in left_out.items():
        console.print(f"  {reason}: {', '.join(names)}", markup=False)
    noted = {f"{e.name}: {note}" for e in estimates if e.estimated for note in e.notes}
    console.print("\n".join(sorted(noted))) if noted else None
    busy, cores = max((e.load for e in estimates), default=0.0), len(os.sched_getaffinity(0))
    if busy > cores / 2:
        console.print(f"some of it was measured while the machine was busy (load {busy:.1f}): times may be too long")


def _show_comparison(rows: Sequence[Comparison], *, json: bool) -> None:
    from rich.table import Table

    from quilate.cli.display import clock, result_console

    if json:
        print(json_module.dumps([asdict(row) for row in rows], indent=2))
        return
    table = Table("stage", box=None, header_style="bold")
    for quantity in ("train tokens", "time", "processors' time", "memory"):
        for column in (quantity, "planned", "")[: 2 if quantity == "train tokens" else 3]:
            table.add_column(column, justify="right")
    table.add_column("load", justify="right")
    for row in rows:
        table.add_row(
            row.planned.name, f"{row.train_tokens:,}", f"{row.planned.train_tokens:,}",
            clock(row.seconds), *_beside(row.planned.seconds, row.seconds, clock),
            clock(row.cpu_seconds), *_beside(row.planned.cpu_seconds, row.cpu_seconds, clock),
            _gigabytes(row.memory_bytes), *_beside(row.planned.memory_bytes, row.memory_bytes, _gigabytes),
            f"{row.busy:.1f}",
        )  # fmt: skip
    seconds, planned = sum(r.seconds for r in rows), sum(r.planned.seconds or 0.0 for r in rows)
    of_processors = sum(r.cpu_seconds for r in rows), sum(r.planned.cpu_seconds or 0.0 for r in rows)
    table.add_row(
        "in all", "", "", clock(seconds), *_beside(planned or None, seconds, clock),
        clock(of_processors[0]), *_beside(of_processors[1] or None, of_processors[0], clock), "", "", "", "",
    )  # fmt: skip
    console = result_console()
    console.print(table)
    for quantity, tolerance, actual, of_plan in (
        ("time", TIME_TOLERANCE, [r.seconds for r in rows], [r.planned.seconds for r in rows]),
        ("processors' time", TIME_TOLERANCE, [r.cpu_seconds for r in rows], [r.planned.cpu_seconds for r in rows]),
        ("memory", MEMORY_TOLERANCE, [float(r.memory_bytes) for r in rows], [r.planned.memory_bytes for r in rows]),
    ):
        known = [(a, p) for a, p in zip(actual, of_plan, strict=True) if p is not None]
        near = sum(abs(p - a) <= tolerance * a for a, p in known)
        console.print(f"{quantity}: {near} of {len(known)} stages within {tolerance:.0%}")


def _beside(planned: float | None, actual: float, words: Any) -> tuple[str, str]:
    """The planned value and how far it is from the actual one."""
    if planned is None:
        return "", ""
    return words(planned), f"{planned / actual - 1:+.0%}" if actual else ""


def _dollars(estimate: Estimate, gpus: int, hourly: float) -> float:
    seconds = estimate.seconds if estimate.gpu_seconds is None else estimate.gpu_seconds * gpus
    return (seconds or 0.0) / 3600 * hourly


def _gigabytes(size: float | None) -> str:
    return "" if size is None else f"{size / 1e9:.2f} GB"
