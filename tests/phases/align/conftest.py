"""The folders that a recipe would have made."""

from __future__ import annotations

from pathlib import Path

import pytest
from judged import Folder


@pytest.fixture
def folder(tmp_path: Path, llama_directory: Path) -> Folder:
    return Folder(tmp_path, llama_directory)
