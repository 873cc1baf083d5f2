"""Every `quilate finetune` line of docs/finetuning.md, run on sixty made-up rows with a random two-layer model.

The stages run in this process: a line then costs a second and not ten.
"""

from __future__ import annotations

import json
import math
import re
import shlex
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from in_process import stages_in_this_process

from quilate.cli.main import run_command_line

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "finetuning.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```bash\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
LINES = [line for block in BLOCKS for line in block.splitlines() if line.startswith("quilate finetune ")]

# What every line is told besides: little data, one pass, the tiny model.
SMALL = ["--train", "24", "--dev", "12", "--test", "12", "--epochs", "1", "--json"]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with the page's file; the tiny recipe's rows, under its names."""
    folder = tmp_path_factory.mktemp("página")
    rows = (ROOT / "recipes" / "tiny.csv").read_text(encoding="utf-8").replace("asunto", "servicio", 1)
    (folder / "consultas.csv").write_text(rows, encoding="utf-8")
    with stages_in_this_process(folder):
        yield folder


@pytest.mark.slow
@pytest.mark.parametrize("line", LINES, ids=lambda line: line.partition("--label servicio ")[2])
def test_the_line_runs(place: Path, llama_directory: Path, capsys: pytest.CaptureFixture[str], line: str) -> None:
    if "quantize=" in line and find_spec("bitsandbytes") is None:
        pytest.skip("bitsandbytes is not installed, which holds weights in few bits")
    out = place / "runs" / str(LINES.index(line))
    words = [*shlex.split(line)[1:], *SMALL, "--base", str(llama_directory), "--out", str(out)]
    if "lora.rank=64" in line:
        words += ["--set", "lora.rank=8"]  # the tiny model has no room for more
    assert run_command_line(words) == 0
    result: dict[str, Any] = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (result["items"], result["seeds"]) == (12, 1)
    manifest = json.loads((Path(result["stage"]) / "manifest.json").read_text(encoding="utf-8"))
    assert manifest["cost"]["trainable_parameters"] > 0
    values = re.findall(r"\[(.*?)\]", line) if "search=" in line else []
    tried = math.prod(len(listed.split(",")) for listed in values) if values else 3 if "--trials" in line else 0
    assert len(manifest["facts"].get("tried", [])) == tried


def test_the_page_has_every_family() -> None:
    wanted = ["head", "last_layers", "full", "layer_decay", "adapter", "pfeiffer", "lora", "rslora", "dora", "pissa",
              "ia3", "prompt", "prefix", "--trials", "search"]  # fmt: skip
    assert [word for word in wanted if not any(word in line for line in LINES)] == []
