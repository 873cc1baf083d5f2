"""What came in and what went out at every step, in numbers that can be added up and kept as JSON."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

STEPS = (
    "urls", "extraction", "language", "repetition", "quality", "lines", "near_duplicates", "substrings",
    "decontaminate", "personal_data",
)  # fmt: skip
EXAMPLES = 3  # kept of every rule


@dataclass
class Step:
    """Documents and bytes of text. Before extraction a page counts with its bytes as they came."""

    documents_in: int = 0
    bytes_in: int = 0
    documents_out: int = 0
    bytes_out: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    dropped_bytes: Counter[str] = field(default_factory=Counter)
    changed: Counter[str] = field(default_factory=Counter)

    def enter(self, size: int) -> None:
        self.documents_in += 1
        self.bytes_in += size

    def leave(self, size: int) -> None:
        self.documents_out += 1
        self.bytes_out += size

    def drop(self, rule: str, size: int) -> None:
        self.dropped[rule] += 1
        self.dropped_bytes[rule] += size

    def add(self, other: Step) -> None:
        for name, value in vars(other).items():
            if isinstance(value, Counter):
                getattr(self, name).update(value)
            else:
                setattr(self, name, getattr(self, name) + value)


@dataclass
class Tally:
    """One file's numbers, or those of all.

    `refused` counts what could not be read by reason, `encodings` lines that are not ASCII by encoding, `languages`
    the identified documents by language, `sources` what each source gave and has in the result.
    """

    steps: dict[str, Step] = field(default_factory=lambda: {name: Step() for name in STEPS})
    refused: Counter[str] = field(default_factory=Counter)
    encodings: Counter[str] = field(default_factory=Counter)
    languages: Counter[str] = field(default_factory=Counter)
    sources: dict[str, Step] = field(default_factory=dict)
    examples: dict[str, list[str]] = field(default_factory=dict)

    def source(self, name: str) -> Step:
        return self.sources.setdefault(name, Step())

    def add(self, other: Tally) -> None:
        for name, step in other.steps.items():
            self.steps[name].add(step)
        for name, step in other.sources.items():
            self.source(name).add(step)
        for counts, more in (
            (self.refused, other.refused),
            (self.encodings, other.encodings),
            (self.languages, other.languages),
        ):
            counts.update(more)
        for rule, texts in other.examples.items():
            self.examples[rule] = [*self.examples.get(rule, []), *texts][:EXAMPLES]

    def as_json(self) -> dict[str, Any]:
        return {
            "steps": {name: vars(step) for name, step in self.steps.items()},
            "refused": self.refused,
            "encodings": self.encodings,
            "languages": self.languages,
            "sources": {name: vars(step) for name, step in self.sources.items()},
            "examples": self.examples,
        }

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Tally:
        return cls(
            {name: _step(step) for name, step in value["steps"].items()},
            Counter(value["refused"]),
            Counter(value["encodings"]),
            Counter(value["languages"]),
            {name: _step(step) for name, step in value["sources"].items()},
            value["examples"],
        )


def _step(value: dict[str, Any]) -> Step:
    counted: dict[str, Any] = {name: Counter(v) if isinstance(v, dict) else v for name, v in value.items()}
    return Step(**counted)
