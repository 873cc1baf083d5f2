"""The conversation trees of OASST1 (Köpf et al. 2023), from a file of nested trees or of flat messages."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Tree:
    """Messages by the one they reply to, in the file's order.

    Attributes:
        name: of the tree (`message_tree_id`).
        root: the first message.
        replies: by `message_id`.
        size: its messages.
    """

    name: str
    root: Row
    replies: Mapping[str, Sequence[Row]]
    size: int

    def below(self, message: Row) -> Sequence[Row]:
        """The replies to a message."""
        return self.replies.get(str(message["message_id"]), ())


def read_trees(rows: Sequence[Row], *, nested: bool, counts: Counter[str]) -> Iterator[Tree]:
    """The trees of a file, in its order.

    Args:
        nested: whether a row is a tree, not a message.
        counts: receives how many messages belong to no tree, and why.
    """
    messages = _flattened(rows, counts) if nested else list(rows)
    known = {message["message_id"] for message in messages if message.get("message_id") is not None}
    replies: dict[str, dict[str, list[Row]]] = defaultdict(lambda: defaultdict(list))
    roots: list[Row] = []
    for message in messages:
        parent, id = message.get("parent_id"), message.get("message_id")
        if id is None or (parent is not None and parent not in known):
            counts["message without its parent or its own name"] += 1
        elif parent is None:
            roots.append(message)
        else:
            replies[str(message.get("message_tree_id"))][str(parent)].append(message)
    rooted = {str(root.get("message_tree_id")) for root in roots}
    counts["message of a tree without its root"] += sum(
        len(below) for tree, found in replies.items() if tree not in rooted for below in found.values()
    )
    for root in roots:
        name = str(root.get("message_tree_id"))
        yield Tree(name, root, replies[name], 1 + sum(map(len, replies[name].values())))


def _flattened(rows: Sequence[Row], counts: Counter[str]) -> list[Row]:
    """The messages of nested trees, each with its tree's name and state and its parent's name."""
    flat: list[Row] = []
    for row in rows:
        of_tree = {key: row[key] for key in ("message_tree_id", "tree_state") if key in row}
        pending: list[tuple[Any, Any]] = [(row.get("prompt"), None)]
        while pending:
            message, parent = pending.pop()
            if not isinstance(message, Mapping):
                counts["message is not an object"] += 1
                continue
            below = message.get("replies")
            flat.append({**message, **of_tree, "parent_id": parent, "replies": None})
            pending += [(reply, message.get("message_id")) for reply in reversed(below if below else [])]
    return flat
