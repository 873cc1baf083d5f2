"""Recipes without processes: their stages run in the test's own, where everything is imported already."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from quilate.engine.interrupts import StopRequest
from quilate.files import make_folder
from quilate.recipe.executors.subprocess import EventListener
from quilate.recipe.spec import StageSpec
from quilate.recipe.worker import run_stage


class InThisProcess:
    """Stands in for `StageProcesses`."""

    def __enter__(self) -> InThisProcess:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def run(
        self, spec: StageSpec, folder: Path, *, uses_models: bool, on_event: EventListener, stop: StopRequest
    ) -> None:
        make_folder(folder)
        spec.write(folder)
        run_stage(folder, stop)


@contextmanager
def stages_in_this_process(folder: Path) -> Iterator[Path]:
    """Work in `folder`; recipes that are run meanwhile start no processes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr("quilate.recipe.run.StageProcesses", lambda _: InThisProcess())
        patch.setattr("quilate.recipe.worker.say", lambda **_: None)
        yield folder
