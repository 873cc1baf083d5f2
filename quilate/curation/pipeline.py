"""From raw sources to a clean corpus, in passes over files on disk.

1. Every file goes through the rules that look at one document alone, and leaves a shard: its surviving documents, their
   hashes, and its numbers. A finished shard is not made again, so a killed curation goes on with the next file.
2. The hashes of all documents together say which are near-duplicates, then which passages stand elsewhere.
3. The survivors are cut, held against the test items, cleared of personal data, and written.

Text is never held in memory but for the document at hand; of every surviving document 128 bytes of hashes are, and of
its passages one byte a token. Disk holds the shards and 16 bytes a token, until it is done.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quilate import faults
from quilate.curation.config import CurateConfig
from quilate.curation.decontaminate import HeldOutItems
from quilate.curation.documents import Refused
from quilate.curation.extraction import Extractor
from quilate.curation.filtering import DocumentRules, count
from quilate.curation.hashing import hash_of
from quilate.curation.minhash import MinHasher, first_of_each_group
from quilate.curation.personal import Recognizer, Redactor
from quilate.curation.shards import rows, writing
from quilate.curation.sources import Place, files_of, read
from quilate.curation.substrings import RepeatedRuns, cut
from quilate.curation.tally import STEPS, Tally
from quilate.errors import DataError, explained_os_errors
from quilate.files import make_folder, read_json, write_bytes, write_json, write_jsonl

OUTPUT = "documents.jsonl.zst"
_LISTED = 1_000  # set-aside records that are named of one file; all are counted


@dataclass(frozen=True)
class Watch:
    """What a long pass tells and asks: `progress(done, total, unit)`; `check` raises when somebody wants it to stop."""

    progress: Callable[[int, int, str], None]
    check: Callable[[], None]


@dataclass(frozen=True)
class _Shard:
    """What is left of one file. `hashes` has a row a document: id, address (0 for none), then the bands."""

    folder: Path

    @property
    def documents(self) -> Path:
        return self.folder / "documents.jsonl.zst"

    def tally(self) -> Tally:
        return Tally.from_json(read_json(self.folder / "tally.json"))

    def hashes(self) -> NDArray[np.uint64]:
        result: NDArray[np.uint64] = np.load(self.folder / "hashes.npy", allow_pickle=False)
        return result


def curate(
    config: CurateConfig,
    *,
    base: Path,
    folder: Path,
    items: Iterable[str],
    watch: Watch,
    recognizers: Sequence[Recognizer] = (),
) -> Tally:
    """Curate the sources into `folder/documents.jsonl.zst`; also writes `quarantine.jsonl` and `examples.json` there.

    Args:
        base: the folder that relative paths start from.
        items: texts that no document may hold.
        recognizers: further recognizers of personal data.

    Raises:
        DataError: a source is missing, or nothing is left; the message names the rule that dropped most.
        MachineError: the disk is full, or a package is missing.
    """
    with explained_os_errors(folder, "curate"):
        work = make_folder(folder / "checkpoints")
        shards = _filter_files(config, base, work, watch)
        tally = Tally()
        for shard in shards:
            tally.add(shard.tally())
        kept = _without_duplicates(config, shards, tally)
        repeated = _repeated(config, shards, kept, work, watch)
        last = _Last(config, HeldOutItems(items), recognizers, DocumentRules(config, base))
        last.write(folder / OUTPUT, _documents(shards), kept, repeated, tally, watch)
        _refuse_empty(tally)
        refused = [row for shard in shards for row in read_json(shard.folder / "refused.json")]
        write_jsonl(folder / "quarantine.jsonl", refused)
        write_json(folder / "examples.json", tally.examples)
        shutil.rmtree(work)
    return tally


def _filter_files(config: CurateConfig, base: Path, work: Path, watch: Watch) -> list[_Shard]:
    listed = [
        (name, root, path)
        for name, source in config.sources.items()
        for root, paths in [files_of(source, base)]
        for path in paths
    ]
    shards: list[_Shard] = []
    rules: DocumentRules | None = None
    with Extractor(config.limits) as extractor:
        for number, (name, root, path) in enumerate(listed):
            shard = _Shard(work / f"{number:06d}")
            shards.append(shard)
            if not (shard.folder / "tally.json").exists():  # written last
                rules = rules or DocumentRules(config, base)
                place = Place(name, str(path.relative_to(root)), config.sources[name], config.limits)
                _filter_file(path, place, shard, rules, extractor, config, watch)
                faults.at("curate.file")
            watch.progress(number + 1, len(listed), "files")
    return shards


def _filter_file(
    path: Path,
    place: Place,
    shard: _Shard,
    rules: DocumentRules,
    extractor: Extractor,
    config: CurateConfig,
    watch: Watch,
) -> None:
    make_folder(shard.folder)
    tally = Tally()
    tally.source(place.source)
    refused: list[dict[str, str]] = []
    hashes: list[NDArray[np.uint64]] = []
    hasher = MinHasher(config.near_duplicates) if config.near_duplicates is not None else None
    with writing(shard.documents) as write:
        for item in read(path, place):
            watch.check()
            if isinstance(item, Refused):
                tally.refused[item.reason] += 1
                refused.append({"source": place.source, "place": item.place, "reason": item.reason})
                continue
            before = tally.refused.copy()
            document = rules.pass_through(item, place.source, extractor, tally)
            refused += [{"source": place.source, "place": item.place, "reason": r} for r in (tally.refused - before)]
            if document is None:
                continue
            write(id=document.id, text=document.text, source=document.source, url=document.url)
            own = [hash_of(document.id), hash_of(document.url) if document.url else 0]
            bands = hasher.bands(document.text) if hasher is not None else np.empty(0, np.uint64)
            hashes.append(np.concatenate([np.array(own, np.uint64), bands]))
    tally.encodings.update(place.encodings)
    width = 2 + (config.near_duplicates.bands if config.near_duplicates is not None else 0)
    _save(shard.folder / "hashes.npy", np.array(hashes, np.uint64).reshape(-1, width))
    write_json(shard.folder / "refused.json", refused[:_LISTED])
    write_json(shard.folder / "tally.json", tally.as_json())


def _save(path: Path, array: NDArray[Any]) -> None:
    from io import BytesIO

    content = BytesIO()
    np.save(content, array, allow_pickle=False)
    write_bytes(path, content.getvalue())


def _documents(shards: Sequence[_Shard]) -> Iterator[dict[str, Any]]:
    for shard in shards:
        yield from rows(shard.documents)


def _without_duplicates(config: CurateConfig, shards: Sequence[_Shard], tally: Tally) -> NDArray[np.bool_]:
    """Which documents stay when an id, an address or a near-duplicate has been seen; counts the others."""
    hashes = np.concatenate([shard.hashes() for shard in shards])
    kept = np.ones(len(hashes), np.bool_)
    rules = np.full(len(hashes), "", dtype="U24")
    _drop_later(hashes[:, 0], kept, rules, "duplicate id")
    if config.urls is not None and config.urls.unique:
        with_address = kept & (hashes[:, 1] != 0)
        kept &= ~with_address
        _drop_later(hashes[:, 1], with_address, rules, "address seen before")
        kept |= with_address
    if config.near_duplicates is not None:
        alive = np.flatnonzero(kept)
        first = first_of_each_group(hashes[alive, 2:])
        later = alive[first != np.arange(len(alive))]
        kept[later], rules[later] = False, "near-duplicate"
    for rule, document in zip(rules.tolist(), _documents(shards), strict=True):
        size = len(document["text"].encode())
        if rule == "duplicate id":
            tally.refused[rule] += 1
        count(tally, "near_duplicates", size, rule or None, size)
    return kept


def _drop_later(hashes: NDArray[np.uint64], kept: NDArray[np.bool_], rules: NDArray[np.str_], rule: str) -> None:
    """Of equal hashes among the kept, keep the first."""
    alive = np.flatnonzero(kept)
    _, first = np.unique(hashes[alive], return_index=True)
    later = np.delete(alive, first)
    kept[later], rules[later] = False, rule


def _repeated(
    config: CurateConfig, shards: Sequence[_Shard], kept: NDArray[np.bool_], work: Path, watch: Watch
) -> NDArray[np.bool_] | None:
    """For every token of the kept documents, one after another, whether the run that begins there occurred before."""
    if config.substrings is None:
        return None
    shutil.rmtree(work / "runs", ignore_errors=True)  # of a killed run
    index = RepeatedRuns(work / "runs", config.substrings.tokens)
    for number, (document, stays) in enumerate(zip(_documents(shards), kept.tolist(), strict=True), start=1):
        watch.check()
        if stays:
            index.add(document["text"])
        watch.progress(number, len(kept), "documents compared")
    return index.repeated()


class _Last:
    """The last pass: cut, decontaminate, redact, write."""

    def __init__(
        self, config: CurateConfig, items: HeldOutItems, recognizers: Sequence[Recognizer], rules: DocumentRules
    ) -> None:
        self._config = config
        self._items = items
        self._rules = rules
        personal = config.personal_data
        self._redactor = Redactor(personal, recognizers) if personal is not None else None

    def write(
        self,
        path: Path,
        documents: Iterator[dict[str, Any]],
        kept: NDArray[np.bool_],
        repeated: NDArray[np.bool_] | None,
        tally: Tally,
        watch: Watch,
    ) -> None:
        """Write the documents that stay."""
        position = 0
        with writing(path) as write:
            for number, (row, stays) in enumerate(zip(documents, kept.tolist(), strict=True), start=1):
                watch.check()
                watch.progress(number, len(kept), "documents")
                if not stays:
                    continue
                text: str | None = row["text"]
                if repeated is not None:
                    text, position = self._cut(row["text"], repeated, position, tally)
                text = self._clean(text, tally) if text is not None else None
                if text is not None:
                    faults.at("curate.write")
                    tally.source(row["source"]).leave(len(text.encode()))
                    write(**(row | {"text": text}))

    def _cut(self, text: str, repeated: NDArray[np.bool_], position: int, tally: Tally) -> tuple[str | None, int]:
        from quilate.curation.words import tokens

        config = self._config.substrings
        assert config is not None
        end = position + len(tokens(text))
        left, passages = cut(text, repeated[position:end], config.tokens)
        tally.steps["substrings"].changed["passages cut"] += passages
        tally.steps["substrings"].changed["documents cut"] += passages > 0
        rule = "too little left" if passages and len(left) < config.min_characters else None
        if rule is not None:
            self._rules.keep_example(tally, f"substrings: {rule}", text)
        goes_on = count(tally, "substrings", len(text.encode()), rule, len(left.encode()))
        return (left if goes_on else None), end

    def _clean(self, text: str, tally: Tally) -> str | None:
        size = len(text.encode())
        if self._config.decontaminate is not None:
            rule = self._items.broken(text)
            if not count(tally, "decontaminate", size, rule, size):
                return None
        if self._redactor is None:
            return text
        redacted = self._redactor.redact(text)
        tally.steps["personal_data"].changed.update(redacted.found)
        goes_on = count(tally, "personal_data", size, redacted.drop, len(redacted.text.encode()))
        return redacted.text if goes_on else None


def _refuse_empty(tally: Tally) -> None:
    if sum(source.documents_out for source in tally.sources.values()):
        return
    read_in = sum(source.documents_in for source in tally.sources.values())
    dropped = [(n, name, rule) for name in STEPS for rule, n in tally.steps[name].dropped.items()]
    if not dropped:
        reasons = ", ".join(f"{n} {reason}" for reason, n in tally.refused.most_common(3)) or "the files are empty"
        raise DataError(f"no document could be read: {reasons}", hint="check `format`, `text` and the files themselves")
    most, name, rule = max(dropped)
    raise DataError(
        f"nothing is left of {read_in:,} documents: '{rule}' of step {name} dropped most ({most:,})",
        hint=f"loosen `{name}`, or set it to null to leave the step out",
    )
