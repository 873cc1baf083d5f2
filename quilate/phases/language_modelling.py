"""Training on raw text, whether a model is new (pretrain) or adapted to a domain (adapt)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field, field_validator, model_validator
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from quilate.config import Config
from quilate.data.masking import mask_tokens
from quilate.data.packing import Example
from quilate.data.tokens import TokenBatches, open_shard, write_shard
from quilate.engine.distributed import gather, shard
from quilate.engine.guards import Guards
from quilate.engine.language_modelling import LanguageModellingLoss
from quilate.engine.loop import FitResult, fit
from quilate.errors import DataError
from quilate.evaluation.bits_per_byte import masked_loss, text_loss
from quilate.files import digest
from quilate.models.load import recompute_activations, trainable_parameters
from quilate.models.precision import Precision
from quilate.optim.choice import OptimizerName, make_optimizer
from quilate.optim.schedules import Decay, learning_rate
from quilate.optim.sophia import Sophia
from quilate.phases.corpus import canaries_of, corpus_documents
from quilate.phases.stage import StageContext, StageReport
from quilate.rng import Streams, numpy_stream
from quilate.tasks.kinds import load_task
from quilate.tokenization.segments import plain_tokens
from quilate.tokenization.train import measure_fit

TASK_CORPUS = "task"  # the name under which `corpora` means the task's own training texts


class TextTraining(Config):
    """What every stage that trains on raw text can be told."""

    corpora: dict[str, float] = Field(min_length=1)
    """Share of each corpus in the training tokens; the name `task` means the task's own training texts (TAPT). A
    general corpus beside a domain one is replay: it keeps the model from forgetting."""
    once: bool = False
    """Make the model once, with the recipe's first seed, for all seeds of what stands on it. Cheaper; how much another
    seed would have changed it is then in no interval, and the report says so."""
    tokens: int = Field(default=1_000_000, ge=1)
    """Training tokens in all."""
    batch_tokens: int = Field(default=8192, ge=1)
    """Tokens an optimizer step."""
    length: int = Field(default=512, ge=8)
    """Longest piece of a document, in tokens."""
    warmup: float = Field(default=0.05, ge=0, lt=1)
    """Share of the steps with a rising rate; a base is re-warmed too."""
    decay: Decay = "cosine"
    """How the rate falls afterwards."""
    floor: float = Field(default=0.1, ge=0, le=1)
    """Share of the peak rate at which the fall ends."""
    optimizer: OptimizerName = "adamw"
    """`sophia_g` and `sophia_h` divide by an estimate of curvature (Liu et al. 2023), whose cost is counted; `muon`
    orthogonalizes the updates of hidden matrices (Jordan 2024)."""
    sophia_gamma: float | None = Field(default=None, gt=0)
    """How much curvature counts in Sophia, to be tuned until `unclipped` in the metrics is between 0.1 and 0.5; by
    default the paper's 0.05 for `sophia_g`, 0.01 for `sophia_h`."""
    weight_decay: float | None = Field(default=None, ge=0)
    """Decoupled decay, on matrices only; by default 0.1 (Brown et al. 2020, appendix B), for Sophia 0.2 (its code)."""
    clip_norm: float = Field(default=1.0, gt=0)
    """Largest gradient norm."""
    micro_batch_tokens: int = Field(default=4096, ge=1)
    """Most tokens in memory at once."""
    gradient_checkpointing: bool = False
    """Keep only each layer's input and compute the rest again for the gradient: less memory, a third more time, the
    same result."""
    precision: Precision = "auto"
    """`bf16` computes in bf16 over fp32 master weights, stochastically rounded; `fp32` is exact and slower."""
    checkpoint_seconds: float = Field(default=300.0, gt=0)
    """Save at least this often."""
    checkpoint_steps: int | None = Field(default=None, ge=1)
    """Save also every so many steps."""
    guards: Guards = Guards()
    """What follows when a loss spikes."""

    @model_validator(mode="after")
    def _gamma_has_its_optimizer(self) -> TextTraining:
        if self.sophia_gamma is not None and not self.optimizer.startswith("sophia"):
            raise ValueError("`sophia_gamma` goes with `optimizer: sophia_g` or `sophia_h`")
        return self

    @field_validator("corpora")
    @classmethod
    def _weights_above_zero(cls, corpora: dict[str, float]) -> dict[str, float]:
        for name, weight in corpora.items():
            if not weight > 0:
                raise ValueError(
                    f"the weight of '{name}' is {weight}: weights must be above zero; leave a corpus out instead"
                )
        return corpora


