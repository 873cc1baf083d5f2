"""Pairs that nobody judged: which follow from what a model wrote, what is counted, that they are marked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from judged import Folder

from quilate.config import validate
from quilate.errors import ConfigError, DataError
from quilate.files import read_jsonl, write_jsonl
from quilate.phases.align.derive import DERIVE, DeriveConfig, Question, derive_pairs, read_questions
from quilate.phases.align.patterns import extracted
from quilate.phases.align.preferences import stored_preferences

ANSWER = r"Respuesta: (\d)"


def config(**keys: Any) -> DeriveConfig:
    value = {
        "kind": "derive", "path": "casos.jsonl", "prompt": "{{ caso }} Acaba con «Respuesta: número».",
        "explanation": "{{ explicación }}\nRespuesta: {{ correcta }}", "correct": "correcta", "extract": ANSWER,
        "group": "id",
    }  # fmt: skip
    return validate(DeriveConfig, value | keys, source="t")


def cases(count: int = 12) -> list[dict[str, Any]]:
    return [
        {"id": f"c{n}", "caso": f"Caso {n}: niño con fiebre y exantema del día {n}.", "explicación": "Es vírico.",
         "correcta": n % 5} for n in range(count)
    ]  # fmt: skip


def test_the_last_answer_counts() -> None:
    assert extracted(ANSWER, ["Respuesta: 3. No: Respuesta: 4.", "No sé."]) == ["4", None]


def test_a_right_answer_is_never_a_rejected_completion() -> None:
    """It is right here exactly where a reward of kind `answer` calls it right: whatever its case and white space."""
    questions = [Question("q", "¿?", "Respuesta: Fiebre Q", "fiebre q", "g")]
    judged, counts = derive_pairs(questions, [[("Respuesta: fiebre  Q ", True)]], r"Respuesta: (.+)")
    assert judged == [] and counts["completions that reach the right answer"] == 1


def test_an_explanation_is_preferred_to_each_different_wrong_completion() -> None:
    questions = [Question(f"q{n}", "¿?", "Bien. Respuesta: 1", "1", "g") for n in range(2)]
    wrong, right = ("Mal. Respuesta: 2", True), ("Respuesta: 1", True)
    written = [[wrong, wrong, ("Peor. Respuesta: 3", True), right], [right, ("nada", True), ("Respuesta: 5", False)]]
    [judged], counts = derive_pairs(questions, written, ANSWER)
    assert judged.completions == ("Bien. Respuesta: 1", "Mal. Respuesta: 2", "Peor. Respuesta: 3")
    assert [(pair.better, pair.worse) for pair in judged.pairs] == [(0, 1), (0, 2)]
    assert judged.derived and judged.demonstrations == (0,) and judged.group == "g"
    assert counts == {
        "completions that reach a wrong answer": 3,
        "completions that reach the right answer": 2,
        "completions that reach no answer": 1,
        "completions cut for length": 1,
        "questions without a wrong completion": 1,
    }


def test_rows_whose_own_explanation_misses_the_answer_are_left_out(tmp_path: Path) -> None:
    rows = [*cases(3), {"id": "x", "caso": "¿?", "explicación": "", "correcta": None}]
    write_jsonl(tmp_path / "casos.jsonl", rows)
    questions, counts = read_questions(config(), tmp_path)
    assert [q.correct for q in questions] == ["0", "1", "2"] and questions[0].group == "c0"
    assert counts["rows without a question, an explanation or an answer"] == 1
    # Without the answer in the explanation nothing says that it reaches the right one.
    questions, counts = read_questions(config(explanation="explicación"), tmp_path)
    assert not questions and counts["rows whose explanation does not reach the right answer"] == 3


def test_a_pattern_has_one_group() -> None:
    with pytest.raises(ConfigError, match="exactly one group"):
        config(extract="Respuesta")


@pytest.fixture
def folder(folder: Folder) -> Folder:
    write_jsonl(folder.root / "casos.jsonl", cases())
    return folder


def test_a_finished_stage_is_a_set_of_judgements_marked_as_derived(folder: Folder) -> None:
    """A random model writes anything; here its last letter or digit is its answer, and hardly ever right."""
    keys = {
        "extract": r"(\w)\W*$",
        "completions_per_prompt": 24,
        "max_new_tokens": 40,
        "held_out": 0.3,
        "precision": "fp32",
    }
    settings = config(**keys).as_json()
    report = folder.run(DERIVE, "derivados", settings, {"model": folder.root / "base"})
    place = folder.root / "derivados"
    train, held_out = (stored_preferences(place, part) for part in ("train", "held_out"))
    assert train and held_out and all(prompt.derived for prompt in (*train, *held_out))
    assert {prompt.group for prompt in train}.isdisjoint({prompt.group for prompt in held_out})
    assert all(p.completions[0].startswith("Es vírico.") for p in train)
    assert report.facts["derived_prompts"] == len(train) + len(held_out)
    assert sum(n for name, n in report.counts.items() if name.startswith("completions ")) == 12 * 24
    rows = read_jsonl(place / "pairs.jsonl")
    assert rows and all(row["derived"] is True and row["chosen"] != row["rejected"] for row in rows)
    assert "Nobody judged" in (place / "README.md").read_text(encoding="utf-8")
    folder.stage("reward", "juez", preferences=["derivados"], epochs=1)  # it is trained on like any other set


def test_a_model_that_never_answers_gives_no_pair(folder: Folder) -> None:
    with pytest.raises(DataError, match="not one pair can be derived"):
        folder.run(
            DERIVE,
            "nada",
            config(completions_per_prompt=1, max_new_tokens=4).as_json(),
            {"model": folder.root / "base"},
        )
