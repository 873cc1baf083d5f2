"""What a model is worth as a policy: what it writes after held-out prompts, what judges give it, how far it is from
where it started, and what it can still do besides.

One model a stage, so that any of them can be compared with any other: the model that nothing was aligned in too.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from operator import attrgetter
from typing import Any

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from transformers import PreTrainedModel

from quilate.config import Config
from quilate.data.packing import pack, split_by_tokens
from quilate.data.preference_batches import EncodedPrompt, encode_prompts
from quilate.data.sampling import draw
from quilate.engine.completions import CompletionLogProbs, by_document
from quilate.errors import DataError
from quilate.evaluation.preferences import length_direction, pair_report
from quilate.files import write_jsonl
from quilate.models.encoder import DocumentEncoder
from quilate.models.heads import divide
from quilate.models.load import context_length, load_causal, load_tokenizer
from quilate.models.precision import Precision, compute_dtype
from quilate.models.reward import RewardModel, load_reward_model
from quilate.models.token_values import GuidedHead, load_token_values
from quilate.objectives.cross_entropy import head_kl_sum
from quilate.phases.align.common import check_vocabulary, held_out_text, room_for_prompts
from quilate.phases.align.ilql import VALUES
from quilate.phases.align.preferences import stored_preferences
from quilate.phases.align.rollouts import (
    Completions,
    Format,
    Prompt,
    Writer,
    prompts_of_conversations,
    prompts_of_judgements,
    stop_tokens,
)
from quilate.phases.align.scoring import AnyReward, Scorer, StageReward
from quilate.phases.align.training import completion_lengths, judged_pairs, measured_batches
from quilate.phases.conversations import stored_conversations
from quilate.phases.sft import chat_template
from quilate.phases.stage import StageContext, StageKind, StageReport, model_of
from quilate.rng import derive_seed
from quilate.tokenization.chat import ChatTemplate


class AssayConfig(Config):
    """How models that write are compared."""

    conversations: list[str] = Field(default_factory=list)
    """Sets of conversations whose held-out questions are asked; what the assistant says last is the right answer, for
    judges of kind `answer`."""
    preferences: list[str] = Field(default_factory=list)
    """Sets of judgements whose held-out prompts are asked."""
    judges: dict[str, AnyReward] = Field(min_length=1)
    """What scores each completion, by name, as the rewards of `ppo`: a `reward` stage, right answers, or rules. A
    policy beats another on a prompt where its score is higher."""
    max_prompts: int = Field(default=200, ge=2)
    """Most held-out prompts of a set to ask, drawn by what they say; the same for every model."""
    format: Format = "chat"
    """`chat` asks through the model's chat template, `text` with the bare text."""
    max_new_tokens: int = Field(default=128, ge=1)
    """Longest completion; one that has not ended by then is cut, and judged as it is."""
    prompt_tokens: int = Field(default=384, ge=1)
    """Longest prompt; longer ones are left out and counted."""
    temperature: float = Field(default=1.0, gt=0)
    """Of sampling: 1 is the policy itself."""
    ilql_beta: float = Field(default=1.0, ge=0)
    """How much the values of an `ilql` stage count in what it writes; 0 is its language model alone. Judged pairs and
    text are measured of the language model."""
    length: int = Field(default=512, ge=64)
    """Longest prompt and completion in tokens of the judged pairs and items that every model is measured on."""
    micro_batch_tokens: int = Field(default=4096, ge=1)
    """Most tokens in memory at once."""
    precision: Precision = "auto"
    """`bf16` or `fp32`."""

    @model_validator(mode="after")
    def _something_is_asked(self) -> AssayConfig:
        if not self.conversations and not self.preferences:
            raise ValueError("there are no prompts: name sets of `conversations` or of `preferences`")
        return self

    def judging_stages(self) -> dict[str, str]:
        """Name of a judge -> the reward stage it comes from."""
        return {name: judge.on for name, judge in self.judges.items() if isinstance(judge, StageReward)}


@dataclass(frozen=True)
class _Asked:
    """Held-out prompts, of which set each is, and what was left out."""

    prompts: list[Prompt]
    counts: Counter[str]


