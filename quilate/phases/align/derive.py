"""Preference pairs where nobody judged any: an explanation that somebody wrote is preferred to what a model writes when
it reaches a wrong answer.

The pairs follow from a rule, so they say what the rule says and no more: that the explanation is a person's and the
other a model's is in every one of them, beside right and wrong. They are marked as derived wherever they go.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator

from quilate.config import Config
from quilate.data.conversations import bare_text
from quilate.data.preferences import JudgedPrompt, Pair
from quilate.data.sampling import draw
from quilate.data.tables import SourceConfig, locate, read_table
from quilate.engine.runlog import Progress
from quilate.errors import DataError
from quilate.files import digest, sha256_of_file, write_jsonl, write_text
from quilate.inference.generation import Generator
from quilate.inference.sampling import Sampling
from quilate.models.load import context_length, load_causal, load_tokenizer
from quilate.models.precision import Precision, compute_dtype
from quilate.phases.align.common import room_for_prompts
from quilate.phases.align.patterns import extracted, same_answer, with_one_group
from quilate.phases.align.preferences import split_prompts
from quilate.phases.align.rollouts import prompts_of_judgements, stop_tokens
from quilate.phases.corpus import refuse_leaks, tasks_among
from quilate.phases.sft import chat_template
from quilate.phases.stage import StageContext, StageKind, StageReport, model_of
from quilate.rng import derive_seed
from quilate.tasks.columns import Condition, TextColumn, filter_rows


class DeriveConfig(Config):
    kind: Literal["derive"]
    """Pairs that nobody judged: a written explanation is preferred to what a model writes when it reaches a wrong
    answer. Stages name them in `preferences`, as sets of judgements; reports mark them as derived."""
    on: str = "base"
    """The stage whose model writes: one tuned on conversations, as a rule."""
    path: str
    """A table of questions with answers and explanations, relative to the recipe's folder."""
    where: dict[str, Condition] = Field(default_factory=dict)
    """Conditions on columns; rows that fail one are dropped and counted."""
    prompt: str
    """The column with what is asked, or a Jinja template over the columns. It must say how an answer is to be given,
    for `extract` to find it."""
    explanation: str
    """The column, or template, with the completion that is preferred."""
    correct: str
    """The column, or template, with the right answer as `extract` finds it."""
    extract: str
    """A regular expression with one group, which holds the answer that a completion reaches (the last match counts),
    such as `Respuesta: (\\d)`. Rows in whose own explanation it does not find the right one are left out."""
    group: str | None = None
    """Column whose equal values are held out together: the case, the patient."""
    completions_per_prompt: int = Field(default=4, ge=1)
    """Completions of each question; every different one that reaches a wrong answer makes a pair."""
    max_questions: int | None = Field(default=None, ge=1)
    """Use at most so many questions, drawn by what they say, whatever their order in the file."""
    max_new_tokens: int = Field(default=256, ge=1)
    """Longest completion; one that has not ended by then makes no pair."""
    temperature: float = Field(default=1.0, gt=0)
    """Of sampling."""
    prompt_tokens: int = Field(default=768, ge=1)
    """Longest prompt; longer ones are left out and counted."""
    held_out: float = Field(default=0.1, gt=0, le=1)
    """Share of the questions that is never trained on and serves to measure with; 1 to measure only."""
    max_held_out: int = Field(default=500, ge=1)
    """Most held-out questions to measure with; more would only cost time."""
    precision: Precision = "auto"
    """`bf16` or `fp32`."""
    once: bool = False
    """Write the completions once, with the recipe's first seed, for all seeds of what is trained on them."""

    @field_validator("extract")
    @classmethod
    def _one_group(cls, pattern: str) -> str:
        return with_one_group(pattern)


@dataclass(frozen=True)
class Question:
    """A row of the table."""

    id: str
    prompt: str
    explanation: str
    correct: str
    group: str


