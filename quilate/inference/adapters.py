"""Fine-tuned arms that are adapters on one base, asked side by side with the base in memory once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from quilate.errors import DataError, UsageError
from quilate.inference.prompting import LoadedModel
from quilate.inference.scorer import PromptScorer, load_scorer
from quilate.inference.scores import LabelScores
from quilate.models.adapters import AdapterSet
from quilate.models.load import load_tokenizer
from quilate.models.precision import Precision, compute_dtype


class SharedBaseScorers:
    """Scorers by name, each the adapter of a task of its own.

        scorers = SharedBaseScorers.load({"icd10": Path("runs/a/scorer"), "headqa": Path("runs/b/scorer")})
        scorers.score("headqa", ["¿Qué hormona ...?"])

    Attributes:
        labels: the labels of each scorer, in the order of its scores' columns.
    """

    def __init__(self, adapters: AdapterSet, scorers: Mapping[str, PromptScorer]) -> None:
        self._adapters, self._scorers = adapters, dict(scorers)
        self.labels = {name: list(scorer.labels) for name, scorer in scorers.items()}

    @classmethod
    def load(cls, folders: Mapping[str, Path], *, precision: Precision = "auto") -> SharedBaseScorers:
        """Load the `scorer` folders of fine-tuned arms.

        Raises:
            DataError: a folder holds no scorer, or one that writes no labels.
            ModelError: as `AdapterSet.load`.
        """
        scorers: dict[str, PromptScorer] = {}
        for name, folder in folders.items():
            scorer = load_scorer(folder)
            if not isinstance(scorer, PromptScorer):
                raise DataError(f"'{name}': {folder} is no fine-tuned classifier", hint="load it by itself")
            scorers[name] = scorer
        directories = {name: scorer.model_path.resolve() for name, scorer in scorers.items()}
        adapters = AdapterSet.load(directories, dtype=compute_dtype(precision))
        return cls(adapters, scorers)

    def score(self, name: str, texts: Sequence[str]) -> LabelScores:
        """As the named scorer alone.

        Raises:
            UsageError: there is no scorer of that name.
        """
        if name not in self._scorers:
            raise UsageError(f"there is no scorer '{name}'", hint=f"those loaded: {', '.join(self._scorers)}")
        with self._adapters.using(name) as model:
            scorer = self._scorers[name]
            return scorer.on(LoadedModel(model, load_tokenizer(scorer.model_path))).score(texts)
