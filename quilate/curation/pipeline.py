"""From raw sources to a clean corpus, in passes over files on disk.

1. Every file goes through the rules that look at one document alone, and leaves a shard: its surviving documents, their
   hashes, and its numbers. A finished shard is not made again, so a killed curation goes on with the next file.
2. The hashes of all documents together say which are near-duplicates, then which passages stand elsewhere.
3. The survivors are cut, held against the test items, cleared of personal data, and written.

The first and the last are shared by as many processes as there are cores; what they leave does not depend on how many.
Text is never held in memory but for the documents at hand; of every surviving document 128 bytes of hashes are, and of
its passages one byte a token. Disk holds the shards and 16 bytes a token, until it is done.
"""

from __future__ import annotations

import shutil
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quilate import faults
from quilate.curation.config import CurateConfig
from quilate.curation.crew import Crew, usable_cores
from quilate.curation.decontaminate import HeldOutItems
from quilate.curation.documents import Raw, Refused
from quilate.curation.filtering import DocumentRules, count
from quilate.curation.judging import chunks, cleaning, hash_columns, judging
from quilate.curation.minhash import first_of_each_group
from quilate.curation.personal import Recognizer
from quilate.curation.shards import rows, writing
from quilate.curation.sources import Place, files_of, read
from quilate.curation.substrings import RepeatedRuns, cut
from quilate.curation.tally import STEPS, Tally
from quilate.errors import DataError, explained_os_errors
from quilate.files import make_folder, read_json, write_bytes, write_json, write_jsonl

OUTPUT = "documents.jsonl.zst"
SHARED_BYTES = 4_000_000  # guess: of less, other processes start for longer than they work
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
    size = sum(path.lstat().st_size for _, _, path in listed)

    def show(finished: int, here: int = 0) -> None:
        watch.progress(_kilobytes(min(finished + here, size)), _kilobytes(size), "kB read")

    finished = 0
    with Crew(partial(judging, config, base), _processes_for(size)) as crew:
        for number, (name, root, path) in enumerate(listed):
            shard = _Shard(work / f"{number:06d}")
            shards.append(shard)
            if not (shard.folder / "tally.json").exists():  # written last
                place = Place(name, str(path.relative_to(root)), config.sources[name], config.limits)
                _filter_file(path, place, shard, crew, config, watch, partial(show, finished))
                faults.at("curate.file")
            finished += path.lstat().st_size
            show(finished)
    return shards


def _kilobytes(size: int) -> int:
    return -(-size // 1000)


def _processes_for(size: int) -> int:
    """One for little: another takes a second to start."""
    return usable_cores() if size >= SHARED_BYTES else 1


def _filter_file(
    path: Path,
    place: Place,
    shard: _Shard,
    crew: Crew,
    config: CurateConfig,
    watch: Watch,
    on_bytes: Callable[[int], None],
) -> None:
    make_folder(shard.folder)
    tally = Tally()
    tally.source(place.source)
    refused: list[dict[str, str]] = []
    hashes: list[NDArray[np.uint64]] = [np.empty((0, hash_columns(config)), np.uint64)]
    questions = ((place.source, items) for items in chunks(read(path, place), _size_of))
    with writing(shard.documents) as write:
        for judged in crew.each(questions, watch.check):
            tally.add(judged.tally)
            hashes.append(judged.hashes)
            refused += [{"source": place.source, "place": at, "reason": reason} for at, reason in judged.refused]
            on_bytes(place.read_bytes)
            for document in judged.documents:
                write(id=document.id, text=document.text, source=document.source, url=document.url)
    tally.encodings.update(place.encodings)
    _save(shard.folder / "hashes.npy", np.concatenate(hashes))
    write_json(shard.folder / "refused.json", refused[:_LISTED])
    write_json(shard.folder / "tally.json", tally.as_json())


def _size_of(item: Raw | Refused) -> int:
    return len(item.content) if isinstance(item, Raw) else 0


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
        self._rules = rules
        checked = items if config.decontaminate is not None else None
        self._clean = partial(cleaning, checked, config.personal_data, recognizers)
        self._shareable = not recognizers  # a model stays where it was loaded

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
        size = tally.steps["near_duplicates"].bytes_out
        processes = _processes_for(size) if self._shareable else 1
        taken: deque[list[dict[str, Any]]] = deque()  # whose texts are being cleaned

        def texts() -> Iterator[list[str]]:
            left = self._left_by_cutting(documents, kept, repeated, tally, watch)
            for rows_ in chunks(left, lambda row: len(row["text"])):
                taken.append(rows_)
                yield [row["text"] for row in rows_]

        with writing(path) as write, Crew(self._clean, processes) as crew:
            for cleaned in crew.each(texts(), watch.check):
                tally.add(cleaned.tally)
                for row, text in zip(taken.popleft(), cleaned.texts, strict=True):
                    if text is not None:
                        faults.at("curate.write")
                        tally.source(row["source"]).leave(len(text.encode()))
                        write(**(row | {"text": text}))

    def _left_by_cutting(
        self,
        documents: Iterator[dict[str, Any]],
        kept: NDArray[np.bool_],
        repeated: NDArray[np.bool_] | None,
        tally: Tally,
        watch: Watch,
    ) -> Iterator[dict[str, Any]]:
        """The documents that stay, without what stands elsewhere."""
        position = 0
        for number, (row, stays) in enumerate(zip(documents, kept.tolist(), strict=True), start=1):
            watch.progress(number, len(kept), "documents")
            if not stays:
                continue
            text: str | None = row["text"]
            if repeated is not None:
                text, position = self._cut(row["text"], repeated, position, tally)
            if text is not None:
                yield row | {"text": text}

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
