"""What each kind of stage will compute, as probes and how many tokens each is to be multiplied with.

The counts come from the stage's own code on its own rows: the same prompts, the same batches. What another stage has
yet to decide (a prompt chosen on dev) counts as its dearest case. A kind that computes little with a model, or that is
missing here, has no workload, and the plan says "not estimated".
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from quilate.config import validate
from quilate.data.packing import Example, PackedBatch, pack, split_by_tokens
from quilate.data.tokens import Shard, TokenBatches
from quilate.engine.interrupts import StopRequest
from quilate.evaluation.bits_per_byte import BATCH_TOKENS, windows
from quilate.files import make_folder
from quilate.inference import features
from quilate.inference.label_tree import LabelTree
from quilate.inference.likelihood import BATCH_TOKENS as SCORE_TOKENS
from quilate.inference.scorer import PromptScorer, load_scorer
from quilate.models.load import context_of_directory, is_masked_directory, load_tokenizer
from quilate.phases import finetune, icl, language_modelling, sft
from quilate.phases.align import dpo
from quilate.phases.align import training as alignment
from quilate.phases.align.common import TEXT_WINDOW
from quilate.phases.corpus import corpus_documents
from quilate.phases.examples import choice_examples, label_examples
from quilate.phases.prompting import trials_of
from quilate.phases.search import combinations, config_of
from quilate.phases.stage import StageContext
from quilate.plan.models import Model, pretend_stage, stand_in
from quilate.plan.probe import Activity, ProbeSpec
from quilate.plan.took import Took
from quilate.recipe.graph import Graph, Node
from quilate.recipe.kinds import stage_kind
from quilate.tasks.classification import ClassificationTask
from quilate.tasks.kinds import load_task
from quilate.tasks.multiple_choice import ChoiceTask
from quilate.tokenization.segments import common_prefix_length

Documents = list[tuple[int, int]]  # (tokens, supervised tokens) of each

# Why a kind of stage is not estimated.
NOT_KNOWN = {
    **dict.fromkeys(("ppo", "grpo", "derive", "assay"), "how much a model will write is not known"),
    **dict.fromkeys(("cloning", "ilql", "distill", "multitask", "privacy", "ask"), "no probe knows this kind of stage"),
    "api": "somebody else's machine computes",
}
SAMPLE_BYTES = 300_000  # of each corpus, tokenized to know how long its documents are (guess)
MASKED_SHARE = 0.15  # Devlin et al. 2019
PROBED_STEPS = 200  # at most; a probe stops before where they take long (guess)
PROBED_BATCHES = 8  # of a forward pass: those of three differed by half from the mean of all on the demo


@dataclass(frozen=True)
class Part:
    """A rate to measure and the tokens it holds for."""

    probe: ProbeSpec
    tokens: int


@dataclass(frozen=True)
class Workload:
    """A stage's computing.

    Attributes:
        tuning: how the model is made trainable (see `ProbeSpec`); None for all of it, or where nothing is trained.
        saves: whether it writes the model.
        other: time on this machine for what no model does: making tokens, and a tokenizer.
        recomputes: whether activations are computed again for the gradient.
    """

    model: Model
    tuning: dict[str, Any] | None
    parts: list[Part]
    saves: bool = False
    other: Took = field(default_factory=Took)
    micro_batch_tokens: int = 0
    several_micro_batches: bool = False
    recomputes: bool = False
    notes: list[str] = field(default_factory=list)

    @property
    def train_tokens(self) -> int:
        return sum(part.tokens for part in self.parts if part.probe.activity == "train")

    @property
    def read_tokens(self) -> int:
        return sum(part.tokens for part in self.parts if part.probe.activity != "train")


class NotEstimatedError(Exception):
    """The reason why a stage has no estimate."""


class Workloads:
    """The workloads of a recipe's stages, in the graph's order; `of` must see what a stage stands on before it.

    Args:
        folder_of: where the stages that only read files are finished, by name.
        scratch: a folder for what is made on the way.
    """

    def __init__(self, graph: Graph, folder_of: Callable[[str], Path], base_folder: Path, scratch: Path) -> None:
        self.graph, self.folder_of, self.base_folder, self.scratch = graph, folder_of, base_folder, scratch
        self._models: dict[str, Model] = {}
        self._scorers: dict[str, tuple[Node, list[Path]]] = {}
        self._kinds: dict[str, Callable[[Node], Workload]] = {
            "base": self._base,
            "pretrain": self._pretrain,
            "adapt": self._adapt,
            "sft": self._sft,
            "reward": self._reward,
            "dpo": self._dpo,
            "finetune": self._finetune,
            "icl": self._icl,
            "evaluate": self._evaluate,
        }

    def of(self, node: Node) -> Workload:
        """What a stage will compute.

        Raises:
            NotEstimatedError: that is not known; what stands on it starts from a model of the same shape.
        """
        try:
            if any(self.graph.nodes[name].kind == "derive" for name in node.inputs.values()):
                raise NotEstimatedError("it learns from what a model has yet to write")
            if node.kind not in self._kinds:
                raise NotEstimatedError(NOT_KNOWN.get(node.kind, "it computes little, or nothing with a model of ours"))
            workload = self._kinds[node.kind](node)
        except NotEstimatedError:
            if "model" in node.inputs:
                self._models[node.name] = self._below(node).merged()
            raise
        if not workload.parts:
            raise NotEstimatedError("it has nothing to read")
        return workload

    def _context(self, node: Node) -> StageContext[Any]:
        """The stage's context, with stand-ins for models that are not there yet."""
        inputs = {}
        for role, name in node.inputs.items():
            source = self.graph.nodes[name]
            made = self._models.get(name)
            stands = made is not None and source.kind != "base"
            inputs[role] = self._pretended(name, made) if stands and made else self.folder_of(name)
        return StageContext(
            config=validate(stage_kind(node.kind).config, node.config, source=node.name),
            inputs=inputs, folder=make_folder(self.scratch / node.name), seed=node.seed, base_folder=self.base_folder,
            listener=lambda _: None, note=lambda _: None, stop=StopRequest(),
        )  # fmt: skip

    def _pretended(self, name: str, model: Model) -> Path:
        return pretend_stage(make_folder(self.scratch / f"{name}-model"), model)

    def _below(self, node: Node) -> Model:
        return self._models[node.inputs["model"]]

    # Models

    def _base(self, node: Node) -> Workload:
        from quilate.phases.stage import model_of

        self._models[node.name] = Model(model_of(self.folder_of(node.name)))
        raise NotEstimatedError("it only reads files")

    def _pretrain(self, node: Node) -> Workload:
        context = self._context(node)
        mixture = language_modelling.CorpusMixture.of(context.inputs, context.config.corpora)
        contents = [self.graph.nodes[name].id for role, name in node.inputs.items() if role.startswith("corpus")]
        model, of_tokenizer = stand_in(context, mixture, contents)
        self._models[node.name] = model
        workload = self._text_training(context, model, None, mixture, measured=1)
        return replace(workload, other=workload.other + of_tokenizer)

    def _adapt(self, node: Node) -> Workload:
        context, model = self._context(node), self._below(node).merged()
        mixture = language_modelling.CorpusMixture.of(context.inputs, context.config.corpora)
        self._models[node.name] = model
        lora = context.config.weights == "lora"
        tuning = {"method": "lora", "lora": _given(context.config.lora)} if lora else None
        return self._text_training(context, model, tuning, mixture, measured=2)

    def _text_training(
        self, context: StageContext[Any], model: Model, tuning: dict[str, Any] | None,
        mixture: language_modelling.CorpusMixture, *, measured: int,
    ) -> Workload:  # fmt: skip
        config: language_modelling.TextTraining = context.config
        tokenizer = load_tokenizer(model.directory)
        masked = is_masked_directory(model.directory)
        sampled = {name: _sampled_shard(tokenizer, documents) for name, documents in mixture.train.items()}
        shards = {name: shard for name, (shard, _) in sampled.items()}
        batches = TokenBatches(
            shards, config.corpora, total_tokens=min(config.tokens, PROBED_STEPS * config.batch_tokens),
            batch_tokens=config.batch_tokens, length=config.length, micro_batch_tokens=config.micro_batch_tokens,
            seed=context.seed, make_example=_masked_example if masked else _causal_example,
        )  # fmt: skip
        steps = [[_documents(batch) for batch in batches[step]] for step in range(len(batches))]
        held_out = _held_out(tokenizer, mixture.held_out, config.length, masked=masked)
        parts = [
            Part(_probe(model, "train", config, _largest_first(steps), tuning, config.optimizer), config.tokens),
            *_reading(model, config, held_out, times=measured),
        ]
        tokenizing = sum((took for _, took in sampled.values()), Took())
        return replace(_training_workload(model, tuning, parts, steps, config), other=tokenizing)

    def _sft(self, node: Node) -> Workload:
        context, model = self._context(node), self._below(node).merged()
        config: sft.SftConfig = context.config
        tokenizer = load_tokenizer(model.directory)
        template = sft.chat_template(tokenizer, config.template, name=model.directory.name)
        length = min(config.length, context_of_directory(model.directory))
        train, held_out = sft.training_examples(context, template, length)
        tuning = _tuning(config)
        self._models[node.name] = Model(model.directory, None if config.merge else tuning)
        measured = [example for part in held_out.values() for example in part.examples]
        return self._example_training(
            context, model, tuning, train.examples, _reading(model, config, measured, times=2)
        )

    # Alignment

    def _reward(self, node: Node) -> Workload:
        context, model = self._context(node), self._below(node).merged()
        prepared = alignment.prepare(context)
        ranked = [prompt for prompt in prepared.train if prompt.pairs]
        held_out = [c for part in prepared.held_out.values() for prompt in part for c in prompt.completions]
        self._models[node.name] = model
        return self._preference_training(context, model, ranked, _reading(model, context.config, held_out, times=1))

    def _dpo(self, node: Node) -> Workload:
        context, model = self._context(node), self._below(node).merged()
        prepared = alignment.prepare(context)
        prompts = dpo.trainable_prompts(context.config, prepared)
        asked = [c for prompt in dpo.read_before_training(context.config, prompts) for c in prompt.completions]
        held_out = [c for part in prepared.held_out.values() for prompt in part for c in prompt.completions]
        corpora = {role: corpus_documents(f, "held_out") for role, f in context.inputs.items() if "corpus:" in role}
        text = _held_out(prepared.template.tokenizer, corpora, alignment_window(model), masked=False)
        self._models[node.name] = Model(model.directory, _tuning(context.config))
        # The held-out completions are read before training and after it, and by both policies again for the KL.
        readings = [
            *_reading(model, context.config, asked, times=1),
            *_reading(model, context.config, held_out, times=4),
        ]
        readings += _reading(model, context.config, text, times=2)
        return self._preference_training(context, model, prompts, readings)

    def _preference_training(
        self, context: StageContext[Any], model: Model, prompts: Sequence[Any], readings: list[Part]
    ) -> Workload:
        config: alignment.PreferenceTraining = context.config
        batches = alignment.plan(config, prompts, context.seed)
        sizes = [sum(prompts[i].tokens for i in batch) for batch in batches.plan]
        chosen = [[_documents(batch.packed) for batch in batches[step]] for step in _probed(sizes)]
        tokens = sum(sizes)
        tuning = _tuning(config)
        train = Part(_probe(model, "train", config, _largest_first(chosen), tuning), tokens)
        return _training_workload(model, tuning, [train, *readings], chosen, config)

    # Arms

    def _finetune(self, node: Node) -> Workload:
        context = self._context(node)
        config: finetune.FinetuneConfig = context.config
        if config.search is None:
            return self._tuned(node, context)
        trials = combinations(config.search)
        alone = [replace(context, config=config_of(config, trial, len(trials))) for trial in trials]
        workloads = [self._tuned(node, one) for one in alone]
        task = load_task(context.inputs["task"] / "task")
        if not isinstance(task, ClassificationTask):
            raise NotEstimatedError("a search, and how its trials read the development items is known for labels only")
        dev = [item.text for item in task.dev]
        read = [self._answering(node, one.config, task, dev) for one in alone]
        largest = max(workloads, key=lambda workload: workload.micro_batch_tokens)
        parts = [part for workload in (*workloads, *read) for part in workload.parts]
        return replace(largest, parts=parts, notes=[f"{len(trials)} trials"])

    def _tuned(self, node: Node, context: StageContext[Any]) -> Workload:
        """One training, without a search."""
        below = self._below(node)
        config: finetune.FinetuneConfig = context.config
        task = config.what_is_learned(load_task(context.inputs["task"] / "task"), context.seed)
        if config.quantize is not None or config.method in ("ia3", "prefix", "prompt"):
            raise NotEstimatedError("a method or a quantized base that no probe knows")
        if isinstance(task, ClassificationTask) and config.method == "head":
            return Workload(below, None, [self._encoding(below, config, [item.text for item in task.train], task)])
        model, tokenizer = below.merged(), load_tokenizer(below.directory)
        tuning = _tuning(config) if config.method != "head" else None
        self._models[node.name] = Model(model.directory, tuning if config.method in ("lora", "adapter") else None)
        sizes = {"max_item_tokens": config.max_item_tokens, "context": context_of_directory(model.directory)}
        match task:
            case ClassificationTask():
                examples = label_examples(task, tokenizer, **sizes).examples
            case ChoiceTask():
                examples = choice_examples(task, config.option_form(), tokenizer, **sizes).examples
            case _:
                raise NotEstimatedError(f"tasks of the kind {task.config.kind} are not probed")
        return self._example_training(context, model, tuning, examples, [])

    def _example_training(
        self, context: StageContext[Any], model: Model, tuning: dict[str, Any] | None, examples: Sequence[Example],
        readings: list[Part],
    ) -> Workload:  # fmt: skip
        from quilate.phases.example_training import plan_batches

        batches = plan_batches(context.config, examples, context.seed)
        sizes = [sum(len(examples[i].tokens) for i in batch) for batch in batches.plan]
        chosen = [[_documents(batch) for batch in batches[step]] for step in _probed(sizes)]
        tokens = sum(sizes)
        train = Part(_probe(model, "train", context.config, _largest_first(chosen), tuning), tokens)
        return _training_workload(model, tuning, [train, *readings], chosen, context.config)

    def _encoding(
        self, model: Model, config: finetune.FinetuneConfig, texts: Sequence[str], task: ClassificationTask
    ) -> Part:
        """Reading texts for a head's features."""
        from quilate.tokenization.segments import prompt_tokens

        template = task.prompt_template()
        encoded = prompt_tokens(load_tokenizer(model.directory), [template.prompt(text) for text in texts])
        lengths = sorted((min(len(tokens), config.max_item_tokens) for tokens in encoded), reverse=True)
        batches = _grouped([(length, 1) for length in lengths], features.BATCH_TOKENS)
        chosen = [batches[i] for i in _spread(len(batches), PROBED_BATCHES)]
        return Part(_probe(model, "encode", config, [chosen], model.adapter), sum(lengths))

    def _icl(self, node: Node) -> Workload:
        """Building a prompt takes no time; choosing between several reads the development items once for each."""
        context = self._context(node)
        config: icl.IclConfig = context.config
        task = load_task(context.inputs["task"] / "task")
        if not isinstance(task, ClassificationTask):
            raise NotEstimatedError(f"tasks of the kind {task.config.kind} are not probed")
        trials = trials_of(config)
        folders = []
        for number, trial in enumerate(trials):
            template = {"templates": [config.templates[trial.template]]} if config.templates else {}
            alone = config.model_copy(update={"shots": trial.shots, "permutations": 1, **template})
            place = make_folder(context.folder / str(number))
            icl.ICL.run(StageContext(**{**vars(context), "config": alone, "folder": place}))
            folders.append(place / "scorer")
        self._scorers[node.name] = node, folders
        if len(trials) == 1:
            raise NotEstimatedError("there is one prompt, and nothing to choose")
        model, texts = self._below(node), [item.text for item in task.dev]
        return Workload(model, None, [self._scoring(model, folder, texts, config) for folder in folders])

    def _evaluate(self, node: Node) -> Workload:
        arm = self.graph.nodes[node.inputs["arm"]]
        task = load_task(self.folder_of("task") / "task")
        if not isinstance(task, ClassificationTask):
            raise NotEstimatedError(f"tasks of the kind {task.config.kind} are not probed")
        texts = [item.text for item in (*task.dev, *task.test)]
        if arm.name in self._scorers:
            model = self._below(arm)
            config = validate(icl.IclConfig, arm.config, source=arm.name)
            parts = [self._scoring(model, folder, texts, config) for folder in self._scorers[arm.name][1]]
            dearest = max(parts, key=lambda part: part.tokens)
            notes = ["the dearest of the prompts tried"] if len(parts) > 1 else []
            return Workload(model, None, [dearest], notes=notes)
        if arm.kind != "finetune":
            raise NotEstimatedError(NOT_KNOWN.get(arm.kind, "its arm uses no model of ours"))
        return self._answering(arm, validate(finetune.FinetuneConfig, arm.config, source=arm.name), task, texts)

    def _answering(
        self, arm: Node, tuned: finetune.FinetuneConfig, task: ClassificationTask, texts: Sequence[str]
    ) -> Workload:
        """Asking what an arm has trained."""
        if tuned.method == "head":
            below = self._below(arm)
            return Workload(below, None, [self._encoding(below, tuned, texts, task)])
        model = self._models[arm.name]
        scorer = PromptScorer(
            model.directory, list(task.labels), list(task.verbalizers), template=task.prompt_template().source,
            normalization="sum", precision=tuned.precision,
        )  # fmt: skip
        return Workload(model, None, [_score_part(model, scorer, texts, tuned)])

    def _scoring(self, model: Model, folder: Path, texts: Sequence[str], config: icl.IclConfig) -> Part:
        scorer = load_scorer(folder)
        assert isinstance(scorer, PromptScorer)
        return _score_part(model, scorer, texts, config)