def _run(context: StageContext[AssayConfig]) -> StageReport:
    config = context.config
    folder = model_of(context.inputs["model"])
    tokenizer = load_tokenizer(folder)
    template = chat_template(tokenizer, None, name=folder.name)
    model = load_causal(folder, dtype=compute_dtype(config.precision))
    asked = _asked(context, template, context_length(model))
    writer = Writer(template, stop_tokens(model, template, config.format), config.temperature, config.max_new_tokens)
    head = _guided_head(context, model)
    written = writer.write(model, asked.prompts, seed=derive_seed(context.seed, "assay"), head=head)
    scores = judged(context, written, template)
    rows = [
        {"id": prompt.id, "group": prompt.group, "completion": written.texts[i], "tokens": len(written.tokens[i]),
         "ended": written.ended[i], "scores": {name: float(values[i]) for name, values in scores.items()}}
        for i, prompt in enumerate(asked.prompts)
    ]  # fmt: skip
    write_jsonl(context.folder / "completions.jsonl", rows)
    kl = _kl(context, model, written, head)
    pairs, pair_counts = _pairs(context, model, template)
    means = {name: round(float(np.mean(values)), 4) for name, values in scores.items()}
    context.note(
        f"{len(rows)} held-out prompts: "
        + ", ".join(f"{name} {mean:.3f}" for name, mean in means.items())
        + ("" if kl is None else f"; KL {kl:.2f} nats a completion")
    )
    facts = {
        "prompts": len(rows),
        "groups": len({row["group"] for row in rows}),
        "judges": means,
        "kl": kl,
        "ended": round(float(np.mean(written.ended)), 4),
        "tokens": round(float(np.mean([row["tokens"] for row in rows])), 2),
        "pairs": pairs,
        "text": {
            name: {"bits": round(loss.bits_per_byte, 4), "bytes": loss.bytes}
            for name, loss in held_out_text(context, model, template.tokenizer).items()
        },
        "dtype": str(model.dtype).removeprefix("torch."),
    }
    cut = {"completions cut for length": len(rows) - sum(written.ended)}
    return StageReport(counts={k: v for k, v in (asked.counts + Counter(cut) + pair_counts).items() if v}, facts=facts)


def _guided_head(context: StageContext[AssayConfig], model: PreTrainedModel) -> nn.Module | None:
    """What an ILQL policy writes with; None for every other model, which writes with its own head."""
    values = context.inputs["model"] / VALUES
    if not values.exists():
        return None
    head = divide(model).head
    return GuidedHead(head, load_token_values(values).to(head.weight.device), context.config.ilql_beta)


def _asked(context: StageContext[AssayConfig], template: ChatTemplate, room: int) -> _Asked:
    """The held-out prompts of every set, at most `max_prompts` of those that fit.

    Raises:
        DataError: none fits.
        ConfigError: the model's context does not hold a completion.
    """
    config = context.config
    limit = min(config.prompt_tokens, room_for_prompts(room, config.max_new_tokens))
    found: list[Prompt] = []
    counts = Counter[str]()
    for kind, names in (("conversations", config.conversations), ("preferences", config.preferences)):
        for name in names:
            place = context.inputs[f"{kind}:{name}"]
            if kind == "conversations":
                stored = stored_conversations(place, "held_out")
                prompts, lost = prompts_of_conversations(stored, template, config.format, limit=limit)
            else:
                prompts, lost = prompts_of_judgements(
                    stored_preferences(place, "held_out"), template, config.format, limit=limit
                )
            counts += lost + Counter({"prompts beyond max_prompts": max(0, len(prompts) - config.max_prompts)})
            asked = draw(prompts, config.max_prompts, attrgetter("asked"))
            found += [replace(prompt, id=f"{name}:{prompt.id}") for prompt in asked]
    if not found:
        raise DataError(
            "there is no held-out prompt to ask: " + ", ".join(f"{n} {reason}" for reason, n in counts.items()),
            hint="raise alignment.prompt_tokens, or hold more out",
        )
    return _Asked(found, counts)


def judged(
    context: StageContext[AssayConfig], written: Completions, template: ChatTemplate
) -> dict[str, Sequence[float]]:
    """What every judge gives every completion; the parts of one judge (rules) are added.

    Raises:
        ConfigError: a reward model reads other tokens than these.
        DataError: a score is not a finite number.
    """
    config = context.config
    by_model: dict[str, Tensor] = {}
    for name, stage in config.judging_stages().items():
        folder = context.inputs[f"reward:{stage}"] / "model"
        check_vocabulary(name, folder, template)
        by_model[name] = model_rewards(
            load_reward_model(folder, dtype=compute_dtype(config.precision)), written,
            micro_batch_tokens=config.micro_batch_tokens, check_stop=context.stop.raise_if_set,
        )  # fmt: skip
    scores = Scorer(config.judges, base=context.base_folder, folder=context.folder)(written, by_model)
    return {name: _sum_of_parts(name, scores.parts).tolist() for name in config.judges}


