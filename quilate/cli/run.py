"""`quilate run RECIPE`."""

from __future__ import annotations

import json as json_module
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

Language = Literal["en", "es"]


def run(
    recipe: Path,
    *,
    set_: Annotated[list[str] | None, Parameter(name="--set")] = None,
    out: Path | None = None,
    until: str | None = None,
    lang: Language | None = None,
    with_text: bool = False,
    allow_code: bool = False,
    processes: int = 1,
    sharding: Literal["ddp", "fsdp", "fsdp-offload"] = "ddp",
    launcher: str = "",
    ray: str | None = None,
    json: bool = False,
) -> None:
    """Run a recipe to its end. Finished stages are reused, interrupted ones continue.

    Parameters
    ----------
    recipe
        The recipe file.
    set_
        Override a key: --set arms.lora.lr=1e-4 (may be repeated).
    out
        The run's folder; runs/NAME by default.
    until
        Run only this and what it stands on, and make no report: an arm or stage (lora), one seed of it (lora-s1), that
        seed and its evaluation (lora-s1-evaluate).
    lang
        Language of the table and the report; the task's by default.
    with_text
        Write the wrongly answered test items, with their texts, to errors/ARM.csv, and what models wrote while they
        were trained from rewards to samples/STAGE.csv.
    allow_code
        Run the Python files that the recipe names as rewards; read them first.
    processes
        Processes that train a stage together, under torchrun: one per GPU.
    sharding
        Each holds the whole model (ddp), or its part of it (fsdp), in main memory and not on its GPU (fsdp-offload).
    launcher
        The command that starts these processes, on several machines perhaps: "srun torchrun --nnodes=4 ...". --out must
        lie where all see it.
    ray
        Run the stages on the nodes of this Ray cluster, several at a time: auto, or HOST:PORT. --out must lie where all
        nodes see it.
    json
        Print evidence.json (of a recipe without a task: what was measured) instead of the table, and no progress.
    """
    from quilate import config
    from quilate.cli.display import RunDisplay
    from quilate.cli.report import show, show_models
    from quilate.engine.interrupts import stop_on_signals
    from quilate.errors import UsageError
    from quilate.recipe.evidence_stage import read_evidence
    from quilate.recipe.executors.subprocess import Together
    from quilate.recipe.run import refuse_failed_gates, run_recipe
    from quilate.recipe.schema import Recipe

    if ray is not None and (processes > 1 or launcher):
        raise UsageError("--ray runs each stage in one process", hint="leave --processes and --launcher out")
    parsed = config.load(Recipe, recipe, set_ or [])
    folder = out or Path("runs") / parsed.recipe
    display = RunDisplay(quiet=json)
    try:
        with stop_on_signals() as stop:
            graph = run_recipe(
                parsed, base_folder=recipe.resolve().parent, out=folder, listener=display, stop=stop,
                until=until, allow_code=allow_code, together=Together(processes, sharding, launcher), ray=ray,
            )  # fmt: skip
    finally:
        display.close()
    if until is not None:
        return
    if not parsed.arms:
        show_models(folder, json=json, with_text=with_text)
    elif json:
        print(json_module.dumps(read_evidence(folder), ensure_ascii=False, indent=2))
    else:
        show(folder, lang=lang, with_text=with_text)
    refuse_failed_gates(graph, folder)
