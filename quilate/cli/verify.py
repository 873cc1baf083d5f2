"""`quilate verify RUN [STAGE]`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

    from quilate.engine.interrupts import StopRequest
    from quilate.verify.certificate import Certificate
    from quilate.verify.stage import Examined

VERIFIED_KINDS = ("finetune", "sft")

# How many rows --with-text shows, as many as `quilate data preview`.
SHOWN = 3

STYLES = {"pass": "green", "fail": "bold red", "not applicable": "dim"}


def verify(run: Path, stage: str | None = None, *, with_text: bool = False, json: bool = False) -> None:
    """Certify a fine-tuned stage: its tokens, packing, accumulation, resuming, what it saved, its template, leaks.

    The stage may also be planned only, if what it stands on is finished. Ends with exit code 5 if a check failed. The
    certificate is left in the stage's folder as certificate.json.

    Parameters
    ----------
    run
        The run's folder, e.g. runs/icd10-es; or its recipe, e.g. recipes/icd10-es.yaml, for runs/NAME.
    stage
        The stage, e.g. lora-s0, or the arm, for its first seed; needed where the run has several that fine-tune.
    with_text
        Show three rows as the model reads them: what is learned in green, or in ⟦ ⟧ where there is no colour.
    json
        Print the certificate as one line of JSON; after a failed one comes the error, in a second line.
    """
    import json as json_module

    from rich.progress import Progress, SpinnerColumn, TextColumn

    from quilate.cli.display import result_console
    from quilate.engine.interrupts import stop_on_signals
    from quilate.errors import GateError, UsageError
    from quilate.files import folder_lock
    from quilate.recipe.evidence_stage import run_plan
    from quilate.verify.certify import certify

    if with_text and json:
        raise UsageError("--with-text is for people, --json for machines", hint="give one of them")
    run = _folder_of(run)
    plan = run_plan(run)
    name = _chosen(plan, stage, run)
    bar = Progress(SpinnerColumn(), TextColumn("{task.description}"), console=result_console(), transient=True)
    bar.disable = json or not bar.console.is_terminal
    with folder_lock(run), stop_on_signals() as stop, bar:
        task = bar.add_task(name)
        examined = _examined(run, plan, name, stop)
        identity = plan["stages"][name]["id"]
        certificate = certify(
            examined, stage=name, id=identity, progress=lambda check: bar.update(task, description=f"{name}: {check}")
        )
        path = certificate.write(examined.context.folder)
    if json:
        print(json_module.dumps(certificate.as_json(), ensure_ascii=False))
    else:
        console = result_console()
        _show(console, certificate)
        if with_text:
            _show_rows(console, examined)
        console.print(f"{path}", markup=False, soft_wrap=True)
    if certificate.failed:
        raise GateError(
            f"{name} is not certified: {', '.join(certificate.failed)} failed",
            hint=f"{path} says what was compared and by how much it differs",
        )


def _folder_of(run: Path) -> Path:
    """A run's folder; for a recipe the one that it is run in unless told otherwise."""
    from quilate import config
    from quilate.errors import UsageError
    from quilate.recipe.schema import Recipe

    if run.suffix not in (".yaml", ".yml"):
        return run
    folder = Path("runs") / config.load(Recipe, run).recipe
    if not (folder / "run.json").exists():
        raise UsageError(
            f"{run} has not been run here: there is no {folder}",
            hint=f"quilate run {run} first (--until STAGE stops before the stage's end), or name the run's folder",
        )
    return folder


def _chosen(plan: dict[str, Any], asked: str | None, run: Path) -> str:
    """The name of one stage that fine-tunes."""
    from quilate.errors import UsageError

    stages: dict[str, dict[str, str]] = plan["stages"]
    names = [name for name, entry in stages.items() if entry["kind"] in VERIFIED_KINDS]
    found = [n for n in names if asked in (None, n, n.rpartition("-s")[0])]
    if asked is not None and found:
        return found[0]  # seeds stand in the recipe's order
    if len(found) == 1:
        return found[0]
    if not names:
        raise UsageError(f"{run} has no stage that fine-tunes", hint="verify looks at finetune and sft stages")
    seen = f"there is no stage '{asked}'" if asked is not None else f"{len(names)} stages fine-tune"
    raise UsageError(f"{run}: {seen}", hint=f"name one of {', '.join(names)}")