def read_questions(config: DeriveConfig, base: Path) -> tuple[list[Question], Counter[str]]:
    """The rows that can be used, and what was left out, by reason.

    Raises:
        DataError: the file or a column is missing.
    """
    table = read_table(SourceConfig(path=config.path), base=base)
    rows, filtered = filter_rows(table.rows, config.where)
    texts = {name: TextColumn(getattr(config, name), table.columns) for name in ("prompt", "explanation", "correct")}
    group_of = None if config.group is None else TextColumn(config.group, table.columns)
    counts = Counter(
        {"filtered rows": sum(filtered.values()), "broken records": sum(table.notes["quarantined"].values())}
    )
    questions: list[Question] = []
    for number, row in rows:
        prompt, explanation, correct = (texts[name].of(row) for name in ("prompt", "explanation", "correct"))
        if not (prompt and explanation and correct):
            counts["rows without a question, an explanation or an answer"] += 1
        elif not same_answer(extracted(config.extract, [explanation])[0], correct):
            counts["rows whose explanation does not reach the right answer"] += 1
        else:
            group = digest(prompt)[:16] if group_of is None else group_of.of(row)
            questions.append(Question(f"row {number}", prompt, explanation, correct, group))
    if config.max_questions is not None:
        counts["questions beyond max_questions"] = max(0, len(questions) - config.max_questions)
        questions = draw(questions, config.max_questions, lambda question: question.prompt)
    return questions, counts


def derive_pairs(
    questions: Sequence[Question], written: Sequence[Sequence[tuple[str, bool]]], pattern: str
) -> tuple[list[JudgedPrompt], Counter[str]]:
    """The pairs that follow, and what became of every completion.

    Args:
        written: of each question its completions, and whether each ended.
    """
    judged, counts = [], Counter[str]()
    for question, completions in zip(questions, written, strict=True):
        wrong: dict[str, None] = {}
        answers = extracted(pattern, [text for text, _ in completions])
        for (text, ended), answer in zip(completions, answers, strict=True):
            if not ended:
                counts["completions cut for length"] += 1
            elif answer is None:
                counts["completions that reach no answer"] += 1
            elif same_answer(answer, question.correct):
                counts["completions that reach the right answer"] += 1
            else:
                counts["completions that reach a wrong answer"] += 1
                wrong[text.strip()] = None
        if not wrong:
            counts["questions without a wrong completion"] += 1
            continue
        texts = (question.explanation, *wrong)
        nothing = (None,) * len(texts)
        pairs = tuple(Pair(0, index) for index in range(1, len(texts)))
        asked = ({"role": "user", "content": question.prompt},)
        judged.append(
            JudgedPrompt(question.id, asked, texts, pairs, nothing, nothing, (0,), question.group, derived=True)
        )
    return judged, counts


def _run(context: StageContext[DeriveConfig]) -> StageReport:
    config = context.config
    questions, counts = read_questions(config, context.base_folder)
    texts = list(dict.fromkeys(text for q in questions for text in (q.prompt, q.explanation)))
    refuse_leaks(texts, tasks_among(context.inputs), config.path, allow=False)
    questions, written, lost = _write(context, questions)
    judged, outcomes = derive_pairs(questions, written, config.extract)
    if not judged:
        said = ", ".join(f"{count} {reason}" for reason, count in (counts + lost + outcomes).items())
        raise DataError(
            f"{config.path}: not one pair can be derived: {said}",
            hint="ask for the answer in the form that `extract` finds, and train the model on that form first",
        )
    train, held_out = split_prompts(judged, config.held_out)
    if not train and config.held_out < 1:
        raise DataError(
            f"{config.path}: its {len(judged)} questions are all of one group: none is left to train on",
            hint="give more questions, or another `group`",
        )
    counts["held out and beyond max_held_out"] = max(0, len(held_out) - config.max_held_out)
    held_out = draw(held_out, config.max_held_out, lambda prompt: bare_text(prompt.prompt))
    _save(context, train, held_out)
    every = sum(len(completions) for completions in written)
    share = {
        name: round(outcomes[f"completions that reach {what}"] / every, 4)
        for name, what in (("right", "the right answer"), ("wrong", "a wrong answer"), ("none", "no answer"))
    }
    pairs = {"train": sum(len(p.pairs) for p in train), "held_out": sum(len(p.pairs) for p in held_out)}
    context.note(
        f"derived, not judged: {len(train)} prompts ({pairs['train']} pairs) to train on, {len(held_out)} "
        f"({pairs['held_out']} pairs) to measure with; of {every} completions {share['right']:.0%} were right"
    )
    facts = {
        "source": {"path": config.path, "sha256": content_of_questions(config, context.base_folder)},
        "format": "derived",
        "questions": len(questions),
        "completions": every,
        "reached": share,
        "train_prompts": len(train),
        "train_pairs": pairs["train"],
        "held_out_prompts": len(held_out),
        "held_out_pairs": pairs["held_out"],
        "derived_prompts": len(judged),
    }
    total = counts + lost + outcomes
    return StageReport(counts={name: count for name, count in total.items() if count}, facts=facts)


