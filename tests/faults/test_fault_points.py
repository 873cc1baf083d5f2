"""Fault points are inert until armed, and fire once, at the passage they were told."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from quilate import faults


def test_nothing_happens_when_nothing_is_armed() -> None:
    assert not faults._armed
    for _ in range(3):
        faults.at("checkpoint.rename")
    value = object()
    assert faults.through("fit.loss", value) is value
    assert not faults._seen


def test_it_fires_at_the_nth_passage_only() -> None:
    fired: list[int] = []
    faults.arm("aquí", lambda: fired.append(1), nth=2)
    faults.at("aquí")
    faults.at("otro")
    assert fired == []
    faults.at("aquí")
    faults.at("aquí")
    assert fired == [1]
    faults.disarm()
    faults.at("aquí")
    assert fired == [1]


def test_a_value_that_passes_through_may_be_replaced_once() -> None:
    faults.arm("valor", lambda value: -value, nth=2)
    assert [faults.through("valor", n) for n in (1, 2, 3)] == [1, -2, 3]


@pytest.mark.parametrize(
    ("action", "expected"),
    [("disk-full", "OSError"), ("out-of-memory", "MemoryError"), ("kill", ""), ("terminate", "")],
)
def test_the_environment_arms_a_child(action: str, expected: str) -> None:
    code = "from quilate import faults; faults.at('x'); print('una'); faults.at('x'); print('dos')"
    environment = os.environ | {"QUILATE_FAULTS": f"y:1:kill,x:2:{action}"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=60)
    assert "dos" not in done.stdout
    assert expected in done.stderr
    assert done.returncode == {"kill": -9, "terminate": -15}.get(action, 1)
