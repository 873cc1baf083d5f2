"""`quilate report RUN`, and what `quilate run` shows at its end."""

from __future__ import annotations

import json as json_module
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from quilate.cli.run import Language

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table


def report(
    run: Path,
    *,
    lang: Language | None = None,
    with_text: bool = False,
    markdown: Path | None = None,
    json: bool = False,
) -> None:
    """Show a finished run's evidence and write its report again.

    Parameters
    ----------
    run
        The run's folder, e.g. runs/icd10-es.
    lang
        Language of the table and the report; the task's by default.
    with_text
        Write the wrongly answered test items, with their texts, to errors/ARM.csv, and what models wrote while they
        were trained from rewards to samples/STAGE.csv.
    markdown
        Write the evidence also as this Markdown page, its figure and every run's score beside it. Of a run that is
        not finished, the scores so far; of one without a task, what alignment was worth.
    json
        Print evidence.json and write nothing.
    """
    from quilate.errors import DataError
    from quilate.recipe.evidence_stage import read_evidence, run_plan

    if not run_plan(run)["recipe"]["arms"]:
        aligned = (run / "alignment.json").exists()
        pages = _write_alignment_page(run, markdown, lang) if markdown is not None and aligned else []
        show_models(run, json=json, with_text=with_text)
        for path in pages:
            print(path, file=sys.stderr if json else sys.stdout)
        return
    finished = (run / "evidence.json").exists()
    if not finished and markdown is None:
        raise DataError(
            f"{run} has no evidence.json: the run is not finished",
            hint=f"see `quilate status {run}`, and run its recipe to the end; --markdown writes what there is",
        )
    # Written before anything is printed: `| head` ends the program at the first line that nobody reads.
    written = [] if markdown is None else _write_page(run, markdown, lang, finished=finished)
    if finished and json:
        print(json_module.dumps(read_evidence(run), ensure_ascii=False, indent=2))
    elif finished:
        show(run, lang=lang, with_text=with_text)
    for path in written:
        print(path, file=sys.stderr if json else sys.stdout)


def _write_page(run: Path, page: Path, lang: Language | None, *, finished: bool) -> list[Path]:
    """The evidence as Markdown, or the cells so far; and `STEM-cells.json`, the score of every arm and seed."""
    from quilate.files import write_json
    from quilate.recipe.cells import cells_of, models_of
    from quilate.recipe.evidence_stage import read_evidence, run_plan
    from quilate.report.markdown import write_markdown, write_unfinished

    cells = [asdict(cell) for cell in cells_of(run)]
    listed = page.with_name(f"{page.stem}-cells.json")
    write_json(listed, cells)
    if finished:
        evidence = read_evidence(run)
        models = [asdict(model) for model in models_of(run)]
        return [*write_markdown(evidence, models, page, lang or _language_of(evidence["task"])), listed]
    task = run_plan(run)["recipe"]["task"]
    return [*write_unfinished(task["name"], cells, page, lang or _language_of(task)), listed]


def _write_alignment_page(run: Path, page: Path, lang: Language | None) -> list[Path]:
    """What aligning was worth, as Markdown, and its numbers beside it as `STEM-alignment.json`."""
    from quilate.evaluation.alignment import parse_alignment
    from quilate.files import read_json, write_json
    from quilate.report.alignment import write_alignment_markdown

    value = read_json(run / "alignment.json")
    numbers = page.with_name(f"{page.stem}-alignment.json")
    write_json(numbers, value)
    found = parse_alignment(value)
    return [*write_alignment_markdown(found, page, lang or ("es" if found.language == "es" else "en")), numbers]


def show(run: Path, *, lang: Language | None, with_text: bool) -> None:
    """Print the table; write `evidence.html` in the asked language, and what holds texts if they may be shown."""
    from quilate.cli.display import result_console
    from quilate.files import write_text
    from quilate.recipe.evidence_stage import read_evidence
    from quilate.report.html import render_html
    from quilate.report.table import print_table

    evidence = read_evidence(run)
    console = result_console()
    if lang is not None:
        write_text(run / "evidence.html", render_html(evidence, lang))
    print_table(evidence, console, lang or _language_of(evidence["task"]))
    console.print(f"\n{run / 'evidence.html'}\n{run / 'evidence.json'}")
    if with_text:
        console.print("\n".join(str(path) for path in [*_write_errors(run), *_write_samples(run)]))


