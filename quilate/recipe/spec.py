"""The specification of one stage as it stands in its run directory (`config.yaml`), all a worker needs to run it."""

from __future__ import annotations

import io
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from quilate.files import read_yaml, write_text


@dataclass(frozen=True)
class StageSpec:
    """Attributes: see `graph.Node`; `inputs` maps roles to folders, `input_ids` to their names and identities."""

    name: str
    kind: str
    version: int
    id: str
    seed: int
    config: dict[str, Any]
    inputs: dict[str, str]
    input_ids: dict[str, dict[str, str]]
    base_folder: str

    def write(self, folder: Path) -> None:
        from ruamel.yaml import YAML

        text = io.StringIO()
        yaml: Any = YAML(typ="safe", pure=True)
        yaml.sort_base_mapping_type_on_output = False  # the report's inputs come in the graph's order, sources first
        yaml.dump(asdict(self), text)
        write_text(folder / "config.yaml", text.getvalue())

    @classmethod
    def read(cls, folder: Path) -> StageSpec:
        value, _ = read_yaml(folder / "config.yaml")
        return cls(**value)
