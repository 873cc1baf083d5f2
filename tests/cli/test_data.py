"""`quilate data preview` and `quilate sft` as a stranger uses them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from quilate.cli.data import printable

CHATS = Path(__file__).parents[2] / "recipes" / "tiny_chat.jsonl"


def quilate(folder: Path, *arguments: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "quilate", *map(str, arguments)],
        cwd=folder,
        capture_output=True,
        text=True,
        encoding="utf-8",
        env=os.environ | {"HF_HUB_OFFLINE": "1"} | environment,
    )


def test_a_preview_counts_and_shows_text_only_when_asked(
    tmp_path: Path, llama_directory: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from quilate.cli.data import data

    monkeypatch.delenv("FORCE_COLOR", raising=False)
    data("preview", CHATS, model=str(llama_directory), json=True)
    counts = json.loads(capsys.readouterr().out)
    assert (counts["layout"], counts["conversations"], counts["usable"]) == ("messages", 24, 24)
    assert 0 < counts["learned tokens"] < counts["tokens"]
    assert counts["a turn ends with"] == "<|im_end|>"

    data("preview", CHATS, model=str(llama_directory), length=150)
    shown = capsys.readouterr().out
    assert "biblioteca" not in shown and "cut at a turn's end" in shown
    data("preview", CHATS, model=str(llama_directory), with_text=True, show=1)
    shown = capsys.readouterr().out
    assert "⟦De lunes a viernes abre a las nueve de la mañana.<|im_end|>⟧" in shown
    assert "\n¿Y los sábados?<|im_end|>" in shown and "farola" not in shown


def test_in_colour_the_learned_text_is_green(
    llama_directory: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from quilate.cli.data import data

    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    data("preview", CHATS, model=str(llama_directory), with_text=True, show=1)
    shown = capsys.readouterr().out
    assert "\x1b[32mDe lunes a viernes abre" in shown and "⟦" not in shown
    assert "\x1b[2m¿Y los sábados?" in shown


def test_text_cannot_steer_the_terminal() -> None:
    assert printable("año\x1b[2J\tñ\n\x07") == "año\ufffd[2J\tñ\n\ufffd"


@pytest.mark.slow
def test_sft_then_chat(tmp_path: Path, llama_directory: Path) -> None:
    (tmp_path / "charlas útiles.jsonl").write_bytes(CHATS.read_bytes())
    done = quilate(
        tmp_path, "sft", "charlas útiles.jsonl", "--base", llama_directory, "--epochs", "2", "--held-out", "0.2",
        "--lr", "1e-2", "--length", "200", "--json",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    [made] = json.loads(done.stdout)
    assert made["measure"] == "nats per assistant token"
    assert made["after"]["chats"] < made["before"]["chats"]
    assert made["folder"].startswith("runs/charlas-utiles-sft/")
    asked = subprocess.run(
        [sys.executable, "-m", "quilate", "chat", made["folder"], "--temperature", "0", "--max-new-tokens", "5"],
        cwd=tmp_path, input="¿A qué hora abre?\n", capture_output=True, text=True, encoding="utf-8",
    )  # fmt: skip
    assert asked.returncode == 0, asked.stderr
    assert asked.stdout.strip()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("content", "code", "message"),
    [
        ('{"messages": [}\n', 3, "none of its 1 records can be read"),
        ('{"prompt": "a", "chosen": "b", "rejected": "c"}\n', 3, "these are preferences"),
    ],
)
def test_a_bad_file_gives_a_clear_error(
    tmp_path: Path, llama_directory: Path, content: str, code: int, message: str
) -> None:
    (tmp_path / "c.jsonl").write_text(content)
    done = quilate(tmp_path, "sft", "c.jsonl", "--base", llama_directory)
    assert (done.returncode, message in done.stderr, "Traceback" in done.stderr) == (code, True, False), done.stderr
