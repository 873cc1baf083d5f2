"""What methods have in common that learn from a reward-labelled data set and ask nobody: cloning and ILQL."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from operator import attrgetter
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field, model_validator
from torch import nn
from transformers import PreTrainedModel

from quilate.data.packing import Example
from quilate.data.preferences import JudgedPrompt
from quilate.errors import DataError
from quilate.evaluation.bits_per_byte import sum_loss
from quilate.files import write_jsonl
from quilate.models.load import context_length
from quilate.models.tuning.lora import LoraConfig, add_lora
from quilate.phases.align.common import apart_from_held_out, check_adapter, room_for_prompts
from quilate.phases.align.outcomes import outcome_report, outcome_rows
from quilate.phases.align.preferences import stored_preferences
from quilate.phases.align.rollouts import Format, Prompt, Writer, prompts_of_judgements, stop_tokens, text_tokens
from quilate.phases.align.scoring import Scorer, TextReward
from quilate.phases.align.training import load_policy
from quilate.phases.example_training import ExampleTraining
from quilate.phases.stage import StageContext
from quilate.rng import Streams, derive_seed
from quilate.tokenization.chat import ChatTemplate, UnrenderableError
from quilate.tokenization.segments import answer_tokens


class OfflineTraining(ExampleTraining):
    """What every stage that learns from a reward-labelled data set can be told."""

    on: str = "base"
    """The stage whose model is trained."""
    preferences: list[str] = Field(min_length=1)
    """Sets whose completions have rewards: files with `prompt`, `completion` and `reward`. A completion that a file
    repeats counts as often."""
    format: Format = "chat"
    """`chat` asks through the model's chat template, `text` with the bare text."""
    method: Literal["lora", "full"] = "lora"
    """`lora` trains a low-rank adapter on every linear layer, `full` every weight."""
    lora: LoraConfig | None = None
    """Settings of the low-rank adapter, for `method: lora`."""
    lr: float | None = Field(default=None, gt=0)
    """Peak learning rate."""
    epochs: float = Field(default=1.0, gt=0)
    """Passes over the completions."""
    batch_size: int = Field(default=32, ge=1)
    """Completions per optimizer step."""
    length: int = Field(default=512, ge=2)
    """Longest prompt and completion in tokens; longer ones are left out and counted."""
    rewards: dict[str, Annotated[TextReward, Field(discriminator="kind")]] = Field(default_factory=dict)
    """What the model's own completions are measured by before and after; training sees only the set's rewards. Without
    any, the loss on held-out completions is measured."""
    max_new_tokens: int = Field(default=128, ge=1)
    """Longest completion that is measured."""
    temperature: float = Field(default=1.0, gt=0)
    """Of the sampling that is measured."""
    measure_training: int = Field(default=0, ge=0)
    """Completions of each training prompt to measure with besides the held-out ones: what the policy has learned to
    earn there, not what it earns elsewhere."""
    once: bool = False
    """Make the model once, with the recipe's first seed, for all seeds of what stands on it."""

    @model_validator(mode="after")
    def _what_goes_together(self) -> OfflineTraining:
        check_adapter(self.method, self.lora, is_its_own_reference=False)
        if self.measure_training and not self.rewards:
            raise ValueError("`measure_training` needs `rewards` to measure with")
        return self


@dataclass(frozen=True)
class Sample:
    """A prompt and a completion as tokens, the completion and its end supervised, and what it earned."""

    example: Example
    reward: float


@dataclass
class Offline:
    """A stage under way.

    Attributes:
        model: with those parameters to train that the method trains.
        samples: a completion that the source repeats stands there as often; held_out: by set, never trained on.
        prompts: what is asked to measure with, by set.
        counts: what was left out.
    """

    context: StageContext[Any]
    template: ChatTemplate
    model: PreTrainedModel
    writer: Writer
    scorer: Scorer
    samples: list[Sample]
    held_out: dict[str, list[Sample]]
    prompts: dict[str, list[Prompt]]
    counts: Counter[str]
    streams: Streams

    @property
    def config(self) -> OfflineTraining:
        config: OfflineTraining = self.context.config
        return config

    @property
    def measure_name(self) -> str:
        return "reward" if self.config.rewards else "nats per completion token"

    def measure(self, name: str, head: nn.Module | None = None) -> dict[str, Any]:
        """What the model earns by set, sampled with the same random numbers every time, or else its loss on held-out
        completions; what it wrote is left in `held-out-{name}.jsonl`.

        Args:
            head: as of `Writer.write`.
        """
        if self.measure_name != "reward":
            examples = {set_name: [s.example for s in part] for set_name, part in self.held_out.items() if part}
            losses = {n: sum_loss(self.model, e, self.context.stop.raise_if_set) for n, e in examples.items()}
            return {n: {"score": {"mean": nats / tokens, "items": tokens}} for n, (nats, tokens) in losses.items()}
        report, rows = dict[str, Any](), list[dict[str, Any]]()
        for set_name, prompts in self.prompts.items():
            self.context.stop.raise_if_set()
            seed = derive_seed(self.context.seed, "held out", set_name)
            written = self.writer.write(self.model, prompts, seed=seed, head=head)
            scores = self.scorer(written)
            report[set_name] = outcome_report(written, scores)
            rows += outcome_rows(set_name, written, scores)
        write_jsonl(self.context.folder / f"held-out-{name}.jsonl", rows)
        return report