def _write(
    context: StageContext[DeriveConfig], questions: Sequence[Question]
) -> tuple[list[Question], list[list[tuple[str, bool]]], Counter[str]]:
    """The questions whose prompt fits, the completions of each with whether it ended, and what was left out."""
    config = context.config
    folder = model_of(context.inputs["model"])
    template = chat_template(load_tokenizer(folder), None, name=folder.name)
    model = load_causal(folder, dtype=compute_dtype(config.precision))
    room = room_for_prompts(context_length(model), config.max_new_tokens)
    prompts, lost = prompts_of_judgements(
        [_asked(question) for question in questions], template, "chat", limit=min(config.prompt_tokens, room)
    )
    by_id = {question.id: question for question in questions}
    stops = stop_tokens(model, template, "chat")
    repeated = [prompt for prompt in prompts for _ in range(config.completions_per_prompt)]
    tokens = Generator(model, stop=stops).generate(
        [prompt.tokens for prompt in repeated],
        max_new_tokens=config.max_new_tokens,
        sampling=Sampling(config.temperature),
        seed=derive_seed(context.seed, "derive"),
        on_progress=_progress(context),
    )
    texts = template.tokenizer.batch_decode(tokens, skip_special_tokens=True)
    said = [(text, row[-1] in stops) for text, row in zip(texts, tokens, strict=True)]
    each = config.completions_per_prompt
    completions = [said[i : i + each] for i in range(0, len(said), each)]
    return [by_id[prompt.id] for prompt in prompts], completions, Counter(lost)


def _asked(question: Question) -> JudgedPrompt:
    message = {"role": "user", "content": question.prompt}
    return JudgedPrompt(question.id, (message,), (), (), (), (), (), question.group)


def _progress(context: StageContext[DeriveConfig]) -> Callable[[int, int], None]:
    def show(done: int, total: int) -> None:
        context.stop.raise_if_set()
        context.listener(Progress(done, total, "completions"))

    return show


def _save(context: StageContext[DeriveConfig], train: list[JudgedPrompt], held_out: list[JudgedPrompt]) -> None:
    """As a `preferences` stage leaves them; `pairs.jsonl` for other tools, and a card that says what they are."""
    for part, content in (("train", train), ("held_out", held_out)):
        write_jsonl(context.folder / f"{part}.jsonl", [prompt.as_json() for prompt in content])
    rows: list[dict[str, Any]] = [
        {"prompt": p.question, "chosen": p.completions[pair.better], "rejected": p.completions[pair.worse],
         "group": p.group, "split": part, "derived": True}
        for part, content in (("train", train), ("held_out", held_out)) for p in content for pair in p.pairs
    ]  # fmt: skip
    write_jsonl(context.folder / "pairs.jsonl", rows)
    write_text(context.folder / "README.md", card(context.config, len(rows)))


def card(config: DeriveConfig, pairs: int) -> str:
    """What whoever meets the file must know."""
    return (
        "# Derived preference pairs\n\n"
        f"**derived: true.** Nobody judged these {pairs} pairs. `chosen` is what somebody wrote in {config.path}; "
        f"`rejected` is what the model of stage `{config.on}` wrote after the same prompt, where "
        f"`{config.extract}` finds another answer in it than the right one.\n\n"
        "So every pair sets a person's text against a model's as well as a right answer against a wrong one: a model "
        "that tells the two hands apart scores well here without knowing any medicine, law or arithmetic. Do not "
        "report results on them as agreement with people. Pairs of one `group` belong on one side of a split.\n"
    )


def content_of_questions(config: DeriveConfig, base: Path) -> str:
    """The digest of the file that questions are read from.

    Raises:
        DataError: it is missing.
    """
    return sha256_of_file(locate(SourceConfig(path=config.path), base=base))


DERIVE = StageKind("derive", 2, DeriveConfig, _run)
