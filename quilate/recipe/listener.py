"""What is told of a run while it goes on."""

from __future__ import annotations

from typing import Protocol

from quilate.engine.runlog import Progress
from quilate.recipe.graph import Node


class RunListener(Protocol):
    """Whoever shows the run to the user."""

    def started(self, node: Node, number: int, total: int, *, resumed: bool) -> None: ...

    def event(self, event: Progress | str) -> None: ...

    def finished(self, node: Node, seconds: float, *, reused: bool) -> None: ...
