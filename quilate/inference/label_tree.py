"""All labels of a task, or all options of a question, as one tree of tokens: what begins alike shares its beginning.

Every node holds a token that some label continues after; the log-probability of each label token is read at the node
(or prompt end) before it. A label of one token needs no node at all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from quilate.errors import DataError

PROMPT_END = -1


@dataclass(frozen=True)
class LabelTree:
    """Shapes: N nodes, R readings (one for every token of every label).

    Attributes:
        tokens: [N] the node tokens.
        depths: [N] 0 for the first token of a label.
        sees: [N, N] bool: node i attends to node j (itself and its ancestors).
        reading_source: [R] the node a reading is made at, or `PROMPT_END`.
        reading_token: [R] the token whose log-probability is read.
        reading_label: [R] the label it belongs to.
        lengths: [labels] tokens of each label.
    """

    tokens: Tensor
    depths: Tensor
    sees: Tensor
    reading_source: Tensor
    reading_token: Tensor
    reading_label: Tensor
    lengths: Tensor

    @classmethod
    def of(cls, labels: Sequence[Sequence[int]]) -> LabelTree:
        """Build the tree.

        Raises:
            DataError: two labels have the same tokens, or one has none: they could not be told apart.
        """
        if len({tuple(label) for label in labels}) < len(labels) or not all(labels):
            raise DataError(
                "two labels (or options of a question) have the same tokens, or one is empty",
                hint="give each label its own short text in task.labels; options must differ for the tokenizer too",
            )
        nodes: dict[tuple[int, ...], int] = {}
        readings: list[tuple[int, int, int]] = []
        for index, label in enumerate(labels):
            for position, token in enumerate(label):
                before = tuple(label[:position])
                if before and before not in nodes:
                    nodes[before] = len(nodes)
                readings.append((nodes[before] if before else PROMPT_END, token, index))
        paths = list(nodes)
        sees = torch.zeros(len(paths), len(paths), dtype=torch.bool)
        for path, index in nodes.items():
            for end in range(1, len(path) + 1):
                sees[index, nodes[path[:end]]] = True
        source, token, label_index = torch.tensor(readings).T
        return cls(
            tokens=torch.tensor([path[-1] for path in paths], dtype=torch.int64),
            depths=torch.tensor([len(path) - 1 for path in paths], dtype=torch.int64),
            sees=sees,
            reading_source=source,
            reading_token=token,
            reading_label=label_index,
            lengths=torch.tensor([len(label) for label in labels]),
        )

    def __len__(self) -> int:
        return self.tokens.shape[0]


@dataclass(frozen=True)
class TreeBatch:
    """One tree a row, padded. Shapes: B rows, N nodes of the largest tree, A labels of the widest, R readings in all.

    Attributes:
        tokens, depths: [B, N]; sees: [B, N, N]; a padding node sees itself alone, and nothing reads it.
        row, source, token, label: [R] one reading each; `source` as in `LabelTree`.
        lengths: [B, A] tokens of each label, 0 where a row has fewer labels.
    """

    tokens: Tensor
    depths: Tensor
    sees: Tensor
    row: Tensor
    source: Tensor
    token: Tensor
    label: Tensor
    lengths: Tensor

    @classmethod
    def of(cls, trees: Sequence[LabelTree]) -> TreeBatch:
        rows, nodes = len(trees), max(map(len, trees))
        tokens, depths = torch.zeros(rows, nodes, dtype=torch.int64), torch.zeros(rows, nodes, dtype=torch.int64)
        sees = torch.eye(nodes, dtype=torch.bool).repeat(rows, 1, 1)
        lengths = torch.zeros(rows, max(len(tree.lengths) for tree in trees), dtype=torch.int64)
        for row, tree in enumerate(trees):
            tokens[row, : len(tree)] = tree.tokens
            depths[row, : len(tree)] = tree.depths
            sees[row, : len(tree), : len(tree)] = tree.sees
            lengths[row, : len(tree.lengths)] = tree.lengths
        counts = torch.tensor([len(tree.reading_token) for tree in trees])
        return cls(
            tokens, depths, sees, torch.repeat_interleave(torch.arange(rows), counts),
            torch.cat([tree.reading_source for tree in trees]), torch.cat([tree.reading_token for tree in trees]),
            torch.cat([tree.reading_label for tree in trees]), lengths,
        )  # fmt: skip
