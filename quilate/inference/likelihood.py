"""Scoring by likelihood: log P(answer | prompt) for every item and each of its answers: labels, or options of its own.

One forward pass a batch: each row holds an item's prompt and, after it, the whole tree of its answers; an attention
mask lets an answer's tokens see the shared prefix, the item and the answer's own beginning. What all prompts begin with
(instruction, demonstrations) is found by comparing their tokens and encoded once for all batches.

Shapes: B items, L longest prompt, N nodes of the largest tree, A answers of the item that has most, P prefix tokens,
D hidden size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from quilate.errors import DataError, ModelError
from quilate.inference.label_tree import PROMPT_END, LabelTree, TreeBatch
from quilate.inference.prefix import Prefix
from quilate.inference.scores import LabelScores, Normalization
from quilate.kernels.rows import filled_rows
from quilate.models.heads import divide
from quilate.models.load import context_length
from quilate.models.tree_attention import TreeLayout, tree_attention
from quilate.tokenization.segments import answer_tokens, common_prefix_length, prompt_tokens, shorten

BATCH_TOKENS = 512  # rows x columns of one forward pass; what stays in cache: 2048 measured 15 % slower on two cores
HEAD_ROWS = 512  # rows of logits held at once, as in the training loss


@dataclass(frozen=True)
class _Room:
    """Tokens that the model can read, and those of the longest label."""

    context: int
    label: int


@dataclass(frozen=True)
class _Item:
    index: int
    tokens: list[int]
    tree: LabelTree


def score_labels(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    labels: Sequence[str],
    *,
    normalization: Normalization = "mean",
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> LabelScores:
    """Score every label after every plain prompt; a label is read after one space.

    Raises:
        DataError, ModelError: as `score_tokens`.
    """
    return score_tokens(
        model,
        prompt_tokens(tokenizer, prompts),
        answer_tokens(tokenizer, labels),
        normalization=normalization,
        on_progress=on_progress,
    )


def score_tokens(
    model: PreTrainedModel,
    prompts: Sequence[list[int]],
    labels: Sequence[list[int]],
    *,
    item_lengths: Sequence[int] | None = None,
    max_prompt_tokens: int | None = None,
    normalization: Normalization = "mean",
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> LabelScores:
    """Score the same labels after every prompt; see `score_answers`, which it calls."""
    answers = [labels] * len(prompts)
    found = score_answers(
        model, prompts, answers, item_lengths=item_lengths, max_prompt_tokens=max_prompt_tokens,
        normalization=normalization, on_progress=on_progress,
    )  # fmt: skip
    return found if prompts else LabelScores(np.empty((0, len(labels))), truncated=0, tokens=0)


@torch.inference_mode()
def score_answers(
    model: PreTrainedModel,
    prompts: Sequence[list[int]],
    answers: Sequence[Sequence[list[int]]],
    *,
    item_lengths: Sequence[int] | None = None,
    max_prompt_tokens: int | None = None,
    normalization: Normalization = "mean",
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> LabelScores:
    """Score each prompt's answers after it; -inf where a prompt has fewer answers than another.

    Args:
        prompts: tokens; answers: of each prompt, the tokens of each of its answers.
        item_lengths: how many tokens at each prompt's end are the item's own: only these are cut when a prompt is too
            long. By default all that the prompts do not share.
        max_prompt_tokens: prompts longer than that are too long, as they were in training; by default those that
            leave the longest answer no place in the model's context.
        normalization: "mean" divides by the answer's tokens, which keeps long ones in the race when a base model is
            prompted (Brown et al. 2020, section 2.4); "sum" is the answer's log-probability, what fine-tuning
            maximizes, and with "characters" what the caller divides; "first" is that of its first token alone.
        on_progress: called with items done and in total.

    Raises:
        DataError: what comes before the items fills the model's context; a prompt is empty; two answers of one prompt
            cannot be told apart.
        ModelError: the model does not place tokens where it is told to.
    """
    divided = divide(model, virtual_tokens=True)
    _check_layout(divided.body)
    device = divided.head.weight.device
    if not all(prompts):
        raise DataError(
            "a prompt is empty: there is nothing before the label", hint="give the template some fixed words"
        )
    shared = common_prefix_length(prompts)
    if item_lengths is not None:  # one prompt shares nearly all of itself with itself, its item too
        shared = min([shared, *(len(tokens) - own for tokens, own in zip(prompts, item_lengths, strict=True))])
    own = item_lengths or [len(tokens) - shared for tokens in prompts]
    context = context_length(model)
    items, truncated = [], 0
    for index, (tokens, mine, tree) in enumerate(zip(prompts, own, _trees(answers, normalization), strict=True)):
        longest = int(tree.lengths.max())
        room = _Room(context if max_prompt_tokens is None else min(context, max_prompt_tokens + longest), longest)
        kept, was_cut = _cut(tokens, shared, mine, room)
        items.append(_Item(index, kept, tree))
        truncated += was_cut
    prefix = Prefix(divided.body, prompts[0][:shared] if prompts else [], device, virtual=divided.virtual)
    scores = np.full((len(prompts), max(map(len, answers), default=0)), -np.inf)
    done = computed = 0
    with tree_attention(model) as fused:
        for batch in _batches(items):
            trees = TreeBatch.of([item.tree for item in batch])
            hidden = _hidden_states(divided.body, batch, trees, prefix, device, fused=fused)
            read = _read(hidden, divided.head, trees, normalization)
            scores[[item.index for item in batch], : read.shape[1]] = read
            done += len(batch)
            computed += sum(len(item.tokens) + len(item.tree) for item in batch)
            on_progress(done, len(items))
    return LabelScores(scores, truncated, computed + shared)


def _trees(answers: Sequence[Sequence[list[int]]], normalization: Normalization) -> list[LabelTree]:
    """The tree of each prompt's answers; equal answers share one."""
    made: dict[tuple[tuple[int, ...], ...], LabelTree] = {}
    trees = []
    for own in answers:
        key = tuple(map(tuple, own))
        if key not in made:
            made[key] = LabelTree.of(_first_tokens(own) if normalization == "first" else own)
        trees.append(made[key])
    return trees


