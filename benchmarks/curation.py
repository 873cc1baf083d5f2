"""Raw text to clean text: `quilate curate` against a pipeline of `datasets`. `python -m benchmarks.curation`

Both sides judge the same documents by the same functions: language, repetition, quality, lines, near-duplicates and
personal data. What is compared is all that stands around them: reading, sharing the work, keeping what is between two
steps, and writing. The peer is written as its users write it, a `filter` or `map` for each step, and once with all
steps that look at one document alone in a single `map`; both on all cores. The texts that are kept must be the same.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterable
from functools import cache
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from benchmarks.harness import (
    Disagreement,
    Quantity,
    Result,
    Side,
    best_of,
    command_line,
    compare,
    finish,
    machine,
    parser,
    run_round,
    summarize,
)
from benchmarks.workloads import documents_of

SPEED = Quantity("curation speed", "MB/s", "higher")
QUICK_DOCUMENTS, GENERATED_DOCUMENTS = 60, 20_000


def config_of(corpus: str) -> Any:
    """As quilate has it, without the two steps that look for passages: `datasets` has nothing to do them with."""
    from quilate.curation.config import CurateConfig

    sources = {"cases": {"path": corpus, "format": "jsonl"}}
    return CurateConfig.model_validate({"sources": sources, "urls": None, "substrings": None, "decontaminate": None})


def quilate(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings: `processes` (None: one a core). A case has `corpus`."""
    from quilate.curation.pipeline import OUTPUT, Watch, curate
    from quilate.curation.shards import rows

    if settings["processes"] is not None:
        os.environ["OMP_NUM_THREADS"] = str(settings["processes"])
    answers = {}
    for case in settings["cases"]:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            began = time.perf_counter()
            curate(config_of(case["corpus"]), base=folder, folder=folder, items=[], watch=Watch(_silent, lambda: None))
            seconds = time.perf_counter() - began
            answers[case["name"]] = _measurement(case, seconds, (row["text"] for row in rows(folder / OUTPUT)))
    return answers


def _silent(done: int, total: int, unit: str) -> None: ...


@cache
def tools(corpus: str) -> SimpleNamespace:
    """What the rules need, made once in every process."""
    import numpy as np

    from quilate.curation.languages import Identifier
    from quilate.curation.minhash import MinHasher
    from quilate.curation.personal import Redactor

    config = config_of(corpus)
    return SimpleNamespace(
        config=config,
        stop_words=config.stop_words(),
        identifier=Identifier(config.language),
        hasher=MinHasher(config.near_duplicates),
        redactor=Redactor(config.personal_data),
        no_bands=np.zeros(config.near_duplicates.bands, np.uint64),  # a column keeps its type
    )


def normalized(row: dict[str, Any], corpus: str) -> dict[str, Any]:
    from quilate.curation.filtering import normalized as normal

    return {"text": normal(row["text"])}


def is_wanted_language(row: dict[str, Any], corpus: str) -> bool:
    return bool(tools(corpus).identifier.judge(row["text"])[1])


def does_not_repeat_itself(row: dict[str, Any], corpus: str) -> bool:
    from quilate.curation import gopher

    return gopher.repetition(row["text"], tools(corpus).config.repetition) is None


def is_running_text(row: dict[str, Any], corpus: str) -> bool:
    from quilate.curation import gopher

    return gopher.quality(row["text"], tools(corpus).config.quality, tools(corpus).stop_words) is None


def with_good_lines(row: dict[str, Any], corpus: str) -> dict[str, Any]:
    from quilate.curation.linewise import correct_lines

    return {"text": correct_lines(row["text"], tools(corpus).config.lines)[0] or ""}


def with_bands(row: dict[str, Any], corpus: str) -> dict[str, Any]:
    return {"bands": tools(corpus).hasher.bands(row["text"])}


def without_personal_data(row: dict[str, Any], corpus: str) -> dict[str, Any]:
    return {"text": tools(corpus).redactor.redact(row["text"]).text}


def all_at_once(row: dict[str, Any], corpus: str) -> dict[str, Any]:
    """Every step on one document; no text for one that is dropped."""
    row = normalized(row, corpus)
    if all(keeps(row, corpus) for keeps in (is_wanted_language, does_not_repeat_itself, is_running_text)):
        row = with_good_lines(row, corpus)
        if row["text"]:
            return row | with_bands(row, corpus)
    return {"text": "", "bands": tools(corpus).no_bands}


