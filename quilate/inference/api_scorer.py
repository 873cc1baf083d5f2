"""Labels from a model behind an OpenAI-compatible endpoint: the same prompts as a local model's, sent away."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from quilate.errors import QuilateError
from quilate.files import make_folder, write_json
from quilate.inference.api_answers import LabelAnswer, Named, from_first_token, from_text, label_named, likelihood
from quilate.inference.api_client import Response
from quilate.inference.api_model import ApiModel, Posed, cached_among, cost_of, tokens_of
from quilate.inference.demonstrations import Pool
from quilate.inference.prompts import Demonstration
from quilate.inference.scores import LabelScores, Normalization
from quilate.tasks.templates import PromptTemplate


@dataclass(frozen=True)
class LabelQuestion:
    """A question with the answers that are possible, and how the one that a text names is found."""

    posed: Posed
    answers: Sequence[str]
    named: Named = label_named


def ask_labels(
    model: ApiModel, questions: Sequence[LabelQuestion], on_progress: Callable[[int, int], None]
) -> LabelScores:
    """Score every answer of every question; rows of fewer answers end in -inf.

    Where the endpoint gives no log-probabilities, for all questions or for some, the answer that the text names counts;
    `counts` of the scores says for how many, and how many name none (all answers then score the same).
    """
    answers: list[LabelAnswer | None] = [None] * len(questions)
    responses: list[Response] = []
    if model.asking.answers == "likelihood":
        responses += _by_likelihood(model, questions, answers, on_progress)
    rest = [row for row, answer in enumerate(answers) if answer is None]
    listed = model.asking.answers == "first_token"
    asked = model.ask(
        [questions[row].posed for row in rest],
        lambda done, total: on_progress(len(questions) - total + done, len(questions)),
        listed=listed,
    )
    read = from_first_token if listed else from_text
    for row, response in zip(rest, asked, strict=True):
        answers[row] = read(response.value, questions[row].answers, questions[row].named)
    found = [answer for answer in answers if answer is not None]
    responses += asked
    wanted = model.asking.answers != "text"
    counts = {
        "answers without log-probabilities": sum(not a.from_logprobs for a in found) if wanted else 0,
        "answers that name no label": sum(not a.named for a in found),
        "answers from the cache": cached_among(responses),
    }
    scores = np.full((len(found), max((len(a.scores) for a in found), default=0)), -np.inf)
    for own, answer in zip(scores, found, strict=True):
        own[: len(answer.scores)] = answer.scores
    return LabelScores(scores, 0, tokens_of(responses), counts, cost_of(responses))


def _by_likelihood(
    model: ApiModel,
    questions: Sequence[LabelQuestion],
    answers: list[LabelAnswer | None],
    on_progress: Callable[[int, int], None],
) -> list[Response]:
    """Fill in the answers of the questions whose answers the server gives the likelihood of. The first one is tried
    alone: a server that cannot do it is not asked a thousand times."""
    responses: list[Response] = []

    def ask(rows: Sequence[int], listen: Callable[[int, int], None]) -> None:
        written = {row: [PromptTemplate.answer(answer) for answer in questions[row].answers] for row in rows}
        echoes = [model.echo(questions[row].posed.text + answer) for row in rows for answer in written[row]]
        found = model.client().send(echoes, listen)
        responses.extend(found)
        mine = iter(found)
        for row in rows:
            scores = [
                _likelihood(next(mine), questions[row].posed.text, answer, model.asking.normalization)
                for answer in written[row]
            ]
            if None not in scores:
                answers[row] = LabelAnswer(np.array(scores, dtype=np.float64), True, True)

    ask(range(min(1, len(questions))), lambda done, total: None)
    if len(questions) > 1 and answers[0] is not None:
        ask(range(1, len(questions)), lambda done, total: on_progress(done * len(questions) // total, len(questions)))
    return responses


def _likelihood(response: Response, prompt: str, answer: str, normalization: Normalization) -> float | None:
    try:
        return likelihood(response.value, prompt, answer, normalization)
    except ValueError:  # malformed, which is as good as absent: the item is asked again in words, and counted
        return None


class ApiScorer:
    """Scores labels by asking an endpoint; see `ask_labels`.

    Args:
        labels, verbalizers, template, instruction, demonstrations, pool: see `PromptScorer`.
    """

    def __init__(
        self,
        labels: list[str],
        verbalizers: list[str],
        *,
        template: str,
        instruction: str,
        model: ApiModel,
        demonstrations: Sequence[Demonstration] = (),
        pool: Pool | None = None,
    ) -> None:
        self.labels, self.verbalizers = labels, verbalizers
        self.template = PromptTemplate(template, instruction=instruction, verbalizers=verbalizers)
        self.demonstrations, self.pool = [(t, v) for t, v in demonstrations], pool
        self.model = model

    def score(
        self, texts: Sequence[str], on_progress: Callable[[int, int], None] = lambda done, total: None
    ) -> LabelScores:
        if not texts:
            return LabelScores(np.empty((0, len(self.labels))), truncated=0, tokens=0)
        posed = [self.posed(shown, text) for shown, text in zip(self._shown(texts), texts, strict=True)]
        return ask_labels(self.model, [LabelQuestion(one, self.verbalizers) for one in posed], on_progress)

    def posed(self, shown: Sequence[Demonstration], text: str) -> Posed:
        """A text after these examples."""
        solved = [(self.template.prompt(t), v) for t, v in shown]
        return Posed.of(self.template, solved, self.template.prompt(text))

    def _shown(self, texts: Sequence[str]) -> list[list[Demonstration]]:
        if self.pool is None:
            return [self.demonstrations] * len(texts)
        ranking = self.pool.rank(texts, _no_hidden_states)[:, : self.pool.shots]
        return [self.pool.arranged(ranked, text) for ranked, text in zip(ranking.tolist(), texts, strict=True)]

    def save(self, folder: Path) -> None:
        make_folder(folder)
        saved: dict[str, Any] = {
            "kind": "api",
            "labels": self.labels,
            "verbalizers": self.verbalizers,
            "template": self.template.source,
            "instruction": self.template.instruction,
            "demonstrations": [list(d) for d in self.demonstrations],
        } | self.model.saved(folder)
        if self.pool is not None:
            saved["pool"] = {k: v for k, v in vars(self.pool).items() if k != "vectors"}
        write_json(folder / "scorer.json", saved)

    @classmethod
    def load(cls, folder: Path, saved: Mapping[str, Any]) -> ApiScorer:
        pool = None
        if "pool" in saved:
            pool = Pool(**(saved["pool"] | {"examples": [(t, v) for t, v in saved["pool"]["examples"]]}))
        return cls(
            saved["labels"],
            saved["verbalizers"],
            template=saved["template"],
            instruction=saved["instruction"],
            model=ApiModel.load(folder, saved),
            demonstrations=[(t, v) for t, v in saved["demonstrations"]],
            pool=pool,
        )


def _no_hidden_states(texts: Sequence[str]) -> Any:
    raise QuilateError("an endpoint gives no hidden states")  # the config refuses `similarity: embedding`
