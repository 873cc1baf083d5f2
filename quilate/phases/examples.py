"""Training items as tokens, for every kind of task that weights are trained on."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from transformers import PreTrainedTokenizerBase

from quilate.data.packing import Example
from quilate.errors import DataError
from quilate.inference.choice import said_answers, shown_options
from quilate.inference.records import RecordPrompts
from quilate.inference.tagging import WindowPlan
from quilate.inference.written_spans import prompt_of, written
from quilate.tasks.bio import spans_of, tags_of
from quilate.tasks.classification import ClassificationTask
from quilate.tasks.extraction import Document, ExtractionTask, Span, without_overlaps
from quilate.tasks.multi_label import MultiLabelTask
from quilate.tasks.multiple_choice import AnswerForm, ChoiceTask
from quilate.tasks.question_answering import QuestionTask
from quilate.tasks.records import locate, parse_records
from quilate.tasks.records import written as written_records
from quilate.tasks.task import Task
from quilate.tasks.templates import PromptTemplate
from quilate.tokenization.segments import answer_tokens, opening_tokens, prompt_tokens, shorten
from quilate.tokenization.windows import pieces, placed_tokens


@dataclass(frozen=True)
class Examples:
    """`counts` says what was cut or lost on the way; `rows` is how many items stand behind the examples."""

    examples: list[Example]
    counts: dict[str, int]
    rows: int


def written_examples(
    task: Task, form: AnswerForm, tokenizer: PreTrainedTokenizerBase, *, max_item_tokens: int, context: int
) -> Examples:
    """The training items of a task whose answers a causal model writes.

    Raises:
        DataError: see the kinds below.
    """
    match task:
        case ChoiceTask():
            return choice_examples(task, form, tokenizer, max_item_tokens=max_item_tokens, context=context)
        case ClassificationTask():
            return label_examples(task, tokenizer, max_item_tokens=max_item_tokens, context=context)
        case QuestionTask():
            return answer_examples(task, tokenizer, max_item_tokens=max_item_tokens, context=context)
        case ExtractionTask():
            return list_examples(task, tokenizer, max_item_tokens=max_item_tokens, context=context)
    raise AssertionError(f"no such kind of task: {task.config.kind}")


def shown_and_said(task: ClassificationTask | ChoiceTask | QuestionTask, form: AnswerForm) -> list[tuple[str, str]]:
    """(prompt, answer) of every training item, in their order, as texts; between them stands a space."""
    match task:
        case ClassificationTask():
            template = task.prompt_template()
            return [(template.prompt(item.text), task.verbalizer(item.label)) for item in task.train]
        case ChoiceTask():
            template = task.config.prompt_template(form)
            return [
                (template.prompt(item.text, shown_options(item, form)), said_answers(item, form)[item.right])
                for item in task.train
            ]
        case QuestionTask():
            template = task.config.prompt_template()
            return [(template.prompt(item.text, context=item.context), item.right_answers[0]) for item in task.train]


def list_examples(
    task: ExtractionTask, tokenizer: PreTrainedTokenizerBase, *, max_item_tokens: int, context: int
) -> Examples:
    """Prompt, list of the document's entities, end of sequence; what follows the prompt is supervised. `counts` has the
    spans left out because they overlap a longer one, and those that stand in what is cut: a model that learned to list
    what it is not shown would learn to invent.

    Raises:
        DataError: the longest list leaves no room for a prompt in the model's `context`.
    """
    language = task.config.language
    prompts = [prompt_of(document.text, language) for document in task.train]
    shown = [_shown_spans(d, prompt, tokenizer, max_item_tokens) for d, prompt in zip(task.train, prompts, strict=True)]
    room = max(1, min(max_item_tokens, context - 1 - max(map(len, answer_tokens(tokenizer, _lists(task, shown))))))
    shown = [_shown_spans(d, prompt, tokenizer, room) for d, prompt in zip(task.train, prompts, strict=True)]
    lists = answer_tokens(tokenizer, _lists(task, shown))
    made = _written(
        [document.id for document in task.train], prompts, lists, tokenizer,
        max_item_tokens=room, context=context, longest=max(map(len, lists)),
    )  # fmt: skip
    lost = {
        "overlapping spans left out": sum(len(spans) - len(without_overlaps(spans)) for spans in shown),
        "spans in what is cut": sum(len(d.spans) - len(spans) for d, spans in zip(task.train, shown, strict=True)),
    }
    return Examples(made.examples, made.counts | lost, made.rows)


def _lists(task: ExtractionTask, shown: Sequence[Sequence[Span]]) -> list[str]:
    return [written(d.text, spans, task.config.language) for d, spans in zip(task.train, shown, strict=True)]


def _shown_spans(document: Document, prompt: str, tokenizer: PreTrainedTokenizerBase, room: int) -> tuple[Span, ...]:
    """The spans that stay in the prompt when it is cut, as `shorten` does, to so many tokens."""
    placed, opening = placed_tokens(tokenizer, prompt), len(opening_tokens(tokenizer))
    if opening + len(placed) <= room:
        return document.spans
    kept, _ = shorten(list(range(-opening, len(placed))), room)
    gap = next(place for place, (one, after) in enumerate(itertools.pairwise(kept)) if after > one + 1)
    head_ends = placed.ends[kept[gap]] if kept[gap] >= 0 else 0
    tail_starts = placed.starts[kept[gap + 1]]
    before = prompt.index(document.text)
    return tuple(s for s in document.spans if before + s.end <= head_ends or before + s.start >= tail_starts)


def longest_list(task: ExtractionTask, tokenizer: PreTrainedTokenizerBase) -> int:
    """Tokens of the longest list of entities in training, its end included."""
    return 1 + max(map(len, answer_tokens(tokenizer, _lists(task, [document.spans for document in task.train]))))


def label_examples(
    task: ClassificationTask, tokenizer: PreTrainedTokenizerBase, *, max_item_tokens: int, context: int
) -> Examples:
    """Prompt, label, end of sequence; the label and the end are supervised.

    Raises:
        DataError: the longest label leaves no room for a prompt in the model's `context`.
    """
    prompts = [prompt for prompt, _ in shown_and_said(task, "text")]
    said = dict(zip(task.labels, answer_tokens(tokenizer, task.verbalizers), strict=True))
    answers = [said[item.label] for item in task.train]
    ids = [item.id for item in task.train]
    longest = max(map(len, said.values()))
    return _written(ids, prompts, answers, tokenizer, max_item_tokens=max_item_tokens, context=context, longest=longest)


def choice_examples(
    task: ChoiceTask, form: AnswerForm, tokenizer: PreTrainedTokenizerBase, *, max_item_tokens: int, context: int
) -> Examples:
    """Prompt, right option (or its letter), end of sequence; what follows the prompt is supervised.

    Raises:
        DataError: the longest right option leaves no room for a prompt in the model's `context`.
    """
    texts = shown_and_said(task, form)
    prompts, answers = [prompt for prompt, _ in texts], answer_tokens(tokenizer, [answer for _, answer in texts])
    ids = [item.id for item in task.train]
    longest = max(map(len, answers))
    return _written(ids, prompts, answers, tokenizer, max_item_tokens=max_item_tokens, context=context, longest=longest)


def answer_examples(
    task: QuestionTask, tokenizer: PreTrainedTokenizerBase, *, max_item_tokens: int, context: int
) -> Examples:
    """Prompt, first right answer, end of sequence; what follows the prompt is supervised.

    Raises:
        DataError: the longest right answer leaves no room for a prompt in the model's `context`.
    """
    texts = shown_and_said(task, "text")
    prompts, answers = [prompt for prompt, _ in texts], answer_tokens(tokenizer, [answer for _, answer in texts])
    ids = [item.id for item in task.train]
    longest = max(map(len, answers))
    return _written(ids, prompts, answers, tokenizer, max_item_tokens=max_item_tokens, context=context, longest=longest)


def _written(
    ids: Sequence[str],
    prompts: Sequence[str],
    answers: Sequence[list[int]],
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_item_tokens: int,
    context: int,
    longest: int,
) -> Examples:
    """What a causal model learns to write after prompts."""
    end = [] if tokenizer.eos_token_id is None else [int(tokenizer.eos_token_id)]
    room = min(max_item_tokens, context - len(end) - longest)
    if room < 1:
        raise DataError(
            f"the longest answer fills the model's context of {context} tokens",
            hint="give a label a short text in task.labels; leave out questions with options as long as that",
        )
    examples, truncated = [], 0
    for name, tokens, answer in zip(ids, prompt_tokens(tokenizer, prompts), answers, strict=True):
        prompt, was_cut = shorten(tokens, room)
        supervised = np.zeros(len(prompt) + len(answer) + len(end), dtype=bool)
        supervised[len(prompt) :] = True
        examples.append(Example(name, np.array(prompt + answer + end, dtype=np.int64), supervised))
        truncated += was_cut
    return Examples(examples, {"prompts cut": truncated}, len(examples))


def tag_examples(task: ExtractionTask, tokenizer: PreTrainedTokenizerBase, plan: WindowPlan) -> Examples:
    """Documents window by window; every token is supervised once, in the window that will judge it in use, but for
    those that are white space alone.

    `counts` has the documents of several windows, the spans left out because they overlap a longer one, and those whose
    borders fall inside a token, which no tag can express.
    """
    labels = task.trained_labels
    examples: list[Example] = []
    overlapping = inexact = windowed = 0
    for document in task.train:
        placed = placed_tokens(tokenizer, document.text)
        tags = tags_of(document.spans, placed.starts, placed.ends, labels)
        wanted = without_overlaps(document.spans)
        overlapping += len(document.spans) - len(wanted)
        inexact += len(set(wanted) - set(spans_of(tags, placed.starts, placed.ends, labels)))
        found = plan.windows(len(placed)) if len(placed) else []
        windowed += len(found) > 1
        for number, window in enumerate(found):
            tokens = np.array(plan.tokens(placed, window), dtype=np.int64)
            answers, supervised = np.zeros(len(tokens), dtype=np.int64), np.zeros(len(tokens), dtype=bool)
            first = len(plan.opening) + window.own_start - window.start
            own = slice(window.own_start, window.own_stop)
            here = slice(first, first + window.own_stop - window.own_start)
            answers[here], supervised[here] = tags[own], (placed.starts < placed.ends)[own]
            if supervised.any():
                examples.append(Example(f"{document.id}/{number}", tokens, supervised, answers))
    counts = {
        "documents in several windows": windowed,
        "spans inside longer ones": overlapping,
        "spans that end inside a token": inexact,
    }
    return Examples(examples, counts, len(task.train))


def label_set_examples(
    task: MultiLabelTask, tokenizer: PreTrainedTokenizerBase, *, max_item_tokens: int, context: int
) -> Examples:
    """Texts window by window, each to be given the whole text's labels, which are read at its last token.

    Ids are `item/window`: see `item_of`. A text without a token is left out, and counted.
    """
    opening, size = opening_tokens(tokenizer), min(max_item_tokens, context)
    examples: list[Example] = []
    windowed = empty = 0
    for item, tokens in zip(task.train, prompt_tokens(tokenizer, [item.text for item in task.train]), strict=True):
        found = pieces(tokens, opening, size) if tokens else []
        windowed += len(found) > 1
        empty += not found
        for number, piece in enumerate(found):
            supervised = np.zeros(len(piece.tokens), dtype=bool)
            supervised[-1] = True
            # `answers` says that the last position is itself read, and none before it; the labels are the loss's.
            read = np.array(piece.tokens, dtype=np.int64)
            examples.append(Example(f"{item.id}/{number}", read, supervised, np.zeros_like(read)))
    return Examples(examples, {"texts in several windows": windowed, "texts without a token": empty}, len(task.train))


@dataclass(frozen=True)
class RecordTexts:
    """The windows of documents and the records that they own: `ids`, prompts and answers as texts; `counts` as
    `record_examples` has them."""

    ids: list[str]
    prompts: list[str]
    answers: list[str]
    counts: dict[str, int]


def record_texts(
    task: ExtractionTask, tokenizer: PreTrainedTokenizerBase, *, max_item_tokens: int, max_new_tokens: int, context: int
) -> RecordTexts:
    """What `record_examples` turns into tokens."""
    template = PromptTemplate(task.config.prompt_template().source, verbalizers=task.trained_labels)
    prompts = RecordPrompts(
        tokenizer, template, (), size=max_item_tokens, max_new_tokens=max_new_tokens, context=context
    )
    ids: list[str] = []
    shown: list[str] = []
    said: list[str] = []
    counts = Counter[str]()
    for document in task.train:
        parts = prompts.parts(document.text)
        counts["documents in several windows"] += len(parts) > 1
        owned = [[part.to_part(span) for span in document.spans if part.owns(span)] for part in parts]
        counts["spans that no window shows whole"] += len(document.spans) - sum(map(len, owned))
        for number, (part, spans) in enumerate(zip(parts, owned, strict=True)):
            answer = written_records(part.text, spans)
            again = set(locate(parse_records(answer).records, part.text)[0])
            counts["spans that their record does not find"] += len(set(spans) - again)
            ids.append(f"{document.id}/{number}")
            shown.append(prompts.prompt(part))
            said.append(answer)
    return RecordTexts(ids, shown, said, dict(counts))


def record_examples(
    task: ExtractionTask, tokenizer: PreTrainedTokenizerBase, *, max_item_tokens: int, max_new_tokens: int, context: int
) -> Examples:
    """Documents window by window, each followed by the records of the spans that the window owns; the records and the
    end of sequence are supervised.

    `counts` has the documents of several windows, the spans that no window shows whole, those that a search for their
    record does not find again, and the windows whose answer is longer than `max_new_tokens`: they are left out.
    """
    texts = record_texts(
        task, tokenizer, max_item_tokens=max_item_tokens, max_new_tokens=max_new_tokens, context=context
    )
    end = [] if tokenizer.eos_token_id is None else [int(tokenizer.eos_token_id)]
    asked, answers = prompt_tokens(tokenizer, texts.prompts), answer_tokens(tokenizer, texts.answers)
    examples: list[Example] = []
    for name, prompt, answer in zip(texts.ids, asked, answers, strict=True):
        if len(answer) + len(end) > max_new_tokens:
            continue
        supervised = np.zeros(len(prompt) + len(answer) + len(end), dtype=bool)
        supervised[len(prompt) :] = True
        examples.append(Example(name, np.array(prompt + answer + end, dtype=np.int64), supervised))
    too_long = len(texts.ids) - len(examples)
    counts = texts.counts | ({"windows with too long an answer": too_long} if too_long else {})
    return Examples(examples, counts, len(task.train))


def item_of(example: str) -> str:
    """The id of the item that an example's id names."""
    return example.rpartition("/")[0]
