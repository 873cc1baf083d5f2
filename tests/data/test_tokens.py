"""Shards and mixtures: what goes in comes out, shares hold, the order is the seed's alone."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from quilate.data.packing import Example
from quilate.data.tokens import Shard, TokenBatches, chunks_of, open_shard, write_shard
from quilate.errors import DataError


def shard_of(folder: Path, documents: list[str], vocabulary: int = 300) -> Shard:
    """One token a byte, so that what is expected can be read off the text."""
    write_shard(
        folder, documents, lambda texts: [list(t.encode()) for t in texts], vocabulary=vocabulary, tokenizer_digest="t"
    )
    return open_shard(folder)


def batches_of(shards: dict[str, Shard], weights: dict[str, float], **changes: int) -> TokenBatches:
    sizes = {"total_tokens": 4000, "batch_tokens": 400, "length": 20, "micro_batch_tokens": 200, "seed": 3} | changes
    return TokenBatches(
        shards, weights, **sizes, make_example=lambda name, ids, _: Example(name, ids, np.ones(len(ids), dtype=bool))
    )


@pytest.mark.parametrize(("vocabulary", "dtype"), [(300, np.uint16), (70_000, np.uint32)])
def test_shard_gives_back_every_document(tmp_path: Path, vocabulary: int, dtype: type) -> None:
    documents = ["Año nuevo", "x", "dolor torácico de 3 h"]
    shard = shard_of(tmp_path / "s", documents, vocabulary)
    assert shard.tokens.dtype == dtype
    assert [bytes(shard.document(i).tolist()).decode() for i in range(3)] == documents
    assert shard.bytes == sum(len(d.encode()) for d in documents)


@pytest.mark.parametrize("name", ["tokens.bin", "ends.bin"])
def test_altered_shard_is_refused(tmp_path: Path, name: str) -> None:
    shard_of(tmp_path / "s", ["uno", "dos"])
    content = bytearray((tmp_path / "s" / name).read_bytes())
    content[0] ^= 1
    (tmp_path / "s" / name).write_bytes(content)
    with pytest.raises(DataError, match=name):
        open_shard(tmp_path / "s")


def test_chunks_cover_documents_and_never_cross_them(tmp_path: Path) -> None:
    shard = shard_of(tmp_path / "s", ["a" * 45, "b" * 7, "c" * 21])
    pieces = chunks_of(shard, 20)
    assert [(int(b - a)) for a, b in pieces] == [20, 20, 5, 7, 20]  # a last piece of one token predicts nothing
    for start, stop in pieces:
        assert len(set(shard.tokens[start:stop].tolist())) == 1


def test_shares_hold_at_every_moment(tmp_path: Path) -> None:
    shards = {name: shard_of(tmp_path / name, [name * 200] * 10) for name in "ab"}
    batches = batches_of(shards, {"a": 3.0, "b": 1.0})
    seen: Counter[str] = Counter()
    for step in range(len(batches)):
        for batch in batches[step]:
            for id, length in zip(batch.ids, batch.lengths, strict=True):
                seen[id.partition(":")[0]] += length
        assert abs(seen["a"] - 0.75 * seen.total()) <= 20  # one chunk
    assert dict(seen) == batches.tokens_of
    assert 4000 <= seen.total() < 4000 + 20


def test_every_epoch_visits_each_chunk_once_in_its_own_order(tmp_path: Path) -> None:
    shard = shard_of(tmp_path / "s", ["abcdefghijklmnopqrst" * 5])  # five chunks of twenty
    plan = [visit for step in batches_of({"s": shard}, {"s": 1.0}, total_tokens=300).plan for visit in step]
    epochs = [[chunk for _, epoch, chunk in plan if epoch == n] for n in range(3)]
    assert [sorted(epoch) for epoch in epochs] == [[0, 1, 2, 3, 4]] * 3
    assert len({tuple(epoch) for epoch in epochs}) > 1


def test_order_is_the_seeds_and_content_changes_the_fingerprint(tmp_path: Path) -> None:
    one, other = shard_of(tmp_path / "1", ["abcd" * 50] * 4), shard_of(tmp_path / "2", ["abce" * 50] * 4)
    same, again, moved = (batches_of({"s": one}, {"s": 1.0}, seed=seed) for seed in (3, 3, 4))
    assert same.fingerprint == again.fingerprint != moved.fingerprint
    assert batches_of({"s": other}, {"s": 1.0}).fingerprint != same.fingerprint
    assert all(np.array_equal(a.input_ids, b.input_ids) for a, b in zip(same[2], again[2], strict=True))
