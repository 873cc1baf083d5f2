"""Text from a causal model, many sequences at once.

Prompts are read packed, none padded; equal prompts are read once. Then every step computes one token for each sequence
that is not finished, and a finished one gives its place to the next prompt, so no step computes for nobody.

Shapes: B sequences in a step, V vocabulary.
"""

from __future__ import annotations

from collections import abc, deque
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor, nn
from transformers import DynamicCache, GenerationConfig, PreTrainedModel

from quilate.errors import DataError
from quilate.inference.fused_layers import LaidOut, with_fused_layers
from quilate.inference.sampling import Sampling, choose, draw
from quilate.models.attention import DocumentLayout
from quilate.models.cached_attention import CACHED_ATTENTION, KeyValueStore, use_cached_attention
from quilate.models.heads import divide
from quilate.models.load import context_length

BATCH = 64  # sequences a step: beyond it a CPU's matrix products gain nothing (guess for other machines)
GREEDY = Sampling()
PROMPT_TOKENS = 4096  # of prompts in one forward pass

Stream = abc.Generator[tuple[int, int | None], None, None]


class Constraint(Protocol):
    """What one sequence may be."""

    def allowed(self) -> Tensor:
        """[V] bool, which tokens may come next; some may."""
        ...

    def advance(self, token: int) -> None:
        """The sequence went on with a token."""
        ...


@dataclass
class _Sequence:
    """One sequence under way. `row` is its number among the results."""

    row: int
    slot: int
    tokens: list[int] = field(default_factory=list)


