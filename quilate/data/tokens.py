"""Token shards: tokenized documents on disk, memory-mapped, with a manifest; and training batches over them.

A shard is two plain arrays, `tokens.bin` (uint16 where the vocabulary allows, else uint32) and `ends.bin` (int64, where
each document ends), and `manifest.json` with their digests, the tokenizer's digest and the counts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from quilate import faults
from quilate.data.packing import Example, PackedBatch, pack, split_by_tokens
from quilate.errors import DataError
from quilate.files import atomic_folder, digest, read_json, sha256_of_file, write_json
from quilate.rng import numpy_stream

DOCUMENTS_AT_ONCE = 1000  # documents tokenized together: the tokenizer's threads are busy, memory stays small


@dataclass(frozen=True)
class Shard:
    """`tokens` [T] and `ends` [documents]; `bytes` is the UTF-8 size of the text, for bits per byte."""

    tokens: np.ndarray
    ends: np.ndarray
    bytes: int
    fingerprint: str

    def document(self, index: int) -> np.ndarray:
        start = self.ends[index - 1] if index else 0
        return np.asarray(self.tokens[start : self.ends[index]])


def write_shard(
    folder: Path,
    documents: Iterable[str],
    tokenize: Callable[[Sequence[str]], list[list[int]]],
    *,
    vocabulary: int,
    tokenizer_digest: str,
    check_stop: Callable[[], None] = lambda: None,
) -> None:
    """Tokenize documents into a shard, in bounded memory.

    Args:
        check_stop: called every thousand documents; may raise to leave, and nothing is left behind.

    Raises:
        MachineError: the disk is full; nothing is left behind.
    """
    kind = np.uint16 if vocabulary <= 1 << 16 else np.uint32
    total = size = 0
    ends: list[int] = []
    with atomic_folder(folder, fault="shard") as place:
        with (place / "tokens.bin").open("wb") as file:
            for batch in _batched(documents, DOCUMENTS_AT_ONCE):
                faults.at("shard.write")
                check_stop()
                for tokens in tokenize(batch):
                    file.write(np.array(tokens, dtype=kind).tobytes())
                    total += len(tokens)
                    ends.append(total)
                size += sum(len(text.encode()) for text in batch)
        (place / "ends.bin").write_bytes(np.array(ends, dtype=np.int64).tobytes())
        manifest = {
            "dtype": np.dtype(kind).name,
            "documents": len(ends),
            "tokens": total,
            "bytes": size,
            "tokenizer": tokenizer_digest,
            "sha256": {name: sha256_of_file(place / name) for name in ("tokens.bin", "ends.bin")},
        }
        write_json(place / "manifest.json", manifest)


def open_shard(folder: Path, *, verify: bool = True) -> Shard:
    """Map a shard into memory.

    Raises:
        DataError: it is missing, or altered since it was written.
    """
    manifest = read_json(folder / "manifest.json")
    if verify:
        for name, expected in manifest["sha256"].items():
            if sha256_of_file(folder / name) != expected:
                raise DataError(
                    f"{folder / name} was altered: its SHA-256 differs", hint="remove the folder and run again"
                )
    if not manifest["tokens"]:
        raise DataError(f"{folder} holds no tokens", hint="the corpus is empty after reading and filtering")
    return Shard(
        tokens=np.memmap(folder / "tokens.bin", dtype=manifest["dtype"], mode="r"),
        ends=np.fromfile(folder / "ends.bin", dtype=np.int64),
        bytes=manifest["bytes"],
        fingerprint=digest(manifest),
    )


def _batched(documents: Iterable[str], size: int) -> Iterator[list[str]]:
    batch: list[str] = []
    for document in documents:
        batch.append(document)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


def chunks_of(shard: Shard, length: int) -> np.ndarray:
    """[chunks, 2] the start and stop of pieces of at most `length` tokens, none crossing a document's end."""
    pieces = []
    start = 0
    for end in shard.ends.tolist():
        pieces += [(a, min(a + length, end)) for a in range(start, end, length) if min(a + length, end) - a > 1]
        start = end
    return np.array(pieces, dtype=np.int64).reshape(-1, 2)


class TokenBatches:
    """Training batches over a weighted mixture of shards, every one a function of its step.

    Each corpus is visited in shuffled epochs of its own; at every draw the corpus that lags most behind its weight
    gives the next chunk, so the shares hold at every moment, not only on average.

    Args:
        shards: corpus -> shard; weights: corpus -> share of the tokens, above zero.
        total_tokens: the run's length; batch_tokens: tokens an optimizer step.
        length: longest chunk; micro_batch_tokens: most tokens in memory at once.
        make_example: turns a chunk into an `Example`, given a random stream of its own (masking draws from it).
    """

    def __init__(
        self,
        shards: Mapping[str, Shard],
        weights: Mapping[str, float],
        *,
        total_tokens: int,
        batch_tokens: int,
        length: int,
        micro_batch_tokens: int,
        seed: int,
        make_example: Callable[[str, np.ndarray, np.random.Generator], Example],
    ) -> None:
        self.shards, self.seed, self.micro_batch_tokens = shards, seed, micro_batch_tokens
        self._make_example = make_example
        self._chunks = {name: chunks_of(shard, length) for name, shard in shards.items()}
        self.tokens_of: dict[str, int] = dict.fromkeys(shards, 0)
        self.plan: list[list[tuple[str, int, int]]] = []
        self._lay_out(weights, total_tokens, batch_tokens)
        self.epochs = {n: self.tokens_of[n] / max(1, int(np.diff(self._chunks[n]).sum())) for n in shards}
        contents = {name: shard.fingerprint for name, shard in shards.items()}
        self.fingerprint = digest([self.plan, contents, length, micro_batch_tokens, seed])

    def _lay_out(self, weights: Mapping[str, float], total_tokens: int, batch_tokens: int) -> None:
        """Fix the run: for every step a list of (corpus, epoch, chunk)."""
        visits = {name: self._visits(name) for name in self.shards}
        step: list[tuple[str, int, int]] = []
        room = min(batch_tokens, total_tokens)
        left = total_tokens
        while left > 0:
            name = min(weights, key=lambda corpus: self.tokens_of[corpus] / weights[corpus])
            epoch, chunk = next(visits[name])
            start, stop = self._chunks[name][chunk]
            size = int(stop - start)
            self.tokens_of[name] += size
            step.append((name, epoch, chunk))
            room, left = room - size, left - size
            if room <= 0 or left <= 0:
                self.plan.append(step)
                step, room = [], batch_tokens

    def _visits(self, name: str) -> Iterator[tuple[int, int]]:
        epoch = 0
        while True:
            for chunk in numpy_stream(self.seed, "order", name, epoch).permutation(len(self._chunks[name])).tolist():
                yield epoch, chunk
            epoch += 1

    def __len__(self) -> int:
        return len(self.plan)

    def __getitem__(self, step: int) -> list[PackedBatch]:
        examples = []
        for name, epoch, chunk in self.plan[step]:
            start, stop = self._chunks[name][chunk]
            tokens = np.asarray(self.shards[name].tokens[start:stop]).astype(np.int64)
            stream = numpy_stream(self.seed, "example", name, epoch, chunk)
            examples.append(self._make_example(f"{name}:{chunk}", tokens, stream))
        return [pack(part) for part in split_by_tokens(examples, self.micro_batch_tokens)]
