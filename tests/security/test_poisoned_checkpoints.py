"""A checkpoint from a stranger: pickles in any of its places are not opened, even where every digest is right."""

from __future__ import annotations

import ast
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from quilate.engine.checkpoint import Checkpoint, Checkpointer, load_checkpoint
from quilate.errors import DataError
from quilate.files import digest, read_json, sha256_of_file, write_json

SOURCES = sorted((Path(__file__).parents[2] / "quilate").rglob("*.py"))


class Bomb:
    """Unpickling it creates the canary."""

    def __init__(self, canary: Path) -> None:
        self.canary = str(canary)

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return open, (self.canary, "w")


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    checkpoint = Checkpoint(7, {"optimizer": {"w": torch.ones(3)}, "streams": {"s": torch.arange(4)}}, {"step": 7})
    Checkpointer(tmp_path / "checkpoints").save(checkpoint)
    return tmp_path / "checkpoints" / "step-00000007"


def signed(folder: Path) -> None:
    """Make the manifest fit whatever lies there now, as an attacker can."""
    names = [path.name for path in sorted(folder.iterdir()) if path.name != "manifest.json"]
    files = {n: {"bytes": (folder / n).stat().st_size, "sha256": sha256_of_file(folder / n)} for n in names}
    manifest = {key: value for key, value in read_json(folder / "manifest.json").items() if key != "sha256"}
    manifest["files"] = files
    write_json(folder / "manifest.json", manifest | {"sha256": digest(manifest)})


@pytest.mark.parametrize("name", ["optimizer.safetensors", "streams.safetensors", "state.json", "manifest.json"])
@pytest.mark.parametrize("consistent", [True, False], ids=["digests made to fit", "as it was found"])
def test_a_pickle_in_any_place_is_refused_unopened(saved: Path, tmp_path: Path, name: str, consistent: bool) -> None:
    canary = tmp_path / "canario"
    (saved / name).write_bytes(pickle.dumps(Bomb(canary)))
    if consistent and name != "manifest.json":
        signed(saved)
    with pytest.raises(DataError) as caught:
        load_checkpoint(saved)
    assert caught.value.exit_code == 3
    assert not canary.exists()


def test_pickles_beside_the_files_are_not_opened(saved: Path, tmp_path: Path) -> None:
    canary = tmp_path / "canario"
    for name in (".metadata", "optimizer.pt", "rng_state.pth", "training_args.bin", "__0_0.distcp"):
        (saved / name).write_bytes(pickle.dumps(Bomb(canary)))
    signed(saved)
    assert load_checkpoint(saved).tensors.keys() == {"optimizer", "streams"}
    assert not canary.exists()


def test_no_source_of_ours_unpickles_evaluates_or_trusts_remote_code() -> None:
    found = []
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            bad = {"pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"} & {n.split(".")[0] for n in names}
            if isinstance(node, ast.Call):
                called = ast.unparse(node.func)
                bad |= {called} & {"torch.load", "eval", "exec", "yaml.load", "yaml.unsafe_load"}
                for keyword in node.keywords:
                    if keyword.arg in ("trust_remote_code", "allow_pickle") and ast.unparse(keyword.value) != "False":
                        bad.add(f"{keyword.arg}={ast.unparse(keyword.value)}")
            found += [f"{path.name}:{node.lineno}: {name}" for name in bad]  # type: ignore[attr-defined]
    assert found == []
