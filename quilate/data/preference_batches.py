"""Judged completions as tokens, and as batches in which all completions of a prompt stand together.

Shapes: T tokens in a batch, S supervised ones, N documents (a prompt and one completion each), P pairs, R prompts.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from quilate.data.batches import epoch_orders
from quilate.data.packing import Example, PackedBatch, pack
from quilate.data.preferences import JudgedPrompt, Pair
from quilate.files import digest
from quilate.tokenization.chat import ChatTemplate, EncodedChat, Message, UnrenderableError
from quilate.tokenization.segments import shorten

MIN_PROMPT_TOKENS = 32  # a completion that leaves less for its prompt is left out (guess)


@dataclass(frozen=True)
class EncodedPrompt:
    """A `JudgedPrompt` as tokens.

    Attributes:
        completions: each is the prompt, the completion and the token that ends the turn; the latter two are supervised.
        mismatched: the one completion after another prompt, where `with_mismatches` has put it.
    """

    id: str
    group: str
    completions: tuple[Example, ...]
    pairs: tuple[Pair, ...]
    desirable: tuple[bool | None, ...]
    demonstrations: tuple[int, ...]
    mismatched: Example | None = None

    @property
    def tokens(self) -> int:
        return sum(len(completion.tokens) for completion in self.completions)

    @property
    def tokens_read(self) -> int:
        """With those of the mismatched completion, which is read in every step too."""
        return self.tokens + (0 if self.mismatched is None else len(self.mismatched.tokens))


def encode_prompts(
    prompts: Sequence[JudgedPrompt], template: ChatTemplate, *, limit: int
) -> tuple[list[EncodedPrompt], dict[str, int]]:
    """Every prompt with its completions in at most `limit` tokens; what must be cut is cut from the prompt alone.

    The oldest turns go first, then the middle of the last message. All completions of a prompt keep the same one.

    Returns:
        The prompts of which a judgement is left, and what was cut or left out: name -> how many.
    """
    counts: Counter[str] = Counter()
    encoded = [_encode(judged, template, limit, counts) for judged in prompts]
    kept = [prompt for prompt in encoded if prompt is not None]
    counts["prompts of which no judgement is left"] = len(prompts) - len(kept)
    return kept, {name: count for name, count in counts.items() if count}


def _encode(judged: JudgedPrompt, template: ChatTemplate, limit: int, counts: Counter[str]) -> EncodedPrompt | None:
    chats = _fitting(judged, template, limit, counts)
    usable = [index for index, chat in enumerate(chats) if chat is not None]
    place = {index: n for n, index in enumerate(usable)}
    pairs = tuple(
        Pair(place[p.better], place[p.worse], p.strength)
        for p in judged.pairs
        if p.better in place and p.worse in place
    )
    counts["pairs left out with a completion"] += len(judged.pairs) - len(pairs)
    desirable = judged.desirable()
    demonstrations = tuple(place[i] for i in judged.demonstrations if i in place)
    if not pairs and not demonstrations and all(desirable[i] is None for i in usable):
        return None
    completions = tuple(_example(f"{judged.id}#{i}", chat) for i, chat in enumerate(chats) if chat is not None)
    labels = tuple(desirable[i] for i in usable)
    return EncodedPrompt(judged.id, judged.group, completions, pairs, labels, demonstrations)


def _example(id: str, chat: EncodedChat) -> Example:
    end = chat.turn_ends[-1]
    return Example(id, np.array(chat.tokens[:end], dtype=np.int64), np.array(chat.learned[:end], dtype=bool))


def _fitting(
    judged: JudgedPrompt, template: ChatTemplate, limit: int, counts: Counter[str]
) -> list[EncodedChat | None]:
    """The completions after as much of the prompt as they all leave room for; None for those that cannot be used."""
    wanted = dict(enumerate(judged.completions))
    prompt = list(judged.prompt)
    was_cut = False
    chats: dict[int, EncodedChat] = {}
    while wanted:
        chats = {}
        for index, completion in list(wanted.items()):
            try:
                answer = {"role": "assistant", "content": completion}
                chats[index] = template.encode([*prompt, answer], context=len(prompt))
            except UnrenderableError as error:
                counts[f"completions: {error.reason}"] += 1
                del wanted[index]
                continue
            if sum(chats[index].learned) > limit - MIN_PROMPT_TOKENS:
                counts["completions too long"] += 1
                del wanted[index]
        excess = max((chats[index].turn_ends[-1] for index in wanted), default=0) - limit
        if excess <= 0:
            break
        was_cut = True
        shorter = _without_oldest_turns(prompt) or _with_last_cut(prompt, excess, template)
        if shorter is None:
            counts["completions too long"] += len(wanted)
            wanted = {}
        else:
            prompt = shorter
    counts["prompts cut"] += was_cut and bool(wanted)
    return [chats[index] if index in wanted else None for index in range(len(judged.completions))]


def _without_oldest_turns(prompt: list[Message]) -> list[Message] | None:
    """The prompt from its second question on, the system's message kept; None if there is but one."""
    first = prompt[0]["role"] == "system"
    later = next((i for i in range(first + 1, len(prompt)) if prompt[i]["role"] == "user"), None)
    return None if later is None else prompt[:first] + prompt[later:]


