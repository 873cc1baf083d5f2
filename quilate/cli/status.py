"""`quilate status RUN`."""

from __future__ import annotations

import json as json_module
from pathlib import Path


def status(run: Path, *, json: bool = False) -> None:
    """Show where each stage of a run stands.

    Parameters
    ----------
    run
        The run's folder, e.g. runs/icd10-es.
    json
        Print JSON instead of a table.
    """
    from rich.table import Table

    from quilate.cli.display import clock, result_console
    from quilate.recipe.run import run_status, unused_stages

    stages = run_status(run)
    unused = unused_stages(run)
    if json:
        rows = [
            {"stage": s.name, "kind": s.kind, "state": s.state, "seconds": s.seconds, "folder": str(s.folder)}
            for s in stages
        ]
        print(json_module.dumps({"stages": rows, "unused": [str(f) for f in unused]}, indent=2))
        return
    table = Table("stage", "kind", "state", "time", "folder", box=None, header_style="bold")
    for stage in stages:
        seconds = "" if stage.seconds is None else clock(stage.seconds)
        table.add_row(stage.name, stage.kind, stage.state, seconds, str(stage.folder.relative_to(run)))
    console = result_console()
    console.print(table)
    if unused:
        size = sum(f.stat().st_size for folder in unused for f in folder.rglob("*") if f.is_file())
        console.print(
            f"{len(unused)} folders of earlier versions of the recipe hold {size / 1e6:,.0f} MB; they may be removed:"
        )
        console.print("\n".join(f"  {folder}" for folder in unused))
