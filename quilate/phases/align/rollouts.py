"""What a policy writes after prompts, and what is to be known of it to learn from it.

Shapes: B completions, T the longest one's tokens, S all their tokens laid end to end.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from quilate.data.conversations import Conversation, bare_text
from quilate.data.packing import Example, PackedBatch, pack_shared, split_shared
from quilate.data.preferences import JudgedPrompt
from quilate.errors import ModelError
from quilate.inference.fused_layers import LaidOut
from quilate.inference.generation import Generator
from quilate.inference.sampling import Sampling
from quilate.phases.align.roles import Roles
from quilate.tokenization.chat import ChatTemplate, Message, UnrenderableError
from quilate.tokenization.segments import prompt_tokens

Format = Literal["chat", "text"]


@dataclass(frozen=True)
class Prompt:
    """What is asked.

    Attributes:
        text: what the user said last; rewards may look at it.
        asked: everything said before the answer, as it was said: the same for every model's template and tokenizer.
        tokens: up to where the answer begins.
        answer: the right one, where the source has one.
        group: what belongs together, in an interval's resamples say.
    """

    id: str
    text: str
    asked: str
    tokens: tuple[int, ...]
    answer: str | None
    group: str


def prompts_of_conversations(
    conversations: Sequence[Conversation], template: ChatTemplate, form: Format, *, limit: int
) -> tuple[list[Prompt], Counter[str]]:
    """Each conversation without its last message, which is the answer; what is left out is counted.

    Args:
        form: `chat` asks through the model's template, `text` with the messages' bare text, a line each.
        limit: longest prompt in tokens; a longer one is left out, for cut it would be another question.
    """
    rows = [(c.id, c.messages[:-1], c.messages[-1]["content"], c.group or c.question) for c in conversations]
    return _prompts(rows, template, form, limit)


def prompts_of_judgements(
    judged: Sequence[JudgedPrompt], template: ChatTemplate, form: Format, *, limit: int
) -> tuple[list[Prompt], Counter[str]]:
    """The prompts of judgements, which have no right answer; as `prompts_of_conversations`."""
    return _prompts([(p.id, list(p.prompt), None, p.group) for p in judged], template, form, limit)


def _prompts(
    rows: Sequence[tuple[str, list[Message], str | None, str]], template: ChatTemplate, form: Format, limit: int
) -> tuple[list[Prompt], Counter[str]]:
    prompts, counts = [], Counter[str]()
    for id, messages, answer, group in rows:
        try:
            tokens = _chat_tokens(messages, template) if form == "chat" else text_tokens(messages, template)
        except UnrenderableError as error:
            counts[f"prompts: {error.reason}"] += 1
            continue
        if len(tokens) > limit:
            counts["prompts too long"] += 1
            continue
        prompts.append(Prompt(id, messages[-1]["content"], bare_text(messages), tuple(tokens), answer, group))
    return prompts, counts


def _chat_tokens(messages: list[Message], template: ChatTemplate) -> list[int]:
    template.encode([*messages, {"role": "assistant", "content": "."}])  # refuses what imitates special tokens
    text = template.render(messages, add_generation_prompt=True)
    return list(template.tokenizer(text, add_special_tokens=False).input_ids)


def text_tokens(messages: Sequence[Message], template: ChatTemplate) -> list[int]:
    """The tokens of messages without a chat's marks, a line each."""
    return prompt_tokens(template.tokenizer, [bare_text(messages)])[0]


@dataclass(frozen=True)
class Completions:
    """Tokens that a policy wrote, a completion an element.

    Attributes:
        tokens: the end included where there is one.
        ended: whether the model ended it; the others were cut for length.
        texts: for people and for rules, without special tokens.
        log_probs: of the tokens, as they were sampled; None where nobody kept them.
    """

    prompts: list[Prompt]
    tokens: list[list[int]]
    ended: list[bool]
    texts: list[str]
    log_probs: list[list[float]] | None = None

    def examples(self) -> list[Example]:
        """Prompt and completion, the completion supervised; their ids are their places."""
        return [example_of(str(row), p, t) for row, (p, t) in enumerate(zip(self.prompts, self.tokens, strict=True))]


def example_of(id: str, prompt: Prompt, completion: Sequence[int]) -> Example:
    tokens = np.array([*prompt.tokens, *completion], dtype=np.int64)
    return Example(id, tokens, np.arange(len(tokens)) >= len(prompt.tokens))


