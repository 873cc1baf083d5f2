"""The directory that `quilate sft` writes, served by `transformers serve` and asked a question (docs/chat.md)."""

from __future__ import annotations

import importlib.util
import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

NEEDED = ("fastapi", "uvicorn", "openai", "pydantic")  # transformers' own list, in `is_serve_available`
CHATS = Path(__file__).parents[2] / "recipes" / "tiny_chat.jsonl"
SECONDS_TO_START = 120


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory, llama_directory: Path) -> Path:
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        pytest.skip(f"`transformers serve` needs {', '.join(missing)}: pip install 'transformers[serving]'")
    folder = tmp_path_factory.mktemp("servido")
    command = ["sft", str(CHATS), "--base", str(llama_directory), "--method", "full", "--lr", "1e-2", "--json"]
    done = subprocess.run(
        [sys.executable, "-m", "quilate", *command], cwd=folder, capture_output=True, text=True, check=True
    )
    return folder / json.loads(done.stdout)[0]["folder"]


@pytest.mark.slow
def test_a_trained_directory_answers_over_http(saved: Path) -> None:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    address = f"http://localhost:{port}"
    server = subprocess.Popen(
        [sys.executable, "-m", "transformers.cli.transformers", "serve", str(saved), "--port", str(port)],
        env=os.environ | {"HF_HUB_OFFLINE": "1"},
    )
    try:
        _wait_for(f"{address}/health", server)
        question = {
            "model": str(saved),
            "messages": [{"role": "user", "content": "¿A qué hora abre la biblioteca?"}],
            "max_tokens": 8,
        }
        request = urllib.request.Request(
            f"{address}/v1/chat/completions", json.dumps(question).encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=60) as response:
            answer = json.load(response)
        assert answer["choices"][0]["message"]["role"] == "assistant"
        assert isinstance(answer["choices"][0]["message"]["content"], str)
    finally:
        server.terminate()
        server.wait(timeout=30)


def _wait_for(address: str, server: subprocess.Popen[bytes]) -> None:
    started = time.monotonic()
    while time.monotonic() - started < SECONDS_TO_START:
        assert server.poll() is None, "the server ended by itself"
        try:
            urllib.request.urlopen(address, timeout=5).close()
            return
        except (urllib.error.URLError, OSError):
            time.sleep(1)
    pytest.fail(f"the server did not answer within {SECONDS_TO_START} seconds")
