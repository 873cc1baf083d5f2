"""`quilate predict RUN FILE`."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from quilate.cli.arms import ChosenArm
    from quilate.data.tables import Table
    from quilate.tasks.extraction import ExtractionTask
    from quilate.tasks.multi_label import MultiLabelTask
    from quilate.tasks.question_answering import QuestionTask
    from quilate.tasks.task import Task


def predict(
    run: Path,
    data: Path,
    *,
    arm: str | None = None,
    out: Path | None = None,
    threshold: float = 0.0,
    probabilities: bool = False,
    strict: bool = False,
    json: bool = False,
) -> None:
    """Label new rows. Writes their columns with the label, its probability, and whether to abstain. Where answers are
    sets or texts, writes as jsonl each row's columns and the spans found, the labels given with every label's
    probability, or the answer.

    Parameters
    ----------
    run
        The folder of a finished run.
    data
        The rows to label: csv, jsonl or parquet with the task's text column.
    arm
        The arm to use; by default the only one, or the one the evidence recommends.
    out
        Where to write; FILE.labels.csv (FILE.spans.jsonl, .labels.jsonl, .answers.jsonl) beside the data by default.
    threshold
        Abstain (empty label) where the label's probability is below this.
    probabilities
        Add a column for every label.
    strict
        Stop at the first broken record instead of counting it.
    json
        Print the counts as JSON.
    """
    import json as json_module

    from quilate.cli.arms import choose_arm, task_of
    from quilate.cli.display import result_console
    from quilate.data.tables import SourceConfig, read_table
    from quilate.errors import UsageError
    from quilate.files import write_bytes
    from quilate.phases.evaluate import answers_are_sets
    from quilate.tasks.extraction import ExtractionTask
    from quilate.tasks.multi_label import MultiLabelTask
    from quilate.tasks.question_answering import QuestionTask

    if not 0 <= threshold <= 1:
        raise UsageError(f"--threshold {threshold}: a probability is between 0 and 1")
    chosen, task = choose_arm(run, arm), task_of(run)
    if (answers_are_sets(task) or isinstance(task, QuestionTask)) and (threshold or probabilities):
        raise UsageError(
            f"--threshold and --probabilities are for one label an item, and this task's kind is {task.config.kind}"
        )
    suffix = "spans.jsonl" if isinstance(task, ExtractionTask) else "labels.csv"
    suffix = "labels.jsonl" if isinstance(task, MultiLabelTask) else suffix
    suffix = "answers.jsonl" if isinstance(task, QuestionTask) else suffix
    target = out or data.with_name(f"{data.name.split('.')[0]}.{suffix}")
    rejected = target.with_suffix(".rejected.jsonl")
    table = read_table(SourceConfig(path=str(data.resolve())), base=Path(), strict=strict, quarantine=rejected)
    if isinstance(task, ExtractionTask):
        found = _tagged(task, chosen, table)
    elif isinstance(task, MultiLabelTask):
        found = _with_label_sets(task, chosen, table)
    elif isinstance(task, QuestionTask):
        found = _answered(task, chosen, table)
    else:
        found = _labelled(task, chosen, table, threshold=threshold, probabilities=probabilities)
    write_bytes(target, found.content)
    counts = {
        "arm": chosen.name,
        "seed": chosen.seed,
        "why": chosen.why,
        "rows": len(table.rows),
        **found.counts,
        "rejected_records": sum(table.notes["quarantined"].values()),
        "written": str(target),
    }
    if json:
        print(json_module.dumps(counts, ensure_ascii=False))
        return
    console = result_console()
    console.print(f"arm {chosen.name}, seed {chosen.seed} ({chosen.why})")
    console.print(f"{len(table.rows)} rows, {found.said}, {counts['rejected_records']} broken records left out")
    console.print(str(target))


@dataclass(frozen=True)
class Predicted:
    """The file's content, what was counted, and the counts in words."""

    content: bytes
    counts: Mapping[str, float]
    said: str


def _labelled(task: Task, chosen: ChosenArm, table: Table, *, threshold: float, probabilities: bool) -> Predicted:
    """Rows with labels or, in multiple choice, with the letter of an option."""
    from quilate.evaluation.metrics import with_temperature
    from quilate.inference.choice import Question
    from quilate.tasks.classification import ClassificationConfig, render_texts
    from quilate.tasks.multiple_choice import LETTERS, MultipleChoiceConfig, render_questions

    config, asked = task.config, list[Any]()
    if isinstance(config, MultipleChoiceConfig):
        asked = [None if read is None else Question(*read) for read in render_questions(config, table.rows)]
    elif isinstance(config, ClassificationConfig):
        asked = [text if text.strip() else None for text in render_texts(config, table.rows)]
    answerable = [i for i, question in enumerate(asked) if question is not None]
    scored = chosen.scorer.score([asked[i] for i in answerable])
    letters = isinstance(config, MultipleChoiceConfig)
    labels = list(LETTERS[: scored.scores.shape[1]]) if letters else task.labels
    # Nothing to answer is no table to normalize.
    p = list(with_temperature(scored.scores, chosen.temperature)) if answerable else []
    answers = dict(zip(answerable, p, strict=True))
    content, abstained = labelled_csv(
        table.columns, table.rows, answers, labels, threshold=threshold, probabilities=probabilities
    )
    without = len(table.rows) - len(answerable)
    befell = _befell(scored.counts, scored.cost)
    counts = {"abstained": abstained, "without_text": without, "cut": scored.truncated} | befell
    lacking = "text or usable options" if letters else "text"
    said = f"{abstained} abstained ({without} without {lacking}), {scored.truncated} cut to fit the model" + _said(
        befell
    )
    return Predicted(content, counts, said)