def show_models(run: Path, *, json: bool, with_text: bool) -> None:
    """Print the models that a run made, what they cost, and how well they predict each corpus's held-out text; write
    what holds texts if they may be shown."""
    from rich.table import Table

    from quilate.cli.display import clock, result_console
    from quilate.recipe.cells import examinations_of, models_of

    models, samples = models_of(run), _write_samples(run) if with_text else []
    if json:
        print(json_module.dumps([asdict(model) for model in models], ensure_ascii=False, indent=2))
        return
    corpora = list(dict.fromkeys(corpus for model in models for corpus in model.after))
    table = Table("model", "tokens", "time", "measure", *corpora, box=None, header_style="bold")
    for model in models:
        cells = []
        for corpus in corpora:
            before = f"{model.before[corpus]:.3f} → " if corpus in model.before else ""
            cells.append(f"{before}{model.after[corpus]:.3f}" if corpus in model.after else "")
        table.add_row(model.stage, f"{model.train_tokens:,}", clock(model.seconds), model.measure, *cells)
    console = result_console()
    console.print(table)
    console.print("\n".join([*(f"{model.stage}: {model.folder}" for model in models), *map(str, samples)]))
    for found in examinations_of(run):
        console.print(_examination(found))
    if (run / "alignment.json").exists():
        _say_alignment(run, console)


def _examination(found: dict[str, Any]) -> Table:
    """What one model kept of its text."""
    from rich.table import Table

    title = f"{found['stage']}: {found['model']} and {found['corpus']}, read {found['epochs']:.2f} times"
    table = Table("", "found", "95% interval", title=title, title_justify="left", box=None, header_style="bold")

    def add(what: str, value: dict[str, float] | None, more: str = "") -> None:
        if value is not None:
            table.add_row(what, f"{value['value']:.3f}{more}", f"{value['low']:.3f} to {value['high']:.3f}")

    for row in found["exposure"]:
        more = f"; {row['written']} of {row['canaries']} written out"
        add(f"exposure at {row['repeats']} repeats, bits", row["bits"], more)
    for attack in found["attacks"]:
        add(f"attack by {attack['name']}, AUC", attack["auc"])
        add(f"attack by {attack['name']}, true positives at 1% false", attack["true_positives"])
    extraction = found["extraction"]
    add("documents continued word for word by this model alone", extraction["share"], f" of {extraction['asked']}")
    for gate in found["gates"]:
        verdict = "passed" if gate["passed"] else "NOT PASSED"
        table.add_row(f"limit on {gate['name']}: {gate['limit']:g}", verdict, f"up to {gate['seen']:.3f}")
    return table


def _say_alignment(run: Path, console: Console) -> None:
    """The verdicts on aligned models."""
    from rich.markup import escape

    from quilate.evaluation.alignment import parse_alignment
    from quilate.evaluation.wording import say
    from quilate.files import read_json

    found = parse_alignment(read_json(run / "alignment.json"))
    lang = "es" if found.language == "es" else "en"
    console.print("\n" + "\n".join(escape(say(notice, lang)) for notice in found.notices))
    console.print(f"\n{run / 'alignment.html'}\n{run / 'alignment.json'}")


def _language_of(task: dict[str, Any]) -> Language:
    return "es" if task["language"] == "es" else "en"


def _write_errors(run: Path) -> list[Path]:
    """One CSV an arm: the items it got wrong, with their texts; where answers are sets, what it missed or made up."""
    from quilate.files import write_bytes
    from quilate.phases.evaluate import gold_of, read_answers, read_label_sets, read_spans
    from quilate.recipe.evidence_stage import evaluations_of_run, outcomes_of_run
    from quilate.report.mistakes import answer_errors_csv, errors_csv, label_set_errors_csv, span_errors_csv
    from quilate.tasks.extraction import ExtractionTask
    from quilate.tasks.multi_label import MultiLabelTask
    from quilate.tasks.question_answering import QuestionTask

    task, outcomes = outcomes_of_run(run)
    gold = gold_of(task)
    written = []
    for outcome in outcomes:
        written.append(run / "errors" / f"{outcome.name}.csv")
        if isinstance(task, ExtractionTask):
            found = [read_spans(folder) for folder in evaluations_of_run(run)[outcome.name]]
            content = span_errors_csv(outcome, task.test, found)
        elif isinstance(task, MultiLabelTask):
            given = [read_label_sets(folder) for folder in evaluations_of_run(run)[outcome.name]]
            content = label_set_errors_csv(outcome, task.test, given)
        elif isinstance(task, QuestionTask):
            said = [read_answers(folder) for folder in evaluations_of_run(run)[outcome.name]]
            content = answer_errors_csv(outcome, task.test, said)
        else:
            assert gold is not None  # only sets and texts have none
            content = errors_csv(outcome, [item.content for item in task.test], gold, task.labels)
        write_bytes(written[-1], content)
    return written


def _write_samples(run: Path) -> list[Path]:
    """One CSV a stage that was trained from rewards: a completion of every iteration."""
    from quilate.files import read_jsonl, write_bytes
    from quilate.phases.align.experience import LOG
    from quilate.recipe.evidence_stage import run_plan
    from quilate.report.mistakes import samples_csv

    written = []
    for name, stage in run_plan(run)["stages"].items():
        log = run / stage["folder"] / LOG
        if log.exists():
            written.append(run / "samples" / f"{name}.csv")
            write_bytes(written[-1], samples_csv(name, list(read_jsonl(log))))
    return written