def _sum_of_parts(judge: str, parts: Mapping[str, Tensor]) -> Tensor:
    own = [values for part, values in parts.items() if part == judge or part.startswith(f"{judge}/")]
    return torch.stack(own).sum(0)


@torch.no_grad()
def model_rewards(
    judge: RewardModel,
    written: Completions,
    *,
    micro_batch_tokens: int,
    check_stop: Callable[[], None] = lambda: None,
) -> Tensor:
    """[B] the score of each completion after its prompt."""
    rewards = torch.zeros(len(written.texts))
    for part in split_by_tokens(written.examples(), micro_batch_tokens):
        check_stop()
        packed = pack(part).to(judge.encoder.device)
        rewards[[int(id) for id in packed.ids]] = judge(packed.input_ids, packed.position_ids, packed.lengths).cpu()
    return rewards


@torch.no_grad()
def completion_kl(
    model: PreTrainedModel,
    start: PreTrainedModel,
    written: Completions,
    *,
    micro_batch_tokens: int,
    head: nn.Module | None = None,
    check_stop: Callable[[], None] = lambda: None,
) -> float:
    """KL(policy || start) in nats a completion: at every state that the policy itself reached, over the whole
    vocabulary, which varies less than from the sampled tokens alone.

    Args:
        head: what the policy writes with, if not with its own head.
    """
    encoders = DocumentEncoder(model), DocumentEncoder(start)
    total = 0.0
    for part in split_by_tokens(written.examples(), micro_batch_tokens):
        check_stop()
        packed = pack(part).to(encoders[0].device)
        predicting = []
        for encoder in encoders:
            hidden = encoder(packed.input_ids, packed.position_ids, packed.lengths)
            predicting.append(encoder.divided.transform(hidden[packed.source_positions]))
        heads = head or encoders[0].divided.head, encoders[1].divided.head
        total += float(head_kl_sum(predicting[0], heads[0], predicting[1], heads[1]))
    return round(total / len(written.texts), 4)


def _kl(
    context: StageContext[AssayConfig], model: PreTrainedModel, written: Completions, head: nn.Module | None
) -> float | None:
    """None for a model that was not aligned."""
    if "start" not in context.inputs:
        return None
    start = load_causal(model_of(context.inputs["start"]), dtype=model.dtype)
    return completion_kl(
        model, start, written, micro_batch_tokens=context.config.micro_batch_tokens, head=head,
        check_stop=context.stop.raise_if_set,
    )  # fmt: skip


def _pairs(
    context: StageContext[AssayConfig], model: PreTrainedModel, template: ChatTemplate
) -> tuple[dict[str, Any], Counter[str]]:
    """How often the model itself finds the preferred completion likelier, a token, on every set's held-out pairs and
    items."""
    limit = min(context.config.length, context_length(model))
    reports: dict[str, Any] = {}
    counts = Counter[str]()
    for role, folder in context.inputs.items():
        if not role.startswith("preferences:"):
            continue
        encoded, lost = encode_prompts(stored_preferences(folder, "held_out"), template, limit=limit)
        name = role.partition(":")[2]
        counts += Counter({f"held out, {name}: {reason}": count for reason, count in lost.items()})
        if prompts := [prompt for prompt in encoded if prompt.pairs]:
            reports[name] = _pair_report(context, model, prompts)
    return reports, counts


def _pair_report(
    context: StageContext[AssayConfig], model: PreTrainedModel, prompts: list[EncodedPrompt]
) -> dict[str, Any]:
    batches = measured_batches(prompts, context.config.micro_batch_tokens)
    log_probs = by_document(CompletionLogProbs(model), model, batches, context.stop.raise_if_set)
    lengths = completion_lengths(prompts)
    pairs = judged_pairs(prompts, {id: log_probs[id] / length for id, length in lengths.items()})
    # No training pairs here to learn a direction from; the better of the two is the hardest baseline to beat.
    report = pair_report(pairs, direction=length_direction(pairs.tokens_better, pairs.tokens_worse))
    return {name: report[name] for name in ("pairs", "groups", "accuracy", "length_only", "difference", "prefers")}


ASSAY = StageKind("assay", 3, AssayConfig, _run)
