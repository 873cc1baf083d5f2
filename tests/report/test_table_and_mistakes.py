from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from rich.console import Console

from quilate.evaluation.outcomes import ArmOutcome, Cost
from quilate.report.markdown import cell, write_markdown, write_unfinished
from quilate.report.mistakes import errors_csv
from quilate.report.table import print_table


def test_table_names_every_arm_its_interval_and_the_verdict(evidence: dict[str, Any]) -> None:
    evidence = {**evidence, "task": {**evidence["task"], "name": "notas [red]urgentes[/red]"}}
    console = Console(width=140, file=io.StringIO(), record=True)
    print_table(evidence, console, "es")
    shown = console.export_text()
    for arm in evidence["arms"]:
        row = next(line for line in shown.splitlines() if line.startswith(arm["name"]))
        assert f"{100 * arm['score']:.1f}".replace(".", ",") in row
        assert f"{100 * arm['ci95'][0]:.1f}".replace(".", ",") in row
    assert "recomendado" in shown
    assert "Entrene: Ajuste completo" in shown
    assert "notas [red]urgentes[/red]" in shown  # names are not markup
    assert shown.count("! ") == len(evidence["notices"])


def test_mistakes_hold_every_wrong_answer_and_only_those() -> None:
    labels, gold = ["sí", "no", "quizá"], np.array([0, 1, 2, 0])
    first = np.array([[0.8, 0.1, 0.1], [0.6, 0.3, 0.1], [0.1, 0.2, 0.7], [0.05, 0.9, 0.05]])
    outcome = ArmOutcome("LoRA", "fine-tuning", "lora", [1, 2], [first, np.eye(3)[gold]], Cost(1.0), 1.0)
    texts = ["bien", 'dolor; "agudo",\nniño', "bien", "=HYPERLINK(1)"]
    raw = errors_csv(outcome, texts, gold, labels)
    assert raw.startswith(b"\xef\xbb\xbf")
    rows = list(csv.DictReader(io.StringIO(raw.decode("utf-8-sig"), newline="")))
    assert [(r["seed"], r["item"], r["gold"], r["predicted"]) for r in rows] == [
        ("1", "3", "sí", "no"),
        ("1", "1", "no", "sí"),
    ]
    assert rows[1]["text"] == texts[1]
    assert rows[0]["text"] == "'=HYPERLINK(1)"  # a spreadsheet shows it and does not run it
    assert (rows[1]["probability_of_predicted"], rows[1]["probability_of_gold"]) == ("0.6000", "0.3000")


@pytest.mark.parametrize(("lang", "word"), [("en", "ruled out"), ("es", "descartado")])
def test_the_markdown_page_says_what_the_table_says(
    evidence: dict[str, Any], tmp_path: Path, lang: str, word: str
) -> None:
    made = {"stage": "tapt-s0", "parameters": 2e6, "train_tokens": 3000, "seconds": 60, "measure": "bits per byte"}
    made |= {"before": {"texto": 2.5}, "after": {"texto": 2.25, "otro": 3.0}}
    page, figure = write_markdown(evidence, [made], tmp_path / "estudio.md", lang)
    text = page.read_text(encoding="utf-8")
    assert ("| 2.500 → 2.250 | 3.000 |" if lang == "en" else "| 2,500 → 2,250 | 3,000 |") in text
    rows = [line for line in text.splitlines() if line.startswith("|")]
    for arm in evidence["arms"]:
        assert any(row.startswith(f"| {cell(arm['name'])} |") for row in rows)
    widths = [row.replace("\\|", "").count("|") for row in text.split("\n\n")[4].splitlines()]
    assert len(set(widths)) == 1, "every row of a table has its columns"
    assert word in text
    assert f"({figure.name})" in text
    assert "var(--" not in figure.read_text(encoding="utf-8")
    ElementTree.parse(figure)  # well-formed by itself


def test_an_unfinished_study_says_what_was_not_run_and_recommends_nothing(tmp_path: Path) -> None:
    cells = [
        {"arm": "lora", "seed": 0, "score": 0.5, "items": 40, "seconds": 61.0},
        {"arm": "lora", "seed": 1, "score": None, "items": 0, "seconds": None},
    ]
    [page] = write_unfinished("Sintomas|x", cells, tmp_path / "p.md", "es")
    text = page.read_text(encoding="utf-8")
    assert "1 de 2 celdas" in text and "40\xa0casos" in text
    assert "| lora | 1 | sin ejecutar |  |" in text
    assert "Sintomas\\|x" in text


def test_a_users_words_do_not_become_markup() -> None:
    assert cell("a|b\n*c* <img> [x](y)") == r"a\|b \*c\* \<img\> \[x\](y)"
