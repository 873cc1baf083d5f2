"""Judgements with a planted truth, and the folders that a recipe would have made."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from support import SENTENCES

from quilate.config import Config, validate
from quilate.engine.interrupts import StopRequest
from quilate.files import write_jsonl
from quilate.phases.align.preferences import PREFERENCES
from quilate.phases.stage import StageContext, StageKind, StageReport, write_model_note
from quilate.recipe.kinds import stage_kind

GOOD, BAD = "Sí, gracias.", "No, jamás."


def planted(count: int = 40) -> list[dict[str, Any]]:
    """Whoever says thanks is preferred, however long the answer is."""
    rows = []
    for n in range(count):
        question = f"Caso {n}: {SENTENCES[n % len(SENTENCES)]} ¿Me ayudas?"
        more = (" Caso visto.", "")[n % 2], ("", " Caso visto.")[n % 2]
        rows.append({"prompt": question, "chosen": GOOD + more[0], "rejected": BAD + more[1], "group": f"p{n}"})
    return rows


class Folder:
    """`gustos` is a finished set of judgements, `base` a finished model."""

    def __init__(self, root: Path, base: Path) -> None:
        self.root = root
        self.notes: list[str] = []
        (root / "base").mkdir()
        write_model_note(root / "base", base)
        self.judgements("gustos", planted())

    def judgements(self, name: str, rows: list[dict[str, Any]], **keys: Any) -> StageReport:
        write_jsonl(self.root / f"{name}.jsonl", rows)
        config = {"preferences": {"path": f"{name}.jsonl", "held_out": 0.3} | keys}
        return self.run(PREFERENCES, name, config, {})

    def stage(
        self, kind: str, name: str, *, on: str = "base", stop: StopRequest | None = None, inputs: dict[str, Path] = {},  # noqa: B006
        **config: Any,
    ) -> StageReport:  # fmt: skip
        value = {
            "kind": kind, "preferences": ["gustos"], "batch_size": 5, "epochs": 3, "precision": "fp32", "lr": 3e-3,
            "length": 128, "micro_batch_tokens": 300,
        } | config  # fmt: skip
        sets = {f"preferences:{s}": self.root / s for s in value["preferences"]}
        return self.run(stage_kind(kind), name, value, sets | {"model": self.root / on} | inputs, stop)

    def run(
        self,
        kind: StageKind[Any],
        name: str,
        value: dict[str, Any],
        inputs: dict[str, Path],
        stop: StopRequest | None = None,
    ) -> StageReport:
        folder = self.root / name
        folder.mkdir(exist_ok=True)
        config: Config = validate(kind.config, value, source="t")
        stop = stop or StopRequest()
        return kind.run(StageContext(config, inputs, folder, 3, self.root, lambda _: None, self.notes.append, stop))
