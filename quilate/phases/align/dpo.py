"""A policy straight from human judgements, without a reward model: DPO, IPO, KTO, ORPO."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor
from transformers import PreTrainedModel

from quilate.data.preference_batches import EncodedPrompt, PreferenceBatch, with_mismatches
from quilate.engine.completions import CompletionLogProbs, WithoutDropout, by_document
from quilate.engine.distributed import this_world
from quilate.errors import ConfigError, DataError
from quilate.models.load import load_causal, trainable_parameters
from quilate.objectives import preference as objective
from quilate.objectives.cross_entropy import head_kl_sum
from quilate.phases.align.common import held_out_text
from quilate.phases.align.training import (
    PreferenceTraining,
    Prepared,
    completion_lengths,
    describe,
    made_trainable,
    measured_batches,
    plan,
    prepare,
    report_by_set,
)
from quilate.phases.example_training import train, training_flops
from quilate.phases.sft import save_chat_model
from quilate.phases.stage import StageContext, StageKind, StageReport, once
from quilate.rng import Streams

DEFAULT_RATE = {"full": 1e-6, "lora": 1e-5}  # TRL's default for every preference method; LoRA's ten times that


class DpoConfig(PreferenceTraining):
    kind: Literal["dpo"]
    """A model learns from human judgements directly."""
    lr: float | None = Field(default=None, gt=0)
    """Peak learning rate; by default 1e-6 for `full`, 1e-5 for `lora`."""
    loss: Literal["dpo", "ipo", "kto", "orpo"] = "dpo"
    """`dpo` and `ipo` learn from pairs, near a reference; `kto` from completions judged one at a time (of pairs and
    rankings it takes what mostly won as good); `orpo` from pairs, without a reference."""
    beta: float = Field(default=0.1, gt=0)
    """Weight of the KL penalty that holds the model near its reference; for `orpo` the weight of the odds."""
    label_smoothing: float = Field(default=0.0, ge=0, lt=0.5)
    """Probability that a pair is the wrong way round, for `loss: dpo`."""
    desirable_weight: float = Field(default=1.0, gt=0)
    """Weight of good completions, for `loss: kto`."""
    undesirable_weight: float = Field(default=1.0, gt=0)
    """Weight of bad ones, for `loss: kto`; raise that of the rarer kind."""

    @model_validator(mode="after")
    def _settings_go_with_their_loss(self) -> DpoConfig:
        if self.label_smoothing and self.loss != "dpo":
            raise ValueError("`label_smoothing` goes with `loss: dpo`")
        if (self.desirable_weight, self.undesirable_weight) != (1.0, 1.0) and self.loss != "kto":
            raise ValueError("`desirable_weight` and `undesirable_weight` go with `loss: kto`")
        if self.loss == "kto" and self.batch_size < 2:
            raise ValueError("`loss: kto` estimates a mean over the batch: `batch_size` must be 2 or more")
        return self


class PreferenceLoss:
    """Callable `(batch) -> sum over prompts` (over completions, for KTO) of the loss that `config` names.

    Args:
        log_probs: of the policy.
        reference: log-probabilities of the training completions under the reference, by id; not used by ORPO.
    """

    def __init__(self, config: DpoConfig, log_probs: CompletionLogProbs, reference: Mapping[str, float]) -> None:
        self.config, self.log_probs, self.reference = config, log_probs, reference
        self._reference_point = torch.zeros(())

    def log_ratios(self, batch: PreferenceBatch) -> Tensor:
        """[N] log pi - log pi_ref of every completion."""
        ours = self.log_probs(batch)
        return ours - torch.tensor([self.reference[id] for id in batch.ids], device=ours.device)

    def __call__(self, batch: PreferenceBatch) -> Tensor:
        config = self.config
        if config.loss == "kto":
            return self._kto(batch)
        values = self.log_probs(batch) if config.loss == "orpo" else self.log_ratios(batch)
        if config.loss in ("ipo", "orpo"):
            values = values / batch.sum_by_document(torch.ones_like(batch.document, dtype=torch.float32)).to(values)
        better, worse, ranking = (t.to(values.device) for t in (batch.better, batch.worse, batch.ranking))
        pair = values[better], values[worse]
        if config.loss == "dpo":
            losses = objective.dpo(*pair, beta=config.beta, label_smoothing=config.label_smoothing)
        elif config.loss == "ipo":
            losses = objective.ipo(*pair, beta=config.beta)
        else:
            losses = objective.orpo(*pair, weight=config.beta)
        return objective.mean_over_rankings(losses, ranking, batch.prompts).sum()

    def _kto(self, batch: PreferenceBatch) -> Tensor:
        """The step's first micro-batch brings the mismatched completions of the whole step: its others share z_0."""
        if batch.elsewhere:
            with torch.no_grad():
                mismatched = torch.cat([self.log_ratios(part) for part in batch.elsewhere])
            self._reference_point = objective.kto_reference_point(mismatched)
        ratios = self.log_ratios(batch)
        return objective.kto(
            ratios, batch.desirable.to(ratios.device), self._reference_point.to(ratios.device), beta=self.config.beta,
            desirable_weight=self.config.desirable_weight, undesirable_weight=self.config.undesirable_weight,
        ).sum()  # fmt: skip


