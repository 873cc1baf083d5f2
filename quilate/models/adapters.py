"""Several adapters on one base in memory: each request says which one it is for, and nothing is loaded again."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from transformers import PreTrainedModel

from quilate.errors import ModelError
from quilate.files import read_json
from quilate.models.load import base_of_adapter, load_language_model, with_adapter
from quilate.models.source import check_model_directory
from quilate.models.tuning.virtual import virtual_tokens_of


class AdapterSet:
    """Named adapters on one base, causal or masked.

        adapters = AdapterSet.load({"icd10": Path("runs/a/model"), "headqa": Path("runs/b/model")}, dtype=torch.float32)
        with adapters.using("headqa") as model:
            ...  # as if that adapter alone had been loaded, to the bit
        with adapters.using(None) as model:
            ...  # the base as it is

    Attributes:
        base: the base's directory.
        names: the adapters, in the order they were given.
    """

    def __init__(self, model: PreTrainedModel, base: Path, names: tuple[str, ...]) -> None:
        self.base, self.names = base, names
        self._model = model
        self._lock = threading.RLock()

    @classmethod
    def load(cls, adapters: Mapping[str, Path], *, dtype: torch.dtype) -> AdapterSet:
        """Load the base once and every adapter onto it.

        Args:
            adapters: adapter directories by name; a name has no dot.

        Raises:
            ModelError: a directory is no adapter of a language model, two have other bases or other methods, or one
                cannot be loaded.
        """
        bases, methods = {}, {}
        for name, directory in adapters.items():
            check_model_directory(directory)
            _refuse_unless_adapter(name, directory)
            bases[name] = base_of_adapter(directory).resolve()
            methods[name] = read_json(directory / "adapter_config.json").get("peft_type")
        _refuse_mixture(bases, "is an adapter for", "load each base's adapters in a set of their own")
        _refuse_mixture(
            methods, "is of the method", "peft keeps one method a model: load each method's in their own set"
        )
        base = next(iter(bases.values()))
        model = load_language_model(base, dtype=dtype)
        for name, directory in adapters.items():
            model = with_adapter(model, directory, name=name)
        return cls(model, base, tuple(adapters))

    @contextmanager
    def using(self, name: str | None) -> Iterator[PreTrainedModel]:
        """The model with one adapter in effect, or with none; other threads wait until the block ends.

        Raises:
            ModelError: no adapter has that name.
        """
        if name is not None and name not in self.names:
            raise ModelError(f"there is no adapter '{name}'", hint=f"those loaded: {', '.join(self.names)}")
        with self._lock:
            if name is None and virtual_tokens_of(self._model) is not None:
                yield self._model.get_base_model()
            elif name is None:
                with self._model.disable_adapter():
                    yield self._model
            else:
                self._model.set_adapter(name)
                yield self._model


def _refuse_unless_adapter(name: str, directory: Path) -> None:
    if not (directory / "adapter_config.json").exists():
        raise ModelError(f"'{name}': {directory} is a whole model, no adapter", hint="only adapters share a base")
    if (directory / "config.json").exists():  # `save_model` puts a classifier's tags there
        raise ModelError(
            f"'{name}': {directory} is an adapter with a classifier of its own tags", hint="load it by itself"
        )
    if "." in name:
        raise ModelError(f"'{name}' cannot be an adapter's name: it has a dot", hint="use letters, digits, - and _")


def _refuse_mixture(found: Mapping[str, object], relation: str, hint: str) -> None:
    first = next(iter(found.items()), None)
    if first is None:
        raise ModelError("no adapters were named", hint="give at least one")
    for name, value in found.items():
        if value != first[1]:
            raise ModelError(f"'{name}' {relation} {value}, '{first[0]}' {relation} {first[1]}", hint=hint)
