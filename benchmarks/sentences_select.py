"""Which passages `sentences_gold.json` annotates: `python benchmarks/sentences_select.py CASES.jsonl.gz`

A fixed rule that over-represents hard cases. A passage is the longest run of whole lines of at most 1,000 characters
(and at least 400) from a line's start. For each kind of hard case in turn, rarest first, the passage with the most
hits is taken (three count as many), then the one with the most kinds, then by the digest of the document's id; a
document gives one passage. The set `comparison` has two a kind, `confirmation` one more, of other documents. Prints
the passages' places, not their texts.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from quilate.data.tables import SourceConfig, read_table

HARD = {
    "p. ej.": r"\bp\.\s?ej?\.|\bej\.|\bi\.\s?e\.|\be\.\s?g\.",
    "nº": r"\b[nN](?:\.?º|°|úm\.)\s?\d",
    "ellipsis": r"\.\.\.|…",
    "question": r"[¿?¡!]",
    "title": r"\b(?:Dr|Dra|Drs|Sr|Sra|Prof|D|Dª)\.\s",
    "initials": r"\b(?:[A-ZÑ]\.\s?){2,}",
    "ordinal": r"\b\d+\.[ªºo]",
    "abbreviation": r"\b(?:aprox|vs|etc|cf|[Ff]ig|pág|máx|mín|seg|núm|[Tt]to|gr|cc|min|h|hs|sg|ac|sp|spp|tab|comp"
    r"|dcha|izda|dx|resp|amp)\.",
    "no space": r"[a-záéíóú)]\.[A-ZÁÉÍÓÚ]",
    "quote": r"[\"«»“”]",
    "list": r"(?m)^\s*(?:\d+[.)\-]|[-–•*])\s?\S",
    "heading": r"(?m)^[^\n.?!:;]{3,60}$",
    "unit": r"\d,\d+\s?(?:mg|g|ml|mm|cm|kg|mEq|UI|µg|ng|mmol)\b",
}
PATTERNS = {name: re.compile(pattern) for name, pattern in HARD.items()}


def passages(text: str) -> Iterator[tuple[int, int]]:
    starts = [0, *(match.end() for match in re.finditer("\n", text))]
    ends = [*starts[1:], len(text)]
    for index, start in enumerate(starts):
        fitting = [end for end in ends[index:] if 400 <= end - start <= 1000]
        if fitting:
            yield start, fitting[-1]


def select(rows: list[dict[str, Any]], taken: set[str], *, a_kind: int) -> dict[str, tuple[str, int, int]]:
    """Document id -> the kind it was chosen for, start and end of the passage."""
    chosen: dict[str, tuple[str, int, int]] = {}
    for kind, pattern in PATTERNS.items():
        found = []
        for row in rows:
            name, text = row["id"], row["text"]
            if name in taken or name in chosen or not pattern.search(text):
                continue
            for start, end in passages(text):
                if hits := len(pattern.findall(text[start:end])):
                    kinds = sum(bool(other.search(text[start:end])) for other in PATTERNS.values())
                    digest = hashlib.sha256(name.encode()).hexdigest()
                    found.append((-min(hits, 3), -kinds, digest, start, end, name))
        new: dict[str, tuple[str, int, int]] = {}
        for *_, start, end, name in sorted(found):
            if len(new) < a_kind:
                new.setdefault(name, (kind, start, end))
        chosen |= new
    return chosen


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", type=Path, help="a table with the columns `id` and `text`")
    source = SourceConfig(path=str(parser.parse_args().cases.resolve()))
    rows = read_table(source, base=Path()).rows
    comparison = select(rows, set(), a_kind=2)
    confirmation = select(rows, set(comparison), a_kind=1)
    print(json.dumps({"comparison": comparison, "confirmation": confirmation}, ensure_ascii=False, indent=1))


if __name__ == "__main__":
    main()
