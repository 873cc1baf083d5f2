"""The icl stage: what a config may say, what is shown, and the choice on dev."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file
from support import CONTEXT, SENTENCES, tiny_tokenizer

from quilate.config import validate
from quilate.engine.interrupts import StopRequest
from quilate.errors import ConfigError, DataError, Interrupted
from quilate.inference.scorer import PromptScorer, load_scorer
from quilate.phases.baselines import BaselineConfig
from quilate.phases.icl import ICL, IclConfig
from quilate.phases.stage import StageContext, StageReport, write_model_note
from quilate.tasks.classification import ClassificationConfig, ClassificationTask
from quilate.tasks.prepare import prepare

LABELS = {"r": "respiratorio", "d": "digestivo", "p": "piel"}


def small_task() -> ClassificationTask:
    rows = [
        {"texto": f"{sentence} Caso número {n}.", "etiqueta": "rdp"[n % 3]} for n, sentence in enumerate(SENTENCES * 4)
    ]
    value = {
        "name": "t", "text": "texto", "label": "etiqueta", "labels": LABELS, "instruction": "Clasifica.",
        "split": {"train": 20, "dev": 9, "test": 12},
    }  # fmt: skip
    return prepare(validate(ClassificationConfig, value, source="t"), {"all": rows}, {"all": {}})


def config(**keys: Any) -> IclConfig:
    return validate(IclConfig, {"kind": "icl", "precision": "fp32"} | keys, source="t")


class Folder:
    """The folders that a recipe would have made."""

    def __init__(self, root: Path, base: Path) -> None:
        self.root, self.task = root, small_task()
        self.task.save(root / "task" / "task")
        (root / "base").mkdir()
        write_model_note(root / "base", base)
        self.notes: list[str] = []

    def run(self, name: str = "arm", *, stop: StopRequest | None = None, seed: int = 3, **keys: Any) -> StageReport:
        folder = self.root / name
        folder.mkdir(exist_ok=True)
        context = StageContext(
            config=config(**keys), inputs={"task": self.root / "task", "model": self.root / "base"}, folder=folder,
            seed=seed, base_folder=self.root, listener=lambda _: None, note=self.notes.append,
            stop=StopRequest() if stop is None else stop,
        )  # fmt: skip
        return ICL.run(context)

    def scorer(self, name: str = "arm") -> PromptScorer:
        scorer = load_scorer(self.root / name / "scorer")
        assert isinstance(scorer, PromptScorer)
        return scorer


@pytest.fixture
def folder(tmp_path: Path, llama_directory: Path) -> Folder:
    return Folder(tmp_path, llama_directory)


@pytest.mark.parametrize(
    ("keys", "named"),
    [
        ({"shots": []}, "at least one"),
        ({"shots": [2, 2]}, "none twice"),
        ({"shots": -1}, "shots"),
        ({"shots": "all"}, "shots"),
        ({"shots": 2, "per_class": True, "demonstrations": "nearest"}, "per_class"),
        ({"shots": "fit", "per_class": True}, "per_class"),
        ({"shots": 2, "demonstrations": "fixed"}, "rows"),
        ({"shots": 2, "rows": ["all:1"]}, "rows"),
        ({"rows": ["all:1"], "demonstrations": "fixed"}, "how many of the `rows`"),
        ({"shots": "fit", "demonstrations": "diverse"}, "diverse"),
        ({"shots": 2, "order": "nearest_last"}, "nearest_last"),
        ({"shots": 2, "order": "given", "permutations": 3}, "permutations"),
        ({"templates": ["{{ text }}: "]}, "templates"),
        ({"domain_prompt": "Es:"}, "domain_prompt"),
        ({"domain_prompt": "Es: ", "calibration": "domain_pmi"}, "ends in a space"),
    ],
)
def test_contradictions_are_refused(keys: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        config(**keys)


def test_names_of_methods_and_which_ones_a_seed_changes() -> None:
    assert config().method() == "zero-shot" and not config().draws()
    assert config(shots=4).method() == "4-shot" and config(shots=4).draws()
    assert config(shots=2, per_class=True).method() == "2 per class"
    near = config(shots=[2, 4], demonstrations="nearest")
    assert near.method() == "2 or 4-shot, nearest" and not near.draws()
    assert config(shots=2, demonstrations="nearest", order="random").draws()
    assert not config(shots="fit", demonstrations="fixed", rows=["all:1"]).draws()
    assert config(shots="fit").method() == "as many as fit"
    assert config(shots=[0, 1, 2, 4]).method() == "0 to 4-shot"


def test_what_is_shown_is_what_was_asked_for(folder: Folder) -> None:
    rows = [folder.task.train[n].id for n in (4, 1)]
    report = folder.run(shots="fit", demonstrations="fixed", rows=rows, max_item_tokens=60)
    assert report.facts["demonstrations"] == rows
    texts = [next(i.text for i in folder.task.train if i.id == row) for row in rows]
    assert [text for text, _ in folder.scorer().demonstrations] == texts
    report = folder.run("near", shots=2, demonstrations="nearest", similarity="embedding")
    assert report.facts["train_rows"] == 20
    pool = folder.scorer("near").pool
    assert pool is not None and pool.vectors is not None and pool.vectors.shape == (20, 32)
    report = folder.run("diverse", shots=2, demonstrations="diverse", similarity="embedding", max_item_tokens=40)
    assert len(set(report.facts["demonstrations"])) == 2
    with pytest.raises(DataError, match="not among the 20 training items"):
        folder.run("test-row", shots=1, demonstrations="fixed", rows=[folder.task.test[0].id])


def test_what_is_trained_can_learn_from_the_rows_that_a_prompt_shows(folder: Folder) -> None:
    def learned(rows: int | None, seed: int = 3) -> list[str]:
        arm = validate(BaselineConfig, {"kind": "baseline", "method": "tfidf", "train_rows": rows}, source="t")
        return [item.id for item in arm.what_is_learned(folder.task, seed).train]

    report = folder.run(shots=2, max_item_tokens=40)
    assert sorted(report.facts["demonstrations"]) == sorted(learned(2)) != sorted(learned(2, seed=4))
    assert learned(7)[:4] == learned(4)
    assert learned(None) == [item.id for item in folder.task.train]
    with pytest.raises(DataError, match="21 training items are asked for and there are 20"):
        learned(21)


def test_examples_that_do_not_fit_are_left_out_and_counted(folder: Folder) -> None:
    report = folder.run(shots=20, order="given", max_item_tokens=60)
    kept = len(report.facts["demonstrations"])
    assert 0 < kept < 20
    assert report.counts["demonstrations that did not fit"] == 20 - kept
    fit = folder.run("fit", shots="fit", order="given", max_item_tokens=60)
    assert fit.facts["demonstrations"] == report.facts["demonstrations"]  # the dearest stay
    assert fit.counts["demonstrations that did not fit"] == 0
    tokenizer, longest = tiny_tokenizer(), max(len(tiny_tokenizer()(f" {v}").input_ids) for v in LABELS.values())
    [prompt] = folder.scorer().prompts([""])
    assert len(tokenizer(prompt).input_ids) <= CONTEXT - 60 - longest
    assert folder.scorer().score([i.text for i in folder.task.test]).truncated == 0


def test_the_best_on_dev_is_used_and_every_trial_is_kept(folder: Folder) -> None:
    templates = ["{{ text }}\nServicio:", "Aviso: {{ text }} Es:"]
    report = folder.run(shots=[0, 2], templates=templates, permutations=2)
    tried = report.facts["trials"]
    assert len(tried) == 6  # the order of no examples is tried once
    gold = np.array([folder.task.labels.index(item.label) for item in folder.task.dev])
    for number, entry in enumerate(tried):
        scores = load_file(folder.root / "arm" / "trials" / f"{number:03}.safetensors")["dev"]
        assert entry["score"] == pytest.approx((scores.argmax(axis=1) == gold).mean())
    best = max(entry["score"] for entry in tried)
    cheapest = min(e["tokens"] for e in tried if e["score"] == best)
    first = next(e["trial"] for e in tried if (e["score"], e["tokens"]) == (best, cheapest))
    assert first == report.facts["chosen"]
    scorer = folder.scorer()
    assert scorer.template.source == templates[report.facts["chosen"]["template"]]
    chosen = next(n for n, e in enumerate(tried) if e["trial"] == report.facts["chosen"])
    again = scorer.score([item.text for item in folder.task.dev]).scores
    np.testing.assert_array_equal(again, load_file(folder.root / "arm" / "trials" / f"{chosen:03}.safetensors")["dev"])
    assert any("6 ways tried on 9 dev items" in note for note in folder.notes)


def test_a_stopped_choice_continues_where_it_was(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    stop, scored = StopRequest(), []
    score = PromptScorer.score

    def counted(self: PromptScorer, texts: Any, on_progress: Any) -> Any:
        scored.append(len(self.demonstrations))
        if len(scored) == 2:
            stop.signal = "SIGTERM"
        return score(self, texts, on_progress)

    monkeypatch.setattr(PromptScorer, "score", counted)
    with pytest.raises(Interrupted):
        folder.run(shots=[0, 1, 2], max_item_tokens=40, stop=stop)
    assert sorted(p.name for p in (folder.root / "arm" / "trials").glob("*.json")) == ["000.json"]
    report = folder.run(shots=[0, 1, 2], max_item_tokens=40)
    assert scored == [0, 1, 1, 2]
    whole = folder.run("whole", shots=[0, 1, 2], max_item_tokens=40)
    assert json.dumps(report.facts) == json.dumps(whole.facts)
