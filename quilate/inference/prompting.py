"""A loaded model that is asked with prompts: which demonstrations fit, and what it then says of every label."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from quilate.inference.demonstrations import Pool, most_that_fit
from quilate.inference.features import encode
from quilate.inference.likelihood import score_tokens
from quilate.inference.prompts import Demonstration, Layout, Prompt
from quilate.inference.scores import LabelScores, Normalization, by_characters
from quilate.models.load import context_length, load_causal, load_tokenizer
from quilate.tokenization.segments import answer_tokens

EMBEDDED_TOKENS = 512  # guess: what a text is about stands within them


def _silent(done: int, total: int) -> None:
    pass


@dataclass(frozen=True)
class LoadedModel:
    """A causal model and its tokenizer."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase

    @classmethod
    def of(cls, directory: Path, dtype: torch.dtype) -> LoadedModel:
        return cls(load_causal(directory, dtype=dtype), load_tokenizer(directory))

    def asker(
        self, layout: Layout, verbalizers: Sequence[str], normalization: Normalization, max_prompt_tokens: int | None
    ) -> Asker:
        labels = answer_tokens(self.tokenizer, verbalizers, start=layout.answer_start)
        return Asker(self, layout, verbalizers, labels, normalization, max_prompt_tokens)

    def embed(self, texts: Sequence[str]) -> NDArray[np.floating]:
        """[texts, D] the model's last hidden states, averaged over each text."""
        inner = self.model.get_base_model() if hasattr(self.model, "peft_config") else self.model
        attention = inner.config._attn_implementation
        try:
            return encode(self.model, self.tokenizer, texts, pooling="mean", max_tokens=EMBEDDED_TOKENS).vectors
        finally:
            inner.set_attn_implementation(attention)  # encoding packs documents, which scoring does not

    def nearest_that_fit(
        self, layout: Layout, pool: Pool, texts: Sequence[str], verbalizers: Sequence[str]
    ) -> tuple[list[list[Demonstration]], int]:
        """Each text's nearest examples, as many as were asked for and fit; and how many texts have fewer.

        A text keeps its place before the examples, up to half the context.
        """
        if not texts:
            return [], 0
        wanted = len(pool.examples) if pool.shots is None else min(pool.shots, len(pool.examples))
        limit = prompt_limit(layout, self.tokenizer, verbalizers, context_length(self.model))
        ranking = pool.rank(texts, self.embed)
        shown, fewer = [], 0
        for ranked, text in zip(ranking.tolist(), texts, strict=True):
            chosen = self._fit(layout, pool, ranked[:wanted], text, limit)
            fewer += pool.shots is not None and len(chosen) < pool.shots
            shown.append(chosen)
        return shown, fewer

    def _fit(self, layout: Layout, pool: Pool, ranked: list[int], text: str, limit: int) -> list[Demonstration]:
        alone = length_of(layout, self.tokenizer, layout.prompt([], text))
        excess = max(0, alone - limit // 2)  # what will be cut from a very long text

        def cost(count: int) -> int:
            arranged = pool.arranged(ranked[:count], text)
            return length_of(layout, self.tokenizer, layout.prompt(arranged, text)) - excess

        return pool.arranged(ranked[: most_that_fit(cost, limit, len(ranked))], text)


def nearest_that_fit(
    layout: Layout, tokenizer: PreTrainedTokenizerBase, ranked: Sequence[Demonstration], question: str, limit: int
) -> list[Demonstration]:
    """As many of these (question, answer) examples as fit before a question, the first of them right before it. The
    question keeps its place before the examples, up to half of `limit`."""

    def cost(count: int) -> int:
        return length_of(layout, tokenizer, layout.write(ranked[:count][::-1], question)) - excess

    excess = 0
    excess = max(0, cost(0) - limit // 2)  # what will be cut from a very long question
    return list(ranked[: most_that_fit(cost, limit, len(ranked))][::-1])


def prompt_limit(layout: Layout, tokenizer: PreTrainedTokenizerBase, verbalizers: Sequence[str], context: int) -> int:
    """Tokens that a prompt may have, so that the longest label still fits."""
    return context - max(map(len, answer_tokens(tokenizer, verbalizers, start=layout.answer_start)))


def length_of(layout: Layout, tokenizer: PreTrainedTokenizerBase, prompt: Prompt) -> int:
    """Tokens of a whole prompt."""
    return len(layout.tokens(tokenizer, [str(prompt)])[0])


@dataclass(frozen=True)
class Asker:
    """Callable `(demonstrations of each text, texts, on_progress) -> LabelScores`."""

    loaded: LoadedModel
    layout: Layout
    verbalizers: Sequence[str]
    labels: list[list[int]]
    normalization: Normalization
    max_prompt_tokens: int | None

    def __call__(
        self,
        shown: Sequence[Sequence[Demonstration]],
        texts: Sequence[str],
        on_progress: Callable[[int, int], None] = _silent,
    ) -> LabelScores:
        return self._score([self.layout.prompt(d, t) for d, t in zip(shown, texts, strict=True)], on_progress)

    def premise(self, words: str) -> LabelScores:
        """The labels' scores after these words alone."""
        return self._score([self.layout.premise(words)], _silent)

    def _score(self, prompts: Sequence[Prompt], on_progress: Callable[[int, int], None]) -> LabelScores:
        tokenizer = self.loaded.tokenizer
        whole = self.layout.tokens(tokenizer, [str(prompt) for prompt in prompts])
        heads = list({prompt.head for prompt in prompts})
        lengths = dict(zip(heads, map(len, self.layout.tokens(tokenizer, heads)), strict=True))
        own = [len(tokens) - lengths[prompt.head] for tokens, prompt in zip(whole, prompts, strict=True)]
        found = score_tokens(
            self.loaded.model,
            whole,
            self.labels,
            item_lengths=own,
            max_prompt_tokens=self.max_prompt_tokens,
            normalization=self.normalization,
            on_progress=on_progress,
        )
        return by_characters(found, [self.verbalizers] * len(whole)) if self.normalization == "characters" else found