def _run(context: StageContext[DpoConfig]) -> StageReport:
    config = context.config
    if config.loss == "kto" and this_world().size > 1:
        raise ConfigError(
            "`loss: kto` has one reference point for a step, which one process computes", hint="train it in one process"
        )
    streams = Streams(context.seed)
    prepared = prepare(context)
    prompts = trainable_prompts(config, prepared)
    batches = plan(config, prompts, context.seed)
    held_out = [prompt for part in prepared.held_out.values() for prompt in part]
    # Before anything is trained the model is the reference: it is asked once, and kept in the folder for a resumed run.
    everything = [*read_before_training(config, prompts), *held_out]
    reference = once(context.folder / "reference.json", lambda: _log_probs(context, prepared.model, everything))
    text_before = once(context.folder / "text-before.json", lambda: _bits_per_byte(context, prepared.model, prepared))
    model = made_trainable(prepared, config)
    loss = PreferenceLoss(config, CompletionLogProbs(model), reference)
    rate = config.lr or DEFAULT_RATE[config.method]
    fitted = train(context, WithoutDropout(model), batches, loss, streams, rate=rate)
    model.eval()
    save_chat_model(context.folder, model, prepared.template)
    measured = _measure(context, prepared, reference, _log_probs(context, model, held_out))
    kl = _kl(context, model, prepared, held_out) if held_out else None
    if kl is not None:
        context.note(f"KL from the reference: {kl:.4f} nats a token of the held-out completions")
    text_after = _bits_per_byte(context, model, prepared)
    parameters, trainable = sum(p.numel() for p in model.parameters()), trainable_parameters(model)
    return StageReport(
        train_tokens=fitted.tokens,
        flops=training_flops(fitted.tokens, parameters, trainable),
        trainable_parameters=trainable,
        counts={
            **prepared.counts,
            "prompts or completions without a judgement of the kind needed": _unused(config, prepared, prompts),
            **fitted.incidents(),
            "visits over the token budget": batches.examples_left_out,
        },
        facts={
            "train_rows": len(prompts),
            "derived_prompts": sum(prompt.derived for prompt in prepared.judged),
            "steps": fitted.steps,
            "parameters": parameters,
            "measure": "pair accuracy",
            "before": measured.before,
            "after": measured.after,
            "held_out": measured.by_set,
            "kl_per_token": kl,
            "text": {"measure": "bits per byte", "before": text_before, "after": text_after},
            "dtype": str(next(model.parameters()).dtype).removeprefix("torch."),
        },
    )


def trainable_prompts(config: DpoConfig, prepared: Prepared) -> list[EncodedPrompt]:
    """Those with a judgement of the kind that the loss learns from.

    Raises:
        DataError: `loss: kto` needs two.
    """
    if config.loss != "kto":
        return [prompt for prompt in prepared.train if prompt.pairs]
    alone = with_mismatches(prepared.judged, prepared.train, limit=prepared.limit)
    if any(prompt.mismatched is None for prompt in alone):
        raise DataError("`loss: kto` needs two prompts at least", hint="give more judgements, or use `loss: dpo`")
    return alone


def read_before_training(config: DpoConfig, prompts: list[EncodedPrompt]) -> list[EncodedPrompt]:
    """Of the training prompts what the reference is asked about, once: nothing with `orpo`, which has none; with `kto`
    the mismatched completions too, as prompts of their own."""
    if config.loss == "orpo":
        return []
    alone = [EncodedPrompt(p.mismatched.id, p.group, (p.mismatched,), (), (None,), ()) for p in prompts if p.mismatched]
    return [*prompts, *alone]


