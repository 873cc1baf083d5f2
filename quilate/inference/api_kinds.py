"""What a model behind an endpoint answers where a task has no labels of its own: the option of a question, the entities
of a document, a text. The same prompts as a local model's; what a grammar would hold a local one to is asked for in
words here, checked afterwards, and counted."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from quilate.files import make_folder, write_json
from quilate.inference import choice
from quilate.inference.answers import Asked as AskedOf
from quilate.inference.answers import WrittenAnswers
from quilate.inference.api_answers import answer_of, label_named, letter_named, records_in, was_cut
from quilate.inference.api_model import ApiModel, Posed, cached_among, cost_of, tokens_of
from quilate.inference.api_scorer import LabelQuestion, ask_labels
from quilate.inference.choice import Question, said_answers, shown_options
from quilate.inference.demonstrations import nearest_to
from quilate.inference.prompts import closing_words
from quilate.inference.scorer import ProgressCallback, silent
from quilate.inference.scores import LabelScores
from quilate.inference.spans import Found
from quilate.tasks.extraction import Span
from quilate.tasks.multiple_choice import AnswerForm
from quilate.tasks.records import locate
from quilate.tasks.templates import PromptTemplate

T = TypeVar("T")

BEFALLEN = (
    "answers cut short",
    "answers that are no records",
    "records without label or text",
    "records of another label",
    "records that stand nowhere",
)
FROM_THE_CACHE = "answers from the cache"


class ApiChoiceScorer:
    """Scores the options of questions; see `ask_labels`.

    Args:
        form: whether an option's `text` or its `letter` is asked for.
        nearest: show each question so many of the demonstrations, those most like it.
        template, instruction, demonstrations: see `ChoicePromptScorer`.
    """

    def __init__(
        self,
        *,
        form: AnswerForm,
        template: str,
        instruction: str,
        model: ApiModel,
        demonstrations: Sequence[tuple[choice.Asked, int]] = (),
        nearest: int | None = None,
    ) -> None:
        self.form, self.model, self._nearest = form, model, nearest
        self.template = PromptTemplate(template, instruction=instruction, names=("text", "options"))
        self.demonstrations = list(demonstrations)

    def score(self, questions: Sequence[choice.Asked], on_progress: ProgressCallback = silent) -> LabelScores:
        texts = [question.text for question in questions]
        shown = _before(self.demonstrations, lambda d: d[0].text, texts, self._nearest)
        asked = [self._question(question, own) for question, own in zip(questions, shown, strict=True)]
        return ask_labels(self.model, asked, on_progress)

    def _question(self, question: choice.Asked, shown: Sequence[tuple[choice.Asked, int]]) -> LabelQuestion:
        solved = [(self._shown(q), said_answers(q, self.form)[right]) for q, right in shown]
        named = letter_named(question.options) if self.form == "letter" else label_named
        posed = Posed.of(self.template, solved, self._shown(question))
        return LabelQuestion(posed, list(said_answers(question, self.form)), named)

    def _shown(self, question: choice.Asked) -> str:
        return self.template.prompt(question.text, shown_options(question, self.form))

    def save(self, folder: Path) -> None:
        make_folder(folder)
        shown = [{"text": q.text, "options": list(q.options), "right": right} for q, right in self.demonstrations]
        saved: dict[str, Any] = {"kind": "api choices", "form": self.form, "template": self.template.source}
        saved |= {"instruction": self.template.instruction, "demonstrations": shown, "nearest": self._nearest}
        write_json(folder / "scorer.json", saved | self.model.saved(folder))

    @classmethod
    def load(cls, folder: Path, saved: Mapping[str, Any]) -> ApiChoiceScorer:
        shown = [(Question(d["text"], tuple(d["options"])), d["right"]) for d in saved["demonstrations"]]
        fields = {key: saved[key] for key in ("form", "template", "instruction", "nearest")}
        return cls(model=ApiModel.load(folder, saved), demonstrations=shown, **fields)


class ApiTagger:
    """Finds entities by asking for a list of records, `[{"label": ..., "text": ...}]`, of a whole document at once.

    Args:
        labels: those that records may have.
        nearest: see `ApiChoiceScorer`.
        template, instruction, demonstrations: see `RecordTagger`.
    """

    def __init__(
        self,
        labels: list[str],
        *,
        template: str,
        instruction: str,
        model: ApiModel,
        demonstrations: Sequence[tuple[str, str]] = (),
        nearest: int | None = None,
    ) -> None:
        self.labels, self.model, self._nearest = labels, model, nearest
        self.template = PromptTemplate(template, instruction=instruction, verbalizers=labels)
        self.demonstrations = [(text, answer) for text, answer in demonstrations]

    def find(self, texts: Sequence[str], on_progress: ProgressCallback = silent) -> Found:
        with_words = [text for text in texts if text.strip()]
        near = _before(self.demonstrations, lambda d: d[0], with_words, self._nearest)
        posed = [
            Posed.of(
                self.template, [(self.template.prompt(t), answer) for t, answer in own], self.template.prompt(text)
            )
            for own, text in zip(near, with_words, strict=True)
        ]
        responses = self.model.ask(posed, on_progress, stops=True)
        counts = dict.fromkeys(BEFALLEN, 0)
        answers = iter(responses)
        spans = [self._spans(text, next(answers).value, counts) if text.strip() else () for text in texts]
        counts[FROM_THE_CACHE] = cached_among(responses)
        return Found(spans, windowed=0, tokens=tokens_of(responses), counts=counts, cost=cost_of(responses))

    def _spans(self, text: str, response: Mapping[str, Any], counts: dict[str, int]) -> tuple[Span, ...]:
        listed = records_in(answer_of(response))
        known = [record for record in listed.records if record.label in self.labels]
        found, lost = locate(known, text)
        counts["answers cut short"] += was_cut(response)
        counts["answers that are no records"] += not listed.valid
        counts["records without label or text"] += listed.malformed
        counts["records of another label"] += len(listed.records) - len(known)
        counts["records that stand nowhere"] += lost
        return tuple(sorted(set(found)))

    def save(self, folder: Path) -> None:
        make_folder(folder)
        saved: dict[str, Any] = {"kind": "api records", "labels": self.labels, "template": self.template.source}
        saved |= {"instruction": self.template.instruction, "demonstrations": self.demonstrations}
        saved["nearest"] = self._nearest
        write_json(folder / "scorer.json", saved | self.model.saved(folder))

    @classmethod
    def load(cls, folder: Path, saved: Mapping[str, Any]) -> ApiTagger:
        shown = [(text, answer) for text, answer in saved["demonstrations"]]
        fields = {key: saved[key] for key in ("template", "instruction")} | {"nearest": saved.get("nearest")}
        return cls(saved["labels"], model=ApiModel.load(folder, saved), demonstrations=shown, **fields)


class ApiAnswerWriter:
    """Answers questions: the first line that the endpoint writes.

    Args:
        extractive: answers are to be stretches of the context; those that are none count as they stand, and are
            counted.
        nearest: see `ApiChoiceScorer`.
        template, instruction, demonstrations: see `AnswerWriter`.
    """

    def __init__(
        self,
        *,
        template: str,
        instruction: str,
        extractive: bool,
        model: ApiModel,
        demonstrations: Sequence[tuple[str, str, str]] = (),
        nearest: int | None = None,
    ) -> None:
        self.extractive, self.model, self._nearest = extractive, model, nearest
        self.template = PromptTemplate(template, instruction=instruction, names=("text", "context"))
        self.demonstrations = [(text, context, answer) for text, context, answer in demonstrations]

    def write(self, questions: Sequence[AskedOf], on_progress: ProgressCallback = silent) -> WrittenAnswers:
        near = _before(self.demonstrations, lambda d: d[0], [question.text for question in questions], self._nearest)
        shown = [[(self.template.prompt(t, context=c), answer) for t, c, answer in own] for own in near]
        asked = [self.template.prompt(question.text, context=question.context) for question in questions]
        posed = [Posed.of(self.template, solved, question) for solved, question in zip(shown, asked, strict=True)]
        responses = self.model.ask(posed, on_progress, stops=True)
        closing = closing_words(self.template)
        answers = [answer_line(answer_of(response.value), closing) for response in responses]
        counts = {"answers that say nothing": answers.count(""), FROM_THE_CACHE: cached_among(responses)}
        if self.extractive:
            counts["answers that stand nowhere in the context"] = sum(
                bool(answer) and answer not in question.context
                for answer, question in zip(answers, questions, strict=True)
            )
        unfinished = sum(was_cut(r.value) and "\n" not in answer_of(r.value).strip() for r in responses)
        return WrittenAnswers(answers, 0, unfinished, tokens_of(responses), counts, cost_of(responses))

    def save(self, folder: Path) -> None:
        make_folder(folder)
        saved: dict[str, Any] = {"kind": "api answers", "extractive": self.extractive, "nearest": self._nearest}
        saved |= {"template": self.template.source, "instruction": self.template.instruction}
        saved |= {"demonstrations": self.demonstrations} | self.model.saved(folder)
        write_json(folder / "scorer.json", saved)

    @classmethod
    def load(cls, folder: Path, saved: Mapping[str, Any]) -> ApiAnswerWriter:
        shown = [(text, context, answer) for text, context, answer in saved["demonstrations"]]
        fields = {key: saved[key] for key in ("template", "instruction", "extractive", "nearest")}
        return cls(model=ApiModel.load(folder, saved), demonstrations=shown, **fields)


def answer_line(text: str, closing: str) -> str:
    """The first line that says something: not a fence, nor the template's closing words again ("Respuesta:")."""
    for line in text.splitlines():
        said = line.strip()
        bare = said.replace("*", "").strip()
        if bare.casefold().startswith(closing.casefold()):
            said = bare[len(closing) :].strip()
        if said and not said.startswith("```"):
            return said
    return ""


def _before(
    examples: Sequence[T], text_of: Callable[[T], str], texts: Sequence[str], nearest: int | None
) -> list[list[T]]:
    """The examples that stand before each text: all, or its nearest, the most alike last."""
    if nearest is None:
        return [list(examples)] * len(texts)
    return [ranked[::-1] for ranked in nearest_to(examples, text_of, texts, nearest)]
