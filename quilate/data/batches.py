"""Batches as a function of the step: the whole plan of a training run is fixed by examples, seed and sizes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from quilate.data.packing import Example, PackedBatch, pack, split_by_tokens
from quilate.files import digest
from quilate.rng import numpy_stream


def epoch_orders(count: int, epochs: float, seed: int) -> list[np.ndarray]:
    """For each epoch the order in which `count` things are visited; the last one may visit a part only."""
    whole, part = int(epochs), epochs - int(epochs)
    sizes = [count] * whole + ([round(part * count)] if part else [])
    return [numpy_stream(seed, "order", n).permutation(count)[:size] for n, size in enumerate(sizes) if size]


class ExampleBatches:
    """Shuffled epochs over tokenized examples; every epoch visits each example once, in an order of its own.

    Args:
        examples: the training examples.
        batch_size: examples an optimizer step; the last step of an epoch takes what is left.
        epochs: may be fractional: 0.5 visits half the examples.
        seed: the order's seed; nothing else influences it.
        micro_batch_tokens: most tokens in memory at once; a step is divided as needed.
        max_tokens: stop planning before the step that would exceed this many training tokens, if given.

    Attributes:
        examples_left_out: visits dropped because of `max_tokens`.
    """

    def __init__(
        self,
        examples: Sequence[Example],
        *,
        batch_size: int,
        epochs: float,
        seed: int,
        micro_batch_tokens: int,
        max_tokens: int | None = None,
    ) -> None:
        self.examples, self.micro_batch_tokens = examples, micro_batch_tokens
        visits = epoch_orders(len(examples), epochs, seed)
        self.plan: list[np.ndarray] = []
        used = 0
        for batch in (part for epoch in visits for part in np.split(epoch, range(batch_size, len(epoch), batch_size))):
            used += sum(len(examples[i].tokens) for i in batch)
            if max_tokens is not None and used > max_tokens:
                break
            self.plan.append(batch)
        self.examples_left_out = sum(map(len, visits)) - sum(map(len, self.plan))
        order = [[examples[i].id for i in batch] for batch in self.plan]
        content = [[e.id, e.tokens.tolist(), e.supervised.tolist()] for e in examples]
        self.fingerprint = digest([order, content, micro_batch_tokens])

    def __len__(self) -> int:
        return len(self.plan)

    def __getitem__(self, step: int) -> list[PackedBatch]:
        chosen = [self.examples[i] for i in self.plan[step]]
        return [pack(part) for part in split_by_tokens(chosen, self.micro_batch_tokens)]