def alignment_window(model: Model) -> int:
    return min(TEXT_WINDOW, context_of_directory(model.directory))


def _score_part(model: Model, scorer: PromptScorer, texts: Sequence[str], config: Any) -> Part:
    prompts, labels = scorer.tokens(texts)
    shared = common_prefix_length(prompts)
    nodes = len(LabelTree.of(labels))
    own = sorted((len(tokens) - shared for tokens in prompts), reverse=True)
    batches = _grouped([(length + nodes, nodes) for length in own], SCORE_TOKENS)
    chosen = [[(length - nodes, 0) for length, _ in batches[i]] for i in _spread(len(batches), PROBED_BATCHES)]
    probe = ProbeSpec(
        str(model.directory), "score", config.precision, [chosen], dict(model.adapter) if model.adapter else None,
        prefix=shared, labels=[list(label) for label in labels],
    )  # fmt: skip
    return Part(probe, sum(own) + nodes * len(own))


def _probe(
    model: Model, activity: Activity, config: Any, steps: list[list[Documents]], tuning: Any, optimizer: str = "adamw"
) -> ProbeSpec:
    given = dict(tuning) if tuning else None
    recomputes = activity == "train" and _recomputes(config)
    return ProbeSpec(str(model.directory), activity, config.precision, steps, given, optimizer, recomputes=recomputes)


