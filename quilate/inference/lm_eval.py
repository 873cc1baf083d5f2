"""A prompted arm's test items as a task of EleutherAI's lm-evaluation-harness, so that others can check its score."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from quilate.errors import UsageError
from quilate.files import make_folder, write_jsonl, write_text
from quilate.inference.choice import ChoicePromptScorer, said_answers
from quilate.inference.scorer import PromptScorer
from quilate.tasks.labels import Item
from quilate.tasks.multiple_choice import ChoiceItem

# How the harness names our normalizations; it has no mean over tokens and no first token.
METRICS = {"sum": "acc", "characters": "acc_norm"}


def write_lm_eval(
    scorer: PromptScorer | ChoicePromptScorer, name: str, items: Sequence[Item], folder: Path
) -> tuple[Path, str]:
    """Write `NAME.yaml` and `NAME.jsonl` into a private folder; returns the YAML's path and the metric of the harness
    that is the arm's accuracy.

    Prompts are written whole, demonstrations included, so the harness adds no shots of its own. Its `acc` takes the
    answer with the highest summed log-probability after the prompt, as `normalization: sum` does here, its `acc_norm`
    divides the sum by the answer's characters, as `characters` does.

    Args:
        name: the task's name there, made fit for one.

    Raises:
        UsageError: the harness has no such score as the arm's.
    """
    if scorer.normalization not in METRICS or scorer.calibration != "none":
        raise UsageError(
            "lm-eval scores answers by their summed log-probability, over their characters or not; this arm has "
            f"normalization {scorer.normalization} and calibration {scorer.calibration}",
            hint="export an icl arm with `normalization: sum` or `characters` and `calibration: none`, or one that was "
            "tuned to say labels or letters",
        )
    task = re.sub(r"\W+", "_", name).strip("_").lower()
    make_folder(folder)
    data = (folder / f"{task}.jsonl").resolve()
    write_jsonl(data, _rows(scorer, items))
    chat = isinstance(scorer, PromptScorer) and scorer.style == "chat"
    config = {
        "task": task,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(data)}},
        "output_type": "multiple_choice",
        "test_split": "test",
        "num_fewshot": 0,
        "doc_to_text": "{{prompt}}",
        "doc_to_choice": list(scorer.verbalizers) if isinstance(scorer, PromptScorer) else "{{choices}}",
        "doc_to_target": "gold",
        "target_delimiter": "" if chat else " ",
        "metric_list": [{"metric": m, "aggregation": "mean", "higher_is_better": True} for m in METRICS.values()],
        "metadata": {"version": 1},
    }
    text = io.StringIO()
    _yaml().dump(config, text)
    write_text(folder / f"{task}.yaml", text.getvalue())
    return folder / f"{task}.yaml", METRICS[scorer.normalization]


def _rows(scorer: PromptScorer | ChoicePromptScorer, items: Sequence[Item]) -> list[dict[str, Any]]:
    """One an item; a question has choices of its own."""
    if isinstance(scorer, PromptScorer):
        prompts = scorer.prompts([item.text for item in items])
        gold = [scorer.labels.index(item.label) for item in items]
        return [{"id": i.id, "prompt": p, "gold": g} for i, p, g in zip(items, prompts, gold, strict=True)]
    questions = [item for item in items if isinstance(item, ChoiceItem)]
    return [
        {"id": q.id, "prompt": prompt, "choices": list(said_answers(q, scorer.form)), "gold": q.right}
        for q, prompt in zip(questions, scorer.prompts(questions), strict=True)
    ]


def _yaml() -> Any:
    from ruamel.yaml import YAML

    yaml: Any = YAML(typ="safe", pure=True)
    yaml.sort_base_mapping_type_on_output = False
    yaml.default_flow_style = False
    yaml.allow_unicode = True
    return yaml
