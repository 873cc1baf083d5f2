"""What a model may write next under a grammar, by llguidance (the extra `grammar`)."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from quilate.errors import MachineError, ModelError, QuilateError


class GrammarTokens:
    """A tokenizer as the grammar engine wants it; made once for a model.

    Args:
        vocabulary: how many logits the model has; those beyond the tokenizer's tokens are never allowed.

    Raises:
        MachineError: llguidance is not installed.
        ModelError: the tokenizer is no fast one, or has no token that ends a text.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, vocabulary: int) -> None:
        try:
            from llguidance.hf import from_tokenizer
        except ImportError as error:
            raise MachineError(
                "records under a grammar need llguidance, which is not installed",
                hint="pip install 'quilate[grammar]'",
            ) from error
        if not tokenizer.is_fast or tokenizer.eos_token_id is None:
            raise ModelError(
                f"{type(tokenizer).__name__} cannot be used with a grammar: it is not a fast one, or no token ends a "
                "text",
                hint="use a model with a tokenizer.json and an end-of-sequence token",
            )
        self.vocabulary = vocabulary
        self.tokens: Any = from_tokenizer(tokenizer, n_vocab=vocabulary)


class GrammarConstraint:
    """Holds one sequence to a grammar (Lark): `allowed` says which tokens may come next, `advance` is told the choice.

    Raises:
        QuilateError: the grammar is none.
    """

    def __init__(self, tokens: GrammarTokens, grammar: str) -> None:
        from llguidance import LLMatcher

        self._vocabulary = tokens.vocabulary
        self._matcher = LLMatcher(tokens.tokens, LLMatcher.grammar_from_lark(grammar))
        self._check()

    def allowed(self) -> Tensor:
        """[V] bool; at the grammar's end the end of the sequence alone."""
        bits = np.zeros(-(-self._vocabulary // 32), dtype=np.int32)
        self._matcher.unsafe_compute_mask_ptr(bits.ctypes.data, bits.nbytes)
        self._check()
        allowed = np.unpackbits(bits.view(np.uint8), bitorder="little")[: self._vocabulary]
        return torch.from_numpy(allowed.astype(bool))

    def advance(self, token: int) -> None:
        """The sequence went on with a token."""
        self._matcher.consume_token(token)
        self._check()

    def _check(self) -> None:
        if self._matcher.is_error():
            raise QuilateError(f"the grammar engine gave up: {self._matcher.get_error()}")
