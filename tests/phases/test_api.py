"""The api arm: what its config refuses, and a recipe run against a real server, stopped and continued."""

from __future__ import annotations

import importlib.util
import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from openai_server import ModelServer, serving
from support import tiny_llama, tiny_tokenizer

from quilate.cli.main import run_command_line
from quilate.config import validate
from quilate.errors import ConfigError
from quilate.files import read_jsonl
from quilate.phases.api import ApiConfig

RECIPES = Path(__file__).parents[2] / "recipes"
LOCAL = {"kind": "api", "url": "http://localhost:8000/v1", "model": "m"}
REMOTE = LOCAL | {"url": "https://models.example.org/v1", "allow_remote": True, "price_in": 0.0, "price_out": 0.0}


def config(value: dict[str, Any], **keys: Any) -> ApiConfig:
    return validate(ApiConfig, value | keys, source="t")


@pytest.mark.parametrize(
    ("value", "keys", "named"),
    [
        (REMOTE, {"allow_remote": False}, "is not this machine: the texts of training examples, dev and test items"),
        (REMOTE, {"price_in": None}, "state what models.example.org charges"),
        (REMOTE, {"price_in": 1.0}, "max_cost: what costs money needs a cap"),
        (REMOTE, {"url": "http://models.example.org/v1", "key_env": "CLAVE"}, "unencrypted"),
        (LOCAL, {"url": "models.example.org"}, "is no address"),
        (LOCAL, {"url": "https://user:word@models.example.org"}, "password"),
        (LOCAL, {"answers": "likelihood"}, "endpoint: completions"),
        (LOCAL, {"shots": "fit"}, "give a number"),
        (LOCAL, {"shots": [1, "fit"]}, "give a number"),
        (LOCAL, {"shots": 1, "demonstrations": "nearest", "similarity": "embedding"}, "hidden states"),
        (LOCAL, {"key_env": "sk-123"}, "key_env"),
        (LOCAL, {"request": {"messages": "x"}}, "`messages` is not yours to set"),
        (LOCAL, {"request": {"max_tokens": 0}}, "numbers of tokens"),
        (REMOTE, {"request": {"max_tokens": None}, "price_in": 1.0, "max_cost": 2.0}, "no cap on the cost"),
    ],
)
def test_contradictions_are_refused(value: dict[str, Any], keys: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        config(value, **keys)


def test_what_is_asked_by_default() -> None:
    assert config(LOCAL).asking(of_labels=True).answers == "first_token"
    assert config(LOCAL, endpoint="completions").asking(of_labels=True).answers == "likelihood"
    assert config(LOCAL, endpoint="completions").asking(of_labels=False).answers == "text"
    assert [config(LOCAL).asking(of_labels=one).max_tokens for one in (True, False)] == [16, 512]
    assert config(REMOTE, key_env="CLAVE").max_cost is None


@pytest.fixture
def server() -> Iterator[ModelServer]:
    with serving(tiny_llama(), tiny_tokenizer()) as running:
        yield running


def recipe(folder: Path, url: str, **keys: Any) -> Path:
    """The tiny recipe's task, solved by a model behind the address."""
    text = (RECIPES / "tiny.yaml").read_text(encoding="utf-8")
    task = text[text.index("task:") : text.index("curated:")]
    arm = {"kind": "api", "url": url, "model": "m", "endpoint": "completions", "shots": 2, "price_in": 1.0,
           "price_out": 2.0, "max_cost": 5.0, "retries": 1} | keys  # fmt: skip
    path = folder / "api.yaml"
    data = f"data: {{all: {{path: {RECIPES / 'tiny.csv'}}}}}"
    arms = f"arms:\n  majority: {{kind: baseline, method: majority}}\n  lejos: {json.dumps(arm)}\n"
    path.write_text(f"recipe: api\n{data}\n{task}\n{arms}\nseeds: [0]\nresamples: 1000\n", encoding="utf-8")
    return path


def quilate(folder: Path, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "quilate", *map(str, arguments)],
        cwd=folder,
        capture_output=True,
        text=True,
        encoding="utf-8",
        env=os.environ | {"HF_HUB_OFFLINE": "1"},
    )


