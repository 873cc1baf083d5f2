"""Conversations in the formats people have them in, as one: a list of messages with a role and a content.

Nothing is repaired in silence. A conversation that cannot be used is dropped and counted by its reason.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from quilate.data.oasst import Tree, read_trees
from quilate.errors import DataError
from quilate.tokenization.chat import Message

Layout = Literal["messages", "prompt-completion", "sharegpt", "alpaca", "oasst-messages", "oasst-trees"]
Row = Mapping[str, Any]

# The columns by which a layout is known, the more telling first.
COLUMNS: dict[Layout, tuple[str, ...]] = {
    "oasst-messages": ("message_id", "parent_id", "role", "text"),
    "oasst-trees": ("message_tree_id", "prompt"),
    "messages": ("messages",),
    "sharegpt": ("conversations",),
    "prompt-completion": ("prompt", "completion"),
    "alpaca": ("instruction", "output"),
}

# Who speaks, in the words of ShareGPT, OASST and the interfaces they came from.
ROLES = {
    "system": "system",
    **dict.fromkeys(("user", "human", "prompter"), "user"),
    **dict.fromkeys(("assistant", "gpt", "chatgpt", "bard", "bing", "model"), "assistant"),
}


@dataclass(frozen=True)
class Conversation:
    """Messages in order: perhaps one of the system, then user and assistant in turn, the assistant last.

    Attributes:
        id: unique in its file: the row's number, or the tree's name.
        context: of this many messages at the beginning nothing is learned (a given history, a prompt).
        group: what must not be divided between training and held-out text: a tree, a patient; None if nothing is said.
    """

    id: str
    messages: list[Message]
    context: int = 0
    group: str | None = None

    @property
    def question(self) -> str:
        """What the user opens with."""
        return next(message["content"] for message in self.messages if message["role"] == "user")

    def as_row(self) -> dict[str, Any]:
        """JSON-able, for `Conversation(**row)`."""
        return {"id": self.id, "messages": self.messages, "context": self.context, "group": self.group}


@dataclass
class Converted:
    """Usable conversations, and what was dropped or cut: reason -> how many."""

    layout: Layout
    conversations: list[Conversation] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)


def bare_text(messages: Sequence[Message]) -> str:
    """What is said in messages, a line each, and not who says it."""
    return "\n".join(message["content"] for message in messages)


class _UnusableError(Exception):
    """The reason for which a conversation is dropped."""


def sniff_layout(columns: Sequence[str]) -> Layout:
    """The layout whose columns a table has.

    Raises:
        DataError: none of them; the message says what was looked for.
    """
    for layout, wanted in COLUMNS.items():
        if all(column in columns for column in wanted):
            return layout
    if {"chosen", "rejected"} <= set(columns):
        raise DataError(
            "these are preferences (chosen, rejected), not conversations", hint="they are for alignment, not for sft"
        )
    known = "; ".join(f"{layout}: {', '.join(wanted)}" for layout, wanted in COLUMNS.items())
    raise DataError(
        f"no known conversation format has the columns {', '.join(columns)}",
        hint=f"known are {known}; or name what to ask and to answer with `prompt` and `completion`",
    )


def convert(rows: Sequence[Row], layout: Layout, *, language: str | None = None, group: str | None = None) -> Converted:
    """Rows of any layout as conversations; equal ones are kept once.

    Args:
        language: keep only rows, or messages of a tree, whose `lang` is this.
        group: the column whose rows belong together; a tree's messages do so anyway.
    """
    result = Converted(layout)
    drafts = (
        _best_paths(read_trees(rows, nested=layout == "oasst-trees", counts=result.counts), language, result.counts)
        if layout in ("oasst-messages", "oasst-trees")
        else _rows(rows, layout, language, group, result.counts)
    )
    seen: set[tuple[tuple[str, str], ...]] = set()
    for draft in drafts:
        try:
            conversation = _checked(draft, result.counts)
        except _UnusableError as reason:
            result.counts[str(reason)] += 1
            continue
        key = tuple((message["role"], message["content"]) for message in conversation.messages)
        if key in seen:
            result.counts["duplicate conversation"] += 1
        else:
            seen.add(key)
            result.conversations.append(conversation)
    return result


@dataclass(frozen=True)
class _Draft:
    """A conversation as it stands in the file: who speaks and what is said may be anything."""

    id: str
    turns: list[tuple[Any, Any]]
    context: int = 0
    group: str | None = None


def _checked(draft: _Draft, counts: Counter[str]) -> Conversation:
    messages: list[Message] = []
    context = draft.context
    left_out: list[str] = []
    for index, (speaker, content) in enumerate(draft.turns):
        role = ROLES.get(str(speaker).lower())
        if role is None:
            raise _UnusableError("role is not system, user or assistant")
        text = _text_of(content)
        if not text.strip() and role == "system":
            left_out.append("empty system prompt left out")
            context -= index < draft.context
        elif not text.strip():
            raise _UnusableError("empty turn")
        else:
            messages.append({"role": role, "content": text})
    if messages and messages[-1]["role"] == "user" and len(messages) > 1:
        left_out.append("last user turn without an answer left out")
        messages.pop()
    roles = [message["role"] for message in messages]
    if "assistant" not in roles[context:]:
        raise _UnusableError("no assistant turn" if messages else "no messages")
    first = roles[0] == "system"
    if any(role != ("user", "assistant")[index % 2] for index, role in enumerate(roles[first:])):
        raise _UnusableError("user and assistant do not alternate")
    counts.update(left_out)
    return Conversation(draft.id, messages, context, draft.group)


def _text_of(content: Any) -> str:
    """A content that is a text, or a list of parts that are."""
    if isinstance(content, list) and all(isinstance(p, dict) and isinstance(p.get("text"), str) for p in content):
        return "".join(part["text"] for part in content)
    if not isinstance(content, str):
        raise _UnusableError("content is not text")
    return content


def _rows(
    rows: Sequence[Row], layout: Layout, language: str | None, group: str | None, counts: Counter[str]
) -> Iterator[_Draft]:
    read = _READERS[layout]
    for number, row in enumerate(rows, start=1):
        if language is not None and row.get("lang") != language:
            counts["in another language"] += 1
            continue
        try:
            turns, context = read(row)
        except _UnusableError as reason:
            counts[str(reason)] += 1
            continue
        opening = [("system", row["system"])] if isinstance(row.get("system"), str) and row["system"].strip() else []
        named = None if group is None or row.get(group) is None else str(row[group])
        yield _Draft(str(number), opening + turns, context + len(opening) if context else 0, named)


_Turns = list[tuple[Any, Any]]


def _listed(value: Any, speaker: str, content: str) -> _Turns:
    """Turns of a list of objects; `role` and `content` serve too where other keys are usual."""
    if not isinstance(value, list) or not all(isinstance(turn, dict) for turn in value):
        raise _UnusableError("messages are not a list of objects")
    return [(turn.get(speaker, turn.get("role")), turn.get(content, turn.get("content"))) for turn in value]


def _prompt_completion(row: Row) -> tuple[_Turns, int]:
    """Only the completion is learned."""
    prompt, completion = (
        _listed(value, "role", "content") if isinstance(value, list) else [(role, value)]
        for role, value in (("user", row.get("prompt")), ("assistant", row.get("completion")))
    )
    return prompt + completion, len(prompt)


def _alpaca(row: Row) -> tuple[_Turns, int]:
    """The input follows the instruction after a blank line, as in Alpaca's own template (Taori et al. 2023)."""
    instruction, given = row.get("instruction"), row.get("input")
    if isinstance(instruction, str) and isinstance(given, str) and given.strip():
        instruction = f"{instruction}\n\n{given}"
    history = row.get("history") or []
    if not isinstance(history, list) or not all(isinstance(pair, list) and len(pair) == 2 for pair in history):
        raise _UnusableError("history is not a list of pairs")
    earlier = [turn for asked, said in history for turn in (("user", asked), ("assistant", said))]
    return [*earlier, ("user", instruction), ("assistant", row.get("output"))], 0