def start_offline(context: StageContext[Any], functions: Mapping[str, Callable[..., Any]] | None = None) -> Offline:
    """Load the model (an adapter is merged first) and encode the sets.

    Args:
        functions: see `Scorer`.

    Raises:
        DataError: no completion has a reward, or none can be used.
        ConfigError: the model's context does not hold a prompt and a completion.
        ModelError: the model cannot be loaded.
    """
    config: OfflineTraining = context.config
    streams = Streams(context.seed)
    template, model, base = load_policy(context)
    limit = min(config.length, context_length(model))
    room = room_for_prompts(context_length(model), config.max_new_tokens)
    stop = stop_tokens(model, template, config.format)
    end = template.tokenizer.eos_token_id if template.tokenizer.eos_token_id in stop else min(stop)
    judged = {part: _judged(context, part) for part in ("train", "held_out")}
    measured = [prompt for prompts in judged["held_out"].values() for prompt in prompts]
    samples, counts = list[Sample](), Counter[str]()
    asked: dict[str, list[Prompt]] = {}
    held_out: dict[str, list[Sample]] = {}
    for name, prompts in judged["train"].items():
        apart = apart_from_held_out(prompts, measured, attrgetter("question"))
        counts["prompts that another set holds out"] += len(prompts) - len(apart)
        samples += samples_of(apart, template, config.format, counts, limit=limit, end=end)
        if config.measure_training:
            known, _ = prompts_of_judgements(apart, template, config.format, limit=room)
            asked[f"{name} (training)"] = [prompt for prompt in known for _ in range(config.measure_training)]
    for name, prompts in judged["held_out"].items():
        lost = Counter[str]()
        held_out[name] = samples_of(prompts, template, config.format, lost, limit=limit, end=end)
        kept, refused = prompts_of_judgements(prompts, template, config.format, limit=room)
        counts += Counter({f"held out, {reason}": count for reason, count in (lost + refused).items()})
        if kept:
            asked[name] = kept
    if not samples:
        reasons = ", ".join(f"{count} {reason}" for reason, count in counts.items() if count)
        raise DataError(
            f"no completion with a reward is left to learn from: {reasons or 'the sets are empty'}",
            hint="give files with `prompt`, `completion` and `reward`, or raise `length`",
        )
    scorer = Scorer(
        config.rewards, base=context.base_folder, folder=context.folder, functions=functions,
        tokenizer=template.tokenizer,
    )  # fmt: skip
    trained = model if config.method == "full" else add_lora(model, config.lora or LoraConfig(), base=base)
    writer = Writer(template, stop, config.temperature, config.max_new_tokens)
    counts = Counter({reason: count for reason, count in counts.items() if count})
    return Offline(context, template, trained, writer, scorer, samples, held_out, asked, counts, streams)


def _judged(context: StageContext[Any], part: Literal["train", "held_out"]) -> dict[str, list[JudgedPrompt]]:
    names: list[str] = context.config.preferences
    folders: dict[str, Path] = {name: context.inputs[f"preferences:{name}"] for name in names}
    return {
        name: [replace(prompt, id=f"{name}:{prompt.id}") for prompt in stored_preferences(folder, part)]
        for name, folder in folders.items()
    }


def samples_of(
    judged: Sequence[JudgedPrompt], template: ChatTemplate, form: Format, counts: Counter[str], *, limit: int, end: int
) -> list[Sample]:
    """Every completion that has a reward, as often as the source has it.

    Args:
        counts: what is left out is added to it.
        limit: longest prompt and completion in tokens; cut, a completion would have earned something else.
        end: the token that ends a bare text.
    """
    samples = []
    for prompt in judged:
        for i, completion in enumerate(prompt.completions):
            reward, times = prompt.rewards[i], prompt.times[i] if prompt.times else 1
            if reward is None:
                counts["completions without a reward"] += 1
                continue
            try:
                example = _example(f"{prompt.id}#{i}", prompt, completion, template, form, end)
            except UnrenderableError as error:
                counts[f"completions: {error.reason}"] += times
                continue
            if len(example.tokens) > limit:
                counts["completions too long"] += times
                continue
            samples += [Sample(example, reward)] * times
    return samples


def _example(id: str, prompt: JudgedPrompt, completion: str, template: ChatTemplate, form: Format, end: int) -> Example:
    if form == "text":
        asked = text_tokens(prompt.prompt, template)
        tokens = [*asked, *answer_tokens(template.tokenizer, [completion], start="")[0], end]
        return Example(id, np.array(tokens, dtype=np.int64), np.arange(len(tokens)) >= len(asked))
    answer = {"role": "assistant", "content": completion}
    chat = template.encode([*prompt.prompt, answer], context=len(prompt.prompt))
    stop = chat.turn_ends[-1]
    return Example(id, np.array(chat.tokens[:stop], dtype=np.int64), np.array(chat.learned[:stop], dtype=bool))
