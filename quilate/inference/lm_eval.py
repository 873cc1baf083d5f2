"""A prompted arm's test items as a task of EleutherAI's lm-evaluation-harness, so that others can check its score."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from quilate.errors import UsageError
from quilate.files import make_folder, write_jsonl, write_text
from quilate.inference.scorer import PromptScorer
from quilate.tasks.labels import Item


def write_lm_eval(scorer: PromptScorer, name: str, items: Sequence[Item], folder: Path) -> Path:
    """Write `NAME.yaml` and `NAME.jsonl` into a private folder; returns the YAML's path.

    Prompts are written whole, demonstrations included, so the harness adds no shots of its own. Its `acc` takes the
    label with the highest summed log-probability after the prompt, as `normalization: sum` does here.

    Args:
        name: the task's name there, made fit for one.

    Raises:
        UsageError: the harness has no such score as the arm's.
    """
    if scorer.normalization != "sum" or scorer.calibration != "none":
        raise UsageError(
            f"lm-eval scores labels by their summed log-probability; this arm has normalization {scorer.normalization}"
            f" and calibration {scorer.calibration}",
            hint="export a fine-tuned arm, or one with `normalization: sum` and `calibration: none`",
        )
    task = re.sub(r"\W+", "_", name).strip("_").lower()
    rows: list[dict[str, Any]] = [
        {"id": item.id, "prompt": prompt, "gold": scorer.labels.index(item.label)}
        for item, prompt in zip(items, scorer.prompts([item.text for item in items]), strict=True)
    ]
    make_folder(folder)
    data = (folder / f"{task}.jsonl").resolve()
    write_jsonl(data, rows)
    config = {
        "task": task,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(data)}},
        "output_type": "multiple_choice",
        "test_split": "test",
        "num_fewshot": 0,
        "doc_to_text": "{{prompt}}",
        "doc_to_choice": list(scorer.verbalizers),
        "doc_to_target": "gold",
        "target_delimiter": "" if scorer.style == "chat" else " ",
        "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
        "metadata": {"version": 1},
    }
    text = io.StringIO()
    _yaml().dump(config, text)
    write_text(folder / f"{task}.yaml", text.getvalue())
    return folder / f"{task}.yaml"


def _yaml() -> Any:
    from ruamel.yaml import YAML

    yaml: Any = YAML(typ="safe", pure=True)
    yaml.sort_base_mapping_type_on_output = False
    yaml.default_flow_style = False
    yaml.allow_unicode = True
    return yaml
