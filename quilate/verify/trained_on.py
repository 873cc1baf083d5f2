"""What a stage was trained on: its tokens, its texts as the tokenizer has them, and what the test has of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from quilate.data.conversations import Conversation
from quilate.data.packing import Example
from quilate.engine.label_sets import LabelSetLoss
from quilate.errors import UsageError
from quilate.models.load import load_tokenizer
from quilate.phases.conversations import stored_conversations
from quilate.phases.sft import SftConfig
from quilate.tasks.bio import spans_of
from quilate.tasks.extraction import Document, ExtractionTask, without_overlaps
from quilate.tasks.labels import Item
from quilate.tasks.leaks import Leaks, find_leaks
from quilate.tasks.multi_label import MultiLabelTask
from quilate.tasks.templates import PromptTemplate
from quilate.tokenization.segments import opening_tokens, prompt_tokens
from quilate.tokenization.windows import placed_tokens
from quilate.verify.certificate import DoesNotApply, Finding
from quilate.verify.stage import HEAD, Examined


def token_counts(examined: Examined) -> Finding:
    """Supervised, masked, truncated and dropped tokens; of a finished stage, the totals that its manifest recorded."""
    trained, batches = examined.trained, examined.batches
    supervised = sum(example.supervised_tokens for example in trained.examples)
    kept = {example.id: len(example.tokens) for example in trained.examples}
    empty = sum(example.supervised_tokens == 0 for example in trained.examples)
    visited = [batches.examples[i] for step in batches.plan for i in step]
    figures: dict[str, float | int | str] = {
        "rows": trained.items,
        **({"windows": len(kept)} if trained.items != len(kept) else {}),
        "tokens": sum(kept.values()),
        "supervised tokens": supervised,
        "masked tokens": sum(kept.values()) - supervised,
        "truncated tokens": sum(trained.whole[id] - size for id, size in kept.items()),
        "dropped tokens": sum(size for id, size in trained.whole.items() if id not in kept),
        "rows dropped for their length": len(trained.whole.keys() - kept.keys()),
        **trained.counts,
        "steps": len(batches),
        "tokens over all steps": sum(len(example.tokens) for example in visited),
        "supervised tokens over all steps": sum(example.supervised_tokens for example in visited),
        "visits over the token budget": batches.examples_left_out,
    }
    problem = f"{empty} rows have no supervised token" if empty else ""
    if examined.manifest is None:
        return Finding(_said(examined, "the stage is planned: nothing recorded to compare"), 0, 0, "", problem, figures)
    recorded = _recorded(examined.manifest)
    differing = [name for name, value in recorded.items() if figures[name] != value]
    told = [f"{name}: {figures[name]:,} made again, {recorded[name]:,} recorded" for name in differing]
    problem = "; ".join(filter(None, (problem, *told)))
    return Finding(
        _said(examined, f"{', '.join(recorded)} against the stage's manifest"),
        len(differing), 0, "totals differ", problem, figures,
    )  # fmt: skip


def _said(examined: Examined, against: str) -> str:
    rows = f"{examined.trained.items:,} rows made again by the stage's own functions"
    return f"{rows}{examined.trial and f', for {examined.trial}'}; {against}"


def _recorded(manifest: Mapping[str, Any]) -> dict[str, int]:
    facts = manifest["facts"]
    spent = facts["tried"][facts["chosen"]] if "tried" in facts else manifest["cost"]  # the cost is of all trials
    return {
        "rows": facts["train_rows"] if "train_rows" in facts else facts["conversations"],
        "steps": facts["steps"],
        "tokens over all steps": spent["train_tokens"],
        "supervised tokens over all steps": facts["supervised_tokens"],
    }


def template_round_trip(examined: Examined) -> Finding:
    """Chat: the rendered ids are those of the tokenizer's own `apply_chat_template`. Tasks: prompt and answer as one
    text have the ids trained on, or these ids decode to that text."""
    if examined.is_head:
        raise DoesNotApply(HEAD)
    tokenizer = examined.tokenizer
    saved = examined.manifest is not None
    if saved:  # what the saved directory has is what others will use
        tokenizer = load_tokenizer(examined.model_directory)
    place = "the saved directory's" if saved else "the base's"
    if isinstance(examined.config, SftConfig):
        return _chat_round_trip(examined, tokenizer, place)
    if examined.classifies:
        return _window_round_trip(examined, tokenizer, place)
    return _answer_round_trip(examined, tokenizer, place)


def _chat_round_trip(examined: Examined, tokenizer: PreTrainedTokenizerBase, place: str) -> Finding:
    if examined.manifest is None:
        tokenizer.chat_template = examined.template.source
    examples = {example.id: example for example in examined.trained.examples}
    differing = 0
    for id, conversation in examined.conversations.items():
        own = tokenizer.apply_chat_template(conversation.messages, tokenize=True, return_dict=True)["input_ids"]
        ours = examples[id].tokens.tolist()  # the first turns, where the conversation was cut
        expected = own if len(ours) == examined.trained.whole[id] else own[: len(ours)]
        differing += ours != list(expected)
    return Finding(
        f"{len(examples):,} conversations as trained on, against {place} tokenizer's own apply_chat_template",
        differing, 0, "conversations differ",
    )  # fmt: skip


def _answer_round_trip(examined: Examined, tokenizer: PreTrainedTokenizerBase, place: str) -> Finding:
    trained, texts = examined.trained, examined.texts()
    opening = opening_tokens(tokenizer)
    end = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    counts: Counter[str] = Counter()
    for example in trained.examples:
        prompt, answer = texts[example.id][0], PromptTemplate.answer(texts[example.id][1])
        tokens = example.tokens.tolist()
        first = int(example.supervised.argmax())
        learned = tokenizer.decode(tokens[first : len(tokens) - len(end)], clean_up_tokenization_spaces=False)
        counts["answers differ"] += learned.strip() != answer.strip() or tokens[len(tokens) - len(end) :] != end
        if len(tokens) < trained.whole[example.id]:
            counts["cut rows, their answer checked alone"] += 1
            continue
        body = tokens[len(opening) : len(tokens) - len(end)]
        own = tokenizer(prompt + answer, add_special_tokens=False, split_special_tokens=True).input_ids
        if body != list(own):
            counts["rows whose border the tokenizer would divide otherwise"] += 1
            decoded = tokenizer.decode(body, clean_up_tokenization_spaces=False)
            counts["prompts differ"] += decoded.strip() != (prompt + answer).strip()
    differing = counts["answers differ"] + counts["prompts differ"]
    return Finding(
        f"{len(trained.examples):,} rows as trained on, against prompt and answer as one text, by {place} tokenizer; "
        "the answer decoded from what is supervised, and the end of sequence after it",
        differing, 0, "rows differ", "", dict(counts),
    )  # fmt: skip


def _window_round_trip(examined: Examined, tokenizer: PreTrainedTokenizerBase, place: str) -> Finding:
    """Of a classifier: what it reads is what the saved tokenizer makes of the texts, and what it learns is what their
    rows say."""
    task, trained = examined.task, examined.trained
    windows: dict[str, list[Example]] = {}
    for example in trained.examples:
        windows.setdefault(examined.item_of(example), []).append(example)
    opening = len(opening_tokens(tokenizer))
    counts: Counter[str] = Counter()
    assert isinstance(task, ExtractionTask | MultiLabelTask)
    for item in task.train:
        own = windows.get(item.id, [])
        if isinstance(item, Document):
            placed = placed_tokens(tokenizer, item.text)
            seen = placed.starts < placed.ends
            tags = np.concatenate([np.empty(0, np.int64), *(e.targets()[1] for e in own)])
            read = np.concatenate([np.empty(0, np.int64), *(e.tokens[e.supervised] for e in own)])
            if not np.array_equal(read, placed.ids[seen]):
                counts["texts differ"] += 1
                continue
            starts, ends = placed.starts[seen], placed.ends[seen]
            lost = set(without_overlaps(item.spans)) - set(spans_of(tags, starts, ends, task.trained_labels))
            # Only what begins and ends where tokens do can be said by tags.
            said = {span for span in lost if span.start in starts and span.end in ends}
            counts["spans that their tags do not say"] += len(said)
            counts["spans that end inside a token"] += len(lost) - len(said)
        else:
            whole = prompt_tokens(tokenizer, [item.text])[0][opening:]
            covered = set().union(*(_places(e.tokens[opening:].tolist(), whole) for e in own))
            counts["texts differ"] += covered != set(range(len(whole)))
    counts["labels differ"] += _labels_differ(examined, windows)
    differing = ("texts differ", "labels differ", "spans that their tags do not say")
    what = "spans read from the tags" if isinstance(task, ExtractionTask) else "labels"
    return Finding(
        f"{len(windows):,} texts as trained on, in windows, against the tokens that {place} tokenizer gives; the "
        f"{what} against those of the rows",
        sum(counts[name] for name in differing), 0, "texts, labels or spans differ", "", dict(counts),
    )  # fmt: skip


def _places(window: list[int], whole: list[int]) -> set[int]:
    """Where a window's tokens stand in a text's; none if they do not."""
    for start in range(len(whole) - len(window) + 1):
        if whole[start : start + len(window)] == window:
            return set(range(start, start + len(window)))
    return set()


def _labels_differ(examined: Examined, windows: Mapping[str, Sequence[Example]]) -> int:
    """How many texts of several labels learn others than their rows say."""
    task = examined.task
    if not isinstance(task, MultiLabelTask):
        return 0
    loss = examined.loss(examined.loaded())
    assert isinstance(loss, LabelSetLoss)
    known = task.trained_labels
    rows = {item.id: set(item.labels) for item in task.train}
    learned = {
        id: {label for label, yes in zip(known, loss.targets[own[0].id].tolist(), strict=True) if yes}
        for id, own in windows.items()
    }
    return sum(rows[id] != labels for id, labels in learned.items())


def leaks(examined: Examined) -> Finding:
    """Texts and groups that training shares with what is measured on, by `quilate.tasks.leaks`."""
    pairs: dict[str, Leaks] = {}
    task = examined.task
    if isinstance(examined.config, SftConfig):
        questions = _as_items(examined.conversations)
        for role, source in examined.context.inputs.items():
            if role.startswith("conversations:"):
                held_out = {c.id: c for c in stored_conversations(source, "held_out")}
                pairs[f"train, held-out of {role.partition(':')[2]}"] = find_leaks(questions, _as_items(held_out))
        if task is not None:
            said = {m["content"] for c in examined.conversations.values() for m in c.messages}
            texts = [Item(str(n), text, "", f"said {n}") for n, text in enumerate(sorted(said))]
            pairs[f"train, test of {task.name}"] = find_leaks(texts, task.test)
    else:
        if task is None:
            raise UsageError("a fine-tuning stage without a task")
        for earlier, later in (("train", "test"), ("train", "dev"), ("dev", "test")):
            pairs[f"{earlier}, {later}"] = find_leaks(getattr(task, earlier), getattr(task, later))
    figures = {f"{pair}: {kind}": n for pair, found in pairs.items() for kind, n in found.counts().items()}
    leaked = [f"{len(found.items)} of {found.of} ({pair})" for pair, found in pairs.items() if found.items]
    return Finding(
        f"texts and groups of {'; '.join(f'{pair} ({found.of:,})' for pair, found in pairs.items())}: equal after "
        "normalization, overlapping in 13-word n-grams, or of one group",
        sum(len(found.items) for found in pairs.values()), 0, "items leak",
        f"leaked: {', '.join(leaked)}" if leaked else "", figures,
    )  # fmt: skip


def _as_items(conversations: Mapping[str, Conversation]) -> Sequence[Item]:
    """Opening questions; a conversation's own group, where it has one, must not straddle either."""
    return [
        Item(id, c.question, "", f"one {n} {id}" if c.group is None else f"group {c.group}")
        for n, (id, c) in enumerate(conversations.items())
    ]
