"""Is in-context learning implicit fine-tuning? The experiment of Dai et al. 2022, with the controls that its refutation
(Deutch et al. 2023) asks for.

Fine-tuning is the paper's: SGD on the projections of keys and values alone, one demonstration a step, each once, in the
order in which they stand in the prompt. Unlike the paper, its learning rate is chosen on development items, and what is
reported is measured on others.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from quilate.engine.interrupts import StopRequest
from quilate.engine.runlog import Progress, ProgressListener
from quilate.errors import DataError
from quilate.evaluation.implicit_tuning import (
    Recall,
    order_of_tokens,
    recall_of_gains,
    similarity_of_attention,
    similarity_of_attention_changes,
    similarity_of_updates,
)
from quilate.inference.demonstrations import balanced
from quilate.inference.likelihood import score_tokens
from quilate.inference.prefix import Prefix
from quilate.models.load import context_length, load_causal, load_tokenizer
from quilate.models.momentum_attention import momentum_attention
from quilate.models.observed_attention import Observation, attention_layers, observe, observed
from quilate.rng import derive_seed, numpy_stream
from quilate.tasks.classification import ClassificationTask
from quilate.tasks.labels import Item
from quilate.tasks.templates import PromptTemplate
from quilate.tokenization.segments import answer_tokens, opening_tokens, prompt_tokens

Loss = Literal["all", "label"]
Sequence_ = tuple[list[int], int]  # tokens, and how many at the beginning carry no loss

RATES = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3)  # guess: the paper's 36 span about this range
VARIANTS = ("demonstrations", "random labels", "other order", "random update")
MEASURES = ("sim_aou", "sim_aou_normalized", "sim_am", "sim_am_change", "kendall")


@dataclass(frozen=True)
class Settings:
    """What is compared.

    Attributes:
        shots: demonstrations, balanced over the labels.
        items: test items predicted; observed: of these, how many are looked into.
        dev: development items on which the learning rate is chosen among `rates`.
        loss: on `all` of a demonstration's tokens, as the paper's code has it, or on the `label` alone.
        momenta: rates of momentum attention to try when reading the demonstrations; none, and it is left out.
    """

    shots: int = 16
    items: int = 300
    observed: int = 50
    dev: int = 100
    rates: tuple[float, ...] = RATES
    loss: Loss = "all"
    momenta: tuple[float, ...] = ()


@dataclass(frozen=True)
class Variant:
    """One way to tune, compared with the same in-context learning.

    Attributes:
        accuracy: of the tuned model, zero-shot.
        recall: Rec2FTP.
        by_layer: measure -> [L] means over items; by_item: measure -> [N] means over layers.
    """

    accuracy: float
    recall: Recall
    by_layer: dict[str, list[float]]
    by_item: dict[str, list[float]]


@dataclass(frozen=True)
class Momentum:
    """In-context learning with momentum attention: the rate that did best on the development items (0 is among those
    tried), and its accuracy on the test items."""

    rate: float
    dev_accuracy: dict[str, float]
    accuracy: float


@dataclass(frozen=True)
class SeedAnalysis:
    """What one draw of demonstrations gave. `untrained` is the same architecture with random weights."""

    seed: int
    rate: float
    dev_accuracy: dict[str, float]
    zero_shot: float
    in_context: float
    sim_am_before: float
    variants: dict[str, Variant]
    untrained: Variant
    momentum: Momentum | None = None


@dataclass
class _Asked:
    """A model with its prompts: what it is shown, and what it answers."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    task: ClassificationTask
    template: PromptTemplate = field(init=False)
    labels: list[list[int]] = field(init=False)
    head: list[int] = field(init=False)

    def __post_init__(self) -> None:
        self.template = self.task.config.prompt_template(self.task.verbalizers)
        self.labels = answer_tokens(self.tokenizer, self.task.verbalizers)
        instruction = self.template.prefix()
        self.head = opening_tokens(self.tokenizer) + (self._plain(instruction) if instruction else [])

    def demonstration(self, item: Item, label: str) -> Sequence_:
        """A demonstration's tokens, the same ones read in a prompt and learned; and how many come before its label."""
        verbalizer = self.task.verbalizers[self.task.labels.index(label)]
        question = self._plain(self.template.prompt(item.text))
        return question + self._plain(self.template.answer(verbalizer) + self.template.SEPARATOR), len(question)

    def item(self, item: Item) -> list[int]:
        return self._plain(self.template.prompt(item.text))

    def right(self, items: Sequence[Item], before: list[int]) -> np.ndarray:
        """[items] whether the likeliest label is right, after what stands before the item."""
        prompts = [before + self.item(item) for item in items]
        scores = score_tokens(self.model, prompts, self.labels).scores
        gold = [self.task.labels.index(item.label) for item in items]
        return np.asarray(scores.argmax(axis=1) == np.array(gold))

    def _plain(self, text: str) -> list[int]:
        return prompt_tokens(self.tokenizer, [text])[0][len(opening_tokens(self.tokenizer)) :]