class Generator:
    """Writes after prompts.

    Args:
        model: a causal model, adapted or not. Its weights are copied in the processor's own layout, so a generator
            made before an update goes on with the old ones.
        stop: tokens that end a sequence; by default those of the model's generation config.
        head: gives what to choose from, [B, V], of hidden states [B, D]; by default the model's own head.
        laid_out: shared by generators of one model of which only an adapter changes between them.
        batch: the most sequences at once. A model that ignores the attention it is given (Falcon, Bloom, MPT) writes
            one after the other, with a cache of transformers'.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        *,
        stop: Collection[int] | None = None,
        head: nn.Module | None = None,
        laid_out: LaidOut | None = None,
        batch: int = BATCH,
    ) -> None:
        self._model = model.get_base_model() if hasattr(model, "peft_config") else model
        self.stop = frozenset(_stops(self._model) if stop is None else stop)
        self.batch = batch
        self.context = context_length(self._model)
        divided = divide(model)
        self.device = divided.head.weight.device
        attention = self._model.config._attn_implementation
        self._together = use_cached_attention(self._model)
        self._model.set_attn_implementation(attention)
        self._body, self._head = (
            with_fused_layers(part, batch, laid_out) for part in (divided.body, head or divided.head)
        )

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        max_new_tokens: int,
        sampling: Sampling = GREEDY,
        seed: int = 0,
        constraints: Sequence[Constraint] | None = None,
        on_progress: Callable[[int, int], None] = lambda done, total: None,
    ) -> list[list[int]]:
        """The new tokens after each prompt, a stop token included where one ended it.

        Args:
            prompts: token ids; equal ones are read once and, unless greedy, continued differently.
            max_new_tokens: a sequence also ends after so many, or where the model's context does.
            constraints: one a prompt, if anything holds the sequences back.
            on_progress: called with sequences done and in total.

        Raises:
            DataError: a prompt is empty or fills the model's context.
        """
        results: list[list[int]] = [[] for _ in prompts]
        done = 0
        tokens = self.stream(
            prompts, max_new_tokens=max_new_tokens, sampling=sampling, seed=seed, constraints=constraints
        )
        for row, token in tokens:
            if token is None:
                done += 1
                on_progress(done, len(prompts))
            else:
                results[row].append(token)
        return results

    def sample(
        self, prompts: Sequence[Sequence[int]], *, max_new_tokens: int, sampling: Sampling, seed: int = 0
    ) -> tuple[list[list[int]], list[list[float]]]:
        """As `generate` at a temperature above 0, and beside each token its log-probability under what it was drawn
        from."""
        tokens: list[list[int]] = [[] for _ in prompts]
        log_probs: list[list[float]] = [[] for _ in prompts]
        for row, token in self.stream(
            prompts, max_new_tokens=max_new_tokens, sampling=sampling, seed=seed, log_probs=log_probs
        ):
            if token is not None:
                tokens[row].append(token)
        return tokens, log_probs

    @torch.inference_mode()
    def stream(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        max_new_tokens: int,
        sampling: Sampling = GREEDY,
        seed: int = 0,
        constraints: Sequence[Constraint] | None = None,
        log_probs: Sequence[list[float]] | None = None,
    ) -> Stream:
        """As `generate`, each token as it is chosen: (number of the prompt, token), and (number, None) at its end.

        Args:
            log_probs: one a prompt, to which those of its tokens are added, unless greedy.
        """
        self._check(prompts)
        attention, training = self._model.config._attn_implementation, self._model.training
        self._model.eval()
        slots = min(self.batch, len(prompts)) if self._together else 1
        try:
            if self._together:
                self._model.set_attn_implementation(CACHED_ATTENTION)
            yield from self._run(prompts, slots, max_new_tokens, sampling, seed, constraints, log_probs)
        finally:
            self._model.set_attn_implementation(attention)
            self._model.train(training)

    def _run(
        self,
        prompts: Sequence[Sequence[int]],
        slots: int,
        max_new_tokens: int,
        sampling: Sampling,
        seed: int,
        constraints: Sequence[Constraint] | None,
        log_probs: Sequence[list[float]] | None,
    ) -> Stream:
        # Drawn beforehand, a row a prompt: what a sequence becomes does not depend on which others ran beside it.
        uniforms = torch.rand(
            len(prompts), max_new_tokens, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)
        )
        passes: _TogetherPasses | _AlonePasses = _AlonePasses(self._body, self.device)
        if self._together:
            places = min(self.context, max(map(len, prompts), default=0) + max_new_tokens)
            passes = _TogetherPasses(self._body, self.device, KeyValueStore(slots, places))
        waiting, free, active = deque(range(len(prompts))), list(range(slots)), list[_Sequence]()
        while waiting or active:
            fresh = _admit(prompts, waiting, free)
            hidden = passes.read([prompts[s.row] for s in fresh], fresh) if fresh else passes.write(active)
            current = fresh or active
            drawn = torch.stack([uniforms[s.row, len(s.tokens)] for s in current]).to(self.device)
            logits = self._head(hidden)
            if constraints is not None:
                allowed = torch.stack([constraints[sequence.row].allowed() for sequence in current])
                logits = logits.masked_fill(~allowed.to(self.device), -torch.inf)
            if log_probs is None or sampling.temperature == 0:
                chosen = choose(logits, drawn, sampling)
            else:
                chosen, likely = draw(logits, drawn, sampling)
                for sequence, log_prob in zip(current, likely.tolist(), strict=True):
                    log_probs[sequence.row].append(log_prob)
            for sequence, token in zip(current, chosen.tolist(), strict=True):
                sequence.tokens.append(token)
                if constraints is not None and token not in self.stop:
                    constraints[sequence.row].advance(token)
                yield sequence.row, token
            ended = {sequence.row for sequence in current if self._ended(sequence, prompts, max_new_tokens)}
            for sequence in current:
                if sequence.row in ended:
                    free.append(sequence.slot)
                    yield sequence.row, None
            active = [sequence for sequence in (*active, *fresh) if sequence.row not in ended]

    def _ended(self, sequence: _Sequence, prompts: Sequence[Sequence[int]], max_new_tokens: int) -> bool:
        written = len(sequence.tokens)
        filled = len(prompts[sequence.row]) + written == self.context
        return sequence.tokens[-1] in self.stop or written == max_new_tokens or filled

    def _check(self, prompts: Sequence[Sequence[int]]) -> None:
        for number, prompt in enumerate(prompts):
            if not 0 < len(prompt) < self.context:
                what = "is empty" if len(prompt) == 0 else f"has {len(prompt)} tokens"
                raise DataError(
                    f"prompt {number + 1} of {len(prompts)} {what}; the model's context is {self.context} tokens and "
                    "must hold the prompt and at least one new token",
                    hint="shorten the prompt" if len(prompt) else "give the model something to go on from",
                )


class _TogetherPasses:
    """Forward passes over many sequences whose keys and values stand in a store."""

    def __init__(self, body: nn.Module, device: torch.device, store: KeyValueStore) -> None:
        self._body, self._device, self._store = body, device, store

    def read(self, prompts: Sequence[Sequence[int]], sequences: list[_Sequence]) -> Tensor:
        """Read the sequences' prompts, equal ones once; the hidden state after each: [B, D]."""
        slots: dict[tuple[int, ...], list[int]] = {}
        for prompt, sequence in zip(prompts, sequences, strict=True):
            slots.setdefault(tuple(prompt), []).append(sequence.slot)
        lengths = [len(prompt) for prompt in slots]
        self._store.reading(lengths, list(slots.values()))
        hidden: Tensor = self._body(
            input_ids=torch.tensor([[token for prompt in slots for token in prompt]], device=self._device),
            position_ids=torch.cat([torch.arange(length) for length in lengths])[None].to(self._device),
            use_cache=False,
            key_value_store=self._store,
            document_layout=DocumentLayout.of(lengths, self._device),
        ).last_hidden_state[0]
        ends = dict(zip(slots, torch.tensor(lengths).cumsum(0).sub(1).tolist(), strict=True))
        return hidden[[ends[tuple(prompt)] for prompt in prompts]]

    def write(self, sequences: list[_Sequence]) -> Tensor:
        """The hidden state after each sequence's last token: [B, D]."""
        slots = torch.tensor([sequence.slot for sequence in sequences])
        self._store.writing(slots)
        hidden: Tensor = self._body(
            input_ids=torch.tensor([[sequence.tokens[-1]] for sequence in sequences], device=self._device),
            position_ids=self._store.lengths[slots][:, None].to(self._device),
            use_cache=False,
            key_value_store=self._store,
        ).last_hidden_state[:, 0]
        self._store.advance()
        return hidden


