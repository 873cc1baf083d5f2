"""Kill and resume: the stage itself, on a few of its rows, stopped without saving and started again."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from quilate.data.conversations import Conversation
from quilate.data.packing import Example
from quilate.engine.runlog import Progress
from quilate.errors import DataError
from quilate.files import make_folder, sha256_of_file, write_jsonl
from quilate.models.load import context_of_directory
from quilate.phases import sft
from quilate.phases.conversations import stored_conversations
from quilate.phases.finetune import FinetuneConfig
from quilate.phases.sft import SftConfig
from quilate.verify.certificate import DoesNotApply, Finding
from quilate.verify.stage import HEAD, Examined

STEPS = 20
KILLED_AFTER = 12
SAVED_EVERY = 7  # so that five steps are lost and done again
ROWS = 8
ROWS_A_STEP = 2


class _Killed(BaseException):
    """As a signal would: nothing on the way catches it, nothing is saved."""


def kill_and_resume(examined: Examined) -> Finding:
    """The stage's own function, run twice on its shortest rows: undisturbed, and killed and started again. Parameters
    and metrics must be equal to the bit."""
    if examined.is_head:
        raise DoesNotApply(HEAD)
    rows = examined.shortest(ROWS)
    inputs = copied_inputs(examined, rows, examined.work / "inputs")
    batch = min(ROWS_A_STEP, len(rows))
    settings = {
        "batch_size": batch,
        "epochs": STEPS / -(-len(rows) // batch),
        "micro_batch_tokens": max(len(row.tokens) for row in rows),  # one row at a time: gradients are accumulated
        "checkpoint_steps": SAVED_EVERY,
        "max_train_tokens": None,
    }
    if isinstance(examined.config, FinetuneConfig):
        settings["train_rows"] = None  # the rows have been chosen
    context = replace(
        examined.context, config=examined.config.model_copy(update=settings), inputs=inputs, note=lambda _: None
    )

    def run(name: str, listener: Callable[[Progress], None]) -> int:
        folder = make_folder(examined.work / name)
        return int(examined.run(replace(context, folder=folder, listener=listener)).facts["steps"])

    def kill(progress: Progress) -> None:
        if progress.done == KILLED_AFTER:
            raise _Killed

    steps = run("undisturbed", lambda _: None)
    if steps <= KILLED_AFTER:
        return Finding("", 0.0, 0.0, "", f"only {steps} steps were run, fewer than are needed to be killed in")
    try:
        run("killed", kill)
    except _Killed:
        saved = sorted(path.name for path in (examined.work / "killed" / "checkpoints").glob("step-*"))
    run("killed", lambda _: None)
    contents = [_content(examined.work / name) for name in ("undisturbed", "killed")]
    differing = [name for name in contents[0] | contents[1] if contents[0].get(name) != contents[1].get(name)]
    resumed = int(saved[-1].removeprefix("step-")) if saved else 0
    return Finding(
        f"{steps} steps on a copy with the {len(rows)} shortest rows, {batch} a step: undisturbed, against killed "
        f"after step {KILLED_AFTER} and resumed from step {resumed}; every byte of parameters and metrics",
        len(differing), 0, "files differ",
        f"these differ: {', '.join(differing)}" if differing else "",
        {"steps": steps, "killed after step": KILLED_AFTER, "resumed from step": resumed, "rows": len(rows),
         "files": len(contents[0])},
    )  # fmt: skip


def _content(folder: Path) -> dict[str, str]:
    """What must repeat. Not among it: seconds, and the folder's own name in an adapter's config."""
    files = [folder / "metrics.jsonl", *(folder / "model").glob("*.safetensors")]
    return {str(path.relative_to(folder)): sha256_of_file(path) for path in files}


def copied_inputs(examined: Examined, rows: Sequence[Example], folder: Path) -> dict[str, Path]:
    """The stage's inputs with only these training rows, and one held-out conversation a set, written to `folder`.

    Raises:
        DataError: an input is not whole.
    """
    ids = {examined.item_of(row) for row in rows}
    inputs = dict(examined.context.inputs)
    if isinstance(examined.config, FinetuneConfig):
        assert examined.task is not None
        task, train = examined.task, [item for item in examined.task.train if item.id in ids]
        splits = task.report["splits"]
        report = task.report | {"splits": splits | {"train": splits["train"] | {"items": len(train)}}}
        replace(task, train=train, report=report).save(folder / "task" / "task")
        return inputs | {"task": folder / "task"}
    for role, source in examined.context.inputs.items():
        if not role.startswith("conversations:"):
            continue
        name = role.removeprefix("conversations:")
        train_rows = [c for c in stored_conversations(source, "train") if f"{name}:{c.id}" in ids]
        if name not in examined.config.conversations:
            train_rows = []
        held_out = _usable(examined, stored_conversations(source, "held_out"), name)
        inputs[role] = folder / name
        write_jsonl(inputs[role] / "train.jsonl", [c.as_row() for c in train_rows])
        write_jsonl(inputs[role] / "held_out.jsonl", [held_out.as_row()])
    return inputs


def _usable(examined: Examined, held_out: Sequence[Conversation], name: str) -> Conversation:
    """The shortest held-out conversation that fits the length: a stage measures itself on each set."""
    assert isinstance(examined.config, SftConfig)
    length = min(examined.config.length, context_of_directory(examined.base))
    examples = sft.chat_examples(held_out, examined.template, length).examples
    if not examples:
        raise DataError(f"no held-out conversation of {name} can be used", hint="`quilate data preview` shows why")
    chosen = min(examples, key=lambda example: len(example.tokens)).id
    return next(conversation for conversation in held_out if conversation.id == chosen)