@dataclass(frozen=True)
class _Seen:
    """What one item's last token saw: attention outputs [L, D], own scores [L, H, T], last queries [L, H * E]."""

    outputs: np.ndarray
    scores: np.ndarray
    query: np.ndarray
    demonstrations: np.ndarray  # [L, P] scores of the demonstrations' tokens, summed over heads; empty without any


def analyse(
    model: Path,
    task: ClassificationTask,
    *,
    seeds: Sequence[int],
    settings: Settings = Settings(),
    listener: ProgressListener = lambda progress: None,
    stop: StopRequest | None = None,
    keep: Callable[[SeedAnalysis], None] = lambda found: None,
) -> list[SeedAnalysis]:
    """Compare in-context learning with fine-tuning on the demonstrations, for every seed.

    Args:
        keep: called with each seed's result as it is found.

    Raises:
        DataError: there are no development or test items, or the demonstrations do not fit.
        ModelError: the model does not show its attention, see `attention_layers`.
    """
    if not task.dev or not task.test:
        raise DataError("the analysis needs development and test items", hint="give the task a dev split")
    trained = load_causal(model, dtype=torch.float32)  # updates of SGD are lost in bf16
    attention_layers(trained)
    tokenizer = load_tokenizer(model)
    momenta = len(settings.momenta) + 2 if settings.momenta else 0  # with none, and the best on the test items
    steps = _Steps(len(seeds) * (len(settings.rates) + len(VARIANTS) + 4 + momenta), listener, stop)
    results = []
    for seed in seeds:
        torch.manual_seed(derive_seed(seed, "untrained"))
        untrained: PreTrainedModel = AutoModelForCausalLM.from_config(trained.config, dtype=torch.float32).eval()
        results.append(_one_seed(_Asked(trained, tokenizer, task), untrained, seed, settings, steps))
        keep(results[-1])
    return results


class _Steps:
    """Progress, and a place to stop."""

    def __init__(self, total: int, listener: ProgressListener, stop: StopRequest | None) -> None:
        self._done, self._total, self._listener, self._stop = 0, total, listener, stop

    def one(self) -> None:
        if self._stop is not None:
            self._stop.raise_if_set()
        self._done += 1
        self._listener(Progress(self._done, self._total, "passes"))


def _one_seed(asked: _Asked, untrained: PreTrainedModel, seed: int, settings: Settings, steps: _Steps) -> SeedAnalysis:
    task = asked.task
    shown = balanced(task.train, settings.shots, per_class=False, seed=seed)
    demonstrations = [asked.demonstration(item, item.label) for item in shown]
    test, dev = task.test[: settings.items], task.dev[: settings.dev]
    # Development items are asked behind the demonstrations too where momentum attention is chosen on them.
    _check_fit(asked, demonstrations, [*test, *(dev if settings.momenta else [])])
    before = asked.head + [token for tokens, _ in demonstrations for token in tokens]
    zero_shot, in_context = asked.right(test, asked.head), asked.right(test, before)
    steps.one()

    def tuned(sequences: list[Sequence_], rate: float) -> Any:
        return _tuned(asked.model, asked.head, sequences, rate, settings.loss)

    dev_accuracy: dict[float, float] = {}
    for rate in settings.rates:
        with tuned(demonstrations, rate):
            dev_accuracy[rate] = float(asked.right(dev, asked.head).mean())
        steps.one()
    rate = max(sorted(dev_accuracy), key=lambda r: dev_accuracy[r])  # of equals the smallest
    looked_at = test[: settings.observed]
    base = _Base.of(asked, demonstrations, looked_at)
    steps.one()
    variants = {}
    for name in VARIANTS:
        if name == "random update":
            context = _randomly_updated(asked.model, asked.head, demonstrations, rate, settings.loss, seed)
        else:
            context = tuned(_altered(name, asked, shown, demonstrations, seed), rate)
        with context:
            variants[name] = _compare(asked, base, test, zero_shot, in_context)
        steps.one()
    other = _Asked(untrained, asked.tokenizer, task)
    other_base = _Base.of(other, demonstrations, looked_at)
    other_right = other.right(test, other.head), other.right(test, before)
    with _tuned(untrained, other.head, demonstrations, rate, settings.loss):
        without = _compare(other, other_base, test, *other_right)
    steps.one()
    momentum = _with_momentum(asked, before, settings, steps) if settings.momenta else None
    return SeedAnalysis(
        seed,
        rate,
        {str(r): accuracy for r, accuracy in dev_accuracy.items()},
        float(zero_shot.mean()),
        float(in_context.mean()),
        base.similarity_before(),
        variants,
        without,
        momentum,
    )