def _tagged(task: ExtractionTask, chosen: ChosenArm, table: Table) -> Predicted:
    """Rows with the spans found, in the form in which the task's own file has them."""
    import json

    from quilate.tasks.columns import require_column
    from quilate.tasks.extraction import raw_text

    config = task.config
    require_column(config.text, table.columns, role="text")
    texts = [raw_text(config, row) for row in table.rows]
    found = chosen.scorer.find(texts)
    lines = []
    for row, text, spans in zip(table.rows, texts, found.spans, strict=True):
        listed = [
            {config.start: s.start, config.end: s.end, config.label: s.label, "text": text[s.start : s.end]}
            for s in spans
        ]
        lines.append(json.dumps({**row, "quilate_spans": listed}, ensure_ascii=False, default=str) + "\n")
    without = sum(not text.strip() for text in texts)
    total = sum(map(len, found.spans))
    befell = _befell(found.counts, found.cost)
    counts = {"spans": total, "without_text": without, "windowed": found.windowed} | befell
    said = f"{total} spans found, {without} without text, {found.windowed} read in several windows" + _said(befell)
    return Predicted("".join(lines).encode(), counts, said)


def _with_label_sets(task: MultiLabelTask, chosen: ChosenArm, table: Table) -> Predicted:
    """Rows with the labels that are above their thresholds, likeliest first, and the probability of each label."""
    import json

    from scipy.special import expit

    from quilate.evaluation.thresholds import given_labels
    from quilate.tasks.columns import TextColumn

    reader = TextColumn(task.config.text, table.columns)
    texts = [reader.of(row) for row in table.rows]
    scored = chosen.scorer.score(texts)
    labels = chosen.scorer.labels
    cuts = [chosen.thresholds[label] for label in labels]
    lines, given = [], 0
    for row, text, scores in zip(table.rows, texts, scored.scores, strict=True):
        own = [labels[place] for place in given_labels(scores, cuts)] if text else []
        given += len(own)
        p = {label: round(float(value), 4) for label, value in zip(labels, expit(scores), strict=True)} if text else {}
        answer = {"quilate_labels": own, "quilate_probabilities": p}
        lines.append(json.dumps({**row, **answer}, ensure_ascii=False, default=str) + "\n")
    without = sum(not text for text in texts)
    befell = _befell(scored.counts, scored.cost)
    counts = {"labels": given, "without_text": without, "cut": scored.truncated} | befell
    said = f"{given} labels given, {without} without text, {scored.truncated} cut to fit the model" + _said(befell)
    return Predicted("".join(lines).encode(), counts, said)


def _answered(task: QuestionTask, chosen: ChosenArm, table: Table) -> Predicted:
    """Rows with the answer to their question."""
    import json

    from quilate.inference.answers import Posed

    reader = task.config.question_reader(table.columns)
    asked = [reader.of(row) for row in table.rows]
    answerable = [i for i, (text, context) in enumerate(asked) if text and (context or not task.config.context)]
    written = chosen.scorer.write([Posed(*asked[i]) for i in answerable])
    answers = dict(zip(answerable, written.answers, strict=True))
    rows = [{**row, "quilate_answer": answers.get(i, "")} for i, row in enumerate(table.rows)]
    lines = [json.dumps(row, ensure_ascii=False, default=str) + "\n" for row in rows]
    without = len(rows) - len(answerable)
    befell = _befell(written.counts, written.cost)
    counts = {"without_text": without, "cut": written.truncated, "unfinished": written.unfinished} | befell
    said = (
        f"{without} without text, {written.truncated} cut to fit the model, {written.unfinished} answers that did not "
        "end by themselves"
    ) + _said(befell)
    return Predicted("".join(lines).encode(), counts, said)


def _befell(counts: Mapping[str, int], cost: float) -> dict[str, float]:
    """What else befell the answers, and the money that an endpoint charged."""
    return {**counts, **({"money": cost} if cost else {})}


def _said(befell: Mapping[str, float]) -> str:
    """What is not nothing, in words."""
    return "".join(f", {value:g} {what}" for what, value in befell.items() if value)


def labelled_csv(
    columns: Sequence[str],
    rows: Sequence[Mapping[str, Any]],
    answers: Mapping[int, Sequence[float]],
    labels: Sequence[str],
    *,
    threshold: float,
    probabilities: bool,
) -> tuple[bytes, int]:
    """The rows with their answers as a CSV that Excel opens with its accents right (UTF-8 with a byte order mark).

    Args:
        answers: row index -> probability of each label; rows that are not in it could not be answered.

    Returns:
        The file's content, and how many rows abstained (unanswerable ones included).
    """
    text = io.StringIO()
    writer = csv.writer(text)
    every = [f"p({label})" for label in labels] if probabilities else []
    writer.writerow([*columns, "quilate_label", "quilate_probability", "quilate_abstained", *every])
    abstained = 0
    for index, row in enumerate(rows):
        p = answers.get(index)
        best = None if p is None else max(range(len(labels)), key=p.__getitem__)
        unsure = p is None or best is None or bool(p[best] < threshold)
        abstained += unsure
        cells = ["" if unsure or best is None else labels[best]]
        cells += ["" if p is None or best is None else f"{p[best]:.4f}", "yes" if unsure else "no"]
        cells += ["" if p is None else f"{p[i]:.4f}" for i in range(len(every))]
        writer.writerow([*(row.get(column) for column in columns), *cells])
    return text.getvalue().encode("utf-8-sig"), abstained