def _reading(model: Model, config: Any, examples: Sequence[Example], *, times: int) -> list[Part]:
    """Measuring the loss of examples so many times, in batches as `sum_loss` makes them."""
    if not examples:
        return []
    batches = [_documents(pack(part)) for part in split_by_tokens(examples, BATCH_TOKENS)]
    chosen = [batches[i] for i in _spread(len(batches), PROBED_BATCHES)]
    return [Part(_probe(model, "loss", config, [chosen], None), times * sum(len(e.tokens) for e in examples))]


def _training_workload(
    model: Model, tuning: dict[str, Any] | None, parts: list[Part], steps: list[list[Documents]], config: Any
) -> Workload:
    return Workload(
        model, tuning, parts, saves=True,
        micro_batch_tokens=max(sum(length for length, _ in batch) for step in steps for batch in step),
        several_micro_batches=any(len(step) > 1 for step in steps), recomputes=_recomputes(config),
    )  # fmt: skip


def _recomputes(config: Any) -> bool:
    """Whether activations are computed again; alignment has no such key."""
    return bool(getattr(config, "gradient_checkpointing", False))


def _tuning(config: Any) -> dict[str, Any] | None:
    """How a config makes its model trainable, in the words of a probe."""
    match config.method:
        case "full":
            return None
        case "last_layers":
            return {"method": "last_layers", "last_layers": config.last_layers or finetune.DEFAULT_LAST_LAYERS}
    return {"method": config.method, config.method: _given(getattr(config, config.method))}


