from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from quilate.errors import DataError, QuilateError
from quilate.evaluation.evidence import assemble, parse
from quilate.evaluation.judgement import judge
from quilate.evaluation.outcomes import ArmOutcome, Rules

LABELS = ["Infecciosas", "Tumores", "Endocrinas", "Mentales", "Ojo y oído", "Corazón", "Piel", "Riñón"]
MACHINE = {"cpu": "x", "cores": 2, "memory_bytes": 1, "load_average": 0.5, "torch": "2.11", "dtype": "float32"}
BASE = {"name": "base", "source": "aquí", "parameters": 10, "sha256": "00"}
TASK = {"name": "notas", "train": 10, "dev": 5, "test": 1000, "leak_check": "clean"}


@pytest.fixture
def parts(gold: NDArray[np.int64], make_arm: Callable[..., ArmOutcome]) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    arms = [make_arm(name, gold, [rng.random(1000) < a] * 2) for name, a in (("a", 0.5), ("b", 0.7))]
    judgement = judge(arms, gold, LABELS, None, Rules(resamples=500))
    return {"judgement": judgement, "recipe": "r", "base": BASE, "task": TASK, "machine": MACHINE, "lineage": []}


def test_the_file_has_the_promised_keys(parts: dict[str, Any]) -> None:
    found = json.loads(json.dumps(assemble(**parts), allow_nan=False))
    assert set(found) >= {
        "schema", "recipe", "base", "task", "metric", "items", "arms", "comparisons", "language_modelling", "warnings",
        "recommendation",
    }  # fmt: skip
    assert set(found["arms"][0]) >= {
        "name", "phase", "method", "score", "ci95", "interval_over", "scores_by_seed", "cost",
    }  # fmt: skip
    assert set(found["arms"][0]["cost"]) == {
        "seconds", "train_tokens", "flops", "peak_memory_bytes", "trainable_parameters",
    }  # fmt: skip
    assert set(found["comparisons"][0]) >= {"a", "b", "difference", "ci95", "p", "n"}
    assert set(found["recommendation"]) >= {"arm", "verdict", "why"}
    assert found["recommendation"]["base"] == "base"
    assert "base model base" in found["recommendation"]["why"]


def test_it_survives_the_way_through_a_file(parts: dict[str, Any]) -> None:
    written = assemble(**parts)
    assert parse(json.loads(json.dumps(written))).model_dump(mode="json", by_alias=True) == written


def test_without_a_language_model_none_is_named(parts: dict[str, Any]) -> None:
    found = assemble(**{**parts, "base": {"name": "none", "source": "", "parameters": 0, "sha256": ""}})
    assert found["recommendation"]["why"].endswith("no language model was tried.")


def test_same_outcomes_same_evidence(parts: dict[str, Any]) -> None:
    assert assemble(**parts) == assemble(**parts)


@pytest.mark.parametrize("number", [math.nan, math.inf])
def test_no_number_that_is_not_finite_enters(parts: dict[str, Any], number: float) -> None:
    with pytest.raises(QuilateError, match="bits_per_byte"):
        assemble(**parts, language_modelling=[{"model": "m", "corpus": "c", "bits_per_byte": number}])
    arm = parts["judgement"].arms[0]
    broken = arm.model_copy(update={"cost": arm.cost.model_copy(update={"seconds": number})})
    judgement = dataclasses.replace(parts["judgement"], arms=[broken])
    with pytest.raises(QuilateError, match="seconds"):
        assemble(**{**parts, "judgement": judgement})
    curve = arm.model_copy(update={"learning_curves": [[{"step": 1, "loss": number}]]})
    judgement = dataclasses.replace(parts["judgement"], arms=[curve])
    with pytest.raises(QuilateError, match="loss"):
        assemble(**{**parts, "judgement": judgement})


def test_unknown_and_missing_keys_are_named(parts: dict[str, Any]) -> None:
    with pytest.raises(QuilateError, match=r"task\.tset"):
        assemble(**{**parts, "task": {**TASK, "tset": 3}})
    with pytest.raises(QuilateError, match=r"base\.sha256"):
        assemble(**{**parts, "base": {k: v for k, v in BASE.items() if k != "sha256"}})
    with pytest.raises(DataError, match="recipe: Field required"):
        parse({"schema": "quilate.evidence/1"})


def test_the_callers_warnings_and_those_of_the_setting_are_kept(parts: dict[str, Any]) -> None:
    task = {**TASK, "leak_check": "not run"}
    machine = {**MACHINE, "load_average": 9.0}
    found = assemble(**{**parts, "task": task, "machine": machine}, warnings=["3 filas raras"])
    assert found["warnings"][0] == "3 filas raras"
    assert [n["code"] for n in found["notices"]][-2:] == ["leak_not_run", "busy_machine"]
    assert len(found["warnings"]) == len(found["notices"])
