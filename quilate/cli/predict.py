"""`quilate predict RUN FILE`."""

from __future__ import annotations

from pathlib import Path


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
    import csv
    import io
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
    task = task_of(run)
    chosen = choose_arm(run, arm)
    target = out or data.with_name(f"{data.name.split('.')[0]}.labels.csv")
    table = read_table(
        SourceConfig(path=str(data.resolve())),
        base=Path(),
        strict=strict,
        quarantine=target.with_suffix(".rejected.jsonl"),
    )
    texts = render_texts(task.config, table.rows)
    answerable = [i for i, text in enumerate(texts) if text.strip()]
    scored = chosen.scorer.score([texts[i] for i in answerable])
    rows = with_temperature(scored.scores, chosen.temperature)
    labels = chosen.scorer.labels
    extra = ["quilate_label", "quilate_probability", "quilate_abstained"]
    extra += [f"p({label})" for label in labels] if probabilities else []
    text_file = io.StringIO()
    writer = csv.writer(text_file)
    writer.writerow([*table.columns, *extra])
    abstained = len(table.rows) - len(answerable)
    answers = dict(zip(answerable, rows, strict=True))
    for index, row in enumerate(table.rows):
        cells: list[object] = ["", "", "yes"]
        if index in answers:
            best = int(answers[index].argmax())
            unsure = bool(answers[index][best] < threshold)
            abstained += unsure
            cells = ["" if unsure else labels[best], f"{answers[index][best]:.4f}", "yes" if unsure else "no"]
            cells += [f"{p:.4f}" for p in answers[index]] if probabilities else []
        writer.writerow([*(row.get(column) for column in table.columns), *cells])
    write_bytes(target, text_file.getvalue().encode("utf-8-sig"))  # the mark makes Excel read the accents right
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