def _given(settings: Any) -> dict[str, Any]:
    return {} if settings is None else dict(settings.as_json())


def _documents(batch: PackedBatch) -> Documents:
    ends = np.cumsum(batch.lengths)
    document = np.searchsorted(ends, batch.source_positions.numpy(), side="right")
    supervised = np.bincount(document, minlength=len(ends))
    return [(length, int(count)) for length, count in zip(batch.lengths, supervised, strict=True)]


def _largest_first(steps: list[list[Documents]]) -> list[list[Documents]]:
    """The step with the largest micro-batch warms up, so that the probe's peak of memory is the stage's; the others
    come in no order, for the probe may stop before the last of them."""
    largest = max(range(len(steps)), key=lambda i: max(sum(length for length, _ in batch) for batch in steps[i]))
    mixed = np.random.default_rng(0).permutation(len(steps)).tolist()
    return [steps[largest], *(steps[i] for i in mixed if i != largest)]


def _probed(sizes: Sequence[int]) -> list[int]:
    """Steps to measure, by the tokens of each: the largest, for the peak of memory, and others evenly over all."""
    largest = max(range(len(sizes)), key=sizes.__getitem__)
    return [largest, *(step for step in _spread(len(sizes), PROBED_STEPS - 1) if step != largest)]


def _spread(count: int, wanted: int) -> list[int]:
    """Up to `wanted` indices, evenly over `count`."""
    return sorted({round(place) for place in np.linspace(0, count - 1, min(count, wanted)).tolist()})


