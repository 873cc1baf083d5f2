"""`quilate align` on a file of rankings: a policy and a reward model, each measured on judgements held out."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

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
