"""Work shared by several processes: the same bytes as by one, and nothing left behind however it ends."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from curation_corpus import ITEM, QUIET, Made, config_of, write_corpus

from quilate.curation import judging, pipeline
from quilate.curation.crew import Crew, usable_cores
from quilate.curation.personal import Span
from quilate.curation.pipeline import OUTPUT, Watch, curate
from quilate.errors import DataError, Interrupted, MachineError, QuilateError


@pytest.fixture(autouse=True)
def importable(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a process is sent names this module, which it must find."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))


@contextmanager
def working(factor: int) -> Iterator[Callable[[int], Any]]:
    """What is asked of the crew below: the product and who made it, or a fault."""

    def work(number: int) -> tuple[int, int]:
        if number == -1:
            raise DataError("a bad number", hint="give another")
        if number == -2:
            raise KeyError("a fault of ours")
        if number == -3:
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(0.01)
        return factor * number, os.getpid()

    yield work


def running(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


@pytest.mark.parametrize("processes", [1, 3])
def test_answers_come_in_order_and_nothing_is_left_running(processes: int) -> None:
    with Crew(partial(working, 7), processes) as crew:
        first = list(crew.each(range(20), lambda: None))
        second = list(crew.each(range(20, 40), lambda: None))  # by the same processes
    assert [product for product, _ in first + second] == [7 * number for number in range(40)]
    makers = {maker for _, maker in first + second}
    assert makers == {os.getpid()} if processes == 1 else 1 < len(makers) <= 3 and os.getpid() not in makers
    assert processes == 1 or not any(map(running, makers))


def test_faults_arrive_as_they_are() -> None:
    with Crew(partial(working, 1), 2) as crew, pytest.raises(DataError, match="a bad number") as own:
        list(crew.each([1, -1, 2], lambda: None))
    assert own.value.hint == "give another"
    with Crew(partial(working, 1), 2) as crew, pytest.raises(QuilateError, match="a fault of ours") as ours:
        list(crew.each([-2] * 9, lambda: None))
    assert ours.value.exit_code == 1 and "Traceback" in str(ours.value)
    with Crew(partial(working, 1), 2) as crew, pytest.raises(MachineError, match="was killed"):
        list(crew.each([1, 2, -3, *range(30)], lambda: None))


def test_a_stop_leaves_nothing_running() -> None:
    seen: list[int] = []

    def check() -> None:
        if len(seen) == 4:
            raise Interrupted("stopped by SIGTERM")

    with Crew(partial(working, 1), 2) as crew, pytest.raises(Interrupted):
        for _, maker in crew.each(range(10_000), check):
            seen.append(maker)
    assert len(seen) == 4 and not any(map(running, seen))


KILLED = """
import sys
from functools import partial
from quilate.curation.crew import Crew
from test_crew import working
with Crew(partial(working, 1), 2) as crew:
    for _, maker in crew.each(range(100_000), lambda: None):
        print(maker, flush=True)
"""


def test_processes_end_with_the_one_that_started_them() -> None:
    parent = subprocess.Popen([sys.executable, "-c", KILLED], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    makers = {int(parent.stdout.readline()) for _ in range(10)}
    assert makers and all(map(running, makers))
    parent.kill()
    parent.wait()
    parent.stdout.close()
    for _ in range(600):
        if not any(map(running, makers)):
            return
        time.sleep(0.1)
    pytest.fail("a process outlived its parent")


def test_cores_are_those_that_may_be_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    cores = usable_cores()
    assert cores == len(os.sched_getaffinity(0))
    for asked, meant in (("1", 1), (str(cores + 5), cores), ("", cores), ("4,2", cores)):
        monkeypatch.setenv("OMP_NUM_THREADS", asked)
        assert usable_cores() == meant


def test_a_chunk_is_as_large_as_a_process_can_hold() -> None:
    large, small = judging._CHUNK_BYTES, 10
    sizes = [large, small, small, large // 2, large // 2, *[small] * 65]
    assert [len(chunk) for chunk in judging.chunks(sizes, lambda size: size)] == [1, 4, 64, 1]
    assert list(judging.chunks([], len)) == []


@pytest.fixture
def shared(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several processes for however little, and several chunks of it."""
    monkeypatch.setattr(pipeline, "SHARED_BYTES", 0)
    monkeypatch.setattr(pipeline, "usable_cores", lambda: 3)
    monkeypatch.setattr(judging, "_CHUNK_DOCUMENTS", 4)


def left_by(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in (OUTPUT, "quarantine.jsonl", "examples.json")}


def test_several_processes_leave_the_same_bytes(
    tmp_path: Path, texts: list[str], made: Made, request: pytest.FixtureRequest
) -> None:
    write_corpus(tmp_path, texts, made)
    refused = tmp_path / "web" / "b.jsonl"  # the same rule in many chunks: of its examples three are kept
    short = "pero de la casa que tiene el sol en los días y a la vez, de la niña."
    rows = [json.dumps({"id": f"c{i}", "text": f"Muy corto {i}, {short}"}, ensure_ascii=False) for i in range(20)]
    refused.write_text("\n".join(rows), encoding="utf-8")
    tallies = []
    for name in ("one", "several"):
        if name == "several":
            request.getfixturevalue("shared")
        out = tmp_path / name
        out.mkdir()
        tallies.append(curate(config_of(), base=tmp_path, folder=out, items=[ITEM], watch=QUIET))
    assert left_by(tmp_path / "one") == left_by(tmp_path / "several")
    assert tallies[0].as_json() == tallies[1].as_json()
    assert len(tallies[0].examples["quality: too few words"]) == 3


@pytest.mark.usefixtures("shared")
def test_a_recognizer_stays_in_this_process(tmp_path: Path, texts: list[str], made: Made) -> None:
    write_corpus(tmp_path, texts, made)
    asked: list[int] = []

    def recognize(text: str) -> list[Span]:
        asked.append(os.getpid())
        return [Span(0, 4, "hospital")]

    curate(config_of(), base=tmp_path, folder=tmp_path, items=[], watch=QUIET, recognizers=[recognize])
    assert set(asked) == {os.getpid()}


@pytest.mark.usefixtures("shared")
def test_a_stopped_curation_goes_on(tmp_path: Path, texts: list[str], made: Made) -> None:
    write_corpus(tmp_path, texts, made)
    asked: list[int] = []

    def stop() -> None:
        asked.append(1)
        if len(asked) == 6:
            raise Interrupted("stopped by SIGTERM")

    with pytest.raises(Interrupted):
        curate(config_of(), base=tmp_path, folder=tmp_path, items=[ITEM], watch=Watch(lambda *_: None, stop))
    assert not (tmp_path / OUTPUT).exists()
    curate(config_of(), base=tmp_path, folder=tmp_path, items=[ITEM], watch=QUIET)
    assert (tmp_path / OUTPUT).exists()
