"""The plan of a training run is fixed by examples, seed and sizes, and nothing else."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from support import random_examples

from quilate.data.batches import ExampleBatches
from quilate.data.packing import Example, pack, split_by_tokens

LENGTHS = [5, 9, 3, 14, 7, 7, 2, 30, 11, 6, 8]


def batches(examples: list[Example] | None = None, **changes) -> ExampleBatches:  # type: ignore[no-untyped-def]
    settings = {"batch_size": 4, "epochs": 3.0, "seed": 1, "micro_batch_tokens": 1000} | changes
    return ExampleBatches(examples if examples is not None else random_examples(LENGTHS), **settings)


def visited(plan: ExampleBatches) -> list[str]:
    return [plan.examples[i].id for batch in plan.plan for i in batch]


def test_every_epoch_visits_each_example_once_in_an_order_of_its_own() -> None:
    plan = batches()
    ids = visited(plan)
    epochs = [ids[start : start + 11] for start in (0, 11, 22)]
    assert [len(b) for b in plan.plan] == [4, 4, 3] * 3
    assert all(Counter(epoch) == Counter(f"doc-{n}" for n in range(11)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3


def test_the_order_depends_on_the_seed_only() -> None:
    assert visited(batches()) == visited(batches(batch_size=2, micro_batch_tokens=8, epochs=3))
    np.random.seed(0)
    torch.manual_seed(3)
    assert visited(batches()) == visited(batches())
    assert visited(batches(seed=2)) != visited(batches())
    assert visited(batches(epochs=1)) == visited(batches())[:11]


def test_half_an_epoch_visits_half_and_no_example_twice() -> None:
    ids = visited(batches(epochs=1.5))
    assert len(ids) == 11 + 6
    assert len(set(ids[11:])) == 6
    assert len(batches(epochs=0.01)) == 0


def test_max_tokens_stops_before_the_step_that_would_exceed_it() -> None:
    whole = batches()
    sizes = [sum(len(whole.examples[i].tokens) for i in batch) for batch in whole.plan]
    for limit in (sum(sizes[:3]) - 1, sum(sizes[:3]), sum(sizes[:3]) + 1):
        plan = batches(max_tokens=limit)
        kept = 3 if limit >= sum(sizes[:3]) else 2
        assert len(plan) == kept
        assert plan.examples_left_out == 33 - sum(len(b) for b in whole.plan[:kept])
        assert sum(b.tokens for step in range(kept) for b in plan[step]) <= limit
    assert whole.examples_left_out == 0
    assert len(batches(max_tokens=1)) == 0


def test_the_fingerprint_sees_content_order_and_division() -> None:
    examples = random_examples(LENGTHS)
    original = batches(examples).fingerprint
    assert batches(random_examples(LENGTHS)).fingerprint == original
    token, mask = examples[3].tokens.copy(), examples[3].supervised.copy()
    token[2] += 1
    mask[4] = not mask[4]
    for altered in (
        replace(examples[3], tokens=token),
        replace(examples[3], supervised=mask),
        replace(examples[3], id="x"),
    ):
        assert batches([*examples[:3], altered, *examples[4:]]).fingerprint != original
    assert batches(examples[::-1]).fingerprint != original
    for change in ({"seed": 2}, {"epochs": 2.0}, {"batch_size": 3}, {"micro_batch_tokens": 20}, {"max_tokens": 150}):
        assert batches(examples, **change).fingerprint != original


def test_a_step_is_the_same_at_every_call() -> None:
    plan = batches()
    first, again = plan[4], plan[4]
    assert all(torch.equal(a.input_ids, b.input_ids) and a.ids == b.ids for a, b in zip(first, again, strict=True))


@pytest.mark.parametrize("limit", [1, 10, 16, 31, 10_000])
def test_micro_batches_divide_the_step_and_respect_the_limit(limit: int) -> None:
    examples = random_examples(LENGTHS)
    parts = split_by_tokens(examples, limit)
    assert sorted(e.id for part in parts for e in part) == sorted(e.id for e in examples)
    assert all(sum(len(e.tokens) for e in part) <= limit or len(part) == 1 for part in parts)
    assert all(parts)


def test_pack_points_from_each_target_to_the_token_before_it() -> None:
    first = Example("a", np.array([10, 11, 12]), np.array([True, False, True]))  # token 0 has nothing before it
    second = Example("b", np.array([20, 21, 22, 23]), np.array([False, True, False, True]))
    empty = Example("c", np.array([30]), np.array([True]))
    batch = pack([first, second, empty])
    assert batch.input_ids.tolist() == [[20, 21, 22, 23, 10, 11, 12, 30]]
    assert batch.position_ids.tolist() == [[0, 1, 2, 3, 0, 1, 2, 0]]
    assert (batch.lengths, batch.ids) == ((4, 3, 1), ("b", "a", "c"))
    assert batch.source_positions.tolist() == [0, 2, 5]
    assert batch.targets.tolist() == [21, 23, 12]
    assert batch.supervised_tokens == 3 == sum(e.supervised_tokens for e in (first, second, empty))
