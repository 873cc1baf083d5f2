"""The whole of it: each step at work on a small corpus, the card, what a kill leaves, and an empty result."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from curation_corpus import ENGLISH, ITEM, NOTICE, QUIET, Made, config_of, write_corpus

from quilate import faults
from quilate.curation.card import make_card, render_card
from quilate.curation.config import CurateConfig
from quilate.curation.pipeline import OUTPUT, Watch, curate
from quilate.curation.shards import rows
from quilate.curation.tally import STEPS, Tally
from quilate.errors import DataError, Interrupted, MachineError
from quilate.files import sha256_of_file


def run(folder: Path, out: Path, config: CurateConfig | None = None) -> tuple[Tally, list[dict[str, Any]]]:
    out.mkdir(exist_ok=True)
    tally = curate(config or config_of(), base=folder, folder=out, items=[ITEM], watch=QUIET)
    return tally, list(rows(out / OUTPUT))


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory, texts: list[str], made: Made) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    write_corpus(folder, texts, made)
    return folder


def test_every_step_drops_what_it_is_for_and_nothing_else(
    corpus: Path, tmp_path: Path, texts: list[str], made: Made
) -> None:
    tally, kept = run(corpus, tmp_path / "out")
    assert {name: dict(tally.steps[name].dropped) for name in STEPS if tally.steps[name].dropped} == {
        "urls": {"banned word": 1},
        "language": {"language en": 1},
        "repetition": {"duplicate lines": 1},
        "quality": {"too few words": 1},
        "lines": {"too many lines removed": 1},
        "near_duplicates": {"near-duplicate": 2, "duplicate id": 1, "address seen before": 1},
        "decontaminate": {"item": 1},
    }
    by_id = {row["id"]: row["text"] for row in kept}
    assert {f"web/g{i}" for i in range(12)} <= set(by_id)
    assert all(by_id[f"web/g{i}"] == text for i, text in enumerate(texts))
    assert made(NOTICE) in by_id["notas/notas.txt:1"]  # it came first and keeps the notice
    assert made(22).startswith(by_id["web/s"]) and tally.steps["substrings"].changed["passages cut"] == 1
    assert by_id["web/p"].endswith("Llame al [PHONE] o a [EMAIL].")
    assert dict(tally.steps["personal_data"].changed) == {"phone": 1, "email": 1}
    assert dict(tally.refused) == {"not JSON": 1, "duplicate id": 1}
    quarantined = [json.loads(line) for line in (tmp_path / "out" / "quarantine.jsonl").read_text().splitlines()]
    assert quarantined == [{"source": "web", "place": "a.jsonl:13", "reason": "not JSON"}]


def test_numbers_add_up_from_step_to_step(corpus: Path, tmp_path: Path) -> None:
    tally, kept = run(corpus, tmp_path / "out")
    for name in STEPS:
        step = tally.steps[name]
        assert step.documents_in == step.documents_out + sum(step.dropped.values()), name
    for before, after in pairwise(STEPS):
        assert tally.steps[before].documents_out == tally.steps[after].documents_in, after
        assert tally.steps[before].bytes_out == tally.steps[after].bytes_in, after
    assert tally.steps["personal_data"].bytes_out == sum(len(row["text"].encode()) for row in kept)
    assert sum(s.documents_out for s in tally.sources.values()) == len(kept)


def test_steps_can_be_left_out(corpus: Path, tmp_path: Path) -> None:
    off = dict.fromkeys(
        [
            "urls",
            "language",
            "repetition",
            "quality",
            "lines",
            "near_duplicates",
            "substrings",
            "decontaminate",
            "personal_data",
        ]
    )
    tally, kept = run(corpus, tmp_path / "out", config_of(**off))
    assert len(kept) == 25 - 1  # the second document of one id
    assert (
        sum(step.documents_in for name, step in tally.steps.items() if name in off and name != "near_duplicates") == 0
    )


def test_the_card_has_every_number_and_no_text(corpus: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    tally, kept = run(corpus, out)
    card = make_card(config_of(), tally, base=corpus, folder=out)
    json.dumps(card, allow_nan=False)
    assert card["output"]["documents"] == len(kept) and card["documents_in"] == 25
    assert {s["name"]: s["licence"] for s in card["sources"]} == {"notas": "CC BY 4.0", "web": None}
    assert card["sources"][0]["sha256"] == sha256_of_file(corpus / "notas.txt")
    examples = json.loads((out / "examples.json").read_text(encoding="utf-8"))
    for lang, word in (("en", "Data card"), ("es", "Ficha de datos")):
        page = render_card(card, lang=lang)
        assert word in page and "http" not in page.replace("http-equiv", "") and "<script" not in page
        for secret in ("948 29 65 00", "ana@casa", "Vibrio", "cefalea", "admitted"):
            assert secret not in page
    assert "admitted" in render_card(card, examples)
    hostile = card | {"sources": [card["sources"][0] | {"name": "<script>alert(1)</script>"}]}
    assert "<script>alert" not in render_card(hostile)


def test_examples_hold_no_personal_data(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.txt").write_text("Llame al 948 29 65 00.", encoding="utf-8")
    (tmp_path / "in" / "b.txt").write_text(
        "La niña tose de noche, y el padre la cuida en la casa de los abuelos. " * 6, encoding="utf-8"
    )
    repetition_off = CurateConfig.model_validate(
        {"sources": {"x": {"path": "in"}}, "repetition": None, "language": None}
    )
    curate(repetition_off, base=tmp_path, folder=tmp_path, items=[], watch=QUIET)
    examples = json.loads((tmp_path / "examples.json").read_text(encoding="utf-8"))
    assert examples == {"quality: too few words": ["Llame al [PHONE]."]}


def test_the_same_corpus_gives_the_same_bytes(corpus: Path, tmp_path: Path) -> None:
    run(corpus, tmp_path / "one")
    run(corpus, tmp_path / "two")
    assert (tmp_path / "one" / OUTPUT).read_bytes() == (tmp_path / "two" / OUTPUT).read_bytes()


def test_a_long_file_shows_how_far_it_is_read(tmp_path: Path, made: Made) -> None:
    lines = [json.dumps({"text": made(n)}, ensure_ascii=False) for n in range(300)]
    (tmp_path / "a.jsonl").write_text("\n".join(lines), encoding="utf-8")
    (tmp_path / "b.txt").write_text(made(301), encoding="utf-8")
    sources = {"x": {"path": "a.jsonl"}, "y": {"path": "b.txt"}}
    seen: list[tuple[int, int, str]] = []
    watch = Watch(lambda *told: seen.append(told), lambda: None)
    curate(config_of(sources=sources), base=tmp_path, folder=tmp_path, items=[], watch=watch)
    read = [(done, total) for done, total, unit in seen if unit == "kB read"]
    kilobytes = -(-sum((tmp_path / name).stat().st_size for name in ("a.jsonl", "b.txt")) // 1000)
    assert len({done for done, _ in read}) >= 4  # while the first file is read
    assert read == sorted(read) and read[-1] == (kilobytes, kilobytes)


KILLED = """
import sys
from pathlib import Path
from quilate.config import validate
from quilate.curation.config import CurateConfig
from quilate.curation.pipeline import Watch, curate
import json
config = validate(CurateConfig, json.loads(sys.argv[1]), source="test")
watch = Watch(lambda *_: None, lambda: None)
curate(config, base=Path(sys.argv[2]), folder=Path(sys.argv[3]), items=[sys.argv[4]], watch=watch)
"""


@pytest.mark.parametrize("point", ["curate.file:1", "curate.write:5"])
def test_a_killed_curation_goes_on_and_ends_the_same(corpus: Path, tmp_path: Path, point: str) -> None:
    run(corpus, tmp_path / "whole")
    out = tmp_path / "killed"
    out.mkdir()
    arguments = [sys.executable, "-c", KILLED, json.dumps(config_of().as_json()), str(corpus), str(out), ITEM]
    killed = subprocess.run(arguments, env=os.environ | {"QUILATE_FAULTS": f"{point}:kill"}, check=False)
    assert killed.returncode == -signal.SIGKILL
    assert not (out / OUTPUT).exists()
    finished = {path: path.stat().st_mtime_ns for path in (out / "checkpoints").glob("*/tally.json")}
    assert len(finished) == (1 if point.startswith("curate.file") else 2)
    seen: list[int] = []
    faults.arm("curate.file", lambda: seen.append(1))
    run(corpus, out)
    assert len(seen) == 2 - len(finished)  # finished files are not filtered again
    assert (out / OUTPUT).read_bytes() == (tmp_path / "whole" / OUTPUT).read_bytes()
    assert not (out / "checkpoints").exists()


def test_a_request_to_stop_and_a_full_disk(corpus: Path, tmp_path: Path) -> None:
    def stop() -> None:
        raise Interrupted("stopped by SIGTERM")

    with pytest.raises(Interrupted):
        curate(config_of(), base=corpus, folder=tmp_path, items=[], watch=Watch(lambda *_: None, stop))
    faults.arm("curate.write", "disk-full", nth=3)
    with pytest.raises(MachineError, match="disk is full"):
        run(corpus, tmp_path)
    assert not (tmp_path / OUTPUT).exists() and not list(tmp_path.glob("*.tmp"))
    run(corpus, tmp_path)


def test_an_empty_result_names_the_rule_that_dropped_most(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("\n".join([*[f"Corto {i}." for i in range(5)], ENGLISH]), encoding="utf-8")
    config = CurateConfig.model_validate({"sources": {"x": {"path": "a.txt", "documents": "line"}}, "language": None})
    with pytest.raises(DataError, match=r"nothing is left of 6 documents: 'too few words' of step quality .*\(5\)"):
        curate(config, base=tmp_path, folder=tmp_path / "out", items=[], watch=QUIET)
    (tmp_path / "b.jsonl").write_text("{roto\n" * 3, encoding="utf-8")
    config = CurateConfig.model_validate({"sources": {"x": {"path": "b.jsonl"}}})
    with pytest.raises(DataError, match="no document could be read: 3 not JSON"):
        curate(config, base=tmp_path, folder=tmp_path / "out2", items=[], watch=QUIET)