@dataclass(frozen=True)
class CorpusMixture:
    """Documents by corpus; `task` texts have no held-out part of their own. `inserted` are canaries: trained on, but
    in no tokenizer's sample."""

    train: dict[str, list[str]]
    held_out: dict[str, list[str]]
    weights: dict[str, float]
    inserted: dict[str, list[str]] = field(default_factory=dict)

    @classmethod
    def of(cls, inputs: dict[str, Path], weights: dict[str, float]) -> CorpusMixture:
        """Read the finished corpus stages among the inputs (roles `corpus:NAME`); those without a weight only
        measure."""
        folders = {role.removeprefix("corpus:"): path for role, path in inputs.items() if role.startswith("corpus:")}
        train = {name: corpus_documents(folders[name], "train") for name in weights if name != TASK_CORPUS}
        if TASK_CORPUS in weights:
            train[TASK_CORPUS] = [item.content for item in load_task(inputs["task"] / "task").train]
        held_out = {name: corpus_documents(folder, "held_out") for name, folder in folders.items()}
        canaries = {name: canaries_of(folders[name]) for name in train if name != TASK_CORPUS}
        inserted = {name: found.documents() for name, found in canaries.items() if found is not None}
        return cls(train, held_out, weights, inserted)

    def sample(self, limit: int) -> Iterator[str]:
        """Documents of every corpus in turn, up to `limit` bytes."""
        size = 0
        longest = max(map(len, self.train.values()))
        for index in range(longest):
            for documents in self.train.values():
                if index < len(documents) and size < limit:
                    size += len(documents[index].encode())
                    yield documents[index]


@dataclass(frozen=True)
class TrainedOnText:
    """`measured` values are bits per byte, or nats per masked token for a masked model; `estimate_cost` is what a token
    costs in an estimate of curvature, in training tokens."""

    fitted: FitResult
    tokens_of: dict[str, int]
    epochs: dict[str, float]
    estimate_cost: float

    def report(
        self, model: PreTrainedModel, *, measured: dict[str, float], before: dict[str, float] | None
    ) -> StageReport:
        parameters = sum(p.numel() for p in model.parameters())
        return StageReport(
            train_tokens=self.fitted.tokens,
            flops=6.0 * parameters * (self.fitted.tokens + self.estimate_cost * self.fitted.curvature_tokens),
            trainable_parameters=trainable_parameters(model),
            counts={
                **self.fitted.incidents(),
                "refused estimates of curvature": self.fitted.refused_estimates,
            },
            facts={
                "steps": self.fitted.steps,
                "curvature_tokens": self.fitted.curvature_tokens,
                "tokens_of": self.tokens_of,
                "epochs": self.epochs,
                "parameters": parameters,
                "measure": "nats per masked token" if is_masked(model) else "bits per byte",
                "before": before,
                "after": measured,
                "dtype": str(next(model.parameters()).dtype).removeprefix("torch."),
            },
        )


def is_masked(model: PreTrainedModel) -> bool:
    return "MaskedLM" in type(model.get_base_model() if hasattr(model, "peft_config") else model).__name__


def train_on_text(
    context: StageContext[Any],
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    mixture: CorpusMixture,
    streams: Streams,
    *,
    rate: float,
) -> TrainedOnText:
    """Tokenize the mixture into shards, then train; the model's bf16 weights end as its master's nearest.

    Raises:
        DataError: the tokenizer does not fit the model, or a corpus is too small to give one piece.
    """
    config: TextTraining = context.config
    rows = model.get_input_embeddings().weight.shape[0]
    if len(tokenizer) > rows:
        raise DataError(
            f"the tokenizer has {len(tokenizer)} tokens, the model's embedding {rows} rows: they do not fit",
            hint="use the model's own tokenizer, or pretrain with this one",
        )
    batches = _batches(context, model, tokenizer, mixture)
    schedule = partial(
        learning_rate, peak=rate, total_steps=len(batches), warmup_steps=round(config.warmup * len(batches)),
        decay=config.decay, floor=config.floor,
    )  # fmt: skip
    if config.gradient_checkpointing:
        recompute_activations(model)
    loss = LanguageModellingLoss(model)
    trained, sharded_loss = shard(model, loss)
    optimizer = make_optimizer(
        config.optimizer, trained, streams,
        head=trained.get_output_embeddings(), weight_decay=config.weight_decay, gamma=config.sophia_gamma,
    )  # fmt: skip
    fitted = fit(
        trained, batches, sharded_loss, optimizer, schedule, streams,
        curvature_loss=loss.to_probe(optimizer),
        folder=context.folder, listener=context.listener, stop=context.stop, warn=context.note,
        clip_norm=config.clip_norm, checkpoint_seconds=config.checkpoint_seconds,
        checkpoint_steps=config.checkpoint_steps, guards=config.guards,
    )  # fmt: skip
    optimizer.write_nearest()
    gather(trained, model)
    estimate_cost = optimizer.estimate_cost if isinstance(optimizer, Sophia) else 0.0
    epochs = {n: round(e, 3) for n, e in batches.epochs.items()}
    return TrainedOnText(fitted, batches.tokens_of, epochs, estimate_cost)


