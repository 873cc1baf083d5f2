"""How well do libraries find sentences in Spanish clinical text? `python benchmarks/sentences.py CASES.jsonl.gz`

The gold standard, `sentences_gold.json`, holds offsets only. CASES is a table with the columns `id` and `text` that has
the documents of CodiEsp and CANTEMIST it names; a document that is not the annotated one, to the byte, stops the run.
The set `comparison` chose the library, all as they come: on the whole text, and line by line. quilate's own rules were
then made on other documents, and the set `confirmation` was annotated before any program had been run on it. It has
been scored twice: the rule for units came after the first time, from other documents. (By mistake six of its twelve
documents were among the 3,000 in which sentencex's boundaries were counted.)

A boundary is the place after a sentence's last character; whitespace does not count. `inside lines` leaves out the
boundaries at line ends, which cutting at line ends finds by itself. The interval of F1 is over resampled documents.
Candidates: `pip install pysbd syntok choppa-srx simplemma`; one that is missing is said to be. Prints a table for each
set and, last, one JSON line.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np

from quilate.data.sentences import sentences
from quilate.data.tables import SourceConfig, read_table
from quilate.rng import numpy_stream

GOLD = Path(__file__).with_name("sentences_gold.json")
Splitter = Callable[[str], list[str]]


@dataclass(frozen=True)
class Document:
    """`start` to the last of `ends` is annotated: there, `ends` are all the boundaries."""

    text: str
    start: int
    ends: frozenset[int]

    def inside_lines(self, ends: set[int] | frozenset[int]) -> set[int]:
        return {end for end in ends if not re.match(r"[^\S\n]*(\n|\Z)", self.text[end:])}


@dataclass(frozen=True)
class Result:
    """Changed: documents in which something else than whitespace was lost or altered (their offsets are unsure)."""

    splitter: str
    precision: float
    recall: float
    f1: float
    f1_interval: tuple[float, float]
    f1_inside_lines: float
    changed: int
    sentences_a_second: int


def pysbd() -> Splitter:
    import pysbd

    return pysbd.Segmenter(language="es", clean=False).segment


def sentencex() -> Splitter:
    import sentencex

    return lambda text: sentencex.segment("es", text)


def syntok() -> Splitter:
    from syntok import segmenter

    return lambda text: [
        "".join(token.spacing + token.value for token in sentence)
        for paragraph in segmenter.process(text)
        for sentence in paragraph
    ]


def choppa() -> Splitter:
    import choppa

    rules = Path(choppa.__file__).parent / "data" / "srx" / "languagetool_segment.srx"
    document = choppa.SrxDocument(ruleset=rules)
    return lambda text: list(choppa.SrxTextIterator(document, "es_one", text))


def simplemma() -> Splitter:
    import simplemma

    return lambda text: list(simplemma.split_sentences(text, lang="es"))


CANDIDATES = {
    "pysbd": pysbd, "sentencex": sentencex, "syntok": syntok, "choppa-srx": choppa, "simplemma": simplemma,
}  # fmt: skip


def by_line(split: Splitter) -> Splitter:
    return lambda text: [sentence for line in text.split("\n") if line.strip() for sentence in split(line)]


def splitters() -> dict[str, Splitter]:
    """The floor (a regular expression), every installed candidate in two ways, and quilate's."""
    ways: dict[str, Splitter] = {"regex": lambda text: re.split(r"(?<=[.?!…])\s+", text)}
    for package, load in CANDIDATES.items():
        try:
            ways[f"{package} {version(package)}"] = load()
        except PackageNotFoundError:
            print(f"{package}: not installed, not measured")
    ways |= {f"{name}, by line": by_line(split) for name, split in ways.items()}
    return dict(sorted(ways.items())) | {"quilate": lambda text: sentences(text, "es")}


def read_gold(cases: Path) -> dict[str, list[Document]]:
    texts = {row["id"]: row["text"] for row in read_table(SourceConfig(path=str(cases.resolve())), base=Path()).rows}
    sets: dict[str, list[Document]] = {}
    for name, entries in json.loads(GOLD.read_text(encoding="utf-8"))["sets"].items():
        for entry in entries:
            text = texts.get(entry["id"], "")
            if hashlib.sha256(text.encode()).hexdigest() != entry["sha256"]:
                sys.exit(f"{cases}: document {entry['id']} is missing, or is not the text that was annotated")
            sets.setdefault(name, []).append(Document(text, entry["start"], frozenset(entry["ends"])))
    return sets


def ends_of(text: str, found: list[str]) -> tuple[set[int], bool]:
    """Offsets after each sentence, aligned by counting characters that are no whitespace; and whether all are there."""
    places = [index for index, character in enumerate(text) if not character.isspace()]
    ends, seen = set(), 0
    for sentence in found:
        seen += len("".join(sentence.split()))
        if seen:
            ends.add(places[min(seen, len(places)) - 1] + 1)
    return ends, "".join("".join(found).split()) == "".join(text.split())


def f1(counts: np.ndarray) -> np.ndarray:
    """From (..., [found and right, found, right])."""
    both, found, right = np.moveaxis(counts, -1, 0)
    return 2 * both / (found + right)


def measure(name: str, split: Splitter, documents: list[Document]) -> Result:
    began = time.perf_counter()
    answers = [split(document.text) for document in documents]
    seconds = time.perf_counter() - began
    everywhere, inside, changed = [], [], 0
    for document, answer in zip(documents, answers, strict=True):
        ends, whole = ends_of(document.text, answer)
        changed += not whole
        ends = {end for end in ends if document.start < end <= max(document.ends)}
        everywhere.append((len(ends & document.ends), len(ends), len(document.ends)))
        ends, right = document.inside_lines(ends), document.inside_lines(document.ends)
        inside.append((len(ends & right), len(ends), len(right)))
    counts = np.array(everywhere)
    draws = numpy_stream(0, "documents").integers(len(documents), size=(10_000, len(documents)))
    low, high = np.percentile(f1(counts[draws].sum(axis=1)), [2.5, 97.5])
    both, found, right_ones = counts.sum(axis=0)
    return Result(
        name, float(both / found), float(both / right_ones), float(f1(counts.sum(axis=0))), (float(low), float(high)),
        float(f1(np.array(inside).sum(axis=0))), changed, round(sum(map(len, answers)) / seconds),
    )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", type=Path, help="a table with the columns `id` and `text`")
    sets = read_gold(parser.parse_args().cases)
    ways = splitters()
    results: dict[str, list[Result]] = {}
    for name, documents in sets.items():
        inner = sum(len(document.inside_lines(document.ends)) for document in documents)
        total = sum(len(document.ends) for document in documents)
        print(f"\n{name}: {total} sentences of {len(documents)} documents, {inner} end inside a line")
        print("| splitter | precision | recall | F1 (95 %) | F1 inside lines | changed | sentences/s |")
        print("| --- | --- | --- | --- | --- | --- | --- |")
        results[name] = [measure(way, split, documents) for way, split in ways.items()]
        for r in results[name]:
            interval = f"{r.f1:.3f} ({r.f1_interval[0]:.3f} to {r.f1_interval[1]:.3f})"
            print(
                f"| {r.splitter} | {r.precision:.3f} | {r.recall:.3f} | {interval} | {r.f1_inside_lines:.3f} "
                f"| {r.changed} | {r.sentences_a_second:,} |"
            )
    print(json.dumps({"name": "sentences"} | {name: [asdict(r) for r in rows] for name, rows in results.items()}))


if __name__ == "__main__":
    main()
