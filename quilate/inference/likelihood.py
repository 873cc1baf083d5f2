"""Label scoring by likelihood: log P(label | prompt) for every item and label.

One forward pass a batch: each row holds an item's prompt and, after it, the whole label tree; an attention mask lets a
label's tokens see the shared prefix, the item and the label's own beginning. What all prompts begin with (instruction,
demonstrations) is found by comparing their tokens and encoded once for all batches.

Shapes: B items, L longest prompt, N tree nodes, P prefix tokens, D hidden size, V vocabulary.
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
from quilate.inference.label_tree import PROMPT_END, LabelTree
from quilate.inference.prefix import Prefix
from quilate.inference.scores import LabelScores, Normalization
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


@torch.inference_mode()
def score_tokens(
    model: PreTrainedModel,
    prompts: Sequence[list[int]],
    labels: Sequence[list[int]],
    *,
    item_lengths: Sequence[int] | None = None,
    normalization: Normalization = "mean",
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> LabelScores:
    """Score every label after every prompt.

    Args:
        prompts, labels: tokens.
        item_lengths: how many tokens at each prompt's end are the item's own: only these are cut when a prompt is too
            long. By default all that the prompts do not share.
        normalization: "mean" divides by the label's tokens, which keeps long labels in the race when a base model is
            prompted (Brown et al. 2020, section 2.4); "sum" is the label's log-probability, what fine-tuning
            maximizes; "first" is the log-probability of the label's first token alone.
        on_progress: called with items done and in total.

    Raises:
        DataError: what comes before the items fills the model's context; a prompt is empty; two labels cannot be told
            apart.
        ModelError: the model does not place tokens where it is told to.
    """
    divided = divide(model)
    _check_layout(divided.body)
    device = divided.head.weight.device
    if normalization == "first":
        labels = _first_tokens(labels)
    tree = LabelTree.of(labels)
    if not all(prompts):
        raise DataError(
            "a prompt is empty: there is nothing before the label", hint="give the template some fixed words"
        )
    shared = common_prefix_length(prompts)
    room = _Room(context_length(model), int(tree.lengths.max()))
    own = [len(tokens) - shared for tokens in prompts]
    if item_lengths is not None:
        own = [min(mine, length) for mine, length in zip(own, item_lengths, strict=True)]
    cut = [_cut(tokens, shared, mine, room) for tokens, mine in zip(prompts, own, strict=True)]
    items = [_Item(index, tokens) for index, (tokens, _) in enumerate(cut)]
    prefix = Prefix(divided.body, prompts[0][:shared] if prompts else [], device)
    scores = np.empty((len(prompts), len(labels)))
    done = computed = 0
    with tree_attention(model) as fused:
        for batch in _batches(items, len(tree)):
            hidden = _hidden_states(divided.body, batch, tree, prefix, device, fused=fused)
            scores[[item.index for item in batch]] = _read(hidden, divided.head, tree, normalization)
            done += len(batch)
            computed += sum(len(item.tokens) + len(tree) for item in batch)
            on_progress(done, len(items))
    return LabelScores(scores, sum(was_cut for _, was_cut in cut), computed + shared)


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


def _batches(items: list[_Item], nodes: int) -> Iterator[list[_Item]]:
    """Items of similar length together, longest first, at most `BATCH_TOKENS` padded tokens a batch."""
    batch: list[_Item] = []
    for item in sorted(items, key=lambda i: -len(i.tokens)):
        if batch and (len(batch) + 1) * (len(batch[0].tokens) + nodes) > BATCH_TOKENS:
            yield batch
            batch = []
        batch.append(item)
    if batch:
        yield batch


def _hidden_states(
    body: torch.nn.Module, batch: list[_Item], tree: LabelTree, prefix: Prefix, device: torch.device, *, fused: bool
) -> Tensor:
    """Hidden states at each prompt's end and each tree node: [B, 1 + N, D]."""
    lengths = torch.tensor([len(item.tokens) for item in batch])
    longest, nodes = int(lengths.max()), len(tree)
    input_ids = torch.zeros(len(batch), longest + nodes, dtype=torch.int64)
    for row, item in enumerate(batch):
        input_ids[row, : len(item.tokens)] = torch.tensor(item.tokens)
    input_ids[:, longest:] = tree.tokens
    positions = torch.cat([torch.arange(longest).expand(len(batch), -1), lengths[:, None] + tree.depths], dim=1)
    sees = _sees(lengths, longest, tree)
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


def _sees(lengths: Tensor, longest: int, tree: LabelTree) -> Tensor:
    """[B, L + N, L + N] bool, True where attention among a row's own tokens is allowed."""
    batch, nodes = lengths.shape[0], len(tree)
    column = torch.arange(longest)
    sees = torch.zeros(batch, longest + nodes, longest + nodes, dtype=torch.bool)
    sees[:, :longest, :longest] = column <= column[:, None]
    sees[:, longest:, :longest] = (column < lengths[:, None])[:, None]
    sees[:, longest:, longest:] = tree.sees
    return sees


def _read(hidden: Tensor, head: torch.nn.Linear, tree: LabelTree, normalization: Normalization) -> np.ndarray:
    """Label scores [B, labels] from hidden states [B, 1 + N, D]; softmax in fp32."""
    batch, places, width = hidden.shape
    place_of = torch.where(tree.reading_source == PROMPT_END, 0, tree.reading_source + 1).to(hidden.device)
    token = tree.reading_token.to(hidden.device)
    read = torch.empty(batch, token.shape[0], dtype=torch.float32, device=hidden.device)
    rows = max(1, HEAD_ROWS // places)
    for start in range(0, batch, rows):
        logits = head(hidden[start : start + rows].reshape(-1, width)).float().view(-1, places, head.out_features)
        read[start : start + rows] = logits[:, place_of, token] - logits.logsumexp(-1)[:, place_of]
    scores = torch.zeros(batch, tree.lengths.shape[0], dtype=torch.float64)
    scores.index_add_(1, tree.reading_label, read.double().cpu())
    return (scores / tree.lengths if normalization == "mean" else scores).numpy()
