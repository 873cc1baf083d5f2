"""A reward model from human judgements (Ouyang et al. 2022, section 3.5; Stiennon et al. 2020)."""

from __future__ import annotations

from typing import Literal

import numpy as np
from pydantic import Field
from torch import Tensor

from quilate.data.preference_batches import EncodedPrompt, PreferenceBatch
from quilate.engine.completions import WithoutDropout, by_document
from quilate.files import atomic_folder
from quilate.models.load import save_model, trainable_parameters
from quilate.models.reward import RewardModel
from quilate.objectives.preference import bradley_terry, mean_over_rankings
from quilate.phases.align.training import (
    PreferenceTraining,
    Prepared,
    describe,
    made_trainable,
    measured_batches,
    plan,
    prepare,
    report_by_set,
)
from quilate.phases.example_training import train, training_flops
from quilate.phases.stage import StageContext, StageKind, StageReport, write_model_note
from quilate.rng import Streams

DEFAULT_RATE = {"full": 9e-6, "lora": 9e-5}  # Ouyang et al. 2022, appendix C.2; LoRA's ten times that
MOST_DEMONSTRATIONS = 512  # for the bias: the mean of so many has a small enough error (guess)


class RewardConfig(PreferenceTraining):
    kind: Literal["reward"]
    """A model learns to score completions as people judge them."""
    lr: float | None = Field(default=None, gt=0)
    """Peak learning rate; by default 9e-6 for `full`, 9e-5 for `lora`."""


class BradleyTerryLoss:
    """Callable `(batch) -> sum over prompts` of the mean over each prompt's pairs."""

    def __init__(self, model: RewardModel) -> None:
        self.model = model

    def rewards(self, batch: PreferenceBatch) -> Tensor:
        """[N] the reward of every document."""
        packed = batch.packed.to(self.model.encoder.device)
        rewards: Tensor = self.model(packed.input_ids, packed.position_ids, packed.lengths)
        return rewards

    def __call__(self, batch: PreferenceBatch) -> Tensor:
        rewards = self.rewards(batch)
        better, worse, ranking = (t.to(rewards.device) for t in (batch.better, batch.worse, batch.ranking))
        losses = bradley_terry(rewards[better], rewards[worse])
        return mean_over_rankings(losses, ranking, batch.prompts).sum()


def _run(context: StageContext[RewardConfig]) -> StageReport:
    config = context.config
    streams = Streams(context.seed)
    prepared = prepare(context)
    model = RewardModel.on(made_trainable(prepared, config), streams["score"])
    ranked = [prompt for prompt in prepared.train if prompt.pairs]
    batches = plan(config, ranked, context.seed)
    rate = config.lr or DEFAULT_RATE[config.method]
    fitted = train(context, WithoutDropout(model), batches, BradleyTerryLoss(model), streams, rate=rate)
    parameters, trainable = sum(p.numel() for p in model.parameters()), trainable_parameters(model)
    if config.method == "lora":
        with atomic_folder(context.folder / "adapter") as place:
            save_model(model.model, prepared.template.tokenizer, place)
        # What is measured is what is saved: merged, in bf16, it is not quite the same.
        model = RewardModel(model.model.merge_and_unload(), model.score)
    normalized_by = _normalize(context, model, prepared)
    scores = _scores(context, model, [prompt for part in prepared.held_out.values() for prompt in part])
    held_out = report_by_set(prepared, scores)
    for name, report in held_out.items():
        context.note(f"{name}: {describe(report)}")
    with atomic_folder(context.folder / "model") as place:
        model.save(prepared.template.tokenizer, place, end=prepared.template.end_of_turn())
    write_model_note(context.folder, context.folder / "model", reward=True)
    return StageReport(
        train_tokens=fitted.tokens,
        flops=training_flops(fitted.tokens, parameters, trainable),
        trainable_parameters=trainable,
        counts={
            **prepared.counts,
            "prompts without a pair": len(prepared.train) - len(ranked),
            **fitted.incidents(),
            "visits over the token budget": batches.examples_left_out,
        },
        facts={
            "train_rows": len(ranked),
            "train_pairs": sum(len(prompt.pairs) for prompt in ranked),
            "derived_prompts": sum(prompt.derived for prompt in prepared.judged),
            "steps": fitted.steps,
            "parameters": parameters,
            "bias": model.bias,
            "bias_from": normalized_by,
            "measure": "pair accuracy",
            "before": {},
            "after": {name: report["accuracy"]["estimate"] for name, report in held_out.items()},
            "held_out": held_out,
            "dtype": str(model.score.weight.dtype).removeprefix("torch."),
        },
    )


def _normalize(context: StageContext[RewardConfig], model: RewardModel, prepared: Prepared) -> str:
    """Set the bias so that demonstrations get 0 on average; where there are none, the completions that no other was
    preferred to stand for them. Says which they were."""
    demonstrations = {prompt.completions[i].id: prompt for prompt in prepared.train for i in prompt.demonstrations}
    beaten = {prompt.completions[pair.worse].id for prompt in prepared.train for pair in prompt.pairs}
    won = {prompt.completions[pair.better].id: prompt for prompt in prepared.train for pair in prompt.pairs}
    preferred = {id: prompt for id, prompt in won.items() if id not in beaten} or won
    name, chosen = ("demonstrations", demonstrations) if demonstrations else ("preferred completions", preferred)
    ids = list(chosen)[:MOST_DEMONSTRATIONS]
    scores = _scores(context, model, list({chosen[id].id: chosen[id] for id in ids}.values()))
    model.bias -= float(np.mean([scores[id] for id in ids]))
    return f"{len(ids)} {name}"


def _scores(context: StageContext[RewardConfig], model: RewardModel, prompts: list[EncodedPrompt]) -> dict[str, float]:
    batches = measured_batches(prompts, context.config.micro_batch_tokens)
    return by_document(BradleyTerryLoss(model).rewards, model, batches, context.stop.raise_if_set)


REWARD = StageKind("reward", 1, RewardConfig, _run)