@dataclass(frozen=True)
class Writer:
    """How prompts are continued.

    Attributes:
        stop: tokens that end a completion.
        temperature: above 0; every log-probability is taken at it too.
        laid_out: what need not be prepared again for every update of an adapter.
    """

    template: ChatTemplate
    stop: frozenset[int]
    temperature: float
    max_new_tokens: int
    laid_out: LaidOut = field(default_factory=LaidOut)

    def write(
        self, model: PreTrainedModel, prompts: Sequence[Prompt], *, seed: int, head: nn.Module | None = None
    ) -> Completions:
        """One completion a prompt, sampled from the whole softmax: a nucleus would be another policy than the one
        whose log-probabilities are learned from.

        Args:
            head: what gives the next token's logits instead of the model's own head.
        """
        # It copies weights, so every update needs a new one.
        generator = Generator(model, stop=self.stop, head=head, laid_out=self.laid_out)
        tokens, log_probs = generator.sample(
            [prompt.tokens for prompt in prompts],
            max_new_tokens=self.max_new_tokens,
            sampling=Sampling(self.temperature),
            seed=seed,
        )
        texts = self.template.tokenizer.batch_decode(tokens, skip_special_tokens=True)
        return Completions(list(prompts), tokens, [row[-1] in self.stop for row in tokens], texts, log_probs)


def stop_tokens(model: PreTrainedModel, template: ChatTemplate, form: Format) -> frozenset[int]:
    """What ends a completion: the tokenizer's end and the model's; in a chat also what ends a turn.

    Raises:
        ModelError: there is none, so no completion would ever end.
    """
    configured = model.generation_config.eos_token_id
    ends = {template.tokenizer.eos_token_id, *(configured if isinstance(configured, list) else [configured])}
    if form == "chat":
        ends.add(template.end_of_turn())
    if ends <= {None}:
        raise ModelError(
            "neither the tokenizer nor the model names a token that ends a text", hint="use `format: chat`"
        )
    return frozenset(int(end) for end in ends if end is not None)


@dataclass(frozen=True)
class Rollouts:
    """Completions with what the models say of their tokens; no gradient, 0 outside the mask.

    Attributes:
        log_probs, reference: [B, T] at the temperature of sampling; `log_probs` are those kept from sampling, or those
            of the policy that was asked again.
        gap: mean over tokens of how far the two were apart, in nats; None where the policy was not asked again.
        values: [B, T] of the state before each token; None without a value model.
        mask: [B, T] True on a completion's tokens, its end included.
        rewards: name of a reward model -> [B].
    """

    completions: Completions
    log_probs: Tensor
    reference: Tensor
    values: Tensor | None
    mask: Tensor
    rewards: dict[str, Tensor]
    gap: float | None = None


@torch.no_grad()
def assess(
    roles: Roles,
    completions: Completions,
    temperature: float,
    micro_batch_tokens: int,
    *,
    ask_policy: bool = True,
    check_stop: Callable[[], None] = lambda: None,
) -> Rollouts:
    """Ask every model about completions, dropout off.

    Args:
        ask_policy: whether the policy too is asked, as its updates will ask it. What was kept from sampling differs
            from that by rounding, and several updates' ratios would begin as noise; a single update needs no ratio.
    """
    mask = mask_of(completions.tokens)
    kept = None if completions.log_probs is None else _placed(completions.log_probs, mask)
    asks = ask_policy or kept is None
    log_probs = torch.zeros(mask.shape) if kept is None or asks else kept
    reference = torch.zeros(mask.shape)
    values = None if roles.value is None else torch.zeros(mask.shape)
    rewards = {name: torch.zeros(mask.shape[0]) for name in roles.rewards}
    for packed in _packed(completions.examples(), micro_batch_tokens):
        check_stop()
        rows = [int(id) for id in packed.ids]
        if asks:
            place(log_probs, mask, rows, roles.policy.log_probs(packed, temperature))
        place(reference, mask, rows, roles.reference.log_probs(packed, temperature))
        if values is not None and roles.value is not None:
            place(values, mask, rows, roles.value(packed))
        for name, judge in roles.rewards.items():
            rewards[name][rows] = judge(packed).cpu()
    gap = float((log_probs - kept)[mask].abs().mean()) if asks and kept is not None else None
    return Rollouts(completions, log_probs, reference, values, mask, rewards, gap)


def _placed(rows: Sequence[Sequence[float]], mask: Tensor) -> Tensor:
    """[B, T] fp32, 0 outside the mask."""
    placed = torch.zeros(mask.shape)
    placed[mask] = torch.tensor([value for row in rows for value in row], dtype=torch.float32)
    return placed


def _packed(examples: Sequence[Example], micro_batch_tokens: int) -> Iterator[PackedBatch]:
    for part in split_shared(examples, micro_batch_tokens):
        yield pack_shared(part)


def mask_of(completions: Sequence[Sequence[int]]) -> Tensor:
    """[B, T]"""
    lengths = torch.tensor([len(tokens) for tokens in completions])
    return torch.arange(int(lengths.max())) < lengths[:, None]


def place(target: Tensor, mask: Tensor, rows: Sequence[int], flat: Tensor) -> None:
    """Write values of packed completions [S], in the order of `rows`, into their places of `target` [B, T]."""
    chosen = list(rows)
    block = torch.zeros(len(chosen), mask.shape[1])
    block[mask[chosen]] = flat.detach().float().cpu()
    target[chosen] = block


def gather(source: Tensor, mask: Tensor, rows: Sequence[int]) -> Tensor:
    """The inverse of `place`: [S], in the order of `rows`."""
    chosen = list(rows)
    return source[chosen][mask[chosen]]