class _AlonePasses:
    """The same for one sequence and a model that does not ask the registry for its attention."""

    def __init__(self, body: nn.Module, device: torch.device) -> None:
        self._body, self._device = body, device
        self._cache = DynamicCache()

    def read(self, prompts: Sequence[Sequence[int]], _sequences: list[_Sequence]) -> Tensor:
        self._cache = DynamicCache()
        return self._pass(list(prompts[0]))

    def write(self, sequences: list[_Sequence]) -> Tensor:
        return self._pass(sequences[0].tokens[-1:])

    def _pass(self, tokens: list[int]) -> Tensor:
        ids = torch.tensor([tokens], device=self._device)
        hidden: Tensor = self._body(input_ids=ids, past_key_values=self._cache, use_cache=True).last_hidden_state[:, -1]
        return hidden


def _admit(prompts: Sequence[Sequence[int]], waiting: deque[int], free: list[int]) -> list[_Sequence]:
    """The next prompts that fit into one pass and into the free slots."""
    fresh: list[_Sequence] = []
    read: set[tuple[int, ...]] = set()
    while waiting and free:
        prompt = tuple(prompts[waiting[0]])
        if read and prompt not in read and sum(map(len, read)) + len(prompt) > PROMPT_TOKENS:
            break
        read.add(prompt)
        fresh.append(_Sequence(waiting.popleft(), free.pop()))
    return fresh


def _stops(model: PreTrainedModel) -> set[int]:
    config: GenerationConfig | None = getattr(model, "generation_config", None)
    stop = None if config is None else config.eos_token_id
    return set() if stop is None else {stop} if isinstance(stop, int) else set(stop)
