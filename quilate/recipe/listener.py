"""What is told of a run while it goes on."""

from __future__ import annotations

from typing import Protocol

from quilate.engine.runlog import Progress
from quilate.recipe.graph import Node


class RunListener(Protocol):
    """Whoever shows the run to the user. Several stages may run at once: started, events, finished, each its own."""

    def started(self, node: Node, number: int, total: int, *, resumed: bool) -> None: ...

    def event(self, node: Node, event: Progress | str) -> None: ...

    def finished(self, node: Node, seconds: float, *, reused: bool) -> None: ...