@pytest.mark.slow
def test_a_recipe_against_a_server_that_breaks_down(server: ModelServer, tmp_path: Path) -> None:
    path = recipe(tmp_path, server.url)
    server.faults = ["no fault"] * 20 + [503] * 8  # four under way, two tries each
    broken = quilate(tmp_path, "run", path)
    assert broken.returncode == 4, broken.stderr
    assert "HTTP 503" in broken.stderr and "without paying twice" in broken.stderr
    server.faults = []
    done = quilate(tmp_path, "run", path)
    assert done.returncode == 0, done.stderr
    labels = json.loads(next((tmp_path / "runs/api/stages").glob("task-*/task/task.json")).read_text())["labels"]
    assert len(server.asked) == len({json.dumps(body) for body in server.asked}) == 30 * len(labels)  # dev and test
    evidence = json.loads((tmp_path / "runs/api/evidence.json").read_text(encoding="utf-8"))
    arm = next(arm for arm in evidence["arms"] if arm["name"] == "lejos")
    assert (arm["phase"], arm["method"], arm["train_rows"]) == ("in-context", "m, 2-shot", 2)
    paid = (server.read + 2 * server.written) / 1e6
    [notice] = [n for n in evidence["notices"] if n["code"] == "paid"]
    assert notice["values"]["money"] == pytest.approx(paid)
    assert not [n for n in evidence["notices"] if n["code"] == "sent_away"]  # this machine is not away
    kept = tmp_path / "runs/api/responses"
    assert [path.stat().st_mode & 0o777 for path in (kept, kept / "lejos-s0")] == [0o700, 0o700]
    again = quilate(tmp_path, "run", path)
    assert again.returncode == 0 and again.stderr.count("reused") == 6
    assert len(server.asked) == 30 * len(labels)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "form"),
    [("tiny-choice", "solo con la letra"), ("tiny-entities", "lista JSON"), ("tiny-questions", "en una sola línea")],
)
def test_every_kind_of_task(
    name: str, form: str, server: ModelServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A chat model is told the form of its answers; what was asked is not asked again."""
    shown = {"shots": 1, "demonstrations": "nearest"} if name == "tiny-entities" else {"shots": [1, 0]}
    arm = {"kind": "api", "url": server.url, "model": "m", "max_answer_tokens": 6, "concurrency": 2} | shown
    run = tmp_path / "run"
    arms = ["--set", f"arms={json.dumps({'lejos': arm})}", "--out", str(run)]
    assert run_command_line(["run", str(RECIPES / f"{name}.yaml"), *arms]) == 0
    asked = server.asked[0]["messages"]
    assert [turn["role"] for turn in asked] == ["system", "user", "assistant", "user"]
    assert form in asked[0]["content"] and "<LABELS>" not in asked[0]["content"]
    evidence = json.loads((run / "evidence.json").read_text(encoding="utf-8"))
    (found,) = evidence["arms"]
    assert found["name"] == "lejos" and found["counts"].get("test answers from the cache", 0) == 0
    if name != "tiny-entities":  # the rest is the same for every kind
        assert [point["shots"] for point in found["shots_curve"]] == [0, 1]
        return
    before, rows = len(server.asked), RECIPES / f"{name}.jsonl"
    capsys.readouterr()
    assert run_command_line(["predict", str(run), str(rows), "--out", str(tmp_path / "respuestas"), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["answers from the cache"] == before  # what befell the answers is said here too
    assert before < len(server.asked) <= len(read_jsonl(rows))  # equal texts are one request


@pytest.mark.slow
def test_a_cap_stops_the_run_with_its_own_exit_code(server: ModelServer, tmp_path: Path) -> None:
    stopped = quilate(tmp_path, "run", recipe(tmp_path, server.url, max_cost=0.01))
    assert stopped.returncode == 5, stopped.stderr
    assert "the spending cap of 0.01 is reached" in stopped.stderr
    assert 0 < (server.read + 2 * server.written) / 1e6 <= 0.01
    raised = quilate(tmp_path, "run", recipe(tmp_path, server.url, max_cost=1.0))
    assert raised.returncode == 0, raised.stderr
    assert len(server.asked) == len({json.dumps(body) for body in server.asked})  # nothing was paid for twice


@pytest.fixture(scope="module")
def transformers_serve(tmp_path_factory: pytest.TempPathFactory, llama_directory: Path) -> Iterator[str]:
    """`transformers serve`, its own process; it gives no log-probabilities."""
    missing = [name for name in ("fastapi", "uvicorn", "openai") if importlib.util.find_spec(name) is None]
    if missing:
        pytest.skip(f"transformers serve needs {', '.join(missing)}")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = tmp_path_factory.mktemp("serve") / "log.txt"
    serve = [sys.executable, "-m", "transformers.cli.transformers", "serve", str(llama_directory)]
    command = [*serve, "--host", "127.0.0.1", "--port", str(port), "--device", "cpu"]
    with log.open("w") as out:
        process = subprocess.Popen(command, stdout=out, stderr=out, env=os.environ | {"HF_HUB_OFFLINE": "1"})
    try:
        for _ in range(240):
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=1).close()
                break
            except OSError:
                assert process.poll() is None, log.read_text()
                time.sleep(0.5)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        process.terminate()
        process.wait(timeout=20)


@pytest.mark.slow
@pytest.mark.parametrize("endpoint", ["chat", "completions"])
def test_transformers_serve(endpoint: str, transformers_serve: str, tmp_path: Path, llama_directory: Path) -> None:
    path = recipe(
        tmp_path, transformers_serve, endpoint=endpoint, model=str(llama_directory), shots=0, max_answer_tokens=4,
        timeout=120.0,
    )  # fmt: skip
    done = quilate(tmp_path, "run", path)
    assert done.returncode == 0, done.stderr
    evidence = json.loads((tmp_path / "runs/api/evidence.json").read_text(encoding="utf-8"))
    arm = next(arm for arm in evidence["arms"] if arm["name"] == "lejos")
    assert arm["counts"]["test answers without log-probabilities"] == 18
