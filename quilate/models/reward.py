"""A reward model: a causal model's body and one linear map of the hidden state at a text's last token.

Shapes: T tokens in a row, N documents in it, D hidden size.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoModelForSequenceClassification, PreTrainedModel, PreTrainedTokenizerBase

from quilate.errors import ModelError
from quilate.models.encoder import DocumentEncoder
from quilate.models.heads import Divided
from quilate.models.load import load_classifier, save_model

# The key in config.json of the number to add to the score that transformers computes: its heads have no bias.
BIAS_KEY = "reward_bias"


class RewardModel(nn.Module):
    """Callable `(input_ids [1, T], position_ids [1, T], lengths) -> rewards [N]`, fp32.

    Args:
        model: a causal model, adapted or not, or a classifier made of one.
        score: D to 1, without a bias.
        bias: added to every reward, so that a mean reward means something across models (see `reward` stages).
        divided: the body, where `model` is a classifier.
    """

    def __init__(
        self, model: PreTrainedModel, score: nn.Linear, *, bias: float = 0.0, divided: Divided | None = None
    ) -> None:
        super().__init__()
        self.model, self.score, self.bias = model, score, bias
        self.encoder = DocumentEncoder(model, divided)

    @classmethod
    def on(cls, model: PreTrainedModel, stream: torch.Generator) -> RewardModel:
        """A fresh score on a causal model, whose own output head is no longer trained.

        The score starts as a normal of deviation 1/sqrt(D + 1) (Stiennon et al. 2020, appendix B.1).
        """
        head = model.get_output_embeddings()
        if head is not None and head.weight is not model.get_input_embeddings().weight:
            head.requires_grad_(False)
        body = (model.get_base_model() if hasattr(model, "peft_config") else model).get_input_embeddings().weight
        width = body.shape[1]
        weight = torch.randn(1, width, generator=stream) * (width + 1) ** -0.5
        score = nn.Linear(width, 1, bias=False, device=body.device, dtype=body.dtype)
        score.weight.data.copy_(weight)
        return cls(model, score)

    def forward(self, input_ids: Tensor, position_ids: Tensor, lengths: Sequence[int]) -> Tensor:
        hidden = self.encoder(input_ids, position_ids, lengths)
        ends = torch.tensor(lengths, device=hidden.device).cumsum(0) - 1
        return F.linear(hidden[ends].float(), self.score.weight.float())[:, 0] + self.bias

    def save(self, tokenizer: PreTrainedTokenizerBase, folder: Path, *, end: int) -> None:
        """Write it as a plain `AutoModelForSequenceClassification` of one label; its logit and `reward_bias` of its
        config.json make the reward. An adapter must have been merged.

        Args:
            end: the token that every text ends with. transformers reads the score at the last token that is not
                padding, so padding must be another (Huang et al. 2024: the two are often the same).
        """
        classifier = classifier_of(self.model, self.score)
        classifier.config.pad_token_id = _padding(tokenizer, end)
        rows = classifier.get_input_embeddings().weight.shape[0]
        if (
            len(tokenizer) > rows
        ):  # the new padding token: never read, so its vector may be anything, and the same always
            classifier.resize_token_embeddings(len(tokenizer), mean_resizing=False)
            classifier.get_input_embeddings().weight.data[rows:] = 0
        setattr(classifier.config, BIAS_KEY, self.bias)
        save_model(classifier, tokenizer, folder)


def load_reward_model(folder: Path, *, dtype: torch.dtype) -> RewardModel:
    """What `RewardModel.save` wrote, or any other classifier of one label on a causal body.

    Raises:
        ModelError: it cannot be loaded, or is none.
    """
    classifier = load_classifier(folder, dtype=dtype)
    score: Any = getattr(classifier, "score", None)
    linear = isinstance(score, nn.Linear)
    if not linear or score.out_features != 1 or score.bias is not None:
        raise ModelError(
            f"{folder} is no reward model: it has no linear map to one score", hint="train one with a `reward` stage"
        )
    bias = float(getattr(classifier.config, BIAS_KEY, 0.0))
    return RewardModel(classifier, score, bias=bias, divided=Divided(classifier.base_model, score)).eval()


def classifier_of(model: PreTrainedModel, score: nn.Linear) -> PreTrainedModel:
    """transformers' classifier of one label on the same body, which it shares with `model`.

    Raises:
        ModelError: transformers has none for this architecture.
    """
    config = copy(model.config)
    config.num_labels = 1
    classifier: Any  # as typed, it could not have its score replaced
    try:
        with torch.device("meta"):
            classifier = AutoModelForSequenceClassification.from_config(config)
    except ValueError as error:
        raise ModelError(
            f"transformers has no classifier for {type(model).__name__}", hint="use a Llama-, GPT-2- or Qwen-like model"
        ) from error
    if not isinstance(getattr(classifier, "score", None), nn.Linear) or not hasattr(
        classifier, model.base_model_prefix
    ):
        raise ModelError(
            f"the classifier for {type(model).__name__} is not its body and one score",
            hint="use a Llama-, GPT-2- or Qwen-like model",
        )
    setattr(classifier, model.base_model_prefix, model.base_model)
    classifier.score = score
    made: PreTrainedModel = classifier
    return made


def _padding(tokenizer: PreTrainedTokenizerBase, end: int) -> int:
    """A padding token other than `end`, set in the tokenizer; a new one if all its special tokens are `end`."""
    if tokenizer.pad_token_id is None or tokenizer.pad_token_id == end:
        names = tokenizer.special_tokens_map.values()
        other = next((t for t in names if isinstance(t, str) and tokenizer.convert_tokens_to_ids(t) != end), None)
        if other is not None:
            tokenizer.pad_token = other
        else:
            tokenizer.add_special_tokens({"pad_token": "<|pad|>"})
    return int(tokenizer.pad_token_id)