def _check_fit(asked: _Asked, demonstrations: list[Sequence_], items: Sequence[Item]) -> None:
    room = context_length(asked.model) - len(asked.head) - sum(len(tokens) for tokens, _ in demonstrations)
    longest = max(len(asked.item(item)) for item in items) + max(map(len, asked.labels))
    if longest > room:
        raise DataError(
            f"{len(demonstrations)} demonstrations leave {room} tokens, and the longest item with its label has "
            f"{longest}",
            hint="use fewer shots",
        )


def _altered(
    name: str, asked: _Asked, shown: Sequence[Item], demonstrations: list[Sequence_], seed: int
) -> list[Sequence_]:
    """What a variant learns instead of the demonstrations as they stand in the prompt."""
    rng = numpy_stream(seed, name)
    if name == "random labels":
        return [asked.demonstration(item, asked.task.labels[rng.integers(len(asked.task.labels))]) for item in shown]
    if name == "other order":
        return [demonstrations[index] for index in rng.permutation(len(demonstrations))]
    return demonstrations


@dataclass(frozen=True)
class _Base:
    """What is the same for all variants: both ways to read the items, and the demonstrations' queries [L, P, HE]."""

    items: Sequence[Item]
    zero_shot: list[_Seen]
    in_context: list[_Seen]
    training_queries: np.ndarray

    @classmethod
    def of(cls, asked: _Asked, demonstrations: list[Sequence_], items: Sequence[Item]) -> _Base:
        shown = [token for tokens, _ in demonstrations for token in tokens]
        with observed(asked.model):
            learned = [observe(asked.model, asked.head + tokens) for tokens, _ in demonstrations]
            return cls(
                items,
                [_see(asked, item, []) for item in items],
                [_see(asked, item, shown) for item in items],
                np.concatenate([_numpy(o.queries[:, len(asked.head) :]) for o in learned], axis=1),
            )

    def similarity_before(self) -> float:
        """SimAM between in-context and zero-shot maps, before any tuning."""
        pairs = zip(self.in_context, self.zero_shot, strict=True)
        return float(np.mean([similarity_of_attention(icl.scores, zero.scores) for icl, zero in pairs]))


def _see(asked: _Asked, item: Item, shown: list[int]) -> _Seen:
    own = asked.item(item)
    seen: Observation = observe(asked.model, asked.head + shown + own)
    start = len(asked.head)
    return _Seen(
        _numpy(seen.outputs),
        _numpy(seen.scores[:, :, -len(own) :]),
        _numpy(seen.queries[:, -1]),
        _numpy(seen.scores[:, :, start : start + len(shown)].sum(dim=1)),
    )


def _compare(
    asked: _Asked, base: _Base, test: Sequence[Item], zero_shot: np.ndarray, in_context: np.ndarray
) -> Variant:
    """The model as it is now, tuned in some way, against what `base` has seen."""
    right = asked.right(test, asked.head)
    rows: list[dict[str, np.ndarray]] = []
    with observed(asked.model):
        tuned = [_see(asked, item, []) for item in base.items]
    for zero, icl, now in zip(base.zero_shot, base.in_context, tuned, strict=True):
        learned = np.einsum("lpe,le->lp", base.training_queries, now.query)  # attention's dual form of the update
        outputs = zero.outputs, now.outputs, icl.outputs
        rows.append(
            {
                "sim_aou": similarity_of_updates(*outputs),
                "sim_aou_normalized": similarity_of_updates(*outputs, normalized=True),
                "sim_am": similarity_of_attention(icl.scores, now.scores),
                "sim_am_change": similarity_of_attention_changes(zero.scores, now.scores, icl.scores),
                "kendall": np.array([order_of_tokens(a, b) for a, b in zip(icl.demonstrations, learned, strict=True)]),
            }
        )
    stacked = {name: np.stack([row[name] for row in rows]) for name in MEASURES}  # [N, L]
    return Variant(
        float(right.mean()),
        recall_of_gains(zero_shot, right, in_context),
        {name: values.mean(axis=0).tolist() for name, values in stacked.items()},
        {name: values.mean(axis=1).tolist() for name, values in stacked.items()},
    )