def _cut(tokens: list[int], shared: int, own: int, room: _Room) -> tuple[list[int], bool]:
    """What follows the shared prefix, its last `own` tokens shortened until the longest label has its place."""
    before = len(tokens) - own
    limit = room.context - room.label - before
    if limit < 1:
        raise DataError(
            f"the demonstrations take {before} tokens of the model's context of {room.context}",
            hint="use fewer or shorter demonstrations",
        )
    kept, was_cut = shorten(tokens[before:], limit)
    return tokens[shared:before] + kept, was_cut


def _first_tokens(labels: Sequence[list[int]]) -> list[list[int]]:
    first = [label[:1] for label in labels]
    if len({tuple(tokens) for tokens in first}) < len(first):
        raise DataError(
            "two labels begin with the same token, so their first tokens cannot tell them apart",
            hint="use normalization: mean or sum, or give the labels other short texts in task.labels",
        )
    return first


def _check_layout(body: torch.nn.Module) -> None:
    """Refuse a body that ignores positions or masks, as those with ALiBi do (Bloom, MPT, some Falcons).

    Two bit-exact probes: other positions must change the hidden states; a token that the mask hides must not.
    """
    device = next(body.parameters()).device
    near, far = torch.tensor([[0, 1, 2]], device=device), torch.tensor([[0, 3, 5]], device=device)
    hidden_first = torch.tensor([[1, 0, 0], [0, 1, 0], [0, 1, 1]], dtype=torch.bool, device=device)[None, None]

    def run(first: int, positions: Tensor) -> Tensor:
        tokens = torch.tensor([[first, 1, 2]], device=device)
        output = body(input_ids=tokens, position_ids=positions, attention_mask=hidden_first, use_cache=False)
        states: Tensor = output.last_hidden_state[:, 1:]
        return states

    try:
        reference = run(3, near)
        obeys = not torch.equal(reference, run(3, far)) and torch.equal(reference, run(4, near))
    except (TypeError, ValueError):  # it does not know such positions or masks at all
        obeys = False
    if not obeys:
        raise ModelError(
            f"{type(body).__name__} does not place tokens where told to (ALiBi?), so labels cannot share a "
            "forward pass",
            hint="use a model with rotary or learned positions, such as a Llama-, GPT-2- or Qwen-like one",
        )


