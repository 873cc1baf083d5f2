"""A policy to train on made-up prompts, and a reward."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from judged import Folder

from quilate.config import Config, validate
from quilate.engine.interrupts import StopRequest
from quilate.engine.runlog import ProgressListener
from quilate.phases.align.online import Online, start
from quilate.phases.stage import StageContext, StageReport
from quilate.recipe.kinds import stage_kind

# Prompts of a few tokens, for speed: the machine's time goes into calls, not into arithmetic.
SYLLABLES = [f"{vowel}{consonant}" for vowel in "aeiou" for consonant in "lmnrs"]
SETTINGS: dict[str, Any] = {
    "preferences": ["gustos"], "format": "text", "precision": "fp32", "max_new_tokens": 4, "lr": 1e-2,
    "decay": "constant", "warmup": 0.0, "micro_batch_tokens": 2000, "prompts_per_iteration": 10,
    "completions_per_prompt": 2, "batch_size": 10, "passes": 2, "epochs": 1,
}  # fmt: skip
ALWAYS = {"todo": {"kind": "rules", "path": "todo.yaml"}}


def asked(folder: Folder) -> Folder:
    """The folder with short prompts in place of the planted judgements."""
    rows = [{"prompt": text, "chosen": "sí", "rejected": "no", "group": text} for text in SYLLABLES]
    folder.judgements("gustos", rows, held_out=0.2)
    return folder


def always_one(folder: Folder) -> None:
    """Makes the file that `ALWAYS` names."""
    (folder.root / "todo.yaml").write_text("rules:\n  - {name: todo, pattern: '', score: 1.0}\n", encoding="utf-8")


def context(
    folder: Folder,
    kind: str,
    name: str,
    *,
    stop: StopRequest = StopRequest(),  # noqa: B008 (it stays unset)
    listener: ProgressListener = lambda _: None,
    inputs: Mapping[str, Path] | None = None,
    **keys: Any,
) -> StageContext[Any]:
    place = folder.root / name
    place.mkdir(exist_ok=True)
    always_one(folder)
    config: Config = validate(stage_kind(kind).config, {"kind": kind, "rewards": ALWAYS} | SETTINGS | keys, source="t")
    roles = {"model": folder.root / "base", "preferences:gustos": folder.root / "gustos"} | dict(inputs or {})
    return StageContext(config, roles, place, 3, folder.root, listener, folder.notes.append, stop)


def run(folder: Folder, kind: str, name: str, **keys: Any) -> StageReport:
    return stage_kind(kind).run(context(folder, kind, name, **keys))


def online(folder: Folder, kind: str, name: str = "línea", **keys: Any) -> Online:
    return start(context(folder, kind, name, **keys), value=kind == "ppo")
