"""Text to token shards: quilate's path against `tokenizers` alone. `python -m benchmarks.tokenization`

Documents are read line by line from a generated file. quilate's side is what a training stage does with them: tokenize,
put an end before and after each document, write a shard with digests. The peer, the `tokenizers` library, only encodes
(`encode_batch`, and `encode_batch_fast`, which keeps no offsets) and writes nothing. Same tokenizer, same batches, same
threads; the tokens are compared by their digest.

Then a file larger than the memory that a process may have is tokenized into a shard: `--limit` MB more than what it has
after importing (RLIMIT_DATA). As a control, reading the same file whole must fail under the same limit.
`--larger-than-memory` makes the file larger than all memory of this machine, which takes long and needs the disk.
"""

from __future__ import annotations

import hashlib
import os
import resource
import shutil
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from benchmarks.harness import (
    Disagreement,
    Quantity,
    Result,
    Side,
    best_of,
    call,
    command_line,
    compare,
    finish,
    machine,
    note,
    parser,
    run_round,
    summarize,
)
from benchmarks.trainers import peak_memory
from benchmarks.workloads import REAL_MODEL, benchmark_model, texts

SPEED = Quantity("tokenization speed", "MB/s", "higher")
DOCUMENT_WORDS = 100
SLOWEST = 0.1  # MB/s; slower than this, it hangs (guess)
DISTINCT_MB = 4  # the file repeats so much generated text; drawing more would take longer than tokenizing it


def write_corpus(path: Path, megabytes: float) -> None:
    """A document a line, until the file has the size."""
    block = bytearray()
    for text in texts(3, words=DOCUMENT_WORDS):
        block += text.encode() + b"\n"
        if len(block) >= min(megabytes, DISTINCT_MB) * 1e6:
            break
    with path.open("wb") as file:
        for _ in range(max(1, round(megabytes * 1e6 / len(block)))):
            file.write(block)


def documents(path: Path) -> Iterator[str]:
    with path.open(encoding="utf-8") as file:
        for line in file:
            yield line.rstrip("\n")


def _batches(source: Iterable[str], size: int) -> Iterator[list[str]]:
    iterator = iter(source)
    while batch := list(islice(iterator, size)):
        yield batch


