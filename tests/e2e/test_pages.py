"""The recipes and commands of docs/adaptation.md and docs/privacy.md, run as they stand on texts made for it."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from support import SENTENCES

DOCS = Path(__file__).parents[2] / "docs"
EXPECTED = {"privacy.md": [5, 0], "adaptation.md": [0, 0]}  # of so few documents no interval is narrow enough to pass


def write_texts(folder: Path, base: Path) -> None:
    """The files that the pages name."""
    rng = np.random.default_rng(0)
    words = sorted({word for sentence in SENTENCES for word in sentence.split()})
    notes = [" ".join(rng.choice(words, 14)) for _ in range(150)]
    (folder / "notas.txt").write_text("\n".join(notes), encoding="utf-8")
    domain = [f"{a} {b}" for a in SENTENCES for b in SENTENCES]
    (folder / "domain.txt").write_text("\n".join(domain), encoding="utf-8")
    general = [f"Aviso {i}: {' '.join(rng.choice(words, 12))[::-1]}" for i in range(120)]
    (folder / "general.txt").write_text("\n".join(general), encoding="utf-8")
    texts = [" ".join(rng.choice(words, 9)) for _ in range(42)]
    rows = [f'"{text}",{"ab"[i % 2]}' for i, text in enumerate(texts)]
    (folder / "notas.csv").write_text("\n".join(["texto,etiqueta", *rows]), encoding="utf-8")
    shutil.copytree(base, folder / "base")


@pytest.mark.slow
@pytest.mark.parametrize("page", EXPECTED)
def test_what_a_page_shows_can_be_typed(page: str, tmp_path: Path, llama_directory: Path) -> None:
    text = (DOCS / page).read_text(encoding="utf-8")
    write_texts(tmp_path, llama_directory)
    (recipe,) = re.findall(r"^```yaml\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    (shown,) = re.findall(r"^```bash\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    lines = [shlex.split(line, comments=True) for line in shown.splitlines()]
    (tmp_path / lines[0][2]).write_text(recipe, encoding="utf-8")
    outputs = []
    for line, code in zip(lines, EXPECTED[page], strict=True):
        done = subprocess.run(
            [sys.executable, "-m", *line], cwd=tmp_path, capture_output=True, text=True, encoding="utf-8",
            env=os.environ | {"HF_HUB_OFFLINE": "1"},
        )  # fmt: skip
        assert done.returncode == code, done.stderr
        outputs.append(done.stdout)
    if page == "privacy.md":
        assert "exposure at 100 repeats, bits" in outputs[1]
        assert "NOT PASSED" in outputs[1]
    else:
        stages = tmp_path / "runs" / "clinica" / "stages"
        (wide,) = (json.loads(p.read_text())["facts"] for p in stages.glob("wide-s0-*/manifest.json"))
        assert wide["tokenizer"]["domain"]["tokens"] < wide["tokenizer_before"]["domain"]["tokens"]
        (near,) = (json.loads(p.read_text())["counts"] for p in stages.glob("corpus-near-*/manifest.json"))
        assert near["documents not near the task"] > 0
