"""Where a stage that is not finished would go on."""

from __future__ import annotations

from pathlib import Path

import pytest

from quilate.files import write_text
from quilate.recipe.manifest import left_off

FINISHED = ["trials/000.json", "trials/000/model/config.json", "trials/000/checkpoints/step-00000012/manifest.json"]


@pytest.mark.parametrize(
    ("left", "expected"),
    [
        ([], None),
        (["checkpoints/.step-00000003.tmp/state.json", "metrics.jsonl"], None),
        (["checkpoints/step-00000003/state.json", "checkpoints/step-00000012/state.json"], "at step 12"),
        (["trials/000/metrics.jsonl"], None),
        (["trials/000/checkpoints/step-00000003/state.json"], "at step 3 of trial 1"),
        ([*FINISHED, "trials/001/checkpoints/step-00000003/state.json"], "at step 3 of trial 2"),
        ([*FINISHED, "trials/001/metrics.jsonl"], "after trial 1"),
        ([*FINISHED, "trials/001.json", "trials/001/metrics.jsonl", "checkpoints/step-00000012/state.json"],
         "after trial 2"),
    ],
)  # fmt: skip
def test_left_off(tmp_path: Path, left: list[str], expected: str | None) -> None:
    for name in left:
        write_text(tmp_path / name, "")
    assert left_off(tmp_path) == expected
