"""`quilate evaluate RUN FILE`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from quilate.data.tables import Table
    from quilate.tasks.classification import ClassificationTask
    from quilate.tasks.labels import Item


def evaluate(run: Path, data: Path, *, arm: str | None = None, strict: bool = False, json: bool = False) -> None:
    """Score one arm of a finished classification run on another labelled file of the same form.

    Rows are refused whose text the arm was trained on, or whose group (the patient, say) where the file has the task's
    group column.

    Parameters
    ----------
    run
        The folder of a finished run.
    data
        The labelled rows: csv, jsonl or parquet with the task's text and label columns.
    arm
        The arm to score; by default the only one, or the one the evidence recommends.
    strict
        Stop at the first broken record instead of counting it.
    json
        Print JSON instead of a table.
    """
    import json as json_module

    import numpy as np

    from quilate.cli.arms import choose_arm, classification_of
    from quilate.cli.display import result_console
    from quilate.errors import GateError
    from quilate.evaluation import metrics
    from quilate.evaluation.statistics import bootstrap
    from quilate.tasks.leaks import find_leaks

    task = classification_of(run, verb="evaluate")
    chosen = choose_arm(run, arm)
    items, table, groups = _labelled(task, data, strict=strict)
    leaks = find_leaks(task.train, items)
    if leaks.items and not task.config.allow_leak:
        raise GateError(
            f"{len(leaks.items)} of {len(items)} items of {data} were in the training rows ({len(leaks.exact)} by "
            f"their text, {len(leaks.overlap)} by most of it, {len(leaks.group)} by their group)",
            hint="remove them from the file",
        )
    scored = chosen.scorer.score([item.text for item in items])
    probabilities = metrics.with_temperature(scored.scores, chosen.temperature)
    gold = np.array([task.labels.index(item.label) for item in items])
    interval = bootstrap(
        gold, [[metrics.predictions(probabilities)]], len(task.labels), groups=[item.group for item in items]
    ).score(0)
    result = {
        "arm": chosen.name,
        "seed": chosen.seed,
        "why": chosen.why,
        "items": len(items),
        "groups": len({item.group for item in items}),
        "groups_compared": groups is not None,
        "accuracy": metrics.accuracy(gold, probabilities),
        "ci95": [interval.low, interval.high],
        "macro_f1": metrics.macro_f1(gold, probabilities),
        "left_out": len(table.rows) - len(items),
        "cut": scored.truncated,
        "rejected_records": sum(table.notes["quarantined"].values()),
    }
    if json:
        print(json_module.dumps(result, ensure_ascii=False))
        return
    console = result_console()
    console.print(f"arm {chosen.name}, seed {chosen.seed} ({chosen.why})")
    console.print(
        f"accuracy {result['accuracy']:.3f} (95 % interval {interval.low:.3f} to {interval.high:.3f} over items), "
        f"macro-F1 {result['macro_f1']:.3f}; {len(items)} items in {result['groups']} groups, 1 seed"
    )
    if groups is None and task.config.group is not None:
        console.print(
            f"the file has no column '{task.config.group}': whether its groups were trained on was not looked at",
            markup=False,
        )
    console.print(
        f"{result['left_out']} rows without text or label left out, {scored.truncated} cut to fit the model, "
        f"{result['rejected_records']} broken records left out"
    )


def _labelled(task: ClassificationTask, data: Path, *, strict: bool) -> tuple[list[Item], Table, str | None]:
    """The rows with a text and a label, the whole table, and the column that groups them, where the file has it.

    Raises:
        DataError: there is none, or a label that the task does not have.
    """
    from quilate.data.tables import SourceConfig, read_table
    from quilate.errors import DataError
    from quilate.tasks.classification import render_texts
    from quilate.tasks.labels import Item, cell_text

    table = read_table(SourceConfig(path=str(data.resolve())), base=Path(), strict=strict)
    texts = render_texts(task.config, table.rows)
    gold_labels = [cell_text(row.get(table.require(task.config.label))) for row in table.rows]
    unknown = sorted(set(gold_labels) - set(task.labels) - {""})
    if unknown:
        raise DataError(
            f"{data}: labels the arm was not trained for: {', '.join(unknown[:5])}",
            hint=f"its labels: {', '.join(task.labels)}",
        )
    kept = [i for i, text in enumerate(texts) if text.strip() and gold_labels[i]]
    if not kept:
        raise DataError(f"{data} has no row with both a text and a label")
    groups = task.config.group if task.config.group in table.columns else None
    names = [f"{data.name}:{i}" for i in range(len(texts))]  # as `prepare` names rows: no training row has these
    group_of = (
        names if groups is None else [cell_text(r.get(groups)) or n for r, n in zip(table.rows, names, strict=True)]
    )
    return [Item(names[i], texts[i], gold_labels[i], group_of[i]) for i in kept], table, groups