def _batches(items: list[_Item]) -> Iterator[list[_Item]]:
    """Items of similar length together, longest first, at most `BATCH_TOKENS` padded tokens a batch."""
    batch: list[_Item] = []
    nodes = 0
    for item in sorted(items, key=lambda i: -len(i.tokens)):
        nodes = max(nodes, len(item.tree))
        if batch and (len(batch) + 1) * (len(batch[0].tokens) + nodes) > BATCH_TOKENS:
            yield batch
            batch, nodes = [], len(item.tree)
        batch.append(item)
    if batch:
        yield batch


def _hidden_states(
    body: torch.nn.Module, batch: list[_Item], trees: TreeBatch, prefix: Prefix, device: torch.device, *, fused: bool
) -> Tensor:
    """Hidden states at each prompt's end and each tree node: [B, 1 + N, D]."""
    lengths = torch.tensor([len(item.tokens) for item in batch])
    nodes = trees.tokens.shape[1]
    longest = filled_rows(int(lengths.max()) + nodes, next(body.parameters())) - nodes
    input_ids = torch.zeros(len(batch), longest + nodes, dtype=torch.int64)
    for row, item in enumerate(batch):
        input_ids[row, : len(item.tokens)] = torch.tensor(item.tokens)
    input_ids[:, longest:] = trees.tokens
    within = torch.minimum(torch.arange(longest), lengths[:, None] - 1)  # padding may reach beyond the model's context
    positions = torch.cat([within, lengths[:, None] + trees.depths], dim=1)
    sees = _sees(lengths, longest, trees)
    seen: dict[str, Any]
    if fused:
        seen = {"use_cache": False, "tree_layout": TreeLayout.of(sees, prefix.layers)}
    else:
        mask = torch.nn.functional.pad(sees, (prefix.length, 0), value=True)[:, None]
        seen = {"use_cache": bool(prefix.length), "past_key_values": prefix.cache(), "attention_mask": mask.to(device)}
    output = body(
        input_ids=input_ids.to(device), position_ids=(prefix.length + positions).to(device), **seen
    ).last_hidden_state
    ends = output[torch.arange(len(batch), device=device), (lengths - 1).to(device)]
    return torch.cat([ends[:, None], output[:, longest:]], dim=1)


def _sees(lengths: Tensor, longest: int, trees: TreeBatch) -> Tensor:
    """[B, L + N, L + N] bool, True where attention among a row's own tokens is allowed."""
    batch, nodes = trees.tokens.shape
    column = torch.arange(longest)
    sees = torch.zeros(batch, longest + nodes, longest + nodes, dtype=torch.bool)
    sees[:, :longest, :longest] = column <= column[:, None]
    sees[:, longest:, :longest] = (column < lengths[:, None])[:, None]
    sees[:, longest:, longest:] = trees.sees
    return sees


def _read(hidden: Tensor, head: torch.nn.Linear, trees: TreeBatch, normalization: Normalization) -> np.ndarray:
    """Scores [B, A] from hidden states [B, 1 + N, D], -inf where a row has no such answer; softmax in fp32."""
    batch, places, width = hidden.shape
    row = trees.row.to(hidden.device)
    place = torch.where(trees.source == PROMPT_END, 0, trees.source + 1).to(hidden.device)
    token = trees.token.to(hidden.device)
    read = torch.empty(row.shape[0], dtype=torch.float32, device=hidden.device)
    rows = max(1, HEAD_ROWS // places)
    for start in range(0, batch, rows):
        logits = head(hidden[start : start + rows].reshape(-1, width)).float().view(-1, places, head.out_features)
        here = (row >= start) & (row < start + rows)
        at = row[here] - start, place[here]
        read[here] = logits[(*at, token[here])] - logits.logsumexp(-1)[at]
    scores = torch.zeros(trees.lengths.shape, dtype=torch.float64)
    scores.index_put_((trees.row, trees.label), read.double().cpu(), accumulate=True)
    scores = scores / trees.lengths.clamp(min=1) if normalization == "mean" else scores
    return scores.masked_fill(trees.lengths == 0, -torch.inf).numpy()