def _unused(config: DpoConfig, prepared: Prepared, prompts: list[EncodedPrompt]) -> int:
    if config.loss == "kto":
        return sum(len(prompt.completions) for prompt in prepared.train) - len(prompts)
    return len(prepared.train) - len(prompts)


def _log_probs(
    context: StageContext[DpoConfig], model: PreTrainedModel, prompts: list[EncodedPrompt]
) -> dict[str, float]:
    batches = measured_batches(prompts, context.config.micro_batch_tokens)
    return by_document(CompletionLogProbs(model), model, batches, context.stop.raise_if_set)


@dataclass(frozen=True)
class _Measured:
    """Accuracy by set before and after, and everything else that was measured on held-out pairs by set."""

    before: dict[str, float]
    after: dict[str, float]
    by_set: dict[str, Any]


def _measure(
    context: StageContext[DpoConfig], prepared: Prepared, before: Mapping[str, float], after: Mapping[str, float]
) -> _Measured:
    """How the model ranks held-out pairs: by log-probability a token, and by the reward it implies, beta times the
    log-ratio (Rafailov et al. 2023, section 4), which a reward model's accuracy compares to.

    The log-probabilities themselves are shown too: in DPO that of the preferred completions often falls.
    """
    by_set: dict[str, Any] = {}
    implied = {id: context.config.beta * (after[id] - before[id]) for id in after}
    reports = {
        name: report_by_set(prepared, scores)
        for name, scores in (
            ("before", _by_token(before, prepared)), ("after", _by_token(after, prepared)), ("implied", implied)
        )
    }  # fmt: skip
    for name, prompts in prepared.held_out.items():
        if not prompts:
            continue
        pairs = [(p.completions[pair.better].id, p.completions[pair.worse].id) for p in prompts for pair in p.pairs]
        by_set[name] = {
            "implied_reward": reports["implied"][name],
            "reward_margin": _mean([implied[better] - implied[worse] for better, worse in pairs]),
            "log_prob": {
                f"{which}_{when}": _mean([values[pair[place]] for pair in pairs])
                for when, values in (("before", before), ("after", after))
                for place, which in enumerate(("better", "worse"))
            },
        }
        context.note(f"{name}, by the implied reward: {describe(reports['implied'][name])}")
    accuracy = {
        when: {name: report["accuracy"]["estimate"] for name, report in reports[when].items()}
        for when in ("before", "after")
    }
    return _Measured(accuracy["before"], accuracy["after"], by_set)


def _by_token(log_probs: Mapping[str, float], prepared: Prepared) -> dict[str, float]:
    lengths = completion_lengths([prompt for part in prepared.held_out.values() for prompt in part])
    return {id: log_probs[id] / length for id, length in lengths.items()}


def _mean(values: list[float]) -> float:
    return round(float(np.mean(values)), 4)


@torch.no_grad()
def _kl(
    context: StageContext[DpoConfig], model: PreTrainedModel, prepared: Prepared, prompts: list[EncodedPrompt]
) -> float:
    """KL(policy || reference) over the whole vocabulary, the mean over the tokens of held-out completions.

    An adapter is switched off to ask the reference. After full training the reference is loaded again: what the
    optimizer held is free by now, so this is not the stage's peak of memory.
    """
    policy = CompletionLogProbs(model)
    adapted = hasattr(model, "peft_config")
    reference = policy if adapted else CompletionLogProbs(load_causal(prepared.base, dtype=model.dtype))
    total, tokens = 0.0, 0
    for batch in measured_batches(prompts, context.config.micro_batch_tokens):
        context.stop.raise_if_set()
        ours = policy.predicting(batch)
        with model.disable_adapter() if adapted else nullcontext():
            theirs = reference.predicting(batch)
        total += float(head_kl_sum(ours, policy.encoder.divided.head, theirs, reference.encoder.divided.head))
        tokens += batch.supervised_tokens
    return round(total / tokens, 6)


def _bits_per_byte(context: StageContext[DpoConfig], model: PreTrainedModel, prepared: Prepared) -> dict[str, float]:
    losses = held_out_text(context, model, prepared.template.tokenizer)
    return {name: round(loss.bits_per_byte, 4) for name, loss in losses.items()}


DPO = StageKind("dpo", 1, DpoConfig, _run)
