"""Scorers of texts that may have several labels: a classifier's log-odds of each."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from quilate.files import make_folder, write_json
from quilate.inference.scorer import ProgressCallback, movable, silent
from quilate.inference.scores import LabelScores
from quilate.models.precision import Precision, compute_dtype

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class LabelSetScorer:
    """A trained classifier of texts on a causal body. Longer texts are read in windows, and their log-odds averaged,
    each window weighing as much as what it alone shows (Pappagari et al. 2019 average too).

    Args:
        model: its directory, as `quilate.models.load.load_classifier` reads it.
        labels: in the order of its outputs.
        max_item_tokens: the longest window; never more than the model's context.
    """

    def __init__(self, model: Path, labels: list[str], *, max_item_tokens: int, precision: Precision = "auto") -> None:
        self.model_path, self.labels = model, labels
        self._settings = {"labels": labels, "max_item_tokens": max_item_tokens, "precision": precision}
        self._max_item_tokens, self._precision = max_item_tokens, precision
        self._loaded: tuple[PreTrainedModel, PreTrainedTokenizerBase] | None = None

    def score(self, texts: Sequence[str], on_progress: ProgressCallback = silent) -> LabelScores:
        """`scores` [texts, labels]: log-odds."""
        # Here, not above: transformers takes seconds to import, and the other scorers do without it.
        from quilate.inference.features import encode
        from quilate.models.heads import classifier_of
        from quilate.models.load import load_classifier, load_tokenizer

        if self._loaded is None:
            dtype = compute_dtype(self._precision)
            self._loaded = load_classifier(self.model_path, dtype=dtype), load_tokenizer(self.model_path)
        model, tokenizer = self._loaded
        features = encode(
            model, tokenizer, texts, pooling="last", max_tokens=self._max_item_tokens, long="windows",
            on_progress=on_progress,
        )  # fmt: skip
        classifier: Any = classifier_of(model.get_base_model() if hasattr(model, "peft_config") else model)
        # The map is linear: that of the averaged vectors is the average of the windows' log-odds.
        scores = features.vectors.astype(np.float64) @ classifier.weight.detach().double().cpu().numpy().T
        if classifier.bias is not None:
            scores += classifier.bias.detach().double().cpu().numpy()
        return LabelScores(scores, features.truncated, features.tokens, features.counts())

    def save(self, folder: Path) -> None:
        make_folder(folder)
        saved = {"kind": "label sets", "model": movable(self.model_path, folder)}
        write_json(folder / "scorer.json", saved | self._settings)

    @classmethod
    def load(cls, folder: Path, saved: dict[str, Any]) -> LabelSetScorer:
        fields = {k: v for k, v in saved.items() if k not in ("kind", "model")}
        return cls(folder / saved["model"], **fields)
