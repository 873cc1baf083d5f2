"""`quilate align` on a file of rankings: a policy and a reward model, each measured on judgements held out."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from quilate.cli.main import run_command_line

JUDGEMENTS = Path(__file__).parents[2] / "recipes" / "tiny_preferences.jsonl"


@pytest.mark.slow
@pytest.mark.parametrize(("flags", "before"), [(("--loss", "kto"), {"judgements"}), (("--kind", "reward"), set())])
def test_align_without_a_recipe(
    tmp_path: Path, llama_directory: Path, flags: tuple[str, ...], before: set[str]
) -> None:
    common = ("--base", str(llama_directory), "--length", "128", "--held-out", "0.3", "--batch-size", "4", "--json")
    done = subprocess.run(
        [sys.executable, "-m", "quilate", "align", str(JUDGEMENTS), *common, *flags],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        encoding="utf-8",
        env=os.environ | {"HF_HUB_OFFLINE": "1"},
    )
    assert done.returncode == 0, done.stderr
    [made] = json.loads(done.stdout)
    assert made["measure"] == "pair accuracy" and set(made["before"]) == before
    assert 0 <= made["after"]["judgements"] <= 1
    assert (tmp_path / made["folder"]).is_dir()


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--reward", "f.py:score"], "--reward goes with --kind ppo, grpo, cloning, ilql; seen: --kind dpo"),
        (["--kind", "ppo", "--loss", "kto"], "--loss goes with --kind dpo; seen: --kind ppo"),
        (["--format", "text"], "--format goes with --kind ppo, grpo, cloning, ilql; seen: --kind dpo"),
        (["--kind", "reward", "--max-new-tokens", "9"], "--max-new-tokens goes with"),
        (["--kind", "ilql", "--beta", "0.1"], "--beta goes with --kind dpo, ppo, grpo; seen: --kind ilql"),
        (["--kind", "ppo", "--reward", "answer", "--language", "es"], "--language is about judgements"),
        (["--kind", "grpo", "--reward", "answer", "--derived"], "--derived is about judgements"),
        (["--kind", "ppo", "--reward", "a/f.py:score", "--reward", "b/f.py:score"], "two rewards are called 'score'"),
    ],
)
def test_a_flag_that_would_be_passed_over_is_refused(
    flags: list[str], words: str, tmp_path: Path, llama_directory: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    code = run_command_line(["align", str(JUDGEMENTS), "--base", str(llama_directory), "--out", str(out), *flags])
    assert (code, out.exists()) == (2, False)
    assert words in capsys.readouterr().err
