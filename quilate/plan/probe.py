"""What a forward pass or a training step takes on this machine: measured once on random tokens, kept in the cache.

A probe runs the engine's own code on batches of the sizes a stage will have, in a process of its own, so that its peak
of memory is its own too: `python -m quilate.plan.probe` reads a `ProbeSpec` as JSON and prints a `Rate`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from quilate.errors import QuilateError
from quilate.files import cache_folder, digest, read_json, sha256_of_file, write_json
from quilate.plan.took import Took
from quilate.recipe.meter import peak_bytes

VERSION = 6  # counted up when a probe would measure something else

LEAST_TIMED_STEPS = 4
ENOUGH_SECONDS = 10.0  # of steps; small models run many, for a process grows with its first hundred steps (guess)

Activity = Literal["train", "loss", "encode", "score"]


@dataclass(frozen=True)
class ProbeSpec:
    """What to measure.

    Attributes:
        model: a model directory; of one not trained yet, one of the same shape.
        tuning: how it is made trainable, or what adapter it is asked with: {"method": "lora", "lora": {...}}.
        activity: `train` runs optimizer steps; `loss`, `encode` and `score` are forward passes, as for measuring text,
            for the features of a head, and for scoring labels.
        steps: of `train`: for each step its micro-batches, each a list of documents (tokens, supervised tokens); the
            largest first, and as many of the others as run in `ENOUGH_SECONDS`, but `LEAST_TIMED_STEPS`. Of the other
            activities: one list of batches of documents.
        prefix, labels: of `score`: the tokens that all prompts share, and those of each label.
        recomputes: of `train`: whether activations are computed again for the gradient.
    """

    model: str
    activity: Activity
    precision: str
    steps: list[list[list[tuple[int, int]]]]
    tuning: dict[str, Any] | None = None
    optimizer: str = "adamw"
    prefix: int = 0
    labels: list[list[int]] | None = None
    recomputes: bool = False

    def key(self) -> str:
        """What identifies the measurement; the model by its shape, which is all that matters here."""
        shape = sha256_of_file(Path(self.model) / "config.json")
        return digest([VERSION, asdict(replace(self, model=shape))])


@dataclass(frozen=True)
class Rate:
    """What a token takes, and once: what the first step or pass takes beyond that (`warming`), the loading and the
    saving of the model. `peak_bytes` is of the whole process; `load` is the machine's load average when it began, which
    disturbs it where it is not near zero."""

    token: Took
    warming: Took
    loading: Took
    saving: Took
    peak_bytes: int
    parameters: int
    trainable: int
    load: float

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Rate:
        """Inverse of `asdict`."""
        return cls(**value | {name: Took(**value[name]) for name in ("token", "warming", "loading", "saving")})


def measured(spec: ProbeSpec, environment: dict[str, str], *, note: Callable[[str], None] = lambda _: None) -> Rate:
    """The rate of `spec` on this machine, from the cache or by a probe.

    Args:
        environment: that stages run in.

    Raises:
        QuilateError: the probe failed; the message holds what it said.
    """
    kept = cache_folder() / "probes" / f"{digest([machine_identity(), spec.key()])[:32]}.json"
    if kept.exists():
        return Rate.from_json(read_json(kept))
    documents = sum(len(batch) for step in spec.steps for batch in step)
    note(f"measuring {spec.activity} of {Path(spec.model).name} on {documents} documents")
    done = subprocess.run(
        [sys.executable, "-m", "quilate.plan.probe"], input=json.dumps(asdict(spec)), capture_output=True, text=True,
        encoding="utf-8", env=environment,
    )  # fmt: skip
    if done.returncode != 0:
        raise QuilateError(
            f"the probe of {spec.activity} failed: {(done.stderr.strip().splitlines() or ['no message'])[-1]}",
            hint="run with --gpu and --no-probe to plan from tables alone",
        )
    rate = Rate.from_json(json.loads(done.stdout.splitlines()[-1]))
    write_json(kept, asdict(rate))
    return rate


def machine_identity() -> list[str]:
    """What a rate depends on, of the machine and of the libraries."""
    from importlib.metadata import version

    from quilate.recipe.manifest import machine

    found = machine()
    threads = os.environ.get("OMP_NUM_THREADS", "")
    kept = [str(found.get(name)) for name in ("cpu", "cores", "gpu")]
    return [*kept, threads, os.environ.get("QUILATE_KERNELS", ""), version("torch"), version("transformers")]


def main() -> None:
    """Measure what standard input asks for."""
    load = os.getloadavg()[0]
    spec = ProbeSpec(**json.loads(sys.stdin.read()))
    from quilate.recipe.executors.subprocess import has_gpu
    from quilate.recipe.worker import import_what_models_need

    import_what_models_need()
    if not has_gpu() and (forked := os.fork()):  # as a stage is: what importing alone has touched is not its memory
        sys.exit(os.waitstatus_to_exitcode(os.waitpid(forked, 0)[1]))
    rate = _Probe(spec).run(load)
    print(json.dumps(asdict(rate)))


class _Probe:
    def __init__(self, spec: ProbeSpec) -> None:
        from quilate.models.load import load_language_model, load_tokenizer
        from quilate.models.precision import compute_dtype

        self.spec, self.folder = spec, Path(spec.model)
        started = Took.so_far()
        self.tokenizer = load_tokenizer(self.folder)
        self.model = load_language_model(self.folder, dtype=compute_dtype(spec.precision))  # type: ignore[arg-type]
        self.loading = Took.so_far() - started
        if spec.tuning is not None:
            self.model = tuned(self.model, spec.tuning, self.folder)

    def run(self, load: float) -> Rate:
        from quilate.models.load import save_model, trainable_parameters

        spec, saving = self.spec, Took()
        activities = {"train": self._train, "loss": self._loss, "encode": self._encode, "score": self._score}
        tokens, took, warming = activities[spec.activity]()
        if spec.activity == "train":
            started = Took.so_far()
            with tempfile.TemporaryDirectory() as place:
                save_model(self.model, self.tokenizer, Path(place))
                for path in Path(place).iterdir():
                    sha256_of_file(path)  # as for the manifest
            saving = Took.so_far() - started
        parameters = sum(p.numel() for p in self.model.parameters())
        trainable = trainable_parameters(self.model)
        return Rate(took * (1 / tokens), warming, self.loading, saving, peak_bytes(), parameters, trainable, load)

    def _train(self) -> tuple[int, Took, Took]:
        """Tokens and time of all steps but the first, which warms up, and what that took beyond its tokens."""
        from quilate.engine.language_modelling import LanguageModellingLoss
        from quilate.engine.loop import curvature_step, optimizer_step
        from quilate.models.load import recompute_activations
        from quilate.optim.choice import make_optimizer
        from quilate.optim.sophia import Sophia
        from quilate.rng import Streams

        streams = Streams(0)
        head = self.model.get_output_embeddings()
        optimizer = make_optimizer(self.spec.optimizer, self.model, streams, head=head)  # type: ignore[arg-type]
        loss = LanguageModellingLoss(self.model)
        probed = loss.to_probe(optimizer)
        if self.spec.recomputes:
            recompute_activations(self.model)
        self.model.train()
        tokens, total, first, warmed = 0, Took(), Took(), 0
        for number, step in enumerate(self.spec.steps):
            if number > LEAST_TIMED_STEPS and (first + total).seconds > ENOUGH_SECONDS:
                break
            batches = [self._packed(batch) for batch in step]
            started = Took.so_far()
            optimizer_step(batches, loss, optimizer, learning_rate=1e-6, clip_norm=1.0)
            took = Took.so_far() - started
            if isinstance(optimizer, Sophia) and probed is not None:
                started = Took.so_far()
                curvature_step(batches, probed, optimizer)
                took += (Took.so_far() - started) * (1 / optimizer.every)
            of_step = sum(b.tokens for b in batches)
            if number == 0:
                first, warmed = took, of_step
            else:
                tokens, total = tokens + of_step, total + took
        if tokens == 0:
            return warmed, first, Took()
        return tokens, total, first.beyond(total * (warmed / tokens))

    def _loss(self) -> tuple[int, Took, Took]:
        import torch

        from quilate.engine.language_modelling import LanguageModellingLoss

        loss = LanguageModellingLoss(self.model)
        with torch.no_grad():
            return self._timed([self._packed(batch) for batch in self.spec.steps[0]], lambda batch: float(loss(batch)))

    def _encode(self) -> tuple[int, Took, Took]:
        import torch

        from quilate.models.encoder import DocumentEncoder

        encoder = DocumentEncoder(self.model)
        batches = [self._packed(batch).to(encoder.device) for batch in self.spec.steps[0]]
        with torch.inference_mode():
            return self._timed(batches, lambda b: encoder(b.input_ids, b.position_ids, b.lengths))

    @staticmethod
    def _timed(batches: Sequence[Any], work: Callable[[Any], Any]) -> tuple[int, Took, Took]:
        """Tokens and time of the second pass: in the first memory is new, which of many batches few would see."""
        passes = []
        for _ in range(2):
            started = Took.so_far()
            for batch in batches:
                work(batch)
            passes.append(Took.so_far() - started)
        return sum(batch.tokens for batch in batches), passes[1], passes[0].beyond(passes[1])

    def _score(self) -> tuple[int, Took, Took]:
        import numpy as np

        from quilate.inference.likelihood import score_tokens

        rng = np.random.default_rng(0)
        prefix = rng.integers(self._vocabulary, size=self.spec.prefix).tolist()
        own = [length for batch in self.spec.steps[0] for length, _ in batch]
        prompts = [prefix + rng.integers(self._vocabulary, size=length).tolist() for length in own]
        labels = self.spec.labels or []
        passes = []
        for asked in (prompts, prompts, prompts[-2:]):
            started = Took.so_far()
            tokens = score_tokens(self.model, asked, labels).tokens
            passes.append((tokens, Took.so_far() - started))
        (_, first), (tokens, took), (of_two, two) = passes
        if len(prompts) <= 2:
            return tokens, took, first.beyond(took)
        # What the prompts share is read once, however many they are: with two of them it counts as warming up.
        return tokens - of_two, took - two, two + first.beyond(took)

    @property
    def _vocabulary(self) -> int:
        return int(self.model.get_input_embeddings().weight.shape[0])

    def _packed(self, documents: list[tuple[int, int]]) -> Any:
        """Random documents; the supervised tokens are each one's last, as in a prompt and its answer."""
        import numpy as np

        from quilate.data.packing import Example, pack

        masked = "MaskedLM" in type(self.model).__name__
        rng = np.random.default_rng(0)
        examples = []
        for number, (length, supervised) in enumerate(documents):
            tokens = rng.integers(self._vocabulary, size=length)
            learned = np.arange(length) >= length - supervised
            examples.append(Example(str(number), tokens, learned, tokens if masked else None))
        return pack(examples)


def tuned(model: Any, tuning: dict[str, Any], base: Path) -> Any:
    """The model as the phase would train it, its adapter new."""
    from quilate.models.tuning.bottleneck import BottleneckConfig, add_bottlenecks
    from quilate.models.tuning.freeze import train_last_layers
    from quilate.models.tuning.lora import LoraConfig, add_lora

    match tuning["method"]:
        case "lora":
            return add_lora(model, LoraConfig(**(tuning.get("lora") or {})), base=base)
        case "adapter":
            return add_bottlenecks(model, BottleneckConfig(**(tuning.get("adapter") or {})), base=base)
        case "last_layers":
            return train_last_layers(model, tuning["last_layers"])
    return model


if __name__ == "__main__":
    main()