def _examined(run: Path, plan: dict[str, Any], name: str, stop: StopRequest) -> Examined:
    """The stage as its worker would see it.

    Raises:
        DataError: what it stands on is not finished, or its data have changed since it was planned.
    """
    from quilate import config
    from quilate.errors import DataError
    from quilate.files import make_folder, read_json
    from quilate.phases.stage import StageContext
    from quilate.recipe.graph import build_graph
    from quilate.recipe.kinds import stage_kind
    from quilate.recipe.manifest import read_manifest
    from quilate.recipe.run import spec_of
    from quilate.recipe.schema import Recipe
    from quilate.recipe.spec import StageSpec
    from quilate.tasks.kinds import load_task
    from quilate.verify.stage import Examined

    stages = plan["stages"]
    folder = run / stages[name]["folder"]
    if (folder / "config.yaml").exists():
        spec = StageSpec.read(folder)
    else:
        base_folder = Path(plan["base_folder"])
        graph = build_graph(config.validate(Recipe, plan["recipe"], source=str(run / "run.json")), base_folder)
        spec = spec_of(graph.nodes[name], graph, run, base_folder)
        if spec.id != stages[name]["id"]:
            raise DataError(f"{name}: its data or model changed since it was planned", hint="run the recipe again")
    # By the stages' names, not by the folders they had: a run directory may be moved.
    inputs = {role: run / stages[source["stage"]]["folder"] for role, source in spec.input_ids.items()}
    unfinished = [source.name for source in inputs.values() if read_manifest(source) is None]
    if unfinished:
        raise DataError(
            f"{name} stands on what is not finished, or not whole: {', '.join(unfinished)}",
            hint="run the recipe: it makes again what is missing or has another size",
        )
    kind = stage_kind(spec.kind)
    context = StageContext(
        config=config.validate(kind.config, spec.config, source=str(folder / "config.yaml")),
        inputs=inputs,
        folder=make_folder(folder),
        seed=spec.seed,
        base_folder=Path(spec.base_folder),
        listener=lambda _: None,
        note=lambda _: None,
        stop=stop,
    )
    # Not `read_manifest`, to which a stage with an altered file is unfinished: here that is for a check to say.
    manifest = read_json(folder / "manifest.json") if (folder / "manifest.json").exists() else None
    task = load_task(run / stages["task"]["folder"] / "task") if "task" in stages else None
    return Examined(context, kind.run, manifest, task)


def _show(console: Console, certificate: Certificate) -> None:
    from rich.table import Table
    from rich.text import Text

    console.print(
        f"{certificate.stage} ({certificate.kind}, seed {certificate.seed}, {certificate.state}, {certificate.dtype})",
        markup=False,
    )
    table = Table("check", "", "figure", "at most", "compared", box=None, header_style="bold")
    for check in certificate.checks:
        counted = "; ".join(f"{name}: {_number(value)}" for name, value in check.figures.items())
        lines = [line for line in (check.reason, check.compared, counted) if line]
        table.add_row(
            Text(check.name),
            Text(check.outcome, style=STYLES[check.outcome]),
            Text("" if check.figure is None else _number(check.figure)),
            Text("" if check.tolerance is None else _number(check.tolerance)),
            Text("\n".join(lines)),
        )
    console.print(table)


def _number(value: float | int | str) -> str:
    if isinstance(value, str):
        return value
    return f"{value:,}" if isinstance(value, int) else f"{value:.3g}"


def _show_rows(console: Console, examined: Examined) -> None:
    from quilate.cli.data import print_example

    if examined.is_head:
        console.print("a head learns from hidden states: no token of a text is learned")
        return
    for example in examined.sample[:SHOWN]:
        print_example(console, example, examined.tokenizer)
