"""Behaviour cloning from a reward-labelled data set, weighted by the rewards or of the best completions alone.

Reward-weighted regression (Peters & Schaal 2007; Peng et al. 2019 clip its weights) imitates a completion the more, the
more it earned; percentile cloning (Chen et al. 2021, "Decision Transformer", section 5.2) only the best ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor
from transformers import PreTrainedModel

from quilate.data.packing import PackedBatch
from quilate.engine.loop import FitResult
from quilate.models.encoder import DocumentEncoder
from quilate.models.load import trainable_parameters
from quilate.objectives.cross_entropy import linear_token_log_probs
from quilate.phases.align.offline import Offline, OfflineTraining, Sample, start_offline
from quilate.phases.align.outcomes import describe_outcome
from quilate.phases.example_training import plan_batches, train, training_flops
from quilate.phases.sft import DEFAULT_RATE, save_chat_model
from quilate.phases.stage import StageContext, StageKind, StageReport, once

MAX_WEIGHT = 20.0  # Peng et al. 2019, section 5: else a few completions are all that is learned


class CloningConfig(OfflineTraining):
    kind: Literal["cloning"]
    """A model imitates reward-labelled completions, the better ones more."""
    lr: float | None = Field(default=None, gt=0)
    """Peak learning rate; by default 2e-5 for `full`, 2e-4 for `lora`."""
    reward_temperature: float | None = Field(default=1.0, gt=0)
    """A completion weighs exp(z / this), z its reward in standard deviations from the mean, at most 20 (reward-weighted
    regression); `null` weighs all alike."""
    best: float = Field(default=1.0, gt=0, le=1)
    """Share of the completions that is learned from: the best ones, ties included."""


class WeightedCloning:
    """Callable `(batch) -> sum of -weight log p` over the completions' tokens; a batch's ids name the weights."""

    def __init__(self, model: PreTrainedModel, weights: dict[str, float]) -> None:
        self.encoder, self.weights = DocumentEncoder(model), weights

    def __call__(self, batch: PackedBatch) -> Tensor:
        batch = batch.to(self.encoder.device)
        divided = self.encoder.divided
        hidden = self.encoder(batch.input_ids, batch.position_ids, batch.lengths)
        predicting = divided.transform(hidden[batch.source_positions])
        log_probs = linear_token_log_probs(predicting, divided.head.weight, divided.head.bias, batch.targets)
        weights = torch.tensor([self.weights[id] for id in batch.ids], device=log_probs.device)
        return -(log_probs * weights[documents_of(batch)]).sum()


def documents_of(batch: PackedBatch) -> Tensor:
    """[S] the document, by its place in the batch, of every supervised token."""
    device = batch.source_positions.device
    lengths = torch.tensor(batch.lengths, device=device)
    return torch.repeat_interleave(torch.arange(len(lengths), device=device), lengths)[batch.source_positions]


def weights_of(rewards: NDArray[np.float64], temperature: float | None) -> NDArray[np.float64]:
    """exp(z / temperature), clipped, scaled to a mean of 1 so that the learning rate means the same."""
    spread = float(rewards.std())
    if temperature is None or spread == 0:
        return np.ones_like(rewards)
    z = (rewards - rewards.mean()) / spread
    weights = np.exp(np.minimum(z / temperature, np.log(MAX_WEIGHT)))
    scaled: NDArray[np.float64] = weights / weights.mean()
    return scaled


def best_of(samples: Sequence[Sample], share: float) -> list[Sample]:
    """The best `share` of them by reward, and all that tie with the last of these."""
    wanted = max(1, round(share * len(samples)))
    least = sorted((sample.reward for sample in samples), reverse=True)[wanted - 1]
    return [sample for sample in samples if sample.reward >= least]


def _run(context: StageContext[CloningConfig]) -> StageReport:
    return clone(start_offline(context))


def clone(offline: Offline) -> StageReport:
    """Measure, train, measure, save.

    Raises:
        Interrupted, CheckpointError, QuilateError: as `fit`.
    """
    context = offline.context
    config: CloningConfig = context.config
    before = once(context.folder / "before.json", lambda: offline.measure("before"))
    chosen = best_of(offline.samples, config.best)
    weights = weights_of(np.array([s.reward for s in chosen], dtype=np.float64), config.reward_temperature)
    by_id = {s.example.id: float(weight) for s, weight in zip(chosen, weights, strict=True)}
    batches = plan_batches(config, [s.example for s in chosen], context.seed)
    rate = config.lr or DEFAULT_RATE[config.method]
    fitted = train(context, offline.model, batches, WeightedCloning(offline.model, by_id), offline.streams, rate=rate)
    offline.counts["completions not among the best"] = len(offline.samples) - len(chosen)
    offline.counts["visits over the token budget"] = batches.examples_left_out
    after = offline.measure("after")
    save_chat_model(context.folder, offline.model, offline.template)
    effective = float(weights.sum() ** 2 / (weights**2).sum())
    return offline_report(offline, fitted, before, after, effective_completions=round(effective, 1))


def offline_report(
    offline: Offline,
    fitted: FitResult,
    before: dict[str, Any],
    after: dict[str, Any],
    **facts: float,
) -> StageReport:
    """What a stage on a reward-labelled data set says of itself; every set of `after` is one of `before` as well."""
    rewards = [sample.reward for sample in offline.samples]
    if offline.measure_name == "reward":
        for name, found in after.items():
            describe_outcome(offline.context, name, before[name], found)
    parameters, trainable = sum(p.numel() for p in offline.model.parameters()), trainable_parameters(offline.model)
    return StageReport(
        train_tokens=fitted.tokens,
        flops=training_flops(fitted.tokens, parameters, trainable),
        trainable_parameters=trainable,
        counts={
            **{reason: count for reason, count in offline.counts.items() if count},
            **fitted.incidents(),
        },
        facts={
            "completions": len(rewards),
            "mean_reward": round(float(np.mean(rewards)), 4),
            "best_reward": max(rewards),
            "steps": fitted.steps,
            "parameters": parameters,
            "measure": offline.measure_name,
            "before": {name: found["score"]["mean"] for name, found in before.items()},
            "after": {name: found["score"]["mean"] for name, found in after.items()},
            "held_out": {name: {"before": before[name], "after": after[name]} for name in after},
            "dtype": str(offline.model.dtype).removeprefix("torch."),
            **facts,
        },
    )


CLONING = StageKind("cloning", 1, CloningConfig, _run)