def quilate(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings: `model`. A case has `corpus`."""
    import numpy as np

    answers = {}
    for case in settings["cases"]:
        with tempfile.TemporaryDirectory() as folder:
            shard = Path(folder) / "shard"
            began = time.perf_counter()
            _write_shard(Path(settings["model"]), Path(case["corpus"]), shard)
            seconds = time.perf_counter() - began
            kind = np.uint16 if (shard / "tokens.bin").stat().st_size == 2 * _tokens_of(shard) else np.uint32
            tokens = np.fromfile(shard / "tokens.bin", dtype=kind)
            ends = np.fromfile(shard / "ends.bin", dtype=np.int64)
        inner = np.ones(len(tokens), dtype=bool)  # without the two tokens that quilate puts around a document
        inner[ends - 1] = inner[np.concatenate(([0], ends[:-1]))] = False
        answers[case["name"]] = _measurement(case, seconds, [tokens[inner]])
    return answers


def _write_shard(model: Path, corpus: Path, shard: Path) -> None:
    """As `quilate.phases.language_modelling` does it, the loading of the tokenizer included."""
    from quilate.data.tokens import write_shard
    from quilate.files import digest
    from quilate.models.load import load_tokenizer
    from quilate.phases.language_modelling import document_tokens

    tokenizer = load_tokenizer(model)
    identity = digest(tokenizer.backend_tokenizer.to_str())
    write_shard(
        shard, documents(corpus), partial(document_tokens, tokenizer), vocabulary=len(tokenizer),
        tokenizer_digest=identity,
    )  # fmt: skip


def _tokens_of(shard: Path) -> int:
    from quilate.files import read_json

    return int(read_json(shard / "manifest.json")["tokens"])


def raw_tokenizers(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings: `model`, `method` ("encode_batch", "encode_batch_fast")."""
    from tokenizers import Tokenizer

    from quilate.data.tokens import DOCUMENTS_AT_ONCE

    answers = {}
    for case in settings["cases"]:
        began = time.perf_counter()
        tokenizer = Tokenizer.from_file(str(Path(settings["model"]) / "tokenizer.json"))
        tokenizer.encode_special_tokens = True  # their names in a text are text, as in quilate
        encode = getattr(tokenizer, settings["method"])
        found: list[list[int]] = []
        for batch in _batches(documents(Path(case["corpus"])), DOCUMENTS_AT_ONCE):
            found += [encoding.ids for encoding in encode(batch, add_special_tokens=False)]
        answers[case["name"]] = _measurement(case, time.perf_counter() - began, found)
    return answers


def _measurement(case: dict[str, Any], seconds: float, found: Iterable[Any]) -> dict[str, Any]:
    import numpy as np

    digest, tokens = hashlib.sha256(), 0
    for part in found:
        array = np.asarray(part, dtype=np.int64)
        digest.update(array.tobytes())
        tokens += len(array)
    megabytes = Path(case["corpus"]).stat().st_size / 1e6
    facts = {"tokens": tokens, "tokens sha256": digest.hexdigest(), "seconds": round(seconds, 3)}
    return {"values": [megabytes / seconds], "facts": facts}


def under_limit(settings: dict[str, Any]) -> dict[str, Any]:
    """Write a shard of `corpus` with at most `limit_mb` of data more than now; or, as a control, read the file whole.

    Settings: `model`, `corpus`, `limit_mb` (None: no limit), `whole`.
    """
    import quilate.phases.language_modelling  # noqa: F401 (what it needs is imported before the limit is drawn)

    if settings["limit_mb"] is not None:
        status = Path("/proc/self/status").read_text().splitlines()
        (line,) = (line for line in status if line.startswith("VmData"))
        limit = int(line.split()[1]) * 1024 + round(settings["limit_mb"] * 1e6)
        resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    before, began = peak_memory(), time.perf_counter()
    tokens = None
    try:
        if settings["whole"]:
            len(Path(settings["corpus"]).read_bytes())
        else:
            with tempfile.TemporaryDirectory(dir=Path(settings["corpus"]).parent) as folder:
                _write_shard(Path(settings["model"]), Path(settings["corpus"]), Path(folder) / "shard")
                tokens = _tokens_of(Path(folder) / "shard")
    except MemoryError:
        return {"finished": False}
    seconds = time.perf_counter() - began
    return {
        "finished": True, "tokens": tokens, "seconds": round(seconds, 1), "growth MB": round(peak_memory() - before, 1)
    }  # fmt: skip


def check_bounded(model: Path, folder: Path, megabytes: float, limit: float | None) -> tuple[str, dict[str, Any]]:
    """Tokenize a file of so many MB under the limit; the control is left out where the file is smaller than that.

    Raises:
        Disagreement: reading the file whole succeeds as well: the limit limits nothing.
        RuntimeError: the shard could not be written.
    """
    if shutil.disk_usage(folder).free < 2.5 * megabytes * 1e6:
        raise RuntimeError(f"{folder} has too little room for a file of {megabytes:,.0f} MB and its tokens (--folder)")
    corpus = folder / "large.txt"
    write_corpus(corpus, megabytes)
    settings = {"model": str(model), "corpus": str(corpus), "limit_mb": limit}
    side = Side("quilate, bounded memory", "benchmarks.tokenization:under_limit")
    control = limit is not None and megabytes > limit
    if control and call(side, settings | {"whole": True})["finished"]:
        raise Disagreement(f"a file of {megabytes:,.0f} MB was read whole under a limit of {limit:,.0f} MB")
    # Out of memory, a thread of the tokenizer may wait for ever instead of failing.
    answer = call(side, settings | {"whole": False}, timeout=60 + megabytes / SLOWEST)
    corpus.unlink()
    if not answer["finished"]:
        raise RuntimeError(f"a file of {megabytes:,.0f} MB was not tokenized within {limit} MB more")
    allowed = "the machine's memory" if limit is None else f"{limit:,.0f} MB more than after importing"
    words = (
        f"a file of {megabytes:,.0f} MB became a shard within {allowed}: the process grew by "
        f"{answer['growth MB']:,.0f} MB in {answer['seconds']:,.0f} s"
    )
    words += "; reading it whole failed" if control else ""
    return words, answer | {"file MB": megabytes, "limit MB": limit}


def main() -> None:
    flags = parser(__doc__)
    flags.add_argument("--model", default=REAL_MODEL)
    flags.add_argument("--megabytes", type=float, default=16, help="text of the comparison (16)")
    flags.add_argument("--file", type=float, default=256, help="MB of the file for bounded memory (256)")
    flags.add_argument("--limit", type=float, default=192, help="MB that the process may grow by (192)")
    flags.add_argument("--folder", type=Path, help="where to put the large file; a temporary folder by default")
    flags.add_argument("--larger-than-memory", action="store_true")
    arguments = flags.parse_args()
    quick = arguments.quick
    rounds, megabytes = (1, 0.1) if quick else (arguments.rounds, arguments.megabytes)
    size, limit = (1.0, 100.0) if quick else (arguments.file, arguments.limit)
    if arguments.larger_than_memory:
        size, limit = 1.1 * os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e6, None
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        folder = Path(name)
        model = benchmark_model(arguments.model, folder, quick=quick)
        corpus = folder / "corpus.txt"
        write_corpus(corpus, megabytes)
        case = {"name": f"{megabytes:g} MB", "corpus": str(corpus)}
        raw = "benchmarks.tokenization:raw_tokenizers"
        sides = [
            Side("quilate", "benchmarks.tokenization:quilate", {"model": str(model)}, stage=True, ours=True),
            *(Side(m, raw, {"model": str(model), "method": m}) for m in ("encode_batch", "encode_batch_fast")),
        ]
        measured = [m for number in range(rounds) for m in run_round(number, sides, [case])]
        digests = {m.facts["tokens sha256"] for m in measured}
        if len(digests) != 1:
            raise Disagreement(f"the tokens differ: { {m.side.name: m.facts for m in measured} }")
        checks = [f"all {measured[0].facts['tokens']:,} tokens are equal"]
        note(f"a file of {size:,.0f} MB under a limit")
        words, bounded = check_bounded(model, folder, size, limit)
    ratios = compare(measured, SPEED)
    best = best_of(measured, SPEED, str(case["name"]))[0]
    facts = {"bounded memory": bounded, "threads": os.environ.get("RAYON_NUM_THREADS", "one a core")}
    result = Result(
        "tokenization", SPEED, next(r for r in ratios if r.against == best.name), summarize(measured), ratios,
        [*checks, words], machine([]), facts, command_line(),
    )  # fmt: skip
    finish(result, arguments)


if __name__ == "__main__":
    try:
        main()
    except Disagreement as error:
        sys.exit(f"not the same computation: {error}")
