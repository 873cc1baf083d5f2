"""Tiny training runs by the real loop, started, stopped and started again in one folder."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from support import random_examples, tiny_gpt2, tiny_llama
from torch import Tensor

from quilate.data.batches import ExampleBatches
from quilate.data.packing import PackedBatch
from quilate.engine.interrupts import StopRequest
from quilate.engine.language_modelling import LanguageModellingLoss
from quilate.engine.loop import FitResult, fit
from quilate.engine.runlog import Progress
from quilate.models.tuning.lora import LoraConfig, add_lora
from quilate.optim.choice import DEFAULTS, make_optimizer
from quilate.optim.schedules import learning_rate
from quilate.optim.sophia import Sophia
from quilate.rng import Streams

LENGTHS = [12, 9, 7, 15, 5, 8, 11, 6, 10, 13]
STEPS = 9  # ten examples, four a step: three steps an epoch, three epochs


@dataclass
class Outcome:
    result: FitResult
    state: dict[str, Tensor]
    streams: dict[str, Tensor]
    metrics: bytes
    warnings: list[str]

    @property
    def weights(self) -> dict[str, Tensor]:
        """The trained weights in fp32, apart from what the optimizer remembers beside them."""
        return {name: t for name, t in self.state.items() if name.partition(".")[0] in ("parameter", "master")}


class Run:
    """One training run in one folder; `again()` is what a new process would do. An epoch is three steps."""

    def __init__(
        self,
        folder: Path,
        *,
        method: str = "full",
        dtype: torch.dtype = torch.float32,
        epochs: int = 3,
        micro_batch_tokens: int = 25,
        rate: float = 1e-2,
    ) -> None:
        self.folder, self.method, self.dtype = folder, method, dtype
        self.epochs, self.micro_batch_tokens, self.rate = epochs, micro_batch_tokens, rate
        self.examples = random_examples(LENGTHS)
        self.warnings: list[str] = []
        folder.mkdir(exist_ok=True)

    def again(
        self,
        *,
        stop_after: int | None = None,
        on_step: Callable[[Progress], None] = lambda _: None,
        wrap: Callable[[Callable[[PackedBatch], Tensor]], Callable[[PackedBatch], Tensor]] = lambda loss: loss,
        **options: object,
    ) -> Outcome:
        streams = Streams(5)
        torch.manual_seed(streams.seed)
        model = tiny_gpt2(dropout=0.2).to(self.dtype) if self.method == "dropout" else tiny_llama(dtype=self.dtype)
        if self.method == "lora":
            model = add_lora(model, LoraConfig(rank=4, alpha=8, dropout=0.3), base=self.folder)
        batches = ExampleBatches(
            self.examples, batch_size=4, epochs=self.epochs, seed=5, micro_batch_tokens=self.micro_batch_tokens
        )
        schedule = partial(learning_rate, peak=self.rate, total_steps=len(batches), warmup_steps=2, decay="cosine")
        name = self.method if self.method in DEFAULTS else "adamw"
        optimizer = make_optimizer(name, model, streams, head=model.get_output_embeddings(), weight_decay=0.1)
        if isinstance(optimizer, Sophia):
            optimizer.every = 2
        loss = LanguageModellingLoss(model)
        stop = StopRequest()

        def listen(progress: Progress) -> None:
            on_step(progress)
            if progress.done == stop_after:
                stop.signal = "SIGTERM"

        result = fit(
            model, batches, wrap(loss), optimizer, schedule, streams, curvature_loss=loss.to_probe(optimizer),
            folder=self.folder, listener=listen, stop=stop, warn=self.warnings.append, **options,
        )  # fmt: skip
        state = {name: tensor.clone() for name, tensor in optimizer.state().items()}
        return Outcome(result, state, streams.state(), (self.folder / "metrics.jsonl").read_bytes(), self.warnings)


def assert_same_bits(ours: Outcome, undisturbed: Outcome) -> None:
    assert ours.result == undisturbed.result
    assert ours.metrics == undisturbed.metrics
    for mine, other in ((ours.state, undisturbed.state), (ours.streams, undisturbed.streams)):
        assert mine.keys() == other.keys()
        for name, tensor in mine.items():
            assert torch.equal(tensor, other[name]), name