def _with_last_cut(prompt: list[Message], excess: int, template: ChatTemplate) -> list[Message] | None:
    """The prompt with its last message shorter by `excess` tokens; None if that would leave nothing of it."""
    tokens = _content_tokens(prompt[-1]["content"], template)
    for kept in range(len(tokens) - excess, 0, -1):
        # A letter of several bytes that is cut in two decodes to a mark that is itself more tokens: without it the
        # prompt would not become shorter, and might grow for ever.
        content = template.tokenizer.decode(shorten(tokens, kept)[0]).replace("\N{REPLACEMENT CHARACTER}", "")
        if content.strip() and len(_content_tokens(content, template)) <= len(tokens) - excess:
            return [*prompt[:-1], prompt[-1] | {"content": content}]
    return None


def _content_tokens(content: str, template: ChatTemplate) -> list[int]:
    return list(template.tokenizer(content, add_special_tokens=False).input_ids)


def with_mismatches(
    prompts: Sequence[JudgedPrompt], encoded: Sequence[EncodedPrompt], *, limit: int
) -> list[EncodedPrompt]:
    """For KTO: every labelled completion on its own, with the same completion after another prompt beside it.

    The other prompt is the next one in the file, of another text, cut where both would exceed `limit`. It is fixed
    here, not by whichever prompts share a batch: so batches may be shuffled, and of any size.

    Args:
        prompts: what was encoded, by the same ids.
    """
    text_of = {judged.id: judged.prompt for judged in prompts}
    alone = []
    for place, prompt in enumerate(encoded):
        others = (encoded[(place + step) % len(encoded)] for step in range(1, len(encoded)))
        other = next((o for o in others if text_of[o.id] != text_of[prompt.id]), None)
        for completion, label in zip(prompt.completions, prompt.desirable, strict=True):
            if label is not None:
                mismatched = None if other is None else _after(other.completions[0], completion, limit)
                alone.append(EncodedPrompt(completion.id, prompt.group, (completion,), (), (label,), (), mismatched))
    return alone


def _after(other: Example, completion: Example, limit: int) -> Example:
    """`completion` after the prompt that `other` has."""
    answer = completion.tokens[int(np.argmax(completion.supervised)) :]
    prompt, _ = shorten(other.tokens[: int(np.argmax(other.supervised))].tolist(), limit - len(answer))
    supervised = np.zeros(len(prompt) + len(answer), dtype=bool)
    supervised[len(prompt) :] = True
    tokens = np.concatenate([np.array(prompt, dtype=np.int64), answer])
    return Example(f"{completion.id} elsewhere", tokens, supervised)


@dataclass(frozen=True)
class PreferenceBatch:
    """Whole prompts, packed: every completion is a document of its own.

    Attributes:
        packed: the documents; their targets are the completions' tokens.
        document: [S], the document of each target.
        better, worse: [P], documents; ranking: [P], the prompt of each pair.
        prompts: R.
        desirable: [N] bool; where nothing is known of a document, False.
        elsewhere: mismatched completions (see `with_mismatches`) of the *whole* step, with its first micro-batch.
    """

    packed: PackedBatch
    document: Tensor
    better: Tensor
    worse: Tensor
    ranking: Tensor
    prompts: int
    desirable: Tensor
    elsewhere: tuple[PreferenceBatch, ...] = ()

    @property
    def ids(self) -> tuple[str, ...]:
        return self.packed.ids

    @property
    def documents(self) -> int:
        return len(self.packed.lengths)

    @property
    def tokens(self) -> int:
        return self.packed.tokens + sum(batch.tokens for batch in self.elsewhere)

    @property
    def supervised_tokens(self) -> int:
        return self.packed.supervised_tokens

    @property
    def weight(self) -> int:
        return self.prompts

    def sum_by_document(self, values: Tensor) -> Tensor:
        """[N] sums of [S] values."""
        return torch.zeros(self.documents, dtype=values.dtype, device=values.device).index_add(
            0, self.document.to(values.device), values
        )


