"""What a model behind an endpoint answers where a task has no labels of its own: the option of a question, the entities
of a document, a text. The same prompts as a local model's; what a grammar would hold a local one to is asked for in
words here, checked afterwards, and counted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from quilate.files import make_folder, write_json
from quilate.inference import choice
from quilate.inference.answers import Asked as AskedOf
from quilate.inference.answers import WrittenAnswers
from quilate.inference.api_answers import label_named, letter_named, list_in, text_of, was_cut
from quilate.inference.api_model import ApiModel, Posed, cached_among, cost_of, tokens_of
from quilate.inference.api_scorer import LabelQuestion, ask_labels
from quilate.inference.choice import Question, said_answers, shown_options
from quilate.inference.scorer import ProgressCallback, silent
from quilate.inference.scores import LabelScores
from quilate.inference.spans import Found
from quilate.tasks.extraction import Span
from quilate.tasks.multiple_choice import AnswerForm
from quilate.tasks.records import locate, parse_records
from quilate.tasks.templates import PromptTemplate

FROM_THE_CACHE = "answers from the cache"


class ApiChoiceScorer:
    """Scores the options of questions; see `ask_labels`.

    Args:
        form: whether an option's `text` or its `letter` is asked for.
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
    ) -> None:
        self.form, self.model = form, model
        self.template = PromptTemplate(template, instruction=instruction, names=("text", "options"))
        self.demonstrations = list(demonstrations)

    def score(self, questions: Sequence[choice.Asked], on_progress: ProgressCallback = silent) -> LabelScores:
        return ask_labels(self.model, list(map(self.question, questions)), on_progress)

    def question(self, question: choice.Asked) -> LabelQuestion:
        """What the endpoint is asked, and how its answer is read."""
        solved = [(self._shown(q), said_answers(q, self.form)[right]) for q, right in self.demonstrations]
        named = letter_named(question.options) if self.form == "letter" else label_named
        posed = Posed.of(self.template, solved, self._shown(question))
        return LabelQuestion(posed, list(said_answers(question, self.form)), named)

    def _shown(self, question: choice.Asked) -> str:
        return self.template.prompt(question.text, shown_options(question, self.form))

    def save(self, folder: Path) -> None:
        make_folder(folder)
        shown = [{"text": q.text, "options": list(q.options), "right": right} for q, right in self.demonstrations]
        saved: dict[str, Any] = {"kind": "api choices", "form": self.form, "template": self.template.source}
        saved |= {"instruction": self.template.instruction, "demonstrations": shown}
        write_json(folder / "scorer.json", saved | self.model.saved(folder))

    @classmethod
    def load(cls, folder: Path, saved: Mapping[str, Any]) -> ApiChoiceScorer:
        shown = [(Question(d["text"], tuple(d["options"])), d["right"]) for d in saved["demonstrations"]]
        form, template, instruction = saved["form"], saved["template"], saved["instruction"]
        model = ApiModel.load(folder, saved)
        return cls(form=form, template=template, instruction=instruction, model=model, demonstrations=shown)


class ApiTagger:
    """Finds entities by asking for a list of records, `[{"label": ..., "text": ...}]`, of a whole document at once.

    Args:
        labels: those that records may have.
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
    ) -> None:
        self.labels, self.model = labels, model
        self.template = PromptTemplate(template, instruction=instruction, verbalizers=labels)
        self.demonstrations = [(text, answer) for text, answer in demonstrations]

    def find(self, texts: Sequence[str], on_progress: ProgressCallback = silent) -> Found:
        solved = [(self.template.prompt(text), answer) for text, answer in self.demonstrations]
        with_words = [text for text in texts if text.strip()]
        posed = [Posed.of(self.template, solved, self.template.prompt(text)) for text in with_words]
        responses = self.model.ask(posed, on_progress, listed=False)
        counts = dict.fromkeys(
            ("answers cut short", "answers that are no records", "records of another label",
             "records that stand nowhere"), 0,
        )  # fmt: skip
        answers = iter(responses)
        spans = [self._spans(text, next(answers).value, counts) if text.strip() else () for text in texts]
        counts[FROM_THE_CACHE] = cached_among(responses)
        return Found(spans, windowed=0, tokens=tokens_of(responses), counts=counts, cost=cost_of(responses))

    def _spans(self, text: str, response: Mapping[str, Any], counts: dict[str, int]) -> tuple[Span, ...]:
        parsed = parse_records(list_in(text_of(response)))
        known = [record for record in parsed.records if record.label in self.labels]
        found, lost = locate(known, text)
        counts["answers cut short"] += was_cut(response)
        counts["answers that are no records"] += not parsed.valid
        counts["records of another label"] += len(parsed.records) - len(known)
        counts["records that stand nowhere"] += lost
        return tuple(sorted(set(found)))

    def save(self, folder: Path) -> None:
        make_folder(folder)
        saved: dict[str, Any] = {"kind": "api records", "labels": self.labels, "template": self.template.source}
        saved |= {"instruction": self.template.instruction, "demonstrations": self.demonstrations}
        write_json(folder / "scorer.json", saved | self.model.saved(folder))

    @classmethod
    def load(cls, folder: Path, saved: Mapping[str, Any]) -> ApiTagger:
        shown = [(text, answer) for text, answer in saved["demonstrations"]]
        template, instruction, model = saved["template"], saved["instruction"], ApiModel.load(folder, saved)
        return cls(saved["labels"], template=template, instruction=instruction, model=model, demonstrations=shown)


class ApiAnswerWriter:
    """Answers questions: the first line that the endpoint writes.

    Args:
        extractive: answers are to be stretches of the context; those that are none count as they stand, and are
            counted.
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
    ) -> None:
        self.extractive, self.model = extractive, model
        self.template = PromptTemplate(template, instruction=instruction, names=("text", "context"))
        self.demonstrations = [(text, context, answer) for text, context, answer in demonstrations]

    def write(self, questions: Sequence[AskedOf], on_progress: ProgressCallback = silent) -> WrittenAnswers:
        solved = [(self.template.prompt(text, context=c), answer) for text, c, answer in self.demonstrations]
        posed = [Posed.of(self.template, solved, self.template.prompt(q.text, context=q.context)) for q in questions]
        responses = self.model.ask(posed, on_progress, listed=False)
        answers = [text_of(response.value).strip().partition("\n")[0].strip() for response in responses]
        counts = {FROM_THE_CACHE: cached_among(responses)}
        if self.extractive:
            counts["answers that stand nowhere in the context"] = sum(
                answer not in question.context for answer, question in zip(answers, questions, strict=True)
            )
        unfinished = sum(was_cut(response.value) for response in responses)
        return WrittenAnswers(answers, 0, unfinished, tokens_of(responses), counts, cost_of(responses))

    def save(self, folder: Path) -> None:
        make_folder(folder)
        saved: dict[str, Any] = {"kind": "api answers", "extractive": self.extractive, "template": self.template.source}
        saved |= {"instruction": self.template.instruction, "demonstrations": self.demonstrations}
        write_json(folder / "scorer.json", saved | self.model.saved(folder))

    @classmethod
    def load(cls, folder: Path, saved: Mapping[str, Any]) -> ApiAnswerWriter:
        template, instruction, extractive = saved["template"], saved["instruction"], saved["extractive"]
        shown = [(text, context, answer) for text, context, answer in saved["demonstrations"]]
        model = ApiModel.load(folder, saved)
        return cls(template=template, instruction=instruction, extractive=extractive, model=model, demonstrations=shown)
