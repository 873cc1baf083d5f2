"""`quilate predict RUN FILE`."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


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
    """Label new rows. Writes their columns with the label, its probability, and whether to abstain.

    Parameters
    ----------
    run
        The folder of a finished run.
    data
        The rows to label: csv, jsonl or parquet with the task's text column.
    arm
        The arm to use; by default the one the evidence recommends.
    out
        Where to write; FILE.labels.csv beside the data by default.
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
    from quilate.evaluation.metrics import with_temperature
    from quilate.files import write_bytes
    from quilate.tasks.classification import render_texts

    if not 0 <= threshold <= 1:
        raise UsageError(f"--threshold {threshold}: a probability is between 0 and 1")
    chosen = choose_arm(run, arm)
    target = out or data.with_name(f"{data.name.split('.')[0]}.labels.csv")
    rejected = target.with_suffix(".rejected.jsonl")
    table = read_table(SourceConfig(path=str(data.resolve())), base=Path(), strict=strict, quarantine=rejected)
    texts = render_texts(task_of(run).config, table.rows)
    answerable = [i for i, text in enumerate(texts) if text.strip()]
    scored = chosen.scorer.score([texts[i] for i in answerable])
    answers = dict(zip(answerable, with_temperature(scored.scores, chosen.temperature), strict=True))
    content, abstained = labelled_csv(
        table.columns, table.rows, answers, chosen.scorer.labels, threshold=threshold, probabilities=probabilities
    )
    write_bytes(target, content)
    counts = {
        "arm": chosen.name,
        "seed": chosen.seed,
        "why": chosen.why,
        "rows": len(table.rows),
        "abstained": abstained,
        "without_text": len(table.rows) - len(answerable),
        "cut": scored.truncated,
        "rejected_records": sum(table.notes["quarantined"].values()),
        "written": str(target),
    }
    if json:
        print(json_module.dumps(counts, ensure_ascii=False))
        return
    console = result_console()
    console.print(f"arm {chosen.name}, seed {chosen.seed} ({chosen.why})")
    console.print(
        f"{counts['rows']} rows, {abstained} abstained ({counts['without_text']} without text), {scored.truncated} cut "
        f"to fit the model, {counts['rejected_records']} broken records left out"
    )
    console.print(str(target))


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