_READERS: dict[Layout, Callable[[Row], tuple[_Turns, int]]] = {
    "messages": lambda row: (_listed(row.get("messages"), "role", "content"), 0),
    "sharegpt": lambda row: (_listed(row.get("conversations"), "from", "value"), 0),
    "prompt-completion": _prompt_completion,
    "alpaca": _alpaca,
}


def _best_paths(trees: Iterator[Tree], language: str | None, counts: Counter[str]) -> Iterator[_Draft]:
    """Of every tree, the path that takes the best-ranked reply at each step; unranked ones come last, and of equals
    one that was itself replied to."""
    for tree in trees:
        if language is not None and tree.root.get("lang") != language:
            counts["tree in another language"] += 1
            continue
        path: list[Row] = [tree.root]
        while True:
            usable = [r for r in tree.below(path[-1]) if not r.get("deleted") and language in (None, r.get("lang"))]
            if not usable or len(path) >= tree.size:  # no path is longer than its tree: a circle would be
                break
            path.append(min(usable, key=lambda r: (_rank(r), not tree.below(r))))
        counts["messages off the best path"] += tree.size - len(path)
        id = str(tree.root["message_id"])
        yield _Draft(id, [(message.get("role"), message.get("text")) for message in path], 0, id)


def _rank(message: Row) -> float:
    rank = message.get("rank")
    return float(rank) if isinstance(rank, int | float) else float("inf")