def collate(prompts: Sequence[EncodedPrompt]) -> PreferenceBatch:
    """Prompts side by side."""
    packed = pack([completion for prompt in prompts for completion in prompt.completions])
    place = {id: document for document, id in enumerate(packed.ids)}
    counts = {c.id: c.supervised_tokens for prompt in prompts for c in prompt.completions}
    targets = torch.tensor([counts[id] for id in packed.ids])
    pairs = [
        (place[prompt.completions[pair.better].id], place[prompt.completions[pair.worse].id], number)
        for number, prompt in enumerate(prompts)
        for pair in prompt.pairs
    ]
    better, worse, ranking = torch.tensor(pairs, dtype=torch.int64).view(-1, 3).T
    liked = {c.id for prompt in prompts for c, label in zip(prompt.completions, prompt.desirable, strict=True) if label}
    return PreferenceBatch(
        packed=packed,
        document=torch.repeat_interleave(torch.arange(len(targets)), targets),
        better=better,
        worse=worse,
        ranking=ranking,
        prompts=len(prompts),
        desirable=torch.tensor([id in liked for id in packed.ids]),
    )


def split_prompts(prompts: Sequence[EncodedPrompt], max_tokens: int) -> list[list[EncodedPrompt]]:
    """Prompts in micro-batches of at most `max_tokens`, similar sizes together; one prompt is never divided."""
    parts: list[list[EncodedPrompt]] = []
    room = 0
    for prompt in sorted(prompts, key=lambda p: -p.tokens):
        if not parts or prompt.tokens > room:
            parts.append([])
            room = max_tokens
        parts[-1].append(prompt)
        room -= prompt.tokens
    return parts


class PreferenceBatches:
    """Shuffled epochs over prompts; `batches[step]` is that step's micro-batches.

    Args:
        batch_size: prompts an optimizer step.
        epochs, seed, micro_batch_tokens, max_tokens: as in `ExampleBatches`.

    Attributes:
        examples_left_out: visits dropped because of `max_tokens`.
    """

    def __init__(
        self,
        prompts: Sequence[EncodedPrompt],
        *,
        batch_size: int,
        epochs: float,
        seed: int,
        micro_batch_tokens: int,
        max_tokens: int | None = None,
    ) -> None:
        self.prompts, self.micro_batch_tokens = prompts, micro_batch_tokens
        self.plan: list[np.ndarray] = []
        visits = epoch_orders(len(prompts), epochs, seed)
        used = 0
        for batch in (part for order in visits for part in np.split(order, range(batch_size, len(order), batch_size))):
            used += sum(prompts[i].tokens_read for i in batch)
            if max_tokens is not None and used > max_tokens:
                break
            self.plan.append(batch)
        self.examples_left_out = sum(map(len, visits)) - sum(map(len, self.plan))
        content = [
            [p.id, [[*map(int, c.tokens)] for c in p.completions], [list(pair) for pair in p.pairs], list(p.desirable)]
            for p in prompts
        ]
        self.fingerprint = digest([[batch.tolist() for batch in self.plan], content, micro_batch_tokens])

    def __len__(self) -> int:
        return len(self.plan)

    def __getitem__(self, step: int) -> list[PreferenceBatch]:
        chosen = [self.prompts[i] for i in self.plan[step]]
        mismatched = [
            replace(p, completions=(p.mismatched,), mismatched=None) for p in chosen if p.mismatched is not None
        ]
        elsewhere = tuple(collate(part) for part in split_prompts(mismatched, self.micro_batch_tokens))
        first, *others = (collate(part) for part in split_prompts(chosen, self.micro_batch_tokens))
        return [replace(first, elsewhere=elsewhere), *others]
