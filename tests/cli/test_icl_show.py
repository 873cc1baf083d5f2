"""`quilate icl --show`: the prompt, its tokens, what is cut; no text unless it is asked for."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from in_process import stages_in_this_process
from support import SENTENCES

from quilate.cli.main import run_command_line


def test_the_prompt_is_shown_with_its_tokens(
    tmp_path: Path, llama_directory: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{"texto": f"{sentence} n{n}", "etiqueta": "sí" if n % 2 else "no"} for n, sentence in enumerate(SENTENCES)]
    (tmp_path / "notas.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    command = ["icl", "notas.jsonl", "--text", "texto", "--label", "etiqueta", "--base", str(llama_directory),
               "--shots", "1", "--dev", "2", "--test", "4", "--show"]  # fmt: skip
    with stages_in_this_process(tmp_path):
        assert run_command_line(command) == 0
        hidden = capsys.readouterr()
        assert run_command_line([*command, "--with-text"]) == 0
    shown = capsys.readouterr()
    assert "[text 1]" in hidden.out and "[text]" in hidden.out and not any(s[:20] in hidden.out for s in SENTENCES)
    assert sum(s in shown.out for s in SENTENCES) == 2
    assert hidden.err == shown.err and " tokens of at most 25" in hidden.err  # of 256, less the label's
    assert run_command_line(["icl", "notas.jsonl", "--text", "texto", "--label", "nada", "--show"]) != 0
