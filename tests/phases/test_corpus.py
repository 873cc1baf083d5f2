"""The corpus stage: what a document is, what is held out, what is dropped and counted, and which language it is in."""

from __future__ import annotations

import json
import sys
from itertools import chain, pairwise
from pathlib import Path
from typing import Any

import pytest
from support import SENTENCES

from quilate.engine.interrupts import StopRequest
from quilate.errors import DataError, GateError
from quilate.phases.corpus import CORPUS, CorpusConfig, CorpusStageConfig, corpus_documents
from quilate.phases.stage import StageContext, StageReport

NOTES = [f"{a} {b} El Dr. Ñíguez pautó {i},5 mg/dl." for i, (a, b) in enumerate(pairwise(SENTENCES))]
ENGLISH = "The patient was admitted with fever, cough and shortness of breath that had started three days earlier."


class Stage:
    """Runs the corpus stage in a folder and keeps what it said."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.notes: list[str] = []

    def run(self, **config: Any) -> StageReport:
        self.notes.clear()
        settings = CorpusStageConfig(corpus=CorpusConfig(held_out=0.4, **config), allow_leak=False)
        roles = {"task": self.folder, "task:otra": self.folder / "otra"}
        inputs = {role: folder for role, folder in roles.items() if (folder / "task").exists()}
        return CORPUS.run(
            StageContext(
                settings, inputs, self.folder, 0, self.folder, lambda _: None, self.notes.append, StopRequest()
            )
        )

    def parts(self) -> tuple[list[str], list[str]]:
        return corpus_documents(self.folder, "train"), corpus_documents(self.folder, "held_out")

    def warnings(self) -> list[str]:
        return [note for note in self.notes if note.startswith("warning: ")]


@pytest.fixture
def stage(tmp_path: Path) -> Stage:
    return Stage(tmp_path)


def write(folder: Path, texts: list[str]) -> None:
    """The same texts as a text file with CRLF and as a table."""
    (folder / "notas.txt").write_bytes("\r\n\r\n \r\n".join(texts).encode())
    rows = [json.dumps({"text": text}, ensure_ascii=False) for text in [*texts, " \n\t", ""]]
    (folder / "notas.jsonl").write_text("\n".join(rows), encoding="utf-8")


@pytest.mark.parametrize("path", ["notas.txt", "notas.jsonl"])
def test_sentences_of_a_text_are_documents_held_out_together(stage: Stage, path: str) -> None:
    texts = [[f"La Dra. Ñíguez vio al paciente {i}, p. ej. el lunes.", f"Pautó {i},5 mg/dl."] for i in range(40)]
    write(stage.folder, [" ".join([*text, "No refiere fiebre."]) for text in texts])
    report = stage.run(path=path, documents="sentence")
    train, held_out = stage.parts()
    assert sorted(train + held_out) == sorted([*chain(*texts), "No refiere fiebre."])
    assert report.counts["duplicate documents"] == 39  # "No refiere fiebre."
    assert report.counts.get("rows without text", 0) == (2 if path == "notas.jsonl" else 0)
    assert 8 <= sum(first in held_out for first, _ in texts) <= 24  # 40 % of 40, give or take 2.6 deviations
    assert all((first in held_out) == (second in held_out) for first, second in texts)


def test_units_of_a_text_file_differ_and_a_table_row_stays_whole(stage: Stage) -> None:
    write(stage.folder, NOTES)
    documents = {}
    for unit in ("paragraph", "line", "sentence"):
        stage.run(path="notas.txt", documents=unit)
        documents[unit] = sorted(chain(*stage.parts()))
    assert documents["paragraph"] == documents["line"] == sorted(NOTES) != documents["sentence"]
    assert stage.run(path="notas.txt", documents="line").counts["blank lines"] == 2 * (len(NOTES) - 1)
    stage.run(path="notas.jsonl")
    assert sorted(chain(*stage.parts())) == sorted(NOTES)


def test_sentences_need_a_language_with_rules(stage: Stage) -> None:
    write(stage.folder, NOTES)
    for language in (None, "any"):
        with pytest.raises(ValueError, match="needs the text's `language`"):
            CorpusConfig(path="notas.txt", documents="sentence", language=language)
    with pytest.raises(DataError, match=r"no rules for sentences in 'eu'\n.* es, "):
        stage.run(path="notas.txt", documents="sentence", language="eu")


def test_test_item_of_two_sentences_is_found_in_a_corpus_of_sentences(stage: Stage) -> None:
    from quilate.data.tables import SourceConfig
    from quilate.phases.inputs import TASK, LabelledSources, TaskStageConfig
    from quilate.tasks.classification import ClassificationConfig
    from quilate.tasks.kinds import load_task
    from quilate.tasks.splits import SplitConfig

    rows = [json.dumps({"texto": f"Consulta {i}. {s}", "tema": "ab"[i % 2]}) for i, s in enumerate(SENTENCES * 3)]
    (stage.folder / "filas.jsonl").write_text("\n".join(rows), encoding="utf-8")
    task = ClassificationConfig(name="t", text="texto", label="tema", split=SplitConfig(train=12, dev=4, test=8))
    sources = LabelledSources(all=SourceConfig(path="filas.jsonl"))
    context = StageContext(
        TaskStageConfig(task=task, sources=sources), {}, stage.folder, 0, stage.folder,
        lambda _: None, lambda _: None, StopRequest(),
    )  # fmt: skip
    TASK.run(context)
    item = load_task(stage.folder / "task").test[0].text
    write(stage.folder, [*(note[::-1] for note in NOTES), item])
    for unit in ("paragraph", "sentence"):
        with pytest.raises(GateError, match="1 of 8 test items"):
            stage.run(path="notas.txt", documents=unit)
        report = stage.run(path="notas.txt", documents=unit, drop_leaks=True)
        train, held_out = stage.parts()
        assert report.counts["documents that hold test items"] == {"paragraph": 1, "sentence": 2}[unit]
        assert not any(part in item for part in train + held_out)
    (stage.folder / "otra").mkdir()
    (stage.folder / "task").rename(stage.folder / "otra" / "task")  # now a further task of the recipe
    with pytest.raises(GateError, match="1 of 8 test items"):
        stage.run(path="notas.txt")


def test_another_language_is_warned_of_with_its_share(stage: Stage) -> None:
    english = [f"{ENGLISH} Case {i}." for i in range(len(NOTES))]
    write(stage.folder, NOTES + english)
    report = stage.run(path="notas.txt")
    found = report.facts["language"]
    share = sum(map(len, english)) / sum(len(text.encode()) for text in NOTES + english)
    assert found["declared"] == "es"
    assert found["documents_judged"] == len(NOTES) + len(english)
    assert found["other_languages"] == {"en": found["other_share"]} == {"en": pytest.approx(share, abs=1e-4)}
    (warning,) = stage.warnings()
    assert f"{share:.1%} of notas.txt is not in 'es' (en {share:.1%}; " in warning

    stage.run(path="notas.txt", language="en")
    assert "is not in 'en' (es " in stage.warnings()[0]
    write(stage.folder, NOTES)
    assert stage.run(path="notas.txt").facts["language"]["other_share"] == 0
    assert stage.warnings() == []


def test_a_little_of_another_language_is_not_warned_of_but_kept_as_a_fact(stage: Stage) -> None:
    write(stage.folder, [f"{note} Visita {i}." for i in range(4) for note in NOTES] + [ENGLISH])
    report = stage.run(path="notas.txt")
    assert 0 < report.facts["language"]["other_share"] < 0.05
    assert stage.warnings() == []


@pytest.mark.parametrize("language", [None, "any"])
def test_language_is_not_checked_when_any_is_allowed(stage: Stage, language: str | None) -> None:
    write(stage.folder, [*NOTES, *(f"{ENGLISH} {i}" for i in range(20))])
    assert stage.run(path="notas.txt", language=language).facts["language"] == {"declared": None}
    assert stage.warnings() == []


def test_short_documents_are_counted_and_a_missing_identifier_is_said(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(stage.folder, [*NOTES, "Alta.", "Sin fiebre."])
    report = stage.run(path="notas.txt")
    assert report.counts["documents of under 60 characters, their language not checked"] == 2
    monkeypatch.setitem(sys.modules, "py3langid.langid", None)  # as if it were not installed
    facts = stage.run(path="notas.txt").facts
    assert "py3langid is not installed" in facts["language"]["not_checked"]
    assert "was not checked: py3langid is not installed" in stage.warnings()[0]
    assert facts["train_documents"] > 0


def test_a_corpus_that_is_only_measured_with(stage: Stage) -> None:
    write(stage.folder, NOTES)
    settings = CorpusStageConfig(corpus=CorpusConfig(path="notas.txt", held_out=1, max_documents=3))
    report = CORPUS.run(
        StageContext(settings, {}, stage.folder, 0, stage.folder, lambda _: None, stage.notes.append, StopRequest())
    )
    assert stage.parts() == ([], NOTES[:3])
    assert report.counts["documents beyond max_documents"] == len(NOTES) - 3
    assert report.facts["source"]["path"] == "notas.txt"
