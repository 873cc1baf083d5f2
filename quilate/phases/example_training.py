"""Training a causal model on examples with supervised tokens: labelled items, or conversations."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from pydantic import Field
from torch import nn
from transformers import PreTrainedModel

from quilate.config import Config
from quilate.data.batches import ExampleBatches
from quilate.data.packing import Example
from quilate.engine.distributed import gather, shard
from quilate.engine.guards import Guards
from quilate.engine.language_modelling import LanguageModellingLoss
from quilate.engine.loop import B, Batches, FitResult, Followers, LossFunction, fit
from quilate.errors import DataError
from quilate.models.load import recompute_activations
from quilate.models.precision import Precision
from quilate.optim.adamw import AdamW
from quilate.optim.schedules import Decay, learning_rate
from quilate.phases.stage import StageContext
from quilate.rng import Streams


class ExampleTraining(Config):
    """What every stage that trains on examples can be told."""

    epochs: float = Field(default=3.0, gt=0)
    """Passes over the training items."""
    batch_size: int = Field(default=16, ge=1)
    """Items per optimizer step."""
    warmup: float = Field(default=0.06, ge=0, lt=1)
    """Share of the steps with a rising rate."""
    decay: Decay = "linear"
    """How the rate falls afterwards."""
    weight_decay: float = Field(default=0.01, ge=0)
    """AdamW's decoupled decay, on matrices only."""
    clip_norm: float = Field(default=1.0, gt=0)
    """Largest gradient norm."""
    micro_batch_tokens: int = Field(default=4096, ge=1)
    """Most tokens in memory at once; a step is divided as needed, with the same result."""
    precision: Precision = "auto"
    """`bf16` computes in bf16 over fp32 master weights, stochastically rounded; `fp32` is exact and slower."""
    checkpoint_seconds: float = Field(default=300.0, gt=0)
    """Save at least this often."""
    checkpoint_steps: int | None = Field(default=None, ge=1)
    """Save also every so many steps."""
    guards: Guards = Guards()
    """What follows when a loss spikes."""
    max_train_tokens: int | None = Field(default=None, ge=1)
    """Most tokens to train on; a recipe's token budget sets it for every arm."""


class RecomputingTraining(ExampleTraining):
    """Training in which activations may be computed again. Where models train without dropout, in evaluation mode,
    transformers would keep them all the same and say nothing."""

    gradient_checkpointing: bool = False
    """Keep only each layer's input and compute the rest again for the gradient: less memory, a third more time, the
    same result."""


def plan_batches(config: ExampleTraining, examples: Sequence[Example], seed: int) -> ExampleBatches:
    """The batches of a whole run.

    Raises:
        DataError: the token budget does not suffice for one step.
    """
    batches = ExampleBatches(
        examples,
        batch_size=config.batch_size,
        epochs=config.epochs,
        seed=seed,
        micro_batch_tokens=config.micro_batch_tokens,
        max_tokens=config.max_train_tokens,
    )
    if len(batches) == 0:
        raise DataError(
            "not one training step fits the token budget", hint="raise budget.train_tokens or lower batch_size"
        )
    return batches


def train_on_examples(
    context: StageContext[Any],
    model: PreTrainedModel,
    batches: ExampleBatches,
    streams: Streams,
    *,
    rate: float,
    rates: Mapping[str, float] | None = None,
) -> FitResult:
    """`train` a language model."""
    return train(context, model, batches, LanguageModellingLoss(model), streams, rate=rate, rates=rates)


def train(
    context: StageContext[Any],
    model: nn.Module,
    batches: Batches[B],
    loss_function: LossFunction[B],
    streams: Streams,
    *,
    rate: float,
    eps: float = 1e-8,
    measured: Callable[[], Mapping[str, float]] = dict,
    rates: Mapping[str, float] | None = None,
    followers: Followers | None = None,
) -> FitResult:
    """Train, or go on training; the model's bf16 weights end as its master's nearest.

    Args:
        eps: AdamW's; measured, followers: see `fit`.
        rate: the peak learning rate; `rates` are what it is multiplied by for some parameters, by name.

    Raises:
        Interrupted, CheckpointError, QuilateError: as `fit`.
    """
    config: ExampleTraining = context.config
    schedule = partial(
        learning_rate,
        peak=rate,
        total_steps=len(batches),
        warmup_steps=round(config.warmup * len(batches)),
        decay=config.decay,
    )
    if isinstance(config, RecomputingTraining) and config.gradient_checkpointing:
        recompute_activations(model)
    trained, sharded_loss = shard(model, loss_function)
    optimizer = AdamW(
        trained.named_parameters(), eps=eps, weight_decay=config.weight_decay, rounding=streams["rounding"], rates=rates
    )
    result = fit(
        trained, batches, sharded_loss, optimizer, schedule, streams,
        folder=context.folder, listener=context.listener, stop=context.stop, warn=context.note,
        clip_norm=config.clip_norm, checkpoint_seconds=config.checkpoint_seconds,
        checkpoint_steps=config.checkpoint_steps, guards=config.guards, measured=measured,
        followers=followers,
    )  # fmt: skip
    optimizer.write_nearest()
    gather(trained, model)
    return result


def training_flops(tokens: int, parameters: int, trainable: int, *, body_learns: bool = True) -> float:
    """Kaplan et al. 2020: 2N a token forward, 2N for the gradient of activations, 2N for that of trained weights.

    Args:
        body_learns: gradients go into the body; under a frozen one only the head has any.
    """
    return tokens * ((4.0 if body_learns else 2.0) * parameters + 2.0 * trainable)