def document_tokens(tokenizer: PreTrainedTokenizerBase, documents: Sequence[str]) -> list[list[int]]:
    """Each document's tokens, between the tokenizer's opening (or an end, if it has none) and an end: the first token
    too is then predicted from something."""
    end = int(tokenizer.eos_token_id)
    opening = end if tokenizer.bos_token_id is None else int(tokenizer.bos_token_id)
    return [[opening, *tokens, end] for tokens in plain_tokens(tokenizer, documents)]


def _batches(
    context: StageContext[Any], model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, mixture: CorpusMixture
) -> TokenBatches:
    config: TextTraining = context.config
    tokenize = partial(document_tokens, tokenizer)
    identity = digest(tokenizer.backend_tokenizer.to_str())
    shards = {}
    for name, texts in mixture.train.items():
        documents = [*texts, *mixture.inserted.get(name, [])]
        folder = context.folder / "shards" / name
        if not folder.exists():
            write_shard(
                folder, documents, tokenize, vocabulary=len(tokenizer), tokenizer_digest=identity,
                check_stop=context.stop.raise_if_set,
            )  # fmt: skip
        shards[name] = open_shard(folder)
    batches = TokenBatches(
        shards, mixture.weights, total_tokens=config.tokens, batch_tokens=config.batch_tokens, length=config.length,
        micro_batch_tokens=config.micro_batch_tokens, seed=context.seed, make_example=_example_maker(model, tokenizer),
    )  # fmt: skip
    shares = ", ".join(f"{n} {batches.tokens_of[n]:,} tokens ({batches.epochs[n]:.2f} epochs)" for n in shards)
    context.note(f"{len(batches)} steps over {shares}")
    return batches


def _example_maker(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase):  # type: ignore[no-untyped-def]
    """Chunks to examples: every token after the first a target, or a fresh mask at every visit (Liu et al. 2019)."""
    if not is_masked(model):
        return lambda id, tokens, stream: Example(id, tokens, np.ones(len(tokens), dtype=bool))
    return partial(
        mask_tokens,
        mask_token=int(tokenizer.mask_token_id),
        vocabulary=len(tokenizer),
        keep=frozenset(tokenizer.all_special_ids),
    )


def measure(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    mixture: CorpusMixture,
    config: TextTraining,
    context: StageContext[Any],
) -> dict[str, float]:
    """How well the model predicts each corpus's held-out documents: bits per byte, or nats per masked token."""
    measured = {}
    for name, documents in mixture.held_out.items():
        context.note(f"measuring on {name} ({len(documents)} held-out documents)")
        if is_masked(model):
            size = sum(len(d.encode()) for d in documents)
            examples = _masked_examples(model, tokenizer, documents, config.length)
            loss = masked_loss(model, examples, bytes_of_text=size, check_stop=context.stop.raise_if_set)
            measured[name] = round(loss.nats_per_token, 4)
        else:
            loss = text_loss(model, tokenizer, documents, window=config.length, check_stop=context.stop.raise_if_set)
            measured[name] = round(loss.bits_per_byte, 4)
        context.note(f"{name}: {measured[name]} {'nats per masked token' if is_masked(model) else 'bits per byte'}")
    return measured


def fits_of(
    tokenizer: PreTrainedTokenizerBase, mixture: CorpusMixture, context: StageContext[Any]
) -> dict[str, dict[str, float]]:
    """How many tokens the tokenizer spends on each corpus's held-out documents."""
    fits = {name: measure_fit(tokenizer, documents) for name, documents in mixture.held_out.items()}
    for name, found in fits.items():
        context.note(
            f"tokenizer on {name}: {found.tokens_per_word:.2f} tokens a word, {found.bytes_per_token:.2f} bytes a "
            f"token, {found.unknown} unknown"
        )
    return {name: found.as_json() for name, found in fits.items()}


def _masked_examples(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, documents: Sequence[str], length: int
) -> list[Example]:
    """The same masks at every call, so that before and after are compared on the same tokens."""
    make = _example_maker(model, tokenizer)
    examples = []
    for index, tokens in enumerate(tokenizer(list(documents), add_special_tokens=False).input_ids):
        for start in range(0, len(tokens), length):
            piece = np.array(tokens[start : start + length], dtype=np.int64)
            if len(piece) > 1:
                examples.append(make(f"{index}:{start}", piece, numpy_stream(0, "measure", index, start)))
    return examples
