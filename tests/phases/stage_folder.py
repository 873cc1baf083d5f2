"""The folders that a recipe would have made around one stage."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from quilate.engine.interrupts import StopRequest
from quilate.phases.stage import StageContext, StageReport, write_model_note
from quilate.tasks.task import Task


class StageFolder:
    """A task and a base in `root`, and every stage that is run in a folder beside them."""

    def __init__(self, root: Path, base: Path, task: Task) -> None:
        self.root = root
        task.save(root / "task" / "task")
        (root / "base").mkdir()
        write_model_note(root / "base", base)

    def run(self, kind: Any, name: str, config: Any, inputs: dict[str, str]) -> StageReport:
        """Run a stage of a kind in the folder `name`; inputs: role -> folder."""
        folder = self.root / name
        folder.mkdir(exist_ok=True)
        context: StageContext[Any] = StageContext(
            config=config, inputs={role: self.root / place for role, place in inputs.items()}, folder=folder, seed=3,
            base_folder=self.root, listener=lambda _: None, note=lambda _: None, stop=StopRequest(),
        )  # fmt: skip
        report: StageReport = kind.run(context)
        return report
