"""PPO from a learned or given reward (Ouyang et al. 2022; details of Huang et al. 2024, "The N+ implementation details
of RLHF with PPO"), optionally with pretraining text mixed in (PPO-ptx)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from quilate.config import Config
from quilate.data.packing import Example
from quilate.errors import DataError
from quilate.objectives.policy_gradient import (
    adapted_beta,
    gae,
    masked_whiten,
    ppo_value_loss,
    token_kl,
    token_rewards,
)
from quilate.phases.align.experience import ValuePart
from quilate.phases.align.online import Method, OnlineTraining, default_rate, learn, start
from quilate.phases.align.rollouts import Rollouts
from quilate.phases.align.scoring import Scores
from quilate.phases.corpus import corpus_documents
from quilate.phases.stage import StageContext, StageKind, StageReport
from quilate.rng import numpy_stream
from quilate.tokenization.segments import prompt_tokens

DEFAULT_RATE = {"full": 3e-6, "lora": 3e-5}  # Huang et al. 2024; LoRA's ten times that


class TextMix(Config):
    """Pretraining text learned beside the rewards (PPO-ptx), against what alignment costs in general ability."""

    corpora: list[str] = Field(min_length=1)
    """Corpora of the recipe."""
    weight: float = Field(default=27.8, gt=0)
    """Of the text's mean loss a token against the policy's (Ouyang et al. 2022)."""
    pieces: int = Field(default=8, ge=1)
    """Pieces of text an optimizer step."""
    length: int = Field(default=256, ge=8)
    """Longest piece in tokens."""


class PpoConfig(OnlineTraining):
    kind: Literal["ppo"]
    """A policy learns from rewards, with a model of what is still to be earned."""
    lr: float | None = Field(default=None, gt=0)
    """Peak learning rate; by default 3e-6 for `full`, 3e-5 for `lora`."""
    passes: int = Field(default=4, ge=1)
    """How often an iteration's completions are learned from before new ones are written."""
    kl_target: float | None = Field(default=None, gt=0)
    """Nats a completion that `beta` is adapted to reach (Ziegler et al. 2019); by default it stays."""
    kl_horizon: int = Field(default=10_000, ge=1)
    """Completions in which `beta` is adapted by at most a fifth of itself."""
    gamma: float = Field(default=1.0, ge=0, le=1)
    """Discount of later rewards, a token."""
    lam: float = Field(default=0.95, ge=0, le=1)
    """Of generalized advantage estimation: 0 trusts the value model, 1 the rewards alone."""
    value_weight: float = Field(default=0.1, gt=0)
    """Of the value model's loss against the policy's."""
    value_clip: float = Field(default=0.2, gt=0)
    """Furthest that a value is pushed by one iteration."""
    text: TextMix | None = None
    """Pretraining text to learn beside (PPO-ptx)."""

    @model_validator(mode="after")
    def _beta_can_be_adapted(self) -> PpoConfig:
        if self.kl_target is not None and self.beta == 0:
            raise ValueError("`kl_target` adapts `beta`, which must then begin above 0")
        return self


class TextPieces:
    """Callable `(step) -> (examples, weight)`: pieces of documents in shuffled epochs, a function of the step.

    Attributes:
        most_tokens: of a step.
    """

    def __init__(self, documents: Sequence[str], tokenizer: PreTrainedTokenizerBase, mix: TextMix, seed: int) -> None:
        end = [] if tokenizer.eos_token_id is None else [int(tokenizer.eos_token_id)]
        rows = [tokens + end for tokens in prompt_tokens(tokenizer, documents)]
        pieces = [row[at : at + mix.length] for row in rows for at in range(0, len(row), mix.length)]
        self.pieces = [np.array(piece, dtype=np.int64) for piece in pieces if len(piece) > 1]
        if not self.pieces:
            raise DataError("the corpora of `text` hold nothing to learn", hint="name other corpora")
        self.mix, self.seed = mix, seed
        self.most_tokens = mix.pieces * max(map(len, self.pieces))

    def __call__(self, step: int) -> tuple[list[Example], float]:
        examples = []
        for visit in range(step * self.mix.pieces, (step + 1) * self.mix.pieces):
            epoch, place = divmod(visit, len(self.pieces))
            index = int(numpy_stream(self.seed, "text", epoch).permutation(len(self.pieces))[place])
            piece = self.pieces[index]
            examples.append(Example(f"text {index}", piece, np.arange(len(piece)) > 0))
        return examples, self.mix.weight


def ppo(config: PpoConfig, texts: TextPieces | None = None) -> Method:
    """What PPO adds to the common part."""

    def advantages(rollouts: Rollouts, scores: Scores, beta: float) -> tuple[Tensor, Tensor]:
        assert rollouts.values is not None  # `start` was told to make a value model
        kl = token_kl(rollouts.log_probs, rollouts.reference, "k1")
        by_token = torch.zeros_like(kl) if scores.by_token is None else scores.by_token
        rewards = by_token + token_rewards(scores.total - by_token.sum(1), kl, rollouts.mask, beta=beta)
        estimated = gae(rewards, rollouts.values, rollouts.mask, gamma=config.gamma, lam=config.lam)
        return masked_whiten(estimated.advantages, rollouts.mask), estimated.returns

    def value_loss(part: ValuePart, values: Tensor) -> tuple[Tensor, Tensor]:
        everywhere = torch.ones_like(values, dtype=torch.bool)
        losses, clipped = ppo_value_loss(
            values, part.old_values.to(values), part.returns.to(values), everywhere, clip=config.value_clip
        )
        return config.value_weight * losses, clipped

    def next_beta(logs: list[dict[str, Any]]) -> float:
        if not logs or config.kl_target is None:
            return config.beta
        last = logs[-1]
        return adapted_beta(
            last["beta"], last["kl"], target=config.kl_target, samples=last["completions"], horizon=config.kl_horizon
        )

    rate = default_rate(config, DEFAULT_RATE)
    text_tokens = 0 if texts is None else texts.most_tokens
    return Method(rate, advantages, next_beta, value_loss=value_loss, texts=texts, text_tokens=text_tokens)


def _run(context: StageContext[PpoConfig]) -> StageReport:
    config = context.config
    online = start(context, value=True)
    texts = None
    if config.text is not None:
        documents = [document for name in config.text.corpora for document in _documents(context.inputs, name)]
        texts = TextPieces(documents, online.template.tokenizer, config.text, context.seed)
    return learn(online, ppo(config, texts))


def _documents(inputs: dict[str, Path], name: str) -> list[str]:
    return corpus_documents(inputs[f"corpus:{name}"], "train")


PPO = StageKind("ppo", 3, PpoConfig, _run)
