"""A stage's specification as a file."""

from __future__ import annotations

from pathlib import Path

from quilate.recipe.spec import StageSpec


def test_what_is_read_is_what_was_written_order_included(tmp_path: Path) -> None:
    """The report finds the last trained stage of an arm by the order of its inputs: here `zeta` comes before `alfa`."""
    spec = StageSpec(
        name="informe",
        kind="report",
        version=1,
        id="a1b2",
        seed=0,
        config={"margin": 0.02, "texto": "año: sí\nno", "nada": None, "arms": [{"name": "ñandú"}]},
        inputs={"zeta-s0": "/z", "alfa-s0": "/a"},
        input_ids={"zeta-s0": {"stage": "zeta-s0", "id": "1"}, "alfa-s0": {"stage": "alfa-s0", "id": "2"}},
        base_folder="/x",
    )
    spec.write(tmp_path)
    read = StageSpec.read(tmp_path)
    assert read == spec
    assert list(read.inputs) == ["zeta-s0", "alfa-s0"]