def pipeline(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings: `fused`. A case has `corpus`."""
    import numpy as np
    from datasets import disable_progress_bars, load_dataset

    from quilate.curation.minhash import first_of_each_group

    disable_progress_bars()
    cores = len(os.sched_getaffinity(0))
    answers = {}
    for case in settings["cases"]:
        more = {"num_proc": cores, "fn_kwargs": {"corpus": case["corpus"]}}
        with tempfile.TemporaryDirectory() as name:
            began = time.perf_counter()
            found = load_dataset("json", data_files=case["corpus"], split="train", cache_dir=name)
            if settings["fused"]:
                found = found.map(all_at_once, **more).filter(bool, input_columns="text", num_proc=cores)
            else:
                found = found.map(normalized, **more)
                for keeps in (is_wanted_language, does_not_repeat_itself, is_running_text):
                    found = found.filter(keeps, **more)
                found = found.map(with_good_lines, **more).filter(bool, input_columns="text", num_proc=cores)
                found = found.map(with_bands, **more)
            bands = np.array(found.with_format("numpy")["bands"][:], np.uint64)
            first = first_of_each_group(bands)
            found = found.select(np.flatnonzero(first == np.arange(len(first)))).remove_columns("bands")
            found = found.map(without_personal_data, **more)
            found.to_json(Path(name) / "out.jsonl", force_ascii=False)
            seconds = time.perf_counter() - began
            answers[case["name"]] = _measurement(case, seconds, found["text"])
    return answers


def _measurement(case: dict[str, Any], seconds: float, kept: Iterable[str]) -> dict[str, Any]:
    digest, number = hashlib.sha256(), 0
    for text in kept:
        digest.update(hashlib.sha256(text.encode()).digest())
        number += 1
    megabytes = Path(case["corpus"]).stat().st_size / 1e6
    facts = {"kept": number, "sha256": digest.hexdigest(), "seconds": round(seconds, 2)}
    return {"values": [megabytes / seconds], "facts": facts}


def write_corpus(path: Path, source: Path | None, most: int | None) -> int:
    """The texts of a file, or generated ones; returns how many."""
    rows = (json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in islice(documents_of(source), most))
    path.write_text("".join(rows), encoding="utf-8")
    with path.open(encoding="utf-8") as file:
        return sum(1 for _ in file)


def main() -> None:
    flags = parser(__doc__)
    flags.add_argument("--corpus", type=Path, help="a table with a column `text`, or plain text; by default generated")
    arguments = flags.parse_args()
    most = QUICK_DOCUMENTS if arguments.quick else GENERATED_DOCUMENTS if arguments.corpus is None else None
    with tempfile.TemporaryDirectory() as name:
        corpus = Path(name) / "corpus.jsonl"
        documents = write_corpus(corpus, arguments.corpus, most)
        case = {"name": f"{documents:,} documents, {corpus.stat().st_size / 1e6:.1f} MB", "corpus": str(corpus)}
        ours, peer = "benchmarks.curation:quilate", "benchmarks.curation:pipeline"
        sides = [
            Side("quilate", ours, {"processes": None}, stage=True, ours=True),
            Side("datasets, a step each", peer, {"fused": False}),
            Side("datasets, one map", peer, {"fused": True}),
        ]
        alone = Side("quilate, one process", ours, {"processes": 1}, stage=True)
        rounds = 1 if arguments.quick else arguments.rounds
        measured = [m for number in range(rounds) for m in run_round(number, [*sides, alone], [case])]
    if len({m.facts["sha256"] for m in measured}) != 1:
        raise Disagreement(f"the texts kept differ: { {m.side.name: m.facts for m in measured} }")
    ratios = compare(measured, SPEED)
    best = best_of([m for m in measured if m.side is not alone], SPEED, str(case["name"]))[0]
    result = Result(
        "curation", SPEED, next(r for r in ratios if r.against == best.name), summarize(measured), ratios,
        [f"all sides keep the same {measured[0].facts['kept']:,} texts"], machine([]), {}, command_line(),
    )  # fmt: skip
    finish(result, arguments)


if __name__ == "__main__":
    try:
        main()
    except Disagreement as error:
        sys.exit(f"not the same computation: {error}")