def _with_momentum(asked: _Asked, before: list[int], settings: Settings, steps: _Steps) -> Momentum:
    dev_accuracy: dict[float, float] = {}
    for rate in (0.0, *settings.momenta):
        dev_accuracy[rate] = _right_with_momentum(asked, asked.task.dev[: settings.dev], before, rate)
        steps.one()
    best = max(sorted(dev_accuracy), key=lambda rate: dev_accuracy[rate])  # of equals the smallest
    accuracy = _right_with_momentum(asked, asked.task.test[: settings.items], before, best)
    steps.one()
    return Momentum(best, {str(rate): value for rate, value in dev_accuracy.items()}, accuracy)


@torch.no_grad()
def _right_with_momentum(asked: _Asked, items: Sequence[Item], before: list[int], rate: float) -> float:
    """The share of items whose likeliest label, per token, is right. `score_tokens` has an attention of its own."""
    model, right = asked.model, 0
    device = model.get_input_embeddings().weight.device
    with momentum_attention(model, rate):
        shown = Prefix(model.base_model, before, device)
        for item in items:
            asks = asked.item(item)
            scores = []
            for label in asked.labels:
                ids = torch.tensor([asks + label[:-1]], device=device)
                logits = model(input_ids=ids, past_key_values=shown.cache()).logits[0, len(asks) - 1 :]
                scores.append(-float(nn.functional.cross_entropy(logits.float(), torch.tensor(label, device=device))))
            right += int(np.argmax(scores)) == asked.task.labels.index(item.label)
    return right / len(items)


def _key_value_weights(model: PreTrainedModel) -> list[nn.Parameter]:
    return [
        parameter
        for layer in attention_layers(model)
        for name in ("k_proj", "v_proj")
        for parameter in layer.get_submodule(name).parameters()
    ]


@contextmanager
def _tuned(
    model: PreTrainedModel, head: list[int], sequences: list[Sequence_], rate: float, loss: Loss
) -> Iterator[None]:
    """Inside, the model has learned the sequences; afterwards it is as before."""
    weights = _key_value_weights(model)
    before = [weight.detach().clone() for weight in weights]
    model.requires_grad_(False)
    for weight in weights:
        weight.requires_grad_(True)
    try:
        for tokens, question in sequences:
            unlearned = len(head) + (question if loss == "label" else 0)
            for weight, gradient in zip(
                weights, torch.autograd.grad(_loss(model, head + tokens, unlearned), weights), strict=True
            ):
                weight.data.sub_(gradient, alpha=rate)
        yield
    finally:
        for weight, old in zip(weights, before, strict=True):
            weight.data.copy_(old)


@contextmanager
def _randomly_updated(
    model: PreTrainedModel, head: list[int], sequences: list[Sequence_], rate: float, loss: Loss, seed: int
) -> Iterator[None]:
    """Inside, every weight that tuning moves is moved as far in a random direction."""
    weights = _key_value_weights(model)
    before = deepcopy([weight.detach() for weight in weights])
    with _tuned(model, head, sequences, rate, loss):
        lengths = [float((w.detach() - old).norm()) for w, old in zip(weights, before, strict=True)]
    generator = torch.Generator().manual_seed(derive_seed(seed, "random update"))
    try:
        for weight, length in zip(weights, lengths, strict=True):
            direction = torch.randn(weight.shape, generator=generator).to(weight.device)
            weight.data.add_(direction, alpha=length / float(direction.norm()))
        yield
    finally:
        for weight, old in zip(weights, before, strict=True):
            weight.data.copy_(old)


def _loss(model: PreTrainedModel, tokens: list[int], unlearned: int) -> Tensor:
    """Mean cross-entropy of the tokens after the first `unlearned`."""
    ids = torch.tensor([tokens], device=model.get_input_embeddings().weight.device)
    logits: Tensor = model(input_ids=ids, use_cache=False).logits[0]
    first = max(1, unlearned)
    return nn.functional.cross_entropy(logits[first - 1 : -1].float(), ids[0, first:])


def _numpy(tensor: Tensor) -> np.ndarray:
    values: np.ndarray = tensor.float().cpu().numpy()
    return values
