"""Files swapped for others of the same name, size and time are other inputs: content counts, not looks."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from support import SENTENCES

from quilate.config import validate
from quilate.files import write_text
from quilate.recipe.graph import build_graph
from quilate.recipe.schema import Recipe

RECIPE: dict[str, Any] = {
    "recipe": "cambiada",
    "base": "modelo",
    "data": {"all": {"path": "notas.csv"}},
    "task": {"name": "notas", "text": "texto", "label": "etiqueta"},
    "corpora": {"clínico": {"path": "corpus.txt"}},
    "stages": {"tapt": {"kind": "adapt", "corpora": {"clínico": 1.0}}},
    "arms": {"lora": {"kind": "finetune", "method": "lora", "on": "tapt"}},
    "seeds": [0],
}


def identities(folder: Path) -> dict[str, str]:
    return {name: node.id for name, node in build_graph(validate(Recipe, RECIPE, source="t"), folder).nodes.items()}


@pytest.fixture
def folder(tmp_path: Path, llama_directory: Path) -> Path:
    shutil.copytree(llama_directory, tmp_path / "modelo")
    rows = [f'"{sentence}",{"sí" if n % 2 else "no"}' for n, sentence in enumerate(SENTENCES)]
    write_text(tmp_path / "notas.csv", "\n".join(["texto,etiqueta", *rows]) + "\n")
    write_text(tmp_path / "corpus.txt", "\n".join(SENTENCES))
    return tmp_path


SWAPPED = {
    "notas.csv": {"task", "corpus-clínico", "tapt-s0", "lora-s0"},  # a corpus is checked against the test items
    "corpus.txt": {"corpus-clínico", "tapt-s0", "lora-s0"},
    "modelo/tokenizer.json": {"base", "tapt-s0", "lora-s0"},
    "modelo/tokenizer_config.json": {"base", "tapt-s0", "lora-s0"},
    "modelo/model.safetensors": {"base", "tapt-s0", "lora-s0"},
}


@pytest.mark.parametrize("name", SWAPPED)
def test_other_content_of_the_same_size_and_time_is_another_stage(folder: Path, name: str) -> None:
    before = identities(folder)
    assert identities(folder) == before
    path = folder / name
    times, content = path.stat(), bytearray(path.read_bytes())
    place = content.rindex(b"e") if path.suffix != ".safetensors" else len(content) - 1
    content[place] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert path.stat().st_size == times.st_size
    after = identities(folder)
    assert SWAPPED[name] <= {stage for stage in before if after[stage] != before[stage]}
    untouched = {"task", "base"} - SWAPPED[name]
    assert all(after[stage] == before[stage] for stage in untouched)