def _grouped(documents: Documents, limit: int) -> list[Documents]:
    """Consecutive documents (longest first), at most `limit` padded tokens together."""
    groups: list[Documents] = []
    for document in documents:
        if not groups or (len(groups[-1]) + 1) * groups[-1][0][0] > limit:
            groups.append([])
        groups[-1].append(document)
    return groups


def _sampled_shard(tokenizer: PreTrainedTokenizerBase, documents: Sequence[str]) -> tuple[Shard, Took]:
    """Some of the documents, taken evenly, as tokens; and the time that all of them will take."""
    size = sum(len(document.encode()) for document in documents)
    every = max(1, size // SAMPLE_BYTES)
    started = Took.so_far()
    tokens = language_modelling.document_tokens(tokenizer, documents[::every])
    took = (Took.so_far() - started) * every
    flat = np.array([token for document in tokens for token in document], dtype=np.uint32)
    return Shard(flat, np.cumsum([len(document) for document in tokens]), 0, "sample"), took


def _causal_example(id: str, tokens: np.ndarray, _: Any) -> Example:
    return Example(id, tokens, np.ones(len(tokens), dtype=bool))


def _masked_example(id: str, tokens: np.ndarray, _: Any) -> Example:
    return Example(id, tokens, np.arange(len(tokens)) < max(1, round(MASKED_SHARE * len(tokens))), tokens)


def _held_out(
    tokenizer: PreTrainedTokenizerBase, corpora: dict[str, list[str]], length: int, *, masked: bool
) -> list[Example]:
    """The examples on which a text stage measures."""
    examples: list[Example] = []
    for tokens in _tokenized(tokenizer, corpora.values()):
        if masked:
            pieces = (np.array(tokens[start : start + length]) for start in range(0, len(tokens), length))
            examples += [_masked_example("", piece, None) for piece in pieces if len(piece) > 1]
        else:
            examples += windows(tokens, 0, length)
    return examples


def _tokenized(tokenizer: PreTrainedTokenizerBase, corpora: Iterable[list[str]]) -> Iterable[list[int]]:
    for documents in corpora:
        yield from tokenizer(documents, add_special_tokens=False).input_ids
